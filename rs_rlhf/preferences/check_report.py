"""The report of a data check: problems of one kind together, counts and lengths of the good rows.

Left out: problems as JSON.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..data.group import Group, completion_text, prompt_text
from ..errors import DataError

_PARTICULAR = re.compile(r"'[^']*'|\"[^\"]*\"|\d+")  # names and numbers, which differ from row to row
_PLACE = re.compile(r"(.*), (line|row) (\d+)")
KEPT = 1000  # problems of a kind in `Report.problems`; all are counted
SHOWN = 5  # ranges of rows in a line


@dataclass
class Kind:
    """Problems of one kind in one file: the first, how many, and the ranges of rows that have one."""

    first: DataError
    count: int = 0
    rows: int = 0
    ranges: list[list[int]] = field(default_factory=list)


@dataclass
class Report:
    """What a data check found.

    Args:
        max_problems (`int`, *optional*): Kinds of problems that are kept.
        problems (`list[DataError]`): Those of these kinds, at most 1000 of each, in the order of the files: `where`
            (file and row, or the whole file), `key` (the column at fault, if there is one) and `detail`.
        total_problems (`int`): All of them.
        rows, images, text_only (`int`): Good rows (an RSRM row counts once per pair), their image placements, rows
            without an image; training and evaluation files together.
        different_images (`int`): Images that differ in content.
        sources, kinds (`Counter`): Good rows per source and kind; `""` is a missing kind.
        lengths (`dict`): Per name of a text (`"prompt"`, `"chosen"`, …) and unit (`"characters"`, `"words"`):
            min, median, mean, p95, max.
    """

    max_problems: int | None = None
    problems: list[DataError] = field(default_factory=list)
    total_problems: int = 0
    rows: int = 0
    images: int = 0
    different_images: int = 0
    text_only: int = 0
    sources: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    lengths: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    found: dict[tuple[str, str], Kind] = field(default_factory=dict, repr=False)
    _lengths: dict[tuple[str, str], list[int]] = field(default_factory=lambda: defaultdict(list), repr=False)

    def problem(self, detail: str, key: str, where: str) -> None:
        """Adds a problem to those of its kind: problems that differ in names and numbers alone."""
        self.total_problems += 1
        place = _PLACE.fullmatch(where)
        error = DataError(detail, key, where)
        group = (place[1] if place else where, _PARTICULAR.sub("*", detail))
        if group not in self.found and len(self.found) == self.max_problems:
            return
        kind = self.found.setdefault(group, Kind(error))
        kind.count += 1
        if kind.count <= KEPT:
            self.problems.append(error)
        number = int(place[3]) if place else -1
        if not kind.ranges or number > kind.ranges[-1][1] + 1:
            kind.ranges.append([number, number])
            kind.rows += 1
        elif number > kind.ranges[-1][1]:
            kind.ranges[-1][1] = number
            kind.rows += 1

    def count(self, group: Group, keys: Sequence[str]) -> None:
        """Counts a good row: a group, whose completions have these names in the table of lengths."""
        self.rows += 1
        self.images += len(group.images)
        self.text_only += not group.images
        self.sources[group.source] += 1
        self.kinds[group.kind] += 1
        texts = [prompt_text(group.prompt), *map(completion_text, group.completions)]
        for name, text in zip(("prompt", *keys), texts, strict=True):
            self._lengths[name, "characters"].append(len(text))
            self._lengths[name, "words"].append(len(text.split()))

    def finished(self) -> Report:
        """Fills in `lengths`, and returns the report."""
        for (name, unit), values in self._lengths.items():
            self.lengths.setdefault(name, {})[unit] = _statistics(values)
        return self


def format_report(report: Report) -> str:
    """Returns the report as text: the kinds of problems one a line, then counts and lengths of the good rows."""
    lines = [_line(*group, kind) for group, kind in report.found.items()]
    hidden = report.total_problems - sum(kind.count for kind in report.found.values())
    if hidden:
        lines.append(f"... and {hidden} more")
    lines.append(f"{report.total_problems or 'no'} problem{'s' * (report.total_problems != 1)}")
    lines.append(
        f"{report.rows} good rows: {report.rows - report.text_only} with images ({report.images} images, "
        f"{report.different_images} different), {report.text_only} text-only"
    )
    for title, counter in (("source", report.sources), ("kind", report.kinds)):
        counts = ", ".join(f"{name or '(none)'} {count}" for name, count in counter.most_common())
        lines.append(f"rows per {title}: {counts or '(none)'}")
    if report.lengths:
        lines.append(f"{'length':<22}" + "".join(f"{name:>9}" for name in ("min", "median", "mean", "p95", "max")))
    for name, units in report.lengths.items():
        for unit, values in units.items():
            figures = "".join(f"{value:>9.1f}" if value % 1 else f"{value:>9.0f}" for value in values.values())
            lines.append(f"{name + ' ' + unit:<22}{figures}")
    return "\n".join(lines)


def _line(file: str, _: str, kind: Kind) -> str:
    """Problems of one kind in words: one as it is, several with their rows and the first of them."""
    place = _PLACE.fullmatch(kind.first.where)
    if kind.rows < 2 or place is None:
        return str(kind.first) + (f" ({kind.count} times)" if kind.count > 1 else "")
    spans = [f"{start}-{stop}" if stop > start else f"{start}" for start, stop in kind.ranges]
    rows = ", ".join([*spans[:SHOWN], *(["…"] if len(spans) > SHOWN else [])])
    return f"{file}: {kind.rows} rows, {place[2]}s {rows}: {kind.first.detail} (the first, {place[2]} {place[3]})"


def _statistics(values: Sequence[int]) -> dict[str, float]:
    import numpy as np

    array = np.asarray(values)
    figures = array.min(), np.median(array), array.mean(), np.percentile(array, 95), array.max()
    return {name: float(v) for name, v in zip(("min", "median", "mean", "p95", "max"), figures, strict=True)}
