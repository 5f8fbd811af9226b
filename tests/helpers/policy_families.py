"""Tiny random policies of families whose layout is not known here, and of texts alone, saved like any checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WIDE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SIDE, PATCH = 28, 14
CUTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
GRIDS = {"image_grid_pinpoints": CUTS}
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' }}{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{{ 'IMAGE' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def _tokenizer(image: str = "", **special: str) -> Any:
    """A tokenizer with a family's special tokens, whose template shows an image as `image`."""
    from rs_rlhf.models.tiny_vlm import build_tokenizer

    tokenizer = build_tokenizer()
    if special:
        tokenizer._set_model_specific_special_tokens(special)
        tokens = sorted({*special.values()} - {*tokenizer.get_vocab()})
        tokenizer.add_special_tokens({"additional_special_tokens": tokens}, replace_extra_special_tokens=False)
    if image:
        tokenizer.chat_template = TEMPLATE.replace("IMAGE", image)
    return tokenizer


def _text(tokenizer: Any, kind: str = "llama", **more: Any) -> dict[str, Any]:
    tokens = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    return {"model_type": kind, **WIDE, "num_key_value_heads": 2, "vocab_size": len(tokenizer), **tokens, **more}


def save_policy(path: Any, family: str) -> str:
    """Writes a tiny policy of a family with its processor, and returns the path."""
    torch.manual_seed(0)
    model, processor = _MADE[family]()
    tokenizer = getattr(processor, "tokenizer", processor)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return str(path)


def _qwen2() -> tuple[Any, Any]:
    """A text model; its template knows tools."""
    import trl
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = _tokenizer()
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
    sizes = {key: value for key, value in _text(tokenizer).items() if key != "model_type"}
    return Qwen2ForCausalLM(Qwen2Config(**sizes, dtype="float32")), tokenizer


def _judge() -> tuple[Any, Any]:
    """A text model with one score, as TRL takes for a reward."""
    from transformers import Qwen2Config, Qwen2ForSequenceClassification

    tokenizer = _tokenizer()
    sizes = {key: value for key, value in _text(tokenizer).items() if key != "model_type"}
    return Qwen2ForSequenceClassification(Qwen2Config(**sizes, dtype="float32", num_labels=1)), tokenizer


def _gemma3() -> tuple[Any, Any]:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3ImageProcessor, Gemma3Processor

    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = _tokenizer("<start_of_image>", **names)
    config = Gemma3Config(
        text_config=_text(tokenizer, "gemma3_text", head_dim=8, sliding_window=512, query_pre_attn_scalar=8),
        vision_config={"model_type": "siglip_vision_model", **WIDE, "image_size": SIDE, "patch_size": PATCH},
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        dtype="float32",
    )
    images = Gemma3ImageProcessor(size={"height": SIDE, "width": SIDE})
    processor = Gemma3Processor(images, tokenizer, tokenizer.chat_template, image_seq_length=4)
    return Gemma3ForConditionalGeneration(config), processor


def _llava_next() -> tuple[Any, Any]:
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextProcessor
    from transformers.models.llava_next import LlavaNextImageProcessor

    tokenizer = _tokenizer("<image>", image_token="<image>")
    config = LlavaNextConfig(
        text_config=_text(tokenizer),
        vision_config={"model_type": "clip_vision_model", **WIDE, "image_size": SIDE, "patch_size": PATCH},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
        dtype="float32",
        **GRIDS,
    )
    sizes = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    options = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    images = LlavaNextImageProcessor(**sizes, **GRIDS)
    processor = LlavaNextProcessor(images, tokenizer, chat_template=tokenizer.chat_template, **options)
    return LlavaNextForConditionalGeneration(config), processor


def _llava_onevision() -> tuple[Any, Any]:
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    tokenizer = _tokenizer("<image>", image_token="<image>", video_token="<video>")
    config = LlavaOnevisionConfig(
        text_config=_text(tokenizer, "qwen2"),
        vision_config={"model_type": "siglip_vision_model", **WIDE, "image_size": SIDE, "patch_size": PATCH},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        dtype="float32",
        **GRIDS,
    )
    parts = [
        LlavaOnevisionImageProcessor(size={"height": SIDE, "width": SIDE}, **GRIDS),
        tokenizer,
        LlavaOnevisionVideoProcessor(size={"height": SIDE, "width": SIDE}),
    ]
    options = {"num_image_tokens": 4, "vision_feature_select_strategy": "full"}
    processor = LlavaOnevisionProcessor(*parts, chat_template=tokenizer.chat_template, **options)
    return LlavaOnevisionForConditionalGeneration(config), processor


def _idefics3() -> tuple[Any, Any]:
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessor,
        Idefics3Processor,
    )

    names = {"fake_image_token": "<fake_token_around_image>", "image_token": "<image>"}
    names |= {"global_image_token": "<global-img>", "end_of_utterance_token": "<end_of_utterance>"}
    tokenizer = _tokenizer("<image>", **names)
    config = Idefics3Config(
        text_config=_text(tokenizer),
        vision_config={**WIDE, "image_size": SIDE, "patch_size": PATCH // 2},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        dtype="float32",
    )
    limits = {"size": {"longest_edge": SIDE}, "max_image_size": {"longest_edge": SIDE}, "do_image_splitting": False}
    images = Idefics3ImageProcessor(**limits)
    processor = Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=tokenizer.chat_template)
    return Idefics3ForConditionalGeneration(config), processor


def _internvl() -> tuple[Any, Any]:
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
    )

    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    tokenizer = _tokenizer("<IMG_CONTEXT>", **names, video_token="<video>")
    config = InternVLConfig(
        text_config=_text(tokenizer, "qwen2"),
        vision_config={"model_type": "internvl_vision", **WIDE, "image_size": [SIDE] * 2, "patch_size": [PATCH] * 2},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=1,
        dtype="float32",
    )
    square = {"height": SIDE, "width": SIDE}
    parts = [GotOcr2ImageProcessor(size=square), tokenizer, InternVLVideoProcessor(size=square)]
    processor = InternVLProcessor(*parts, image_seq_length=1, chat_template=tokenizer.chat_template)
    return InternVLForConditionalGeneration(config), processor


_MADE = {
    "qwen2": _qwen2,
    "judge": _judge,
    "gemma3": _gemma3,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "idefics3": _idefics3,
    "internvl": _internvl,
}
OTHER_FAMILIES = tuple(name for name in _MADE if name not in ("qwen2", "judge"))
