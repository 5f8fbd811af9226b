"""One process's part of `rs-rlhf score`: claims units that nobody else has, reads, scores and writes them.

Left out: reading the next unit while one is scored (in a unit, threads read ahead; between two, the wait is short).
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ..data.group import Group, first_line
from ..data.image_text import ImageTextRow
from ..data.image_text_dataset import ImageTexts, Unit
from ..errors import DataError, ImageError
from ..imagery.identity import encoded_hash, source_key
from ..runs.progress import progress
from ..scoring.base import GroupScorer, spread
from .shards import claimed, missing_units, reason, shard_path, write_shard

POLL_SECONDS = 0.5
FEWEST_ROWS = 100  # with fewer rows, a share of errors says little
TokenCounter = Callable[[Sequence[str]], list[int]]  # texts -> the number of tokens of each


def is_first() -> bool:
    """Whether this process prints for all that a launcher has started."""
    return os.environ.get("RANK", "0") == "0"


@dataclass
class Work:
    """Scores the units that nobody else scores."""

    source: ImageTexts  # the input
    manifest: Mapping[str, Any]  # the plan of `folder`
    folder: Path  # where the scores go
    scorer: GroupScorer
    count_tokens: TokenCounter
    num_workers: int = 2  # threads that read images to hash them
    max_error_fraction: float = 0.05  # share of rows without a score at which this process stops
    rows: int = field(default=0, init=False)
    failed: int = field(default=0, init=False)
    reasons: Counter[str] = field(default_factory=Counter, init=False)
    examples: dict[str, str] = field(default_factory=dict, init=False)

    def run(self) -> None:
        """Passes over the units until all are scored, by this process or another."""
        with claimed(self.folder, "summary", wait=True):
            if missing_units(self.manifest, self.folder):  # a shard was deleted, to be scored again
                (self.folder / "summary.json").unlink(missing_ok=True)
        waiting = False
        with _progress(self.manifest, self.folder) as advance:
            while missing := missing_units(self.manifest, self.folder):
                busy = 0
                for number in missing:
                    shard = shard_path(self.folder, self.manifest, number)
                    with claimed(self.folder, f"{number:05d}") as free:
                        busy += not free
                        if free and not shard.exists():  # another process may have finished it since we looked
                            advance(*self._score(number, shard, last=number == missing[-1] and not busy))
                if busy == len(missing):
                    if is_first() and not waiting:
                        print(f"waiting for {busy} shards that other processes score", file=sys.stderr, flush=True)
                    waiting = True
                    time.sleep(POLL_SECONDS)  # nothing tells when a lock is freed

    def _score(self, number: int, shard: Path, last: bool) -> tuple[int, int]:
        """Scores one unit and writes its shard; returns its numbers of rows and texts."""
        start = time.time()
        count = 0
        lines: list[dict[str, Any]] = []
        for rows in self._read(number):
            count += len(rows)
            lines += score_rows(rows, self.scorer, self.count_tokens, self.num_workers)
        self._count_errors(count, lines, last)
        texts = sum(line["text"] is not None for line in lines)
        write_shard(shard, lines, {"rows": count, "texts": texts, "start": start, "stop": time.time()})
        return count, texts

    def _read(self, number: int) -> Iterator[list[ImageTextRow]]:
        """Yields the rows of a unit: all at once; those of a file whose rows are not counted in parts of that size."""
        unit = Unit(**self.manifest["units"][number])
        rows = islice(self.source.read(unit), unit.rows if unit.rows >= 0 else None)
        count = 0
        while part := list(islice(rows, self.manifest["rows_per_shard"])):
            count += len(part)
            yield part
        if unit.rows not in (-1, count):
            raise DataError(
                f"row {unit.first + count} and those after it are gone; the input has changed since the "
                "run was planned: score anew to another --output",
                where=unit.file,
            )

    def _count_errors(self, rows: int, lines: Sequence[Mapping[str, Any]], last: bool) -> None:
        """Stops if too many rows have failed, before their shard is written, so that the next run scores them."""
        bad: dict[str, str] = {}
        for line in lines:
            if line["error"] is not None:
                bad.setdefault(line["row_id"], line["error"])
        self.rows += rows
        self.failed += len(bad)
        for row_id, error in bad.items():
            self.reasons[reason(error)] += 1
            self.examples.setdefault(reason(error), f"{row_id}: {error}")
        if self.failed <= self.max_error_fraction * self.rows or (self.rows < FEWEST_ROWS and not last):
            return
        kinds = "; ".join(f"{count} as {self.examples[kind]}" for kind, count in self.reasons.most_common(3))
        raise DataError(
            f"{self.failed} of {self.rows} rows cannot be scored, more than --max_error_fraction "
            f"{self.max_error_fraction:g}: {kinds}. Finished shards are kept: mend the cause and run the same command "
            "again, or raise --max_error_fraction",
            "max_error_fraction",
            str(self.source.name),
        )


def score_rows(
    rows: Sequence[ImageTextRow], scorer: GroupScorer, count_tokens: TokenCounter, num_workers: int = 2
) -> list[dict[str, Any]]:
    """Scores image-text rows in one go, see [`Work`]; returns the lines of a shard, with the columns of [`SCHEMA`].

    A row with an error gives one line.
    """
    groups = [replace(group, where=row.row_id) for row in rows for group in row.groups]
    with _hashing(rows, num_workers) as hash_of:
        results = iter(_score_groups(scorer, groups))
        lines = [line for row in rows for line in _lines(row, results, hash_of(row))]
    tokens = iter(count_tokens([line["text"] for line in lines if line["text"] is not None]))
    return [{**line, "tokens": None if line["text"] is None else next(tokens)} for line in lines]


def _score_groups(scorer: GroupScorer, groups: Sequence[Group]) -> list[list[float] | Exception]:
    try:
        return scorer.score_groups(groups, on_error="return", show_progress=None if is_first() else False)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        raise DataError(
            f"out of memory ({first_line(error)}); resume: run the same command with a smaller --token_budget",
            "token_budget",
        ) from error


def _lines(
    row: ImageTextRow, results: Iterator[list[float] | Exception], image: str | ImageError
) -> list[dict[str, Any]]:
    """The lines of a shard for a row, without `tokens`; takes the row's results from those of all rows."""
    common = {
        "row_id": row.row_id,
        "image_hash": image if isinstance(image, str) else "",
        "whole": row.whole,
        "source": _storable(row.source),
        "label": _storable(row.label),
    }
    if row.error is not None:
        return [{**common, "text_index": 0, "score": None, "error": _storable(row.error.detail), "text": None}]
    scored: list[tuple[float | None, str | None]] = []
    for group, result in zip(row.groups, results, strict=False):
        error = result if isinstance(result, Exception) else None if isinstance(image, str) else image
        if error is not None or isinstance(result, Exception):
            scored += [(None, _storable(str(error).removeprefix(f"{row.row_id}: ")))] * len(group.completions)
        else:
            scored += [
                (score, None) if math.isfinite(score) else (None, f"the score is {score}, not a finite number")
                for score in result
            ]
    return [
        {**common, "text_index": k, "score": score, "score_std": spread(score), "error": error, "text": text}
        for k, (text, (score, error)) in enumerate(zip(row.texts, scored, strict=True))
    ]


def _storable(text: str) -> str:
    """Replaces what a file holds that is not UTF-8 by question marks."""
    return text.encode(errors="replace").decode()


@contextmanager
def _hashing(rows: Sequence[ImageTextRow], num_workers: int) -> Iterator[Callable[[ImageTextRow], str | ImageError]]:
    """Hashes the images of rows in threads; gives a function from a row to the hash of its images, `""` for none.

    The SHA-256 of the image's encoded bytes; for several images, the SHA-256 of their hashes. If an image cannot be
    read, its error.
    """
    pool = ThreadPoolExecutor(max(1, num_workers), thread_name_prefix="hash")
    try:
        images = {source_key(image): image for row in rows for image in row.images}
        jobs = {key: pool.submit(encoded_hash, image) for key, image in images.items()}

        def hash_of(row: ImageTextRow) -> str | ImageError:
            try:
                hashes = [jobs[source_key(image)].result() for image in row.images]
            except ImageError as error:
                return error
            return "".join(hashes) if len(hashes) < 2 else hashlib.sha256("".join(hashes).encode()).hexdigest()

        yield hash_of
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _progress(manifest: Mapping[str, Any], folder: Path) -> Iterator[Callable[[int, int], None]]:
    """Gives a function to call with the rows and texts of each scored unit; shows how far all processes are."""
    rows = [unit["rows"] for unit in manifest["units"]]
    known = min(rows) >= 0
    sizes, unit = (rows, "row") if known else ([1] * len(rows), "shard")
    total = sum(sizes)

    def done() -> int:
        return total - sum(sizes[i] for i in missing_units(manifest, folder))

    first, start = done(), time.monotonic()
    looked = start
    own_rows = own_texts = 0
    if is_first():
        print(f"scoring {total} {unit}s in {len(rows)} shards, {first} {unit}s done -> {folder}", file=sys.stderr)
    with progress(total, first, "Scoring", unit=unit, shown=is_first()) as shown:

        def advance(more_rows: int, more_texts: int) -> None:
            nonlocal looked, own_rows, own_texts
            own_rows, own_texts, now = own_rows + more_rows, own_texts + more_texts, time.monotonic()
            if is_first() and now - looked >= 1:
                looked, reached = now, done()
                # What all processes did, if their rows have as many texts as this one's.
                all_rows = reached - first if known else own_rows
                speed = all_rows * own_texts / max(own_rows, 1) / (now - start)
                shown.reach(reached, f"{speed:.4g} texts/s")

        yield advance
