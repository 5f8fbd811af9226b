"""The data check of prompts and image-text data: every row through the reader and the limits of its trainer.

Preference files are checked by `preferences/check.py`, which also looks across rows.

Left out: copies and contradictions between rows, and images that training and evaluation share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...data.captioned_images import load_images
from ...data.group import Group, make_group
from ...data.image_text_dataset import open_image_texts
from ...data.questions import read_questions
from ...data.rows import image_folder
from ...errors import RSRLHFError
from ...imagery.identity import source_key
from ...models.row_limits import RowLimits
from ...preferences.check_report import Report
from ...preferences.reader import read_groups
from ..row_check import prompt_group
from ..sft import turn_group
from .clip import pair_row
from .grpo import prompt_row
from .sft import conversation_rows, default_split, holds_labelled_images, text_rows

Found = Iterator[Group | RSRLHFError]


@dataclass
class Source:
    """Data to check: a path, a split, and how it is read."""

    path: str
    split: str | None = None
    reading: dict[str, Any] = field(default_factory=dict)  # `image_root` and `columns`


def check_data(use: str, sources: Sequence[Source], limits: RowLimits, max_problems: int | None = None) -> Report:
    """Checks data of `"kto"`, `"grpo"`, `"sft"`, `"score"` or `"clip"` row by row; nothing is raised."""
    report = Report(max_problems)
    pictures = set()
    for source in sources:
        try:
            for group in _FOUND[use](source):
                errors = [group] if isinstance(group, RSRLHFError) else list(limits.errors(group))
                for error in errors:
                    _add(report, error, source.path)
                if isinstance(group, Group) and not errors:
                    report.count(group, ["completion"] * len(group.completions))
                    pictures |= {source_key(image) for image in group.images}
        except RSRLHFError as error:  # of the whole file, or of a reader that stops at a bad row
            _add(report, error, source.path)
    report.different_images = len(pictures)
    return report.finished()


def _add(report: Report, error: RSRLHFError, path: str) -> None:
    """Adds an error, whose place may be in its sentence alone."""
    where, detail = error.where, error.detail
    if not where and detail.startswith(path):
        where, _, detail = detail.partition(": ")
    report.problem(detail, error.key, where or path)


def _prompts(source: Source) -> Found:
    errors: list[RSRLHFError] = []
    questions = read_questions(source.path, source.split, keep_apart=False, errors=errors, **source.reading)
    root = source.reading.get("image_root") or image_folder(source.path)
    yield from errors
    yield from _each(questions, lambda question: [prompt_group(prompt_row(question, [], root))])


def _turns(source: Source) -> Found:
    split = source.split or default_split(source.path)
    if Path(source.path).exists() and holds_labelled_images(source.path, split, source.reading.get("columns")):
        rows = load_images(source.path, split, **source.reading)
        yield from _each(rows, lambda row: map(turn_group, conversation_rows([row])))
        return
    texts = open_image_texts(source.path, split, **source.reading)
    yield from _each(texts, lambda row: map(turn_group, text_rows([row])))


def _pairs(source: Source) -> Found:
    texts = open_image_texts(source.path, source.split, **source.reading)

    def group_of(row: Any) -> Group:
        pair = pair_row(row)
        return make_group("", pair["texts"], pair["image"], where=pair["where"])

    yield from _each(texts, lambda row: [group_of(row)])


def _labelled(source: Source) -> Found:
    folder = source.reading.get("image_root") or image_folder(source.path)
    rows = read_groups(source.path, source.split, folder, labelled=True, **source.reading)
    for _, _, inspection in rows:
        yield from inspection.errors if inspection.group is None else [inspection.group]


def _scored(source: Source) -> Found:
    texts = open_image_texts(source.path, source.split, **source.reading)
    yield from (one for row in texts for one in ([row.error] if row.error is not None else row.groups))


def _each(rows: Iterable[Any], groups_of: Callable[[Any], Iterable[Group]]) -> Found:
    """Yields the groups of each row, or the error of a row that has none."""
    for row in rows:
        try:
            yield from groups_of(row)
        except RSRLHFError as error:
            yield error


_FOUND: dict[str, Callable[[Source], Found]] = {
    "grpo": _prompts,
    "sft": _turns,
    "clip": _pairs,
    "score": _scored,
    "kto": _labelled,
}
