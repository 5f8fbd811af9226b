"""Figures of preferences: accuracy, margin, ties, top-1, and calibration of score differences."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from .intervals import wilson_interval


def comparisons(rows: Sequence[Sequence[float]]) -> dict[str, float]:
    """Compares the chosen completion of every preference row with each of its rejected ones.

    The one definition for the trainer's logs and for `rs-rlhf eval`: a row with several rejected completions counts
    once per rejected, and a tie is not a win.

    Args:
        rows (sequence of sequences of `float`): Scores of each row, the chosen first.

    Returns:
        `dict`: `n` comparisons, `wins`, and of all comparisons the share `accuracy` of wins, the share `ties`, and the
        mean `margin` (chosen minus rejected).

    Example:
        >>> comparisons([[3.0, 1.0, 4.0], [2.0, 2.0]])
        {'n': 3, 'wins': 1, 'accuracy': 0.3333333333333333, 'ties': 0.3333333333333333, 'margin': 0.3333333333333333}
    """
    margins = [row[0] - other for row in rows for other in row[1:]]
    n, wins = len(margins), sum(margin > 0 for margin in margins)
    ties = sum(margin == 0 for margin in margins)
    return {"n": n, "wins": wins, "accuracy": wins / n, "ties": ties / n, "margin": fmean(margins)}


def top1(rows: Iterable[Sequence[float]]) -> float:
    """Share of rows whose chosen completion scores above all rejected ones: of a list of 30 classes, 30-way accuracy.

    Args:
        rows (iterable of sequences of `float`): Scores of each row, the chosen first.

    Example:
        >>> top1([[3.0, 1.0, 4.0], [2.0, 1.0, 0.0]])
        0.5
    """
    wins = [row[0] > max(row[1:]) for row in rows]
    return sum(wins) / len(wins)


def preference_metrics(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Summarises scored preference rows.

    Args:
        records (sequence of `dict`): `scores` (chosen first), and optionally `kind` and `source`.

    Returns:
        `dict`: `accuracy`, `margin` and `ties` as in [`comparisons`], `mean`, `std`, `min`, `max` of all scores, and
        `top1` if a row has several rejected completions, and `accuracy_kind/…`, `accuracy_source/…` if more than one
        kind or source is present. Empty without records.
    """
    if not records:
        return {}
    flat = [score for record in records for score in record["scores"]]
    compared = comparisons([record["scores"] for record in records])
    mean = fmean(flat)
    out = {
        **{name: compared[name] for name in ("accuracy", "margin", "ties")},
        "mean": mean,
        "std": math.sqrt(math.fsum((s - mean) ** 2 for s in flat) / len(flat)),
        "min": min(flat),
        "max": max(flat),
    }
    if any(len(record["scores"]) > 2 for record in records):
        out["top1"] = top1(record["scores"] for record in records)
    for key in ("kind", "source"):
        parts = _by(records, key)
        if len(parts) > 1 or key == "kind":
            out |= {f"accuracy_{key}/{name}": comparisons(part)["accuracy"] for name, part in parts.items() if name}
    return out


def _by(records: Sequence[Mapping[str, Any]], key: str) -> dict[str, list[Sequence[float]]]:
    """The scores of each kind or source, `""` for none."""
    parts: dict[str, list[Sequence[float]]] = defaultdict(list)
    for record in records:
        parts[record.get(key) or ""].append(record["scores"])
    return dict(sorted(parts.items()))


def preference_report(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Reports how the chosen texts fare.

    Args:
        records (sequence of `dict`): `kind`, `source` and the scores of `score_preferences`, chosen first.

    Returns:
        `dict`: `n`, `accuracy`, `interval` (Wilson, 95%), `ties`, `margin`, `swap_error` (how far accuracy of the
        swapped pairs is from one minus accuracy and ties: 0 unless the order of a group matters), `shuffled` (the
        same figures with other images, and `gap`), `top1` (lists: how often the chosen text is the best),
        `calibration` (see [`calibration`]), and `by_kind`, `by_source`.
    """
    scores = [record["scores"] for record in records]
    report = _figures(scores)
    swapped = _figures([record["swapped"] for record in records])
    report["swap_error"] = abs(swapped["accuracy"] + report["accuracy"] + report["ties"] - 1)
    shown = [record for record in records if record.get("shuffled")]
    if shown:
        report["shuffled"] = _figures([record["shuffled"] for record in shown])
        right = _figures([record["scores"] for record in shown])
        report["shuffled"]["gap"] = right["accuracy"] - report["shuffled"]["accuracy"]
    report["calibration"] = calibration(scores)
    for key in ("kind", "source"):
        report[f"by_{key}"] = {name: _figures(part) for name, part in _by(records, key).items()}
    return report


def calibration(scores: Sequence[Sequence[float]], bins: int = 10) -> dict[str, Any]:
    """Measures how well score differences, read as Bradley-Terry odds, predict which text is the better.

    A pair whose scores differ by d is predicted with confidence 1 / (1 + exp(-d)), between a half and one. The
    expected calibration error is that of Guo et al. 2017: the mean distance of confidence and accuracy over bins of
    equal width, weighted by their pairs. Ties are half right.

    Args:
        scores (sequence of sequences of `float`): Of each row, chosen first.
        bins (`int`): Bins between a half and one.

    Returns:
        `dict`: `error`, and `bins`: of each that is not empty `n`, mean `confidence`, `accuracy`.
    """
    parts: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for row in scores:
        for other in row[1:]:
            margin = row[0] - other
            confidence = 1 / (1 + math.exp(-min(abs(margin), 700.0)))
            right = 0.5 if margin == 0 else float(margin > 0)
            parts[min(int((confidence - 0.5) * 2 * bins), bins - 1)].append((confidence, right))
    total = sum(map(len, parts.values()))
    out: list[dict[str, float]] = []
    for _, part in sorted(parts.items()):
        confidence, right = map(fmean, zip(*part, strict=True))
        out.append({"n": len(part), "confidence": confidence, "accuracy": right})
    error = math.fsum(one["n"] * abs(one["confidence"] - one["accuracy"]) for one in out) / total
    return {"error": error, "bins": out}


def _figures(scores: Sequence[Sequence[float]]) -> dict[str, Any]:
    figures: dict[str, Any] = comparisons(scores)
    interval = wilson_interval(figures.pop("wins"), figures["n"])
    figures |= {"rows": len(scores), "interval": list(interval)}
    if any(len(row) > 2 for row in scores):
        figures["top1"] = top1(scores)
        figures["top1_interval"] = list(wilson_interval(round(figures["top1"] * len(scores)), len(scores)))
    return figures
