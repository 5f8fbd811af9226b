"""`rs-rlhf clip`: image-text data and a dual encoder in, a fine-tuned dual encoder out.

The data are what `rs-rlhf score` and `rs-rlhf curate` read and write. Every text of a row is a pair with its image.
The rows are written once to the `datasets` cache, from where pairs are drawn at random whatever the size of the data.

Left out: mixtures of data sets with weights, streaming, and rows with several images.
"""

from __future__ import annotations

import os
import random
import re
import warnings
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl import ModelConfig, ScriptArguments

from .. import __version__
from ..errors import DataError, DeclarationError
from ..models.clip import ClipModel
from ..trainers.clip import ClipTrainer, ImageTextPairs, VisionClipConfig
from .launch import TrainingParser, check_common, run

HELD_OUT = ("validation", "valid", "val", "dev", "test", "eval")
CUT_SAMPLE = 2000  # texts that are tokenized to tell how many are too long


@dataclass
class ClipScriptArguments(ScriptArguments):
    """TRL's script arguments for image-text data, and the benchmarks to evaluate on."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Image-text file, folder of them or Hub id, as for `rs-rlhf score --input`."},
    )
    dataset_train_split: str | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Split of a folder or Hub id to train on. By default all of it."}
    )
    image_column: str | None = field(default=None, metadata={"help": "Column of the images, if it has another name."})
    text_column: str | None = field(default=None, metadata={"help": "Column of the texts, if it has another name."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Training rows at most, drawn by seed."})
    eval_tasks: list[str] | None = field(
        default=None,
        metadata={
            "help": "Benchmarks (names in eval/ or YAML files) that the model is put to at each evaluation "
            "(eval_strategy, eval_steps) and at the end."
        },
    )
    eval_data_root: str | None = field(
        default=None,
        metadata={"help": "Folder that the benchmarks' data lie in; by default RS_RLHF_DATA, or ../shared/data."},
    )


def command(argv: Sequence[str]) -> int:
    """`rs-rlhf clip`: trains here or through `accelerate launch`, and returns the exit code."""
    return run("clip", make_parser("rs-rlhf clip"), main, argv)


def make_parser(prog: str | None = None) -> TrainingParser:
    """Returns the command's parser, whose flags are the fields of the three dataclasses."""
    description = "Fine-tune a CLIP or SigLIP on image-text data."
    return TrainingParser((ClipScriptArguments, VisionClipConfig, ModelConfig), prog=prog, description=description)


def main(script_args: ClipScriptArguments, training_args: VisionClipConfig, model_args: Any) -> None:
    """Trains, evaluates and saves a dual encoder.

    Args:
        script_args ([`ClipScriptArguments`]): The data and the benchmarks.
        training_args ([`VisionClipConfig`]): The training options.
        model_args (`trl.ModelConfig`): The model.

    Raises:
        DataError: The data or those of a benchmark cannot be used; names the file and the row.
        DeclarationError: Options that are missing or would be ignored.
        ValueError: The model cannot be loaded, or is no dual encoder.
    """
    check_arguments(script_args, training_args, model_args)
    tasks = read_tasks(script_args)
    with training_args.main_process_first(desc="reading the pairs"):
        pairs = load_pairs(
            str(script_args.dataset_name),
            script_args.dataset_train_split,
            image_root=training_args.image_root,
            image_column=script_args.image_column,
            text_column=script_args.text_column,
            limit=script_args.max_train_samples,
            seed=training_args.seed,
        )
    clip = ClipModel.from_pretrained(
        model_args.model_name_or_path,
        revision=model_args.model_revision,
        dtype=model_args.dtype or "float32",
        attn_implementation=model_args.attn_implementation,
    )
    trainer = ClipTrainer(clip.model, training_args, clip.processor, pairs, tasks)
    say = trainer.accelerator.print
    say(f"{len(pairs)} pairs of {len(pairs.rows)} images in {script_args.dataset_name}")
    if trainer.accelerator.is_main_process:
        warn_cut(pairs, clip)
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    if tasks:
        metrics = last_figures(trainer) or trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    trainer.save_state()
    say(f"Model saved to {os.path.abspath(str(training_args.output_dir))}; see how it does with")
    say(f"  rs-rlhf eval --model {training_args.output_dir} --model-type clip --task TASK")


def check_arguments(script_args: ClipScriptArguments, training_args: Any, model_args: Any) -> None:
    """Refuses options that would be ignored, and missing ones."""
    if model_args.use_peft or model_args.load_in_4bit or model_args.load_in_8bit:
        raise DeclarationError("use_peft, load_in_4bit and load_in_8bit are not supported for a dual encoder.")
    check_common(script_args, training_args, model_args, "image-text data")
    if (limit := script_args.max_train_samples) is not None and limit < 1:
        raise DeclarationError(f"max_train_samples is {limit}; it must be at least 1.")


def read_tasks(script_args: ClipScriptArguments) -> list[tuple[Any, list[Any]]]:
    """Reads the benchmarks and their questions, as `rs-rlhf eval` does."""
    from ..evaluation.benchmark import load_benchmark
    from ..evaluation.protocols import kind_of_model
    from .eval import read_task

    options = Namespace(data=[], data_root=script_args.eval_data_root, core_only=False, limit=None, seed=0)
    tasks = []
    for name in script_args.eval_tasks or []:
        kind_of_model(load_benchmark(name), "clip")
        benchmark, rows, _ = read_task(name, options)
        tasks.append((benchmark, rows))
    return tasks


def load_pairs(
    path: str,
    split: str | None = None,
    *,
    image_root: str | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> ImageTextPairs:
    """Reads image-text data as pairs; the rows are written once to the `datasets` cache.

    Args:
        path, split, image_root, image_column, text_column: As for `image_text_files.open_image_texts`.
        limit (`int`, *optional*): Rows at most, drawn by the seed.
        seed (`int`): Of the draw.

    Raises:
        DataError: A row that cannot be used, or has not one image; names the file and the row. A
            folder of several splits, none of which is named.
    """
    import datasets

    from ..data.image_text_dataset import open_image_texts
    from ..data.row_cache import stored_rows

    reading = {"image_root": image_root, "image_column": image_column, "text_column": text_column}
    if split is None:
        _refuse_mixed_splits(open_image_texts(path, **reading))
    text = datasets.Value("string")
    image = {"bytes": datasets.Value("large_binary"), "path": text}
    features = datasets.Features({"image": image, "texts": datasets.List(text), "where": text})
    rows = stored_rows(_rows, features, path, split, reading, __version__)
    if limit is not None and limit < len(rows):
        rows = rows.select(sorted(random.Random(seed).sample(range(len(rows)), limit)))
    return ImageTextPairs(rows)


def _rows(data: Any) -> Iterator[dict[str, Any]]:
    empty = True
    for row in data:
        if row.error is not None:
            raise row.error
        where = row.groups[0].where or row.row_id
        if len(row.images) != 1:
            raise DataError(
                f"{len(row.images)} images, expected one: a dual encoder compares one image with texts; "
                "leave the row out",
                "images",
                where,
            )
        source = row.images[0]
        stored = {"bytes": None, "path": source}
        if isinstance(source, dict):
            stored = {"bytes": source["bytes"], "path": source.get("path")}
        empty = False
        yield {"image": stored, "texts": row.texts, "where": where}
    if empty:
        raise DataError("no rows; give data that has some", "", data.name)


def _refuse_mixed_splits(texts: Any) -> None:
    """Refuses to train on a folder's held-out files because no split was named."""
    starts = {name: re.split(r"\W", Path(name).name)[0].lower() for name in texts.files}
    held_out = sorted(name for name, start in starts.items() if start in HELD_OUT)
    trained = sorted(name for name, start in starts.items() if start == "train")
    if held_out and trained:
        raise DataError(
            f"holds files to train on ({trained[0]}) and held-out ones ({held_out[0]}); give "
            "--dataset_train_split train",
            "dataset_train_split",
            texts.name,
        )


def warn_cut(pairs: ImageTextPairs, clip: ClipModel) -> None:
    """Warns if some of the texts, of which a sample is looked at, are too long for the model and lose their end."""
    places = range(len(pairs))
    drawn = random.Random(0).sample(places, min(CUT_SAMPLE, len(places)))
    column = pairs.rows["texts"]  # alone: a row of all columns would load its image
    flat = [one for i in sorted({pairs.row_of(i) for i in drawn}) for one in column[i]]
    cut = sum(len(ids) > clip.max_text_tokens for ids in clip.processor.tokenizer(flat, verbose=False)["input_ids"])
    if cut:
        warnings.warn(
            f"{cut / len(flat):.1%} of the texts (of {len(flat)} looked at) are longer than the model's "
            f"{clip.max_text_tokens} tokens: their ends are cut off.",
            stacklevel=2,
        )


def last_figures(trainer: ClipTrainer) -> dict[str, float] | None:
    """Returns the figures of the last step, if it has been evaluated already."""
    for entry in trainer.state.log_history:
        figures = {name: value for name, value in entry.items() if name.startswith("eval_")}
        if figures and entry["step"] == trainer.state.global_step:
            return figures
    return None
