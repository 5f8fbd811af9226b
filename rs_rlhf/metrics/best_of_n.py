"""Accuracy of best-of-n and voting against n, estimated from one set of N sampled answers of each question.

The accuracy at n < N is the expectation over all subsets of n of the N answers, which is an unbiased estimate of what
n fresh samples give; taking the first n answers instead would throw most of what was sampled away. For a choice by
score, by chance and by an oracle the expectation is a closed form, as that of pass@k (Chen et al. 2021, arXiv
2107.03374). A vote has none, so its subsets are counted through, or drawn where there are many.

The weighted vote adds up exp(score) of equal answers: under the Bradley-Terry and Plackett-Luce losses that score
models are trained with, exp(score) is an answer's strength and only ratios of strengths mean anything, so the sum does
not depend on the zero of the scores. If all scores are equal, it is the majority vote.

Left out: estimates for n > N (they need a model of the tail).
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from statistics import fmean
from typing import Any

import numpy as np

from ..errors import OptionError
from .intervals import bootstrap_draws

SUBSETS = 200  # of a vote: more than this many are drawn, fewer are counted through
DIFFERENCES = (("score", "majority"), ("score", "random"))


def sizes_up_to(n: int) -> list[int]:
    """Returns 1, 2, 4, … up to n, and n itself.

    Example:
        >>> sizes_up_to(10)
        [1, 2, 4, 8, 10]
    """
    if n < 1:
        raise OptionError(f"n is {n}; it must be at least 1.")
    return [1 << k for k in range(n.bit_length()) if 1 << k < n] + [n]


def best_of(scores: Sequence[float], right: Sequence[float], sizes: Sequence[int]) -> list[float]:
    """Probability that the best-scored of n random answers out of N is right, exactly.

    Answers of equal score are taken with equal probability.

    Args:
        scores (sequence of `float`): N scores.
        right (sequence of `float`): N verdicts, 0 or 1.
        sizes (sequence of `int`): The n, each from 1 to N.

    Example:
        >>> best_of([3.0, 1.0, 2.0], [1, 0, 0], [1, 2, 3])
        [0.3333333333333333, 0.6666666666666666, 1.0]
    """
    levels = defaultdict(list)
    for score, verdict in zip(scores, right, strict=True):
        levels[score].append(verdict)
    chances = [0.0] * len(sizes)
    below = 0
    for score in sorted(levels):
        upto, share = below + len(levels[score]), fmean(levels[score])
        for k, n in enumerate(sizes):  # C(upto, n) - C(below, n) subsets have this score as their best
            chances[k] += share * (math.comb(upto, n) - math.comb(below, n)) / math.comb(len(scores), n)
        below = upto
    return chances


def oracle(right: Sequence[float], sizes: Sequence[int]) -> list[float]:
    """Probability that any of n random answers out of N is right: what no way of choosing can beat (pass@n).

    Args:
        right, sizes: As in [`best_of`].
    """
    return best_of(right, right, sizes)


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


def question_curves(
    answers: Sequence[str | None],
    right: Sequence[float],
    scores: Sequence[float],
    clip_scores: Sequence[float] | None,
    sizes: Sequence[int],
    *,
    subsets: int = SUBSETS,
    seed: int | Sequence[int] = 0,
) -> dict[str, list[float]]:
    """Returns for each way of choosing the probability of a right answer at each n, for one question.

    Args:
        answers, right, scores, sizes, subsets, seed: See [`vote`] and [`best_of`].
        clip_scores (sequence of `float`, *optional*): N CLIP scores.

    Returns:
        `dict`: `score`, `majority`, `weighted`, `clip` if there are such scores, `random`, `oracle`.
    """
    chance = fmean(right)
    curves = {
        "score": best_of(scores, right, sizes),
        "majority": vote(answers, right, sizes, subsets=subsets, seed=seed),
        "weighted": vote(answers, right, sizes, scores, subsets=subsets, seed=seed),
    }
    if clip_scores is not None:
        curves["clip"] = best_of(clip_scores, right, sizes)
    return curves | {"random": [chance] * len(sizes), "oracle": oracle(right, sizes)}


def curve_figures(
    runs: Sequence[Sequence[Mapping[str, Sequence[float]]]],
    sizes: Sequence[int],
    *,
    rounds: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Means over the questions, with 95% percentile bootstrap intervals (Efron 1979) over the questions.

    A question is drawn with all its values, so differences are paired; of several runs (seeds of the sampling) the
    mean over the runs is drawn, and `sd` is the standard deviation of the runs' own means.

    Args:
        runs (sequence of sequences of `dict`): For each run, for each question, what [`question_curves`] returns.
        sizes (sequence of `int`): The n of those curves.
        rounds (`int`): Bootstrap rounds.
        seed (`int`): Draws them.

    Returns:
        `dict`: `methods`, of each a list over n of `n`, `accuracy`, `interval` and `sd` (`None` of a single run), and
        `differences`, such as `score - majority`, of each a list over n of `n`, `difference` and `interval`.
    """
    names = list(runs[0][0])
    values = np.array([[[question[name] for name in names] for question in run] for run in runs])  # (R, Q, M, sizes)
    pairs = [pair for pair in DIFFERENCES if set(pair) <= set(names)]
    parts = [[names.index(a), names.index(b)] for a, b in pairs]
    questions = values.mean(0)
    paired = [questions[:, a] - questions[:, b] for a, b in parts]
    columns = np.concatenate([questions, *(one[:, None] for one in paired)], axis=1)  # (Q, M + pairs, sizes)
    low, high = _bootstrap(columns, rounds, seed)
    middle = columns.mean(0)
    spread = values.mean(1).std(0, ddof=1) if len(runs) > 1 else None

    def entries(m: int, kind: str) -> list[dict[str, Any]]:
        ends = [[float(low[m, k]), float(high[m, k])] for k in range(len(sizes))]
        return [{"n": n, "interval": ends[k], kind: float(middle[m, k])} for k, n in enumerate(sizes)]

    methods = {name: entries(m, "accuracy") for m, name in enumerate(names)}
    for m, of_sizes in enumerate(methods.values()):
        for k, entry in enumerate(of_sizes):
            entry["sd"] = None if spread is None else float(spread[m, k])
    differences = {f"{a} - {b}": entries(len(names) + m, "difference") for m, (a, b) in enumerate(pairs)}
    return {"methods": methods, "differences": differences}


def _bootstrap(columns: np.ndarray, rounds: int, seed: int) -> np.ndarray:
    """2.5% and 97.5% quantiles of the mean of resampled rows; `columns` is (Q, …)."""
    count = len(columns)
    flat = columns.reshape(count, -1)
    draws = bootstrap_draws(count, rounds, seed)
    means = [np.bincount(drawn, minlength=count) @ flat / count for drawn in draws]
    return np.quantile(means, [0.025, 0.975], axis=0).reshape(2, *columns.shape[1:])
