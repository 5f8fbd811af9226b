"""Rows of Parquet files, WebDataset shards and HF data sets, a few at a time, images as stored.

No file, row group or shard is read whole: Parquet comes in record batches of some megabytes, a shard sample by sample,
a data set in small slices. Left out: compressed shards.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import DataError
from ..imagery.options import IMAGE_SUFFIXES
from ..imagery.sources import DOWNLOAD_BYTES
from .group import first_line

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from pyarrow.parquet import ParquetFile

_IMAGE_EXTENSIONS = tuple(suffix[1:] for suffix in IMAGE_SUFFIXES)
_TEXT_EXTENSIONS = ("json", "txt", "caption", "cls")
_TEXT_BYTES = 16 * 2**20
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


def dataset_labels(data: Dataset | IterableDataset) -> dict[str, list[str]]:
    """Returns the names of the classes of a data set's `ClassLabel` columns."""
    return {key: list(feature.names) for key, feature in (data.features or {}).items() if hasattr(feature, "names")}


class Member(NamedTuple):
    """A file in a shard: its key (what the files of a sample share), its extension, and where it is."""

    key: str
    extension: str
    info: tarfile.TarInfo


Sample = list[Member] | DataError
"""The members of one sample, or why they are none."""


def tar_samples(path: Path, named: tuple[str | None, ...] = ()) -> Iterator[tuple[tarfile.TarFile, Sample]]:
    """Yields the samples of a WebDataset shard, headers only: consecutive members of one name up to the first dot.

    Such members may be several samples, whose names have dots of their own, see [`_samples`]; their headers are held
    at once. Extensions `named` as columns, such as `seg.png`, begin at the first dot. Raises [`DataError`] if the file
    is not a tar file or cut short; earlier samples have been yielded by then.
    """
    group: list[Member] = []
    for tar, member in _members(path):
        if group and (member is None or member.key != group[0].key):
            yield from ((tar, sample) for sample in _samples(group, named))
            group = []
        group += [member] if member else []


def first_member(path: Path) -> Member | None:
    """Returns the first member of a shard, `None` if it has none; [`DataError`] if the file is not a tar file."""
    return next(_members(path))[1]


def _members(path: Path) -> Iterator[tuple[tarfile.TarFile, Member | None]]:
    """The open shard with each member by its name up to the first dot, and at the end with `None`."""
    try:
        with tarfile.open(path, "r:") as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                folder, slash, file = info.name.rpartition("/")
                stem, _, extension = file.partition(".")
                if info.isdir() or not stem:  # folders, and hidden files as macOS puts them there
                    continue
                yield tar, Member(f"{folder}{slash}{stem}", extension.lower(), info)
            # `tarfile` takes any damaged header for the end; the true end is a block of zeros.
            with path.open("rb") as stream:
                stream.seek(tar.offset)
                if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError(f"no end mark at byte {tar.offset}")
            yield tar, None
    except (tarfile.TarError, EOFError, MemoryError, OverflowError) as error:  # memory: a long name's stated length
        why = first_line(error) or "a header larger than memory"
        reason = f"({why}): not a tar file, compressed, or cut short; write it again"
        raise DataError(f"cannot be read as a tar file {reason}") from None


def _samples(group: list[Member], named: tuple[str | None, ...]) -> Iterator[Sample]:
    """The samples among members of one name up to the first dot.

    An image and a text of one name up to the last dot are a sample. Without such a partner they are of one sample if
    their extensions have several parts (`a.json`, `a.png`, `a.seg.png`), see [`_one_sample`]. Else each is an error,
    so that no text is taken for that of another image.
    """
    key = group[0].key
    parts: dict[str, list[Member]] = {}
    for member in group:
        if _kind(member) in (*_IMAGE_EXTENSIONS, *_TEXT_EXTENSIONS):
            parts.setdefault(_stem(member), []).append(member)
    if not parts or any("." in member.extension and member.extension in named for member in group):
        yield _checked(group)
        return
    first = next(iter(parts))
    for member in group:  # what is not read stays with the files of its name
        if _kind(member) not in (*_IMAGE_EXTENSIONS, *_TEXT_EXTENSIONS):
            parts.get(_stem(member), parts[first]).append(member)
    pairs = {stem for stem, part in parts.items() if _has(part, _IMAGE_EXTENSIONS) and _has(part, _TEXT_EXTENSIONS)}
    if len(parts) > 1 and pairs <= {key} and _one_sample(key, parts):
        yield _checked([member for part in parts.values() for member in part])
        return
    for stem, part in parts.items():
        if len(parts) > 1 and stem not in pairs:
            reason = f"may be of the sample {key} or of one of its own, {stem}, which has no image or no text"
            yield DataError(f"{part[0].info.name} {reason}; name the files of a sample alike up to their last dot")
        else:
            yield _checked([_renamed(member, stem) for member in part])


def _kind(member: Member) -> str:
    return member.extension.rpartition(".")[2]


def _stem(member: Member) -> str:
    return member.info.name.rpartition(".")[0]


def _has(part: Sequence[Member], kinds: Collection[str]) -> bool:
    return any(_kind(member) in kinds for member in part)


def _renamed(member: Member, stem: str) -> Member:
    """The member as a file of the sample `stem`, if it is named so."""
    return Member(stem, _kind(member) if _stem(member) == stem else member.extension, member.info)


def _one_sample(key: str, parts: dict[str, list[Member]]) -> bool:
    """Whether all parts are of the sample `key`.

    What extensions have before their last part must be words, or numbers from 0 or 1 on; and only the sample's own
    name may have texts, or images, unless it has both.
    """
    middles = [stem[len(key) + 1 :] for stem in parts if stem != key]
    numbers = sorted(int(middle) for middle in middles if middle.isdecimal())
    counted = numbers in ([], [*range(len(numbers))], [*range(1, len(numbers) + 1)]) and len(numbers) != 1
    if not counted or not all(middle.isdecimal() or re.fullmatch(r"[A-Za-z_.-]+", middle) for middle in middles):
        return False
    own, rest = parts.get(key, []), [member for stem, part in parts.items() if stem != key for member in part]
    kinds = (_IMAGE_EXTENSIONS, _TEXT_EXTENSIONS)
    return all(_has(own, kind) for kind in kinds) or any(_has(own, kind) and not _has(rest, kind) for kind in kinds)


def _checked(sample: list[Member]) -> Sample:
    """The sample, or the error about a member that is no plain file, or is named as if it lay outside of the shard."""
    for member in sample:
        info = member.info
        if not info.isreg() or info.issparse():
            what = "a link" if info.issym() or info.islnk() else "sparse" if info.isreg() else "a device or a pipe"
            return DataError(f"{info.name} is {what}, expected a plain file; write the file itself into the shard")
        if info.name.startswith("/") or ".." in info.name.split("/"):
            return DataError(f"the name {info.name} leads out of the shard; give the file a relative name without ..")
    return sample


def sample_row(tar: tarfile.TarFile, sample: Sample, named: tuple[str | None, ...] = ()) -> Any:
    """A sample of a shard as a row: the object in `.json`, the text of `.txt` or `.caption`, and the images.

    Extensions `named` as columns are read too. What cannot be read is returned as a [`DataError`].
    """
    if isinstance(sample, DataError):
        return sample
    key, told = sample[0].key, dict[str, Any]()
    row: dict[str, Any] = {}
    images: list[dict[str, Any]] = []
    extensions = [member.extension for member in sample]
    twice = next((extension for extension in extensions if extensions.count(extension) > 1), None)
    if twice is not None:
        return DataError(f"the sample {key} has two files .{twice}; give each sample a name of its own")
    for member in sorted(sample, key=lambda member: member.extension != "json"):
        kind = _kind(member)
        if kind not in (*_IMAGE_EXTENSIONS, "json", "txt", "caption") and member.extension not in named:
            continue
        most = DOWNLOAD_BYTES if kind in _IMAGE_EXTENSIONS else _TEXT_BYTES
        if member.info.size > most:
            return DataError(
                f"{member.info.name} has {member.info.size} bytes, at most {most} are read; cut it smaller"
            )
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
            value = value if isinstance(value, dict) else {member.extension: value}
            differ = next((column for column in value if column in told and value[column] != told[column]), None)
            if differ is not None and "json" not in extensions:  # else the sample's own file decides
                return DataError(f"two files of the sample {key} differ in `{differ}`; keep one of them", differ)
            told = value | told
        else:
            row[member.extension] = content.decode("utf-8", "surrogateescape").rstrip("\r\n")
    row = {"__key__": key} | told | row
    if images:
        row.pop("images", None)
        row |= {"image": images[0]} if len(images) == 1 else {"image": None, "images": images}
    elif ("txt" in extensions or "caption" in extensions) and row.get("image") is None and row.get("images") is None:
        return DataError(f"the sample {key} has a text but no image; add the image or remove it")
    return row


def packed_rows(path: Path, first: int = 0, rows: int = -1, named: tuple[str | None, ...] = ()) -> Iterator[Any]:
    """Yields rows of a Parquet file, see [`parquet_batches`], or all samples of a shard, see [`sample_row`]."""
    if path.suffix.lower() == ".parquet":
        return (row for batch in parquet_batches(path, first, rows) for row in batch.to_pylist())
    return (sample_row(tar, sample, named) for tar, sample in tar_samples(path, named))


def dataset_tables(data: Dataset | IterableDataset, bounds: tuple[int, int] | None = None) -> Iterator[Any]:
    """Yields the rows of a data set, or those from `bounds[0]` to `bounds[1]`, as Arrow tables, images as stored."""
    arrow = data.with_format("arrow")
    if bounds is None:
        yield from arrow.iter(batch_size=16)
        return
    for first in range(bounds[0], bounds[1], 16):
        yield arrow[first : min(first + 16, bounds[1])]
