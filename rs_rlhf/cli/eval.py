"""Evaluation commands: `rs-rlhf eval run`, `compare`, `export` and `preferences`, and `rs-rlhf best-of-n`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..data.columns import ColumnOptions
from ..data.rows import check_there
from ..errors import OptionError
from ..evaluation.options import BestOfNOptions, DataOptions, EvalOptions
from ..imagery.arguments import ReadingOptions
from ..options import option
from ..scoring.several import SeveralOptions


def run(options: EvalOptions) -> None:
    """Evaluates the model and prints each task's table; `--list` prints the benchmarks."""
    if options.list:
        from ..evaluation.benchmark import benchmark_list

        print(benchmark_list())
        return
    from ..evaluation.evaluate import evaluate
    from ..evaluation.results import results_table
    from ..runs.tables import print_markdown

    for name, results in evaluate(options):
        print_markdown(results_table(results, [name]))


@dataclass(kw_only=True)
class EvalCompareOptions(DataOptions):
    """Say whether B answers better than A, question by question."""

    a: str = option(
        help="output folder of `rs-rlhf eval`, or a folder of lmms-eval's samples", positional=True, metavar="A"
    )
    b: str = option(help="output folder of another model on the same data", positional=True, metavar="B")
    task: list[str] | None = option(None, "tasks to compare (default: all that both have)", metavar="T")
    out: Path | None = option(
        None,
        "write compare.md, .json, .html and flips_TASK.jsonl there",
        flags=["--output_dir"],
        metavar="DIR",
        writes="folder",
    )
    latex: bool = option(False, "print a LaTeX table with intervals (package booktabs) instead")
    seed: int = option(0, "seed of the bootstrap", least=0)


def compare_runs(options: EvalCompareOptions) -> None:
    """Prints the table and the verdicts; with `--out` writes them, and the page that shows the changed answers."""
    from ..evaluation.benchmark import data_paths
    from ..evaluation.compare import compare, latex, markdown
    from ..evaluation.pages.comparison import write
    from ..runs.tables import print_markdown

    tasks = options.task and [name for entry in options.task for name in entry.split(",") if name]
    compared = compare(options.a, options.b, tasks, seed=options.seed)
    if options.latex:
        print(latex(compared))
    else:
        print_markdown(markdown(compared))
    if options.out:
        data = data_paths(options.data, compared["flips"])
        for path in write(compared, options.out, options.data_root, data):
            print(f"-> {path}", file=sys.stderr if options.latex else sys.stdout)


@dataclass(kw_only=True)
class EvalExportOptions(DataOptions):
    """Write an evaluation as lm-evaluation-harness or lmms-eval do, log it to W&B, or write tasks of lmms-eval."""

    run: Path | None = option(None, "output folder of `rs-rlhf eval`", positional=True, metavar="DIR")
    format: Literal["lm-eval", "lmms-eval", "wandb"] | None = option(
        None, "lm-eval, lmms-eval: files of these; wandb: a run"
    )
    tasks: str | None = option(
        None,
        "in place of DIR: benchmarks by name or YAML file, separated by commas (all: every one that lmms-eval can "
        "run), as tasks of lmms-eval, with their questions if the data are there",
        metavar="A,B,…",
    )
    out: Path | None = option(
        None,
        "where to write files (default: DIR/lm_eval, DIR/lmms_eval, or lmms_tasks)",
        flags=["--output_dir"],
        writes="folder",
    )
    project: str = option("rs-rlhf", "wandb: project", flags=["--wandb_project"])
    name: str | None = option(None, "wandb: name of the run (default: the model's)")
    limit: int = option(64, "wandb: samples per table; 0: no tables")


def export(options: EvalExportOptions) -> None:
    """Writes the files, or logs the run."""
    from ..evaluation.export import log_to_wandb, write_lm_eval
    from ..evaluation.results import read_results, read_samples

    if (options.tasks is None) == (options.run is None):
        raise OptionError("give the output folder of an evaluation, or --tasks.", "run")
    if options.tasks is not None:
        from ..evaluation.lmms.tasks import write_tasks

        for path in write_tasks(options.tasks, options.out or Path("lmms_tasks"), options.data_root, options.data):
            print(f"-> {path}")
        return
    assert options.run is not None
    if options.format is None:
        raise OptionError("no --format; give lm-eval, lmms-eval or wandb.", "format")
    if options.format != "wandb":
        folder = options.out or options.run / options.format.replace("-", "_")
        for path in write_lm_eval(options.run, folder, lmms=options.format == "lmms-eval"):
            print(f"-> {path}")
        return
    if options.limit < 0:
        raise OptionError(f"--limit is {options.limit}; it must be 0 (no tables) or more.", "limit")
    results = read_results(options.run)
    samples = {task: read_samples(options.run, task, figures) for task, figures in results["tasks"].items()}
    log_to_wandb(results, samples, options.project, options.name, options.limit)
    print(f"{len(samples)} tasks -> W&B project {options.project}")


@dataclass(kw_only=True)
class EvalPreferencesOptions(SeveralOptions, ReadingOptions, ColumnOptions):
    """Measure a score model on preference files: print the report, and write it as JSON."""

    model: str = option(
        help="name in reward_models/, folder, or hub id of a score model; several (a,b,c) are combined",
        reads="model",
    )
    preferences: list[str] = option(help="preference files", metavar="FILE", reads=check_there)
    split: str | None = option(None, "split of a folder or Hub id; a file has none")
    image_blind: bool = option(False, "leave the images out")
    output: Path | None = option(None, "JSON file to write the report to", flags=["--out"], writes="file")
    limit: int | None = option(None, "rows at most, drawn with the seed")
    token_budget: int = option(4096, "tokens of a batch at most")
    seed: int = option(0, "seed of all draws", least=0)


def preferences(options: EvalPreferencesOptions) -> None:
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
    scorer = load_scorer(options.model, image_options, token_budget=options.token_budget, **options.several())
    groups = [group_from_row(row) for row in data]
    report = evaluate_preferences(
        scorer, groups, seed=options.seed, image_blind=options.image_blind, options=image_options
    )
    made_of = {"model": options.model, **options.combination(options.model)}
    report = {**made_of, "preferences": options.preferences, "seed": options.seed, **report}
    print_markdown(format_report(report))
    if options.output:
        write_json(options.output, report)
        print(f"Report written to {options.output}", file=sys.stderr)


def best_of_n(options: BestOfNOptions) -> None:
    """Writes `best_of_n.json`, `.md` and the picture, and prints the table."""
    from ..evaluation.best_of_n import run_best_of_n
    from ..runs.tables import print_markdown
    from ..scoring.comparison import markdown, write

    formats = options.formats()
    results = run_best_of_n(options)
    written = write(results, options.out, formats)
    print_markdown(markdown(results))
    print(f"\nBest of n -> {', '.join(map(str, written))}")
