"""`rs-rlhf eval compare A B`: whether one model's answers are better than another's, question by question."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..evaluation.options import DataOptions
from ..options import option


@dataclass(kw_only=True)
class EvalCompareOptions(DataOptions):
    """Say whether B answers better than A, question by question."""

    a: str = option(help="output folder of `rs-rlhf eval`", positional=True, metavar="A")
    b: str = option(help="output folder of another model on the same data", positional=True, metavar="B")
    task: list[str] | None = option(None, "tasks to compare (default: all that both have)", metavar="T")
    out: Path | None = option(
        None,
        "write compare.md, .json, .html and flips_TASK.jsonl there",
        flags=["--output_dir"],
        metavar="DIR",
        writes="folder",
    )
    seed: int = option(0, "seed of the bootstrap")


def main(options: EvalCompareOptions) -> None:
    """Prints the table and the verdicts; with `--out` writes them, and the page that shows the changed answers."""
    from ..evaluation.benchmark import data_paths
    from ..evaluation.compare import compare, markdown, write
    from ..runs.tables import print_markdown

    tasks = options.task and [name for entry in options.task for name in entry.split(",") if name]
    compared = compare(options.a, options.b, tasks, seed=options.seed)
    print_markdown(markdown(compared))
    if options.out:
        data = data_paths(options.data, compared["flips"])
        for path in write(compared, options.out, options.data_root, data):
            print(f"-> {path}")
