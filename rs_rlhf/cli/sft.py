"""`rs-rlhf sft`: image-text data and a model in, a fine-tuned model or adapter out.

Left out: data-set mixtures, streaming, and quantised base models.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..errors import OptionError
from ..trainers.options import SFTOptions, SFTScriptArguments
from .training import Training, check_common, model_options, train

if TYPE_CHECKING:
    from trl import ModelConfig

    from ..trainers.sft import VisionSFTConfig


def main(script_args: SFTScriptArguments, training_args: VisionSFTConfig, model_args: ModelConfig) -> None:
    """Trains, evaluates and saves a model or an adapter."""
    from transformers import AutoModelForImageTextToText
    from trl import get_peft_config

    from ..errors import loading
    from ..models.vlm import load_processor
    from ..trainers.data.sft import load_data
    from ..trainers.sft import VisionSFTTrainer

    check_common(script_args.dataset_name, training_args, model_args, pads=False)
    if training_args.trainable != "all" and model_args.use_peft:
        raise OptionError(
            "trainable cannot be combined with LoRA; name the merger in lora_modules_to_save.", "trainable"
        )
    train_set, eval_set = load_data(script_args, training_args)
    path = str(model_args.model_name_or_path)
    with loading(path, key="model_name_or_path"):
        options = model_options(model_args, dtype="float32")
        trust = training_args.trust_remote_code
        processor = load_processor(path, options | {"trust_remote_code": trust})
        model = AutoModelForImageTextToText.from_pretrained(
            path, use_safetensors=True, trust_remote_code=trust, **options
        )
    trainer = VisionSFTTrainer(
        model=model,
        args=training_args,
        train_dataset=train_set,
        eval_dataset=eval_set,
        processing_class=processor,
        peft_config=get_peft_config(model_args),
    )
    done = f"Model saved to {os.path.abspath(str(training_args.output_dir))}"
    train(trainer, script_args, evaluate=eval_set is not None, done=[done])


training = Training(
    "sft",
    "Fine-tune a vision-language model on image-text data.",
    SFTScriptArguments,
    SFTOptions,
    "trainers.sft:VisionSFTConfig",
    main,
)
