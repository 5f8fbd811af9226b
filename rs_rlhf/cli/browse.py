"""`rs-rlhf browse`: a page on this machine to look through scored data and to find where to cut it."""

from __future__ import annotations

from collections.abc import Sequence

from ..curation.browser.app import BrowseOptions, browse
from ..options import parse


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `rs-rlhf browse SCORES`: shows the page until SIGTERM or Ctrl-C; returns 0."""
    browse(parse(BrowseOptions, argv, "rs-rlhf browse"))
    return 0
