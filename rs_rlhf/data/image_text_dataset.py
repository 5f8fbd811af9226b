"""Image-text data of any size: Parquet, JSON lines, JSON lists, CSV, WebDataset shards and HF data sets.

The data are cut into *units* of consecutive rows of one file, each read without what lies before it, so that many
processes share a file, and memory does not grow with the file. Units of text files are found in one pass over the
file, those of Parquet in its footer. A row's id depends only on its file and its number in it.

Left out: cutting a tar file or a part of a streaming data set (one unit each), several formats in one folder.
"""

from __future__ import annotations

import json
import os
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, OptionError
from ..imagery.trust import is_trusted
from .columns import Columns, find_columns, parse_columns
from .image_text import ImageTextRow, check_form, image_text_row
from .packed_records import (
    dataset_labels,
    dataset_tables,
    first_member,
    opened_parquet,
    packed_rows,
    parquet_labels,
    row_group_bounds,
)
from .rows import HEAD, PACKED, data_files, format_of, is_saved, load_stored, naming, no_files, one_split, source_of
from .text_records import check_text, csv_head, first_byte, text_records

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

DATASET_FILE = "dataset"  # stands for the file in the ids of a data set's rows
_SLOW_BYTES = 10**9  # cutting a larger file takes so long that a message is printed


@dataclass(frozen=True)
class Unit:
    """Consecutive rows of one file: the number of the `first`, and how many, -1 for all that the file holds.

    `start` and `stop` (-1: the end) are byte offsets, row groups of Parquet, or rows or parts of a data set.
    """

    file: str
    first: int
    rows: int
    start: int
    stop: int


@dataclass
class ImageTexts:
    """Image-text rows of files or a data set; made by [`open_image_texts`].

    `files` are the paths by their names in row ids, which start from `folder` (`""` for a data set that is not in
    one); there are none if `format` is `"dataset"`. Relative image paths start from `root`, which none may leave.
    """

    name: str
    root: str
    format: str
    files: dict[str, Path]
    dataset: Any = None
    columns: Columns = field(default_factory=Columns)
    folder: str = ""
    _found: dict[str, Columns] = field(default_factory=dict, repr=False, compare=False)  # by file

    @property
    def stamp(self) -> list[list]:
        """What row ids depend on: `[file, bytes]` of all files, or a data set's fingerprint and rows (-1: unknown)."""
        if self.dataset is None:
            return [[file, path.stat().st_size] for file, path in self.files.items()]
        if self.streaming:
            return [[unit.file, -1] for unit in self.units(1)]
        return [[f"dataset {self.dataset._fingerprint}", len(self.dataset)]]

    @property
    def streaming(self) -> bool:
        """Whether the data are a data set whose number of rows is not known."""
        return self.dataset is not None and not hasattr(self.dataset, "__len__")

    def units(self, rows: int) -> list[Unit]:
        """Cuts the data into units of at most `rows` rows; [`DataError`] if a file is damaged or there are no rows."""
        if rows < 1:
            raise OptionError(f"rows of a unit is {rows}; it must be at least 1.")
        if self.streaming:
            count = self.dataset.num_shards
            return [Unit(f"part-{i:05d}-of-{count:05d}", 0, -1, i, i + 1) for i in range(count)]
        if self.dataset is not None:
            units = _even(DATASET_FILE, len(self.dataset), rows)
        else:
            units = [unit for file, path in self.files.items() for unit in self._units_of(file, path, rows)]
        if not units:
            raise DataError("no rows; give data that has some", "", self.name)
        return units

    def _units_of(self, file: str, path: Path, rows: int) -> list[Unit]:
        with naming(str(path)):
            if self.format == "webdataset":
                return [Unit(file, 0, -1, 0, -1)]
            if self.format == "parquet":
                with opened_parquet(path) as parquet:
                    bounds = row_group_bounds(parquet)
                even = _even(file, bounds[-1], rows)
                groups = [(bisect_right(bounds, u.first) - 1, bisect_left(bounds, u.first + u.rows)) for u in even]
                return [Unit(file, u.first, u.rows, *group) for u, group in zip(even, groups, strict=True)]
            if path.stat().st_size > _SLOW_BYTES:
                size = path.stat().st_size / 1e9
                print(f"{file}: {size:.1f} GB, looking where its rows begin (one pass)", file=sys.stderr, flush=True)
            begin = number = end = 0
            units: list[Unit] = []
            for number, record in enumerate(text_records(path, parse=False), start=1):
                begin = record.start if number % rows == 1 % rows else begin
                end = record.start + len(record.raw)
                if number % rows == 0:
                    units.append(Unit(file, number - rows, rows, begin, end))
            left = number % rows
            return [*units, Unit(file, number - left, left, begin, end)] if left else units

    def read(self, unit: Unit) -> Iterator[ImageTextRow]:
        """Reads the rows of a unit; a mistake in a row is its `error`, one in the file a [`DataError`]."""
        if self.dataset is None and unit.file not in self.files:
            raise DataError(f"no file {unit.file!r} here; the data has changed since it was cut", "", self.name)
        path = self.files.get(unit.file)
        labels = self._labels(path)
        columns = self.columns_of(unit)
        options: dict[str, Any] = {"columns": columns, "labels": labels, "root": self.root}
        source = source_of(self.name if path is None else unit.file)
        named = str(path) if path is not None else f"{self.name}, {unit.file}"
        with naming(str(path or self.name)):
            for number, raw in enumerate(self.stored_rows(unit), unit.first):
                where = f"{named}, row {number}"
                yield image_text_row(raw, f"{unit.file}:{number}", where=where, source=source, **options)

    def columns_of(self, unit: Unit) -> Columns:
        """Returns the columns of a unit's file, whose image column is found in its first rows."""
        if unit.file not in self._found:
            count = HEAD // 10 if self.format in (*PACKED, "dataset") else HEAD
            start = unit.start if self.streaming else 0
            first = self.stored_rows(Unit(unit.file, 0, count, start, start + 1 if self.streaming else -1))
            rows: list[Any] = []
            with suppress(DataError):  # the reader will say so, after the rows before the damage
                rows += (row for row in islice(first, count) if isinstance(row, Mapping))
            with naming(str(self.files.get(unit.file, self.name))):
                self._found[unit.file] = find_columns(rows, self.columns, self.root)
        return self._found[unit.file]

    def __iter__(self) -> Iterator[ImageTextRow]:
        """Yields all rows, file by file, without cutting the files first."""
        for unit in self.whole_units():
            yield from self.read(unit)

    def whole_units(self) -> list[Unit]:
        """Returns a unit for every file or part, found without looking into it."""
        if self.streaming:
            return self.units(1)
        if self.dataset is not None:
            return _even(DATASET_FILE, len(self.dataset), max(len(self.dataset), 1))
        return [Unit(file, 0, -1, 0, -1) for file in self.files]

    def stored_rows(self, unit: Unit) -> Iterator[Any]:
        """Returns the rows of a unit as stored."""
        path = self.files.get(unit.file)
        if path is None:
            part = self.dataset.shard(self.dataset.num_shards, unit.start) if self.streaming else self.dataset
            bounds = None if self.streaming else (unit.first, unit.first + unit.rows)
            return (row for table in dataset_tables(part, bounds) for row in table.to_pylist())
        if self.format in PACKED:
            return packed_rows(path, unit.first, unit.rows, tuple(self.columns.given.values()))
        return (record.value for record in text_records(path, unit.start, unit.stop))

    def _labels(self, path: Path | None) -> dict[str, list[str]]:
        """The names of the classes of `ClassLabel` columns."""
        if path is None:
            return dataset_labels(self.dataset)
        return parquet_labels(path) if self.format == "parquet" else {}


def open_image_texts(
    path_or_dataset: str | os.PathLike[str] | Dataset | IterableDataset,
    split: str | None = None,
    *,
    image_root: str | os.PathLike | None = None,
    columns: Mapping[str, str] | None = None,
) -> ImageTexts:
    """Opens image-text data, reading names, sizes and headers only; `image_text` documents the forms of its rows.

    The data are a file, a folder of files of one format (also in its sub-folder `data`), a folder written by
    `save_to_disk`, the id of a data set on the Hub (read as a stream), or a `Dataset` or `IterableDataset`. `split` is
    the start of files' names (default: all), or a split of a data set (default: the only one, or `"train"`).

    Relative image paths start from `image_root`, which none may leave (default: what the folder's `curation.json`
    says, which then also names columns, else the folder of the file, else the working folder). `columns` names columns
    by their fields, as in `{"image": "filename"}`; images are found by their values otherwise. Raises [`DataError`] if
    there is nothing to read, or several formats, an unreadable file, or a file without the columns.
    """
    named = Columns(parse_columns(columns))
    root = None if image_root is None else os.path.abspath(image_root)
    if root is not None and not os.path.isdir(root):
        raise DataError("no such folder; correct image_root", "image_root", str(image_root))
    if not isinstance(path_or_dataset, (str, os.PathLike)):
        return _of_dataset(path_or_dataset, split, "dataset", root or os.getcwd(), named)
    name = os.fspath(path_or_dataset)
    path = Path(name)
    saved = path.is_dir() and is_saved(path)
    folder = path if path.is_dir() else path.parent
    if root is None and path.exists():
        about = curated(path, split)
        root = about["image_root"]
        named = Columns(parse_columns(about.get("columns")) | {**named.given})
    if saved or not path.exists():
        data = load_stored(name, split, streaming=True)
        return _of_dataset(data, split, name, root or (str(path.resolve()) if saved else os.getcwd()), named)
    files = _files(path, split)
    format = format_of(files[0])
    for file in files:
        _check_file(file, format, named)
    root = root or os.path.commonpath([os.path.abspath(file.parent) for file in files])
    by_name = {file.relative_to(folder).as_posix(): file for file in files}
    return ImageTexts(name, root, format, by_name, columns=named, folder=str(folder))


def _files(path: Path, split: str | None) -> list[Path]:
    if (path / "manifest.json").exists() and any(path.glob("scores-*.parquet")):
        raise DataError("a folder of scores, expected the data; curate it, or give what was scored", "", str(path))
    found = data_files(path, split)
    if len(found) > 1:
        examples = ", ".join(files[0].relative_to(path).as_posix() for files in found.values())
        raise DataError(f"files of several formats ({examples}); give one of them, or a split", "", str(path))
    if not found:
        raise no_files(path, split)
    return next(iter(found.values()))


def _check_file(path: Path, format: str, columns: Columns) -> None:
    with naming(str(path)):
        if path.stat().st_size == 0 or format in ("jsonl", "json", "csv") and not first_byte(path):
            raise DataError("is empty; write the file again or remove it")
        if format == "parquet":
            with opened_parquet(path) as file:
                names = file.schema_arrow.names
            check_form(dict.fromkeys(names, ""), columns)
        elif format == "webdataset":
            first_member(path)
        else:
            check_text(path)
            if format == "csv":
                check_form(dict.fromkeys(filter(None, csv_head(path).columns), ""), columns)


def curated(path: Path, split: str | None) -> dict[str, Any]:
    """Returns the `curation.json` beside data, in which `rs-rlhf curate` notes `image_root` and named columns.

    A root that is not trusted is refused, or left out if the images are embedded in the files. The root is `None` if
    the data were not curated.
    """
    folder = path if path.is_dir() else path.parent
    file = folder / "curation.json"
    if not file.exists():
        return {"image_root": None}
    embedded = is_saved(path) or {*data_files(path, split)} <= {*PACKED}
    try:
        about = dict(json.loads(file.read_bytes()))
        root = about["image_root"]
    except (ValueError, KeyError, TypeError):
        raise DataError("has no `image_root`; curate again, or give image_root", "image_root", str(file)) from None
    if root is not None and not isinstance(root, str):
        raise DataError(f"`image_root` is {root!r}, expected a folder; give image_root", "image_root", str(file))
    path = folder / (root or "")
    if is_trusted(folder, path, about.get("image_root_seal")):
        return about | {"image_root": root and str(path)}
    if embedded:
        return about | {"image_root": None}
    reason = f"`image_root` is {root!r}, outside of the data, and not written by your own `rs-rlhf curate`"
    raise DataError(f"{reason}; if images may be read there, give --image_root {root}", "image_root", str(file))


def _even(name: str, count: int, rows: int) -> list[Unit]:
    starts = range(0, count, rows)
    return [Unit(name, first, min(rows, count - first), first, min(first + rows, count)) for first in starts]


def _of_dataset(stored: object, split: str | None, name: str, root: str, columns: Columns) -> ImageTexts:
    data: Any = one_split(stored, split, name)
    if not hasattr(data, "with_format"):
        expected = "expected a path, the id of a data set on the Hub, a Dataset or an IterableDataset"
        raise DataError(f"is a {type(data).__name__}, {expected}", where=name)
    if data.features is not None:
        with naming(name):
            check_form(dict.fromkeys(data.features, ""), columns)
    folder = name if os.path.isdir(name) else ""
    return ImageTexts(name, root, "dataset", {}, data, columns, folder)
