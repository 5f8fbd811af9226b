"""The batcher: parts of large requests, turns, cancelled requests, bounds."""

import threading

import pytest

from rs_rlhf import make_group
from rs_rlhf.errors import ScoreError
from rs_rlhf.scoring.baselines import LengthScorer
from rs_rlhf.scoring.serving.batching import Batcher, QueueFull


class Gated(LengthScorer):
    """Scores by length, one call for each `go`; notes the groups of its calls."""

    def __init__(self):
        self.go, self.begun, self.calls = threading.Semaphore(0), threading.Semaphore(0), []

    def score_groups(self, groups, *, on_error="raise", show_progress=None):
        self.calls.append(len(groups))
        self.begun.release()
        self.go.acquire()
        return super().score_groups(groups, on_error=on_error, show_progress=show_progress)


def groups_of(count, words=1):
    return [make_group("", ["a " * words])] * count


@pytest.fixture
def gated():
    scorer = Gated()
    yield scorer
    scorer.go.release(1000)


def test_a_large_request_is_scored_in_parts_between_which_others_have_their_turn(gated):
    batcher = Batcher(gated)
    first = batcher.submit(groups_of(600), [1] * 600)
    gated.begun.acquire()
    second = batcher.submit(groups_of(3, words=2), [1] * 3)
    gated.go.release(2)
    assert second.result(10) == [[2.0]] * 3 and not first.done()
    gated.go.release(10)
    assert first.result(10) == [[1.0]] * 600
    batcher.close()
    assert gated.calls[0] == 256 and sum(gated.calls) == 603


def test_parts_are_bounded_by_tokens_and_a_group_is_never_cut(gated):
    gated.go.release(100)
    batcher = Batcher(gated, merged_tokens=100)
    assert len(batcher.submit(groups_of(5), [60, 60, 500, 60, 60]).result(10)) == 5
    batcher.close()
    assert gated.calls == [2, 1, 2]


def test_a_cancelled_request_leaves_the_queue_and_frees_its_room(gated):
    batcher = Batcher(gated, size=2, max_tokens=1000)
    running = batcher.submit(groups_of(600), [1] * 600)
    gated.begun.acquire()
    waiting = batcher.submit(groups_of(2), [1, 1])
    with pytest.raises(QueueFull):
        batcher.submit(groups_of(1), [999])  # for its tokens
    other = batcher.submit(groups_of(2, words=3), [1, 1]) if waiting.cancel() else None
    assert running.cancel()
    gated.go.release(10)
    assert other.result(10) == [[3.0], [3.0]]
    batcher.close()
    assert gated.calls == [256, 2]


def test_more_than_fits_is_taken_when_nothing_waits(gated):
    gated.go.release(10)
    batcher = Batcher(gated, max_tokens=10)
    assert batcher.submit(groups_of(1), [50]).result(10) == [[1.0]]
    batcher.close()


class Broken(LengthScorer):
    """Gives no number for a text of two words, and fails on one of three."""

    def score_groups(self, groups, *, on_error="raise", show_progress=None):
        scores = super().score_groups(groups, on_error=on_error, show_progress=show_progress)
        if [3.0] in scores:
            raise RuntimeError("three")
        return [[float("nan")] if score == [2.0] else score for score in scores]


def test_an_error_is_that_of_its_group(capsys):
    batcher = Batcher(Broken())
    groups = [groups_of(1, words=n)[0] for n in (1, 2, 3, 4)]
    one, nan, failed, four = batcher.submit(groups, [1] * 4).result(10)
    assert (one, four) == ([1.0], [4.0])
    assert isinstance(nan, ScoreError) and isinstance(failed, RuntimeError)
    batcher.close()
