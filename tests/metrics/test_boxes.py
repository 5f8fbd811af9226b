"""Boxes and grounding: golden cases, worked out by hand, and checked against torchvision."""

import json
import random

import pytest
from helpers import CASES

from rs_rlhf.metrics.boxes import grounding_figures, grounding_verdict, iou, paired_ious, parse_boxes, to_unit
from rs_rlhf.metrics.intervals import bootstrap_interval, wilson_interval

GROUNDING = json.loads((CASES / "grounding.json").read_text())


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("<|box_start|>(10,20),(30,40)<|box_end|>", [(10, 20, 30, 40)]),
        ("( 1.5 , 2 ), (3,4) and (5,6),(7,8)", [(1.5, 2, 3, 4), (5, 6, 7, 8)]),
        ("[1, 2, 3, -4.5] then [5,6,7,8]", [(1, 2, 3, -4.5), (5, 6, 7, 8)]),
        ("[1, 2, 3]", []),
        ("[1, 2, 3, 4, 5]", []),
        ("[.5, 0.25, 1., 1]", [(0.5, 0.25, 1, 1)]),
        ("(-1,2),(3,4)", [(-1, 2, 3, 4)]),
        ("[[1,2,3,4],\n [5,6,7,8]]", [(1, 2, 3, 4), (5, 6, 7, 8)]),
        ('{"bbox_2d": [1, 2, 3, 4], "label": "ship"}', [(1, 2, 3, 4)]),
        ("(1,2),(3,4) [5,6,7,8]", [(1, 2, 3, 4)]),  # Qwen2-VL's own form goes first
        ("[a, b, c, d] (1,2)", []),
        ("", []),
    ],
)
def test_parse_boxes(text, boxes):
    assert parse_boxes(text) == boxes


def test_units():
    assert to_unit((100, 200, 500, 1000), "0-1000") == (0.1, 0.2, 0.5, 1.0)
    assert to_unit((10, 10, 20, 40), "pixel", (100, 40)) == (0.1, 0.25, 0.2, 1.0)
    assert to_unit((10, 25, 50, 100), "0-100") == (0.1, 0.25, 0.5, 1.0)
    assert to_unit((0.1, 0.2, 0.3, 1), "0-1", (100, 40)) == (0.1, 0.2, 0.3, 1)
    with pytest.raises(ValueError, match="width, height"):
        to_unit((1, 2, 3, 4), "pixel")


def test_iou():
    assert iou((0, 0, 10, 10), (0, 0, 10, 10)) == 1
    assert iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)  # 50 / (100 + 100 - 50)
    assert iou((0, 0, 10, 10), (2, 2, 7, 6)) == iou((2, 2, 7, 6), (0, 0, 10, 10)) == pytest.approx(0.2)
    assert iou((-10, -10, 0, 0), (-5, -5, 5, 5)) == pytest.approx(25 / 175)
    assert iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0 and iou((0, 0, 0, 10), (0, 0, 10, 10)) == 0
    assert iou((10, 10, 0, 0), (0, 0, 10, 10)) == 0  # corners the wrong way round


def test_boxes_are_paired_for_the_greatest_total():
    first, second = (0, 0, 10, 10), (20, 0, 30, 10)
    assert paired_ious([second, first], [first, second]) == [1, 1]
    assert paired_ious([second, first], [first, second], by_order=True) == [0, 0]
    # taking the best pair first (8 / 10) would leave nothing for the second solution; 5 / 9 twice is more
    answers, solutions = [(0, 1, 10, 10), (0, 0, 10, 5)], [(0, 0, 10, 9), (0, 5, 10, 10)]
    assert paired_ious(answers, solutions, by_order=True) == pytest.approx([0.8, 0])
    assert paired_ious(answers, solutions) == pytest.approx([5 / 9, 5 / 9])
    assert paired_ious(answers[::-1], solutions) == paired_ious(answers, solutions)
    assert paired_ious([], []) == []
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_ious([first], [first, second])


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
