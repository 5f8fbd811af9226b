"""Votes among answers and among boxes: equal to counting all subsets through, whatever the order and the unit."""

import itertools
import math
import random
import statistics

import pytest

from rs_rlhf.metrics.best_of_n import question_curves
from rs_rlhf.metrics.boxes import paired_ious
from rs_rlhf.metrics.votes import ballot, box_votes, vote

SIZES = [1, 2, 3, 4, 5]
TRUTH = [(10.0, 10.0, 50.0, 50.0)]
PAIR = [(10.0, 10.0, 50.0, 50.0), (60.0, 60.0, 90.0, 95.0)]


def test_votes_are_exact_at_the_end_and_near_the_truth_between():
    answers = ["a"] * 6 + ["b"] * 6 + ["c"] * 4
    right = [float(one == "a") for one in answers]
    drawn = vote(answers, right, [4, 8, 16], seed=1)
    assert drawn[2] == 0.5 and drawn == vote(answers, right, [4, 8, 16], seed=1)
    assert drawn[:2] != vote(answers, right, [4, 8], seed=2)
    exact = vote(answers, right, [4, 8], subsets=20_000)  # C(16, 8) = 12,870: all of them
    assert drawn[:2] == pytest.approx(exact, abs=0.1)
    assert vote([None] * 3, [0, 0, 0], [1, 3]) == [0.0, 0.0]


def test_weights_are_the_strengths_of_answers():
    answers, right = ["a", "a", "b"], [0.0, 0.0, 1.0]
    assert vote(answers, right, [3]) == [0.0]
    assert vote(answers, right, [3], [0.0, 0.0, 0.69]) == [0.0]  # exp(0.69) < 2 < exp(0.7)
    assert vote(answers, right, [3], [0.0, 0.0, 0.70]) == [1.0]
    assert vote(answers, right, [3], [900.0, 900.0, 900.7]) == [1.0]  # the zero of the scores does not matter
    assert vote(answers, right, [1, 3], [0.0, 0.0, -5000.0]) == [pytest.approx(1 / 3), 0.0]


def shaken(boxes, rng, by):
    return [tuple(side + rng.gauss(0, by) for side in box) for box in boxes]


def verdicts(answers, truth):
    return [float(bool(own) and len(own) == len(truth) and min(paired_ious(own, truth)) >= 0.5) for own in answers]


def by_hand(answers, truth, subset):
    """Whether the consensus, and the median of the answers with as many boxes, are right in one subset."""
    right = verdicts(answers, truth)
    read = [i for i in subset if answers[i]]
    if not read:
        return 0.0, 0.0

    def alike(i, j):
        own, other = answers[i], answers[j]
        return statistics.mean(paired_ious(own, other)) if len(own) == len(other) else 0.0

    support = {i: sum(1.0 if i == j else alike(i, j) for j in read) for i in read}
    top = [i for i in read if support[i] > max(support.values()) - 1e-9]
    medians = []
    for best in top:
        same = [answers[i] for i in read if len(answers[i]) == len(answers[best])]
        sides = [[statistics.median(own[k][side] for own in same) for side in range(4)] for k in range(len(same[0]))]
        medians.append(verdicts([sides], truth)[0])
    return sum(right[i] for i in top) / len(top), sum(medians) / len(top)


@pytest.mark.parametrize("truth", [TRUTH, PAIR], ids=["one box", "two boxes"])
def test_votes_of_boxes_are_the_mean_over_all_subsets(truth):
    rng = random.Random(3)
    answers = [shaken(truth, rng, 9) for _ in range(3)] + [None, shaken([*truth, (0, 0, 9, 9)], rng, 1)]
    right = verdicts(answers, truth)
    assert 0 < sum(right) < 3, "nothing to choose between"
    found = box_votes(answers, right, truth, SIZES)
    for k, n in enumerate(SIZES):
        subsets = list(itertools.combinations(range(5), n))
        hand = [by_hand(answers, truth, subset) for subset in subsets]
        assert found["consensus"][k] == pytest.approx(sum(consensus for consensus, _ in hand) / len(hand)), n
        assert found["median"][k] == pytest.approx(sum(median for _, median in hand) / len(hand)), n
    assert found["consensus"][0] == found["median"][0] == pytest.approx(sum(right) / 5)


def test_a_median_can_be_right_where_no_answer_is():
    answers = [[(10.0, 10.0, 95.0, 50.0)], [(10.0, 10.0, 50.0, 95.0)], [(-35.0, 10.0, 50.0, 50.0)]]
    right = verdicts(answers, TRUTH)
    found = box_votes(answers, right, TRUTH, [3])
    assert right == [0, 0, 0] and found == {"consensus": [0.0], "median": [1.0]}


def test_neither_order_nor_unit_nor_the_names_of_several_boxes_matter():
    rng = random.Random(2)
    answers = [shaken(PAIR, rng, 7) for _ in range(6)]
    right = verdicts(answers, PAIR)
    found = box_votes(answers, right, PAIR, [1, 3, 6])
    assert 0 < found["median"][-1] + found["consensus"][1] < 2
    turned = [own[::-1] if i % 2 else own for i, own in enumerate(answers)]
    assert box_votes(turned, right, PAIR, [1, 3, 6]) == found
    order = [3, 1, 5, 0, 2, 4]
    mixed = box_votes([answers[i] for i in order], [right[i] for i in order], PAIR[::-1], [1, 3, 6])
    scaled = [[tuple(8 * side for side in box) for box in own] for own in answers]
    larger = box_votes(scaled, right, [tuple(8 * side for side in box) for box in PAIR], [1, 3, 6])
    for name, values in found.items():
        assert mixed[name] == pytest.approx(values) and larger[name] == pytest.approx(values)


def test_answers_without_boxes_have_no_vote():
    answers, solution = [None, None, [(10.0, 10.0, 50.0, 50.0)]], TRUTH
    assert box_votes(answers, [0, 0, 1], solution, [3]) == {"consensus": [1.0], "median": [1.0]}
    assert box_votes([None, None], [0, 0], solution, [1, 2]) == {"consensus": [0.0] * 2, "median": [0.0] * 2}
    line = [(10.0, 10.0, 10.0, 50.0)]  # without area: alike to nothing but itself
    assert box_votes([line, line], [0, 0], solution, [2]) == {"consensus": [0.0], "median": [0.0]}
    assert all(map(math.isfinite, box_votes([line, None], [0, 0], PAIR, [1, 2])["median"]))


def test_curves_of_boxes_have_votes_of_boxes():
    answers = [[(10.0, 10.0, 50.0, 50.0)], [(0.0, 0.0, 9.0, 9.0)], None]
    curves = question_curves(answers, [1, 0, 0], [0.1, 0.9, 0.5], None, [1, 3], greedy=1.0, boxes=TRUTH)
    assert list(curves) == ["greedy", "score", "consensus", "median", "random", "oracle"]
    assert curves["score"] == pytest.approx([1 / 3, 0]) and curves["consensus"] == pytest.approx([1 / 3, 0.5])


def test_a_ballot_adds_up_votes_and_weights():
    answers = ["river", "port", None, "river", "port", "lake"]
    assert ballot(answers) == pytest.approx({"river": 0.4, "port": 0.4, "lake": 0.2})
    weighted = ballot(answers, [0.0, 1.0, 50.0, 0.0, 1.0, 0.0])
    total = 2 + 2 * math.e + 1
    assert weighted == pytest.approx({"port": 2 * math.e / total, "river": 2 / total, "lake": 1 / total})
    assert next(iter(weighted)) == "port"
    assert ballot(answers, [1000.0 + score for score in (0, 1, 50, 0, 1, 0)]) == pytest.approx(weighted)
    assert ballot([None, None]) == {} and ballot([]) == {}
    assert ballot(answers, [7.0] * 6) == pytest.approx(ballot(answers))
