"""Figures about preferences, in pure Python.

Left out: parsers of answers (`answer_matching`) and figures of benchmarks (`task_metrics`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


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
    return {"n": n, "wins": wins, "accuracy": wins / n, "ties": ties / n, "margin": math.fsum(margins) / n}


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
        `top1` where a row has several rejected completions, and
        `accuracy_kind/…`, `accuracy_source/…` where more than one kind or source is present. Empty without records.
    """
    if not records:
        return {}
    flat = [score for record in records for score in record["scores"]]
    compared = comparisons([record["scores"] for record in records])
    mean = math.fsum(flat) / len(flat)
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
        parts = defaultdict(list)
        for record in records:
            parts[record.get(key) or ""].append(record["scores"])
        if len(parts) > 1 or key == "kind":
            out |= {
                f"accuracy_{key}/{name}": comparisons(part)["accuracy"] for name, part in sorted(parts.items()) if name
            }
    return out
