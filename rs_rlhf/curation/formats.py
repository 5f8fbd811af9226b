"""Writes the kept rows of image-text data in the input's own format, under the same file names.

Rows that stay as they are keep their bytes (JSON lines, JSON, CSV), schema (Parquet, data sets) or members
(WebDataset). Nothing takes its place before everything is written and on the disk: a full disk or a killed process
leaves the folder as it was, but for files named `.new`. Images that are files stay where they are, so paths in rows
mean the input's image root. Left out: splitting or joining files, and shortening columns that run along with texts.
"""

from __future__ import annotations

import copy
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from ..data.columns import IMAGE_COLUMNS
from ..data.image_text import with_texts
from ..data.image_text_dataset import DATASET_FILE, ImageTexts
from ..data.packed_records import (
    Member,
    dataset_tables,
    opened_parquet,
    parquet_batches,
    row_group_bounds,
    sample_row,
    tar_content,
    tar_samples,
)
from ..data.rows import FORMATS
from ..data.text_records import csv_head, first_byte, parsed_line
from ..errors import DataError

__all__ = ["write_kept"]

Choice = bool | Collection[int] | None
_GROUP_BYTES = 32 * 2**20
_SAVED = ("state.json", "dataset_info.json", "dataset_dict.json")


class _Chooser:
    """Asks for one row after the other whether it is kept, and counts."""

    def __init__(self, kept: Callable[[str], Choice], advance: Callable[[int], None] | None) -> None:
        self.kept, self.advance = kept, advance
        self.rows = self.chosen = self.shortened = 0

    def __call__(self, file: str, number: int) -> bool | frozenset[int]:
        """`True` to keep the row, `False` to drop it, or the places of the texts that stay."""
        choice = self.kept(f"{file}:{number}")
        self.rows += 1
        if self.advance is not None:
            self.advance(1)
        if choice is None or isinstance(choice, bool):
            self.chosen += bool(choice)
            return bool(choice)
        self.chosen += bool(choice)
        return frozenset(choice) if choice else False

    def shorten(self, row: Any, choice: bool | frozenset[int], text_column: str | None, where: str) -> Any:
        """The row with the chosen texts, itself if that is all of them."""
        if isinstance(choice, bool):
            return row
        try:
            if isinstance(row, DataError):
                raise row
            short = with_texts(row, choice, text_column)
        except DataError as error:
            raise DataError(error.detail, error.key, where) from None
        self.shortened += short is not row
        return short


def write_kept(
    data: ImageTexts,
    kept: Callable[[str], Choice],
    out: str | os.PathLike,
    *,
    overwrite: bool = False,
    advance: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Writes the rows that are to be kept, reading the input once and holding a few rows at a time.

    Args:
        data ([`ImageTexts`]): The input.
        kept (callable): `row_id` -> `True` to keep the row, `None`, `False` or an empty set to drop it, or the places
            of the texts to keep (all of a row whose texts are no list).
        out (`str`): Folder to write into; made if it does not exist.
        overwrite (`bool`): Replace what an earlier run wrote under the same names; other data is never touched.
        advance (callable, *optional*): Told the number of rows dealt with, see `runs.progress.progress`.

    Returns:
        `dict`: `rows`, `kept_rows` and `shortened_rows` (of these, how many lost some of their texts), `files` that
        were written and `files_without_rows` that were not, since nothing of them is kept.

    Raises:
        DataError: `out` holds data, is the input's own folder or cannot be written; or the input cannot be read.
    """
    out = Path(out)
    old = _checked_target(data, out, overwrite)
    choose = _Chooser(kept, advance)
    ready: list[tuple[Path, Path]] = []
    empty: list[str] = []
    mark = f".{os.getpid()}.new"
    try:
        if data.dataset is not None:
            ready, empty = _write_dataset(data, out, mark, choose)
        for file, path in data.files.items():
            target = out / file
            new = target.with_name(target.name + mark)
            new.parent.mkdir(parents=True, exist_ok=True)
            ready.append((new, target))
            before = choose.chosen
            try:
                _WRITERS[data.format](data, file, path, new, choose)
            except DataError as error:
                raise DataError(error.detail, error.key, str(path)) if str(error) == error.detail else error from None
            if choose.chosen == before:
                ready.pop()
                new.unlink()
                empty.append(file)
        for new, _ in ready:
            _to_disk(new)
        for path in old:
            path.unlink()
        for new, target in ready:
            new.replace(target)
    except OSError as error:
        raise DataError(
            f"cannot be written ({error.strerror or error}); make room or choose another folder, then "
            "start again: nothing is left of what was written",
            "",
            str(out),
        ) from error
    finally:  # what has taken its place is no longer here
        for new, _ in ready:
            new.unlink(missing_ok=True)
        shutil.rmtree(out / mark, ignore_errors=True)
    return {
        "rows": choose.rows,
        "kept_rows": choose.chosen,
        "shortened_rows": choose.shortened,
        "files": [target.relative_to(out).as_posix() for _, target in ready],
        "files_without_rows": empty,
    }


def _checked_target(data: ImageTexts, out: Path, overwrite: bool) -> list[Path]:
    """Returns the files of an earlier run that are to be replaced, or says why `out` cannot be written into."""
    if out.exists() and not out.is_dir():
        raise DataError("is a file, expected a folder to write into", "", str(out))
    if data.folder and out.resolve() == Path(data.folder).resolve():
        raise DataError("is the folder of the input, which would be overwritten; choose another", "", str(out))
    there = {path for folder in (out, out / "data") for suffix in FORMATS for path in folder.glob(f"*{suffix}")}
    # Beside data lie objects such as `curation.json`, and the ids that `curate` writes.
    lists = (path for path in there if path.suffix != ".json" or first_byte(path) == b"[")
    there = {path for path in lists if path.name != "kept_ids.parquet"}
    there |= {path for path in (*out.glob("*.arrow"), *(out / name for name in _SAVED)) if path.exists()}
    there |= {out / file for file in data.files if (out / file).exists()}
    if there and not overwrite:
        raise DataError(
            f"holds data already ({min(there).relative_to(out)}); choose another folder, or overwrite", "", str(out)
        )
    own = {out / file for file in data.files}
    saved = data.dataset is not None
    other = [path for path in there - own if not (saved and (path.suffix == ".arrow" or path.name in _SAVED))]
    if other:
        raise DataError(
            f"holds other data ({min(other).relative_to(out)}), which is not overwritten; choose another folder",
            "",
            str(out),
        )
    return sorted(there)


def _to_disk(path: Path) -> None:
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


# --- text files -------------------------------------------------------------------------------------------------


def _kept_records(data: ImageTexts, file: str, path: Path, choose: _Chooser) -> Iterator[bytes]:
    """The bytes of the kept records, as they were where no text is dropped."""
    # Lines of JSON need not be parsed, but for those that lose a text.
    for number, record in enumerate(data.records(path, parse=False)):
        choice = choose(file, number)
        if not choice:
            continue
        value, raw = record.value, record.raw
        if not isinstance(choice, bool):
            value = parsed_line(raw, record.start) if data.format == "jsonl" else value
            short = choose.shorten(value, choice, data.text_column, f"{path}, row {number}")
            if short is not value:
                end = raw[len(raw.rstrip(b"\r\n")) :]
                raw = _dumped(short, raw) + end
        yield raw


def _dumped(value: Any, like: bytes) -> bytes:
    """A value as JSON, with escapes where the text that it comes from has no other characters."""
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


# --- WebDataset -------------------------------------------------------------------------------------------------


def _write_shard(data: ImageTexts, file: str, path: Path, new: Path, choose: _Chooser) -> None:
    with tarfile.open(new, "w") as target:
        for number, (tar, sample) in enumerate(tar_samples(path)):
            choice = choose(file, number)
            if not choice:
                continue
            changed: dict[str, Any] = {}
            if not isinstance(choice, bool):
                row = sample_row(tar, sample, (data.image_column, data.text_column))
                short = choose.shorten(row, choice, data.text_column, f"{path}, row {number}")
                changed = {key: short[key] for key in short if short[key] is not row[key]} if short is not row else {}
            for member in sample:
                _copy_member(tar, member, target, changed)


def _copy_member(tar: tarfile.TarFile, member: Member, target: tarfile.TarFile, changed: dict[str, Any]) -> None:
    info = copy.copy(member.info)
    content: Any = tar.extractfile(member.info)
    if changed and member.extension.rpartition(".")[2] == "json":
        raw = tar_content(tar, member)
        value = json.loads(raw)
        value = value | changed if isinstance(value, dict) else changed.get(member.extension, value)
        edited = _dumped(value, raw)
        info.size, content = len(edited), io.BytesIO(edited)
        info.pax_headers = {key: one for key, one in info.pax_headers.items() if key != "size"}
    target.addfile(info, content)
    target.members = []  # type: ignore[attr-defined]  # it would keep them all


# --- tables -----------------------------------------------------------------------------------------------------


def _kept_part(table: Any, file: str, first: int, data: ImageTexts, choose: _Chooser) -> Any:
    """The kept rows of an Arrow table or record batch, texts dropped where some are chosen."""
    import pyarrow

    choices = [choose(file, first + i) for i in range(table.num_rows)]
    part = table.filter(pyarrow.array([bool(choice) for choice in choices]))
    kept = [(number, choice) for number, choice in enumerate(choices) if choice]
    if all(isinstance(choice, bool) for _, choice in kept):
        return part
    # Images are left out here: they would be copied, and the form of a row is known without them.
    texts = part.select([name for name in part.schema.names if name not in (*IMAGE_COLUMNS, data.image_column)])
    changed: dict[str, dict[int, Any]] = {}
    for i, (row, (number, choice)) in enumerate(zip(texts.to_pylist(), kept, strict=True)):
        short = choose.shorten(row, choice, data.text_column, f"{data.files.get(file, file)}, row {first + number}")
        for key in short if short is not row else ():
            if short[key] is not row[key]:
                changed.setdefault(key, {})[i] = short[key]
    for key, values in changed.items():
        place = part.schema.get_field_index(key)
        column = [values.get(i, value) for i, value in enumerate(part.column(place).to_pylist())]
        part = part.set_column(place, part.schema.field(place), pyarrow.array(column, part.schema.field(place).type))
    return part


def _write_parquet(data: ImageTexts, file: str, path: Path, new: Path, choose: _Chooser) -> None:
    import pyarrow
    import pyarrow.parquet

    with opened_parquet(path) as source:
        schema, bounds, metadata = source.schema_arrow, row_group_bounds(source), source.metadata
    # Column by column: `datasets` leaves images as they are and compresses the rest.
    codecs = [metadata.row_group(0).column(i) for i in range(metadata.num_columns)] if metadata.num_row_groups else []
    compression: Any = {one.path_in_schema: one.compression.replace("UNCOMPRESSED", "NONE") for one in codecs}
    longest = max([1, *(after - before for before, after in zip(bounds, bounds[1:], strict=False))])
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
            if sum(one.num_rows for one in pending) + part.num_rows > longest:
                flush()
            pending += [part] if part.num_rows else []
            if sum(one.nbytes for one in pending) > _GROUP_BYTES:
                flush()
        flush()


def _write_dataset(data: ImageTexts, out: Path, mark: str, choose: _Chooser) -> tuple[list[tuple[Path, Path]], list]:
    """Writes a saved data set aside; returns its files with their places, `state.json` (without it, none) last."""
    from datasets import Dataset, Features
    from datasets.arrow_writer import ArrowWriter

    aside = out / mark
    aside.mkdir(parents=True)
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
    if writer is None or not choose.chosen:
        return [], [DATASET_FILE]
    writer.finalize()
    Dataset.from_file(str(arrow)).save_to_disk(str(aside / "saved"))
    arrow.unlink()
    files = sorted((aside / "saved").iterdir(), key=lambda path: path.name == "state.json")
    return [(path, out / path.name) for path in files], []


_WRITERS: dict[str, Callable[[ImageTexts, str, Path, Path, _Chooser], None]] = {
    "parquet": _write_parquet,
    "jsonl": _write_records,
    "json": _write_records,
    "csv": _write_records,
    "webdataset": _write_shard,
}
