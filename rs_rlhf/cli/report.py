"""`rs-rlhf report RUN_DIR`: writes one HTML page about a training run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..options import option, parse


@dataclass(kw_only=True)
class ReportOptions:
    """Write one HTML page about a training run, without W&B."""

    run: Path = option(help="output_dir of the run", positional=True, metavar="RUN_DIR")
    output: Path | None = option(None, "HTML file to write (default: RUN_DIR/report.html)", metavar="FILE")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0."""
    from ..runs.report import CAPS, write_report

    options = parse(ReportOptions, argv, "rs-rlhf report", f"{ReportOptions.__doc__} {CAPS}")
    output = options.output or options.run / "report.html"
    page = write_report(options.run, output)
    for line in page["warnings"]:
        print(f"Warning: {line}")
    print(f"Report -> {output}")
    return 0
