"""Readers of preference files: JSON lines, JSON, Parquet, saved data sets, Hub ids and RSRM files.

Raw rows come out with their file and row number, in the schema that `data` documents; [`load_preferences`] turns them
into one data set in its normal form. Images are never decoded here. Left out: streaming data sets.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .group import COLUMNS, first_line, group_from_row, short, string_column

if TYPE_CHECKING:
    from datasets import Dataset

FORM_VERSION = 1  # of the stored normal form: raise it when `_normal_rows` changes, so that caches go stale
_RSRM_KEYS = ("question", "image_name", "image_path")


def load_preferences(
    path_or_paths: str | os.PathLike | Sequence[str | os.PathLike],
    split: str | None = None,
    image_root: str | os.PathLike | None = None,
) -> Dataset:
    """Loads preference files as one data set in the normal form, so that rows of any shape and file fit together.

    Columns: `prompt`, `chosen` (messages), `rejected` (list of completions), `images` (`{bytes, path}`),
    `margin`, `source` (by default the file's stem), `kind`, `id`, `row`, `where` (the row in its file).
    `group_from_row` of such a row equals that of the raw row. The rows are written once to the `datasets` cache.
    RSRM rows (no `prompt`, but `question`, `image_name` or `image_path`; or Parquet `text` + `image`) are recognised
    by their keys, see [`read_rsrm`]; `rsrm:PATH` reads a text-only file without these keys as RSRM.

    Args:
        path_or_paths (`str`, path or list): `.jsonl`, `.json` (a list of rows), `.parquet`, a `save_to_disk` folder, a
            folder of Parquet, JSONL or JSON list files, or a Hub id; several as a list or separated by commas.
        split (`str`, *optional*): Split of a folder, saved `DatasetDict` or Hub id (default: the only one, or
            `"train"`). A plain file is one split.
        image_root (`str`, *optional*): Relative image paths become absolute paths below it; by default they stay
            as written, and [`ImageOptions`]'s `image_root` or the working folder applies.

    Raises:
        DataError: At the first bad row or file; `rs-rlhf data check` lists them all.
    """
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError
    from datasets.fingerprint import Hasher

    files = tuple(split_paths(path_or_paths))
    root = None if image_root is None else os.path.abspath(image_root)  # the reader may join its own root again
    parts = tuple((name, part) for file in files for name, part in _parts_of(file, split))
    stamps = [(n, part._fingerprint if hasattr(part, "_fingerprint") else _stamp(part)) for n, part in parts]
    try:
        return Dataset.from_generator(
            _normal_rows,
            features=_features(),
            gen_kwargs={"files": files, "split": split, "image_root": root},
            fingerprint=Hasher.hash([files, stamps, split, root, FORM_VERSION]),
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, DataError):
            raise error.__cause__ from None
        raise


def read_rsrm(path: str | os.PathLike, image_folder: str | os.PathLike | None = None) -> list[dict]:
    """Reads an RSRM file (the preference data of ScoreRS) as rows of the documented schema, one pair per rejected.

    JSON: a list of `{question?, chosen, rejected, image_name | image_path}`, images in a folder named like the file
    without its suffix; without image keys a row is text-only. Parquet: `image` = `{bytes, path}`, `text` = a JSON
    string with `chosen`, `rejected` and possibly `question`.

    Args:
        path (`str`): The `.json` or `.parquet` file.
        image_folder (`str`, *optional*): Where the images are, if not beside the file.

    Raises:
        DataError: If the file or a row cannot be read, or images are named but their folder does not exist.
    """
    rows = []
    for _, _, row in iter_rows(f"rsrm:{os.fspath(path)}", image_folder=image_folder):
        if isinstance(row, DataError):
            raise row
        rows.append(row)
    return rows


def split_paths(paths: str | os.PathLike | Sequence[str | os.PathLike]) -> list[str]:
    """Returns one path or id per file of a path, a comma-separated string, or a list of those."""
    if isinstance(paths, (str, os.PathLike)):
        text = os.fspath(paths)
        return [text] if text and Path(text).exists() else [part.strip() for part in text.split(",") if part.strip()]
    return [one for path in paths for one in split_paths(path)]


def image_folder(name: str) -> str:
    """Returns where relative image paths of a file, folder or Hub id start: there, or (Hub) in the working folder."""
    path = Path(name.removeprefix("rsrm:"))
    folder = path.parent if path.is_file() else path if path.is_dir() else Path()
    return os.path.realpath(folder)


def common_folder(names: Sequence[str]) -> str:
    """Returns the nearest folder that holds the folders of all files.

    Raises:
        DataError: They have only the root of the file system in common.
    """
    folders = [image_folder(name) for name in names]
    common = os.path.commonpath(folders)
    if common == os.path.dirname(common) and common not in folders:
        raise DataError("the data files share no folder; give --image_root, the folder that their images lie in")
    return common


def row_label(file: str, number: int) -> str:
    """Names a row: lines of JSONL files count from 1 ("line 12"), rows of other files from 0 ("row 11")."""
    return f"{file}, {'line' if file.endswith('.jsonl') else 'row'} {number}" if number >= 0 else file


def iter_rows(
    file: str, split: str | None = None, image_folder: str | os.PathLike | None = None
) -> Iterator[tuple[str, int, Any]]:
    """Yields `(file, row number, row)` of a file, folder or Hub id; what cannot be read comes as a [`DataError`].

    RSRM rows are already in the documented schema (several rows with one number), and `source` is filled in.
    """
    for name, part in _parts_of(file, split):
        stem = re.sub(r"-\d+-of-\d+$", "", PurePath(name).stem)
        folder = Path(image_folder) if image_folder is not None else Path(name).with_suffix("")
        for number, row in _raw_rows(name, part):
            where = row_label(name, number)
            try:
                if isinstance(row, DataError):
                    raise row
                if not isinstance(row, Mapping):
                    raise DataError(f"the row is {short(row)}, expected an object with {COLUMNS}")
                for one in _rsrm_rows(row, folder) if file.startswith("rsrm:") or _is_rsrm(row) else [row]:
                    # A row without `chosen` stays as it is: the message about it lists its columns.
                    named = one.get("source") is not None or "chosen" not in one
                    yield name, number, one if named else {**one, "source": stem}
            except DataError as error:
                yield name, number, DataError(error.detail, error.key, where)


def _parts_of(file: str, split: str | None) -> list[tuple[str, Any]]:
    """A file, folder or Hub id as (name, path or data set) pairs."""
    file = file.removeprefix("rsrm:")
    path = Path(file)
    if path.is_file():
        if path.suffix not in (".jsonl", ".json", ".parquet"):
            raise DataError(f"the suffix is '{path.suffix}', expected .jsonl, .json or .parquet", "", file)
        return [(file, path)]
    if path.is_dir() and not (path / "state.json").exists() and not (path / "dataset_dict.json").exists():
        lists = [one for one in path.glob("*.json") if _holds_a_list(one)]
        found = sorted([*path.glob("*.parquet"), *path.glob("*.jsonl"), *lists])
        names = {re.split(r"[-_.]", one.name)[0] for one in found}
        if split is None and len(names) > 1 and names & {"train", "test", "validation", "valid", "val", "dev", "eval"}:
            raise DataError(f"the folder has several splits ({', '.join(sorted(names))}); name one of them", "", file)
        chosen = [one for one in found if split is None or split == re.split(r"[-_.]", one.name)[0]]
        if not chosen:
            of_split = f" of the split {split!r}" if split else ""
            raise DataError(
                f"no .parquet or .jsonl file{of_split} in the folder, nor a .json list; it has "
                f"{', '.join(sorted(names)) or 'none'}",
                "",
                file,
            )
        return [(str(one), one) for one in chosen]
    return [(file, _dataset(file, split))]


def _holds_a_list(file: Path) -> bool:
    """Whether a `.json` file is a list of rows: beside data lie objects such as `dataset_info.json` too."""
    with file.open("rb") as stream:
        return stream.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _dataset(file: str, split: str | None) -> Any:
    from datasets import load_dataset, load_from_disk

    local = Path(file).is_dir()
    hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", file) and Path(file).suffix not in (".jsonl", ".json", ".parquet")
    if not local and not hub_id:
        raise DataError("no such file or folder; correct the path", "", file)
    try:
        data: Any = load_from_disk(file) if local else load_dataset(file)
    except Exception as error:
        kind = "a folder written by save_to_disk" if local else "a file, a folder, or a data set on the Hub"
        raise DataError(f"cannot be read as {kind} ({first_line(error)})", "", file) from error
    if isinstance(data, Mapping):  # a DatasetDict
        name = split or (next(iter(data)) if len(data) == 1 else "train")
        if name not in data:
            raise DataError(f"no split {name!r}, it has {', '.join(data)}; name one of them", "", file)
        data = data[name]
    return data


def _raw_rows(name: str, part: Any) -> Iterator[tuple[int, Any]]:
    """Yields (number, row) as stored: images undecoded, and a [`DataError`] in place of what cannot be read."""
    if not isinstance(part, Path):
        batches = part.with_format("arrow").iter(batch_size=64)  # Arrow rows: HF images stay {bytes, path}
        yield from enumerate(row for batch in batches for row in batch.to_pylist())
    elif part.suffix == ".jsonl":
        with part.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        yield number, json.loads(line)
                    except ValueError as error:
                        yield number, DataError(f"not JSON ({first_line(error)}); write one object a line")
    elif part.suffix == ".json":
        try:
            rows = json.loads(part.read_bytes())
        except ValueError as error:
            yield -1, DataError(f"not JSON ({first_line(error)}); one object a line is a .jsonl file")
            return
        if isinstance(rows, list):
            yield from enumerate(rows)
        else:
            yield -1, DataError(f"the file holds {short(rows)}, expected a list of rows")
    else:
        import pyarrow.parquet

        try:
            batches = pyarrow.parquet.ParquetFile(part).iter_batches(batch_size=64)
            yield from enumerate(row for batch in batches for row in batch.to_pylist())
        except (OSError, ValueError) as error:
            yield -1, DataError(f"cannot be read as Parquet ({first_line(error)}); write the file again")


def _is_rsrm(row: Mapping) -> bool:
    if "prompt" in row:
        return False
    return any(row.get(key) is not None for key in _RSRM_KEYS) or {"text", "image"} <= set(row) and "chosen" not in row


def _rsrm_rows(row: Mapping, folder: Path) -> list[dict]:
    data = row
    if "chosen" not in row and "text" in row:
        try:
            data = json.loads(row["text"])
        except (TypeError, ValueError) as error:
            raise DataError(f"`text` is not JSON ({first_line(error)}), expected chosen, rejected", "text") from None
        if not isinstance(data, Mapping):
            raise DataError(f"`text` holds {short(data)}, expected an object with chosen, rejected", "text")
    image = row.get("image")
    key = next((key for key in ("image_name", "image_path") if row.get(key) is not None), None)
    if key is not None:
        name = row[key]
        if not isinstance(name, str) or not name or PurePath(name).is_absolute() or ".." in PurePath(name).parts:
            raise DataError(f"`{key}` is {short(name)}, expected a path inside the image folder", key)
        if not folder.is_dir():
            raise DataError(f"`{key}` names '{name}' but there is no image folder {folder}; put the images there", key)
        image = str(folder.absolute() / name)  # so that an image_root elsewhere does not move it
    base = {k: data[k] for k in ("chosen", "margin", "source", "kind", "id") if data.get(k) is not None}
    base |= {"prompt": data.get("question") or "", "image": image}
    if "rejected" not in data:
        return [base]
    rejected = data["rejected"]
    several = isinstance(rejected, list) and rejected and all(isinstance(one, str) for one in rejected)
    return [{**base, "rejected": one} for one in (rejected if several else [rejected])]


def _normal_rows(files: Sequence[str], split: str | None, image_root: str | None) -> Iterator[dict]:
    empty = True
    for file in files:
        for name, number, row in iter_rows(file, split):
            if isinstance(row, DataError):
                raise row
            group = group_from_row(row, number, row_label(name, number))
            empty = False
            yield {
                "prompt": group.prompt,
                "chosen": group.completions[0],
                "rejected": group.completions[1:],
                "images": [_stored(source, image_root) for source in group.images],
                "margin": group.margin,
                "source": group.source,
                "kind": group.kind,
                "id": string_column(row, "id"),
                "row": number,
                "where": group.where,
            }
    if empty:
        raise DataError("no rows; give a file that has some", "", ", ".join(files))


def _stored(source: Any, image_root: str | None) -> dict:
    if isinstance(source, bytes):
        return {"bytes": source, "path": None}
    if isinstance(source, str):
        url = "://" in source
        return {"bytes": None, "path": source if image_root is None or url else os.path.join(image_root, source)}
    return {"bytes": source["bytes"], "path": source.get("path")}


def _features() -> Any:
    from datasets import Features, List, Value

    text = Value("string")
    message = {"role": text, "content": List({"type": text, "text": text})}
    columns = {"prompt": List(message), "chosen": List(message), "rejected": List(List(message))}
    # Not `Image(decode=False)`: saving that would open every path and URL, past `ImageOptions`.
    columns |= {"images": List({"bytes": Value("binary"), "path": text})}
    columns |= {"margin": Value("float64"), "row": Value("int64")}
    return Features(columns | {key: text for key in ("source", "kind", "id", "where")})


def _stamp(path: Path) -> tuple:
    stat = path.stat()
    return str(path.resolve()), stat.st_mtime_ns, stat.st_size
