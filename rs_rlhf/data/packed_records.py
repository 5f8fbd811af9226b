"""Rows of Parquet files, WebDataset shards and HF data sets, a few at a time, images as stored.

No file, row group or shard is read whole: Parquet comes in record batches of some megabytes, a shard sample by sample,
a data set in small slices. Left out: compressed shards.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import DataError
from .group import first_line

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from pyarrow.parquet import ParquetFile

_IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp", "gif")
_BATCH_BYTES = 8 * 2**20


@contextmanager
def opened_parquet(path: Path) -> Iterator[ParquetFile]:
    """Opens a Parquet file for reading in pieces; [`DataError`] if it is damaged, now or while it is read."""
    import pyarrow
    import pyarrow.parquet

    try:
        # Without a buffer of its own every column of a row group would be read whole.
        with pyarrow.parquet.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        reason = f"cannot be read as Parquet ({first_line(error)}): damaged, or cut short; write the file again"
        raise DataError(reason, where=str(path)) from None


def row_group_bounds(file: ParquetFile) -> list[int]:
    """Returns the number of the first row of every row group of an open file, and of all rows."""
    groups = range(file.num_row_groups)
    return [*accumulate((file.metadata.row_group(group).num_rows for group in groups), initial=0)]


def parquet_batches(path: Path, first: int = 0, rows: int = -1) -> Iterator[Any]:
    """Yields `rows` rows (-1: all) from the `first` on as record batches, reading only row groups that hold some."""
    with opened_parquet(path) as file:
        bounds = row_group_bounds(file)
        last = bounds[-1] if rows < 0 else min(first + rows, bounds[-1])
        groups = [i for i in range(len(bounds) - 1) if bounds[i] < last and bounds[i + 1] > first]
        skip, left = first - bounds[groups[0]] if groups else 0, last - first
        size = sum(file.metadata.row_group(group).total_byte_size for group in groups)
        count = sum(file.metadata.row_group(group).num_rows for group in groups)
        batch_size = max(1, min(256, _BATCH_BYTES * count // max(size, 1)))
        for batch in file.iter_batches(batch_size=batch_size, row_groups=groups) if groups else ():
            part = batch.slice(skip, left)
            skip, left = max(0, skip - batch.num_rows), left - part.num_rows
            if part.num_rows:
                yield part
            if not left:
                return


def parquet_labels(path: Path) -> dict[str, list[str]]:
    """Returns the names of the classes of a file's `ClassLabel` columns."""
    with opened_parquet(path) as file:
        metadata = file.schema_arrow.metadata or {}
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features") or {}
        return {key: value["names"] for key, value in features.items() if isinstance(value, dict) and "names" in value}
    except (ValueError, AttributeError):
        return {}  # not written by `datasets`: there are no names to find


class Member(NamedTuple):
    """A file in a shard: its key (what the files of a sample share), its extension, and where it is."""

    key: str
    extension: str
    info: tarfile.TarInfo


def tar_samples(path: Path) -> Iterator[tuple[tarfile.TarFile, list[Member]]]:
    """Yields the samples of a WebDataset shard: files in a row whose names are the same up to the first dot.

    [`DataError`] if it is not a tar file or cut short; earlier samples have been yielded by then.
    """
    sample: list[Member] = []
    try:
        with tarfile.open(path, "r:") as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                folder, _, file = info.name.rpartition("/")
                stem, _, extension = file.partition(".")
                if not info.isfile() or not stem:  # folders, and hidden files as macOS puts them there
                    continue
                key = f"{folder}/{stem}" if folder else stem
                if sample and sample[0].key != key:
                    yield tar, sample
                    sample = []
                sample.append(Member(key, extension.lower(), info))
            # `tarfile` takes any damaged header for the end; the true end is a block of zeros.
            with path.open("rb") as stream:
                stream.seek(tar.offset)
                if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError(f"no end mark at byte {tar.offset}")
            if sample:
                yield tar, sample
    except (tarfile.TarError, EOFError) as error:
        reason = f"({first_line(error)}): not a tar file, compressed, or cut short; write it again"
        raise DataError(f"cannot be read as a tar file {reason}") from None


def sample_row(tar: tarfile.TarFile, sample: list[Member], named: tuple[str | None, ...] = ()) -> Any:
    """A sample of a shard as a row: the object in `.json`, the text of `.txt` or `.caption`, and the images.

    Extensions `named` as columns are read too. What cannot be read is returned as a [`DataError`].
    """
    row: dict[str, Any] = {"__key__": sample[0].key}
    images: list[dict[str, Any]] = []
    extensions = [member.extension for member in sample]
    twice = next((extension for extension in extensions if extensions.count(extension) > 1), None)
    if twice is not None:
        return DataError(f"the sample {sample[0].key} has two files .{twice}; give each sample a name of its own")
    for member in sorted(sample, key=lambda member: member.extension != "json"):
        kind = member.extension.rpartition(".")[2]
        if kind not in (*_IMAGE_EXTENSIONS, "json", "txt", "caption") and member.extension not in named:
            continue
        content = tar.extractfile(member.info).read()  # type: ignore[union-attr]
        if kind in _IMAGE_EXTENSIONS:
            images.append({"bytes": content, "path": member.info.name})
            if member.extension in named:
                row[member.extension] = images[-1]
        elif kind == "json":
            try:
                value = json.loads(content.decode("utf-8", "surrogateescape"))
            except (ValueError, RecursionError) as error:
                return DataError(f"{member.info.name} is not JSON ({error}); correct it")
            row |= value if isinstance(value, dict) else {member.extension: value}
        else:
            row[member.extension] = content.decode("utf-8", "surrogateescape").rstrip("\r\n")
    if images:
        row.pop("images", None)
        row |= {"image": images[0]} if len(images) == 1 else {"image": None, "images": images}
    elif ("txt" in extensions or "caption" in extensions) and row.get("image") is None and row.get("images") is None:
        return DataError(f"the sample {sample[0].key} has a text but no image; add the image or remove it")
    return row


def packed_rows(path: Path, first: int = 0, rows: int = -1, named: tuple[str | None, ...] = ()) -> Iterator[Any]:
    """Yields rows of a Parquet file, see [`parquet_batches`], or all samples of a shard, see [`sample_row`]."""
    if path.suffix == ".parquet":
        return (row for batch in parquet_batches(path, first, rows) for row in batch.to_pylist())
    return (sample_row(tar, sample, named) for tar, sample in tar_samples(path))


def dataset_tables(data: Dataset | IterableDataset, bounds: tuple[int, int] | None = None) -> Iterator[Any]:
    """Yields the rows of a data set, or those from `bounds[0]` to `bounds[1]`, as Arrow tables, images as stored."""
    arrow = data.with_format("arrow")
    if bounds is None:
        yield from arrow.iter(batch_size=16)
        return
    for first in range(bounds[0], bounds[1], 16):
        yield arrow[first : min(first + 16, bounds[1])]
