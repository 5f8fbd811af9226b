"""The check of preference files: every problem with its file and row, before a run meets the first.

It reads the rows as a run does, but goes on after a bad one, and puts them through a model's limits as trainers do
before the first step (`models/row_limits.py`). Beyond that it decodes every image once, and looks across rows: equal
completions, duplicates, contradictions (A over B here, B over A there), and images shared by training and evaluation
files by *content*, whatever their names. On good files it counts what is there: rows per source and kind, and lengths.

Left out: near-duplicate images (a crop or another compression is another content), language or quality judgements.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from itertools import combinations
from typing import Any

from ..data.group import Group, completion_text
from ..data.rows import Where, common_folder, image_folder, split_paths
from ..errors import DataError, ImageError, RSRLHFError
from ..imagery.identity import pixel_hash, source_key
from ..imagery.sources import ImageOptions, ImageSource
from ..models.row_limits import RowLimits
from ..runs.progress import progress
from .check_report import Report, format_report
from .reader import read_groups
from .schema import Inspection, completion_keys

__all__ = ["Report", "check_files", "format_report"]

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class _Check:
    """What is remembered from row to row while files are checked."""

    def __init__(self, limits: RowLimits, max_problems: int | None) -> None:
        self.limits, self.report = limits, Report(max_problems)
        self.problem = self.report.problem
        self.decoded: dict[Hashable, str | ImageError] = {}  # image source -> content hash, or why it cannot be read
        self.images: dict[str, Where] = {}  # content hash -> first training row
        self.rows: dict[bytes, Where] = {}  # whole row -> first row
        self.pairs: dict[bytes, Where] = {}  # (prompt, images, better, worse) -> first row

    def file(self, path: str, folder: str | None, evaluation: bool, reading: Mapping[str, Any]) -> None:
        try:
            with progress(None, 0, os.path.basename(path), leave=False) as advance:
                for where, _, row in read_groups(path, folder=folder, **reading):
                    self.row(where, row, evaluation)
                    advance(1)
            if not advance.done:
                self.problem("no rows; give a file that has some", "", path)
        except DataError as error:
            self.problem(error.detail, error.key, error.where or path)

    def row(self, where: Where, row: Inspection, evaluation: bool) -> None:
        for problem in row.errors:
            self.problem(problem.detail, problem.key, problem.where)
        # If the texts are wrong, the images may be wrong too, and whoever repairs the row wants to know at once.
        hashes = self.hashes(row.images, where)
        if row.group is None:
            return
        keys = completion_keys(len(row.group.completions))
        errors: list[RSRLHFError] = [*self.limits.text_errors(row.group, keys)]
        if None not in hashes:
            errors += self.limits.length_errors(row.group)
        for error in errors:
            self.problem(error.detail, error.key, where)
        good = self.texts(row.group, hashes, where) and not errors and None not in hashes
        self.leaks([content for content in hashes if content is not None], where, evaluation)
        if good:
            self.report.count(row.group, [key.partition("[")[0] for key in keys])

    def hashes(self, images: Sequence[ImageSource], where: Where) -> list[str | None]:
        """Content hashes, `None` for what cannot be read."""
        hashes: list[str | None] = []
        for image in images:
            key = source_key(image)
            if isinstance(key, int) or key not in self.decoded:
                try:
                    self.limits.size(image)
                    self.decoded[key] = pixel_hash(image, self.limits.options)  # kept for other rows: no `where`
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
        names = completion_keys(len(texts))
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

    def finished(self) -> Report:
        self.report.different_images = len({content for content in self.decoded.values() if isinstance(content, str)})
        return self.report.finished()


def check_files(
    files: Paths,
    *,
    image_root: str | os.PathLike[str] | None = None,
    options: ImageOptions | None = None,
    eval_files: Paths = (),
    max_problems: int | None = None,
    limits: Callable[[ImageOptions], RowLimits] = RowLimits,
    columns: Mapping[str, str] | None = None,
) -> Report:
    """Checks preference files row by row and reports every problem; nothing is raised, a missing file is a problem
    too.

    `eval_files` are checked too, and compared with `files`. Relative image paths start from the folder of their own
    file, or from `image_root`, which overrides that of `options`; images must lie in the folder that holds all of
    these, as in training. `max_problems` kinds are kept, all are counted. `limits` makes those of a model, by default
    Qwen2-VL's, of the way that images are read; `columns` are named as in [`load_preferences`].
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
            report = Report(max_problems)
            report.problem(error.detail, error.key, ", ".join(paths))
            return report
    check = _Check(limits(options), max_problems)
    reading = {"columns": columns, "image_root": None if own_folders else options.image_root}
    for path, evaluation in named:
        # Relative to the root that they share, so that messages stay short.
        start = os.path.relpath(image_folder(path), options.image_root) if own_folders else "."
        check.file(path, None if start == "." else start, evaluation, reading)
    return check.finished()


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _digest(*texts: str) -> bytes:
    digest = blake2b(digest_size=16)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()
