"""Tiny random dual encoders, built from config objects and saved like any checkpoint.

Tests and the from-scratch recipe load them with `from_pretrained`, without a network: real CLIP (or SigLIP)
architecture, CLIP's lower-casing tokenizer with merges learnt from the given texts, and the image processor.

Left out: pretrained weights of any kind, and SigLIP's SentencePiece tokenizer (CLIP's takes its place).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import OptionError
from ..options import option
from ..runs.files import filling_folder
from .tiny_vlm import SCENE_TEXTS, tower_config

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

FAMILIES = ("clip", "siglip")
_START, _END = "<|startoftext|>", "<|endoftext|>"
_DEFAULT_TEXTS = (*SCENE_TEXTS, "a satellite photo of farmland . a satellite image of a dense residential area")


def build_clip_tokenizer(texts: Iterable[str], vocab_size: int = 1000, max_length: int = 77) -> CLIPTokenizer:
    """Trains a tokenizer of CLIP's kind: lower case, byte-level BPE with an end-of-word mark.

    All bytes are in the vocabulary, alone and at the end of a word, so that no text has an unknown token: CLIP's
    unknown token is its end token, and the text would be read only as far as that.

    Raises:
        OptionError: The vocabulary has no room for all bytes and the 2 special tokens.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    if vocab_size < len(known) + 2:
        least = f"CLIP's tokenizer needs at least {len(known) + 2}"
        raise OptionError(f"vocab_size is {vocab_size}; {least}.", "vocab_size")
    backend = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    merges: list[Any] = []
    for left, right in json.loads(learner.to_str())["model"]["merges"]:
        if len(known) + 2 < vocab_size:
            merges.append((left, right))
            known += [left + right] if left + right not in known else []
    vocab = {token: i for i, token in enumerate([*known, _START, _END])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_length)


@dataclass(kw_only=True)
class TinyClipOptions:
    """Family, sizes and seed of a tiny dual encoder."""

    family: Literal["clip", "siglip"] = option("clip", "architecture")
    seed: int = option(0, "seed of the random weights", least=0)
    hidden_size: int = option(64, "width of the text tower")
    num_layers: int = option(2, "layers of the text tower")
    vision_dim: int = option(64, "width of the vision tower")
    vision_depth: int = option(2, "layers of the vision tower")
    num_heads: int = option(4, "attention heads of either tower")
    projection_dim: int = option(64, "length of the features; SigLIP's is vision_dim")
    image_size: int = option(64, "side of the image in pixels, as the model sees it")
    patch_size: int = option(16, "side of a patch in pixels")
    max_length: int = option(77, "tokens of a text at most")
    vocab_size: int = option(1000, "size of the vocabulary at most; at least 514")


def save_tiny_clip(
    path: str | os.PathLike[str],
    texts: Iterable[str] | None = None,
    options: TinyClipOptions | None = None,
    **sizes: Any,
) -> str:
    """Writes a random tiny dual encoder with its processor, loadable with `from_pretrained`, and returns the path.

    The tokenizer is trained on the texts; `sizes` are fields of [`TinyClipOptions`], in place of `options`. An unknown
    family, or sizes that do not go together, are an [`OptionError`].
    """
    import torch
    import transformers

    sized = options or TinyClipOptions(**sizes)
    if sized.family not in FAMILIES:
        raise OptionError(f"Unknown family {sized.family!r}; choose one of {', '.join(FAMILIES)}.", "family")
    heads = sized.num_heads
    if sized.image_size % sized.patch_size or sized.hidden_size % heads or sized.vision_dim % heads:
        raise OptionError(
            f"image_size ({sized.image_size}) must be a multiple of patch_size ({sized.patch_size}), and hidden_size "
            f"({sized.hidden_size}) and vision_dim ({sized.vision_dim}) of num_heads ({heads})."
        )
    learnt_from = _DEFAULT_TEXTS if texts is None else texts
    tokenizer = build_clip_tokenizer(learnt_from, sized.vocab_size, sized.max_length)
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": sized.max_length,
        **{name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")},
        **tower_config(sized.hidden_size, sized.num_layers, heads),
    }
    vision = {"image_size": sized.image_size, "patch_size": sized.patch_size}
    vision |= tower_config(sized.vision_dim, sized.vision_depth, heads)
    side = {"height": sized.image_size, "width": sized.image_size}
    if sized.family == "siglip":
        text["projection_size"] = sized.vision_dim
        name, width, resize = "Siglip", {}, {"size": side}
    else:
        name, width = "CLIP", {"projection_dim": sized.projection_dim}
        resize = {"size": {"shortest_edge": sized.image_size}, "crop_size": side}
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=vision, dtype="float32", **width)
    images = getattr(transformers, f"{name}ImageProcessor")(**resize)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sized.seed)
        model = transformers.AutoModel.from_config(config, trust_remote_code=False)
    with filling_folder(Path(path)) as new:
        getattr(transformers, f"{name}Processor")(image_processor=images, tokenizer=tokenizer).save_pretrained(new)
        model.save_pretrained(new)
    return str(path)
