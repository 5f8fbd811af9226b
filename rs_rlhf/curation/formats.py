"""Writers of the kept rows of image-text data in the input's own format, under the same file names.

Rows that stay as they are keep their bytes (JSON lines, JSON, CSV), schema (Parquet, data sets) or members
(WebDataset). Images that are files stay where they are, so that paths in rows mean the input's image root.

Left out: splitting or joining files, shortening columns that run along with texts, and atomicity (the caller's folder
is under construction, see `writer`).
"""

from __future__ import annotations

import copy
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Collection, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.columns import IMAGE_COLUMNS, Columns
from ..data.group import Row
from ..data.image_text import with_texts
from ..data.image_text_dataset import DATASET_FILE, ImageTexts
from ..data.packed_records import (
    Member,
    dataset_tables,
    opened_parquet,
    parquet_batches,
    row_group_bounds,
    sample_row,
    tar_samples,
)
from ..data.text_records import csv_head, parsed_line, text_records
from ..errors import DataError

if TYPE_CHECKING:
    import pyarrow

Choice = bool | Collection[int] | None
_GROUP_BYTES = 32 * 2**20


class _Chooser:
    """Asks for each row in turn whether it is kept, and counts."""

    def __init__(self, kept: Callable[[str], Choice]) -> None:
        self.kept = kept
        self.rows = self.chosen = self.shortened = 0

    def __call__(self, file: str, number: int) -> bool | frozenset[int]:
        """`True` to keep the row, `False` to drop it, or the indices of the texts that stay."""
        choice = self.kept(f"{file}:{number}") or False
        self.rows += 1
        self.chosen += bool(choice)
        return choice if isinstance(choice, bool) else frozenset(choice)

    def shorten(self, row: Row | DataError, choice: bool | frozenset[int], columns: Columns, where: str) -> Row:
        """The row with the chosen texts; the row itself if that is all of them."""
        try:
            if isinstance(row, DataError):
                raise row
            short = row if isinstance(choice, bool) else with_texts(row, choice, columns)
        except DataError as error:
            raise DataError(error.detail, error.key, where) from None
        self.shortened += short is not row
        return short


def write_kept(data: ImageTexts, kept: Callable[[str], Choice], out: Path) -> dict[str, Any]:
    """Writes the rows that are to be kept, reading the input once and holding a few rows at a time.

    Args:
        data ([`ImageTexts`]): The input.
        kept (callable): `row_id` -> `True` to keep the row, `None`, `False` or an empty set to drop it, or the indices
            of the texts to keep (all of a row whose texts are no list).
        out (`Path`): Empty folder to write into.

    Returns:
        `dict`: `rows`, `kept_rows` and `shortened_rows` (of these, how many lost some of their texts), `files` that
        were written and `files_without_rows` that were not, since nothing of them is kept.

    Raises:
        DataError: The input cannot be read.
        OSError: A file cannot be written.
    """
    choose = _Chooser(kept)
    written: list[str] = []
    empty: list[str] = []
    if data.dataset is not None:
        written = _write_dataset(data, out, choose)
        empty = [] if written else [DATASET_FILE]
    for file, path in data.files.items():
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        before = choose.chosen
        try:
            _WRITERS[data.format](data, file, path, out / file, choose)
        except DataError as error:
            raise error if error.where else DataError(error.detail, error.key, str(path)) from None
        if choose.chosen == before:
            (out / file).unlink()
        (empty if choose.chosen == before else written).append(file)
    for file in written:
        with (out / file).open("rb+") as stream:
            os.fsync(stream.fileno())
    return {
        "rows": choose.rows,
        "kept_rows": choose.chosen,
        "shortened_rows": choose.shortened,
        "files": written,
        "files_without_rows": empty,
    }


def _kept_records(data: ImageTexts, file: str, path: Path, choose: _Chooser) -> Iterator[bytes]:
    """The bytes of the kept records, as they were if no text is dropped."""
    # Lines of JSON need not be parsed, except those that lose a text.
    for number, record in enumerate(text_records(path, parse=False)):
        choice = choose(file, number)
        if not choice:
            continue
        value, raw = record.value, record.raw
        if not isinstance(choice, bool):
            value = parsed_line(raw, record.start) if data.format == "jsonl" else value
            short = choose.shorten(value, choice, data.columns, f"{path}, row {number}")
            if short is not value:
                end = raw[len(raw.rstrip(b"\r\n")) :]
                raw = _dumped(short, raw) + end
        yield raw


def _dumped(value: Any, like: bytes) -> bytes:
    """A value as JSON, in ASCII if the text that it comes from is."""
    try:
        return json.dumps(value, ensure_ascii=like.isascii()).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a surrogate pair, which can only be written as an escape
        return json.dumps(value).encode()


def _write_records(data: ImageTexts, file: str, path: Path, new: Path, choose: _Chooser) -> None:
    listed = data.format == "json"
    with new.open("wb") as stream:
        stream.write(b"[\n" if listed else csv_head(path).raw if data.format == "csv" else b"")
        for i, raw in enumerate(_kept_records(data, file, path, choose)):
            stream.write((b",\n" if listed and i else b"") + raw)
        stream.write(b"\n]\n" if listed else b"")


def _write_shard(data: ImageTexts, file: str, path: Path, new: Path, choose: _Chooser) -> None:
    with tarfile.open(new, "w") as target:
        named = tuple(data.columns.given.values())
        for number, (tar, sample) in enumerate(tar_samples(path, named)):
            choice = choose(file, number)
            if not choice:
                continue
            if isinstance(sample, DataError):
                raise DataError(sample.detail, sample.key, f"{path}, row {number}")
            changed: dict[str, Any] = {}
            if not isinstance(choice, bool):
                row = sample_row(tar, sample, named)
                short = choose.shorten(row, choice, data.columns, f"{path}, row {number}")
                changed = {key: short[key] for key in short if short[key] is not row[key]}
            for member in sample:
                _copy_member(tar, member, target, changed)


def _copy_member(tar: tarfile.TarFile, member: Member, target: tarfile.TarFile, changed: dict[str, Any]) -> None:
    info = copy.copy(member.info)
    content: Any = tar.extractfile(member.info)
    if changed and member.extension.rpartition(".")[2] == "json":
        raw = tar.extractfile(member.info).read()  # type: ignore[union-attr]
        value = json.loads(raw)
        value = value | changed if isinstance(value, dict) else changed.get(member.extension, value)
        edited = _dumped(value, raw)
        info.size, content = len(edited), io.BytesIO(edited)
        info.pax_headers = {key: value for key, value in info.pax_headers.items() if key != "size"}
    target.addfile(info, content)
    target.members = []  # type: ignore[attr-defined]  # it would keep all of them


def _kept_part(
    table: pyarrow.Table | pyarrow.RecordBatch, file: str, first: int, data: ImageTexts, choose: _Chooser
) -> Any:
    """The kept rows of an Arrow table or record batch, with the chosen texts."""
    import pyarrow

    choices = [choose(file, first + i) for i in range(table.num_rows)]
    part = table.filter(pyarrow.array([bool(choice) for choice in choices]))
    kept = [(number, choice) for number, choice in enumerate(choices) if choice]
    if all(isinstance(choice, bool) for _, choice in kept):
        return part
    # Images are left out here: they would be copied, and the form of a row is known without them.
    images = {*IMAGE_COLUMNS, data.columns.given.get("image"), data.columns.given.get("images")}
    texts = part.select([name for name in part.schema.names if name not in images])
    changed: dict[str, dict[int, Any]] = {}
    for i, (row, (number, choice)) in enumerate(zip(texts.to_pylist(), kept, strict=True)):
        short = choose.shorten(row, choice, data.columns, f"{data.files.get(file, file)}, row {first + number}")
        for key in short:
            if short[key] is not row[key]:
                changed.setdefault(key, {})[i] = short[key]
    for key, values in changed.items():
        i = part.schema.get_field_index(key)
        column = [values.get(row, value) for row, value in enumerate(part.column(i).to_pylist())]
        part = part.set_column(i, part.schema.field(i), pyarrow.array(column, part.schema.field(i).type))
    return part


def _write_parquet(data: ImageTexts, file: str, path: Path, new: Path, choose: _Chooser) -> None:
    import pyarrow
    import pyarrow.parquet

    with opened_parquet(path) as source:
        schema, bounds, metadata = source.schema_arrow, row_group_bounds(source), source.metadata
    # Column by column: `datasets` leaves images as they are and compresses the rest.
    codecs = [metadata.row_group(0).column(i) for i in range(metadata.num_columns)] if metadata.num_row_groups else []
    compression: Any = {codec.path_in_schema: codec.compression.replace("UNCOMPRESSED", "NONE") for codec in codecs}
    longest = max([1, *(after - before for before, after in pairwise(bounds))])
    pending: list[Any] = []
    number = 0
    with pyarrow.parquet.ParquetWriter(new, schema, compression=compression or "snappy") as writer:

        def flush() -> None:
            if pending:
                writer.write_table(pyarrow.Table.from_batches(pending, schema), row_group_size=longest)
                pending.clear()

        for batch in parquet_batches(path):
            part = _kept_part(batch, file, number, data, choose)
            number += batch.num_rows
            # No row group becomes longer, or larger than what is held at once.
            if sum(waiting.num_rows for waiting in pending) + part.num_rows > longest:
                flush()
            pending += [part] if part.num_rows else []
            if sum(waiting.nbytes for waiting in pending) > _GROUP_BYTES:
                flush()
        flush()


def _write_dataset(data: ImageTexts, out: Path, choose: _Chooser) -> list[str]:
    """Writes a saved data set; returns its files, none if no row is kept."""
    from datasets import Dataset, Features
    from datasets.arrow_writer import ArrowWriter

    aside = out / ".rows"  # not `out` itself: a data set may not overwrite its own folder
    aside.mkdir()
    arrow, writer, features = aside / "rows.arrow", None, data.dataset.features
    for unit in data.whole_units():
        number = 0
        part = data.dataset.shard(data.dataset.num_shards, unit.start) if data.streaming else data.dataset
        for table in dataset_tables(part, None if data.streaming else (0, unit.rows)):
            kept = _kept_part(table, unit.file, number, data, choose)
            number += table.num_rows
            features = features or Features.from_arrow_schema(table.schema)
            writer = writer or ArrowWriter(path=str(arrow), features=features)
            if kept.num_rows:
                writer.write_table(kept)
    if writer is not None and choose.chosen:
        writer.finalize()
        Dataset.from_file(str(arrow)).save_to_disk(str(out))
    shutil.rmtree(aside)
    return sorted((path.name for path in out.iterdir()), key=lambda name: (name == "state.json", name))


_WRITERS: dict[str, Callable[[ImageTexts, str, Path, Path, _Chooser], None]] = {
    "parquet": _write_parquet,
    "jsonl": _write_records,
    "json": _write_records,
    "csv": _write_records,
    "webdataset": _write_shard,
}
