"""`rs-rlhf data dpo`: candidate answers ordered by a score model, for `trl.DPOTrainer`."""

from __future__ import annotations

from collections.abc import Sequence

from ...options import parse
from ...preferences.dpo import DPOOptions, write_dpo


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0."""
    write_dpo(parse(DPOOptions, argv, "rs-rlhf data dpo"))
    return 0
