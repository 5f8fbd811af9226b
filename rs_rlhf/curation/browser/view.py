"""Scored samples sorted by score, for `rs-rlhf browse`: whatever its page asks for is then a look-up.

Samples with a score are sorted once; their positions are *ranks*, 0 being the best. So a cut is a number `k` (ranks
below it are kept), a filter is an ascending array of ranks, and every request is a binary search or a count, also
among millions. Numbers are in memory; texts are read from the shards of the scores when they are shown or searched.

Left out: what `rs-rlhf curate` does before and beside one cut (duplicates, evaluation images, a cut in each source).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...errors import DataError
from ...runs.report_tables import cut
from .. import cut as cuts
from ..figures import spearman
from ..samples import Scored, scorer_name
from ..shards import existing_shards, read_shard

SHOWN = ("row_id", "text_index", "score", "tokens", "error", "text")
DRAWN = 1000  # random samples offered
GROUPS = 200  # sources or classes that are listed
TEXTS = 20  # texts of a sample that are shown
BINS = 90


@dataclass(frozen=True)
class Filter:
    """Which samples are looked at; `None` and an empty `search` select all."""

    source: str | None = None
    label: str | None = None
    low: float | None = None  # the range of scores, both ends included
    high: float | None = None
    search: str = ""  # part of a text, case ignored; or exactly a row id


@dataclass(frozen=True)
class Position:
    """Where the cut is."""

    k: int  # the number of samples that are kept: those of rank 0 to `k` - 1
    top: float  # their share of the samples with a score
    threshold: float  # the lowest score kept, or the threshold asked for


class Ranked:
    """Scored samples sorted by score; compared with `scored.samples.other` if it is there.

    The `flags` are those with which `rs-rlhf curate` makes the same samples; `folders` says whether classes are named
    by folders.

    Raises:
        DataError: Shards were written since it was read.
    """

    def __init__(self, scored: Scored, flags: Sequence[str] = (), folders: str = "") -> None:
        # Not `scored` itself: its columns of text would be most of the memory.
        self.folder, self.manifest, self.options = scored.folder, scored.manifest, scored.options
        self.inputs, self.units, self.samples = scored.inputs, scored.units, scored.samples
        self.flags, self.folders, self.lines = flags, folders, len(scored.scores)
        self.failed = int(np.count_nonzero(~np.isfinite(scored.scores)))
        self.shards = existing_shards(scored.manifest, scored.folder)
        self.ends = np.cumsum([pq.read_metadata(path).num_rows for _, path in self.shards])
        if self.ends[-1] != self.lines:
            raise DataError("shards were written while they were read; start again", where=str(scored.folder))
        self.unscored = np.flatnonzero(~np.isfinite(self.samples.score))
        self.order = _descending(self.samples.score)
        self.scores = self.samples.score[self.order]
        self.rank_of = _ranks(self.samples.score, self.order)
        first_of_row = cuts.first_texts(self.samples.row)
        best = np.minimum.reduceat(self.rank_of, first_of_row)
        row_order = np.argsort(best, kind="stable")
        self.rows = best[row_order]  # a row is kept with the best of its samples
        self.sources, self.labels = (
            Names(names, codes, codes[self.order], codes[first_of_row][row_order], self.scores)
            for codes, names in (self.samples.strata("source"), self.samples.strata("label"))
        )
        self.other = None if self.samples.other is None else Compared(scored.compared, self)
        self.sortable = self._sortable()
        self._searching = threading.Lock()
        self.select = lru_cache(4)(self._select)
        self.matching = lru_cache(4)(self._matching)
        self.histogram = lru_cache(16)(self._histogram)
        self.sample = lru_cache(2000)(self._sample)
        self.shard = lru_cache(4)(lambda number: read_shard(self.shards[number][1], SHOWN))

    def _sortable(self) -> dict[str, np.ndarray]:
        """What samples can be sorted by: values of all samples, by name."""
        samples, values = self.samples, {"score": self.samples.score, "tokens": self.samples.tokens}
        if self.other is not None:
            values["other"] = self.other.scores
        if samples.std is not None and np.isfinite(samples.std).any():
            values["std"] = samples.std
        return values

    def sorted_by(self, name: str, ranks: np.ndarray, ascending: bool) -> np.ndarray:
        """Returns some ranks in the order of a value of [`Ranked.sortable`], the samples without one last."""
        values = self.sortable[name][self.order[ranks]].astype(np.float64)
        return ranks[np.argsort(values if ascending else -values, kind="stable")]

    @property
    def title(self) -> str:
        """The name of the data and of the scorer."""
        split = f", {self.manifest['split']}" if self.manifest.get("split") else ""
        return f"{Path(self.manifest['input']).name}{split}, scored by {short_name(scorer_name(self.manifest))}"

    @property
    def several(self) -> bool:
        """Whether there are samples of several texts."""
        return len(self.samples.first) < self.lines

    def facts(self) -> list[list[str]]:
        """Returns the name and text of each fact that the page shows."""
        facts = {
            "Rows": f"{len(self.rows):,}",
            "Texts": f"{self.lines:,}",
            "Without a score": f"{self.failed:,}",
            "Sources": f"{len(self.sources.names):,}",
            "Classes": ", ".join(
                filter(None, [f"{len([name for name in self.labels.names if name]):,}", self.folders])
            ),
        }
        if self.several:
            facts["Samples"] = f"{len(self.samples.first):,}, some of several texts"
        if len(self.scores):
            low, middle, high = (f"{self.scores[rank]:.4g}" for rank in (-1, len(self.scores) // 2, 0))
            facts["Scores"] = f"{low} to {high}, median {middle}"
        facts["Data"] = str(self.manifest["input"])
        if missing := len(self.units) - len(self.shards):
            facts["Unfinished"] = f"{missing:,} of {len(self.units):,} shards are missing"
        return [[name, text] for name, text in facts.items()]

    def cut(self, top: float | None = None, threshold: float | None = None) -> Position:
        """Returns the cut at a share or at a score, as [`cuts.cut`] makes it."""
        count = len(self.scores)
        if threshold is not None:
            k = self._from(np.float32(threshold))
            return Position(k, k / max(count, 1), threshold)
        k = cuts.count_of(top or 0.0, count)
        return Position(k, top or 0.0, float(self.scores[max(k, 1) - 1]) if count else 0.0)

    def _from(self, score: np.float32, side: Literal["left", "right"] = "left") -> int:
        """How many samples have at least this score; with `"right"`, a higher one."""
        return len(self.scores) - int(np.searchsorted(self.scores[::-1], score, side))

    def equal_dropped(self, k: int) -> int:
        """Returns how many samples are dropped with exactly the lowest score that is kept."""
        return self._from(self.scores[k - 1]) - k if k else 0

    def text_count(self, k: int) -> int:
        """Returns the number of texts of the kept samples."""
        return int(self.samples.texts[self.order[:k]].sum()) if self.several else k

    def _select(self, chosen: Filter) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ranks, ascending, of the samples that a filter selects, and its samples without a score."""
        begin = 0 if chosen.high is None else self._from(np.float32(chosen.high), "right")
        end = len(self.scores) if chosen.low is None else self._from(np.float32(chosen.low))
        fits, failed = np.zeros(len(self.scores), bool), np.ones(len(self.unscored), bool)
        fits[begin:end] = True
        failed &= chosen.low is None and chosen.high is None
        for names, name in ((self.sources, chosen.source), (self.labels, chosen.label)):
            if name is not None:
                code = names.names.index(name) if name in names.names else -1
                fits &= names.by_rank == code
                failed &= names.by_sample[self.unscored] == code
        if chosen.search:
            matching = self.matching(chosen.search)
            fits &= matching[self.order]
            failed &= matching[self.unscored]
        return np.flatnonzero(fits), self.unscored[failed]

    def _matching(self, search: str) -> np.ndarray:
        """Returns for each sample whether one of its texts contains `search`, or its row id is exactly that."""
        file, _, number = search.rpartition(":")
        parts = []
        with self._searching:  # one search at a time: it reads all shards
            for i, path in self.shards:
                unit = self.units[i]
                ids = file == unit.file and number.isdecimal() and unit.first <= int(number)
                ids = ids and (unit.rows < 0 or int(number) < unit.first + unit.rows)
                table = read_shard(path, ("row_id", "text") if ids else ("text",))
                matches = pc.fill_null(pc.match_substring(table["text"], search, ignore_case=True), False)
                parts.append((pc.or_(matches, pc.equal(table["row_id"], search)) if ids else matches).to_numpy())
        return np.logical_or.reduceat(np.concatenate(parts), self.samples.first)

    def _histogram(self, chosen: Filter, low: float, high: float) -> list[int]:
        """Counts the samples of a filter with a score from `low` to `high`, in equal bins."""
        scores = self.scores[self.select(chosen)[0]]
        inside = scores[(scores >= np.float32(low)) & (scores <= np.float32(high))]
        return cuts.histogram(inside, low, high, BINS).tolist()

    def _sample(self, number: int) -> tuple[int, list[dict[str, Any]], int]:
        """Reads a sample: the number of its unit, its lines (at most [`TEXTS`]), and how many lines there are."""
        begin, end = self.samples.bounds(number, self.lines)
        shard = int(np.searchsorted(self.ends, begin, "right"))
        start = begin - (int(self.ends[shard - 1]) if shard else 0)
        lines = self.shard(shard).slice(start, min(TEXTS, end - begin)).to_pylist()
        for line in lines:
            for key in ("text", "error"):
                line[key] = line[key] and cut(line[key])
        return self.shards[shard][0], lines, end - begin


@dataclass
class Names:
    """The sources, or the classes, of samples."""

    names: list[str]  # by code
    by_sample: np.ndarray  # codes of all samples
    by_rank: np.ndarray  # codes of those with a score, by rank
    by_row: np.ndarray  # codes of the rows, in the order of their best samples
    scores: np.ndarray  # by rank

    def __post_init__(self) -> None:
        count = len(self.names)
        self.means = cuts.group_means(self.by_rank, self.scores, count)
        self.samples, self.rows = (np.bincount(codes, minlength=count) for codes in (self.by_rank, self.by_row))

    def counts(self, k: int, rows: int) -> dict[str, Any]:
        """Counts what a cut that keeps `k` samples, of `rows` rows, keeps of each, the largest first."""
        count = len(self.names)
        parts = self.by_rank[:k], self.by_row[:rows]
        kept, rows_kept = (np.bincount(codes, minlength=count) for codes in parts)
        shown = np.argsort(-self.samples, kind="stable")[:GROUPS].tolist()
        groups = [
            {
                "name": self.names[i],
                "samples": int(self.samples[i]),
                "kept": int(kept[i]),
                "rows": int(self.rows[i]),
                "rows_kept": int(rows_kept[i]),
                "mean": float(self.means[i]) if self.samples[i] else None,
            }
            for i in shown
        ]
        return {"groups": groups, "left_out": count - len(shown)}


class Compared:
    """Other scores of the samples of `own`, compared with their own; `name` is the other scorer's."""

    def __init__(self, name: str, own: Ranked) -> None:
        self.scores: np.ndarray = own.samples.other  # type: ignore[assignment]  # there is one
        order = _descending(self.scores)
        self.ranks, self.count, self.order = _ranks(self.scores, order)[own.order], len(order), own.order
        same = scorer_name(own.manifest) == name
        self.name = "the other" if same else short_name(name)
        finite = np.isfinite(self.scores[own.order])
        self.common = int(finite.sum())
        self.correlation = spearman(own.scores[finite], self.scores[own.order][finite])

    def keeps(self, top: float) -> np.ndarray:
        """Returns for each rank whether the other scores, cut at some share, keep it."""
        return self.ranks < cuts.count_of(top, self.count)

    def both(self, position: Position) -> int:
        """Returns how many samples both scores keep."""
        return int(np.count_nonzero(self.keeps(position.top)[: position.k]))

    def differing(self, position: Position, ranks: np.ndarray, here: bool) -> np.ndarray:
        """Returns those of some ranks that only one of the two keeps, the largest difference first."""
        there = self.keeps(position.top)[ranks]
        differing = ranks[((ranks < position.k) & ~there) if here else ((ranks >= position.k) & there)]
        gap = self.ranks[differing] - differing
        return differing[np.argsort(-gap if here else gap, kind="stable")]


def _descending(scores: np.ndarray) -> np.ndarray:
    """Indices of all finite scores, the highest first, equal ones in the order of the data."""
    order = np.argsort(-scores, kind="stable")  # NaN comes last
    return order[: np.count_nonzero(np.isfinite(scores))]


def _ranks(scores: np.ndarray, order: np.ndarray) -> np.ndarray:
    ranks = np.full(len(scores), len(scores))  # without a score: after all others
    ranks[order] = np.arange(len(order))
    return ranks


def kept_of(ranks: np.ndarray, k: int) -> int:
    """Returns how many of some ranks, ascending, are kept."""
    return int(np.searchsorted(ranks, k, "left"))


def drawn(ranks: np.ndarray, seed: int) -> np.ndarray:
    """Draws some ranks in random order."""
    return ranks[np.random.default_rng(seed).choice(len(ranks), min(DRAWN, len(ranks)), replace=False)]


def short_name(scorer: str) -> str:
    """Returns a scorer's name without the folders of its model: `"clip (remoteclip)"`."""
    kind, _, model = scorer.partition(" (")
    names = [Path(name).name for name in model.removesuffix(")").split(",")]
    return f"{kind} ({', '.join(names)})" if model else kind
