"""Questions about images, with what is known of their answers: what a policy is sampled on.

Two layouts are read: labelled images as for `rs-rlhf data pairs`, whose question is the one for the scene class and
whose reference is the class in words, and JSONL, JSON or Parquet rows with a `prompt`, `image` or `images`, and
`solution` (or `answer`), `captions`, or nothing known. Which one it is, the first row says: it has a `prompt` or not.

Left out: images behind URLs (what is written must be found from the output's folder).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from ..errors import DataError, OptionError
from ..imagery.identity import source_key
from .captioned_images import CAPTION_REQUEST, LABEL_QUESTION, class_name, exclude_images, load_images, split_files
from .group import Group, make_group, short, string_column
from .placed_images import place_images, stored_image
from .rows import draw_rows, image_folder, is_hub_id, known_rows, open_rows

OPEN_ENDED = "open_ended"


@dataclass
class QuestionRow:
    """One question.

    Args:
        group ([`Group`]): Prompt and images, ready for a policy; its completions are those the row brings along.
        prompt (`str` or `list[dict]`): The prompt as it is written out: a string stays one.
        id (`str`): Name of the row, unique in its file.
        image_names (`list[str]`): A name for each image's file, should it be written.
        reference (`str`): The one right answer; `""` where there is none, so that answers must be judged.
        captions (`list[str]`): Human descriptions, for a judge.
        choices (`list[str]`): The well-formed answers, if the row lists them.
        columns (`dict`): What else the row holds, for reward functions.
    """

    group: Group
    prompt: Any
    id: str
    image_names: list[str] = field(default_factory=list)
    reference: str = ""
    captions: list[str] = field(default_factory=list)
    choices: list[str] = field(default_factory=list)
    columns: dict[str, Any] = field(default_factory=dict)


def read_questions(
    path: str,
    split: str | None = None,
    *,
    image_root: str | None = None,
    exclude_images_of: Sequence[str] = (),
    open_ended: bool = False,
    keep_apart: bool = True,
) -> list[QuestionRow]:
    """Reads the questions of a file, a folder or (rows with a `prompt` only) a Hub id.

    Args:
        path, split, image_root: As for [`load_images`].
        exclude_images_of (sequence of `str`): As for [`exclude_images`].
        open_ended (`bool`): Of images with captions ask for a description, even if they have a class.
        keep_apart (`bool`): Leave out of `train` what is in the folder's other splits too; decodes every image.

    Raises:
        DataError, ImageError, ValueError: What cannot be used, with file and row.
    """
    root = Path(path)
    if not root.exists() and is_hub_id(path):
        return [_question(row, i, open_ended) for i, row in enumerate(_asked_rows([path], image_root, split))]
    files = (split_files(root, split) if root.is_dir() else [root]) if root.exists() else []
    asked = bool(files) and files[0].suffix in (".jsonl", ".json", ".parquet") and "prompt" in _first_row(files[0])
    raw = _asked_rows(files, image_root) if asked else load_images(path, split, image_root=image_root)
    print(f"{len(raw)} {'questions' if asked else 'images'} in {path}{f', split {split}' if split else ''}")
    pictured = [row for row in raw if row.get("image")]
    kept = exclude_images(pictured, path, split, exclude_images_of, image_root) if keep_apart else None
    if kept is not None:
        left = {id(row) for row in kept}
        raw = [row for row in raw if not row.get("image") or id(row) in left]
    if not raw:
        raise OptionError(f"{path}: no rows are left; check the input, the split and what is excluded.")
    return [_question(row, i, open_ended) for i, row in enumerate(raw)]


def limited(rows: Sequence[QuestionRow], limit: int | None, seed: int = 0) -> list[QuestionRow]:
    """Returns at most `limit` rows, drawn by the seed, in their order."""
    if limit is None or limit >= len(rows):
        return list(rows)
    drawn = draw_rows(len(rows), limit, seed)
    print(f"{limit} of them used (--limit)")
    return [rows[i] for i in drawn]


def _first_row(file: Path) -> dict[str, Any]:
    _, row = next(open_rows(file, adapter=known_rows, on_error="return"), (None, None))
    return row if isinstance(row, dict) else {}


def _asked_rows(files: Sequence[str | Path], image_root: str | None, split: str | None = None) -> list[dict[str, Any]]:
    """Rows with a `prompt`; images become existing paths or bytes, in `image` where there is one, else `images`."""
    rows = []
    for file in files:
        start = image_folder(str(file)) if image_root is None else image_root
        for where, row in open_rows(file, split, known_rows):
            if "prompt" not in row:
                raise DataError("no column `prompt`, but the first row has one; add it", "prompt", where)
            try:
                group = make_group(row["prompt"], [], row.get("images") or row.get("image"), where=where)
            except DataError as error:
                raise DataError(error.detail, error.key, where) from None
            images = [stored_image(source, where, start) for source in group.images]
            prompt = row["prompt"] if isinstance(row["prompt"], str) else group.prompt
            image = images[0] if len(images) == 1 else None
            own = f"{PurePath(where.file).stem}-{where.number}"
            source = row.get("source") or PurePath(where.file).stem
            names = [_image_name(one, start) for one in images]
            rows.append(
                row
                | {"prompt": prompt, "image": image, "images": images, "where": where, "source": source}
                | {"own": own, "names": names}
            )
    return rows


def _question(row: dict[str, Any], number: int, open_ended: bool) -> QuestionRow:
    where = row.get("where") or f"row {number}"
    captions = row.get("captions") or ([row["caption"]] if row.get("caption") else [])
    if "prompt" in row:
        prompt, images, names = row["prompt"], row["images"], row["names"]
        reference = next((row[key] for key in ("solution", "answer") if row.get(key) is not None), "")
        reference = str(reference) if isinstance(reference, (int, float)) else reference
        if not isinstance(reference, str):
            raise DataError(f"`solution` is {short(reference)}, expected a text; write it as one", "solution", where)
        reference = "" if open_ended or row.get("reward_type") == OPEN_ENDED else reference.strip()
    else:
        images, names, label = [row["image"]], [row["id"]], row.get("label")
        if not label and not captions:
            raise DataError("neither `label` nor `captions`; a question needs one of them", "label", where)
        closed = bool(label) and not (open_ended and captions)
        prompt = LABEL_QUESTION if closed else CAPTION_REQUEST
        reference = class_name(str(label)) if closed else ""
    name = string_column(row, "id") or row.get("own") or str(number)
    if not (isinstance(captions, list) and all(isinstance(one, str) for one in captions)):
        raise DataError(f"`captions` is {short(captions)}, expected a list of texts", "captions", where)
    choices = row.get("choices") or []
    if not (isinstance(choices, list) and all(isinstance(one, str) for one in choices)):
        raise DataError(f"`choices` is {short(choices)}, expected a list of texts", "choices", where)
    group = make_group(prompt, [], images, row=number, where=where, source=row.get("source") or "")
    drop = {"prompt", "image", "images", "where", "own", "names", "id", "source"}
    columns = {key: value for key, value in row.items() if key not in drop}
    return QuestionRow(group, prompt, name, names, reference, list(captions), choices, columns)


def placed_images(
    rows: Sequence[QuestionRow], root: Path, folder: Path, overwrite: bool
) -> tuple[list[list[str]], int]:
    """Finds or writes every distinct image once, see [`place_images`].

    Args:
        rows (sequence of [`QuestionRow`]): Questions; several may share an image.
        root (`Path`): Folder of the output: paths start there.
        folder (`Path`): Where images that are not below it are written.
        overwrite (`bool`): Replace files of other content.

    Returns:
        `tuple`: for each row the paths of its images, and how many files were written.
    """
    entries: dict[Any, dict[str, Any]] = {}
    keys = [[source_key(image) for image in row.group.images] for row in rows]
    for row, own in zip(rows, keys, strict=True):
        for key, image, name in zip(own, row.group.images, row.image_names, strict=True):
            entries.setdefault(key, {"image": image, "id": name, "where": row.group.where})
    written = place_images(list(entries.values()), root, folder, overwrite, checked=False)
    return [[entries[key]["image"] for key in own] for own in keys], written


def _image_name(image: Any, root: str) -> str:
    """A name for a picture that many rows may share: its path below `root`, or one made of its content."""
    if not isinstance(image, dict):
        return os.path.relpath(image, os.path.realpath(root))
    return str(source_key(image))[:16] + PurePath(image.get("path") or "").suffix
