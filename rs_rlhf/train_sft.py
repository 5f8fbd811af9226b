"""`rs-rlhf sft`: the command around [`rs_rlhf.sft.train`].

Left out: everything that is not parsing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trl import ModelConfig, ScriptArguments

from .declarations import DeclarationError
from .launch import TrainingParser, run
from .sft import VisionSFTConfig, train


@dataclass
class SFTScriptArguments(ScriptArguments):
    """TRL's script arguments with a limit on the training images."""

    max_train_samples: int | None = field(default=None, metadata={"help": "Training images at most, drawn by seed."})


def command(argv: Sequence[str]) -> int:
    """`rs-rlhf sft`: trains here or through `accelerate launch`, and returns the exit code."""
    return run("sft", make_parser("rs-rlhf sft"), main, argv)


def make_parser(prog: str | None = None) -> TrainingParser:
    """Returns the command's parser, whose flags are the fields of the three dataclasses."""
    description = "Fine-tune a vision-language model on captioned or labelled images."
    return TrainingParser((SFTScriptArguments, VisionSFTConfig, ModelConfig), prog=prog, description=description)


def main(script_args: SFTScriptArguments, training_args: VisionSFTConfig, model_args: Any) -> None:
    """Trains, see [`rs_rlhf.sft.train`]; refuses options that would be ignored, and missing ones."""
    if not script_args.dataset_name or not model_args.model_name_or_path:
        missing = "model_name_or_path" if script_args.dataset_name else "dataset_name"
        raise DeclarationError(f"no {missing}; give --{missing}, or a recipe with it (--config).")
    if script_args.dataset_streaming or script_args.dataset_config:
        raise DeclarationError("dataset_streaming and dataset_config are not supported for captioned images.")
    if model_args.load_in_4bit or model_args.load_in_8bit:
        raise DeclarationError("load_in_4bit and load_in_8bit are not supported; use LoRA in bf16.")
    if training_args.pad_to_multiple_of:
        raise DeclarationError("pad_to_multiple_of is not supported: batches are padded to their longest row.")
    train(script_args, training_args, model_args)
