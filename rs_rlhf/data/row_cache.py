"""Image-text rows as a data set on the disk, for trainers that draw them at random.

Rows are written once to the `datasets` cache, and again after the files, the options or the form have changed.
Left out: noticing that a data set on the Hub has changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from ..imagery.sources import ImageSource
from .image_text_dataset import ImageTexts, open_image_texts

if TYPE_CHECKING:
    from datasets import Dataset, Features


def bytes_and_path(source: ImageSource, root: str = "") -> dict[str, Any]:
    """Returns the image of a file's row as `{bytes, path}`; a path without bytes starts from `root`."""
    image = source if isinstance(source, Mapping) else {"path": os.fspath(cast("str", source))}
    path, content = image.get("path"), image.get("bytes")
    return {"bytes": content, "path": os.path.join(root, path) if path and content is None else path}


def message_features(*columns: str) -> dict[str, Any]:
    """Returns the features of columns that hold messages, and of `images` as [`bytes_and_path`] gives them."""
    from datasets import List, Value

    text = Value("string")
    messages = List({"role": text, "content": List({"type": text, "text": text})})
    return dict.fromkeys(columns, messages) | {"images": List({"bytes": Value("binary"), "path": text})}


def stored_rows(
    rows_of: Callable[[ImageTexts], Iterable[dict[str, Any]]],
    features: Features,
    path: str,
    split: str | None,
    reading: Mapping[str, str | None],
    version: int | str,
) -> Dataset:
    """Stores the rows, of these `features`, that a module's function `rows_of` makes of image-text data.

    `path` and `split` are as for [`open_image_texts`], `reading` its `image_root`, `image_column` and `text_column`.
    After a change of `version` the rows are stored again. What `rows_of` or the reader raises is raised here.

    The features must not be `datasets.Image`, whose storing opens every path past `ImageOptions`.
    """
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError
    from datasets.fingerprint import Hasher

    reading = dict(reading)
    if (root := reading.get("image_root")) is not None:
        reading["image_root"] = os.path.abspath(root)
    data = open_image_texts(path, split, **reading)
    changed = [file.stat().st_mtime_ns for file in data.files.values()]
    key = [rows_of.__qualname__, version, os.path.abspath(path), data.stamp, changed, split, str(data.root), reading]
    try:
        return Dataset.from_generator(
            _rows,
            features=features,
            gen_kwargs={"rows_of": rows_of, "path": path, "split": split, "reading": reading},
            fingerprint=Hasher.hash(key),
            writer_batch_size=100,  # rows in memory, with the bytes of their images
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise


def _rows(
    rows_of: Callable[[ImageTexts], Iterable[dict[str, Any]]], path: str, split: str | None, reading: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    yield from rows_of(open_image_texts(path, split, **reading))
