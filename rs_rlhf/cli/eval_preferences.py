"""`rs-rlhf eval preferences`, or `rs-rlhf eval --preferences FILE…`: a report on how a score model ranks texts."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from ..data.columns import ColumnOptions
from ..imagery.arguments import ReadingOptions
from ..options import option


@dataclass(kw_only=True)
class EvalPreferencesOptions(ReadingOptions, ColumnOptions):
    """Measure a score model on preference files: print the report, and write it as JSON."""

    model: str = option(help="name in reward_models/, folder, or hub id of a score model")
    preferences: list[str] = option(help="preference files", metavar="FILE")
    split: str | None = option(None, "split of a folder or Hub id; a file has none")
    image_blind: bool = option(False, "leave the images out")
    output: Path | None = option(None, "JSON file to write the report to", flags=["--out"], writes="file")
    limit: int | None = option(None, "rows at most, drawn with the seed")
    token_budget: int = option(4096, "tokens of a batch at most")
    seed: int = option(0, "seed of all draws")


def main(options: EvalPreferencesOptions) -> None:
    """Prints the report; with `--output` writes it as JSON."""

    from ..data.rows import draw_rows
    from ..evaluation.preferences import evaluate_preferences, format_report
    from ..preferences.reader import load_with_images
    from ..preferences.schema import group_from_row
    from ..runs.files import write_json
    from ..runs.tables import print_markdown
    from ..scoring.load import load_scorer

    data, root = load_with_images(options.preferences, options.split, options.image_root, options.named_columns())
    data = data.select(draw_rows(len(data), options.limit, options.seed))
    image_options = replace(options.reader_options(), image_root=root)
    scorer = load_scorer(options.model, image_options, token_budget=options.token_budget)
    groups = [group_from_row(row) for row in data]
    report = evaluate_preferences(
        scorer, groups, seed=options.seed, image_blind=options.image_blind, options=image_options
    )
    report = {"model": options.model, "preferences": options.preferences, "seed": options.seed, **report}
    print_markdown(format_report(report))
    if options.output:
        write_json(options.output, report)
        print(f"Report written to {options.output}", file=sys.stderr)
