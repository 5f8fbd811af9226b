"""Dynamic batching of many clients' requests: one thread that owns the model scores what waits in a bounded queue.

The thread calls `score_groups` and nothing else, so that a served score is made as one in process is. A request that
finds the model idle is scored at once; under load the queue fills by itself, and merged requests fill the batches. A
large request is scored in parts, between which others have their turn, and not further once its future is cancelled.
"""

from __future__ import annotations

import math
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from ...data.group import Group
from ...errors import ScoreError
from ..base import GroupScorer

MERGED = 256  # completions that are scored together at most, unless one group has more
MERGED_TOKENS = 32_768  # tokens likewise
Result = list[float] | Exception


class QueueFull(Exception):
    """The queue holds as many requests or tokens as it may."""


@dataclass(eq=False)
class _Job:
    """One request's groups with their tokens, and the results of those that have been scored."""

    groups: Sequence[Group]
    tokens: Sequence[int]
    future: Future[list[Result]] = field(default_factory=Future)
    results: list[Result] = field(default_factory=list)
    taken: int = 0  # groups that are scored, or being scored


class Batcher:
    """Scores groups of many callers on one thread.

    `size` requests and `max_tokens` tokens may wait, or one request of more. At most `merged_tokens` tokens are scored
    together, or one group of more. `observe` gets the requests and groups of each batch.
    """

    def __init__(
        self,
        scorer: GroupScorer,
        size: int = 256,
        max_tokens: int = 4_000_000,
        merged_tokens: int = MERGED_TOKENS,
        observe: Callable[[int, int], None] = lambda *_: None,
    ) -> None:
        self.scorer, self.size, self.max_tokens, self.observe = scorer, size, max_tokens, observe
        self.merged_tokens = merged_tokens
        self._jobs: deque[_Job] = deque()
        self._begun: list[_Job] = []  # of which a part is being scored and some is left
        self._changed = threading.Condition()
        self._closing = False
        self.thread = threading.Thread(target=self._run, name="scoring", daemon=True)
        self.thread.start()

    def submit(self, groups: Sequence[Group], tokens: Sequence[int]) -> Future[list[Result]]:
        """Queues groups with their tokens (or raises QueueFull); the future has for each its scores or the exception
        that stopped it. Cancelling it takes them out of the queue.
        """
        job = _Job(groups, tokens)
        with self._changed:
            self._drop_cancelled()
            waiting = sum(sum(other.tokens[other.taken :]) for other in (*self._jobs, *self._begun))
            if len(self._jobs) >= self.size or waiting and waiting + sum(tokens) > self.max_tokens:
                raise QueueFull
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Lets the thread finish what waits, and ends it."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self.thread.join()

    def _drop_cancelled(self) -> None:
        self._jobs = deque(job for job in self._jobs if not job.future.cancelled())
        self._begun = [job for job in self._begun if not job.future.cancelled()]

    def _run(self) -> None:
        while True:
            with self._changed:
                self._jobs += self._begun
                self._changed.wait_for(lambda: self._jobs or self._closing)
                self._drop_cancelled()
                parts = self._parts()
            if parts:
                self._score(parts)
            elif self._closing:
                return

    def _parts(self) -> list[tuple[_Job, Sequence[Group]]]:
        """Takes the groups that are scored next; what is left of a request waits behind those come since."""
        parts: list[tuple[_Job, Sequence[Group]]] = []
        completions = tokens = 0
        self._begun = []
        while self._jobs and completions < MERGED and tokens < self.merged_tokens:
            job = self._jobs.popleft()
            first = job.taken
            while job.taken < len(job.groups) and completions < MERGED and tokens < self.merged_tokens:
                completions += len(job.groups[job.taken].completions)
                tokens += job.tokens[job.taken]
                job.taken += 1
            parts.append((job, job.groups[first : job.taken]))
            if job.taken < len(job.groups):
                self._begun.append(job)
        return parts

    def _score(self, parts: Sequence[tuple[_Job, Sequence[Group]]]) -> None:
        groups = [group for _, part in parts for group in part]
        results = [_finite(result, group) for result, group in zip(self._results(groups), groups, strict=True)]
        self.observe(len(parts), len(groups))
        start = 0
        for job, part in parts:
            job.results += results[start : start + len(part)]
            start += len(part)
            if len(job.results) == len(job.groups) and job.future.set_running_or_notify_cancel():
                job.future.set_result(job.results)

    def _results(self, groups: Sequence[Group]) -> list[Result]:
        try:
            return self.scorer.score_groups(groups, on_error="return", show_progress=False)
        except Exception as error:  # whatever one request brings about must not end the thread that serves all
            if len(groups) == 1:
                traceback.print_exc(file=sys.stderr)
                return [error]
        return [self._results([group])[0] for group in groups]  # nor fail the requests beside it


def _finite(result: Result, group: Group) -> Result:
    """Returns the scores, or an error if one is not a number: a reward of NaN or 0 would train on."""
    for k, score in enumerate([] if isinstance(result, Exception) else result):
        if not math.isfinite(score):
            detail = f"the score of completion {k} is {score}, not a finite number."
            return ScoreError(detail, where=group.where or "group")
    return result
