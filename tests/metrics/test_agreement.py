"""Agreement of annotators: counted by hand, and against a formula written out another way."""

import numpy as np
import pytest

from rs_rlhf.metrics.agreement import annotator_agreement, cohen_kappa, score_agreement


def test_kappa_of_cohens_own_kind_of_table():
    # 20 a/a, 5 a/b, 10 b/a, 15 b/b: agreement 0.7, by chance 0.5.
    first = ["a"] * 25 + ["b"] * 25
    second = ["a"] * 20 + ["b"] * 5 + ["a"] * 10 + ["b"] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    assert cohen_kappa(second, first) == pytest.approx(0.4)


def test_kappa_is_that_of_the_confusion_matrix():
    draws = np.random.default_rng(0).integers(0, 4, (2, 200))
    draws[1, :120] = draws[0, :120]
    table = np.zeros((4, 4))
    np.add.at(table, tuple(draws), 1)
    table /= table.sum()
    chance = (table.sum(0) * table.sum(1)).sum()
    expected = (np.trace(table) - chance) / (1 - chance)
    assert cohen_kappa([*map(str, draws[0])], [*map(str, draws[1])]) == pytest.approx(expected)


def test_where_kappa_is_not_defined():
    assert cohen_kappa([], []) is None and cohen_kappa(["a", "a"], ["a", "a"]) is None
    assert cohen_kappa(["a", "b"], ["a", "b"]) == 1 and cohen_kappa(["a", "b"], ["b", "a"]) == -1
    assert cohen_kappa(["a", "a"], ["b", "b"]) == 0


def test_only_shared_items_are_compared():
    choices = {"x": {"1": "a", "2": "b", "3": "tie"}, "y": {"3": "tie", "2": "a", "4": "b"}, "z": {"9": "a"}}
    pairs = {tuple(one["annotators"]): one for one in annotator_agreement(choices)}
    assert (pairs["x", "y"]["n"], pairs["x", "y"]["agree"]) == (2, 0.5)
    assert pairs["x", "z"] == {"annotators": ["x", "z"], "n": 0, "agree": None, "kappa": None}


def test_a_score_model_is_compared_on_decided_pairs_alone():
    choices = {"1": "a", "2": "b", "3": "tie", "4": "both_bad", "5": "a", "6": "b", "7": "a"}
    found = score_agreement(choices, {"1": 0.5, "2": 0.5, "3": 9.0, "4": 9.0, "5": 0.0, "6": -1.0})
    assert (found["n"], found["accuracy"]) == (4, 0.5)  # 5 is equal, 7 has no score
    assert score_agreement({}, {})["accuracy"] is None
