"""Configurations of Qwen2-VL at its real sizes, for models with random weights that are made on the device itself."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Qwen2VLConfig

TEXT: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1024,
    },
    "2b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
    },
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
}
VISION: dict[str, dict[str, Any]] = {
    "tiny": {"depth": 2, "embed_dim": 64, "num_heads": 4},
    "2b": {"depth": 32, "embed_dim": 1280, "num_heads": 16},
    "7b": {"depth": 32, "embed_dim": 1280, "num_heads": 16},
}


def model_config(size: str, tokenizer: Any) -> Qwen2VLConfig:
    """Returns the configuration of that size, with the small tokenizer's special tokens."""
    text = dict(TEXT[size])
    half = text["hidden_size"] // text["num_attention_heads"] // 2
    section = [half // 4, (half - half // 4) // 2, half - half // 4 - (half - half // 4) // 2]  # 16, 24, 24 of 128
    text |= {"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "bos_token_id": None}
    text |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": section}
    ids = tokenizer.convert_tokens_to_ids
    return Qwen2VLConfig(
        text_config=text,
        vision_config={**VISION[size], "hidden_size": text["hidden_size"], "mlp_ratio": 4, "patch_size": 14},
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=size != "7b",
        dtype="bfloat16",
    )


def build(model_class: Any, size: str, tokenizer: Any, device: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Returns a model of that class and size with random weights of seed 0, made on the device."""
    default = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return model_class(model_config(size, tokenizer))
    finally:
        torch.set_default_dtype(default)
