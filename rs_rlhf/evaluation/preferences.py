"""How often a score model prefers the better text: a report on preference files, in the manner of RewardBench.

Pair accuracy over all and per kind and source with 95% intervals, ties, the swap test, the image-shuffle gap, and
calibration.
A row with several rejected completions counts once per rejected. Every text is scored through [`Scorer`].

Declared preference benchmarks are scored and reported by the same functions, see `eval_protocols`. Left out: a fitted
temperature (calibration is reported as it is).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data.group import Group
from ..data.other_images import partners_of
from ..imagery.arguments import add_image_flags, image_options_from
from ..imagery.sources import DEFAULTS, ImageOptions
from ..metrics.intervals import wilson_interval
from ..metrics.preferences import comparisons, top1
from ..preferences.schema import group_from_row
from ..runs.tables import markdown_table


def evaluate_preferences(
    scorer: Any,
    groups: Sequence[Group],
    *,
    seed: int = 0,
    image_blind: bool = False,
    shuffle: bool = True,
    options: ImageOptions = DEFAULTS,
) -> dict[str, Any]:
    """Scores preference groups and reports how the chosen texts fare.

    Args:
        scorer ([`Scorer`]): The score model.
        groups (sequence of [`Group`]): Completions best first.
        seed (`int`): Seed of the image shuffle.
        image_blind (`bool`): Leave the images out, for a model trained without them.
        shuffle (`bool`): Also score with other rows' images.
        options ([`ImageOptions`]): How the images are read, to tell which are the same picture.

    Returns:
        `dict`: See [`preference_report`].
    """
    from ..models.collator import without_images

    if image_blind:
        groups = [without_images(group) for group in groups]
    partners = partners_of(groups, options, seed) if shuffle else [None] * len(groups)
    said = score_preferences(scorer, groups, [None if j is None else groups[j] for j in partners])
    return preference_report(
        [{**one, "kind": group.kind, "source": group.source} for one, group in zip(said, groups, strict=True)]
    )


def score_preferences(
    scorer: Any, groups: Sequence[Group], others: Sequence[Group | None]
) -> list[dict[str, list[float]]]:
    """Scores preference groups three times: as they are, in the reverse order, and with another one's images.

    Args:
        scorer ([`Scorer`]): The score model.
        groups (sequence of [`Group`]): Completions best first.
        others (sequence of [`Group`]): For each the group whose images it is shown, or `None`; see [`partners_of`].

    Returns:
        `list[dict]`: `scores`, `swapped` (still in the order of the reversed group) and, where there is another
        group, `shuffled`.
    """
    right = scorer.score_groups(groups)
    swapped = scorer.score_groups([replace(g, completions=g.completions[::-1]) for g in groups])
    said = [{"scores": list(one), "swapped": list(two)} for one, two in zip(right, swapped, strict=True)]
    shown = [(i, other) for i, other in enumerate(others) if other is not None]
    if shown:
        wrong = scorer.score_groups([replace(groups[i], images=other.images) for i, other in shown])
        for (i, _), scores in zip(shown, wrong, strict=True):
            said[i]["shuffled"] = list(scores)
    return said


def preference_report(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Reports how the chosen texts fare.

    Args:
        records (sequence of `dict`): `kind`, `source` and the scores of [`score_preferences`], chosen first.

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
        parts = defaultdict(list)
        for record in records:
            parts[record[key]].append(record["scores"])
        report[f"by_{key}"] = {name: _figures(part) for name, part in sorted(parts.items())}
    return report


def calibration(scores: Sequence[Sequence[float]], bins: int = 10) -> dict[str, Any]:
    """How well score differences, read as Bradley-Terry odds, say how often the higher-scored text is the better.

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
        confidence, right = (math.fsum(column) / len(part) for column in zip(*part, strict=True))
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


def format_report(report: Mapping[str, Any]) -> str:
    """Returns the report as a Markdown table."""

    def line(name: str, part: Mapping[str, Any]) -> list[str]:
        interval = "{:.1%} – {:.1%}".format(*part["interval"])
        return [name, part["n"], f"{part['accuracy']:.1%}", interval, f"{part['ties']:.1%}", f"{part['margin']:+.3f}"]

    rows = []
    for key in ("by_kind", "by_source"):
        if len(report[key]) > 1 or key == "by_kind":
            rows += [line(f"{key[3:]}: {name}", part) for name, part in report[key].items() if name]
    rows.append(line("all", report))
    if "shuffled" in report:
        rows.append(line("all, another row's image", report["shuffled"]))
    lines = [markdown_table(["pairs", "n", "accuracy", "95% interval", "ties", "margin"], rows, "lrrlr")]
    if "shuffled" in report:
        lines.append(f"\nImage-shuffle gap: {report['shuffled']['gap']:+.1%}.")
    if "top1" in report:
        low, high = report["top1_interval"]
        lines.append(
            f"\nBest of its whole list: {report['top1']:.1%} of {report['rows']} rows ({low:.1%} – {high:.1%})."
        )
    lines.append(f"{'' if 'shuffled' in report else chr(10)}Swap test: off by {report['swap_error']:.1%}.")
    lines.append(f"Calibration error of the score differences: {report['calibration']['error']:.1%}.")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """`rs-rlhf eval --model M --preferences FILE…`: prints the report and writes it as JSON."""
    parser = argparse.ArgumentParser(prog="rs-rlhf eval", description=main.__doc__)
    parser.add_argument("--model", required=True, help="Name in reward_models/, folder, or hub id of a score model.")
    parser.add_argument("--preferences", required=True, nargs="+", metavar="FILE", help="Preference files.")
    parser.add_argument("--split", help="Split of a folder or Hub id; a file has none.")
    add_image_flags(parser)
    parser.add_argument("--image_blind", action="store_true", help="Leave the images out.")
    parser.add_argument("--output", help="JSON file to write the report to.")
    parser.add_argument("--limit", type=int, help="Rows at most, drawn with the seed.")
    parser.add_argument("--token_budget", type=int, default=4096, help="Tokens of a batch at most.")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    from ..preferences.reader import load_with_images
    from ..scoring.load import load_scorer

    options = image_options_from(args)
    data, root = load_with_images(args.preferences, args.split, args.image_root)
    if args.limit is not None and args.limit < len(data):
        data = data.shuffle(seed=args.seed).select(range(args.limit))
    options = replace(options, image_root=root)
    scorer = load_scorer(args.model, options, token_budget=args.token_budget)
    groups = [group_from_row(row) for row in data]
    report = evaluate_preferences(scorer, groups, seed=args.seed, image_blind=args.image_blind, options=options)
    report = {"model": args.model, "preferences": args.preferences, "seed": args.seed, **report}
    print(format_report(report))
    if args.output:
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        Path(args.output).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        print(f"Report written to {args.output}", file=sys.stderr)
    return 0
