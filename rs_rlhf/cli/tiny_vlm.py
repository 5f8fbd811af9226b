"""`rs-rlhf tiny-vlm`: writes a tiny random vision-language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..models.tiny_vlm import TinyVLMOptions, save_tiny_vlm
from ..options import option, parse


@dataclass(kw_only=True)
class TinyVLMCommand(TinyVLMOptions):
    """Write a tiny random vision-language model with its processor."""

    path: str = option(help="folder to write to", positional=True, metavar="FOLDER")
    texts: str | None = option(
        None,
        "captioned or labelled images, as for `rs-rlhf data pairs --input`; their texts train the tokenizer",
        metavar="PATH[:SPLIT]",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0."""
    from ..data.captioned_images import image_texts

    options = parse(TinyVLMCommand, argv, "rs-rlhf tiny-vlm")
    texts = None if options.texts is None else image_texts(options.texts)
    save_tiny_vlm(options.path, options=options, texts=texts)
    print(f"Tiny {options.family} model -> {options.path}")
    return 0
