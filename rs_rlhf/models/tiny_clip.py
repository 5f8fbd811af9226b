"""Tiny random dual encoders, built from config objects and saved like any checkpoint.

`save_tiny_clip` writes one: real CLIP (or SigLIP) architecture, CLIP's lower-casing tokenizer with merges learnt from
the given texts, and the image processor. Tests and the from-scratch recipe load it with `from_pretrained`, without a
network; the vision-language models are `rs_rlhf.models.tiny_vlm`'s.

Left out: pretrained weights of any kind, and SigLIP's SentencePiece tokenizer (CLIP's takes its place).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import OptionError

FAMILIES = ("clip", "siglip")
_START, _END = "<|startoftext|>", "<|endoftext|>"
_DEFAULT_TEXTS = (
    "an aerial image of many green trees and several buildings near a river with a bridge over it",
    "two storage tanks are next to a road . a white plane is on the runway of the airport",
    "a satellite photo of farmland . a satellite image of a dense residential area",
)


def build_clip_tokenizer(texts: Iterable[str], vocab_size: int = 1000, max_length: int = 77) -> Any:
    """Learns a tokenizer of CLIP's kind: lower case, byte-level BPE with an end-of-word mark.

    All bytes are in the vocabulary, alone and at the end of a word, so that no text has an unknown token: CLIP's
    unknown token is its end token, and the text would be read only as far as that.

    Args:
        texts (iterable of `str`): Texts that the merges are learnt from.
        vocab_size (`int`): Entries at most; at least 2 × 256 bytes + 2 special tokens.
        max_length (`int`): Tokens of a text at most, with the start and end tokens.

    Returns:
        `transformers.CLIPTokenizer`.

    Raises:
        ValueError: The vocabulary is too small.
    """
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    if vocab_size < len(known) + 2:
        raise OptionError(f"vocab_size is {vocab_size}; CLIP's tokenizer needs at least {len(known) + 2}.")
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


def save_tiny_clip(
    path: str | os.PathLike[str],
    texts: Iterable[str] | None = None,
    seed: int = 0,
    *,
    family: str = "clip",
    hidden_size: int = 64,
    num_layers: int = 2,
    vision_dim: int = 64,
    vision_depth: int = 2,
    num_heads: int = 4,
    projection_dim: int = 64,
    image_size: int = 64,
    patch_size: int = 16,
    max_length: int = 77,
    vocab_size: int = 1000,
) -> str:
    """Writes a random tiny dual encoder with its processor, loadable with `from_pretrained`.

    Args:
        path (`str`): Folder to write.
        texts (iterable of `str`, *optional*): Texts that the tokenizer is trained on.
        seed (`int`): Seed of the random weights.
        family (`str`): `"clip"` or `"siglip"`.
        hidden_size, num_layers (`int`): Width and layers of the text tower.
        vision_dim, vision_depth (`int`): Width and layers of the vision tower.
        num_heads (`int`): Attention heads of either tower.
        projection_dim (`int`): Length of the features; SigLIP's is `vision_dim`.
        image_size, patch_size (`int`): Sides of the picture that the model sees and of its patches, in pixels.
        max_length (`int`): Tokens of a text at most.
        vocab_size (`int`): Size of the vocabulary at most, at least 514.

    Returns:
        `str`: `path`.

    Raises:
        ValueError: An unknown family, or sizes that do not go together.
    """
    import torch
    import transformers

    if family not in FAMILIES:
        raise OptionError(f"Unknown family {family!r}; choose one of {', '.join(FAMILIES)}.")
    if image_size % patch_size or hidden_size % num_heads or vision_dim % num_heads:
        raise OptionError(
            f"image_size ({image_size}) must be a multiple of patch_size ({patch_size}), and hidden_size "
            f"({hidden_size}) and vision_dim ({vision_dim}) of num_heads ({num_heads})."
        )
    tokenizer = build_clip_tokenizer(_DEFAULT_TEXTS if texts is None else texts, vocab_size, max_length)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": max_length,
        "pad_token_id": tokenizer.pad_token_id,
        **_tower(hidden_size, num_layers, num_heads),
        **ends,
    }
    vision = {"image_size": image_size, "patch_size": patch_size, **_tower(vision_dim, vision_depth, num_heads)}
    side = {"height": image_size, "width": image_size}
    if family == "siglip":
        text["projection_size"] = vision_dim
        names, sizes, picture = "Siglip", {}, {"size": side}
    else:
        names, sizes = "CLIP", {"projection_dim": projection_dim}
        picture = {"size": {"shortest_edge": image_size}, "crop_size": side}
    config = getattr(transformers, f"{names}Config")(text_config=text, vision_config=vision, dtype="float32", **sizes)
    images = getattr(transformers, f"{names}ImageProcessor")(**picture)
    processor = getattr(transformers, f"{names}Processor")(image_processor=images, tokenizer=tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModel.from_config(config)
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return str(path)


def _tower(width: int, layers: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """`rs-rlhf tiny-clip FOLDER`: writes a tiny random dual encoder; see [`save_tiny_clip`]."""
    import inspect

    from ..data.captioned_images import image_texts

    parser = argparse.ArgumentParser(
        prog="rs-rlhf tiny-clip", description="Write a tiny random CLIP or SigLIP with its processor."
    )
    parser.add_argument("path", metavar="FOLDER", help="folder to write to")
    parser.add_argument(
        "--texts",
        metavar="PATH[:SPLIT]",
        help="captioned or labelled images, as for `rs-rlhf data pairs --input`; their texts train the tokenizer",
    )
    parser.add_argument("--family", default="clip", help="clip (default) or siglip")
    helps = {
        "seed": "seed of the random weights",
        "hidden_size": "width of the text tower",
        "num_layers": "layers of the text tower",
        "vision_dim": "width of the vision tower",
        "vision_depth": "layers of the vision tower",
        "num_heads": "attention heads of either tower",
        "projection_dim": "length of the features",
        "image_size": "side of the picture in pixels",
        "patch_size": "side of a patch in pixels",
        "max_length": "tokens of a text at most",
        "vocab_size": "size of the vocabulary at most",
    }
    defaults = inspect.signature(save_tiny_clip).parameters
    for name, text in helps.items():
        value = defaults[name].default
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{text} (default: {value})")
    options = vars(parser.parse_args(argv))
    path, data = options.pop("path"), options.pop("texts")
    save_tiny_clip(path, None if data is None else image_texts(data), **options)
    print(f"Tiny {options['family']} model -> {path}")
    return 0


__all__ = ["FAMILIES", "build_clip_tokenizer", "save_tiny_clip"]
