"""Tiny random models of today's families of vision-language models, with processors built from their parts."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 2, "max_position_embeddings": 8192}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}


def template(image: str, start: str = "") -> str:
    """A ChatML template of which `image` stands for an image, and `start` before everything."""
    return (
        f"{{{{ '{start}' }}}}"
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
        f"{{{{ '{image}' }}}}"
        "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


def _tokenizer(named: dict[str, str], others: list[str] = [], **kwargs: Any) -> Any:  # noqa: B006 (not changed)
    """The tiny tokenizer with the special tokens of a family, `named` as attributes of it."""
    from transformers import PreTrainedTokenizerFast

    from rs_rlhf.models.tiny_vlm import build_tokenizer

    base = build_tokenizer()
    base.add_special_tokens({"additional_special_tokens": [*named.values(), *others]}, False)
    options = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "model_max_length": 32768, **kwargs}
    return PreTrainedTokenizerFast(tokenizer_object=base.backend_tokenizer, extra_special_tokens=named, **options)


def _text(tokenizer: Any, **more: Any) -> dict[str, Any]:
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    return {**TEXT, "vocab_size": len(tokenizer), **ends, "rope_parameters": ROPE, **more}


def _qwen(name: str, kind: str, text: dict[str, Any], vision: dict[str, Any]) -> tuple[Any, Any]:
    import transformers

    from rs_rlhf.models.tiny_vlm import CHAT_TEMPLATE, build_tokenizer

    tokenizer = build_tokenizer()
    ids = tokenizer.convert_tokens_to_ids
    tokens = {"image_token_id": ids("<|image_pad|>"), "video_token_id": ids("<|video_pad|>")}
    tokens |= {"vision_start_token_id": ids("<|vision_start|>"), "vision_end_token_id": ids("<|vision_end|>")}
    config = getattr(transformers, f"{name}Config")(
        text_config=_text(tokenizer, **text), vision_config={"num_heads": 4, **vision}, **tokens
    )
    side = vision["patch_size"] * 2
    parts = {
        "image_processor": transformers.Qwen2VLImageProcessor(
            patch_size=vision["patch_size"], min_pixels=4 * side**2, max_pixels=12 * side**2
        ),
        "tokenizer": tokenizer,
        "video_processor": getattr(transformers, f"{kind}VideoProcessor")(patch_size=vision["patch_size"]),
    }
    processor = getattr(transformers, f"{kind if kind != 'Qwen2VL' else name}Processor")
    return config, processor(**parts, chat_template=CHAT_TEMPLATE)


_MROPE = {**ROPE, "mrope_section": [1, 1, 2]}
_QWEN3 = {"depth": 2, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64, "patch_size": 16}
_QWEN3 |= {"num_position_embeddings": 256}
_INTERLEAVED = {"head_dim": 8, "rope_parameters": {**_MROPE, "mrope_interleaved": True}}


def qwen2_vl() -> tuple[Any, Any]:
    """Qwen2-VL."""
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2, "patch_size": 14}
    return _qwen("Qwen2VL", "Qwen2VL", {"rope_parameters": _MROPE}, vision)


def qwen2_5_vl() -> tuple[Any, Any]:
    """Qwen2.5-VL."""
    vision = {"depth": 2, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64, "patch_size": 14}
    vision |= {"window_size": 112, "fullatt_block_indexes": [1]}
    return _qwen("Qwen2_5_VL", "Qwen2VL", {"rope_parameters": _MROPE}, vision)


def qwen3_vl() -> tuple[Any, Any]:
    """Qwen3-VL, with the features of its tower's first layer."""
    return _qwen("Qwen3VL", "Qwen3VL", _INTERLEAVED, {**_QWEN3, "deepstack_visual_indexes": [0]})


def qwen3_vl_moe() -> tuple[Any, Any]:
    """Qwen3-VL with four experts."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    return _qwen("Qwen3VLMoe", "Qwen3VL", {**_INTERLEAVED, **experts}, {**_QWEN3, "deepstack_visual_indexes": [0]})


def qwen3_5() -> tuple[Any, Any]:
    """Qwen3.5: a layer of linear attention before one of full attention."""
    text = {"layer_types": ["linear_attention", "full_attention"], "head_dim": 16}
    text |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2}
    text |= {"linear_num_value_heads": 4}
    text |= {"rope_parameters": {**_MROPE, "mrope_interleaved": True, "partial_rotary_factor": 0.5}}
    return _qwen("Qwen3_5", "Qwen3VL", text, _QWEN3)


def internvl() -> tuple[Any, Any]:
    """InternVL with tiles of 28 pixels and 4 tokens."""
    from transformers import GotOcr2ImageProcessor, InternVLConfig, InternVLProcessor, InternVLVideoProcessor

    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    tokenizer = _tokenizer({**named, "video_token": "<video>"})
    config = InternVLConfig(
        text_config={"model_type": "qwen2", **_text(tokenizer)},
        vision_config={**VISION, "image_size": [28, 28], "patch_size": [7, 7]},
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
    )
    tiles = {"height": 28, "width": 28}
    return config, InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=tiles, crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=tiles),
        image_seq_length=4,
        chat_template=template("<IMG_CONTEXT>\n"),
    )


def glm4v() -> tuple[Any, Any]:
    """GLM-4V."""
    from transformers import Glm4vConfig, Glm4vImageProcessor, Glm4vProcessor, Glm4vVideoProcessor

    names = ["<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"]
    tokenizer = _tokenizer({"image_token": "<|image|>", "video_token": "<|video|>"}, names)
    starts = dict(zip(["image_start", "image_end", "video_start", "video_end"], names, strict=True))
    tokens = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in starts.items()}
    vision = {"depth": 2, "hidden_size": 32, "num_heads": 4, "image_size": 56, "patch_size": 14}
    config = Glm4vConfig(
        text_config=_text(tokenizer, rope_parameters={**_MROPE, "partial_rotary_factor": 1.0}),
        vision_config={**vision, "out_hidden_size": 32, "intermediate_size": 64},
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        **tokens,
    )
    size = {"shortest_edge": 4 * 28 * 28, "longest_edge": 24 * 28 * 28}
    return config, Glm4vProcessor(
        image_processor=Glm4vImageProcessor(size=size, patch_size=14),
        tokenizer=tokenizer,
        video_processor=Glm4vVideoProcessor(size=size, patch_size=14),
        chat_template=template("<|begin_of_image|><|image|><|end_of_image|>"),
    )


def llava_onevision() -> tuple[Any, Any]:
    """LLaVA-OneVision with tiles of 28 pixels and 4 tokens."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    tokenizer = _tokenizer({"image_token": "<image>", "video_token": "<video>"})
    pinpoints = [[28, 28], [28, 56], [56, 28], [56, 56]]
    config = LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **_text(tokenizer)},
        vision_config={"model_type": "siglip_vision_model", **VISION, "image_size": 28, "patch_size": 14},
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=pinpoints,
        vision_feature_select_strategy="full",
    )
    size = {"height": 28, "width": 28}
    return config, LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pinpoints),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=template("<image>\n"),
    )


def gemma3() -> tuple[Any, Any]:
    """Gemma 3: a layer of sliding attention before one of full attention; images of 4 tokens."""
    from transformers import Gemma3Config, Gemma3ImageProcessor, Gemma3Processor

    named = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = _tokenizer(named, ["<bos>"], bos_token="<bos>")
    kinds = ["sliding_attention", "full_attention"]
    text = _text(tokenizer, head_dim=8, query_pre_attn_scalar=8, sliding_window=16, layer_types=kinds)
    config = Gemma3Config(
        text_config={**text, "rope_parameters": {kind: ROPE for kind in kinds}},
        vision_config={"model_type": "siglip_vision_model", **VISION, "image_size": 28, "patch_size": 7},
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    return config, Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size={"height": 28, "width": 28}),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=template("<start_of_image>", "<bos>"),
    )


def _idefics3(name: str, **more: Any) -> tuple[Any, Any]:
    import transformers

    rows = [f"<row_{i + 1}_col_{j + 1}>" for i in range(6) for j in range(6)]
    others = ["<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *rows]
    tokenizer = _tokenizer({}, others)
    config = getattr(transformers, f"{name}Config")(
        text_config={"model_type": "llama", **_text(tokenizer)},
        vision_config={**VISION, "image_size": 28, "patch_size": 7},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    reader = getattr(transformers, f"{name}ImageProcessor")
    return config, getattr(transformers, f"{name}Processor")(
        image_processor=reader(size={"longest_edge": 56}, max_image_size={"longest_edge": 28}),
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=template("<image>"),
        **more,
    )


def idefics3() -> tuple[Any, Any]:
    """Idefics3 with tiles of 28 pixels and 4 tokens."""
    return _idefics3("Idefics3")


def smolvlm() -> tuple[Any, Any]:
    """SmolVLM, likewise."""
    from transformers import SmolVLMVideoProcessor

    edges = {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 28}}
    return _idefics3("SmolVLM", video_processor=SmolVLMVideoProcessor(**edges))


def llava() -> tuple[Any, Any]:
    """LLaVA-1.5, of which nothing is known: images of 28 pixels and 4 tokens, and a template without ChatML."""
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaProcessor

    tokenizer = _tokenizer({"image_token": "<image>"})
    config = LlavaConfig(
        text_config={"model_type": "llama", **_text(tokenizer)},
        vision_config={"model_type": "clip_vision_model", **VISION, "image_size": 28, "patch_size": 14},
        image_token_id=tokenizer.image_token_id,
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
    )
    return config, LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image>\n").replace("<|im_start|>assistant\n", "ASSISTANT: "),
    )


BUILDERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    build.__name__: build
    for build in (
        qwen2_vl,
        qwen2_5_vl,
        qwen3_vl,
        qwen3_vl_moe,
        qwen3_5,
        internvl,
        glm4v,
        llava_onevision,
        gemma3,
        idefics3,
        smolvlm,
        llava,
    )
}


def save_family(path: str | os.PathLike[str], family: str) -> str:
    """Writes a random tiny model of a family with its processor, and returns the path."""
    import torch
    from transformers import AutoModelForImageTextToText

    if family == "smolvlm":
        pytest.importorskip("num2words")  # which its processor needs
    config, processor = BUILDERS[family]()
    config.dtype = "float32"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config)
        for weight in model.parameters():
            if weight.ndim > 1 and not weight.any():  # Gemma 3's projector, which would hide the image
                torch.nn.init.normal_(weight, std=0.5)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return str(path)
