"""Tiny random vision-language models, built from config objects and saved like any checkpoint.

Tests, benchmarks, the demo and the from-scratch recipe need a model that `from_pretrained` loads without a network.
`save_tiny_vlm` writes one: real Qwen2-VL (or Qwen2.5-VL, Qwen3-VL) architecture, a byte-level BPE tokenizer trained
on the given texts, the image processor and a ChatML chat template. The overhead scenes that go with it live in
`rs_rlhf.data.scenes`.

Left out: pretrained weights of any kind, and video (the processor has a video part only because the class needs one).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from ..errors import OptionError

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]

# Qwen2-VL's ChatML layout. Its default system turn is left out: on tiny models it would be most of the text tokens.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_DEFAULT_TEXTS = (
    "an aerial image of many green trees and several buildings near a river with a bridge over it",
    "two storage tanks are next to a road . a white plane is on the runway of the airport",
    "what is the scene class of this image ? user assistant system yes no rural urban",
)


def build_tokenizer(texts: Iterable[str] = _DEFAULT_TEXTS, vocab_size: int = 600) -> Any:
    """Trains a byte-level BPE tokenizer with Qwen2-VL's special tokens.

    Args:
        texts (iterable of `str`): Texts that the merges are learnt from.
        vocab_size (`int`, defaults to 600): Entries at most, special tokens included; at least 256 bytes + 12.

    Returns:
        `transformers.Qwen2TokenizerFast`-compatible tokenizer, padding on the right with `<|endoftext|>`.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    # Qwen2's own split: a line break never joins the text after it, so the prompt ends on a token boundary.
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[t for t in SPECIAL_TOKENS if t not in ("<|im_end|>", "<|endoftext|>")],
        padding_side="right",
        model_max_length=32768,
        chat_template=CHAT_TEMPLATE,
    )


def _text_config(tokenizer: Any, hidden_size: int, num_layers: int, num_heads: int, family: str) -> dict[str, Any]:
    half = hidden_size // num_heads // 2
    temporal = half // 4
    height = (half - temporal) // 2
    config = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "intermediate_size": 4 * hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": max(1, num_heads // 2),
        "max_position_embeddings": 8192,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [temporal, height, half - temporal - height],
        },
    }
    if family == "qwen3_vl":
        config["head_dim"] = hidden_size // num_heads
        config["rope_parameters"]["mrope_interleaved"] = True
    return config


def _vision_config(family: str, hidden_size: int, dim: int, depth: int, heads: int, patch_size: int) -> dict[str, Any]:
    common = {"depth": depth, "num_heads": heads, "patch_size": patch_size}
    if family == "qwen2_vl":
        return {**common, "embed_dim": dim, "hidden_size": hidden_size, "mlp_ratio": 4}
    common |= {"hidden_size": dim, "out_hidden_size": hidden_size, "intermediate_size": 4 * dim}
    if family == "qwen2_5_vl":
        return {**common, "window_size": 8 * patch_size, "fullatt_block_indexes": [depth - 1]}
    return {**common, "deepstack_visual_indexes": [0], "num_position_embeddings": 256}


def save_tiny_vlm(
    path: str | os.PathLike[str],
    hidden_size: int = 64,
    num_layers: int = 2,
    vision_dim: int = 64,
    vision_depth: int = 2,
    seed: int = 0,
    *,
    num_heads: int = 4,
    vision_heads: int = 4,
    patch_size: int = 14,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    texts: Iterable[str] | None = None,
    vocab_size: int = 600,
    family: str = "qwen2_vl",
) -> str:
    """Writes a random tiny VLM with processor, tokenizer and chat template, loadable with `from_pretrained`.

    Args:
        path (`str`): Folder to write.
        hidden_size (`int`): Width of the language model; a multiple of `2 * num_heads`.
        num_layers (`int`): Layers of the language model.
        vision_dim (`int`): Width of the vision tower; a multiple of `4 * vision_heads`.
        vision_depth (`int`): Layers of the vision tower.
        seed (`int`): Seed of the random weights.
        num_heads, vision_heads (`int`): Attention heads.
        patch_size (`int`): Side of a vision patch in pixels; an image token covers a square of 2×2 patches.
        min_pixels, max_pixels (`int`, *optional*): Pixel budget of the image processor; by default 4 to 1280 tokens.
        texts (iterable of `str`, *optional*): Texts that the tokenizer is trained on.
        vocab_size (`int`): Size of the vocabulary at most.
        family (`str`): `"qwen2_vl"`, `"qwen2_5_vl"` or `"qwen3_vl"`.

    Returns:
        `str`: `path`.

    Example:
        >>> from rs_rlhf.models.tiny_vlm import save_tiny_vlm
        >>> save_tiny_vlm("tiny-vlm")  # doctest: +SKIP
        'tiny-vlm'
    """
    import torch
    import transformers

    names = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}
    if family not in names:
        raise OptionError(f"Unknown family {family!r}; choose one of {', '.join(names)}.")
    tokenizer = build_tokenizer(_DEFAULT_TEXTS if texts is None else texts, vocab_size)
    ids = tokenizer.convert_tokens_to_ids
    config = getattr(transformers, f"{names[family]}Config")(
        text_config=_text_config(tokenizer, hidden_size, num_layers, num_heads, family),
        vision_config=_vision_config(family, hidden_size, vision_dim, vision_depth, vision_heads, patch_size),
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=True,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, f"{names[family]}ForConditionalGeneration")(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(path)

    token_area = (2 * patch_size) ** 2
    video_name = "Qwen3VLVideoProcessor" if family == "qwen3_vl" else "Qwen2VLVideoProcessor"
    processor = getattr(transformers, f"{names[family]}Processor")(
        image_processor=transformers.Qwen2VLImageProcessor(
            patch_size=patch_size, min_pixels=min_pixels or 4 * token_area, max_pixels=max_pixels or 1280 * token_area
        ),
        tokenizer=tokenizer,
        video_processor=getattr(transformers, video_name)(patch_size=patch_size),
        chat_template=CHAT_TEMPLATE,
    )
    processor.save_pretrained(path)
    return str(path)
