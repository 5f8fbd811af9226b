"""A LoRA adapter merged into its base: a whole model, a score model with its head or a policy, in safetensors.

Left out: adapters of other libraries, and several adapters at once.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ..errors import ModelError
from ..runs.files import filling_folder
from .score_model import ScoreModel
from .vlm import base_path, load_processor, load_vlm

ADAPTER = "adapter_config.json"


def merge_adapter(adapter: Path, output: Path, dtype: str | torch.dtype | None = None) -> str:
    """Merges an adapter into its base, and saves the whole model with its processor.

    Args:
        adapter (`Path`): Folder of the adapter, as a training with `use_peft` writes it.
        output (`Path`): Folder to write to; it holds no model yet.
        dtype (`str` or `torch.dtype`, *optional*): Type of the weights, in which they are merged too; by default that
            of the base.

    Returns:
        `str`: What it is, `"score model"` or `"policy"`.

    Raises:
        ModelError: The folder is no adapter, or its base cannot be loaded.
    """
    if not (adapter / ADAPTER).is_file():
        kind = "a whole model, which needs no merging" if (adapter / "config.json").is_file() else "no adapter"
        raise ModelError(f"it is {kind}; give the folder of a training with --use_peft.", "adapter", str(adapter))
    kind = json.loads((adapter / ADAPTER).read_text(encoding="utf-8")).get("peft_type")
    if kind != "LORA":
        raise ModelError(f"the adapter is {kind}, expected LORA; others are not merged.", "adapter", str(adapter))
    base = base_path(str(adapter))
    if is_score_adapter(adapter):
        model: torch.nn.Module = ScoreModel.from_pretrained(adapter, dtype=dtype or "auto")
        own = any((adapter / name).is_file() for name in ("preprocessor_config.json", "processor_config.json"))
        processor, what = load_processor(str(adapter) if own else base, {}), "score model"
    else:
        model, processor = load_vlm(str(adapter), dtype=dtype, device="cpu")
        what = "policy"
    with filling_folder(output) as new:
        processor.save_pretrained(new)
        model.save_pretrained(new)  # type: ignore[operator]
    return what


def is_score_adapter(adapter: Path) -> bool:
    """Whether an adapter holds the head of a score model.

    Raises:
        ModelError: It has no weights in safetensors.
    """
    from safetensors import safe_open

    weights = adapter / "adapter_model.safetensors"
    if not weights.is_file():
        raise ModelError("there is no adapter_model.safetensors; train it again.", "adapter", str(adapter))
    with safe_open(weights, "pt") as file:
        return any("reward_head" in key for key in file.keys())  # noqa: SIM118 (not a dict)
