"""Samples kept or rejected by hand: an append-only log, and the list of ids that the cut and the log make together.

Each mark is one line that is on the disk before the page shows it, so a kill loses none; the last line on a sample
holds. `kept_ids.parquet` is of the form that `rs-rlhf curate` writes, and that `curate --ids` reads.

Left out: who has marked, and marks of single texts of a sample.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...errors import DataError
from ...runs.files import append_lines, cut_torn_line, read_lines, replacing
from ..samples import Scored
from ..shards import read_shard
from ..writer import IDS
from .view import Ranked

LOG, KEPT = "marks.jsonl", "kept_ids.parquet"


class Marks:
    """What has been kept (`True`) and rejected (`False`) by hand, by the number of the sample.

    Args:
        folder (`Path`): Holds the log, or will; it is made with the first mark.
        scored ([`Scored`]): The samples.

    Raises:
        DataError: The log is of other scores, or damaged.
    """

    def __init__(self, folder: Path, scored: Scored) -> None:
        self.folder, self.log = folder, folder / LOG
        self.head = {"settings": {"input": scored.manifest["input"], "stamp": scored.manifest["stamp"]}}
        self.by_number: dict[int, bool] = {}
        self._writing = threading.Lock()
        if not self.log.exists():
            return
        cut_torn_line(self.log)
        head, *lines = read_lines(self.log) or [self.head]
        if head != self.head:
            told = "its marks are of other data; choose another --by_hand"
            raise DataError(told, "by_hand", str(self.log))
        for number, line in zip(_numbers(lines, scored, self.log), lines, strict=True):
            self._take(number, line["keep"])

    def _take(self, number: int, keep: bool | None) -> None:
        self.by_number.pop(number, None)  # the last mark comes last
        if keep is not None:
            self.by_number[number] = keep

    def mark(self, ranked: Ranked, number: int, keep: bool | None) -> None:
        """Writes a mark; `None` takes the sample's mark back."""
        _, lines, _ = ranked.sample(number)
        line = {"row_id": lines[0]["row_id"], "text_index": lines[0]["text_index"], "keep": keep}
        with self._writing:
            self.folder.mkdir(parents=True, exist_ok=True)
            append_lines(self.log, [line] if self.log.exists() else [self.head, line])
            self._take(number, keep)

    def counts(self) -> dict[str, int]:
        """Returns how many samples are kept and rejected by hand."""
        kept = sum(self.by_number.values())
        return {"kept": kept, "rejected": len(self.by_number) - kept}

    def write(self, ranked: Ranked, k: int) -> dict[str, Any]:
        """Writes `kept_ids.parquet`: the first `k` ranks and the samples kept by hand, without the rejected ones.

        Returns its `path`, and how many `samples` and `texts` it lists. A [`DataError`] if nothing is kept.
        """
        kept = np.zeros(len(ranked.samples.first), bool)
        kept[ranked.order[:k]] = True
        for number, keep in list(self.by_number.items()):
            kept[number] = keep
        parts, begin = [], 0
        for (_, path), end in zip(ranked.shards, ranked.ends.tolist(), strict=True):
            table = read_shard(path, ("row_id", "text_index", "score"))
            of = np.searchsorted(ranked.samples.first, np.arange(begin, end), "right") - 1
            finite = np.isfinite(pc.fill_null(table["score"], float("nan")).to_numpy())
            parts.append(table.select(IDS.names).filter(pa.array(kept[of] & finite)).cast(IDS))
            begin = end
        ids = pa.concat_tables(parts)
        if not len(ids):
            raise DataError("nothing is kept, neither by the cut nor by hand", where=str(self.folder))
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.folder / KEPT, "wb") as file:
            pq.write_table(ids, file)
        return {"path": str(self.folder / KEPT), "samples": int(kept.sum()), "texts": len(ids)}


def _numbers(lines: list[dict[str, Any]], scored: Scored, path: Path) -> list[int]:
    """The numbers of the samples that the lines of a log name by the row and the first text."""
    first = scored.lines.select(["row_id", "text_index"]).take(pa.array(scored.samples.first))
    rows = pa.array([str(line.get("row_id")) for line in lines], pa.string())
    places = np.flatnonzero(pc.is_in(first["row_id"], value_set=rows).to_numpy())
    found = first.take(pa.array(places)).to_pylist()
    known = {(own["row_id"], own["text_index"]): place for own, place in zip(found, places.tolist(), strict=True)}
    numbers = []
    for place, line in enumerate(lines, start=2):
        name = str(line.get("row_id")), line.get("text_index")
        if name not in known or line.get("keep") not in (True, False, None):
            detail = (
                f"text {name[1]} of {name[0]!r:.80} begins no sample of these scores; scored otherwise, or damaged"
            )
            raise DataError(f"{detail}: choose another --by_hand", "row_id", f"{path}, line {place}")
        numbers.append(known[name])
    return numbers
