"""`rs-rlhf clip`: image-text data and a dual encoder in, a fine-tuned dual encoder out.

Left out: mixtures of data sets with weights, streaming, and rows with several images.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from trl import ModelConfig

from ..errors import OptionError
from ..models.clip import ClipModel
from ..trainers.clip import ClipTrainer, VisionClipConfig
from ..trainers.clip_data import ClipScriptArguments, load_pairs, read_tasks, warn_cut
from .launch import TrainingParser, run
from .training import check_common, model_options, train


def command(argv: Sequence[str]) -> int:
    """`rs-rlhf clip`: trains here or through `accelerate launch`, and returns the exit code."""
    return run("clip", make_parser(), main, argv)


def make_parser() -> TrainingParser:
    """Returns the command's parser, whose flags are the fields of the three dataclasses."""
    options = (ClipScriptArguments, VisionClipConfig, ModelConfig)
    return TrainingParser(options, "rs-rlhf clip", "Fine-tune a CLIP or SigLIP on image-text data.")


def main(script_args: ClipScriptArguments, training_args: VisionClipConfig, model_args: ModelConfig) -> None:
    """Trains, evaluates and saves a dual encoder."""
    if model_args.use_peft or model_args.load_in_4bit or model_args.load_in_8bit:
        raise OptionError("use_peft, load_in_4bit and load_in_8bit are not supported for a dual encoder.", "use_peft")
    check_common(script_args, training_args, model_args, "image-text data")
    if (limit := script_args.max_train_samples) is not None and limit < 1:
        raise OptionError(f"max_train_samples is {limit}; it must be at least 1.", "max_train_samples")
    tasks = read_tasks(script_args.eval_tasks or (), script_args.eval_data_root)
    with training_args.main_process_first(desc="reading the pairs"):
        pairs = load_pairs(
            str(script_args.dataset_name),
            script_args.dataset_train_split,
            image_root=training_args.image_root,
            image_column=script_args.image_column,
            text_column=script_args.text_column,
            limit=limit,
            seed=training_args.seed,
        )
    clip = ClipModel.from_pretrained(str(model_args.model_name_or_path), **model_options(model_args, dtype="float32"))
    trainer = ClipTrainer(clip.model, training_args, clip.processor, pairs, tasks)
    trainer.accelerator.print(f"{len(pairs)} pairs of {len(pairs.rows)} images in {script_args.dataset_name}")
    if trainer.accelerator.is_main_process:
        warn_cut(pairs, clip)
    done = f"Model saved to {os.path.abspath(str(training_args.output_dir))}; see how it does with"
    hint = f"  rs-rlhf eval --model {training_args.output_dir} --model-type clip --task TASK"
    train(trainer, evaluate=bool(tasks), done=[done, hint])
