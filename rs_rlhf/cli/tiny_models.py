"""`rs-rlhf tiny-clip` and `rs-rlhf tiny-vlm`: write a tiny random model with its processor."""

from __future__ import annotations

from dataclasses import dataclass

from ..models.tiny_clip import TinyClipOptions, save_tiny_clip
from ..models.tiny_vlm import TinyVLMOptions, save_tiny_vlm
from ..options import option


@dataclass(kw_only=True)
class FolderOptions:
    """Where a tiny model is written, and the texts that train its tokenizer."""

    path: str = option(help="folder to write to", positional=True, metavar="FOLDER", writes="folder")
    texts: str | None = option(
        None,
        "captioned or labelled images, as for `rs-rlhf data pairs --input`; their texts train the tokenizer",
        metavar="PATH[:SPLIT]",
    )

    def read_texts(self) -> list[str] | None:
        """Returns the texts; `None` without `--texts`."""
        from ..data.captioned_images import image_texts

        return None if self.texts is None else image_texts(self.texts)


@dataclass(kw_only=True)
class ClipCommand(FolderOptions, TinyClipOptions):
    """Write a tiny random CLIP or SigLIP with its processor."""


@dataclass(kw_only=True)
class VLMCommand(FolderOptions, TinyVLMOptions):
    """Write a tiny random vision-language model with its processor."""


def write_clip(options: ClipCommand) -> None:
    """Writes the model."""
    print(f"Tiny {options.family} model -> {save_tiny_clip(options.path, options.read_texts(), options)}")


def write_vlm(options: VLMCommand) -> None:
    """Writes the model."""
    print(f"Tiny {options.family} model -> {save_tiny_vlm(options.path, options, texts=options.read_texts())}")
