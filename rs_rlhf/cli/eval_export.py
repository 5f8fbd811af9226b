"""`rs-rlhf eval export DIR`: an evaluation in lm-evaluation-harness's format, or logged to W&B."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import OptionError
from ..options import option


@dataclass(kw_only=True)
class EvalExportOptions:
    """Write an evaluation as lm-evaluation-harness does, or log it to W&B."""

    run: Path = option(help="output folder of `rs-rlhf eval`", positional=True, metavar="DIR")
    format: Literal["lm-eval", "wandb"] = option(help="lm-eval: files; wandb: a run")
    out: Path | None = option(
        None, "lm-eval: where to write (default: DIR/lm_eval)", flags=["--output_dir"], writes="folder"
    )
    project: str = option("rs-rlhf", "wandb: project", flags=["--wandb_project"])
    name: str | None = option(None, "wandb: name of the run (default: the model's)")
    limit: int = option(64, "wandb: samples per table; 0: no tables")


def main(options: EvalExportOptions) -> None:
    """Writes the files, or logs the run."""
    from ..evaluation.export import log_to_wandb, write_lm_eval
    from ..evaluation.results import read_results, read_samples

    if options.format == "lm-eval":
        for path in write_lm_eval(options.run, options.out or options.run / "lm_eval"):
            print(f"-> {path}")
        return
    if options.limit < 0:
        raise OptionError(f"--limit is {options.limit}; it must be 0 (no tables) or more.", "limit")
    results = read_results(options.run)
    samples = {task: read_samples(options.run, task, figures) for task, figures in results["tasks"].items()}
    log_to_wandb(results, samples, options.project, options.name, options.limit)
    print(f"{len(samples)} tasks -> W&B project {options.project}")
