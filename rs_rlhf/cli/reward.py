"""`rs-rlhf reward`: preference files and a model in, a score model out.

A thin command around [`VisionRewardTrainer`], as TRL's scripts are: read the data, train, evaluate, save, say what to
do next. Left out: data-set mixtures beyond a list of files, streaming, and quantised base models.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl import ModelConfig, ScriptArguments

from ..data.rows import common_folder, split_paths
from ..errors import DataError, DeclarationError
from ..imagery.arguments import image_flags
from ..preferences.reader import load_with_images
from ..trainers.mixins import evaluated_last
from ..trainers.reward import VisionRewardConfig, VisionRewardTrainer
from .launch import TrainingParser, check_common, run

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class RewardScriptArguments(ScriptArguments):
    """TRL's script arguments with a place for separate evaluation files."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Preference files, a folder or a Hub id; several are separated by commas."},
    )
    dataset_train_split: str | None = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "Split of a folder or Hub id to train on, by default the only one or 'train'; a file has none."
        },
    )
    eval_dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Preference files to evaluate on, as for dataset_name. By default the dataset_test_split of "
            "dataset_name, if eval_strategy asks for evaluation."
        },
    )


def command(argv: Sequence[str]) -> int:
    """`rs-rlhf reward`: trains here or through `accelerate launch`, and returns the exit code."""
    return run("reward", make_parser("rs-rlhf reward"), main, argv)


def make_parser(prog: str | None = None) -> TrainingParser:
    """Returns the command's parser, whose flags are the fields of the three dataclasses."""
    description = "Train a score model on preference pairs with images, without, or mixed."
    return TrainingParser((RewardScriptArguments, VisionRewardConfig, ModelConfig), prog=prog, description=description)


def main(script_args: RewardScriptArguments, training_args: VisionRewardConfig, model_args: ModelConfig) -> None:
    """Trains, evaluates and saves a score model.

    Args:
        script_args ([`RewardScriptArguments`]): The data.
        training_args ([`VisionRewardConfig`]): The training options.
        model_args (`trl.ModelConfig`): The model; LoRA options as in TRL.

    Raises:
        DataError: The data cannot be read.
        DeclarationError: Options that are missing or do not go together, or a model that cannot be loaded.
    """
    check_arguments(script_args, training_args, model_args)
    next_command = eval_command(script_args, training_args)  # now: reading the data sets `image_root`
    train_set, eval_set = load_data(script_args, training_args)
    trainer = make_trainer(training_args, model_args, train_set, eval_set)
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    trainer.save_state()
    if eval_set is not None and not evaluated_last(trainer):
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    trainer.accelerator.print(f"Score model saved to {training_args.output_dir}; see how it does with")
    trainer.accelerator.print(f"  {next_command}")
    if hasattr(trainer, "end"):  # transformers 5.18: closes the trackers and the process group
        trainer.end()


def check_arguments(script_args: RewardScriptArguments, training_args: Any, model_args: ModelConfig) -> None:
    """Refuses options that would be ignored, and missing ones."""
    check_common(script_args, training_args, model_args, "preference data")
    if training_args.pad_to_multiple_of:
        raise DeclarationError("pad_to_multiple_of is not supported: batches are padded to their longest row.")


def eval_command(script_args: RewardScriptArguments, training_args: VisionRewardConfig) -> str:
    """Returns the command that evaluates the trained model: on the evaluation data, read as for the training.

    Args:
        script_args ([`RewardScriptArguments`]): The data; without evaluation data the command says `FILE`.
        training_args ([`VisionRewardConfig`]): The options as they were given, before [`load_data`].
    """
    files, split = split_paths(script_args.eval_dataset_name or ()), []
    if not files and training_args.eval_strategy != "no":
        files, split = split_paths(script_args.dataset_name or ()), ["--split", script_args.dataset_test_split]
    blind = ["--image_blind"] if training_args.image_blind else []
    flags = [*split, *image_flags(training_args), *blind]
    return shlex.join(
        ["rs-rlhf", "eval", "--model", str(training_args.output_dir), "--preferences", *(files or ["FILE"]), *flags]
    )


def load_data(script_args: RewardScriptArguments, training_args: Any) -> tuple[Dataset, Dataset | None]:
    """Reads the training and evaluation sets.

    Without `image_root`, relative image paths start from the folder of their own file, and `image_root` becomes the
    folder that holds all of these; so no row can name an image outside the data's own folders.

    Args:
        script_args ([`RewardScriptArguments`]): Names the data.
        training_args ([`VisionRewardConfig`]): `image_root` is set if it is not.

    Raises:
        DataError: Unreadable data, or evaluation asked for without data for it.
    """
    names, split = split_paths(script_args.dataset_name or ()), script_args.dataset_train_split
    eval_names, eval_split = split_paths(script_args.eval_dataset_name or ()), None
    if not eval_names and training_args.eval_strategy != "no":
        if plain := [name for name in names if Path(name.removeprefix("rsrm:")).is_file()]:
            raise DataError(
                f"eval_strategy asks for evaluation, but the file {plain[0]} has no splits; give --eval_dataset_name, "
                "or --eval_strategy no"
            )
        split, eval_names, eval_split = split or "train", names, script_args.dataset_test_split

    given = training_args.image_root
    if given is None:
        training_args.image_root = common_folder([*names, *eval_names])
    train_set, _ = load_with_images(names, split, given)
    return train_set, load_with_images(eval_names, eval_split, given)[0] if eval_names else None


def make_trainer(
    training_args: VisionRewardConfig, model_args: ModelConfig, train_set: Dataset, eval_set: Dataset | None
) -> VisionRewardTrainer:
    """Loads the model into a trainer.

    Raises:
        DeclarationError: The model cannot be loaded, or options do not go together.
    """
    from trl import get_peft_config

    options: dict[str, Any] = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
    }
    if isinstance(training_args.model_init_kwargs, dict):
        options |= training_args.model_init_kwargs
    training_args.model_init_kwargs = {name: value for name, value in options.items() if value is not None}
    peft_config = get_peft_config(model_args)
    if peft_config is not None:
        peft_config.task_type = None  # a score model is none of PEFT's tasks
    try:
        return VisionRewardTrainer(
            model=model_args.model_name_or_path,
            args=training_args,
            train_dataset=train_set,
            eval_dataset=eval_set,
            peft_config=peft_config,
        )
    except (OSError, ValueError) as error:
        raise DeclarationError(" ".join(str(error).split())) from error
