"""Progress of a long run, and the versions that its results were made with."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

from tqdm import tqdm

from ..version import __version__

EVERY = 30  # seconds between two lines


class Progress:
    """Counts what is done: a bar on a terminal, elsewhere a line with the time left twice a minute; use [`progress`].

    Calling it with a count advances it by that many.
    """

    def __init__(self, bar: tqdm, what: str, unit: str, shown: bool) -> None:
        self.bar, self.what, self.unit, self.shown = bar, what, unit, shown
        self.done = self.first = int(bar.n)
        self.start = self.last_line = time.monotonic()

    def __call__(self, count: int) -> None:
        """Counts further units."""
        self.reach(self.done + count)

    def reach(self, done: int, note: str = "") -> None:
        """Says how much is done in all, with a note such as a speed."""
        self.bar.set_postfix_str(note, refresh=False)
        self.bar.update(done - self.done)
        self.done, now = done, time.monotonic()
        if not self.shown or not self.bar.disable or now - self.last_line <= EVERY:
            return
        self.last_line = now
        parts = [f"{self.what}: {done} {self.unit}s"]
        if self.bar.total is not None:
            left = (now - self.start) / max(done - self.first, 1) * (self.bar.total - done)
            parts = [f"{self.what}: {done} of {self.bar.total} {self.unit}s", note, f"{left / 60:.0f} min left"]
        print(", ".join(filter(None, parts)), file=sys.stderr, flush=True)


@contextmanager
def progress(
    total: int | None, done: int, what: str, *, unit: str = "row", shown: bool = True, leave: bool = True
) -> Iterator[Progress]:
    """Shows the progress of a loop of `total` units (if known), of which `done` were done before.

    Nothing is shown unless `shown`, as on all processes but the first; `leave` keeps the finished bar on the terminal.
    """
    hidden = not (shown and sys.stderr.isatty())
    with tqdm(total=total, initial=done, desc=what, unit=unit, disable=hidden, leave=leave) as bar:
        yield Progress(bar, what, unit, shown)


def versions(*packages: str) -> dict[str, str]:
    """Returns the version of rs-rlhf and of packages, `"not installed"` for one that is missing."""

    def of(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    return {"rs-rlhf": __version__} | {package: of(package) for package in packages}
