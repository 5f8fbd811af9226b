"""Accuracy of best-of-n and voting against n, estimated from one set of N sampled answers of each question.

Beside them stands the greedy answer, which costs one answer in place of n: training on choices that are no better than
it, or than a vote that needs no score model, has little to gain.

The accuracy at n < N is the expectation over all subsets of n of the N answers, which is an unbiased estimate of what
n fresh samples give; taking the first n answers instead would throw most of what was sampled away. For a choice by
score, by chance and by an oracle the expectation is a closed form, as that of pass@k (Chen et al. 2021, arXiv
2107.03374); votes are in `votes`.

Left out: estimates for n > N (they need a model of the tail).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from ..errors import OptionError
from .intervals import bootstrap_draws
from .votes import SUBSETS, Boxes, box_votes, vote

RIVALS = {  # what the score model's choice must be better than to be worth training on
    "greedy": "the greedy answer",
    "majority": "a majority vote",
    "consensus": "the box that the others agree with most",
    "median": "the median box",
}
SAME = 1e-9  # of shares that are equal but for rounding
DIFFERENCES = tuple(("score", name) for name in (*RIVALS, "random"))
ADVICE = (
    "Before you train on these scores, give the score model what it lacks: pairs from more images than the policy has "
    "seen (`rs-rlhf data pairs`), the policy's own mistakes as rejected answers (`rs-rlhf data sample-pairs`), or "
    "several score models in place of one (`--score_combine`); then compare again."
)


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


def question_curves(
    answers: Sequence[Any],
    right: Sequence[float],
    scores: Sequence[float],
    clip_scores: Sequence[float] | None,
    sizes: Sequence[int],
    *,
    greedy: float | None = None,
    boxes: Boxes | None = None,
    subsets: int = SUBSETS,
    seed: int | Sequence[int] = 0,
) -> dict[str, list[float]]:
    """Returns for each way of choosing the probability of a right answer at each n, for one question.

    Args:
        answers (sequence of `str` or lists of boxes, or `None`): N parsed answers.
        right, scores, sizes, subsets, seed: See [`vote`] and [`best_of`].
        clip_scores (sequence of `float`, *optional*): N CLIP scores.
        greedy (`float`, *optional*): Whether the greedy answer is right, which does not depend on n.
        boxes (list of boxes, *optional*): The right boxes, if the answers are boxes; see [`box_votes`].

    Returns:
        `dict`: `greedy` if it is known, `score`, then `majority` and `weighted` of texts, or `consensus` and `median`
        of boxes, `clip` if there are such scores, `random`, `oracle`.
    """
    chance = fmean(right)
    curves = {} if greedy is None else {"greedy": [greedy] * len(sizes)}
    curves["score"] = best_of(scores, right, sizes)
    if boxes is None:
        curves["majority"] = vote(answers, right, sizes, subsets=subsets, seed=seed)
        curves["weighted"] = vote(answers, right, sizes, scores, subsets=subsets, seed=seed)
    else:
        curves |= box_votes(answers, right, boxes, sizes, subsets=subsets, seed=seed)
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


def conclusions(figures: Mapping[str, Any]) -> list[str]:
    """Says in a sentence each whether the score model's choice among all N answers is better than the greedy answer,
    and than a vote, by the paired difference; and what to do if it is not.

    Args:
        figures (`dict`): From [`curve_figures`].
    """
    sentences, better = [], True
    for name, words in RIVALS.items():
        if (entries := figures["differences"].get(f"score - {name}")) is None:
            continue
        n, (low, high) = entries[-1]["n"], entries[-1]["interval"]
        verdict = (
            "is better than" if low > SAME else "is worse than" if high < -SAME else "is not shown to be better than"
        )
        better &= low > SAME
        own, other = (figures["methods"][method][-1]["accuracy"] for method in ("score", name))
        points = f"{100 * entries[-1]['difference']:+.1f} points, 95% interval {100 * low:+.1f} to {100 * high:+.1f}"
        sentences.append(
            f"The score model's choice among {n} answers {verdict} {words}: {own:.1%} against {other:.1%} ({points})."
        )
    return sentences if better else [*sentences, ADVICE]


def _bootstrap(columns: np.ndarray, rounds: int, seed: int) -> np.ndarray:
    """2.5% and 97.5% quantiles of the mean of resampled rows; `columns` is (Q, …)."""
    count = len(columns)
    flat = columns.reshape(count, -1)
    draws = bootstrap_draws(count, rounds, seed)
    means = [np.bincount(drawn, minlength=count) @ flat / count for drawn in draws]
    return np.quantile(means, [0.025, 0.975], axis=0).reshape(2, *columns.shape[1:])
