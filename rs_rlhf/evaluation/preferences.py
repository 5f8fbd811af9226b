"""Report on how often a score model prefers the better text, in the manner of RewardBench.

Pair accuracy over all rows, per kind and per source with 95% intervals, ties, the swap test, the image-shuffle gap,
and calibration. A row with several rejected completions counts once per rejected.

Declared preference benchmarks are scored and reported by the same functions, see `protocols`. Left out: a fitted
temperature (calibration is reported as it is).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..data.group import Group
from ..data.other_images import partners_of
from ..imagery.sources import DEFAULTS, ImageOptions
from ..metrics.preferences import preference_report
from ..runs.tables import markdown_table
from ..scoring.base import GroupScorer


def evaluate_preferences(
    scorer: GroupScorer,
    groups: Sequence[Group],
    *,
    seed: int = 0,
    image_blind: bool = False,
    shuffle: bool = True,
    options: ImageOptions = DEFAULTS,
) -> dict[str, Any]:
    """Scores preference groups (completions best first) and returns their [`preference_report`].

    `seed` draws the other rows' images, whose scores `shuffle` asks for; `image_blind` leaves all images out, for a
    model that was trained without them; `options` say how images are read, to tell which are the same picture.
    """
    from ..models.collator import without_images

    if image_blind:
        groups = [without_images(group) for group in groups]
    partners = partners_of(groups, options, seed) if shuffle else [None] * len(groups)
    records = score_preferences(scorer, groups, [None if j is None else groups[j] for j in partners])
    return preference_report(
        [{**record, "kind": group.kind, "source": group.source} for record, group in zip(records, groups, strict=True)]
    )


def score_preferences(
    scorer: GroupScorer, groups: Sequence[Group], others: Sequence[Group | None]
) -> list[dict[str, list[float]]]:
    """Scores preference groups as they are, in the reverse order, and with another group's images if there is one.

    Returns for each group `scores`, `swapped` (in the order of the reversed group) and, with another group,
    `shuffled`.
    """
    right = scorer.score_groups(groups)
    swapped = scorer.score_groups([replace(g, completions=g.completions[::-1]) for g in groups])
    records = [{"scores": list(one), "swapped": list(two)} for one, two in zip(right, swapped, strict=True)]
    shown = [(i, other) for i, other in enumerate(others) if other is not None]
    if shown:
        wrong = scorer.score_groups([replace(groups[i], images=other.images) for i, other in shown])
        for (i, _), scores in zip(shown, wrong, strict=True):
            records[i]["shuffled"] = list(scores)
    return records


def format_report(report: Mapping[str, Any]) -> str:
    """Returns the report as a Markdown table, and the other figures below it."""

    def line(name: str, part: Mapping[str, Any]) -> list[str]:
        low, high = part["interval"]
        shares = [f"{part['accuracy']:.1%}", f"{low:.1%} – {high:.1%}", f"{part['ties']:.1%}"]
        return [name, str(part["n"]), *shares, f"{part['margin']:+.3f}"]

    rows = []
    for key in ("by_kind", "by_source"):
        if len(report[key]) > 1 or key == "by_kind":
            rows += [line(f"{key[3:]}: {name}", part) for name, part in report[key].items() if name]
    rows.append(line("all", report))
    notes = []
    if "shuffled" in report:
        rows.append(line("all, another row's image", report["shuffled"]))
        notes.append(f"Image-shuffle gap: {report['shuffled']['gap']:+.1%}.")
    if "top1" in report:
        low, high = report["top1_interval"]
        share = f"{report['top1']:.1%} of {report['rows']} rows ({low:.1%} – {high:.1%})"
        notes += [""] * bool(notes) + [f"Best of its whole list: {share}."]
    notes.append(f"Swap test: off by {report['swap_error']:.1%}.")
    notes.append(f"Calibration error of the score differences: {report['calibration']['error']:.1%}.")
    header = ("pairs", "n", "accuracy", "95% interval", "ties", "margin")
    return "\n".join([markdown_table(header, rows, "lrrlrr"), "", *notes])
