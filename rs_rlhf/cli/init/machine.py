"""Sizes that fit the machine: which model, how many samples at once, LoRA or not."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sizes:
    """What fits: the model (`None`: a tiny one that is made here), and keys of the recipes.

    `every` are for every training; `reward`, `sft` and `policy` are added to it.
    """

    told: str
    model: str | None
    every: dict[str, Any]
    reward: dict[str, Any] = field(default_factory=dict)
    sft: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None  # questions that commands which sample answers take at most


_TINY: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "activation_checkpointing": False,
    "dataloader_pin_memory": False,
    "save_strategy": "no",
    "logging_steps": 2,
}
_LORA: dict[str, Any] = {
    "dtype": "bfloat16",
    "bf16": True,
    "activation_checkpointing": True,
    "use_peft": True,
    "lora_r": 32,
    "lora_alpha": 64,
    "lora_target_modules": "all-linear",
    "lr_scheduler_type": "cosine",
    "warmup_steps": 20,
    "dataloader_num_workers": 4,
    "logging_steps": 5,
    "save_steps": 200,
    "save_total_limit": 2,
}
# From so many GB of memory of one GPU: the model, samples at once, steps whose gradients are added up, most pixels.
_GPUS = (
    (70, "Qwen/Qwen2.5-VL-7B-Instruct", 4, 4, 1280 * 28 * 28),
    (40, "Qwen/Qwen2.5-VL-7B-Instruct", 1, 16, 768 * 28 * 28),
    (20, "Qwen/Qwen2.5-VL-3B-Instruct", 1, 16, 512 * 28 * 28),
    (0, "Qwen/Qwen2-VL-2B-Instruct", 1, 16, 256 * 28 * 28),
)


def gpus() -> list[float]:
    """Returns the memory in GB of each NVIDIA GPU of this machine."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True)
    return [float(line) / 1024 for line in done.stdout.split("\n") if line.strip().replace(".", "").isdigit()]


def sizes(memory: list[float], rows: int, model: str | None = None) -> Sizes:
    """Returns the sizes for GPUs of so much memory in GB, and so many training rows; a `model` is taken if given."""
    if not memory:
        batch = max(2, min(8, rows // 2))
        every = _TINY | {"per_device_train_batch_size": batch, "per_device_eval_batch_size": 8}
        told = "no GPU here: a tiny model and few steps, to try the way; give --model and run it where there is a GPU"
        policy = {"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 8, "max_steps": 4}
        return Sizes(
            told if model is None else f"no GPU here: few steps of {model}",
            model,
            every,
            reward={"max_steps": 20, "learning_rate": 1e-3},
            sft={"max_steps": 20, "learning_rate": 2e-3},
            policy={**policy, "learning_rate": 2e-4, "validation_prompts": 8, "audit_steps": 2},
            limit=32,
        )
    least, fits, batch, steps, pixels = next(size for size in _GPUS if min(memory) >= size[0])
    every = _LORA | {"max_pixels": pixels, "per_device_train_batch_size": batch, "gradient_accumulation_steps": steps}
    every |= {"per_device_eval_batch_size": 2 * batch}
    if len(memory) > 1:
        every |= {"accelerate_config": "multi_gpu", "num_processes": len(memory)}
    told = f"{len(memory)} GPU{'s' * (len(memory) > 1)} of {min(memory):.0f} GB: {model or fits} with LoRA in bf16, "
    told += f"{batch} samples at once, {steps} times a step"
    grpo: dict[str, Any] = {
        "per_device_train_batch_size": max(batch, 4),
        "num_generations": 4,
        "gradient_accumulation_steps": 4,
    }
    grpo |= {"per_device_eval_batch_size": 8, "max_completion_length": 256, "max_steps": 300, "learning_rate": 1e-5}
    return Sizes(
        told,
        model or fits,
        every,
        reward={"num_train_epochs": 1, "learning_rate": 1e-4},
        sft={"num_train_epochs": 1, "learning_rate": 1e-4},
        policy=grpo | {"score_model_dtype": "bfloat16"},
        limit=2000,
    )
