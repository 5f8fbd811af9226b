"""One process's part of `rs-rlhf score`: units that nobody else has, read, scored in one go, and written.

Left out: reading the next unit while one is scored (in a unit, threads read ahead; between two, little is waited for).
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

from ..data.group import first_line
from ..data.image_text_dataset import Unit
from ..errors import DataError, ImageError
from ..imagery.identity import encoded_hash, source_key
from ..imagery.sources import ImageSource
from ..runs.files import drop_leftovers
from ..runs.progress import progress
from .shards import SCHEMA, claimed, missing_units, reason, shard_path, write_shard

POLL_SECONDS = 0.5
FEWEST_ROWS = 100  # of fewer rows, a share of errors says little


def is_first() -> bool:
    """Whether this process speaks for all that a launcher has started."""
    return os.environ.get("RANK", "0") == "0"


@dataclass
class Work:
    """Scores the units that nobody else does.

    Args:
        source ([`ImageTexts`]): The input.
        manifest (`dict`): The plan of `folder`.
        folder (`Path`): Where the scores go.
        scorer: Has `score_groups`, as [`Scorer`].
        count_tokens (callable): Texts -> the number of tokens of each.
        num_workers (`int`): Threads that read images to hash them.
        max_error_fraction (`float`): Share of rows without a score at which this process stops.
    """

    source: Any
    manifest: Mapping[str, Any]
    folder: Path
    scorer: Any
    count_tokens: Callable[[Sequence[str]], list[int]]
    num_workers: int = 2
    max_error_fraction: float = 0.05
    rows: int = 0
    failed: int = 0
    reasons: Counter = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def run(self) -> None:
        """Goes round until every unit is done, by this process or another.

        Raises:
            DataError: Too many rows cannot be scored, the input has changed, or a shard cannot be written.
        """
        with claimed(self.folder, "summary", wait=True):
            if missing_units(self.manifest, self.folder):  # of a shard that was deleted to be scored again
                (self.folder / "summary.json").unlink(missing_ok=True)
        told = False
        with _progress(self.manifest, self.folder) as advance:
            while missing := missing_units(self.manifest, self.folder):
                busy = 0
                for number in missing:
                    shard = shard_path(self.folder, self.manifest, number)
                    with claimed(self.folder, f"{number:05d}") as free:
                        busy += not free
                        if free and not shard.exists():  # another may have finished it since we looked
                            drop_leftovers(shard)
                            advance(*self._score(number, shard, last=number == missing[-1] and not busy))
                if busy == len(missing):
                    if is_first() and not told:
                        told = True
                        print(f"waiting for {busy} shards that other processes score", file=sys.stderr, flush=True)
                    time.sleep(POLL_SECONDS)  # a lock says nothing when it is freed

    def _score(self, number: int, shard: Path, last: bool) -> tuple[int, int]:
        """Scores one unit and writes its shard; returns its numbers of rows and texts."""
        start = time.time()
        count = 0
        lines: list[dict[str, Any]] = []
        for rows in self._read(number):
            count += len(rows)
            lines += score_rows(rows, self.scorer, self.count_tokens, self.num_workers)
        self._count_errors(count, lines, last)
        columns = {name: [line[name] for line in lines] for name in SCHEMA.names}
        texts = sum(line["text"] is not None for line in lines)
        write_shard(shard, columns, {"rows": count, "texts": texts, "start": start, "stop": time.time()})
        return count, texts

    def _read(self, number: int) -> Iterator[list[Any]]:
        """Yields the rows of a unit: all at once, or of a whole file whose rows are not counted as many at a time."""
        unit = Unit(**self.manifest["units"][number])
        rows = islice(self.source.read(unit), unit.rows if unit.rows >= 0 else None)
        count = 0
        while some := list(islice(rows, self.manifest["rows_per_shard"])):
            count += len(some)
            yield some
        if unit.rows not in (-1, count):
            raise DataError(
                f"row {unit.first + count} and those after it are gone; the input has changed since the "
                "run was planned: score anew to another --output",
                where=unit.file,
            )

    def _count_errors(self, rows: int, lines: Sequence[Mapping[str, Any]], last: bool) -> None:
        """Stops when too many rows have failed, before their shard is written: mended, they will be scored."""
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
        told = "; ".join(f"{count} as {self.examples[kind]}" for kind, count in self.reasons.most_common(3))
        raise DataError(
            f"{self.failed} of {self.rows} rows cannot be scored, more than --max_error_fraction "
            f"{self.max_error_fraction:g}: {told}. Finished shards are kept: mend the cause and run the same command "
            "again, or raise --max_error_fraction",
            where=str(self.source.name),
        )


def score_rows(
    rows: Sequence[Any],
    scorer: Any,
    count_tokens: Callable[[Sequence[str]], list[int]],
    num_workers: int = 2,
) -> list[dict[str, Any]]:
    """Scores image-text rows in one go.

    Args:
        rows (sequence of [`ImageTextRow`]): Rows; those with an error come out as one line.
        scorer, count_tokens, num_workers: As in [`Work`].

    Returns:
        `list[dict]`: The lines of a shard that they give, in order, with the columns of [`SCHEMA`].
    """
    groups = [replace(group, where=row.row_id) for row in rows for group in row.groups]
    shown = None if is_first() else False
    with hashing(rows, num_workers) as hashes:
        results = iter(_memory_told(scorer.score_groups, groups, show_progress=shown))
        lines = [line for row in rows for line in _lines(row, results, hashes(row))]
    tokens = iter(count_tokens([line["text"] for line in lines if line["text"] is not None]))
    return [{**line, "tokens": None if line["text"] is None else next(tokens)} for line in lines]


def _lines(row: Any, results: Iterator[Any], image: str | DataError) -> list[dict[str, Any]]:
    """The lines of a shard that a row gives, without `tokens`; takes the row's results from those of all."""
    own = {
        "row_id": row.row_id,
        "image_hash": image if isinstance(image, str) else "",
        "whole": row.whole,
        "source": _storable(row.source),
        "label": _storable(row.label),
    }
    if row.error is not None:
        return [{**own, "text_index": 0, "score": None, "error": _storable(row.error.detail), "text": None}]
    scored: list[tuple[float | None, str | None]] = []
    for group, result in zip(row.groups, results, strict=False):
        error = result if isinstance(result, Exception) else None if isinstance(image, str) else image
        if error is not None:
            scored += [(None, _storable(str(error).removeprefix(f"{row.row_id}: ")))] * len(group.completions)
        else:
            scored += [
                (one, None) if math.isfinite(one) else (None, f"the score is {one}, not a finite number")
                for one in result
            ]
    return [
        {**own, "text_index": k, "score": score, "error": error, "text": text}
        for k, (text, (score, error)) in enumerate(zip(row.texts, scored, strict=True))
    ]


def _storable(text: str) -> str:
    """Returns a text with question marks for what a file holds that is not UTF-8."""
    return text.encode(errors="replace").decode()


@contextmanager
def hashing(rows: Sequence[Any], num_workers: int) -> Iterator[Callable[[Any], str | DataError]]:
    """Hashes the images of rows in threads; gives a function from a row to the hash of its images, `""` for none.

    Of one image it is the sha256 of its encoded bytes, of several that of their hashes. An image that is not there
    gives an error in its place.
    """
    pool = ThreadPoolExecutor(max(1, num_workers), thread_name_prefix="hash")
    try:
        jobs: dict[Any, Any] = {}
        for row in rows:
            for image in row.images:
                if source_key(image) not in jobs:
                    jobs[source_key(image)] = pool.submit(_image_hash, image)

        def of_row(row: Any) -> str | DataError:
            hashes = [jobs[source_key(image)].result() for image in row.images]
            wrong = next((one for one in hashes if isinstance(one, DataError)), None)
            if wrong is not None or len(hashes) < 2:
                return wrong or "".join(hashes)
            return hashlib.sha256("".join(hashes).encode()).hexdigest()

        yield of_row
    finally:
        pool.shutdown(cancel_futures=True)


def _image_hash(image: ImageSource) -> str | DataError:
    """The SHA-256 of an image's encoded bytes, in hex; an error if it cannot be read."""
    try:
        return encoded_hash(image)
    except ImageError as error:
        return DataError(error.detail)


def _memory_told(score_groups: Callable[..., list[Any]], groups: Sequence[Any], **options: Any) -> list[Any]:
    try:
        return score_groups(groups, on_error="return", **options)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        raise DataError(
            f"out of memory ({first_line(error)}); run the same command with a smaller --token_budget, it goes on"
        ) from error


@contextmanager
def _progress(manifest: Mapping[str, Any], folder: Path) -> Iterator[Callable[[int, int], None]]:
    """Gives a function that is told the rows and texts of each unit of this process, and shows how far all are.

    The rows of all processes are counted from their shards.
    """
    rows = [unit["rows"] for unit in manifest["units"]]
    known = min(rows) >= 0
    sizes, unit = (rows, "row") if known else ([1] * len(rows), "shard")
    total = sum(sizes)

    def done() -> int:
        return total - sum(sizes[i] for i in missing_units(manifest, folder))

    first, begin = done(), time.monotonic()
    looked = begin
    own_rows = own_texts = 0
    if is_first():
        print(f"scoring {total} {unit}s in {len(rows)} shards, {first} {unit}s done -> {folder}", file=sys.stderr)
    with progress(total, first, "Scoring", unit=unit, shown=is_first()) as bar:

        def advance(more_rows: int, more_texts: int) -> None:
            nonlocal looked, own_rows, own_texts
            own_rows, own_texts, now = own_rows + more_rows, own_texts + more_texts, time.monotonic()
            if not is_first() or now - looked < 1:
                return
            looked, there = now, done()
            # What all processes did, if their rows have as many texts as this one's.
            speed = (there - first if known else own_rows) * own_texts / max(own_rows, 1) / (now - begin)
            bar.reach(there, f"{speed:.4g} texts/s")

        yield advance
