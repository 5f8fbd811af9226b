"""Prompts for GRPO and other online trainers, as one data set with undecoded images.

The rows are read as for `rs-rlhf data sample-pairs` (see `question_rows`): with a `prompt`, images and perhaps a
`solution`, or captioned or labelled images, whose question asks for the scene class. Hub ids are read too.

Left out: streaming data sets.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..data.questions import QuestionRow, read_questions
from ..data.rows import common_folder, image_folder, split_paths
from ..errors import DataError, OptionError

if TYPE_CHECKING:
    from datasets import Dataset

EXTRA = ("reward_type", "source", "id")


def load_prompts(
    names: str | Sequence[str],
    split: str | None = None,
    *,
    image_root: str | None = None,
    system_prompt: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> tuple[Dataset, str]:
    """Loads prompts as one data set.

    Args:
        names (`str` or list): Files, folders and Hub ids; several as a list or separated by commas. Rows have `prompt`
            (text or messages), `image` or `images`, and optionally `solution` (or `answer`), `choices` (the
            well-formed answers), `reward_type`, `source`, `id`. Of labelled images `choices` are all their classes.
        split (`str`, *optional*): Split of a folder or Hub id.
        image_root (`str`, *optional*): Folder that relative image paths start from; by default each file's own.
        system_prompt (`str`, *optional*): Put before every prompt that has no system turn.
        limit (`int`, *optional*): Rows at most, drawn with the seed.
        seed (`int`): Seed of the draw.

    Returns:
        `tuple`: The rows with the columns `prompt` (messages), `images` (list of `{bytes, path}`), `solution`,
        `choices`, `reward_type`, `source`, `id`, and the folder that their images may not leave.

    Raises:
        DataError: A row that cannot be used, with file and row.
        ValueError: A limit below 1.
    """
    from datasets import Dataset, Features, List, Value

    if limit is not None and limit < 1:
        raise OptionError(f"the number of samples is limited to {limit}, expected at least 1.")
    files = split_paths(names)
    rows: list[dict[str, Any]] = []
    for file in files:
        root = os.path.abspath(image_root or image_folder(file))
        try:
            found = read_questions(file, split, image_root=image_root, keep_apart=False)
        except DataError as error:
            if file in str(error):
                raise
            raise DataError(error.detail, error.key, file) from None
        classes = sorted({row.reference for row in found if row.columns.get("label")})
        rows += [_row(row, classes, root) for row in found]
    if not rows:
        raise DataError("no rows; give data that has some", "", ", ".join(files))
    for row in rows:
        if system_prompt and row["prompt"][0]["role"] != "system":
            row["prompt"] = [{"role": "system", "content": [{"type": "text", "text": system_prompt}]}, *row["prompt"]]
    text = Value("string")
    message = {"role": text, "content": List({"type": text, "text": text})}
    images = List({"bytes": Value("binary"), "path": text})
    columns = {"prompt": List(message), "images": images, "solution": text, "choices": List(text)}
    data = Dataset.from_list(rows, features=Features(columns | dict.fromkeys(EXTRA, text)))
    if limit is not None and limit < len(data):
        data = data.shuffle(seed=seed).select(range(limit))
    return data, image_root if image_root is not None else common_folder(files)


def _row(row: QuestionRow, classes: list[str], root: str) -> dict[str, Any]:
    group = row.group
    if group.prompt[-1]["role"] == "assistant":
        raise DataError("`prompt` ends with an assistant turn, expected the user's", "prompt", group.where)
    images = []
    for image in group.images:
        path = image if isinstance(image, str) else image.get("path")
        stored = None if isinstance(image, str) else image["bytes"]
        images.append({"bytes": stored, "path": os.path.join(root, path) if path and stored is None else path})
    reward_type = row.columns.get("reward_type")
    known = (row.reference, row.columns.get("solution"), row.columns.get("answer"))  # 0 is an answer, "" is none
    solution = next((one for one in known if one is not None and one != ""), None)
    return {
        "prompt": group.prompt,
        "images": images,
        "solution": None if solution is None else str(solution),
        "choices": row.choices or (classes if row.columns.get("label") else None),
        "reward_type": reward_type,
        "source": group.source,
        "id": row.id,
    }
