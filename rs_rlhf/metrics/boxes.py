"""Boxes in answers: parsing, units, intersection over union, and the figures of grounding.

Left out: average precision of detection (the grounding benchmarks ask for named boxes, without a confidence).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from ..errors import OptionError
from .accuracy import accuracy_figures
from .answers import extract_answer
from .intervals import bootstrap_interval, proportion

_NUMBER = r"-?(?:\d+(?:\.\d*)?|\.\d+)"
_PAIRS = re.compile(rf"\(\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\)\s*,\s*\(\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\)")
_BRACKETS = re.compile(rf"\[\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\]")
# Units of a box's coordinates -> what a full side is; `None` is the side of the image in pixels.
BOX_UNITS: dict[str, float | None] = {"pixel": None, "0-1000": 1000.0, "0-100": 100.0, "0-1": 1.0}
BOX_AREAS = (("S", 32**2), ("M", 96**2), ("L", math.inf))  # pixels of the original image, up to and with the bound

Box = tuple[float, float, float, float]


def parse_boxes(text: str) -> list[Box]:
    """Finds the boxes of a text, in its order: Qwen2-VL's `(x1,y1),(x2,y2)`, else `[x1, y1, x2, y2]`.

    Example:
        >>> parse_boxes("<|box_start|>(10,20),(30,40)<|box_end|>"), parse_boxes("[1, 2, 3.5, 4]")
        ([(10.0, 20.0, 30.0, 40.0)], [(1.0, 2.0, 3.5, 4.0)])
    """
    found = _PAIRS.findall(text) or _BRACKETS.findall(text)
    return [(float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in found]


def to_unit(box: Box, unit: str, size: tuple[int, int] | None = None) -> Box:
    """Brings a box to 0–1.

    Args:
        box (`tuple`): `(x1, y1, x2, y2)`.
        unit (`str`): A key of [`BOX_UNITS`].
        size (`tuple`, *optional*): `(width, height)` of the image in pixels, for `"pixel"`.

    Raises:
        OptionError: Pixels without a size.
    """
    side = BOX_UNITS[unit]
    if side is None and size is None:
        raise OptionError("boxes in pixels need the image's (width, height)")
    width, height = (side, side) if side is not None else size  # type: ignore[misc]
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height


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
    if len(answers) != len(solutions):
        raise OptionError(f"{len(answers)} boxes cannot be paired with {len(solutions)}")
    table = [[iou(answer, solution) for answer in answers] for solution in solutions]
    if by_order or len(table) < 2:
        return [row[i] for i, row in enumerate(table)]
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(table, maximize=True)
    return [table[i][j] for i, j in zip(rows, columns, strict=True)]


def grounding_verdict(output: str, boxes: Sequence[Sequence[float]], size: Sequence[int], unit: str) -> dict[str, Any]:
    """Judges the boxes of an answer.

    An answer is right if every asked-for box has an IoU of at least 0.5 with its own (precision at IoU 0.5 if
    one box is asked for, as DIOR-RSVG and VRSBench report it). An answer with more or fewer boxes is wrong, all its
    IoUs 0; the code of arXiv 2503.00743 compares the first boxes of such an answer.

    Args:
        output (`str`): What the model wrote; boxes in thoughts are not read, see [`extract_answer`].
        boxes (sequence of boxes): The right boxes `(x1, y1, x2, y2)`, in pixels of the original image. One without
            area is asked for all the same (VRSBench has some): its IoU is 0.
        size (`(width, height)`): Of the original image, in pixels.
        unit (`str`): Unit of the answer's coordinates, a key of [`BOX_UNITS`].

    Returns:
        `dict`: `answer` (the answer's boxes in pixels, `None` if it has none), `boxes` (the right ones), `ious` (of
        each right box, in the one-to-one pairing of the greatest total), `strict` (`bool`), `iou` (their mean) and
        `upstream_compat` (`None`: the published rule is of words).

    Raises:
        OptionError: An unknown unit, or no right box.

    Example:
        >>> grounding_verdict("(0,0),(500,500)", [(0, 0, 50, 100)], (100, 200), "0-1000")["iou"]
        1.0
    """
    if unit not in BOX_UNITS:
        raise OptionError(f"the unit of boxes is {unit!r}, expected one of {', '.join(BOX_UNITS)}.")
    right = [(float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in boxes]
    if not right:
        raise OptionError("there are no right boxes, expected at least one [x1, y1, x2, y2]; add it.")
    width, height = size
    found = []
    for box in parse_boxes(extract_answer(output)):
        x1, y1, x2, y2 = to_unit(box, unit, (width, height))
        found.append((x1 * width, y1 * height, x2 * width, y2 * height))
    ious = paired_ious(found, right) if len(found) == len(right) else [0.0] * len(right)
    return {
        "answer": [[round(side, 2) for side in box] for box in found] or None,
        "boxes": [list(box) for box in right],
        "ious": ious,
        "strict": all(iou >= 0.5 for iou in ious),
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
        `areas`: `{"S", "M", "L": {"n", "accuracy", "interval"}}` of boxes.

    Raises:
        OptionError: No records.
    """
    figures = accuracy_figures(records)
    ious = [(iou, _area(box)) for one in records for iou, box in zip(one["ious"], one["boxes"], strict=True)]
    areas: dict[str, dict[str, Any]] = {}
    for name, _ in BOX_AREAS:
        hits = [iou >= 0.5 for iou, area in ious if area == name]
        areas[name] = proportion(sum(hits), len(hits))
    means = [one["iou"] for one in records]
    metrics: dict[str, float | None] = {
        f"precision@{least}": sum(iou >= least for iou, _ in ious) / len(ious) for least in (0.5, 0.7)
    }
    metrics["mean_iou"] = fmean(means)
    metrics |= {f"precision@0.5_{name}": part["accuracy"] for name, part in areas.items()}
    return {**figures, "metrics": metrics, "mean_iou_interval": list(bootstrap_interval(means)), "areas": areas}


def _area(box: Sequence[float]) -> str:
    area = (box[2] - box[0]) * (box[3] - box[1])
    return next(name for name, most in BOX_AREAS if area <= most)
