"""`rs-rlhf report RUN_DIR`: writes one HTML page about a training run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..options import option
from ..runs.report import CAPS, write_report


@dataclass(kw_only=True)
class ReportOptions:
    """Write one HTML page about a training run, without W&B."""

    run: Path = option(help="output_dir of the run", positional=True, metavar="RUN_DIR")
    output: Path | None = option(
        None, "HTML file to write (default: RUN_DIR/report.html)", metavar="FILE", writes="file"
    )


ReportOptions.__doc__ = f"{ReportOptions.__doc__} {CAPS}"


def main(options: ReportOptions) -> None:
    """Writes the page and prints its warnings."""
    output = options.output or options.run / "report.html"
    page = write_report(options.run, output)
    for line in page["warnings"]:
        print(f"Warning: {line}")
    print(f"Report -> {output}")
