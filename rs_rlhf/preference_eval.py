"""How often a score model prefers the better text: a report on preference files, in the manner of RewardBench.

Pair accuracy over all and per kind and source with 95% intervals, ties, the swap test, and the image-shuffle gap.
A row with several rejected completions counts once per rejected. Every text is scored through [`Scorer`].

Left out: calibration and the declared benchmarks, which come with the evaluation harness.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .arguments import add_image_flags, image_options_from
from .data import Group, group_from_row
from .metrics import comparisons, top1, wilson_interval


def evaluate_preferences(
    scorer: Any, groups: Sequence[Group], *, seed: int = 0, image_blind: bool = False, shuffle: bool = True
) -> dict[str, Any]:
    """Scores preference groups and reports how the chosen texts fare.

    Args:
        scorer ([`Scorer`]): The score model.
        groups (sequence of [`Group`]): Completions best first.
        seed (`int`): Seed of the image shuffle.
        image_blind (`bool`): Leave the images out, for a model trained without them.
        shuffle (`bool`): Also score with other rows' images.

    Returns:
        `dict`: `n`, `accuracy`, `interval` (Wilson, 95%), `ties`, `margin`, `swap_error` (how far accuracy of the
        swapped pairs is from one minus accuracy and ties: 0 unless the order of a group matters), `shuffled` (the
        same figures with other images, and `gap`), `top1` (lists: how often the chosen text is the best), and
        `by_kind`, `by_source`.
    """
    from .groups import without_images

    if image_blind:
        groups = [without_images(group) for group in groups]
    scores = scorer.score_groups(groups)
    report = _figures(groups, scores)
    swapped = scorer.score_groups([replace(g, completions=g.completions[::-1]) for g in groups])
    report["swap_error"] = abs(_figures(groups, swapped)["accuracy"] + report["accuracy"] + report["ties"] - 1)
    with_images = [i for i, group in enumerate(groups) if group.images]
    if shuffle and with_images:
        partners = _partners([groups[i] for i in with_images], seed)
        kept = [(i, groups[with_images[j]]) for i, j in zip(with_images, partners, strict=True) if j is not None]
        if kept:
            shown = [groups[i] for i, _ in kept]
            wrong = scorer.score_groups([replace(groups[i], images=other.images) for i, other in kept])
            report["shuffled"] = _figures(shown, wrong)
            right = _figures(shown, [scores[i] for i, _ in kept])
            report["shuffled"]["gap"] = right["accuracy"] - report["shuffled"]["accuracy"]
    for key in ("kind", "source"):
        parts = defaultdict(list)
        for i, group in enumerate(groups):
            parts[getattr(group, key)].append(i)
        report[f"by_{key}"] = {
            name: _figures([groups[i] for i in part], [scores[i] for i in part])
            for name, part in sorted(parts.items())
        }
    return report


def _figures(groups: Sequence[Group], scores: Sequence[Sequence[float]]) -> dict[str, Any]:
    figures: dict[str, Any] = comparisons(scores)
    interval = wilson_interval(figures.pop("wins"), figures["n"])
    figures |= {"rows": len(groups), "interval": list(interval)}
    if any(len(row) > 2 for row in scores):
        figures["top1"] = top1(scores)
        figures["top1_interval"] = list(wilson_interval(round(figures["top1"] * len(scores)), len(scores)))
    return figures


def _partners(groups: Sequence[Group], seed: int) -> list[int | None]:
    """For each group another one with as many, different images; `None` where there is none."""
    order = list(range(len(groups)))
    random.Random(seed).shuffle(order)
    partners: list[int | None] = [None] * len(groups)
    for place, i in enumerate(order):
        for step in range(1, len(order)):
            j = order[(place + step) % len(order)]
            if len(groups[j].images) == len(groups[i].images) and groups[j].images != groups[i].images:
                partners[i] = j
                break
    return partners


def format_report(report: Mapping[str, Any]) -> str:
    """Returns the report as a Markdown table."""
    lines = ["| pairs | n | accuracy | 95% interval | ties | margin |", "|---|---:|---:|---|---:|---:|"]

    def line(name: str, part: Mapping[str, Any]) -> str:
        low, high = part["interval"]
        return (
            f"| {name} | {part['n']} | {part['accuracy']:.1%} | {low:.1%} – {high:.1%} | {part['ties']:.1%} "
            f"| {part['margin']:+.3f} |"
        )

    for key in ("by_kind", "by_source"):
        if len(report[key]) > 1 or key == "by_kind":
            lines += [line(f"{key[3:]}: {name}", part) for name, part in report[key].items() if name]
    lines.append(line("all", report))
    if "shuffled" in report:
        lines.append(line("all, another row's image", report["shuffled"]))
        lines.append(f"\nImage-shuffle gap: {report['shuffled']['gap']:+.1%}.")
    if "top1" in report:
        low, high = report["top1_interval"]
        lines.append(
            f"\nBest of its whole list: {report['top1']:.1%} of {report['rows']} rows ({low:.1%} – {high:.1%})."
        )
    lines.append(f"{'' if 'shuffled' in report else chr(10)}Swap test: off by {report['swap_error']:.1%}.")
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

    from .preference_data import load_with_images
    from .scorer import Scorer

    options = image_options_from(args)
    data, root = load_with_images(args.preferences, args.split, args.image_root)
    if args.limit is not None and args.limit < len(data):
        data = data.shuffle(seed=args.seed).select(range(args.limit))
    options = replace(options, image_root=root)
    scorer = Scorer.from_pretrained(args.model, image_options=options, token_budget=args.token_budget)
    groups = [group_from_row(row) for row in data]
    report = evaluate_preferences(scorer, groups, seed=args.seed, image_blind=args.image_blind)
    report = {"model": args.model, "preferences": args.preferences, "seed": args.seed, **report}
    print(format_report(report))
    if args.output:
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        Path(args.output).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        print(f"Report written to {args.output}", file=sys.stderr)
    return 0
