"""What a reward trainer is given, as it needs it: the model, its processor and its adapter.

A model that TRL's trainer takes (a text classifier, loaded or by name) stays TRL's; a causal VLM becomes a
[`ScoreModel`].
"""

from __future__ import annotations

import warnings
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from accelerate.utils import DistributedType, is_peft_model
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, BitsAndBytesConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from trl.trainer.reward_trainer import DataCollatorForPreference

from ..errors import OptionError, loading
from ..models.score_model import HEAD, ScoreModel
from ..models.vlm import base_path, hub_config
from .options import RewardOptions

if TYPE_CHECKING:
    from trl import RewardConfig

# What changes the training of a score model, and would have no effect on a text classifier.
SCORE_OPTIONS = ("trainable", "positions", "output_activation", "ranked_rejected", "anchor_coefficient")


def is_text_only(model: Any, args: RewardConfig | None) -> bool:
    """Says whether a model is TRL's to train: a text classifier, or a name that transformers loads as one."""
    if not isinstance(model, str):
        return not isinstance(bare(model), ScoreModel) and not _is_causal(bare(model))
    with loading(model, key="model_name_or_path"):
        config = hub_config(base_path(model), loading_options(args) if args is not None else {})
    known = type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING or hasattr(config, "auto_map")
    return known and config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def bare(model: Any) -> Any:
    """Returns a model without its adapter."""
    return model.get_base_model() if is_peft_model(model) else model


def _is_causal(model: PreTrainedModel) -> bool:
    kind = getattr(getattr(model, "config", None), "model_type", None)
    return kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and model.get_output_embeddings() is not None


def loading_options(args: RewardConfig, quantization: BitsAndBytesConfig | None = None) -> dict[str, Any]:
    """Returns the arguments of `from_pretrained` that a config asks for."""
    given: dict[str, Any] = {**(args.model_init_kwargs or {})}  # type: ignore[dict-item]  # TRL has parsed a string
    given.pop("num_labels", None)  # always one
    if quantization is not None:
        if "quantization_config" in given:
            raise OptionError(
                "quantization_config is given twice; leave it out of model_init_kwargs.", "quantization_config"
            )
        given["quantization_config"] = quantization
    if args.distributed_state.distributed_type in (DistributedType.MULTI_GPU, DistributedType.DEEPSPEED):
        given["device_map"] = None  # each process has the whole model, or DeepSpeed's part
    return {"dtype": "float32", "trust_remote_code": args.trust_remote_code, "device_map": None, **given}


def score_model(
    model: Any, args: RewardConfig, options: RewardOptions, quantization: BitsAndBytesConfig | None = None
) -> Any:
    """Returns a score model, or the PEFT model of one: loaded, made of a causal VLM, or as it is."""
    form = {"positions": options.positions, "output_activation": options.output_activation}
    if isinstance(model, str):
        loaded = loading_options(args, quantization)
        with loading(model, key="model_name_or_path" if quantization is None else ""):
            return ScoreModel.from_pretrained(model, **form, **loaded)
    for name, value in {"quantization_config": quantization, "model_init_kwargs": args.model_init_kwargs}.items():
        if value is not None:
            warnings.warn(f"{name} has no effect: the model is loaded already.", stacklevel=4)
    if isinstance(bare(model), ScoreModel):
        return model
    if is_peft_model(model):
        raise OptionError(
            f"an adapter of a {type(bare(model)).__name__} cannot become one of a score model; give the model without "
            "it, and peft_config.",
            "model",
        )
    return ScoreModel.from_causal(model, **form)


def head_adapter(config: Any) -> Any:
    """Returns a PEFT config for a score model: its head is trained whole, and it is none of PEFT's tasks.

    Scripts for TRL name the head of a text classifier (`score`), and may leave the modules of LoRA to PEFT, which
    knows those of language models alone.
    """
    from peft import PeftConfig, PeftType

    if not isinstance(config, PeftConfig):
        return config  # TRL says what it expects
    if config.is_prompt_learning:
        raise OptionError(
            f"{config.peft_type} cannot be used with a score model, which lays its prompts out; use LoRA.",
            "peft_config",
        )
    own: Any = deepcopy(config)
    own.task_type = None
    own.modules_to_save = sorted({*(own.modules_to_save or ()), HEAD.split(".")[0]} - {"score", "classifier"})
    if own.peft_type == PeftType.LORA and own.target_modules is None and not own.target_parameters:
        own.target_modules = {"q_proj", "v_proj"}  # as PEFT has it for Qwen2 and Qwen3
    return own


def check_text_only(options: RewardOptions, name: str) -> None:
    """Refuses options that only a score model reads."""
    for key in SCORE_OPTIONS:
        if getattr(options, key) != getattr(RewardOptions, key):
            reason = f"{key} is read for score models, and {name} is a text classifier; leave it out."
            raise OptionError(reason, key)


def check_collator(collator: Any) -> None:
    """Refuses TRL's collator, which takes token ids."""
    if isinstance(collator, DataCollatorForPreference):
        raise OptionError(
            "TRL's data_collator takes token ids, and a score model's rows are laid out in their batch; leave it out.",
            "data_collator",
        )


def check_model(model: ScoreModel, options: RewardOptions, adapted: bool) -> None:
    """Refuses options that do not go with the model, or with LoRA."""
    if options.anchor_coefficient and model.config.output_activation != "identity":
        raise OptionError(
            "anchor_coefficient needs scores of either sign; set output_activation to 'identity'.",
            "anchor_coefficient",
        )
    if adapted and options.trainable != "all":
        raise OptionError(
            "trainable cannot be combined with LoRA; name the LoRA modules in lora_target_modules.", "trainable"
        )


def set_trainable(model: ScoreModel, part: str) -> None:
    """Freezes all weights but those of the head and of a part: `"head"`, `"vision"`, `"language"` or `"all"`."""
    if getattr(model, "is_quantized", False):
        return  # only an adapter can be trained, and transformers says so
    model.requires_grad_(part == "all")
    if part in ("vision", "language"):
        for weight in model.part(part):
            weight.requires_grad_(True)
    model.reward_head.requires_grad_(True)
