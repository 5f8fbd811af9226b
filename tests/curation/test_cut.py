"""Choosing what is kept, against the plain definition written out by hand."""

import doctest

import numpy as np
import pytest

from rs_rlhf.curation import cut as cuts
from rs_rlhf.curation.cut import (
    DROPPED,
    ERROR,
    KEPT,
    Samples,
    count_of,
    cut,
    first_texts,
    group_means,
    histogram,
    lower_duplicates,
    number_samples,
    sample_scores,
)

NAN = float("nan")


def floats(*values):
    return np.array(values, np.float32)


def test_examples():
    assert doctest.testmod(cuts).failed == 0


def test_texts_become_samples():
    starts = np.array([True, False, False, True, False, True])
    whole = np.array([False, False, False, True, True, False])
    samples = number_samples(starts, whole)
    assert samples.tolist() == [0, 1, 2, 3, 3, 4] and first_texts(samples).tolist() == [0, 1, 2, 3, 5]
    assert number_samples(starts, np.ones(6, bool)).tolist() == [0, 0, 0, 1, 1, 2]
    assert number_samples(np.zeros(0, bool), np.zeros(0, bool)).size == first_texts(np.zeros(0, int)).size == 0


def test_the_score_of_a_sample():
    samples = np.array([0, 0, 1, 2, 2, 3, 3])
    scores = floats(1, 4, 2, NAN, 3, NAN, NAN)
    loose, strict = np.zeros(7, bool), np.ones(7, bool)
    np.testing.assert_array_equal(sample_scores(samples, scores, loose), floats(2.5, 2, 3, NAN))
    np.testing.assert_array_equal(sample_scores(samples, scores, loose, "min"), floats(1, 2, 3, NAN))
    # A conversation without the score of one of its turns has none.
    np.testing.assert_array_equal(sample_scores(samples, scores, strict), floats(2.5, 2, NAN, NAN))
    np.testing.assert_array_equal(sample_scores(samples, scores, strict, "min"), floats(1, 2, NAN, NAN))
    infinite = sample_scores(np.array([0, 1]), floats(np.inf, 1), np.ones(2, bool))
    np.testing.assert_array_equal(infinite, floats(NAN, 1))
    one = floats(0.1, 1 / 3, 16777217)
    np.testing.assert_array_equal(sample_scores(np.arange(3), one, np.zeros(3, bool)), one)  # to the last bit
    assert sample_scores(np.zeros(0, int), floats(), np.zeros(0, bool)).size == 0
    with pytest.raises(ValueError, match="'max', expected one of mean, min"):
        sample_scores(samples, scores, loose, "max")


@pytest.mark.parametrize(
    "fraction, n, expected",
    [
        (0.3, 10, 3),
        (0.3, 5, 2),
        (0.5, 1, 1),
        (0.3, 1, 0),
        (0.29, 50, 15),
        (0.07, 50, 4),
        (1.0, 7, 7),
        (1e-5, 10**6, 10),
        (0.1, 0, 0),
        (0.35, 10, 4),
    ],
)
def test_a_fraction_is_rounded_halves_up_as_it_is_written(fraction, n, expected):
    assert count_of(fraction, n) == expected


def test_of_equal_scores_the_first_are_kept_and_counted():
    kept, [one] = cut(floats(2, 5, 2, 2, 1, 2), np.zeros(6, int), keep=0.5)
    assert kept.tolist() == [True, True, True, False, False, False]
    assert (one.candidates, one.kept, one.score, one.equal_kept, one.equal_dropped) == (6, 3, 2.0, 2, 2)


def test_every_stratum_keeps_its_own_part():
    scores = floats(9, 8, 7, 6, 1, 2, NAN, 3)
    kept, [a, b, c] = cut(scores, np.array([0, 0, 0, 0, 2, 2, 5, 2]), keep=0.5)
    assert np.flatnonzero(kept).tolist() == [0, 1, 5, 7]  # 1.5 of three samples are two
    assert (a.stratum, a.kept, a.score) == (0, 2, 8.0) and (b.stratum, b.kept, b.score) == (2, 2, 2.0)
    assert (c.stratum, c.candidates, c.kept, c.score) == (5, 0, 0, None)


def test_a_threshold_is_compared_as_scores_are_stored():
    scores = floats(0.7, 0.69, 0.1, NAN)
    kept, [one] = cut(scores, np.zeros(4, int), threshold=0.7)  # 0.7 as a float32 is below 0.7
    assert kept.tolist() == [True, False, False, False] and one.equal_dropped == 0
    assert cut(scores, np.zeros(4, int), threshold=2.0)[1][0].score is None
    assert cut(scores, np.zeros(4, int), threshold=-5.0)[0].tolist() == [True, True, True, False]


def test_as_many_of_each_stratum_as_asked_for():
    kept, _ = cut(floats(1, 2, 3, 4), np.array([0, 0, 1, 1]), counts=np.array([1, 5]))
    assert kept.tolist() == [False, True, True, True]


def test_the_best_of_every_image_comes_first():
    scores, images = floats(9, 8, 7, 3, 2, 6, NAN), np.array([0, 0, 0, 1, 1, 2, 3])
    kept, [one] = cut(scores, np.zeros(7, int), keep=0.5, images=images)
    assert np.flatnonzero(kept).tolist() == [0, 3, 5] and one.score == 3.0 and one.candidates == 6
    kept, [one] = cut(scores, np.zeros(7, int), keep=0.8, images=images)  # then the second best: 8 before 2
    assert np.flatnonzero(kept).tolist() == [0, 1, 3, 4, 5] and one.score == 2.0
    assert np.flatnonzero(cut(scores, np.zeros(7, int), keep=0.5)[0]).tolist() == [0, 1, 2]
    tied = floats(4, 4, 4, 5)  # of images 0, 1, 0, 1: the third is a second best, and no equal of the first
    kept, [one] = cut(tied, np.zeros(4, int), keep=0.5, images=np.array([0, 1, 0, 1]))
    assert kept.tolist() == [True, False, False, True] and (one.equal_kept, one.equal_dropped) == (1, 0)
    kept, cuts = cut(scores, np.array([0, 1, 0, 1, 0, 1, 0]), keep=0.5, images=np.zeros(7, int))
    assert np.flatnonzero(kept).tolist() == [0, 1, 2, 5] and [one.kept for one in cuts] == [2, 2]  # by stratum


def test_one_way_to_cut_must_be_given():
    for given in ({}, {"keep": 0.3, "threshold": 1.0}):
        with pytest.raises(ValueError, match="give one of"):
            cut(floats(1), np.zeros(1, int), **given)
    for fraction in (0.0, 1.5, -0.1, NAN):
        with pytest.raises(ValueError, match="expected more than 0 and at most 1"):
            cut(floats(1), np.zeros(1, int), keep=fraction)


@pytest.mark.parametrize("seed", range(20))
def test_cuts_are_what_sorting_by_hand_gives(seed):
    random = np.random.default_rng(seed)
    n = int(random.integers(1, 60))
    scores = random.integers(0, 8, n).astype(np.float32)
    scores[random.random(n) < 0.2] = NAN
    strata = random.integers(0, 4, n)
    fraction = float(random.choice([0.1, 0.3, 0.5, 0.75, 1.0]))
    expected = set()
    for stratum in set(strata.tolist()):
        own = [i for i in range(n) if strata[i] == stratum and scores[i] == scores[i]]
        own.sort(key=lambda i: -scores[i])  # stable, as the tie rule
        expected |= set(own[: int(fraction * len(own) + 0.5 + 1e-9)])
    kept, found = cut(scores, strata, keep=fraction)
    assert set(np.flatnonzero(kept).tolist()) == expected
    for one in found:
        own = scores[strata == one.stratum]
        assert one.candidates == np.isfinite(own).sum()
        if one.kept:
            equal = (scores == np.float32(one.score)) & (strata == one.stratum)
            assert (one.equal_kept, one.equal_dropped) == ((equal & kept).sum(), (equal & ~kept).sum())


def test_of_duplicates_the_best_stays():
    groups = np.array([3, 1, 3, 1, 2, 3])
    found = lower_duplicates(groups, floats(1, 5, 2, 5, 0, NAN))
    assert found.tolist() == [True, False, False, True, False, False]


def test_means_of_groups():
    np.testing.assert_array_equal(group_means(np.array([0, 0, 2, 2]), floats(1, 3, NAN, 5), 4), floats(2, NAN, 5, NAN))


def test_the_outermost_bins_hold_what_lies_beyond():
    assert histogram(floats(-9, 0, 0.4, 1.0, 7), 0.0, 1.0, 2).tolist() == [3, 2]
    values = np.random.default_rng(0).random(500).astype(np.float32)
    expected = np.histogram(values, 16, (0, 1))[0]
    assert histogram(values, 0.0, 1.0, 16).tolist() == expected.tolist()


def test_a_million_samples_take_seconds():
    import time

    random = np.random.default_rng(0)
    scores, strata = random.random(10**6, np.float32), random.integers(0, 50, 10**6)
    start = time.process_time()
    kept, found = cut(scores, strata, keep=0.3)
    assert time.process_time() - start < 20 and len(found) == 50
    assert abs(int(kept.sum()) - 300_000) <= 25


def test_strata_of_samples():
    column = np.array([0, 1])
    samples = Samples(
        floats(1, NAN),
        column,
        column,
        column,
        column,
        column,
        1 - column,
        ["a", "b"],
        ["x", "y"],
        np.array([KEPT, ERROR], np.int8),
    )
    assert samples.candidates().tolist() == [True, False] and DROPPED < KEPT
    assert samples.strata("none")[0].tolist() == [0, 0] and samples.strata("none")[1] == ["all"]
    assert samples.strata("source")[0].tolist() == [0, 1] and samples.strata("label")[1] == ["x", "y"]
    assert samples.strata("label")[0].tolist() == [1, 0]
