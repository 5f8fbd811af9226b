"""Image-text rows as a data set on the disk, for trainers that draw them at random.

Rows are written once to a folder of the `datasets` cache that this user alone can read, and again after the files,
the options or the form have changed. With `RS_RLHF_CACHE=0`, after `datasets.disable_caching()`, or if no such folder
can be made, they go to a temporary folder, which is removed when the process ends.

Left out: noticing that a data set on the Hub has changed.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, RSRLHFError
from ..imagery.sources import ImageSource
from ..runs.files import lock
from .group import first_line
from .image_text_dataset import ImageTexts, open_image_texts

if TYPE_CHECKING:
    from datasets import Dataset, Features

RowsOf = Callable[[ImageTexts], Iterable[dict[str, Any]]]


def bytes_and_path(source: ImageSource, root: str = "") -> dict[str, Any]:
    """Returns the image of a file's row as `{bytes, path}`; a path without bytes starts from `root`."""
    named = {"bytes": source} if isinstance(source, bytes) else {"path": source}
    image: Mapping[str, Any] = source if isinstance(source, Mapping) else named
    path, content = image.get("path"), image.get("bytes")
    return {"bytes": content, "path": os.path.join(root, path) if path and content is None else path}


def message_features(*columns: str) -> dict[str, Any]:
    """Returns the features of columns that hold messages, and of `images` as [`bytes_and_path`] gives them.

    Not `datasets.Image`, even undecoded: storing that opens every path and URL, past `ImageOptions`.
    """
    from datasets import List, Value

    text = Value("string")
    messages = List({"role": text, "content": List({"type": text, "text": text})})
    return dict.fromkeys(columns, messages) | {"images": List({"bytes": Value("binary"), "path": text})}


def _folder() -> str:
    """The folder that rows are stored in, which no other user can read or has made."""
    from datasets import config, is_caching_enabled

    if not is_caching_enabled() or os.environ.get("RS_RLHF_CACHE") == "0":
        return _temporary().name
    folder = Path(config.HF_DATASETS_CACHE) / f"rs-rlhf-{os.getuid()}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    mode, owner = (found := folder.lstat()).st_mode, found.st_uid
    if stat.S_ISDIR(mode) and owner == os.getuid() and stat.S_IMODE(mode) & 0o077:
        folder.chmod(0o700)
        mode = folder.lstat().st_mode
    if stat.S_ISDIR(mode) and owner == os.getuid() and not stat.S_IMODE(mode) & 0o077:
        return str(folder)
    print(f"{folder} is not this user's alone; rows are stored for this process only", file=sys.stderr)
    return _temporary().name


@cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    """Makes the folder of this process, which holds its lock, and removes those of killed processes."""
    prefix = f"rs-rlhf-rows-{os.getuid()}-"
    made = tempfile.TemporaryDirectory(prefix=prefix)
    folder = Path(made.name)
    try:
        if not _locked(folder):  # another process took it for one of a killed process before it was locked
            return _temporary.__wrapped__()
    except DataError:  # a file system without locks
        return made
    for left in folder.parent.glob(f"{prefix}*"):
        if left != folder and _locked(left):
            shutil.rmtree(left, ignore_errors=True)
    return made


def _locked(folder: Path) -> bool:
    """Locks a folder until this process ends; whether it is there and was free."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    if lock(handle, folder, wait=False) and folder.is_dir():
        return True
    os.close(handle)
    return False


def cached(rows: Callable[..., Iterator[Any]], features: Features, arguments: dict[str, Any], key: object) -> Dataset:
    """Stores the rows that a module's function yields, unless rows of this key are stored; raises what it raises."""
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError
    from datasets.fingerprint import Hasher

    made: dict[str, Any] = {
        "cache_dir": _folder(),
        "features": features,
        "gen_kwargs": arguments,
        "fingerprint": Hasher.hash(key),
    }
    try:
        return Dataset.from_generator(rows, writer_batch_size=100, **made)  # rows in memory, with their images' bytes
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, RSRLHFError):
            raise error.__cause__ from None
        for row in () if isinstance(error.__cause__, OSError) else rows(**arguments):  # Arrow does not say which
            try:
                Dataset.from_list([row], features=features)
            except (ValueError, TypeError, OverflowError) as reason:
                detail = f"a value cannot be stored ({first_line(reason)}); correct or remove the row"
                raise DataError(detail, "", str(row.get("where") or "")) from None
        raise


def stored_rows(
    rows_of: RowsOf, features: Features, path: str, split: str | None, reading: Mapping[str, Any], version: int | str
) -> Dataset:
    """Stores the rows, of these `features`, that a module's function `rows_of` makes of image-text data.

    `path` and `split` are as for [`open_image_texts`], `reading` its `image_root` and `columns`.
    After a change of `version` the rows are stored again. What `rows_of` or the reader raises is raised here.
    """
    reading = dict(reading)
    if (root := reading.get("image_root")) is not None:
        reading["image_root"] = os.path.abspath(root)
    data = open_image_texts(path, split, **reading)
    changed = [file.stat().st_mtime_ns for file in data.files.values()]
    key = [rows_of.__qualname__, version, os.path.abspath(path), data.stamp, changed, split, str(data.root), reading]
    return cached(_rows, features, {"rows_of": rows_of, "path": path, "split": split, "reading": reading}, key)


def _rows(rows_of: RowsOf, path: str, split: str | None, reading: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from rows_of(open_image_texts(path, split, **reading))
