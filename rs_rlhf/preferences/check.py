"""`rs-rlhf data check`: lists every problem of preference files with file and row, before a run meets the first.

It reads the raw rows, not the loaded data set, so that one bad row does not hide the next. Beyond what loading
refuses it decodes every image once, and looks across rows: equal completions, duplicates, contradictions (A over B
here, B over A there), and images shared by training and evaluation files by *content*, whatever their names.
On good files it prints what is there: counts per source and kind, and lengths.

Left out: near-duplicate images (a crop or another compression is another content), language or quality judgements.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import combinations
from typing import Any

from ..data.group import Group, completion_text, inspect_row, prompt_text
from ..data.rows import Where, common_folder, image_folder, known_rows, open_rows, split_paths
from ..errors import DataError, ImageError
from ..imagery.arguments import add_image_flags, image_options_from
from ..imagery.identity import pixel_hash, source_key
from ..imagery.raster import ImageOptions


@dataclass
class Problem:
    """One problem of one row.

    Args:
        file (`str`): The file as it was named.
        row (`int`): Line (JSONL, from 1) or row (others, from 0); -1 for the whole file.
        key (`str`): The column at fault, if one is.
        message (`str`): What is wrong, what was expected, what to do.
    """

    file: str
    row: int
    key: str
    message: str

    def __str__(self) -> str:
        """Returns file, row and message in one line."""
        return f"{Where(self.file, self.row)}: {self.message}"


@dataclass
class Report:
    """What [`check_files`] found.

    Args:
        problems (`list[Problem]`): At most `max_problems` of them, in the order of the files.
        total_problems (`int`): All of them.
        rows, images, text_only (`int`): Good rows (an RSRM row counts once per pair), their image placements, rows
            without an image; training and evaluation files together.
        different_images (`int`): Images that differ in content.
        sources, kinds (`Counter`): Good rows per source and kind; `""` is a missing kind.
        lengths (`dict`): Per `"prompt"`, `"chosen"`, `"rejected"` and unit (`"characters"`, `"words"`):
            min, median, mean, p95, max.
    """

    problems: list[Problem] = field(default_factory=list)
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
        self.start = ""  # folder of the file at hand, below `image_root`: its relative image paths start here
        self.decoded: dict[Any, str | ImageError] = {}  # image source -> content hash, or why it cannot be read
        self.images: dict[str, tuple[str, int]] = {}  # content hash -> first training row
        self.rows: dict[bytes, tuple[str, int]] = {}  # whole row -> first row
        self.pairs: dict[bytes, tuple[str, int]] = {}  # (prompt, images, better, worse) -> first row
        self.counts: dict[tuple[str, str], list[int]] = {}

    def problem(self, file: str, row: int, key: str, message: str) -> None:
        self.report.total_problems += 1
        if self.max_problems is None or len(self.report.problems) < self.max_problems:
            self.report.problems.append(Problem(file, row, key, message))

    def row(self, file: str, number: int, row: Any, evaluation: bool) -> None:
        if isinstance(row, DataError):
            return self.problem(file, number, row.key, row.detail)
        where = Where(file, number)
        group, errors = inspect_row(row, number, where)
        for error in errors:
            self.problem(file, number, error.key, error.detail)
        if group is None:
            # The texts are wrong; the images may be wrong too, and whoever repairs the row wants to know at once.
            if not any(error.key.startswith("image") for error in errors):
                images = row.get("image") if row.get("image") is not None else row.get("images")
                images = images if isinstance(images, list) else [] if images is None else [images]
                self.hashes([self.placed(image) for image in images], file, number)
            return None
        group = replace(group, images=[self.placed(image) for image in group.images])
        hashes = self.hashes(group.images, file, number)
        good = self.texts(group, hashes, file, number) and None not in hashes
        self.leaks([one for one in hashes if one is not None], file, number, evaluation)
        return self.count(group) if good else None

    def placed(self, image: Any) -> Any:
        """The image with a relative path started from the folder of its own file."""
        if isinstance(image, dict) and image.get("bytes") is None:
            return {**image, "path": self.placed(image.get("path"))}
        return os.path.join(self.start, image) if isinstance(image, str) and "://" not in image else image

    def hashes(self, images: Sequence[Any], file: str, number: int) -> list[str | None]:
        """Content hashes, `None` for what cannot be read."""
        found: list[str | None] = []
        for image in images:
            key = source_key(image)
            if isinstance(key, int) or key not in self.decoded:
                try:
                    self.decoded[key] = pixel_hash(image, self.options)  # kept for other rows: no `where`
                except ImageError as error:
                    self.decoded[key] = error
            result = self.decoded[key]
            if isinstance(result, ImageError):
                self.problem(file, number, "image", str(result))
            found.append(result if isinstance(result, str) else None)
        return found

    def texts(self, group: Group, hashes: Sequence[str | None], file: str, number: int) -> bool:
        """Looks for equal completions, duplicates and contradictions; returns whether there are none."""
        before = self.report.total_problems
        texts = [completion_text(completion) for completion in group.completions]
        names = ["chosen", *(["rejected"] if len(texts) == 2 else [f"rejected[{i}]" for i in range(len(texts) - 1)])]
        for (i, a), (j, b) in combinations(enumerate(texts), 2):
            if _plain(a) == _plain(b):
                aside = "" if a == b else " but for case and spaces"
                self.problem(
                    file,
                    number,
                    names[j],
                    f"`{names[i]}` and `{names[j]}` are equal{aside}, expected "
                    "different texts; remove or correct the row",
                )
        base = [repr(group.prompt), *(one or repr(source) for one, source in zip(hashes, group.images, strict=True))]
        whole = _digest(*base, *texts)
        first = self.rows.get(whole)
        if first is not None:
            self.problem(
                file,
                number,
                "",
                f"a duplicate of {Where(*first)} (same prompt, images, chosen and rejected); remove one",
            )
        else:
            self.rows[whole] = file, number
            for a, b in combinations(texts, 2):
                other = self.pairs.get(_digest(*base, b, a))
                if other is not None and a != b:
                    self.problem(
                        file,
                        number,
                        "chosen",
                        f"contradicts {Where(*other)}, which prefers the two texts the other way round; remove one",
                    )
                self.pairs.setdefault(_digest(*base, a, b), (file, number))
        return self.report.total_problems == before

    def leaks(self, hashes: Sequence[str], file: str, number: int, evaluation: bool) -> None:
        for one in dict.fromkeys(hashes):
            if not evaluation:
                self.images.setdefault(one, (file, number))
            elif one in self.images:
                self.problem(
                    file,
                    number,
                    "image",
                    f"the image is also in the training row "
                    f"{Where(*self.images[one])} (same content); remove it from one of them",
                )

    def count(self, group: Group) -> None:
        report = self.report
        report.rows += 1
        report.images += len(group.images)
        report.text_only += not group.images
        report.sources[group.source] += 1
        report.kinds[group.kind] += 1
        chosen, *rejected = group.completions
        texts = {"prompt": [prompt_text(group.prompt)], "chosen": [completion_text(chosen)]}
        for name, several in (texts | {"rejected": [completion_text(one) for one in rejected]}).items():
            for text in several:
                self.counts.setdefault((name, "characters"), []).append(len(text))
                self.counts.setdefault((name, "words"), []).append(len(text.split()))


def check_files(
    files: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    image_root: str | os.PathLike | None = None,
    options: ImageOptions | None = None,
    eval_files: str | os.PathLike | Sequence[str | os.PathLike] = (),
    max_problems: int | None = None,
) -> Report:
    """Checks preference files row by row and reports every problem.

    Args:
        files (`str`, path or list): Training files, as for [`load_preferences`].
        image_root (`str`, *optional*): Folder that relative image paths start from and images must lie in. By default
            paths start from the folder of their own file, and images must lie in the folder that holds all of these,
            as in training.
        options ([`ImageOptions`], *optional*): How images are read; `image_root` overrides its own.
        eval_files (`str`, path or list, *optional*): Evaluation files: checked too, and compared with `files`.
        max_problems (`int`, *optional*): Keep this many problems; all are counted.

    Returns:
        [`Report`]: Nothing is raised for bad files: a missing file is a problem too.
    """
    options = options or ImageOptions()
    if image_root is not None:
        options = replace(options, image_root=os.fspath(image_root))
    named = [
        (path, evaluation) for paths, evaluation in ((files, False), (eval_files, True)) for path in split_paths(paths)
    ]
    own_folders = options.image_root is None
    if own_folders and named:
        try:
            options = replace(options, image_root=common_folder([path for path, _ in named]))
        except DataError as error:
            return Report([Problem(", ".join(path for path, _ in named), -1, error.key, error.detail)], 1)
    check = _Check(options, max_problems)
    for path, evaluation in named:
        if own_folders:
            start = os.path.relpath(image_folder(path), options.image_root)
            check.start = "" if start == "." else start
        rows = 0
        try:
            for where, row in _progress(open_rows(path, None, known_rows, on_error="return"), path):
                check.row(where.file, where.number, row, evaluation)
                rows += 1
            if not rows:
                check.problem(path, -1, "", "no rows; give a file that has some")
        except DataError as error:
            check.problem(path, -1, error.key, error.detail)
    report = check.report
    report.different_images = len({one for one in check.decoded.values() if isinstance(one, str)})
    for (name, unit), values in check.counts.items():
        report.lengths.setdefault(name, {})[unit] = _statistics(values)
    return report


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


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `rs-rlhf data check`; returns 1 if there are problems, else 0."""
    parser = argparse.ArgumentParser(prog="rs-rlhf data check", description="Lists every problem of preference files.")
    parser.add_argument("files", nargs="+", metavar="FILE", help="training files, folders or Hub ids")
    parser.add_argument("--eval", nargs="+", default=[], metavar="FILE", help="evaluation files, compared with FILE")
    add_image_flags(parser)
    parser.add_argument(
        "--max_problems", "--max-problems", type=int, metavar="N", help="print at most N problems (default: all)"
    )
    args = parser.parse_args(argv)
    options = image_options_from(args)
    report = check_files(args.files, options=options, eval_files=args.eval, max_problems=args.max_problems)
    print(format_report(report))
    return 1 if report.total_problems else 0


def _progress(rows: Iterator, name: str) -> Iterator:
    from tqdm import tqdm

    return iter(tqdm(rows, desc=os.path.basename(name), unit=" rows", disable=None, leave=False))  # None: no terminal


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _digest(*texts: str | bytes) -> bytes:
    digest = blake2b(digest_size=16)
    for text in texts:
        data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()


def _statistics(values: Sequence[int]) -> dict[str, float]:
    import numpy as np

    array = np.asarray(values)
    figures = array.min(), np.median(array), array.mean(), np.percentile(array, 95), array.max()
    return {name: float(v) for name, v in zip(("min", "median", "mean", "p95", "max"), figures, strict=True)}
