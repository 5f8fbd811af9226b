"""`rs-rlhf plot RUN`: draws the learning curve of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..options import option


@dataclass(kw_only=True)
class PlotOptions:
    """Draw the learning curve of a training run."""

    run: Path = option(help="output_dir of the run", positional=True)
    output: Path | None = option(None, "PNG to write (default: RUN/learning_curve.png)", writes="file")


def main(options: PlotOptions) -> None:
    """Draws the curve."""
    from ..runs.plots import plot_run

    output = options.output or options.run / "learning_curve.png"
    plot_run(options.run, output)
    print(f"Learning curve -> {output}")
