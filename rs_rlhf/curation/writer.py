"""The folder that `rs-rlhf curate` writes: the kept rows, their ids, what was done, and a card; complete or not there.

Left out: adding to a folder that is there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..data.group import first_line
from ..data.image_text_dataset import ImageTexts
from ..errors import DataError
from ..imagery.trust import seal
from ..runs.files import replacing_folder, write_text
from ..runs.progress import progress
from .card import dataset_card
from .formats import write_kept

IDS = pa.schema([("row_id", pa.string()), ("text_index", pa.int32())])
MANY = 1 << 16  # rows that become Python objects at once


class KeptRows:
    """Tells for each row, asked in the order of the data, which of its texts are kept.

    The ids (a table of [`IDS`]) are in the order of the data too; `advance` is called with 1 for each kept row.
    """

    def __init__(self, ids: pa.Table, inputs: ImageTexts, advance: Callable[[int], object]) -> None:
        self.order = _file_order(inputs)
        self.ids, self.advance = _grouped(ids), advance
        self.missing, self.first_missing, self.file = 0, "", ""
        self.next = next(self.ids, None)

    def __call__(self, row_id: str) -> frozenset[int] | None:
        """Returns the indices of a row's kept texts, `None` if there are none."""
        file = row_id.rpartition(":")[0]
        if file != self.file:  # rows of earlier files that are still listed are not in the data
            self.file = file
            while self.next is not None and self.order[self.next[0].rpartition(":")[0]] < self.order[file]:
                self._miss(self.next[0])
        if self.next is None or self.next[0] != row_id:
            return None
        kept = self.next[1]
        self.next = next(self.ids, None)
        self.advance(1)
        return kept

    def _miss(self, row_id: str) -> None:
        self.first_missing = self.first_missing or row_id
        self.missing += 1
        self.next = next(self.ids, None)

    def check_all_found(self, name: str) -> None:
        """Raises a `DataError` if a listed row is not in the data."""
        while self.next is not None:
            self._miss(self.next[0])
        if self.missing:
            raise _absent(self.missing, self.first_missing, name)


def _absent(count: int, example: str, name: str) -> DataError:
    return DataError(
        f"rows that are to be kept are not in the data: {count}, such as {example!r}; give the data that "
        "the list was made of, in the same version",
        where=name,
    )


def _grouped(ids: pa.Table) -> Iterator[tuple[str, frozenset[int]]]:
    lines = (line for batch in ids.to_batches(MANY) for line in batch.to_pylist())
    for row_id, texts in groupby(lines, key=itemgetter("row_id")):
        yield row_id, frozenset(line["text_index"] for line in texts)


def _file_order(inputs: ImageTexts) -> dict[str, int]:
    """The rank of each file, or part, in the order of the data."""
    return {unit.file: i for i, unit in enumerate(inputs.whole_units())}


def read_ids(path: str | Path, inputs: ImageTexts) -> pa.Table:
    """Reads a list of kept rows, such as `kept_ids.parquet`, in the order of the data; another file, or one that names
    files which are not in the data, is a [`DataError`].
    """
    where, give = str(path), "give a kept_ids.parquet of `rs-rlhf curate`"
    try:
        table = pq.read_table(path, partitioning=None)
        if missing := [name for name in IDS.names if name not in table.column_names]:
            raise DataError(
                f"no column `{missing[0]}` (columns: {', '.join(table.column_names)}); expected a "
                "kept_ids.parquet of `rs-rlhf curate`",
                missing[0],
                where,
            )
        ids = table.select(IDS.names).cast(IDS).combine_chunks()
        halves = pc.split_pattern(ids["row_id"], ":", max_splits=1, reverse=True)
        number = pc.cast(pc.list_element(halves, 1), pa.int64())
        names = pc.list_element(halves, 0)
    except FileNotFoundError:
        raise DataError(f"no such file; {give}", where=where) from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot be read as a list of rows ({first_line(error)}); {give}", where=where) from None
    if not len(ids) or ids["row_id"].null_count or ids["text_index"].null_count:
        what = "has rows without an id" if len(ids) else "lists no rows"
        raise DataError(f"{what}; {give}", where=where)
    rank = pc.index_in(names, value_set=pa.array(list(_file_order(inputs)), pa.string()))
    if rank.null_count:
        lost = ids["row_id"].filter(pc.is_null(rank))
        raise _absent(len(pc.unique(lost)), lost[0].as_py(), inputs.name)
    return ids.take(pa.array(np.lexsort((ids["text_index"].to_numpy(), number.to_numpy(), rank.to_numpy()))))


def check_folder(folder: Path, overwrite: bool, sources: Sequence[str | Path]) -> None:
    """Refuses to write into a folder of something else, over the `sources` that are read, or over an earlier result.

    With `overwrite`, a folder that an earlier `rs-rlhf curate` has written may be replaced.

    Raises:
        DataError: Says which, and what to do.
    """
    target = folder.resolve()
    for source in map(Path, sources):
        read = source.resolve()
        if target == read or target in read.parents or (read.is_dir() and read in target.parents):
            raise DataError(f"overlaps with {source}, which is read; choose another --output", where=str(folder))
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / "curation.json").is_file():
        raise DataError("exists, and `rs-rlhf curate` has not written it; choose another --output", where=str(folder))
    if not overwrite:
        raise DataError("exists; choose another --output or pass --overwrite", where=str(folder))


def write_folder(
    folder: Path, inputs: ImageTexts, ids: pa.Table, about: Mapping[str, Any], texts: Mapping[str, str]
) -> dict[str, Any]:
    """Writes a folder of kept rows; what is there is replaced, see [`check_folder`]. Returns what [`write_kept`] does.

    `ids` (columns [`IDS`]) are in the data's order, `about` is what `curation.json` says beside the input, `texts` are
    further files: content by name. After a [`DataError`] nothing of it is left.
    """
    try:
        with replacing_folder(folder) as new:
            with progress(_count_rows(ids), 0, f"writing {folder.name}") as advance:
                kept = KeptRows(ids, inputs, advance)
                written = write_kept(inputs, kept, new)
                kept.check_all_found(inputs.name)
            pq.write_table(ids, new / "kept_ids.parquet")
            for name, text in texts.items():
                write_text(new / name, text)
            content = {
                "version": 1,
                **about,
                "input": inputs.name,
                "image_root": (root := str(Path(inputs.root).resolve())),
                "image_root_seal": seal(root),
                "format": inputs.format,
                "written": written,
            }
            write_text(
                new / "curation.json", json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
            )
            write_text(new / "README.md", dataset_card(folder.resolve().name, content, inputs))
    except OSError as error:
        raise DataError(
            f"cannot be written ({error.strerror or error}); make room or choose another --output", where=str(folder)
        ) from error
    return written


def _count_rows(ids: pa.Table) -> int:
    """Counts the rows of a list in the order of the data."""
    column = ids["row_id"]
    return 1 + (pc.sum(pc.not_equal(column.slice(1), column.slice(0, len(column) - 1))).as_py() or 0)
