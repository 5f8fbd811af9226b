"""`rs-rlhf grpo`: a policy, prompts with images and a score model in, a better policy out.

A thin command around [`VisionGRPOTrainer`], as TRL's scripts are. Left out: several data sets with weights, and
quantised policies.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from trl import ModelConfig, ScriptArguments, get_peft_config

from ..errors import DeclarationError
from ..metrics.answers import THINK_ANSWER
from ..trainers.grpo import VisionGRPOConfig, VisionGRPOTrainer
from ..trainers.grpo_data import load_prompts
from .launch import TrainingParser, check_common, run


@dataclass
class GRPOScriptArguments(ScriptArguments):
    """TRL's script arguments with rewards and a place for separate evaluation data."""

    dataset_name: str | None = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "Prompts: files, folders or Hub ids with `prompt`, `image` and perhaps `solution`, or labelled "
            "images; several are separated by commas."
        },
    )
    dataset_train_split: str | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Split of a folder or Hub id to train on; a file has none."}
    )
    dataset_test_split: str | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Split to evaluate on."}
    )
    eval_dataset_name: str | None = field(
        default=None, metadata={"help": "Prompts to evaluate on; by default the dataset_test_split of dataset_name."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Training prompts at most, drawn by seed."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluation prompts at most, drawn by seed."})
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={"help": "Further rewards by dotted path: rs_rlhf.rewards.ExactMatchReward, or your own function."},
    )
    system_prompt: str | None = field(
        default=None,
        metadata={"help": "System turn put before each prompt; 'think-answer' asks for <think>… and <answer>…."},
    )


def command(argv: Sequence[str]) -> int:
    """`rs-rlhf grpo`: trains here or through `accelerate launch`, and returns the exit code."""
    return run("grpo", make_parser("rs-rlhf grpo"), main, argv)


def make_parser(prog: str | None = None) -> TrainingParser:
    """Returns the command's parser, whose flags are the fields of the three dataclasses."""
    description = "Improve a vision-language model with GRPO, rewarded by a score model."
    return TrainingParser((GRPOScriptArguments, VisionGRPOConfig, ModelConfig), prog=prog, description=description)


def main(script_args: GRPOScriptArguments, training_args: VisionGRPOConfig, model_args: Any) -> None:
    """Trains and saves a policy.

    Args:
        script_args ([`GRPOScriptArguments`]): The data and further rewards.
        training_args ([`VisionGRPOConfig`]): The training options.
        model_args (`trl.ModelConfig`): The policy; LoRA options as in TRL.

    Raises:
        DataError: The data cannot be read.
        DeclarationError: Options that are missing or do not go together.
    """
    check_arguments(script_args, training_args, model_args)
    train_set, eval_set = load_data(script_args, training_args)
    options = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype or "float32",
    }
    given = training_args.model_init_kwargs if isinstance(training_args.model_init_kwargs, dict) else {}
    training_args.model_init_kwargs = {k: v for k, v in {**options, **given}.items() if v is not None}
    trainer = VisionGRPOTrainer(
        model=model_args.model_name_or_path,
        reward_funcs=[find_reward(name) for name in script_args.reward_funcs or []] or None,
        args=training_args,
        train_dataset=train_set,
        eval_dataset=eval_set,
        peft_config=get_peft_config(model_args),
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    trainer.save_state()
    trainer.accelerator.print(f"Policy saved to {training_args.output_dir}; look at the run with")
    trainer.accelerator.print(f"  rs-rlhf report {training_args.output_dir}")
    if hasattr(trainer, "end"):
        trainer.end()


def check_arguments(script_args: GRPOScriptArguments, training_args: VisionGRPOConfig, model_args: Any) -> None:
    """Refuses options that would be ignored, and missing ones."""
    check_common(script_args, training_args, model_args, "prompts")
    if not training_args.score_model and not script_args.reward_funcs and training_args.reward != "rs":
        raise DeclarationError("no reward; give --score_model, or --reward_funcs.")


def load_data(script_args: GRPOScriptArguments, training_args: VisionGRPOConfig) -> tuple[Any, Any]:
    """Reads training and evaluation prompts; sets `image_root` where it is not given."""
    system = THINK_ANSWER if script_args.system_prompt == "think-answer" else script_args.system_prompt
    given = training_args.image_root
    common: dict[str, Any] = {"image_root": given, "system_prompt": system, "seed": training_args.seed}
    train_set, root = load_prompts(
        str(script_args.dataset_name), script_args.dataset_train_split, limit=script_args.max_train_samples, **common
    )
    eval_set = None
    if training_args.eval_strategy != "no":
        if not script_args.eval_dataset_name and not script_args.dataset_test_split:
            raise DeclarationError(
                "eval_strategy asks for evaluation; give --eval_dataset_name or --dataset_test_split, or "
                "--eval_strategy no."
            )
        eval_set, eval_root = load_prompts(
            str(script_args.eval_dataset_name or script_args.dataset_name),
            script_args.dataset_test_split,
            limit=script_args.max_eval_samples,
            **common,
        )
        if root != eval_root and training_args.image_root is None:
            root = os.path.commonpath([str(root), str(eval_root)])
    training_args.image_root = root
    return train_set, eval_set


def find_reward(name: str) -> Any:
    """Imports a reward by dotted path; a class is made an object.

    Raises:
        DeclarationError: There is no such module or name in it.
    """
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise DeclarationError(f"reward_funcs: {name!r} cannot be imported ({error}).") from None
    return found() if isinstance(found, type) else found
