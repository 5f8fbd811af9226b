"""Questions about images, with what is known of their answers, on which a policy is sampled.

Two layouts are read: labelled images as for `rs-rlhf data pairs`, whose question is the one for the scene class and
whose reference is the class in words, and rows with a `prompt`, `image` or `images`, and `solution` (or `answer`),
`captions`, or nothing known. The first row tells which. Left out: images behind URLs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from ..errors import DataError, RSRLHFError
from ..imagery.identity import source_key
from .captioned_images import CAPTION_REQUEST, LABEL_QUESTION, class_name, exclude_images, load_images, split_files
from .columns import image_column
from .forms import question_rows
from .group import Group, Message, Row, check_encodable, check_text, completion_text, make_group, short, string_column
from .placed_images import image_name, place_images, stored_image
from .rows import Where, draw_rows, image_folder, is_hub_id, naming, open_rows
from .survey import announce

OPEN_ENDED = "open_ended"
ANSWERS = ("solution", "answer")  # columns of the one right answer, the first with a value
_FIELDS = ("prompt", "image", "images", "where", "id", "source")  # columns that are not kept in `columns`


@dataclass
class QuestionRow:
    """One question: prompt and images as a group, and the prompt as the row gives it.

    `image_names` are for files of the images, should they be written. `reference` is the one right answer (`""`: none,
    so answers must be judged), `captions` are for a judge, `choices` the well-formed answers if the row lists them,
    and `columns` what else it holds, for reward functions.
    """

    group: Group
    prompt: str | list[Message]
    id: str
    image_names: list[str] = field(default_factory=list)
    reference: str = ""
    captions: list[str] = field(default_factory=list)
    choices: list[str] = field(default_factory=list)
    columns: dict[str, Any] = field(default_factory=dict)

    def error(self, detail: str, key: str) -> DataError:
        """Returns the error about one of its values, which names its file and row."""
        return DataError(detail, key, self.group.where or self.id)

    @property
    def pictured(self) -> bool:
        """Whether the question is about one image."""
        return len(self.group.images) == 1


def read_questions(
    path: str,
    split: str | None = None,
    *,
    image_root: str | None = None,
    exclude_images_of: Sequence[str] = (),
    open_ended: bool = False,
    keep_apart: bool = True,
    columns: Mapping[str, str] | None = None,
    errors: list[RSRLHFError] | None = None,
) -> list[QuestionRow]:
    """Reads the questions of a file, a folder or (rows with a `prompt` only) a Hub id.

    `split` and `image_root` are as for [`load_images`], `exclude_images_of` as for [`exclude_images`]. Images with
    captions are asked about with `open_ended`, even if they have a class. `keep_apart` leaves out of `train` what is
    in the folder's other splits too, and decodes every image. [`DataError`] or [`ImageError`] tell file and row; those
    of rows with a `prompt` are added to `errors` if it is given.
    """
    root = Path(path)
    alone = [path] if is_hub_id(path) or root.is_file() else []
    reading: dict[str, Any] = {"image_root": image_root, "columns": columns}
    files: Sequence[str | Path] = split_files(root, split, **reading) if root.is_dir() else alone
    read = (
        row for file in files[:1] for _, row in open_rows(file, split, question_rows, **reading, on_error="return")
    )
    first: Any = None
    for first in read:
        if not isinstance(first, DataError):
            break
    if isinstance(first, DataError) or first is not None and "prompt" in first:
        rows = [question for file in files for question in _asked_in(file, split, reading, open_ended, errors)]
    else:
        rows = [_about(row, open_ended) for row in load_images(path, split, **reading)]
    announce(path, len(rows), sum(bool(row.group.images) for row in rows), split, **reading)
    pictured = [{"image": row.group.images[0], "where": row.group.where, "of": row} for row in rows if row.pictured]
    if keep_apart and (kept := exclude_images(pictured, path, split, exclude_images_of, **reading)) is not None:
        left = {id(entry["of"]) for entry in kept}
        rows = [row for row in rows if not row.pictured or id(row) in left]
    if not rows and not errors:
        raise DataError(f"{path}: no rows are left; check the input, the split and what is excluded.")
    for number, row in enumerate(rows):
        row.group.row = number
    return rows


def limited(rows: Sequence[QuestionRow], limit: int | None, seed: int = 0) -> list[QuestionRow]:
    """Returns at most `limit` rows, drawn by the seed, in their order."""
    if limit is None or limit >= len(rows):
        return list(rows)
    drawn = draw_rows(len(rows), limit, seed)
    print(f"{limit} of them used (--limit)")
    return [rows[i] for i in drawn]


def questions_hash(rows: Sequence[QuestionRow]) -> str:
    """Returns a SHA-256 of the prompts, ids and images of rows, in order; files are told apart by their paths."""
    content = hashlib.sha256()
    for row in rows:
        images = [source_key(image) for image in row.group.images]
        content.update(json.dumps([row.prompt, row.id, images]).encode())
    return content.hexdigest()


def _asked_in(
    file: str | Path, split: str | None, reading: Row, open_ended: bool, errors: list[RSRLHFError] | None
) -> Iterator[QuestionRow]:
    """The questions of rows with a `prompt`; their errors are raised, or added to a list."""
    root = image_folder(str(file)) if reading["image_root"] is None else reading["image_root"]
    for where, row in open_rows(file, split, question_rows, **reading, on_error="return"):
        try:
            if isinstance(row, DataError):
                raise row
            with naming(where):
                yield _asked(where, row, root, open_ended)
        except RSRLHFError as error:
            if errors is None:
                raise
            errors.append(error)


def _asked(where: Where, row: Row, root: str, open_ended: bool) -> QuestionRow:
    """A row with a `prompt`; images become existing paths or bytes."""
    if "prompt" not in row:
        raise DataError("no column `prompt`, but the first row has one; add it", "prompt", where)
    key = image_column(row, root)
    group = make_group(row["prompt"], [], None if key is None else row[key], where=str(where))
    check_text(completion_text(group.prompt), "prompt")
    images = [stored_image(source, where, root) for source in group.images]
    group.images, stem = [*images], PurePath(where.file).stem
    group.source = string_column(row, "source") or stem
    prompt = row["prompt"] if isinstance(row["prompt"], str) else group.prompt
    reference = next(filter(None, (answer_text(row, key) for key in ANSWERS)), "")
    closed = not open_ended and row.get("reward_type") != OPEN_ENDED
    name, names = f"{stem}-{where.number}", [image_name(image, root) for image in images]
    return _question(row, group, prompt, name, names, reference.strip() if closed else "")


def answer_text(row: Row, key: str) -> str:
    """Returns a solution as text: numbers as they are written, boxes and objects as JSON, `""` for null and NaN."""
    value = row.get(key)
    if value is None or value != value:
        return ""
    if not isinstance(value, (str, int, float, dict)) and not _boxes(value):
        raise DataError(f"`{key}` is {short(value)}, expected a text, a number, boxes or an object", key)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    check_encodable(text, key)
    return text


def _boxes(value: object) -> bool:
    """Whether a value is a list of numbers, of such lists, or of objects."""
    return isinstance(value, list) and all(isinstance(part, (int, float, dict)) or _boxes(part) for part in value)


def _about(row: Row, open_ended: bool) -> QuestionRow:
    label, where = row.get("label"), row.get("where") or ""
    if not label and not row["captions"]:
        advice = "name the column, as in --columns prompt=COLUMN"
        raise DataError(f"no prompt, no class and no caption; {advice}", "prompt", where)
    closed = bool(label) and not (open_ended and row["captions"])
    prompt = LABEL_QUESTION if closed else CAPTION_REQUEST
    group = make_group(prompt, [], row["image"], where=where, source=row["source"])
    return _question(row, group, prompt, row["id"], [row["id"]], class_name(str(label)) if closed else "")


def _question(
    row: Row, group: Group, prompt: str | list[Message], name: str, image_names: list[str], reference: str
) -> QuestionRow:
    captions = row.get("captions") or ([row["caption"]] if row.get("caption") else [])
    choices = row.get("choices") or []
    for key, texts in (("captions", captions), ("choices", choices)):
        if not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
            raise DataError(f"`{key}` is {short(texts)}, expected a list of texts", key, group.where)
    columns = {key: value for key, value in row.items() if key not in _FIELDS}
    name = string_column(row, "id") or name
    return QuestionRow(group, prompt, name, image_names, reference, [*captions], choices, columns)


def placed_images(
    rows: Sequence[QuestionRow], root: Path, folder: Path, overwrite: bool
) -> tuple[list[list[str]], int]:
    """Finds or writes every distinct image of the rows once, as [`place_images`] does.

    Returns for each row the paths of its images, and how many files were written.
    """
    entries: dict[Hashable, dict[str, Any]] = {}
    keys = [[source_key(image) for image in row.group.images] for row in rows]
    for row, row_keys in zip(rows, keys, strict=True):
        for key, image, name in zip(row_keys, row.group.images, row.image_names, strict=True):
            entries.setdefault(key, {"image": image, "id": name, "where": row.group.where})
    written = place_images(list(entries.values()), root, folder, overwrite, checked=False)
    return [[entries[key]["image"] for key in row_keys] for row_keys in keys], written
