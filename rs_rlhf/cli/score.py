"""`rs-rlhf score`: scores every text of image-text data, on any number of processes."""

from __future__ import annotations

import sys

from ..curation.score import ScoreOptions, score, standing, summary_text
from ..curation.worker import is_first
from .signals import exit_code


def main(options: ScoreOptions) -> int:
    """Scores and prints the summary; returns 130 after Ctrl-C, 143 after SIGTERM."""
    try:
        summary = score(options)
    except KeyboardInterrupt as stop:
        if is_first():
            told = f"stopped; {standing(options.output)}. The same command resumes."
            print(f"\nrs-rlhf score: {told}", file=sys.stderr)
        return exit_code(stop)
    if is_first():
        print(summary_text(summary, options.output))
    return 0
