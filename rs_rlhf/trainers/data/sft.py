"""Training data of `rs-rlhf sft`: labelled images, captions, questions and conversations as prompt-completion rows.

Data are read in one of two ways, see [`load_rows`]: labelled images are asked for their class and then for a
description; anything else (conversations, questions, captions, a folder of `rs-rlhf curate`) is taken as it stands.

Left out: data-set mixtures and streaming.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset, Features, Value

from ...data.captioned_images import CAPTION_REQUEST, LABEL_QUESTION, class_name, load_images, split_files
from ...data.columns import MORE_THAN_CAPTIONS, Columns, parse_columns
from ...data.group import Group, completion_text
from ...data.image_text import ImageTextRow
from ...data.image_text_dataset import open_image_texts
from ...data.row_cache import bytes_and_path, message_features, stored_rows
from ...data.rows import FORMATS, data_files, draw_rows, format_of, is_saved
from ...data.survey import announce, announce_texts
from ...data.text_records import csv_head, first_byte, jsonl_records
from ...errors import DataError

if TYPE_CHECKING:
    from ..options import SFTScriptArguments
    from ..sft import VisionSFTConfig

FORM_VERSION = 2  # of the stored rows: raise it when `text_rows` changes, so that caches go stale


def load_data(script_args: SFTScriptArguments, training_args: VisionSFTConfig) -> tuple[Dataset, Dataset | None]:
    """Reads the training and evaluation sets.

    `image_root` becomes `None`, since all image paths are complete afterwards, and `weight_column` the name of the
    column in the training set. Evaluation rows have no weights.
    """
    name, split = str(script_args.dataset_name), script_args.dataset_train_split
    columns = script_args.named_columns()
    if training_args.weight_column is not None:
        columns = parse_columns([*(f"{k}={v}" for k, v in columns.items()), f"weight={training_args.weight_column}"])
    reading: dict[str, Any] = {"columns": columns}
    reading["image_root"], training_args.image_root = training_args.image_root, None
    limit: dict[str, Any] = {"limit": script_args.max_train_samples, "seed": training_args.seed}
    split = split or default_split(name)
    _announce(name, split, reading)
    train_set = load_rows(name, split, **reading, **limit)
    columns.pop("weight", None)
    if "weight" in train_set.column_names:  # also of a folder of `rs-rlhf curate` that names it
        training_args.weight_column = "weight"
    if training_args.eval_strategy == "no":
        return train_set, None
    name = script_args.eval_dataset_name or name
    split = script_args.dataset_test_split or (None if script_args.eval_dataset_name else "test")
    return train_set, load_rows(name, split, **reading, labels_only=True)


def _announce(name: str, split: str | None, reading: dict[str, Any]) -> None:
    if holds_labelled_images(name, split, reading["columns"]):
        count = len(load_images(name, split, **reading))
        announce(name, count, count, split, **reading)
    else:
        announce_texts(open_image_texts(name, split, **reading), reading["image_root"])


def default_split(path: str) -> str | None:
    """Returns `"train"` for a folder that has files, or else a sub-folder, of that split."""
    folder = Path(path)
    files = [file.name for file in (*folder.glob("*"), *folder.glob("data/*")) if file.suffix.lower() in FORMATS]
    given = any(name.startswith("train") for name in files) if files else (folder / "train").is_dir()
    return "train" if given else None


def load_rows(
    path: str,
    split: str | None = None,
    *,
    image_root: str | None = None,
    columns: Mapping[str, str] | None = None,
    labels_only: bool = False,
    limit: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Reads data as prompt-completion rows, in one of two ways.

    - Labelled images: a folder of images by class, or Parquet, JSONL or CSV of which some row has a `label` and none
      has `conversations`, `messages`, `completion`, `answer`, `text`, `title`, `txt` or a column named here. Read by
      [`~rs_rlhf.data.captioned_images.load_images`] and laid out by [`conversation_rows`].
    - Everything else that [`~rs_rlhf.data.image_text_dataset.open_image_texts`] reads, and every folder with a
      `curation.json`: each row by its own form, see [`text_rows`]; labels are not asked for. The rows are written
      once to the `datasets` cache, not held in memory.

    Args:
        path (`str`): File or folder.
        split (`str`, *optional*): Split of a folder; by default all of it.
        image_root (`str`, *optional*): Folder that image paths start from; by default each file's own, or that of
            `curation.json`.
        columns (`dict`, *optional*): Columns by the fields that they hold, such as `{"image": "filename"}`; a named
            column of texts makes it the second way. A column of `weight`s becomes the rows' column `weight`.
        labels_only (`bool`): Labelled images are only asked for their class (for evaluation).
        limit (`int`, *optional*): Images or conversations at most, drawn by `seed`.
        seed (`int`): Seed of the draw.

    Raises:
        DataError, ImageError: Nothing to read, or a row that cannot be used; names file and row.
    """
    reading: dict[str, Any] = {"image_root": image_root, "columns": parse_columns(columns)}
    if holds_labelled_images(path, split, columns):
        if "weight" in reading["columns"]:
            advice = "name the column of their texts, as in --text_column captions"
            raise DataError(f"labelled images are read without weights; {advice}", "weight", path)
        rows = load_images(path, split, **reading)
        return Dataset.from_list(conversation_rows([rows[i] for i in draw_rows(len(rows), limit, seed)], labels_only))
    texts = _load_texts(path, split, reading)
    if not len(texts):
        raise DataError("no rows; give data that has some", "", path)
    numbers = texts["row"][:]
    kept = {*draw_rows(numbers[-1] + 1, limit, seed)}
    return texts if len(kept) > numbers[-1] else texts.select([i for i, row in enumerate(numbers) if row in kept])


def holds_labelled_images(path: str, split: str | None = None, named: Mapping[str, str] | None = None) -> bool:
    """Whether data are labelled images, by the rule of [`load_rows`]; reads JSON lines until it is certain."""
    root = Path(path)
    columns = Columns(parse_columns(named))
    if not root.exists() or is_saved(root) or (root / "curation.json").exists() or columns.text or columns.text_only:
        return False
    files = split_files(root, split, columns=named) if root.is_dir() else [root]
    if not files and data_files(root, split):  # images by class beside files that do not name them
        return True
    if not files:  # images by class, if there is nothing else to read
        others = [*root.glob(f"{split or ''}*"), *root.glob("data/*"), *root.glob("*.arrow")]
        others = [file for file in others if file.suffix.lower() in (*FORMATS, ".arrow")]
        # A .json that is no list holds settings, such as `dataset_info.json`.
        return all(file.suffix.lower() == ".json" and first_byte(file) != b"[" for file in others)
    fields = {column: name for name, column in columns.given.items()}
    found: set[str] = set()
    for file in files:
        for keys in _keys(file):
            keys = {fields.get(key, key) for key in keys}
            if keys & MORE_THAN_CAPTIONS:
                return False
            found |= keys
    return "label" in found


def _keys(file: Path) -> Iterator[set[str]]:
    """The columns of a file; of JSON lines those that each row gives a value to, as far as they can be read."""
    format = format_of(file)
    if format == "parquet":
        import pyarrow.parquet

        try:
            yield set(pyarrow.parquet.read_schema(file).names)
        except (OSError, ValueError):
            return  # the reader will say so
    elif format == "csv":
        try:
            yield set(csv_head(file).columns)
        except DataError:
            return  # as above
    elif format == "jsonl":
        for record in jsonl_records(file):
            if isinstance(record.value, DataError):
                return  # as above
            row = record.value if isinstance(record.value, dict) else {}
            yield {key for key, value in row.items() if value is not None}


def _load_texts(path: str, split: str | None, reading: dict[str, Any]) -> Dataset:
    columns = message_features("prompt", "completion")
    if "weight" in open_image_texts(path, split, **reading).columns.given:
        columns["weight"] = Value("float64")
    features = Features(columns | {"row": Value("int64"), "where": Value("string")})
    return stored_rows(text_rows, features, path, split, reading, FORM_VERSION)


def conversation_rows(rows: Iterable[Mapping[str, Any]], labels_only: bool = False) -> list[dict[str, Any]]:
    """Turns images with a label, captions, or both into prompt-completion rows, one per distinct caption.

    Args:
        rows (iterable of `dict`): `image`, and `label` (`str`), `captions` (list of `str`) or both.
        labels_only (`bool`): Only the question for the scene class, one row per image (for evaluation).

    Returns:
        `list[dict]`: With a label the prompt asks for the scene class, and the completion is the class name, then, as
        a second turn, the request for a description and the caption: both share one pass of the vision tower. Without
        a label the prompt is that request.
    """
    out: list[dict[str, Any]] = []
    for row in rows:
        label, captions = row.get("label"), list(dict.fromkeys(row.get("captions") or []))
        if labels_only or not captions:
            turns = [[LABEL_QUESTION, class_name(label)]] if label else []
        else:
            ask = [LABEL_QUESTION, class_name(label)] if label else []
            turns = [[*ask, CAPTION_REQUEST, caption] for caption in captions]
        for texts in turns:
            messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
            out.append({"prompt": messages[:1], "completion": messages[1:], "image": row["image"], "row": len(out)})
    return out


def text_rows(rows: Iterable[ImageTextRow]) -> Iterator[dict[str, Any]]:
    """Turns image-text rows into prompt-completion rows in the normal form.

    Args:
        rows (iterable of [`ImageTextRow`]): Of any form, mixed or not.

    Yields:
        `dict`: `prompt`, `completion` (messages), `images` (`{bytes, path}`), `row` (the same for all texts of an
        image-text row), `where`, and `weight` if a column of weights is named. A conversation is one row, whose
        completion begins with the first turn of the assistant; captions are one row per distinct text, whose prompt
        asks for a description.

    Raises:
        DataError: At the first row that cannot be used.
    """
    for number, row in enumerate(rows):
        if row.error is not None:
            raise row.error
        for group, turns, first in _trained_turns(row):
            yield {
                "prompt": turns[:first],
                "completion": turns[first:],
                "images": [bytes_and_path(image) for image in group.images],
                "row": number,
                "where": group.where or row.row_id,
                **({} if row.weight is None else {"weight": row.weight}),
            }


def _trained_turns(row: ImageTextRow) -> Iterator[tuple[Group, list[dict], int]]:
    """The conversations of a row, each with the group that holds its images and its first turn that carries loss."""
    if row.whole:  # its last group has all turns, its first begins what is to be learnt
        last = row.groups[-1]
        yield last, [*last.prompt, *last.completions[0]], len(row.groups[0].prompt)
        return
    for group in row.groups:
        prompt = group.prompt
        if group.images and not completion_text(prompt).strip():  # a caption
            *before, user = prompt
            prompt = [*before, {**user, "content": [*user["content"], {"type": "text", "text": CAPTION_REQUEST}]}]
        distinct: dict[str, list[dict]] = {}
        for completion in group.completions:
            distinct.setdefault(completion_text(completion), completion)
        for completion in distinct.values():
            yield group, [*prompt, *completion], len(prompt)
