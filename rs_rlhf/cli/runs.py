"""Commands on training runs: `rs-rlhf report`, `rs-rlhf plot` and `rs-rlhf dashboard`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import OptionError
from ..options import option
from ..runs.charts.style import ChartOptions
from ..runs.report import CAPS, write_report

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import Report
    from wandb_workspaces.workspaces import Workspace

SMOOTHING = "weight of the past in curves of training, as TensorBoard and W&B smooth: from 0 (none) to less than 1"


def check_smoothing(smoothing: float) -> None:
    """Refuses a weight that is no weight."""
    if not 0 <= smoothing < 1:
        raise OptionError(f"--smoothing is {smoothing:g}, expected 0 (none) or more, and less than 1.", "smoothing")


@dataclass(kw_only=True)
class ReportOptions:
    """Write one HTML page about a training run, or about several side by side, without W&B."""

    runs: list[Path] = option(help="output_dir of each run", positional=True, metavar="RUN_DIR")
    output: Path | None = option(
        None, "HTML file to write (default: report.html in the first run)", metavar="FILE", writes="file"
    )
    smoothing: float = option(0.0, f"{SMOOTHING}; the page can change it")


ReportOptions.__doc__ = f"{ReportOptions.__doc__} {CAPS}"


def report(options: ReportOptions) -> None:
    """Writes the page and prints its warnings."""
    check_smoothing(options.smoothing)
    output = options.output or options.runs[0] / "report.html"
    page = write_report(options.runs, output, options.smoothing)
    for line in page["warnings"]:
        print(f"Warning: {line}")
    print(f"Report -> {output}")


@dataclass(kw_only=True)
class PlotOptions(ChartOptions):
    """Draw the learning curve of a training run, or those of several runs in one picture."""

    runs: list[Path] = option(help="output_dir of each run", positional=True, metavar="RUN_DIR")
    output: Path | None = option(
        None,
        "file to write, in the format of its suffix: .png, .svg, .pdf (default: learning_curve.png in the first run)",
        metavar="FILE",
        writes="file",
    )
    smoothing: float = option(0.0, SMOOTHING)


def plot(options: PlotOptions) -> None:
    """Draws the curves."""
    from ..runs.plots import plot_run

    check_smoothing(options.smoothing)
    output = options.output or options.runs[0] / "learning_curve.png"
    written = plot_run(options.runs, output, options.formats(), options.smoothing)
    print(f"Learning curve -> {', '.join(map(str, written))}")


@dataclass(kw_only=True)
class DashboardOptions:
    """Lay out a W&B workspace for the runs of a project."""

    entity: str = option(help="W&B user or team")
    project: str = option(help="W&B project")
    name: str = option("RLHF", "name of the workspace and of the report")
    report: bool = option(False, "write a W&B report with the same panels as well")
    dry_run: bool = option(False, "print what would be made as JSON; needs no network")


def dashboard(options: DashboardOptions) -> None:
    """Saves the workspace and the report, or prints them."""
    from ..runs.dashboard import build_report, build_workspace, save, specification

    of = (options.entity, options.project, options.name)
    made: dict[str, Workspace | Report] = {"workspace": build_workspace(*of)}
    if options.report:
        made["report"] = build_report(*of)
    if options.dry_run:
        specs = {name: specification(board) for name, board in made.items()}
        print(json.dumps({"entity": options.entity, "project": options.project} | specs, indent=2))
        return
    for board in made.values():
        save(board)
        print(f"{type(board).__name__} -> {board.url}")
