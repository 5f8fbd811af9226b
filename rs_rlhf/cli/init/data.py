"""The user's data in the documented form, split for training and evaluation, beside the recipe."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...data.captioned_images import LABEL_QUESTION, class_name, picture_of
from ...data.rows import open_rows
from ...errors import DataError
from ...preferences.converted_files import convert
from ...runs.files import replacing
from .findings import Found

Rows = list[dict[str, Any]]
LEAST = 8  # rows, below which nothing is to be learnt or measured
SHARE, MOST = 0.1, 500  # of the pictures are held out, if nothing is


@dataclass
class Data:
    """The files that were written, by what they hold and their split, and how many rows each has.

    `images` are captioned or labelled images, `questions` have answers, `preferences` chosen and rejected texts. Some
    images have `captions`; the questions are those for the class if they are `about_classes`.
    """

    files: dict[str, Path] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    captions: bool = False
    about_classes: bool = False

    def has(self, what: str) -> bool:
        """Whether there are rows of a kind."""
        return f"{what}_train" in self.files

    def write(self, folder: Path, what: str, train: Rows, validation: Rows) -> None:
        """Writes the rows of a kind."""
        for split, rows in (("train", train), ("validation", validation)):
            name = f"{what}_{split}"
            self.files[name], self.rows[name] = folder / f"{name}.jsonl", len(rows)
            with replacing(self.files[name]) as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def prepare(found: Sequence[Found], folder: Path) -> Data:
    """Writes what was found in the documented form into a new folder, with the images; prints what is held out.

    Raises:
        DataError, ImageError: A row cannot be used, an image is missing, or there are too few rows.
    """
    data = Data()
    converted = [(one.held_out, row) for one in found if one.kind for row in _converted(one, folder)]
    for what in ("preferences", "questions", "images"):
        rows: dict[bool, Rows] = {False: [], True: []}
        for held_out, row in converted:
            rows[held_out] += [row] * _is(row, what)
        if not rows[False] and not rows[True]:
            continue
        train, validation = apart(rows[False], rows[True], folder, what)
        data.write(folder, what, train, validation)
        if what == "images":
            data.captions = any(row.get("captions") for row in train)
            data.about_classes = any(row.get("label") for row in train) and not data.has("questions")
    if not data.files:
        raise DataError("the questions have no answers to learn from; add a column answer, or preferences", "answer")
    if data.about_classes:
        data.write(folder, "questions", *(_asked(data.files[f"images_{split}"]) for split in ("train", "validation")))
    return data


def _is(row: dict[str, Any], what: str) -> bool:
    """Whether a converted row is of preferences, questions with answers, or captioned or labelled images."""
    asked = "prompt" in row and any(row.get(key) not in (None, "") for key in ("completion", "solution"))
    return {
        "preferences": "chosen" in row,
        "questions": asked and "chosen" not in row,
        "images": "prompt" not in row and "chosen" not in row,
    }[what]


def _converted(found: Found, folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file or folder in the documented form, which is written for that and removed again."""
    name = f"{found.path.stem}{f'_{found.split}' if found.split else ''}"
    output = folder / f".{name}.jsonl"
    root = None if found.root is None else str(found.root)
    places: dict[str, Any] = {"split": found.split, "image_root": root, "images_dir": folder / "images" / name}
    try:
        convert(str(found.path), output, "jsonl", **places, overwrite=True)
        for line in output.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if "completion" not in row and row.get("solution") not in (None, ""):
                row["completion"] = row.pop("solution")
            yield {key: value for key, value in row.items() if value is not None}
    finally:
        output.unlink(missing_ok=True)


def apart(train: Rows, held_out: Rows, folder: Path, what: str) -> tuple[Rows, Rows]:
    """Keeps the pictures of training and evaluation apart: by the splits that the data have, else by chance.

    Prints how many rows there are of each.
    """
    pictures = {id(row): _pictures(row, folder) for row in (*train, *held_out)}
    if held_out and train:
        taken = set().union(*(pictures[id(row)] for row in held_out))
        kept = [row for row in train if not taken & pictures[id(row)]]
        told = f"; {len(train) - len(kept)} training rows left out, whose picture is held out" * (
            len(kept) < len(train)
        )
        validation = held_out
    else:
        rows = train or held_out
        names = sorted(set().union(*pictures.values())) or [str(number) for number in range(len(rows))]
        count = max(1, min(MOST, round(SHARE * len(names))), min(4, len(names) // 4))
        drawn = set(random.Random(0).sample(names, count))
        sides = [bool(drawn & (pictures[id(row)] or {str(number)})) for number, row in enumerate(rows)]
        kept = [row for row, out in zip(rows, sides, strict=True) if not out]
        validation = [row for row, out in zip(rows, sides, strict=True) if out]
        taken = set().union(*(pictures[id(row)] for row in validation))
        kept = [row for row in kept if not taken & pictures[id(row)]]
        told = ", drawn by chance, with their pictures"
    print(f"{what}: {len(kept)} rows to train on, {len(validation)} held out{told}")
    if len(kept) < LEAST:
        raise DataError(f"{len(kept)} {what} to train on are too few; give at least {LEAST} (and some held out)")
    return kept, validation


def _pictures(row: dict[str, Any], folder: Path) -> set[str]:
    images = row.get("images") or [row.get("image")]
    return {picture_of({"image": os.path.join(folder, image)}) for image in images if image}


def _asked(file: Path) -> Rows:
    """Labelled images as the question for their class, and its answer."""
    rows = [row for _, row in open_rows(file) if row.get("label")]
    choices = sorted({class_name(str(row["label"])) for row in rows})
    return [
        {
            "image": row["image"],
            "prompt": LABEL_QUESTION,
            "completion": class_name(str(row["label"])),
            "choices": choices,
        }
        for row in rows
    ]
