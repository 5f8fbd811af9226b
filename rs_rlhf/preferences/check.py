"""The check of preference files: every problem with its file and row, before a run meets the first.

It reads the rows as a run does, but goes on after a bad one. Beyond what loading refuses it decodes every image once,
and looks across rows: equal completions, duplicates, contradictions (A over B here, B over A there), and images shared
by training and evaluation files by *content*, whatever their names. On good files it counts what is there: rows per
source and kind, and lengths.

Left out: near-duplicate images (a crop or another compression is another content), language or quality judgements.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import combinations

from ..data.group import Group, completion_text, prompt_text
from ..data.rows import Where, common_folder, image_folder, split_paths
from ..errors import DataError, ImageError
from ..imagery.identity import pixel_hash, source_key
from ..imagery.sources import ImageOptions, ImageSource
from ..runs.progress import progress
from .reader import read_groups
from .schema import Inspection

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass
class Report:
    """What [`check_files`] found.

    Args:
        problems (`list[DataError]`): At most `max_problems` of them, in the order of the files: `where` (file and row,
            or the whole file), `key` (the column at fault, if there is one) and `detail`.
        total_problems (`int`): All of them.
        rows, images, text_only (`int`): Good rows (an RSRM row counts once per pair), their image placements, rows
            without an image; training and evaluation files together.
        different_images (`int`): Images that differ in content.
        sources, kinds (`Counter`): Good rows per source and kind; `""` is a missing kind.
        lengths (`dict`): Per `"prompt"`, `"chosen"`, `"rejected"` and unit (`"characters"`, `"words"`):
            min, median, mean, p95, max.
    """

    problems: list[DataError] = field(default_factory=list)
    total_problems: int = 0
    rows: int = 0
    images: int = 0
    different_images: int = 0
    text_only: int = 0
    sources: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    lengths: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)


class _Check:
    """What is remembered from row to row while files are checked."""

    def __init__(self, options: ImageOptions, max_problems: int | None) -> None:
        self.options, self.max_problems, self.report = options, max_problems, Report()
        self.decoded: dict[Hashable, str | ImageError] = {}  # image source -> content hash, or why it cannot be read
        self.images: dict[str, Where] = {}  # content hash -> first training row
        self.rows: dict[bytes, Where] = {}  # whole row -> first row
        self.pairs: dict[bytes, Where] = {}  # (prompt, images, better, worse) -> first row
        self.lengths: dict[tuple[str, str], list[int]] = defaultdict(list)

    def problem(self, detail: str, key: str, where: str) -> None:
        self.report.total_problems += 1
        if self.max_problems is None or len(self.report.problems) < self.max_problems:
            self.report.problems.append(DataError(detail, key, where))

    def file(self, path: str, folder: str | None, evaluation: bool) -> None:
        try:
            with progress(None, 0, os.path.basename(path), leave=False) as advance:
                for where, _, row in read_groups(path, folder=folder):
                    self.row(where, row, evaluation)
                    advance(1)
            if not advance.done:
                self.problem("no rows; give a file that has some", "", path)
        except DataError as error:
            self.problem(error.detail, error.key, error.where or path)

    def row(self, where: Where, row: Inspection, evaluation: bool) -> None:
        for error in row.errors:
            self.problem(error.detail, error.key, error.where)
        # If the texts are wrong, the images may be wrong too, and whoever repairs the row wants to know at once.
        hashes = self.hashes(row.images, where)
        if row.group is None:
            return
        good = self.texts(row.group, hashes, where) and None not in hashes
        self.leaks([content for content in hashes if content is not None], where, evaluation)
        if good:
            self.count(row.group)

    def hashes(self, images: Sequence[ImageSource], where: Where) -> list[str | None]:
        """Content hashes, `None` for what cannot be read."""
        hashes: list[str | None] = []
        for image in images:
            key = source_key(image)
            if isinstance(key, int) or key not in self.decoded:
                try:
                    self.decoded[key] = pixel_hash(image, self.options)  # kept for other rows: no `where`
                except ImageError as error:
                    self.decoded[key] = error
            result = self.decoded[key]
            if isinstance(result, ImageError):
                self.problem(str(result), "image", where)
            hashes.append(result if isinstance(result, str) else None)
        return hashes

    def texts(self, group: Group, hashes: Sequence[str | None], where: Where) -> bool:
        """Looks for equal completions, duplicates and contradictions; returns whether there are none."""
        before = self.report.total_problems
        texts = [completion_text(completion) for completion in group.completions]
        names = ["chosen", *(["rejected"] if len(texts) == 2 else [f"rejected[{i}]" for i in range(len(texts) - 1)])]
        for (i, a), (j, b) in combinations(enumerate(texts), 2):
            if _plain(a) == _plain(b):
                aside = "" if a == b else " but for case and spaces"
                same = f"`{names[i]}` and `{names[j]}` are equal{aside}, expected different texts"
                self.problem(f"{same}; remove or correct the row", names[j], where)
        base = [repr(group.prompt)]
        base += [content or repr(source) for content, source in zip(hashes, group.images, strict=True)]
        whole = _digest(*base, *texts)
        if whole in self.rows:
            what = f"a duplicate of {self.rows[whole]} (same prompt, images, chosen and rejected)"
            self.problem(f"{what}; remove one", "", where)
            return False
        self.rows[whole] = where
        for a, b in combinations(texts, 2):
            other = self.pairs.get(_digest(*base, b, a))
            if other is not None and a != b:
                what = f"contradicts {other}, which prefers the two texts the other way round"
                self.problem(f"{what}; remove one", "chosen", where)
            self.pairs.setdefault(_digest(*base, a, b), where)
        return self.report.total_problems == before

    def leaks(self, hashes: Sequence[str], where: Where, evaluation: bool) -> None:
        """Looks for images of training rows in evaluation rows."""
        for content in dict.fromkeys(hashes):
            if not evaluation:
                self.images.setdefault(content, where)
            elif content in self.images:
                what = f"the image is also in the training row {self.images[content]} (same content)"
                self.problem(f"{what}; remove it from one of them", "image", where)

    def count(self, group: Group) -> None:
        report = self.report
        report.rows += 1
        report.images += len(group.images)
        report.text_only += not group.images
        report.sources[group.source] += 1
        report.kinds[group.kind] += 1
        chosen, *rejected = map(completion_text, group.completions)
        for name, texts in {"prompt": [prompt_text(group.prompt)], "chosen": [chosen], "rejected": rejected}.items():
            self.lengths[name, "characters"] += map(len, texts)
            self.lengths[name, "words"] += [len(text.split()) for text in texts]

    def finished(self) -> Report:
        self.report.different_images = len({content for content in self.decoded.values() if isinstance(content, str)})
        for (name, unit), values in self.lengths.items():
            self.report.lengths.setdefault(name, {})[unit] = _statistics(values)
        return self.report


def check_files(
    files: Paths,
    *,
    image_root: str | os.PathLike[str] | None = None,
    options: ImageOptions | None = None,
    eval_files: Paths = (),
    max_problems: int | None = None,
) -> Report:
    """Checks preference files row by row and reports every problem; nothing is raised, a missing file is a problem
    too.

    `eval_files` are checked too, and compared with `files`. Relative image paths start from the folder of their own
    file, or from `image_root`, which overrides that of `options`; images must lie in the folder that holds all of
    these, as in training. `max_problems` are kept, all are counted.
    """
    options = options or ImageOptions()
    if image_root is not None:
        options = replace(options, image_root=os.fspath(image_root))
    named = [(path, False) for path in split_paths(files)] + [(path, True) for path in split_paths(eval_files)]
    own_folders = options.image_root is None
    if own_folders and named:
        paths = [path for path, _ in named]
        try:
            options = replace(options, image_root=common_folder(paths))
        except DataError as error:
            return Report([DataError(error.detail, error.key, ", ".join(paths))], 1)
    check = _Check(options, max_problems)
    for path, evaluation in named:
        # Relative to the root that they share, so that messages stay short.
        start = os.path.relpath(image_folder(path), options.image_root) if own_folders else "."
        check.file(path, None if start == "." else start, evaluation)
    return check.finished()


def format_report(report: Report) -> str:
    """Returns the report as text: the problems one a line, then counts and lengths of the good rows."""
    lines = [str(problem) for problem in report.problems]
    hidden = report.total_problems - len(report.problems)
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


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _digest(*texts: str) -> bytes:
    digest = blake2b(digest_size=16)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()


def _statistics(values: Sequence[int]) -> dict[str, float]:
    import numpy as np

    array = np.asarray(values)
    figures = array.min(), np.median(array), array.mean(), np.percentile(array, 95), array.max()
    return {name: float(v) for name, v in zip(("min", "median", "mean", "p95", "max"), figures, strict=True)}
