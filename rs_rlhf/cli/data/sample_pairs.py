"""`rs-rlhf data sample-pairs`: preference pairs from a policy's wrong answers."""

from __future__ import annotations

from collections.abc import Sequence

from ...options import parse
from ...preferences.mistakes import SamplePairsOptions, sample_pairs


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0."""
    sample_pairs(parse(SamplePairsOptions, argv, "rs-rlhf data sample-pairs"))
    return 0
