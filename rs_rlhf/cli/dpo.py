"""`rs-rlhf dpo` and `rs-rlhf kto`: judged answers and a policy in, a better policy or adapter out.

Left out: data-set mixtures beyond a list of files, streaming, and quantised base models.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ..trainers.options import PreferenceTuningOptions, RewardScriptArguments
from .training import Training, check_common, model_options, train

if TYPE_CHECKING:
    from trl import ModelConfig


def main(name: str, script_args: RewardScriptArguments, training_args: Any, model_args: ModelConfig) -> None:
    """Trains, evaluates and saves a policy with DPO or KTO."""
    from trl import get_peft_config

    from ..trainers.data.reward import load_data
    from ..trainers.dpo import VisionDPOTrainer, VisionKTOTrainer

    check_common(script_args.dataset_name, training_args, model_args)
    train_set, eval_set = load_data(script_args, training_args, "pairs" if name == "dpo" else "labelled")
    if name == "kto":  # rows are drawn in their order, and those of a pair stand together
        train_set = train_set.shuffle(seed=training_args.seed, keep_in_memory=True)
        if training_args.process_index == 0:
            print(balance(sum(train_set["label"][:]), len(train_set), training_args))
    training_args.model_init_kwargs = model_options(model_args, training_args.model_init_kwargs, "float32")
    trainer = (VisionDPOTrainer if name == "dpo" else VisionKTOTrainer)(
        model=str(model_args.model_name_or_path),
        args=training_args,
        train_dataset=train_set,
        eval_dataset=eval_set,
        peft_config=get_peft_config(model_args),
    )
    train(trainer, script_args, evaluate=eval_set is not None, done=[f"Policy saved to {training_args.output_dir}"])


def balance(good: int, count: int, training_args: Any) -> str:
    """Says how many answers are good and bad, and which weight is advised, if another (arXiv 2402.01306, eq. 8)."""
    bad, weights = count - good, (training_args.desirable_weight, training_args.undesirable_weight)
    line = f"{good} good answers, {bad} bad ones"
    if not good or not bad or bad * weights[1] <= good * weights[0] <= (4 / 3 + 1e-6) * bad * weights[1]:
        return line
    low, high = (share * bad * weights[1] / good for share in (1, 4 / 3))
    return f"{line}; with as many, --desirable_weight {low:.2f} to {high:.2f} is advised"


training = Training(
    "dpo",
    "Improve a vision-language model with DPO, on chosen and rejected answers.",
    RewardScriptArguments,
    PreferenceTuningOptions,
    "trainers.dpo:VisionDPOConfig",
    partial(main, "dpo"),
)
kto = Training(
    "kto",
    "Improve a vision-language model with KTO, on answers that are good or bad.",
    RewardScriptArguments,
    PreferenceTuningOptions,
    "trainers.dpo:VisionKTOConfig",
    partial(main, "kto"),
)
