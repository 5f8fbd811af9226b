"""`rs-rlhf grpo`: a policy, prompts with images and a score model in, a better policy out.

Left out: several data sets with weights, and quantised policies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import OptionError
from ..options import imported
from ..trainers.options import GRPOOptions, GRPOScriptArguments
from .training import Training, check_common, model_options, train

if TYPE_CHECKING:
    from trl import ModelConfig

    from ..trainers.grpo import VisionGRPOConfig


def main(script_args: GRPOScriptArguments, training_args: VisionGRPOConfig, model_args: ModelConfig) -> None:
    """Trains and saves a policy."""
    from trl import get_peft_config

    from ..trainers.audit.choice_check import ChoiceCheck
    from ..trainers.data.grpo import load_data
    from ..trainers.grpo import VisionGRPOTrainer

    check_common(script_args.dataset_name, training_args, model_args)
    if not training_args.score_model and not script_args.reward_funcs and training_args.reward != "rs":
        raise OptionError("no reward; give --score_model, or --reward_funcs.", "score_model")
    train_set, eval_set = load_data(script_args, training_args)
    training_args.model_init_kwargs = model_options(model_args, training_args.model_init_kwargs, "float32")
    trainer = VisionGRPOTrainer(
        model=str(model_args.model_name_or_path),
        reward_funcs=_further_rewards(script_args.reward_funcs or [], training_args) or None,
        args=training_args,
        train_dataset=train_set,
        eval_dataset=eval_set,
        peft_config=get_peft_config(model_args),
    )
    if script_args.check_best_of_n:
        trainer.add_callback(ChoiceCheck(trainer, script_args.check_best_of_n))
    done = [f"Policy saved to {training_args.output_dir}; look at the run with"]
    train(trainer, script_args, evaluate=False, done=[*done, f"  rs-rlhf report {training_args.output_dir}"])


def _further_rewards(names: Sequence[str], training_args: VisionGRPOConfig) -> list[Any]:
    """Imports the rewards beside the one of `reward`."""
    from ..rewards.configured import check_names, reward_name

    rewards = [imported(name if "." in name else f"rs_rlhf.rewards.{name}", "reward_funcs") for name in names]
    own = ["rs_reward"] if training_args.reward == "rs" else ["score_reward"] if training_args.score_model else []
    check_names([*own, *map(reward_name, rewards)])
    return rewards


training = Training(
    "grpo",
    "Improve a vision-language model with GRPO, rewarded by a score model.",
    GRPOScriptArguments,
    GRPOOptions,
    "trainers.grpo:VisionGRPOConfig",
    main,
)
