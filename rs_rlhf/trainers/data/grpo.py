"""Training data of `rs-rlhf grpo` and other online trainers: prompts as one data set with undecoded images.

The rows are read as for `rs-rlhf data sample-pairs` (see `data.questions`): with a `prompt`, images and perhaps a
`solution`, or captioned or labelled images, whose question asks for the scene class. Hub ids are read too.

Left out: streaming data sets.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from datasets import Dataset, Features, List, Value

from ...data.group import string_column
from ...data.questions import ANSWERS, QuestionRow, answer_text, read_questions
from ...data.row_cache import bytes_and_path, message_features
from ...data.rows import common_folder, draw_rows, image_folder, naming, split_paths
from ...data.survey import count_pictured, require_images
from ...errors import DataError, OptionError
from ...metrics.answers import THINK_ANSWER

if TYPE_CHECKING:
    from ..grpo import VisionGRPOConfig
    from ..options import GRPOScriptArguments

EXTRA = ("reward_type", "source", "id", "where")


def load_data(script_args: GRPOScriptArguments, training_args: VisionGRPOConfig) -> tuple[Dataset, Dataset | None]:
    """Reads training and evaluation prompts; sets `image_root` unless it is given."""
    name, split = str(script_args.dataset_name), script_args.dataset_test_split
    system = THINK_ANSWER if script_args.system_prompt == "think-answer" else script_args.system_prompt
    common: dict[str, Any] = {"image_root": training_args.image_root, "system_prompt": system}
    common |= {"seed": training_args.seed, "columns": script_args.named_columns()}
    train_set, root = load_prompts(
        name, script_args.dataset_train_split, limit=script_args.max_train_samples, **common
    )
    require_images(count_pictured(train_set), name, common["columns"], training_args.image_root)
    eval_set = None
    if training_args.eval_strategy != "no":
        if not script_args.eval_dataset_name and not split:
            raise OptionError(
                "eval_strategy asks for evaluation; give --eval_dataset_name or --dataset_test_split, or "
                "--eval_strategy no.",
                "eval_dataset_name",
            )
        names = script_args.eval_dataset_name or name
        eval_set, eval_root = load_prompts(names, split, limit=script_args.max_eval_samples, **common)
        if root != eval_root and training_args.image_root is None:
            root = os.path.commonpath([str(root), str(eval_root)])
    training_args.image_root = root
    return train_set, eval_set


def load_prompts(
    names: str | Sequence[str],
    split: str | None = None,
    *,
    image_root: str | None = None,
    system_prompt: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
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
        columns (`dict`, *optional*): Columns by the fields that they hold, such as `{"image": "tile"}`; without an
            image in any row, `{"image": ""}` says that they are text-only.

    Returns:
        `tuple`: The rows with the columns `prompt` (messages), `images` (list of `{bytes, path}`), `solution`,
        `choices`, `reward_type`, `source`, `id`, `where`, and the folder that their images may not leave.

    Raises:
        DataError: A row that cannot be used, with file and row.
        OptionError: A limit below 1.
    """
    if limit is not None and limit < 1:
        raise OptionError(f"the number of samples is limited to {limit}, expected at least 1.")
    files = split_paths(names)
    rows: list[dict[str, Any]] = []
    for file in files:
        root = os.path.abspath(image_root or image_folder(file))
        try:
            questions = read_questions(file, split, image_root=image_root, keep_apart=False, columns=columns)
        except DataError as error:
            if file in str(error):
                raise
            raise DataError(error.detail, error.key, file) from None
        classes = sorted({row.reference for row in questions if row.columns.get("label")})
        rows += [prompt_row(row, classes, root) for row in questions]
    if not rows:
        raise DataError("no rows; give data that has some", "", ", ".join(files))
    for row in rows:
        if system_prompt and row["prompt"][0]["role"] != "system":
            row["prompt"] = [{"role": "system", "content": [{"type": "text", "text": system_prompt}]}, *row["prompt"]]
    text = Value("string")
    columns = message_features("prompt") | {"solution": text, "choices": List(text)}
    data = Dataset.from_list(rows, features=Features(columns | dict.fromkeys(EXTRA, text)))
    if limit is not None and limit < len(data):
        data = data.select(draw_rows(len(data), limit, seed))
    return data, image_root if image_root is not None else common_folder(files)


def prompt_row(row: QuestionRow, classes: list[str], root: str) -> dict[str, Any]:
    """Returns a question as a row of the data set; `classes` are those of labelled images."""
    group = row.group
    if group.prompt[-1]["role"] == "assistant":
        raise DataError("`prompt` ends with an assistant turn, expected the user's", "prompt", group.where)
    with naming(group.where):
        reward_type = string_column(row.columns, "reward_type") or None
        solution = row.reference or next(filter(None, (answer_text(row.columns, key) for key in ANSWERS)), None)
    return {
        "prompt": group.prompt,
        "images": [bytes_and_path(image, root) for image in group.images],
        "solution": solution,
        "choices": row.choices or (classes if row.columns.get("label") else None),
        "reward_type": reward_type,
        "source": group.source,
        "id": row.id,
        "where": group.where,
    }
