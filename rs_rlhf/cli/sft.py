"""`rs-rlhf sft`: image-text data and a model in, a fine-tuned model or adapter out.

Data are read in one of two ways, see [`load_rows`]: labelled images are asked for their class and then for a
description; anything else (conversations, questions, captions, a folder of `rs-rlhf curate`) is taken as it stands.

Left out: data-set mixtures, streaming, and quantised base models.
"""

from __future__ import annotations

import csv
import json
import os
import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import ModelConfig, ScriptArguments

from ..data.captioned_images import load_images, split_files
from ..data.row_cache import stored_rows
from ..data.rows import FORMATS
from ..data.text_records import first_byte
from ..errors import DataError, DeclarationError
from ..trainers.mixins import evaluated_last
from ..trainers.sft import VisionSFTConfig, VisionSFTTrainer, conversation_rows, text_rows
from .launch import TrainingParser, check_common, run

FORM_VERSION = 1  # of the stored rows: raise it when `text_rows` changes, so that caches go stale
# Columns that say more of an image than its captions and its class do.
_TEXT_KEYS = {"conversations", "messages", "completion", "answer", "text", "title", "txt"}


@dataclass
class SFTScriptArguments(ScriptArguments):
    """TRL's script arguments with a place for other evaluation data, and a limit on the training rows."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Image-text data: a file or folder of labelled or captioned images, questions and answers, or "
            "conversations, or a folder of `rs-rlhf curate`."
        },
    )
    dataset_train_split: str | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "Split of a folder to train on, by default 'train' where there is one, else all of it."},
    )
    dataset_test_split: str | None = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "Split to evaluate on, if eval_strategy asks for it; by default 'test', and all of an "
            "eval_dataset_name."
        },
    )
    eval_dataset_name: str | None = field(
        default=None, metadata={"help": "Data to evaluate on, as for dataset_name, which is the default."}
    )
    image_column: str | None = field(
        default=None, metadata={"help": "Column of the image or images; by default told by its name."}
    )
    text_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of the texts; by default told by its name. 'captions' trains on the captions of labelled "
            "images alone, which are otherwise asked for their class too."
        },
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Training rows (images, conversations) at most, drawn by seed."}
    )


def command(argv: Sequence[str]) -> int:
    """`rs-rlhf sft`: trains here or through `accelerate launch`, and returns the exit code."""
    return run("sft", make_parser("rs-rlhf sft"), main, argv)


def make_parser(prog: str | None = None) -> TrainingParser:
    """Returns the command's parser, whose flags are the fields of the three dataclasses."""
    description = "Fine-tune a vision-language model on image-text data."
    return TrainingParser((SFTScriptArguments, VisionSFTConfig, ModelConfig), prog=prog, description=description)


def main(script_args: SFTScriptArguments, training_args: VisionSFTConfig, model_args: ModelConfig) -> None:
    """Trains, evaluates and saves a model or an adapter.

    Args:
        script_args ([`SFTScriptArguments`]): The data.
        training_args ([`VisionSFTConfig`]): The training options.
        model_args (`trl.ModelConfig`): The model; LoRA options as in TRL.

    Raises:
        DataError, ImageError, ValueError: The data cannot be read.
        DeclarationError: Options that are missing or do not go together.
    """
    check_arguments(script_args, training_args, model_args)
    train_set, eval_set = load_data(script_args, training_args)
    trainer = make_trainer(training_args, model_args, train_set, eval_set)
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)  # with the processor
    if eval_set is not None and not evaluated_last(trainer):
        trainer.log_metrics("eval", trainer.evaluate())
    trainer.save_state()
    trainer.accelerator.print(f"Model saved to {os.path.abspath(str(training_args.output_dir))}")


def check_arguments(script_args: SFTScriptArguments, training_args: VisionSFTConfig, model_args: ModelConfig) -> None:
    """Refuses options that would be ignored, and missing ones."""
    check_common(script_args, training_args, model_args, "image-text data")
    if training_args.pad_to_multiple_of:
        raise DeclarationError("pad_to_multiple_of is not supported: batches are padded to their longest row.")
    if training_args.trainable != "all" and model_args.use_peft:
        raise DeclarationError("trainable cannot be combined with LoRA; name the merger in lora_modules_to_save.")


def load_data(script_args: SFTScriptArguments, training_args: VisionSFTConfig) -> tuple[Dataset, Dataset | None]:
    """Reads the training and evaluation sets.

    Args:
        script_args ([`SFTScriptArguments`]): Names the data.
        training_args ([`VisionSFTConfig`]): `image_root` is used up: afterwards all image paths are complete.

    Raises:
        DataError, ImageError, ValueError: Nothing to read, or a row that cannot be used; names file and row.
    """
    name, split = str(script_args.dataset_name), script_args.dataset_train_split
    reading: dict[str, Any] = {"image_root": training_args.image_root}
    reading |= {"image_column": script_args.image_column, "text_column": script_args.text_column}
    training_args.image_root = None
    train_set = load_rows(
        name, split or default_split(name), **reading, limit=script_args.max_train_samples, seed=training_args.seed
    )
    if training_args.eval_strategy == "no":
        return train_set, None
    name = script_args.eval_dataset_name or name
    split = script_args.dataset_test_split or (None if script_args.eval_dataset_name else "test")
    return train_set, load_rows(name, split, **reading, labels_only=True)


def default_split(path: str) -> str | None:
    """Returns `"train"` for a folder that has files, or else a sub-folder, of that split."""
    folder = Path(path)
    files = [file.name for file in (*folder.glob("*"), *folder.glob("data/*")) if file.suffix in FORMATS]
    found = any(name.startswith("train") for name in files) if files else (folder / "train").is_dir()
    return "train" if found else None


def make_trainer(
    training_args: VisionSFTConfig, model_args: ModelConfig, train_set: Dataset, eval_set: Dataset | None
) -> VisionSFTTrainer:
    """Loads the model and its processor into a trainer."""
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import get_peft_config

    path, revision = str(model_args.model_name_or_path), model_args.model_revision
    model = AutoModelForImageTextToText.from_pretrained(
        path,
        revision=revision,
        dtype=model_args.dtype or "float32",
        attn_implementation=model_args.attn_implementation,
        use_safetensors=True,
    )
    return VisionSFTTrainer(
        model=model,
        args=training_args,
        train_dataset=train_set,
        eval_dataset=eval_set,
        processing_class=AutoProcessor.from_pretrained(path, revision=revision),
        peft_config=get_peft_config(model_args),
    )


def load_rows(
    path: str,
    split: str | None = None,
    *,
    image_root: str | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    labels_only: bool = False,
    limit: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Reads data as prompt-completion rows, in one of two ways.

    - Labelled images: a folder of images by class, or Parquet, JSONL or CSV of which some row has a `label` and none
      has `conversations`, `messages`, `completion`, `answer`, `text`, `title`, `txt` or a column named here. Read by
      [`~rs_rlhf.data.captioned_images.load_images`] and laid out by [`~rs_rlhf.trainers.sft.conversation_rows`].
    - Everything else that [`~rs_rlhf.data.image_text_dataset.open_image_texts`] reads, and every folder with a
      `curation.json`: each row by its own form, see [`~rs_rlhf.trainers.sft.text_rows`]; labels are not asked for.
      The rows are written once to the `datasets` cache, not held in memory.

    Args:
        path (`str`): File or folder.
        split (`str`, *optional*): Split of a folder; by default all of it.
        image_root (`str`, *optional*): Folder that image paths start from; by default each file's own, or that of
            `curation.json`.
        image_column, text_column (`str`, *optional*): Columns of the image and of the texts, for the second way; by
            default told by their names.
        labels_only (`bool`): Labelled images are only asked for their class (for evaluation).
        limit (`int`, *optional*): Images or conversations at most, drawn by `seed`.
        seed (`int`): Seed of the draw.

    Raises:
        DataError, ImageError, ValueError: Nothing to read, or a row that cannot be used; names file and row.
    """

    def draw(count: int) -> list[int]:
        number = count if limit is None else min(limit, count)
        return list(range(count)) if number == count else sorted(random.Random(seed).sample(range(count), number))

    reading = {"image_root": image_root, "image_column": image_column, "text_column": text_column}
    if holds_labelled_images(path, split, {image_column, text_column}):
        rows = load_images(path, split, image_root=image_root)
        return Dataset.from_list(conversation_rows([rows[i] for i in draw(len(rows))], labels_only))
    texts = _load_texts(path, split, reading)
    if not len(texts):
        raise DataError("no rows; give data that has some", "", path)
    numbers = texts["row"][:]
    kept = {*draw(numbers[-1] + 1)}
    return texts if len(kept) > numbers[-1] else texts.select([i for i, one in enumerate(numbers) if one in kept])


def holds_labelled_images(path: str, split: str | None = None, named: Collection[str | None] = ()) -> bool:
    """Whether data are labelled images, by the rule of [`load_rows`]; reads JSON lines until it is certain."""
    root = Path(path)
    if (root / "curation.json").exists() or not root.exists():
        return False
    files = split_files(root, split) if root.is_dir() else [root]
    if not files:  # images by class, if there is nothing else to read
        others = [*root.glob(f"{split or ''}*"), *root.glob("data/*"), *root.glob("*.arrow")]
        others = [file for file in others if file.suffix in (*FORMATS, ".arrow")]
        # A .json that is no list holds settings, such as `dataset_info.json`.
        return all(file.suffix == ".json" and first_byte(file) != b"[" for file in others)
    found: set[str] = set()
    for file in files:
        for keys in _keys(file):
            if keys & {*_TEXT_KEYS, *named}:
                return False
            found |= keys
    return "label" in found


def _keys(file: Path) -> Iterator[set[str]]:
    """The columns of a file; of JSON lines those that each row gives a value to, as far as they can be read."""
    if file.suffix == ".parquet":
        import pyarrow.parquet

        try:
            yield set(pyarrow.parquet.read_schema(file).names)
        except (OSError, ValueError):
            return  # the reader will say so
    elif file.suffix == ".csv":
        with file.open(newline="", encoding="utf-8", errors="replace") as lines:
            yield set(next(csv.reader(lines), []))
    elif file.suffix == ".jsonl":
        with file.open("rb") as lines:
            for line in lines:
                try:
                    row = json.loads(line) if line.strip() else {}
                except ValueError:
                    return  # as above
                yield {key for key, value in row.items() if value is not None} if isinstance(row, dict) else set()


def _load_texts(path: str, split: str | None, reading: dict[str, str | None]) -> Dataset:
    from datasets import Features, List, Value

    text = Value("string")
    message = {"role": text, "content": List({"type": text, "text": text})}
    images = List({"bytes": Value("binary"), "path": text})
    columns = {"prompt": List(message), "completion": List(message), "images": images}
    features = Features(columns | {"row": Value("int64"), "where": text})
    return stored_rows(text_rows, features, path, split, reading, FORM_VERSION)
