"""Intervals and paired tests: known cases, and checks against scipy."""

import random
import time

import pytest

from rs_rlhf.errors import OptionError
from rs_rlhf.metrics.intervals import bootstrap_interval, mcnemar, nested_bootstrap, paired_bootstrap, wilson_interval


def test_wilson_interval_of_a_known_case():
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson_interval(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)


def test_bootstrap_interval_is_that_of_scipy():
    import numpy as np
    from scipy import stats

    values = np.random.default_rng(1).gamma(2, size=300)
    low, high = bootstrap_interval(values, rounds=4000)
    expected = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=2).confidence_interval
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.02)
    assert low < values.mean() < high
    narrow = bootstrap_interval(values, rounds=4000, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_bootstrap_interval_is_set_by_the_seed_alone():
    values = [0.1, 0.9, 0.4, 0.4, 0.7]
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)
    assert bootstrap_interval([1, 1, 1]) == (1.0, 1.0)
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval([])


def test_mcnemar_is_the_exact_binomial():
    from scipy.stats import binomtest

    for b, c in [(0, 1), (1, 9), (5, 5), (12, 3), (40, 60), (480, 519), (480, 521), (1500, 1300), (3, 2000)]:
        assert mcnemar(b, c) == pytest.approx(binomtest(b, b + c).pvalue, rel=1e-9) == mcnemar(c, b)
    start = time.perf_counter()
    assert mcnemar(100_000, 101_000) == pytest.approx(binomtest(100_000, 201_000).pvalue, rel=1e-7)
    assert time.perf_counter() - start < 2
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(0, 5) == 2 / 32


def test_paired_bootstrap_mirrors_and_sees_a_difference():
    draw = random.Random(0)
    a = [draw.random() for _ in range(200)]
    b = [x + 0.05 + 0.1 * draw.random() for x in a]
    difference, (low, high), p = paired_bootstrap(a, b, 0, 2000)
    assert difference == pytest.approx(sum(b) / 200 - sum(a) / 200)
    assert 0.09 < low < difference < high < 0.11 and p == pytest.approx(1 / 2001)
    back, (back_low, back_high), back_p = paired_bootstrap(b, a, 0, 2000)
    assert (back, back_low, back_high, back_p) == pytest.approx((-difference, -high, -low, p))
    assert paired_bootstrap(a, a) == (0.0, (0.0, 0.0), 1.0)
    with pytest.raises(ValueError, match="200 values of A and 1 of B"):
        paired_bootstrap(a, [1.0])


def test_paired_bootstrap_seldom_sees_a_difference_that_is_not_there():
    import numpy as np

    random = np.random.default_rng(0)
    p = [paired_bootstrap(random.random(60), random.random(60), seed, 400)[2] for seed in range(200)]
    assert 0.01 <= np.mean(np.array(p) <= 0.05) <= 0.10
    assert 0.40 <= np.mean(np.array(p) <= 0.5) <= 0.60


def test_nested_bootstrap_covers_the_truth_where_one_over_questions_does_not():
    """Score models that differ by more than chance over questions: 3 of them, 2 trainings each."""
    import numpy as np

    draw, inside = np.random.default_rng(0), [0, 0]
    for trial in range(120):
        models, runs = draw.normal(0, 0.03, (3, 1, 1)), draw.normal(0, 0.01, (3, 2, 1))
        values = models + runs + draw.normal(0, 0.2, (1, 1, 400)) + draw.normal(0, 0.1, (3, 2, 400))
        mean, (low, high) = nested_bootstrap(values, trial, 400)
        assert mean == pytest.approx(values.mean()) and low < mean < high
        narrow = bootstrap_interval(values.mean((0, 1)), trial, 400)
        inside[0] += low <= 0 <= high
        inside[1] += narrow[0] <= 0 <= narrow[1]
    assert inside[0] >= 0.9 * 120 and inside[1] < 0.8 * 120


def test_nested_bootstrap_of_repetitions_that_agree_is_that_of_questions():
    draw = random.Random(1)
    one = [draw.random() for _ in range(200)]
    mean, interval = nested_bootstrap([[one] * 2] * 3, 3, 4000)
    assert mean == pytest.approx(sum(one) / 200)
    assert interval == pytest.approx(bootstrap_interval(one, 4, 4000), abs=0.004)
    assert nested_bootstrap([[one] * 2] * 3, 3, 50) == nested_bootstrap([[one] * 2] * 3, 3, 50)
    for wrong in ([[one, one]], [[one], [one]], [[one, one], [one, one[:5]]], [[[], []], [[], []]]):
        with pytest.raises(OptionError, match="two repetitions"):
            nested_bootstrap(wrong)
