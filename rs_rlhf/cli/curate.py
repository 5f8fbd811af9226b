"""`rs-rlhf curate`: keeps the best part of scored image-text data, in the data's own format, with a report."""

from __future__ import annotations

from ..curation.options import CurateOptions


def main(options: CurateOptions) -> None:
    """Writes one folder for each cut and prints what was kept."""
    options.check()  # before the imports, so that a mistake is answered at once
    from ..curation.curate import curate

    curate(options)
