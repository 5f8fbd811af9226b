"""Boxes and grounding: golden cases, worked out by hand, and checked against torchvision."""

import json
import random

import pytest
from helpers import CASES

from rs_rlhf.errors import OptionError
from rs_rlhf.metrics.boxes import (
    BROKEN,
    NO_BOX,
    OTHER_UNIT,
    OUTSIDE,
    RESIZED,
    grounding_figures,
    grounding_verdict,
    iou,
    paired_ious,
    parse_boxes,
    read_boxes,
)
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


@pytest.mark.parametrize(
    ("text", "unit", "box"),
    [
        ("[100, 200, 500, 1000]", "0-1000", (0.1, 0.2, 0.5, 1.0)),
        ("[10, 10, 20, 40]", "pixel", (0.1, 0.25, 0.2, 1.0)),
        ("[20, 20, 40, 80]", RESIZED, (0.1, 0.25, 0.2, 1.0)),
        ("[10, 25, 50, 100]", "0-100", (0.1, 0.25, 0.5, 1.0)),
        ("[0.1, 0.2, 0.3, 1]", "0-1", (0.1, 0.2, 0.3, 1)),
        ("[0, 0.3, 1, 0.7]", "0-1 of the padded square", (0, 0, 1, 1)),  # bars of 30 pixels above and below
        ("[0.5, 0.5, 0.75, 0.6]", "0-1 of the padded square", (0.5, 0.5, 0.75, 0.75)),
        ("[10%, 20%, 30%, 40%]", "0-1000", (0.1, 0.2, 0.3, 0.4)),
        ("[10 %, 20 %, 30.0 %, 40 %]", "pixel", (0.1, 0.2, 0.3, 0.4)),
        ("[-5, 0, 1005, 1000]", "0-1000", (0, 0, 1, 1)),  # cut to the image
        ("[0, 0, 101, 41]", "pixel", (0, 0, 1, 1)),
        ("[0, 0, 0, 0]", "0-1000", (0, 0, 0, 0)),
        ("[0, 0, 1, 1]", "0-100", (0, 0, 0.01, 0.01)),  # a small thing in the corner
    ],
)
def test_a_box_is_read_in_the_unit_of_its_writer(text, unit, box):
    boxes, unreadable = read_boxes(text, unit, ["brackets"], (100, 40), (200, 80))
    assert boxes == [pytest.approx(box)] and unreadable is None


@pytest.mark.parametrize(
    ("text", "unit", "why"),
    [
        ("[100, 200, 300, 1500]", "0-1000", OUTSIDE),
        ("[-20, 0, 300, 400]", "0-1000", OUTSIDE),
        ("[0, 0, 103, 40]", "pixel", OUTSIDE),
        ("[0, 0, 150, 40]", "pixel", OUTSIDE),
        ("[0, 0, 250, 40]", RESIZED, OUTSIDE),
        ("[10, 20, 30, 40]", "0-1", OUTSIDE),
        ("[0.1, 0.2, 0.3, 0.4]", "0-1000", OTHER_UNIT),
        ("[0.1, 0.2, 0.3, 0.4]", "pixel", OTHER_UNIT),
        ("[10, 20, 30, 20, 30, 40, 10, 40]", "0-1000", BROKEN),
        ("[1, 2, 30, 40] and [10, 20, 30, 20, 30, 40, 10, 40]", "0-1000", BROKEN),
        ("[1, 2, 30, 40] [50, 60, 70, 8000]", "0-1000", OUTSIDE),  # one unreadable box is an unreadable answer
        ("[10%, 20, 30%, 40]", "0-1000", BROKEN),
        ("[1, 2, 3, 4, 0.9]", "0-1000", NO_BOX),
        ("top left", "0-1000", NO_BOX),
        ("<think>[1, 2, 30, 40]</think> there", "0-1000", NO_BOX),
        ("<think>it is [1, 2, 30, 40]", "0-1000", NO_BOX),
    ],
)
def test_what_cannot_be_a_box_in_the_unit_is_unreadable_and_says_why(text, unit, why):
    assert read_boxes(text, unit, ["brackets"], (100, 40), (200, 80)) == ([], why)
    verdict = grounding_verdict(text, [[0, 0, 50, 20]], (100, 40), unit, ["brackets"], (200, 80))
    assert verdict["answer"] is None and verdict["unreadable"] == why and verdict["iou"] == 0
    figures = grounding_figures([verdict, verdict])
    assert figures["parse_failures"] == 1 and figures["unreadable"] == {why: 2}


def test_a_box_after_the_thoughts_is_the_answer():
    text = "<think>maybe [1, 2, 30, 40]</think><answer>[100, 200, 300, 400]</answer>"
    assert read_boxes(text, "0-1000", ["brackets"]) == ([(0.1, 0.2, 0.3, 0.4)], None)


@pytest.mark.parametrize(
    ("unit", "sizes", "key"),
    [("pixel", (None, (9, 9)), "size"), (RESIZED, ((9, 9), None), "size"), ("percent", ((9, 9), (9, 9)), "unit")],
)
def test_a_unit_that_is_not_known_or_a_size_that_is_missing_is_an_error(unit, sizes, key):
    with pytest.raises(OptionError) as error:
        read_boxes("[1, 2, 3, 4]", unit, ["brackets"], *sizes)
    assert error.value.key == key


def test_a_form_that_is_not_known_is_an_error():
    with pytest.raises(OptionError) as error:
        read_boxes("[1, 2, 3, 4]", "0-1000", ["bracket"])
    assert error.value.key == "forms"


def test_a_turned_box_needs_the_shape_of_the_image():
    assert read_boxes("{<10><20><30><40>|<0>}", "0-100", ["geochat"]) == ([(0.1, 0.2, 0.3, 0.4)], None)
    with pytest.raises(OptionError) as error:
        read_boxes("{<10><20><30><40>|<45>}", "0-100", ["geochat"])
    assert error.value.key == "size"
    # a square of 20 pixels, turned by 45 degrees, is 20·√2 wide and high
    ((x1, y1, x2, y2),), _ = read_boxes("{<40><40><60><60>|<-45>}", "0-100", ["geochat"], (100, 100))
    assert (x2 - x1, y2 - y1) == pytest.approx((0.2 * 2**0.5, 0.2 * 2**0.5)) and x1 + x2 == pytest.approx(1)


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
    judged = [
        grounding_verdict(
            "[20,0,30,10] [0,0,10,10]", [first, second], (100, 100), "pixel", ["brackets"], pairing=pairing
        )["ious"]
        for pairing in ("best", "order")
    ]
    assert judged == [[1, 1], [0, 0]]


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
    with pytest.raises(OptionError, match="unit of boxes is 'percent'. Choices: pixel"):
        grounding_verdict("", [[0, 0, 1, 1]], (10, 10), "percent")
    with pytest.raises(OptionError, match="no right boxes"):
        grounding_verdict("", [], (10, 10), "pixel")


def test_a_right_box_that_is_repeated_is_one_box():
    verdict = grounding_verdict(
        "[0, 0, 9, 9] [0, 0, 5, 5]", [[0, 0, 9, 9], [0, 0, 5, 5], [0, 0, 9, 9]], (20, 20), "pixel"
    )
    assert verdict["ious"] == [1, 1] and verdict["boxes"] == [[0, 0, 9, 9], [0, 0, 5, 5]]


def test_a_right_box_without_area_is_never_hit():
    verdict = grounding_verdict("[5, 5, 5, 9]", [[5, 5, 5, 9]], (10, 10), "pixel")
    assert verdict["ious"] == [0.0] and verdict["strict"] is False and verdict["boxes"] == [[5, 5, 5, 9]]
    assert grounding_figures([verdict])["areas"]["S"] == {
        "n": 1,
        "accuracy": 0.0,
        "interval": [0.0, wilson_interval(0, 1)[1]],
    }
