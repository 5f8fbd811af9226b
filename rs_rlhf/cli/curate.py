"""`rs-rlhf curate`: keeps the best part of scored image-text data, in the data's own format, with a report."""

from __future__ import annotations

from collections.abc import Sequence

from ..curation.options import CurateOptions
from ..options import parse


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `rs-rlhf curate`: writes one folder for each cut and prints what was kept."""
    options = parse(CurateOptions, argv, "rs-rlhf curate")
    options.check()  # before the imports, so that a mistake is answered at once
    from ..curation.curate import curate

    curate(options)
    return 0
