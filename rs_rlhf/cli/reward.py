"""`rs-rlhf reward`: preference files and a model in, a score model out.

Left out: data-set mixtures beyond a list of files, streaming, and quantised base models.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from ..data.rows import split_paths
from ..imagery.arguments import READING
from ..options import to_flags
from ..trainers.options import RewardOptions, RewardScriptArguments
from .training import Training, check_common, model_options, train

if TYPE_CHECKING:
    from trl import ModelConfig

    from ..trainers.reward import VisionRewardConfig


def main(script_args: RewardScriptArguments, training_args: VisionRewardConfig, model_args: ModelConfig) -> None:
    """Trains, evaluates and saves a score model."""
    from trl import get_peft_config

    from ..errors import ModelError
    from ..models.families import KNOWN
    from ..trainers.data.reward import load_data
    from ..trainers.reward import VisionRewardTrainer
    from ..trainers.reward_model import is_text_only

    check_common(script_args.dataset_name, training_args, model_args)
    next_command = eval_command(script_args, training_args)  # now: reading the data sets `image_root`
    train_set, eval_set = load_data(script_args, training_args)
    training_args.model_init_kwargs = model_options(model_args, training_args.model_init_kwargs)
    model = str(model_args.model_name_or_path)
    if is_text_only(model, training_args):
        families = ", ".join(KNOWN)
        raise ModelError(f"a score model sees images; give a model of {families}.", "model_name_or_path", model)
    trainer = VisionRewardTrainer(
        model=model,
        args=training_args,
        train_dataset=train_set,
        eval_dataset=eval_set,
        peft_config=get_peft_config(model_args),
    )
    done = [f"Score model saved to {training_args.output_dir}; see how it does with", f"  {next_command}"]
    train(trainer, script_args, evaluate=eval_set is not None, done=done)


def eval_command(script_args: RewardScriptArguments, training_args: VisionRewardConfig) -> str:
    """Returns the command that evaluates the trained model on the evaluation data (`FILE` without any), read as for
    the training; `training_args` are the options as they were given, before [`load_data`].
    """
    files, split = split_paths(script_args.eval_dataset_name or ()), []
    if not files and training_args.eval_strategy != "no":
        files, split = split_paths(script_args.dataset_name or ()), ["--split", script_args.dataset_test_split]
    blind = ["--image_blind"] if training_args.image_blind else []
    flags = [*split, *to_flags(training_args, READING), *blind]
    return shlex.join(
        ["rs-rlhf", "eval", "--model", str(training_args.output_dir), "--preferences", *(files or ["FILE"]), *flags]
    )


training = Training(
    "reward",
    "Train a score model on preference pairs with images, without, or mixed.",
    RewardScriptArguments,
    RewardOptions,
    "trainers.reward:VisionRewardConfig",
    main,
)
