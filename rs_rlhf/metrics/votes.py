"""Votes among sampled answers: a majority, weighted by scores or not, and for boxes the median and the most agreed on.

A vote among n of N answers has no closed form for its accuracy, so subsets of n are counted through, or drawn if there
are many.

The weighted vote adds up exp(score) of equal answers: under the Bradley-Terry and Plackett-Luce losses that score
models are trained with, exp(score) is an answer's strength and only ratios of strengths mean anything, so the sum does
not depend on the zero of the scores. If all scores are equal, it is the majority vote.

Left out: fusing boxes by their scores (scores of a score model are no confidences).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import fmean

import numpy as np

from .box_forms import Box
from .boxes import IOU_RIGHT, paired_ious, pairing

Boxes = Sequence[Box]
SUBSETS = 200  # of a vote: more than this many are drawn, fewer are counted through


def vote(
    answers: Sequence[str | None],
    right: Sequence[float],
    sizes: Sequence[int],
    scores: Sequence[float] | None = None,
    *,
    subsets: int = SUBSETS,
    seed: int | Sequence[int] = 0,
) -> list[float]:
    """Probability that a vote among n random answers out of N is right; ties are shared equally.

    An answer that could not be parsed has no vote; if there is none at all, the vote is wrong.

    Args:
        answers (sequence of `str` or `None`): N parsed answers; equal ones vote together.
        right, sizes: As in [`best_of`].
        scores (sequence of `float`, *optional*): Votes weigh exp(score), see above; by default 1.
        subsets (`int`): So many are drawn if there are more; otherwise, as at n = 1 and n = N, the value is exact.
        seed (`int` or sequence of `int`): Draws them.
    """
    keys = list(dict.fromkeys(answer for answer in answers if answer is not None))
    if not keys:
        return [0.0] * len(sizes)
    ballots = np.array([[float(answer == key) for key in keys] for answer in answers])  # (N, K)
    share = (ballots * np.asarray(right, dtype=float)[:, None]).sum(0) / ballots.sum(0)
    if scores is not None:
        shifted = np.asarray(scores, dtype=float) - max(scores)
        ballots *= np.exp(np.maximum(shifted, -600))[:, None]  # above what exp makes zero, so that every vote counts
    chances = []
    seeds = (seed,) if isinstance(seed, int) else tuple(seed)
    for n in sizes:
        votes = _subsets(len(answers), n, subsets, seeds) @ ballots  # (subsets, K)
        most = votes.max(axis=1, keepdims=True)
        won = (votes >= most * (1 - 1e-9)) & (most > 0)
        chances.append(float(((won * share).sum(1) / np.maximum(won.sum(1), 1)).mean()))
    return chances


def ballot(answers: Sequence[str | None], scores: Sequence[float] | None = None) -> dict[str, float]:
    """Returns the share of the votes that each distinct answer has, the largest first; see [`vote`].

    Args:
        answers (sequence of `str` or `None`): Parsed answers; equal ones vote together, `None` has no vote.
        scores (sequence of `float`, *optional*): Votes weigh exp(score); by default 1.

    Example:
        >>> ballot(["river", "port", "river", None])
        {'river': 0.6666666666666666, 'port': 0.3333333333333333}
    """
    weights = [0.0] * len(answers) if scores is None else scores
    cast = [(answer, weight) for answer, weight in zip(answers, weights, strict=True) if answer is not None]
    most = max((weight for _, weight in cast), default=0.0)
    votes: dict[str, float] = {}
    for answer, weight in cast:
        votes[answer] = votes.get(answer, 0.0) + math.exp(weight - most)
    total = sum(votes.values())
    return {answer: votes[answer] / total for answer in sorted(votes, key=lambda answer: -votes[answer])}


def box_votes(
    answers: Sequence[Boxes | None],
    right: Sequence[float],
    solution: Boxes,
    sizes: Sequence[int],
    *,
    subsets: int = SUBSETS,
    seed: int | Sequence[int] = 0,
) -> dict[str, list[float]]:
    """Probability that the boxes which n random answers out of N agree on are right.

    `consensus` is the answer whose boxes have the greatest total IoU with those of the n answers; ties are shared
    equally. `median` are the boxes of the coordinates' medians, over the answers with as many boxes as that one;
    several boxes of an answer are told apart by their pairing with the consensus of all N. An answer that cannot be
    read has no vote; if there is none at all, both are wrong.

    Args:
        answers (sequence of lists of boxes, or `None`): N answers, in the units of the solution.
        right (sequence of `float`): N verdicts: whether every box of the solution has an IoU of at least 0.5.
        solution (list of boxes): The right boxes.
        sizes, subsets, seed: As in [`vote`].
    """
    read = np.array([bool(answer) for answer in answers])
    likeness = _likeness(answers)
    alike = [i for i, answer in enumerate(answers) if answer and len(answer) == len(solution)]
    boxes = _in_one_order([answers[i] or [] for i in alike], likeness[np.ix_(alike, alike)])
    seeds = (seed,) if isinstance(seed, int) else tuple(seed)
    chances: dict[str, list[float]] = {"consensus": [], "median": []}
    for n in sizes:
        chosen = _subsets(len(answers), n, subsets, seeds)
        support = np.where((chosen > 0) & read, chosen @ likeness, -1.0)  # (subsets, N)
        most = support.max(axis=1, keepdims=True)
        won = (support >= most - 1e-9) & (most > 0)
        share = won / np.maximum(won.sum(axis=1, keepdims=True), 1)
        chances["consensus"].append(float((share @ np.asarray(right, dtype=float)).mean()))
        weight = share[:, alike].sum(axis=1)  # a median with another number of boxes is wrong
        kept = weight > 0
        hits = [
            all(iou >= IOU_RIGHT for iou in paired_ious(median.tolist(), solution))
            for median in _medians(boxes, chosen[kept][:, alike] > 0)
        ]
        chances["median"].append(float((weight[kept] * hits).sum() / len(chosen)))
    return chances


def _likeness(answers: Sequence[Boxes | None]) -> np.ndarray:
    """Mean IoU of the paired boxes of any two answers, (N, N); 0 if they have not as many."""
    table = np.diag([float(bool(answer)) for answer in answers])
    for (i, one), (j, other) in itertools.combinations(enumerate(answers), 2):
        if one and other and len(one) == len(other):
            table[i, j] = table[j, i] = fmean(paired_ious(one, other))
    return table


def _in_one_order(answers: Sequence[Boxes], likeness: np.ndarray) -> np.ndarray:
    """Boxes of answers with equally many, (M, K, 4), in the order of the answer that is most like the others."""
    if not answers:
        return np.zeros((0, 1, 4))
    first = answers[int(likeness.sum(axis=0).argmax())]
    return np.array([[answer[place] for place in pairing(answer, first)] for answer in answers], dtype=float)


def _medians(boxes: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Medians of the coordinates over the chosen answers: (M, K, 4) and (subsets, M) -> (subsets, K, 4)."""
    ordered = np.sort(np.where(chosen[:, :, None, None], boxes, np.inf), axis=1)
    count, rows = chosen.sum(axis=1), np.arange(len(chosen))
    return (ordered[rows, (count - 1) // 2] + ordered[rows, count // 2]) / 2


@lru_cache(maxsize=64)  # a question's votes share them
def _subsets(total: int, n: int, most: int, seed: tuple[int, ...]) -> np.ndarray:
    """Array (subsets, total) of 0 and 1, each row with n ones."""
    if math.comb(total, n) <= most:
        places = np.array(list(itertools.combinations(range(total), n)))
    else:
        keys = np.random.default_rng(seed).random((most, total))
        places = keys.argpartition(n - 1, axis=1)[:, :n]
    chosen = np.zeros((len(places), total))
    np.put_along_axis(chosen, places, 1.0, axis=1)
    return chosen
