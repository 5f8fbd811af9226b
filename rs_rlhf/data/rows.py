"""Rows of data files: the one reader of JSON lines, JSON, CSV, Parquet, WebDataset, saved data sets and Hub ids.

Columns get their fields' names (`columns`), and an adapter turns rows of another form into the documented one
(`forms`). Left out: reading from the middle of a file (`image_text_dataset`), compressed files, decoding of images.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..errors import DataError, OptionError
from ..imagery.options import split_sensor
from .columns import Columns, find_columns, image_column
from .forms import rsrm_rows
from .group import Row, first_line, short
from .packed_records import dataset_tables, packed_rows
from .text_records import check_text, first_byte, text_records

if TYPE_CHECKING:
    from datasets import Dataset

FORMATS = {f".{name}": name for name in ("parquet", "jsonl", "json", "csv")} | {".tsv": "csv", ".tar": "webdataset"}
PACKED = ("parquet", "webdataset")  # formats that hold images; the others are text
SUFFIXES = ", ".join(FORMATS)
HELD_OUT = ("validation", "valid", "val", "dev", "test", "eval")  # names of the splits that are for evaluation
RSRM = "rsrm:"  # prefix of a path whose rows are of the RSRM layout, even without its keys
HEAD = 100  # rows in which columns of images are looked for
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_NOT_BESIDE_DATA = ("kept_ids.parquet",)  # written by `curate` next to the kept rows


class Where(str):
    """The place of a row in words, such as `"a.jsonl, line 12"`, with its `file` and `number`.

    Lines of JSON lines count from 1, rows of other files from 0; -1 stands for the whole file.
    """

    file: str
    number: int

    def __new__(cls, file: str, number: int) -> Where:
        """Puts a file and a number into words."""
        unit = "line" if file.lower().endswith(".jsonl") else "row"
        where = super().__new__(cls, f"{file}, {unit} {number}" if number >= 0 else file)
        where.file, where.number = file, number
        return where

    @property
    def source(self) -> str:
        """The name of the source, as of [`source_of`]."""
        return source_of(self.file)

    def __getnewargs__(self) -> tuple[str, int]:  # type: ignore[override]
        return self.file, self.number


Adapter = Callable[[Row, Where], Iterable[Row]]


class Part(NamedTuple):
    """A file or a data set of rows, by the name it has in messages."""

    name: str
    data: Path | Dataset

    @property
    def stamp(self) -> Any:
        """What changes if the content changes: path, time and size of a file, the fingerprint of a data set."""
        if not isinstance(self.data, Path):
            return self.data._fingerprint
        stat = self.data.stat()
        return str(self.data.resolve()), stat.st_mtime_ns, stat.st_size


def open_rows(
    path: str | os.PathLike[str],
    split: str | None = None,
    adapter: Adapter | None = None,
    *,
    columns: Mapping[str, str] | Columns | None = None,
    image_root: str | None = None,
    on_error: Literal["raise", "return"] = "raise",
) -> Iterator[tuple[Where, Any]]:
    """Yields `(where, row)` for the rows of a file, a folder of files, a saved data set or a Hub id.

    `columns` names columns by their fields; an image column of any name is found by its values, in the first rows, and
    becomes `image`. A relative image path that is no file of `image_root` (default: the data's folder), but one of the
    folder named like its file without the suffix, becomes absolute. `rsrm:` before a path stands for the adapter
    [`rsrm_rows`]. A plain file is one split. An adapter turns `(row, where)` into any number of rows, and may raise
    [`DataError`]. With `on_error` `"return"` the [`DataError`] about a damaged file or row takes its place, else it is
    raised, as it is if there is nothing to read.
    """
    name = os.fspath(path)
    if name.startswith(RSRM):
        name, adapter = name.removeprefix(RSRM), rsrm_rows
    root = image_folder(name) if image_root is None else image_root
    for part in parts_of(name, split):
        for where, row in _fields(part, columns, root):
            try:
                if isinstance(row, DataError):
                    raise row
                rows: list[Any] = [row] if adapter is None else list(adapter(row, where))
            except DataError as error:
                rows = [DataError(error.detail, error.key, error.where or where)]
                if on_error == "raise":
                    raise rows[0] from None
            yield from ((where, adapted) for adapted in rows)


def _fields(part: Part, columns: Mapping[str, str] | Columns | None, root: str) -> Iterator[tuple[Where, Any]]:
    """Yields rows by their fields, and a [`DataError`] for what cannot be read."""
    stored = _stored_rows(part)
    head = list(islice(stored, HEAD if isinstance(part.data, Path) and is_text(part.data) else HEAD // 10))
    try:
        known = find_columns([row for _, row in head if isinstance(row, Mapping)], columns, root)
    except DataError as error:
        yield Where(part.name, -1), error
        return
    beside = Path(part.name).with_suffix("") if isinstance(part.data, Path) else Path()
    placed = isinstance(part.data, Path) and beside != part.data and beside.is_dir()
    for where, row in chain(head, stored):
        try:
            if not isinstance(row, (Mapping, DataError)):
                raise DataError(f"the row is {short(row)}, expected an object, a value for each column")
            fields = row if isinstance(row, DataError) else known.of(row)
            yield where, _placed(fields, beside, root) if placed and not isinstance(fields, DataError) else fields
        except DataError as error:
            yield where, error


def _placed(row: Row, folder: Path, root: str) -> Row:
    """A row whose image is in the folder named like its file, as in RSRM, by its absolute path."""
    key = image_column(row, str(folder))
    value = row[key] if key else None
    if not isinstance(value, str) or PurePath(value).is_absolute() or ".." in PurePath(value).parts:
        return row
    name, _ = split_sensor(value, str(folder))
    if os.path.isfile(os.path.join(root, name)) or not (folder / name).is_file():
        return row
    return {**row, str(key): str(folder.absolute() / value)}  # so that an image_root elsewhere does not move it


def is_text(path: Path) -> bool:
    """Whether a file of rows is text, which holds no images."""
    return format_of(path) not in PACKED


def parts_of(name: str, split: str | None = None) -> list[Part]:
    """Returns the files, or the data set, of a path or Hub id; [`DataError`] if none, or several splits unnamed."""
    path = Path(name)
    if path.is_file():
        data_files(path)
        return [Part(name, path)]
    if not path.is_dir() or is_saved(path):
        return [Part(name, load_stored(name, split))]
    found = data_files(path, split)
    files = sorted(file for kind in ("parquet", "jsonl", "json") for file in found.get(kind, []))
    files = files or next(iter(found.values()), [])
    if not files:
        raise no_files(path, split)
    names = {re.split(r"[-_.]", file.name)[0] for file in files}
    if split is None and len(names) > 1 and names & {"train", *HELD_OUT}:
        raise DataError(f"the folder has several splits ({', '.join(sorted(names))}); name one of them", "", name)
    return [Part(str(file), file) for file in files]


def data_files(folder: Path, split: str | None = None) -> dict[str, list[Path]]:
    """Returns the data files of a folder and its sub-folder `data` by format, each list sorted; of a file, that file.

    The files of a split are those named after it; if there are none, those whose names continue without a letter
    (`train-00000-of-00002.parquet`); if there are none either, those whose names begin with it, or that lie in a
    folder of that name.
    """
    if folder.is_file():
        if folder.suffix.lower() not in FORMATS:
            raise DataError(f"the suffix is '{folder.suffix}', expected {SUFFIXES}", "", str(folder))
        return {format_of(folder): [folder]}
    files = [file for file in (*folder.glob("*"), *folder.glob("data/*")) if _holds_rows(file)]
    inside = [file for file in folder.glob(f"{split}/*") if _holds_rows(file)] if split else []
    if split:
        begin = [file for file in files if file.name.startswith(split)]
        rest = {file: file.name[len(split) :] for file in begin}
        exact = [file for file in begin if rest[file] == file.suffix]
        files = exact or [file for file in begin if not rest[file][:1].isalpha()] or begin or inside
    kinds = [kind for kind in dict.fromkeys(FORMATS.values()) if any(format_of(file) == kind for file in files)]
    return {kind: sorted(file for file in files if format_of(file) == kind) for kind in kinds}


def format_of(file: Path) -> str:
    """Returns the format of a file of rows."""
    return FORMATS[file.suffix.lower()]


def _holds_rows(file: Path) -> bool:
    """Whether a file holds rows, unlike `dataset_info.json` and what `curate` writes."""
    if (
        file.suffix.lower() not in FORMATS
        or file.name.startswith(".")
        or file.name in _NOT_BESIDE_DATA
        or not file.is_file()
    ):
        return False
    return file.suffix.lower() != ".json" or first_byte(file) == b"["


def no_files(folder: Path, split: str | None) -> DataError:
    """Returns the error about a folder without data files."""
    of_split = f" that begins with {split!r}" if split else ""
    content = ", ".join(sorted(file.name for file in folder.iterdir())[:5]) or "nothing"
    expected = f"expected {SUFFIXES}, or what save_to_disk writes"
    return DataError(f"no data file{of_split} in the folder (it has {content}), {expected}", "", str(folder))


def is_saved(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()


def is_hub_id(name: str) -> bool:
    """Whether a name can be the id of a data set on the Hub."""
    return bool(_HUB_ID.fullmatch(name)) and PurePath(name).suffix.lower() not in FORMATS


def check_there(names: str, key: str = "") -> None:
    """Refuses data (several files are separated by commas) that are neither there nor named as on the Hub."""
    for name in split_paths(names):
        if not (os.path.exists(name.removeprefix(RSRM)) or is_hub_id(name)):
            raise DataError("no such file or folder; correct the path", key, name)


def load_stored(name: str, split: str | None = None, streaming: bool = False) -> Any:
    """Loads a split, see [`one_split`], of a saved data set or one on the Hub; [`DataError`] if there is none."""
    from datasets import load_dataset, load_from_disk

    saved = os.path.isdir(name)
    check_there(name)
    try:
        data: Any = load_from_disk(name) if saved else load_dataset(name, streaming=streaming, trust_remote_code=False)
    except Exception as error:  # the Hub, the network, a damaged folder: each has its own
        kind = "a folder written by save_to_disk" if saved else "a file, a folder, or a data set on the Hub"
        raise DataError(f"cannot be read as {kind} ({first_line(error)})", "", name) from error
    return one_split(data, split, name)


def one_split(data: object, split: str | None, name: str) -> Any:
    """Returns a split of a `DatasetDict`, by default the only one, or `"train"`; other data as they are."""
    if not isinstance(data, Mapping):
        return data
    chosen = split or (next(iter(data)) if len(data) == 1 else "train")
    if chosen not in data:
        raise DataError(f"no split {chosen!r}, it has {', '.join(data)}; name one of them", "split", name)
    return data[chosen]


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Names the place in errors that name none, and makes errors of reading ours."""
    try:
        yield
    except DataError as error:
        if error.where:
            raise
        raise DataError(error.detail, error.key, where) from None
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error})", "", where) from error


def _stored_rows(part: Part) -> Iterator[tuple[Where, Any]]:
    """Yields the rows as stored, and a [`DataError`] for what cannot be read."""
    try:
        with naming(str(part.data) if isinstance(part.data, Path) else part.name):
            for number, row in _numbered(part.data):
                yield Where(part.name, number), row
    except DataError as error:
        yield Where(part.name, -1), error


def _numbered(data: Path | Dataset) -> Iterator[tuple[int, Any]]:
    if not isinstance(data, Path):
        yield from enumerate(row for table in dataset_tables(data) for row in table.to_pylist())
    elif not is_text(data):
        yield from enumerate(packed_rows(data))
    else:
        check_text(data)
        for number, record in enumerate(text_records(data)):
            row = record.value
            try:
                record.raw.decode()
            except UnicodeDecodeError as error:
                row = DataError(f"not UTF-8 text ({first_line(error)}); save the file as UTF-8")
            yield number if record.line < 0 else record.line, row


def source_of(file: str) -> str:
    """Returns the name of the source that a file is of: its stem without a shard's `-00000-of-00002`."""
    return re.sub(r"-\d+-of-\d+$", "", PurePath(file).stem)


def split_paths(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """Returns one path or id per file of a path, a comma-separated string, or a list of those."""
    if isinstance(paths, (str, os.PathLike)):
        text = os.fspath(paths)
        return [text] if text and Path(text).exists() else [part.strip() for part in text.split(",") if part.strip()]
    return [name for path in paths for name in split_paths(path)]


def split_of(text: str) -> tuple[str, str | None]:
    """Splits `PATH` or `PATH:SPLIT`; a path that exists under the whole name is a path, colons and all."""
    path, _, split = text.rpartition(":")
    return (text, None) if not path or Path(text).exists() else (path, split or None)


def image_folder(name: str) -> str:
    """Returns where relative image paths of a file, folder or Hub id start: there, or (Hub) in the working folder."""
    path = Path(name.removeprefix(RSRM))
    return os.path.realpath(path.parent if path.is_file() else path if path.is_dir() else Path())


def common_folder(names: Sequence[str]) -> str:
    """Returns the nearest folder that holds the folders of all files; [`DataError`] if that is the root."""
    folders = [image_folder(name) for name in names]
    common = os.path.commonpath(folders)
    if common == os.path.dirname(common) and common not in folders:
        raise DataError("the data files share no folder; give --image_root, the folder that their images lie in")
    return common


def draw_rows(count: int, limit: int | None, seed: int = 0) -> list[int]:
    """Draws at most `limit` (at least 1) of `count` rows by the seed; returns their numbers in order."""
    if limit is not None and limit < 1:
        raise OptionError(f"--limit is {limit}; it must be at least 1.", "limit")
    if limit is None or limit >= count:
        return list(range(count))
    return sorted(random.Random(seed).sample(range(count), limit))
