"""Dynamic batching of many clients' requests: one thread that owns the model scores what waits in a bounded queue.

The thread calls `score_groups` and nothing else, so that a served score is made as one in process is. A request that
finds the model idle is scored at once; under load the queue fills by itself, and merged requests fill the batches.
"""

from __future__ import annotations

import math
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from ..data.group import Group
from ..errors import ScoreError
from .base import GroupScorer

MERGED = 256  # completions that are scored together at most, unless one request has more
Result = list[float] | Exception
Job = tuple[Sequence[Group], "Future[list[Result]]"]


class QueueFull(Exception):
    """The queue holds as many requests as it may."""


class Batcher:
    """Scores groups of many callers on one thread; `size` requests may wait, `observe` gets each batch's sizes."""

    def __init__(
        self, scorer: GroupScorer, size: int = 256, observe: Callable[[int, int], None] = lambda *_: None
    ) -> None:
        self.scorer, self.observe = scorer, observe
        self._queue: queue.Queue[Job | None] = queue.Queue(size)
        self.thread = threading.Thread(target=self._run, name="scoring", daemon=True)
        self.thread.start()

    def submit(self, groups: Sequence[Group]) -> Future[list[Result]]:
        """Queues groups (or raises QueueFull); the future has for each its scores or the exception that stopped it."""
        future: Future[list[Result]] = Future()
        try:
            self._queue.put_nowait((groups, future))
        except queue.Full:
            raise QueueFull from None
        return future

    def close(self) -> None:
        """Lets the thread finish what waits, and ends it."""
        self._queue.put(None)
        self.thread.join()

    def _run(self) -> None:
        last = False
        while not last:
            entry = self._queue.get()
            jobs, count = [], 0
            while entry is not None:
                if entry[1].set_running_or_notify_cancel():
                    jobs.append(entry)
                    count += sum(len(group.completions) for group in entry[0])
                if count >= MERGED:
                    break
                try:
                    entry = self._queue.get_nowait()
                except queue.Empty:
                    break
            last = entry is None
            if jobs:
                self._score(jobs)

    def _score(self, jobs: Sequence[Job]) -> None:
        groups = [group for job, _ in jobs for group in job]
        results = [_finite(result, group) for result, group in zip(self._results(groups), groups, strict=True)]
        self.observe(len(jobs), len(groups))
        start = 0
        for job, future in jobs:
            future.set_result(results[start : start + len(job)])
            start += len(job)

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
