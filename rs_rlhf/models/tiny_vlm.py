"""Tiny random vision-language models, built from config objects and saved like any checkpoint.

Tests, benchmarks, the demo and the from-scratch recipe need a model that `from_pretrained` loads without a network:
real Qwen2-VL (or Qwen2.5-VL, Qwen3-VL) architecture, a byte-level BPE tokenizer trained on the given texts, the image
processor and a ChatML chat template.

Left out: pretrained weights of any kind, and video (the processor has a video part only because the class needs one).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import OptionError
from ..options import option
from ..runs.files import filling_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, ProcessorMixin

_CLASSES = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}
_NAMES = "endoftext im_start im_end object_ref_start object_ref_end box_start box_end vision_start vision_end"
SPECIAL_TOKENS = [f"<|{name}|>" for name in (*_NAMES.split(), "vision_pad", "image_pad", "video_pad")]

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

SCENE_TEXTS = (
    "an aerial image of many green trees and several buildings near a river with a bridge over it",
    "two storage tanks are next to a road . a white plane is on the runway of the airport",
)
_DEFAULT_TEXTS = (*SCENE_TEXTS, "what is the scene class of this image ? user assistant system yes no rural urban")


def build_tokenizer(texts: Iterable[str] = _DEFAULT_TEXTS, vocab_size: int = 600) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer with Qwen2-VL's special tokens, padding on the right with `<|endoftext|>`.

    The vocabulary has at most `vocab_size` entries, special tokens included; at least 256 bytes + 12.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    # Qwen2's own split: a line break never joins the text after it, so the prompt ends on a token boundary.
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence([split, level]), decoders.ByteLevel()
    kept: dict[str, Any] = {"special_tokens": SPECIAL_TOKENS, "initial_alphabet": level.alphabet()}
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, **kept)
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


@dataclass(kw_only=True)
class TinyVLMOptions:
    """Family, sizes and seed of a tiny vision-language model."""

    family: Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl"] = option("qwen2_vl", "architecture")
    hidden_size: int = option(64, "width of the language model; a multiple of 2 * num_heads")
    num_layers: int = option(2, "layers of the language model")
    num_heads: int = option(4, "attention heads of the language model")
    vision_dim: int = option(64, "width of the vision tower; a multiple of 4 * vision_heads")
    vision_depth: int = option(2, "layers of the vision tower")
    vision_heads: int = option(4, "attention heads of the vision tower")
    patch_size: int = option(14, "side of a vision patch in pixels; an image token covers 2 x 2 patches")
    min_pixels: int | None = option(None, "fewest pixels of an image; by default 4 image tokens")
    max_pixels: int | None = option(None, "most pixels of an image; by default 1280 image tokens")
    vocab_size: int = option(600, "size of the vocabulary at most")
    seed: int = option(0, "seed of the random weights", least=0)


def _text_config(options: TinyVLMOptions, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    half = options.hidden_size // options.num_heads // 2
    temporal = half // 4
    height = (half - temporal) // 2
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
    rope |= {"mrope_section": [temporal, height, half - temporal - height]}
    config = tower_config(options.hidden_size, options.num_layers, options.num_heads) | {
        "vocab_size": len(tokenizer),
        "num_key_value_heads": max(1, options.num_heads // 2),
        "max_position_embeddings": 8192,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "rope_parameters": rope,
    }
    if options.family == "qwen3_vl":
        config["head_dim"], rope["mrope_interleaved"] = options.hidden_size // options.num_heads, True
    return config


def tower_config(width: int, layers: int, heads: int) -> dict[str, Any]:
    """Returns the sizes of a transformer whose MLPs are 4 times as wide as it is."""
    sizes = {"hidden_size": width, "intermediate_size": 4 * width}
    return sizes | {"num_hidden_layers": layers, "num_attention_heads": heads}


def _vision_config(options: TinyVLMOptions) -> dict[str, Any]:
    dim, depth = options.vision_dim, options.vision_depth
    common = {"depth": depth, "num_heads": options.vision_heads, "patch_size": options.patch_size}
    if options.family == "qwen2_vl":
        return {**common, "embed_dim": dim, "hidden_size": options.hidden_size, "mlp_ratio": 4}
    common |= {"hidden_size": dim, "out_hidden_size": options.hidden_size, "intermediate_size": 4 * dim}
    if options.family == "qwen2_5_vl":
        return {**common, "window_size": 8 * options.patch_size, "fullatt_block_indexes": [depth - 1]}
    return {**common, "deepstack_visual_indexes": [0], "num_position_embeddings": 256}


def save_tiny_vlm(
    path: str | os.PathLike[str],
    options: TinyVLMOptions | None = None,
    *,
    texts: Iterable[str] | None = None,
    **sizes: Any,
) -> str:
    """Writes a random tiny VLM with its processor, loadable with `from_pretrained`, and returns the path.

    The tokenizer is trained on the texts; `sizes` are fields of [`TinyVLMOptions`], in place of `options`. An unknown
    family is an [`OptionError`].
    """
    import torch
    import transformers

    options = options or TinyVLMOptions(**sizes)
    if options.family not in _CLASSES:
        raise OptionError(f"Unknown family {options.family!r}; choose one of {', '.join(_CLASSES)}.", "family")
    name = _CLASSES[options.family]
    tokenizer = build_tokenizer(_DEFAULT_TEXTS if texts is None else texts, options.vocab_size)
    ids = tokenizer.convert_tokens_to_ids
    config = getattr(transformers, f"{name}Config")(
        text_config=_text_config(options, tokenizer),
        vision_config=_vision_config(options),
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=True,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    with filling_folder(Path(path)) as new:
        _processor(options, tokenizer).save_pretrained(new)
        model.save_pretrained(new)
    return str(path)


def _processor(options: TinyVLMOptions, tokenizer: PreTrainedTokenizerFast) -> ProcessorMixin:
    import transformers

    token_area = (2 * options.patch_size) ** 2
    images = transformers.Qwen2VLImageProcessor(
        patch_size=options.patch_size,
        min_pixels=options.min_pixels or 4 * token_area,
        max_pixels=options.max_pixels or 1280 * token_area,
    )
    video_name = "Qwen3VLVideoProcessor" if options.family == "qwen3_vl" else "Qwen2VLVideoProcessor"
    video = getattr(transformers, video_name)(patch_size=options.patch_size)
    parts = {"image_processor": images, "tokenizer": tokenizer, "video_processor": video}
    return getattr(transformers, f"{_CLASSES[options.family]}Processor")(**parts, chat_template=CHAT_TEMPLATE)
