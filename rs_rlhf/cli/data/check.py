"""`rs-rlhf data check`: lists every problem of preference files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...imagery.arguments import ReadingOptions
from ...options import option, parse
from ...preferences.check import check_files, format_report


@dataclass(kw_only=True)
class CheckOptions(ReadingOptions):
    """Lists every problem of preference files."""

    files: list[str] = option(help="training files, folders or Hub ids", positional=True, metavar="FILE", nargs="+")
    eval: list[str] = option([], "evaluation files, compared with FILE", metavar="FILE")
    max_problems: int | None = option(None, "print at most N problems (default: all)", metavar="N")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the report; returns 1 if there are problems, else 0."""
    options = parse(CheckOptions, argv, "rs-rlhf data check")
    images, most = options.reader_options(), options.max_problems
    report = check_files(options.files, options=images, eval_files=options.eval, max_problems=most)
    print(format_report(report))
    return 1 if report.total_problems else 0
