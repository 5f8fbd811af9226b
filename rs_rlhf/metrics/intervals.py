"""Confidence intervals and paired tests: Wilson, exact McNemar, and the percentile bootstrap.

A question is the unit that is drawn: questions about the same image are taken as independent, so intervals are
somewhat narrow if there are many of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import OptionError


def wilson_interval(right: int, n: int) -> tuple[float, float]:
    """Returns the 95% Wilson score interval of a proportion (Wilson 1927).

    Args:
        right (`int`): Successes.
        n (`int`): Trials; 0 gives (0, 1).

    Example:
        >>> [round(x, 3) for x in wilson_interval(71, 100)]
        [0.615, 0.79]
    """
    from scipy.stats import binomtest

    if n == 0:
        return 0.0, 1.0
    interval = binomtest(right, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def proportion(right: int, n: int) -> dict[str, Any]:
    """Returns `n`, the share `accuracy` of n that is right (`None` of nothing) and its 95% Wilson `interval`."""
    return {"n": n, "accuracy": right / n if n else None, "interval": list(wilson_interval(right, n))}


def mcnemar(b: int, c: int) -> float:
    """Returns McNemar's exact two-sided p-value (McNemar 1947; the binomial form).

    Args:
        b (`int`): Questions that only the first model has right.
        c (`int`): Questions that only the second model has right.

    Example:
        >>> round(mcnemar(1, 9), 6), mcnemar(0, 0)
        (0.021484, 1.0)
    """
    from scipy.stats import binomtest

    return float(binomtest(b, b + c).pvalue) if b + c else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrects p-values for their number (Holm 1979, the step-down method).

    Example:
        >>> holm([0.04, 0.01, 0.03])
        [0.06, 0.03, 0.06]
    """
    corrected = [0.0] * len(p_values)
    least = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = corrected[i] = max(least, min(1.0, (len(p_values) - rank) * p_values[i]))
    return corrected


def bootstrap_interval(
    values: Sequence[float], seed: int = 0, rounds: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of a mean (Efron 1979).

    Args:
        values (sequence of `float`): One value a question.
        seed (`int`): Seed of the draws.
        rounds (`int`): Draws of the whole sample, with replacement.
        level (`float`): Share of the drawn means that lie inside.

    Raises:
        OptionError: No values.
    """
    low, high = np.quantile(
        _drawn_means(np.asarray(values, dtype=float), seed, rounds), [(1 - level) / 2, (1 + level) / 2]
    )
    return float(low), float(high)


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], seed: int = 0, rounds: int = 10000
) -> tuple[float, tuple[float, float], float]:
    """Compares two models' values on the same questions.

    The p-value is that of the bootstrap around no difference: how often the mean of drawn differences, shifted to have
    mean 0, is at least as far from 0 as the one seen (Efron and Tibshirani 1993, section 16.4), two-sided; the sample
    seen counts as one of the draws, so that it is never 0.

    Args:
        a, b (sequences of `float`): Values in the same order.
        seed (`int`): Seed of the draws.
        rounds (`int`): Draws of the whole sample, with replacement.

    Returns:
        `tuple`: the mean of `b - a`, its 95% percentile interval `(low, high)`, and the p-value.

    Raises:
        OptionError: No values, or not as many of both.
    """
    if len(a) != len(b):
        raise OptionError(f"{len(a)} values of A and {len(b)} of B, expected as many; they must be paired.")
    differences = np.asarray(b, dtype=float) - np.asarray(a, dtype=float)
    means = _drawn_means(differences, seed, rounds)
    if not differences.any():
        return 0.0, (0.0, 0.0), 1.0
    seen = float(differences.mean())
    low, high = np.quantile(means, [0.025, 0.975])
    as_far = np.abs(means - seen) >= abs(seen) - 1e-12
    return seen, (float(low), float(high)), float((as_far.sum() + 1) / (rounds + 1))


def nested_bootstrap(
    values: Sequence[Sequence[Sequence[float]]], seed: int = 0, rounds: int = 10000
) -> tuple[float, tuple[float, float]]:
    """Returns the mean of an experiment that was repeated at two levels, and its 95% interval.

    A draw takes as many of the outer repetitions with replacement, of each as many of its inner ones, and as many
    questions, the same of all repetitions. Few repetitions would give too narrow an interval: their deviations are
    scaled by the root of n / (n - 1) first (the rescaling bootstrap, Rao and Wu 1988). What inner repetitions vary by
    is in the means of the outer ones too, so that the interval is rather wide than narrow.

    Args:
        values (M, R, N): For each outer repetition, such as a score model, and each inner one, such as the seed of a
            training with it, a value a question; differences of two arms for a comparison.
        seed (`int`): Seed of the draws.
        rounds (`int`): Draws.

    Raises:
        OptionError: There are fewer than two repetitions at a level, no questions, or not as many everywhere.

    Example:
        >>> mean, (low, high) = nested_bootstrap([[[0, 1], [1, 1]], [[1, 0], [1, 1]]])
        >>> mean, 0 <= low < mean < high
        (0.75, True)
    """
    try:
        table = np.asarray(values, dtype=float)
    except ValueError:
        table = np.zeros(0)
    if table.ndim != 3 or min(table.shape[:2]) < 2 or not table.shape[2]:
        sentence = "expected as many values of each repetition, and two repetitions at least at each of the two levels"
        raise OptionError(f"{sentence}; got the shape {table.shape}.")
    outer, inner, n = table.shape
    of_outer, whole = table.mean(1, keepdims=True), table.mean((0, 1), keepdims=True)
    within = (table - of_outer) * (inner / (inner - 1)) ** 0.5
    table = whole + (of_outer - whole) * (outer / (outer - 1)) ** 0.5 + within
    draw, means = np.random.default_rng(seed), []
    for _ in range(rounds):
        models = draw.integers(0, outer, (outer, 1))
        runs = draw.integers(0, inner, (outer, inner))
        chosen = table[models, runs].mean((0, 1))
        means.append(chosen[draw.integers(0, n, n)].mean())
    low, high = np.quantile(means, [0.025, 0.975])
    return float(whole.mean()), (float(low), float(high))


def bootstrap_draws(n: int, rounds: int, seed: int) -> Iterator[np.ndarray]:
    """Yields for each round the places `(n,)` of a sample of n drawn with replacement."""
    generator = np.random.default_rng(seed)
    for _ in range(rounds):
        yield generator.integers(0, n, n)


def _drawn_means(values: np.ndarray, seed: int, rounds: int) -> np.ndarray:
    """Means of samples drawn with replacement, `(rounds,)`."""
    if not len(values):
        raise OptionError("no values, expected at least one; an interval needs answers.")
    return np.array([values[drawn].mean() for drawn in bootstrap_draws(len(values), rounds, seed)])
