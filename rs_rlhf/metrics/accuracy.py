"""Figures of a task from its sample records: accuracies, grounding, intervals and paired tests.

Shares of right answers have Wilson's interval, means of other measures a percentile bootstrap. A question is the unit
that is drawn: questions about the same image are taken as independent, so intervals are somewhat narrow where there
are many of them.

Left out: average precision of detection (the grounding benchmarks ask for named boxes, without a confidence).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import OptionError
from .answers import BOX_UNITS, paired_ious, parse_boxes, to_unit
from .closed_answers import said_text
from .preferences import wilson_interval

BOX_AREAS = (("S", 32**2), ("M", 96**2), ("L", math.inf))  # pixels of the original image, up to and with the bound
Record = Mapping[str, Any]


def bootstrap_interval(
    values: Sequence[float], seed: int = 0, rounds: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of a mean (Efron 1979).

    Args:
        values (sequence of `float`): One value a question.
        seed (`int`): Seed of the draws.
        rounds (`int`): Draws of the whole sample, with replacement.
        level (`float`): Share of the drawn means that lie inside.

    Raises:
        ValueError: No values.
    """
    import numpy as np

    low, high = np.quantile(_drawn_means(values, seed, rounds), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], seed: int = 0, rounds: int = 10000
) -> tuple[float, tuple[float, float], float]:
    """Compares two models' values on the same questions.

    The p-value is that of the bootstrap around no difference: how often the mean of drawn differences, shifted to have
    mean 0, is at least as far from 0 as the one seen (Efron and Tibshirani 1993, section 16.4), two-sided; the sample
    seen counts as one of the draws, so that it is never 0.

    Args:
        a, b (sequences of `float`): Values in the same order.
        seed (`int`): Seed of the draws.
        rounds (`int`): Draws of the whole sample, with replacement.

    Returns:
        `tuple`: the mean of `b - a`, its 95% percentile interval `(low, high)`, and the p-value.

    Raises:
        ValueError: No values, or not as many of both.
    """
    import numpy as np

    if len(a) != len(b):
        raise OptionError(f"{len(a)} values of A and {len(b)} of B, expected as many; they must be paired.")
    differences = np.asarray(b, dtype=float) - np.asarray(a, dtype=float)
    means = _drawn_means(differences, seed, rounds)
    seen = float(differences.mean())
    low, high = np.quantile(means, [0.025, 0.975])
    if not differences.any():
        return 0.0, (0.0, 0.0), 1.0
    as_far = np.abs(means - seen) >= abs(seen) - 1e-12
    return seen, (float(low), float(high)), float((as_far.sum() + 1) / (rounds + 1))


def _drawn_means(values: Any, seed: int, rounds: int) -> Any:
    """Means of samples drawn with replacement, `(rounds,)`; drawn in blocks, so that memory stays small."""
    import numpy as np

    values = np.asarray(values, dtype=float)
    if not len(values):
        raise OptionError("no values, expected at least one; an interval needs answers.")
    random = np.random.default_rng(seed)
    block = max(1, 1_000_000 // len(values))
    return np.concatenate(
        [
            values[random.integers(len(values), size=(min(block, rounds - start), len(values)))].mean(axis=1)
            for start in range(0, rounds, block)
        ]
    )


def mcnemar(b: int, c: int) -> float:
    """Returns McNemar's exact two-sided p-value (McNemar 1947; the binomial form).

    Args:
        b (`int`): Questions that only the first model has right.
        c (`int`): Questions that only the second model has right.

    Example:
        >>> mcnemar(1, 9), mcnemar(0, 0)
        (0.021484375, 1.0)
    """
    n, fewer = b + c, min(b, c)
    if n < 1000:
        largest = math.comb(n, fewer) / 2**n
    else:  # whole numbers become slow
        largest = math.exp(math.lgamma(n + 1) - math.lgamma(fewer + 1) - math.lgamma(n - fewer + 1) - n * math.log(2))
    tail = term = 1.0  # of the largest probability, from which the smaller ones follow
    for k in range(fewer, 0, -1):
        term *= k / (n - k + 1)
        tail += term
    return min(1.0, 2 * tail * largest)


def accuracy_figures(records: Sequence[Record]) -> dict[str, Any]:
    """Figures of right and wrong answers, overall and by question type.

    Args:
        records (sequence of `dict`): `strict` (`bool`), `upstream_compat` (`bool` or `None`), `answer` (`None`
            where it is unparseable), `types` (`list[str]`); a record of several types counts in each.

    Returns:
        `dict`: `n`, `accuracy` (share of strictly right answers; RSVQA's OA), `interval` (Wilson, 95%),
        `upstream_compat` (share; `None` where the records have no such verdict), `parse_failures` (share), and, where
        records have types, `average_accuracy` (the mean of the types' accuracies, unweighted; RSVQA's AA, Lobry et al.
        2020) and `types` (`{type: the same figures}`).

    Raises:
        ValueError: No records.
    """
    figures = _accuracy(records)
    types = _by_type(records)
    if types:
        figures["types"] = {name: _accuracy(part) for name, part in types.items()}
        figures["average_accuracy"] = _mean([part["accuracy"] for part in figures["types"].values()])
    return figures


def _accuracy(records: Sequence[Record]) -> dict[str, Any]:
    if not records:
        raise OptionError("no sample records, expected at least one; there is nothing to report.")
    n, right = len(records), sum(bool(one["strict"]) for one in records)
    lenient = [one.get("upstream_compat") for one in records]
    return {
        "n": n,
        "accuracy": right / n,
        "interval": list(wilson_interval(right, n)),
        "upstream_compat": None if None in lenient else sum(map(bool, lenient)) / n,
        "parse_failures": sum(one["answer"] is None for one in records) / n,
    }


def _by_type(records: Sequence[Record]) -> dict[str, list[Record]]:
    types: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        for name in dict.fromkeys(record.get("types") or []):
            types[name].append(record)
    return dict(sorted(types.items()))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


# Grounding


def grounding_verdict(output: str, boxes: Sequence[Sequence[float]], size: Sequence[int], unit: str) -> dict[str, Any]:
    """Judges the boxes of an answer.

    An answer is right where every asked-for box has an IoU of at least 0.5 with its own (precision at IoU 0.5 where
    one box is asked for, as DIOR-RSVG and VRSBench report it). An answer with more or fewer boxes is wrong, all its
    IoUs 0; the code of arXiv 2503.00743 compares the first boxes of such an answer.

    Args:
        output (`str`): What the model wrote; boxes in thoughts are not read, see [`said_text`].
        boxes (sequence of boxes): The right boxes `(x1, y1, x2, y2)`, in pixels of the original image. One without
            area is asked for all the same (VRSBench has some): its IoU is 0.
        size (`(width, height)`): Of the original image, in pixels.
        unit (`str`): Unit of the answer's coordinates, a key of `answers.BOX_UNITS`.

    Returns:
        `dict`: `answer` (the answer's boxes in pixels, `None` where it has none), `boxes` (the right ones), `ious` (of
        each right box, in the one-to-one pairing of the greatest total), `strict` (`bool`), `iou` (their mean) and
        `upstream_compat` (`None`: the published rule is of words).

    Raises:
        ValueError: An unknown unit, or no right box.

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
    for box in parse_boxes(said_text(output)):
        x1, y1, x2, y2 = to_unit(box, unit, (width, height))
        found.append((x1 * width, y1 * height, x2 * width, y2 * height))
    ious = paired_ious(found, right) if len(found) == len(right) else [0.0] * len(right)
    return {
        "answer": [[round(side, 2) for side in box] for box in found] or None,
        "boxes": [list(box) for box in right],
        "ious": ious,
        "strict": all(iou >= 0.5 for iou in ious),
        "iou": _mean(ious),
        "upstream_compat": None,
    }


def grounding_figures(records: Sequence[Record]) -> dict[str, Any]:
    """Figures of grounding, overall, by question type, and by the size of the right box.

    Args:
        records (sequence of `dict`): From [`grounding_verdict`], with `types`.

    Returns:
        `dict`: as [`accuracy_figures`], where `accuracy` is the share of questions with all boxes at IoU 0.5 or
        above, and `metrics`: `precision@0.5` and `precision@0.7` (of boxes), `mean_iou` (of questions), and
        `precision@0.5_S`, `_M`, `_L` of the right boxes up to 32² pixels, up to 96², and above, in the original image
        (the areas of COCO and of arXiv 2503.00743; `None` where there are none); `mean_iou_interval` (95% bootstrap);
        `areas`: `{"S", "M", "L": {"n", "accuracy", "interval"}}` of boxes.

    Raises:
        ValueError: No records.
    """
    figures = accuracy_figures(records)
    ious = [(iou, _area(box)) for one in records for iou, box in zip(one["ious"], one["boxes"], strict=True)]
    areas: dict[str, dict[str, Any]] = {}
    for name, _ in BOX_AREAS:
        hits = [iou >= 0.5 for iou, area in ious if area == name]
        share = sum(hits) / len(hits) if hits else None
        areas[name] = {"n": len(hits), "accuracy": share, "interval": list(wilson_interval(sum(hits), len(hits)))}
    means = [one["iou"] for one in records]
    metrics: dict[str, float | None] = {
        f"precision@{least}": sum(iou >= least for iou, _ in ious) / len(ious) for least in (0.5, 0.7)
    }
    metrics["mean_iou"] = _mean(means)
    metrics |= {f"precision@0.5_{name}": part["accuracy"] for name, part in areas.items()}
    return {**figures, "metrics": metrics, "mean_iou_interval": list(bootstrap_interval(means)), "areas": areas}


def _area(box: Sequence[float]) -> str:
    area = (box[2] - box[0]) * (box[3] - box[1])
    return next(name for name, most in BOX_AREAS if area <= most)
