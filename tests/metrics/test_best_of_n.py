"""The estimates equal what counting all subsets through gives, and their intervals hold what they should."""

import itertools
import random

import pytest

from rs_rlhf.metrics.best_of_n import best_of, conclusions, curve_figures, oracle, question_curves, sizes_up_to

SIZES = [1, 2, 3, 4, 5]
CASES = {
    "all different": ([0.3, 1.2, -0.5, 2.0, 0.9], [0, 1, 0, 0, 1], ["a", "b", "c", "d", "b"]),
    "ties at the top": ([2.0, 2.0, 1.0, 2.0, 1.0], [1, 0, 1, 0, 1], ["b", "a", "b", "a", "b"]),
    "all tied": ([1.0] * 5, [1, 1, 0, 0, 0], ["r", "r", "x", "y", "x"]),
    "some cannot be parsed": ([0.1, 0.2, 0.3, 0.4, 0.5], [0, 1, 0, 0, 0], [None, "r", None, "x", None]),
    "all right": ([1.0, 2.0, 3.0, 4.0, 5.0], [1] * 5, ["r"] * 5),
}


def chosen_by_score(scores, right, subset):
    top = [i for i in subset if scores[i] == max(scores[j] for j in subset)]
    return sum(right[i] for i in top) / len(top)


def chosen_by_vote(answers, right, weights, subset):
    totals = {}
    for i in subset:
        if answers[i] is not None:
            totals[answers[i]] = totals.get(answers[i], 0) + weights[i]
    top = [one for one, total in totals.items() if total > max(totals.values()) - 1e-12]
    return sum(right[answers.index(one)] for one in top) / len(top) if top else 0.0


def brute_force(choose, n):
    subsets = list(itertools.combinations(range(5), n))
    return sum(map(choose, subsets)) / len(subsets)


@pytest.mark.parametrize("scores, right, answers", CASES.values(), ids=CASES)
def test_every_estimate_is_the_mean_over_all_subsets(scores, right, answers):
    strength = [2.718281828459045**score for score in scores]
    curves = question_curves(answers, right, scores, [-score for score in scores], SIZES)
    for k, n in enumerate(SIZES):
        expected = {
            "score": brute_force(lambda s: chosen_by_score(scores, right, s), n),
            "clip": brute_force(lambda s: chosen_by_score([-score for score in scores], right, s), n),
            "majority": brute_force(lambda s: chosen_by_vote(answers, right, [1] * 5, s), n),
            "weighted": brute_force(lambda s: chosen_by_vote(answers, right, strength, s), n),
            "random": sum(right) / 5,
            "oracle": brute_force(lambda s: max(right[i] for i in s), n),
        }
        assert {name: curve[k] for name, curve in curves.items()} == pytest.approx(expected, abs=1e-9), n


def test_shape_of_the_curves():
    rng = random.Random(0)
    sizes = sizes_up_to(16)
    assert sizes == [1, 2, 4, 8, 16] and sizes_up_to(1) == [1] and sizes_up_to(10)[-2:] == [8, 10]
    for _ in range(50):
        answers = [rng.choice("abcd") for _ in range(16)]
        right = [float(one == "a") for one in answers]
        scores = [rng.choice([0.0, 0.5, 1.0]) for _ in answers]
        curves = question_curves(answers, right, scores, None, sizes)
        assert "clip" not in curves and len(set(curves["random"])) == 1
        assert curves["oracle"] == sorted(curves["oracle"]) and curves["oracle"][-1] == max(right)
        for name, curve in curves.items():
            assert curve[0] == pytest.approx(curves["random"][0]), name  # one answer leaves nothing to choose
            assert all(value <= best + 1e-9 for value, best in zip(curve, curves["oracle"], strict=True)), name
    with pytest.raises(ValueError, match="n is 0; it must be at least 1"):
        sizes_up_to(0)


def test_oracle_is_pass_at_k():
    assert oracle([1, 0, 0, 0], [1, 2, 4]) == pytest.approx([0.25, 0.5, 1.0])
    assert oracle([0, 0, 0], [1, 3]) == [0.0, 0.0] and best_of([1.0], [1], [1]) == [1.0]


def test_figures_are_means_with_paired_intervals():
    rng = random.Random(3)
    sizes = [1, 4]
    runs = []
    for _ in range(3):
        run = []
        for _ in range(60):
            hard = rng.random()
            right = [float(rng.random() > hard) for _ in range(4)]
            answers = ["r" if one else rng.choice("xyz") for one in right]
            scores = [rng.random() + one for one in right]
            run.append(question_curves(answers, right, scores, None, sizes))
        runs.append(run)
    figures = curve_figures(runs, sizes, rounds=300)
    assert figures == curve_figures(runs, sizes, rounds=300) != curve_figures(runs, sizes, rounds=300, seed=1)
    for name, entries in figures["methods"].items():
        for k, entry in enumerate(entries):
            means = [sum(question[name][k] for question in run) / 60 for run in runs]
            assert entry["n"] == sizes[k] and entry["accuracy"] == pytest.approx(sum(means) / 3)
            assert entry["sd"] == pytest.approx((sum((m - sum(means) / 3) ** 2 for m in means) / 2) ** 0.5)
            assert entry["interval"][0] < entry["accuracy"] < entry["interval"][1]
    gain = figures["differences"]["score - random"]
    assert gain[0]["difference"] == pytest.approx(0) and gain[0]["interval"] == pytest.approx([0, 0])
    assert gain[1]["interval"][0] > 0  # a scorer that knows the answers
    assert "score - greedy" not in figures["differences"]
    assert curve_figures(runs[:1], sizes)["methods"]["score"][0]["sd"] is None


@pytest.mark.parametrize(
    ("greedy", "said"),
    [(0.0, "is better than"), (0.45, "is not shown to be better than"), (1.0, "is worse than")],
)
def test_the_greedy_answer_is_a_bound_that_does_not_depend_on_n(greedy, said):
    rng = random.Random(1)
    run = []
    for _ in range(80):
        right = [float(rng.random() < 0.4) for _ in range(4)]
        answers = ["r" if one else "x" for one in right]
        own = float(rng.random() < greedy)
        run.append(question_curves(answers, right, [rng.random() for _ in range(4)], None, [1, 2, 4], greedy=own))
    figures = curve_figures([run], [1, 2, 4])
    entries = figures["methods"]["greedy"]
    assert len({entry["accuracy"] for entry in entries}) == 1 and next(iter(figures["methods"])) == "greedy"
    last = figures["differences"]["score - greedy"][-1]
    own = figures["methods"]["score"][-1]["accuracy"]
    assert last["difference"] == pytest.approx(own - entries[-1]["accuracy"])
    first, *rest = conclusions(figures)
    assert f"choice among 4 answers {said} the greedy answer: {own:.1%} against {entries[-1]['accuracy']:.1%}" in first
    assert f"{100 * last['interval'][0]:+.1f} to {100 * last['interval'][1]:+.1f}" in first
    assert "a majority vote" in rest[0] and len(rest) == 2  # it beats no vote, so that advice follows


def test_what_is_equal_but_for_rounding_is_not_better():
    run = [question_curves(["r", "x", "x"], [1, 0, 0], [0.0] * 3, None, [3], greedy=1 / 3 - 1e-16)] * 5
    figures = curve_figures([run], [3])
    assert figures["differences"]["score - greedy"][0]["interval"][0] > 0
    assert "is not shown to be better than the greedy answer: 33.3% against 33.3%" in conclusions(figures)[0]
