"""`rs-rlhf sft`: image-text data and a model in, a fine-tuned model or adapter out.

Left out: data-set mixtures, streaming, and quantised base models.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import ModelConfig, get_peft_config

from ..errors import OptionError
from ..trainers.mixins import loading
from ..trainers.sft import VisionSFTConfig, VisionSFTTrainer
from ..trainers.sft_data import SFTScriptArguments, load_data
from .launch import TrainingParser, run
from .training import check_common, model_options, train


def command(argv: Sequence[str]) -> int:
    """`rs-rlhf sft`: trains here or through `accelerate launch`, and returns the exit code."""
    return run("sft", make_parser(), main, argv)


def make_parser() -> TrainingParser:
    """Returns the command's parser, whose flags are the fields of the three dataclasses."""
    options = (SFTScriptArguments, VisionSFTConfig, ModelConfig)
    return TrainingParser(options, "rs-rlhf sft", "Fine-tune a vision-language model on image-text data.")


def main(script_args: SFTScriptArguments, training_args: VisionSFTConfig, model_args: ModelConfig) -> None:
    """Trains, evaluates and saves a model or an adapter."""
    check_common(script_args, training_args, model_args, "image-text data", pads=False)
    if training_args.trainable != "all" and model_args.use_peft:
        raise OptionError(
            "trainable cannot be combined with LoRA; name the merger in lora_modules_to_save.", "trainable"
        )
    train_set, eval_set = load_data(script_args, training_args)
    path = str(model_args.model_name_or_path)
    with loading(path):
        options = model_options(model_args, dtype="float32")
        model = AutoModelForImageTextToText.from_pretrained(path, use_safetensors=True, **options)
        processor = AutoProcessor.from_pretrained(path, revision=model_args.model_revision)
    trainer = VisionSFTTrainer(
        model=model,
        args=training_args,
        train_dataset=train_set,
        eval_dataset=eval_set,
        processing_class=processor,
        peft_config=get_peft_config(model_args),
    )
    done = f"Model saved to {os.path.abspath(str(training_args.output_dir))}"
    train(trainer, evaluate=eval_set is not None, done=[done])
