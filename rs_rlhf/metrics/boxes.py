"""Boxes in answers: reading them in the unit of the model that wrote them, intersection over union, and grounding.

Models differ in form (`box_forms`) and unit, so a box is read with those of the model that wrote it; nothing is
guessed from the numbers. What cannot be a box in that unit is unreadable, which is not the same as a wrong box. Two
corners are a box in any order. A box written as corner, width and height looks like one of two corners, and is read as
that.

Left out: average precision of detection (the grounding benchmarks ask for named boxes, without a confidence).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from ..declarations import did_you_mean
from ..errors import OptionError
from .accuracy import accuracy_figures
from .answers import extract_answer
from .box_forms import PLAIN, Box, written_boxes
from .intervals import bootstrap_interval, proportion

RESIZED = "pixel of the resized image"
PAIRINGS = ("best", "order")  # of boxes, see [`paired_ious`]
# Units of a box's coordinates -> what a full side is; `None` is a size in pixels.
BOX_UNITS: dict[str, float | None] = {
    **{"pixel": None, RESIZED: None, "0-1000": 1000.0, "0-100": 100.0, "0-1": 1.0},
    "0-1 of the padded square": 1.0,  # the image in the middle of a square of its longer side
}
SLACK = 0.01  # share of a side by which a box may leave the image, at least a pixel; it is then cut to the image
NO_BOX = "no box in its form"
BROKEN = "a polygon or a broken box"
OUTSIDE = "a box outside of the image"
OTHER_UNIT = "a box in another unit"
IOU_RIGHT = 0.5  # a box with at least this IoU is right
BOX_AREAS = (("S", 32**2), ("M", 96**2), ("L", math.inf))  # pixels of the original image, up to and with the bound


def parse_boxes(text: str, forms: Sequence[str] = PLAIN) -> list[Box]:
    """Finds the boxes of a text, in its order and as they are written: those of the first form that has any.

    Example:
        >>> parse_boxes("<|box_start|>(10,20),(30,40)<|box_end|>"), parse_boxes("[1, 2, 3.5, 4]")
        ([(10.0, 20.0, 30.0, 40.0)], [(1.0, 2.0, 3.5, 4.0)])
    """
    return [box.corners for box in written_boxes(text, forms) if box is not None]


def read_boxes(
    output: str,
    unit: str,
    forms: Sequence[str],
    size: Sequence[int] | None = None,
    seen_size: Sequence[int] | None = None,
) -> tuple[list[Box], str | None]:
    """Reads the boxes of an answer.

    Args:
        output (`str`): What the model wrote; boxes in thoughts are not read, see [`extract_answer`].
        unit (`str`): Unit of the coordinates, a key of [`BOX_UNITS`]; coordinates with percent signs are in percent.
        forms (sequence of `str`): Keys of [`FORMS`], the usual one first; the first that finds a box is read.
        size (`(width, height)`, *optional*): Of the original image in pixels: for pixels, the padded square, and
            turned boxes.
        seen_size (`(width, height)`, *optional*): Of the resized image in pixels, for its unit.

    Returns:
        `tuple`: the boxes in shares (0–1) of the image's sides, `x1 <= x2` and `y1 <= y2`, a repeated one once; and
        why they cannot be read ([`NO_BOX`], [`BROKEN`], [`OUTSIDE`], [`OTHER_UNIT`]), or `None`. One box that cannot
        be read makes the answer unreadable. A turned box becomes the upright one around it.

    Raises:
        OptionError: An unknown unit or form, or a size that is needed is missing.

    Example:
        >>> read_boxes("[[100, 200, 300, 400]]", "0-1000", ["brackets"])
        ([(0.1, 0.2, 0.3, 0.4)], None)
        >>> read_boxes("[100, 200, 300, 1500]", "0-1000", ["brackets"])
        ([], 'a box outside of the image')
    """
    left, top, width, height = _frame(unit, size, seen_size)
    boxes = []
    found = written_boxes(extract_answer(output), forms)
    for box in found:
        if box is None:
            return [], BROKEN
        x, y, w, h = (0.0, 0.0, 100.0, 100.0) if box.percent else (left, top, width, height)
        if max(map(abs, box.corners)) <= 1 and min(w, h) >= 10 and any(corner % 1 for corner in box.corners):
            return [], OTHER_UNIT
        xs = sorted((corner - x) / w for corner in box.corners[::2])
        ys = sorted((corner - y) / h for corner in box.corners[1::2])
        for (low, high), side in ((xs, w), (ys, h)):
            slack = max(SLACK, 1 / side if side > 1 else SLACK / side)  # below 1: of the padded square's side
            if low < -slack - 1e-9 or high > 1 + slack + 1e-9:
                return [], OUTSIDE
        x1, y1, x2, y2 = _turned((xs[0], ys[0], xs[1], ys[1]), box.angle, size)
        boxes.append((max(x1, 0.0), max(y1, 0.0), min(x2, 1.0), min(y2, 1.0)))
    distinct: dict[Box, Box] = {}
    for each in boxes:
        distinct.setdefault((round(each[0], 9), round(each[1], 9), round(each[2], 9), round(each[3], 9)), each)
    return [*distinct.values()], None if found else NO_BOX


def needs_size(unit: str) -> bool:
    """Whether coordinates in a unit can only be read with the size of the image."""
    return BOX_UNITS[unit] is None or "square" in unit


def _frame(unit: str, size: Sequence[int] | None, seen_size: Sequence[int] | None) -> Box:
    """The image's left, top, width and height, in a unit."""
    if unit not in BOX_UNITS:
        raise OptionError(f"the unit of boxes is {unit!r}{did_you_mean(unit, BOX_UNITS)}", "unit")
    side = BOX_UNITS[unit]
    if side is not None and not needs_size(unit):
        return 0.0, 0.0, side, side
    needed = seen_size if unit == RESIZED else size
    if needed is None:
        which = "resized" if unit == RESIZED else "original"
        raise OptionError(f"boxes in the unit {unit!r} need (width, height) of the {which} image.", "size")
    width, height = map(float, needed)
    if side is None:
        return 0.0, 0.0, width, height
    longer = max(width, height)
    return (1 - width / longer) / 2, (1 - height / longer) / 2, width / longer, height / longer


def _turned(box: Box, angle: float, size: Sequence[int] | None) -> Box:
    """The upright box around one that is turned by `angle` degrees about its centre, in pixels of the image."""
    if not angle:
        return box
    if size is None:
        raise OptionError("turned boxes need (width, height) of the original image.", "size")
    (width, height), turn = size, math.radians(angle)
    w, h = (box[2] - box[0]) * width, (box[3] - box[1]) * height
    across = (abs(w * math.cos(turn)) + abs(h * math.sin(turn))) / width / 2
    down = (abs(w * math.sin(turn)) + abs(h * math.cos(turn))) / height / 2
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return x - across, y - down, x + across, y + down


def iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes in the same units; 0 for boxes without area.

    Example:
        >>> iou((0, 0, 2, 2), (1, 0, 3, 2))
        0.3333333333333333
    """
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    areas = [max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1]) for box in (first, second)]
    if width <= 0 or height <= 0 or not all(areas):
        return 0.0
    return width * height / (sum(areas) - width * height)


def paired_ious(answers: Sequence[Box], solutions: Sequence[Box], by_order: bool = False) -> list[float]:
    """IoU of every solution's box with the answer's box paired with it.

    Args:
        answers, solutions (sequences of boxes): As many of each, in the same units.
        by_order (`bool`): Pair by place, as published; by default the one-to-one pairing of the greatest total IoU.

    Raises:
        OptionError: Their numbers differ.
    """
    places = range(len(answers)) if by_order and len(answers) == len(solutions) else pairing(answers, solutions)
    return [iou(answers[j], solution) for j, solution in zip(places, solutions, strict=True)]


def pairing(answers: Sequence[Box], solutions: Sequence[Box]) -> list[int]:
    """Returns for every solution's box the place of the answer's box that [`paired_ious`] pairs with it."""
    if len(answers) != len(solutions):
        raise OptionError(f"{len(answers)} boxes cannot be paired with {len(solutions)}")
    if len(solutions) < 2:
        return [*range(len(solutions))]
    from scipy.optimize import linear_sum_assignment

    table = [[iou(answer, solution) for answer in answers] for solution in solutions]
    return linear_sum_assignment(table, maximize=True)[1].tolist()


def grounding_verdict(
    output: str,
    boxes: Sequence[Sequence[float]],
    size: Sequence[int],
    unit: str,
    forms: Sequence[str] = PLAIN,
    seen_size: Sequence[int] | None = None,
    pairing: str = "best",
) -> dict[str, Any]:
    """Judges the boxes of an answer.

    An answer is right if every asked-for box has an IoU of at least 0.5 with its own (precision at IoU 0.5 if
    one box is asked for, as DIOR-RSVG and VRSBench report it). An answer with more or fewer boxes is wrong, all its
    IoUs 0; the code of arXiv 2503.00743 compares the first boxes of such an answer. A repeated box is one box, in the
    answer and among the right ones.

    Args:
        output (`str`): What the model wrote; boxes in thoughts are not read, see [`extract_answer`].
        boxes (sequence of boxes): The right boxes `(x1, y1, x2, y2)`, in pixels of the original image. One without
            area is asked for all the same (VRSBench has some): its IoU is 0.
        size (`(width, height)`): Of the original image, in pixels.
        unit, forms, seen_size: How the model writes boxes, see [`read_boxes`].
        pairing (`str`): One of [`PAIRINGS`].

    Returns:
        `dict`: `answer` (the answer's boxes in pixels, `None` if they cannot be read), `unreadable` (why, `None` if
        they can), `boxes` (the right ones), `ious` (of each right box, in this pairing), `strict` (`bool`), `iou`
        (their mean) and `upstream_compat` (`None`: the published rule is of words).

    Raises:
        OptionError: An unknown unit or form, no size of the resized image for its unit, or no right box.

    Example:
        >>> grounding_verdict("(0,0),(500,500)", [(0, 0, 50, 100)], (100, 200), "0-1000")["iou"]
        1.0
    """
    right = list(dict.fromkeys((float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in boxes))
    if not right:
        raise OptionError("there are no right boxes, expected at least one [x1, y1, x2, y2]; add it.")
    width, height = size
    shares, unreadable = read_boxes(output, unit, forms, (width, height), seen_size)
    found = [(x1 * width, y1 * height, x2 * width, y2 * height) for x1, y1, x2, y2 in shares]
    ious = paired_ious(found, right, pairing == "order") if len(found) == len(right) else [0.0] * len(right)
    return {
        "answer": [[round(side, 2) for side in box] for box in found] or None,
        "unreadable": unreadable,
        "boxes": [list(box) for box in right],
        "ious": ious,
        "strict": all(iou >= IOU_RIGHT for iou in ious),
        "iou": fmean(ious),
        "upstream_compat": None,
    }


def grounding_figures(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of grounding, overall, by question type, and by the size of the right box.

    Args:
        records (sequence of `dict`): From [`grounding_verdict`], with `types`.

    Returns:
        `dict`: as [`accuracy_figures`], where `accuracy` is the share of questions with all boxes at IoU 0.5 or
        above, and `metrics`: `precision@0.5` and `precision@0.7` (of boxes), `mean_iou` (of questions), and
        `precision@0.5_S`, `_M`, `_L` of the right boxes up to 32² pixels, up to 96², and above, in the original image
        (the areas of COCO and of arXiv 2503.00743; `None` if there are none); `mean_iou_interval` (95% bootstrap);
        `areas`: `{"S", "M", "L": {"n", "accuracy", "interval"}}` of boxes; `unreadable`: `{why: answers}`.

    Raises:
        OptionError: No records.
    """
    figures = accuracy_figures(records)
    ious = [(iou, _area(box)) for one in records for iou, box in zip(one["ious"], one["boxes"], strict=True)]
    areas: dict[str, dict[str, Any]] = {}
    for name, _ in BOX_AREAS:
        hits = [iou >= IOU_RIGHT for iou, area in ious if area == name]
        areas[name] = proportion(sum(hits), len(hits))
    means = [one["iou"] for one in records]
    metrics: dict[str, float | None] = {
        f"precision@{least}": sum(iou >= least for iou, _ in ious) / len(ious) for least in (0.5, 0.7)
    }
    metrics["mean_iou"] = fmean(means)
    metrics |= {f"precision@0.5_{name}": part["accuracy"] for name, part in areas.items()}
    unreadable = Counter(one["unreadable"] for one in records if one["unreadable"])
    figures |= {"metrics": metrics, "mean_iou_interval": list(bootstrap_interval(means)), "areas": areas}
    return figures | {"unreadable": dict(unreadable.most_common())}


def _area(box: Sequence[float]) -> str:
    area = (box[2] - box[0]) * (box[3] - box[1])
    return next(name for name, most in BOX_AREAS if area <= most)
