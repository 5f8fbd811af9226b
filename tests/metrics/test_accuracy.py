"""Figures of a task: worked out by hand, and checked against scipy and torchvision."""

import json
import random
import time

import pytest
from helpers import CASES

from rs_rlhf.metrics.accuracy import (
    accuracy_figures,
    bootstrap_interval,
    grounding_figures,
    grounding_verdict,
    mcnemar,
    paired_bootstrap,
)
from rs_rlhf.metrics.preferences import wilson_interval

GROUNDING = json.loads((CASES / "grounding.json").read_text())


def record(strict, lenient=True, answer="x", types=()):
    return {"strict": strict, "upstream_compat": lenient, "answer": answer, "types": list(types)}


# Intervals and tests


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


# Accuracies


def test_accuracy_figures_by_hand():
    records = [
        record(True, True, "yes", ["presence"]),
        record(False, True, None, ["presence"]),
        record(True, True, "3", ["count", "area"]),
        record(False, False, "4", ["count"]),
        record(False, False, "5", ["count"]),
    ]
    figures = accuracy_figures(records)
    assert (figures["n"], figures["accuracy"], figures["upstream_compat"]) == (5, 0.4, 0.6)
    assert figures["parse_failures"] == 0.2 and figures["interval"] == list(wilson_interval(2, 5))
    assert list(figures["types"]) == ["area", "count", "presence"]
    assert [part["n"] for part in figures["types"].values()] == [1, 3, 2]
    assert figures["types"]["presence"] == {
        "n": 2,
        "accuracy": 0.5,
        "interval": list(wilson_interval(1, 2)),
        "upstream_compat": 1.0,
        "parse_failures": 0.5,
    }
    assert figures["average_accuracy"] == pytest.approx((1 + 1 / 3 + 1 / 2) / 3)


def test_accuracy_figures_without_types_or_a_lenient_verdict():
    figures = accuracy_figures([record(True, None), record(True, None)])
    assert figures["upstream_compat"] is None and figures["accuracy"] == 1.0
    assert "types" not in figures and "average_accuracy" not in figures
    with pytest.raises(ValueError, match="no sample records"):
        accuracy_figures([])


# Grounding


@pytest.mark.parametrize("case", GROUNDING, ids=lambda case: case["why"])
def test_grounding_golden(case):
    verdict = grounding_verdict(case["output"], case["boxes"], case["size"], case["unit"])
    assert verdict["answer"] == case["answer"] and verdict["strict"] is case["strict"]
    assert verdict["ious"] == pytest.approx(case["ious"])
    assert verdict["iou"] == pytest.approx(sum(case["ious"]) / len(case["ious"]))
    assert verdict["boxes"] == case["boxes"]
    json.dumps(verdict)


def test_iou_is_that_of_torchvision():
    import torch
    from torchvision.ops import box_iou

    draw = random.Random(0)

    def box():
        x, y = draw.uniform(0, 20), draw.uniform(0, 10)
        return [x, y, x + draw.uniform(1, 40), y + draw.uniform(1, 20)]

    pairs = [(box(), box()) for _ in range(100)]
    ours = [grounding_verdict(str(said), [right], (120, 60), "pixel")["iou"] for said, right in pairs]
    theirs = [box_iou(torch.tensor([said]), torch.tensor([right])).item() for said, right in pairs]
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert sum(iou > 0 for iou in ours) > 20


def test_grounding_figures_by_hand():
    size = (1000, 1000)
    asked = [
        ("[0, 0, 32, 32]", [[0, 0, 32, 32]], "ship"),  # 32²: small, IoU 1
        ("[0, 0, 33, 20]", [[0, 0, 33, 33]], "ship"),  # medium, IoU 20/33 = 0.606
        ("[0, 0, 96, 10]", [[0, 0, 96, 96]], "plane"),  # 96²: medium, missed
        ("nothing", [[0, 0, 97, 97]], "plane"),  # large, unparseable
        ("[0, 0, 10, 10] [0, 0, 200, 100]", [[0, 0, 10, 10], [0, 0, 200, 200]], "two"),  # small right, large at 0.5
    ]
    records = [grounding_verdict(output, boxes, size, "pixel") | {"types": [kind]} for output, boxes, kind in asked]
    figures = grounding_figures(records)
    assert (figures["n"], figures["accuracy"], figures["parse_failures"]) == (5, 0.6, 0.2)
    assert figures["upstream_compat"] is None
    metrics = figures["metrics"]
    assert metrics["precision@0.5"] == pytest.approx(4 / 6) and metrics["precision@0.7"] == pytest.approx(2 / 6)
    assert metrics["mean_iou"] == pytest.approx((1 + 20 / 33 + 10 / 96 + 0 + 0.75) / 5)
    assert figures["mean_iou_interval"] == list(bootstrap_interval([one["iou"] for one in records]))
    assert {name: (part["n"], part["accuracy"]) for name, part in figures["areas"].items()} == {
        "S": (2, 1.0),
        "M": (2, 0.5),
        "L": (2, 0.5),
    }
    assert metrics["precision@0.5_M"] == 0.5
    assert figures["types"]["plane"]["accuracy"] == 0.0 and figures["average_accuracy"] == pytest.approx(2 / 3)


def test_grounding_figures_without_boxes_of_a_size():
    figures = grounding_figures([grounding_verdict("[0, 0, 9, 9]", [[0, 0, 9, 9]], (20, 20), "pixel")])
    assert figures["metrics"]["precision@0.5_L"] is None and figures["areas"]["L"]["n"] == 0
    json.dumps(figures)


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(ValueError, match="unit of boxes is 'percent', expected one of pixel, 0-1000"):
        grounding_verdict("", [[0, 0, 1, 1]], (10, 10), "percent")
    with pytest.raises(ValueError, match="no right boxes"):
        grounding_verdict("", [], (10, 10), "pixel")


def test_a_right_box_without_area_is_never_hit():
    verdict = grounding_verdict("[5, 5, 5, 9]", [[5, 5, 5, 9]], (10, 10), "pixel")
    assert verdict["ious"] == [0.0] and verdict["strict"] is False and verdict["boxes"] == [[5, 5, 5, 9]]
    assert grounding_figures([verdict])["areas"]["S"] == {
        "n": 1,
        "accuracy": 0.0,
        "interval": [0.0, wilson_interval(0, 1)[1]],
    }
