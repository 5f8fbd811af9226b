"""Images as a model's own processor reads them, for the families that the collator does not resize itself.

A processor decides how an image is cut, and which tokens stand for it. It is called for every row, as its authors call
it, but reads the pixels of a list of images once.

Left out: video, sound, and processors whose inputs belong to single tokens beyond types of tokens (Mllama).

Notation: M placements of lists of images, I distinct lists.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from torch.nn.functional import pad
from transformers import BatchFeature, ProcessorMixin

from ..errors import DataError

_TYPES: WeakKeyDictionary[ProcessorMixin, list[str]] = WeakKeyDictionary()  # names of its types of tokens
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


class SeenImages:
    """A list of images and a processor that reads them once, whatever rows they stand in.

    Args:
        processor (`ProcessorMixin`): The processor.
        images (sequence of `Image`): The images of a row, in order; perhaps none.
    """

    def __init__(self, processor: ProcessorMixin, images: Sequence[Image.Image] = ()) -> None:
        self.images = list(images)
        self._whole = processor
        self._processor: Any = processor
        if self.images:
            self._processor = copy.copy(processor)
            self._processor.image_processor = _Once(processor.image_processor)

    def first(self, count: int) -> SeenImages:
        """Returns the first of the images."""
        return self if count == len(self.images) else SeenImages(self._whole, self.images[:count])

    def rows(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of texts in which all the images stand, or none if there is none.

        Raises:
            ValueError: Of the processor, such as placeholders without images.
        """
        return [list(self._call(text)["input_ids"][0]) for text in texts]

    def inputs(self) -> dict[str, torch.Tensor]:
        """Returns what a model is given of the images beside tokens; a ValueError is the processor's."""
        found = self._call(image_prompt(self._whole, len(self.images)), return_tensors="pt")
        return {name: value for name, value in sorted(found.items()) if name not in TEXT_INPUTS}

    def _call(self, text: str, **options: Any) -> BatchFeature:
        return process(self._processor, [text], [self.images] if self.images else None, **options)


class _Once:
    """An image processor that answers a second call as the first."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self._answer: BatchFeature | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> BatchFeature:
        if self._answer is None:
            self._answer = self._reader(*args, **kwargs)
        return BatchFeature(dict(self._answer))  # processors take entries out of it

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)


def process(
    processor: ProcessorMixin, texts: list[str], images: list[list[Image.Image]] | None, **options: Any
) -> BatchFeature:
    """Calls a processor on texts of a chat template, which may have written the token that begins a text."""
    start = processor.tokenizer.bos_token
    if start is not None and all(text.startswith(start) for text in texts):
        options["add_special_tokens"] = False
    return processor(text=texts, images=images, **options)


def merge(parts: Sequence[Mapping[str, torch.Tensor]]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Puts the inputs of lists of images together, as processors do: behind each other, filled up with zeros.

    Returns:
        `tuple`: the inputs, and how many of the first dimension of each are a list's (I, inputs in their order).
    """
    names = sorted({name for part in parts for name in part})
    merged = {name: _stack([part[name] for part in parts if name in part]) for name in names}
    lengths = [[len(part[name]) if name in part else 0 for name in names] for part in parts]
    return merged, torch.tensor(lengths).reshape(len(parts), len(names))


def _stack(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    shape = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    filled = []
    for tensor in tensors:
        missing = [high - low for high, low in zip(shape, tensor.shape[1:], strict=True)]
        filled.append(pad(tensor, [n for size in reversed(missing) for n in (0, size)]) if any(missing) else tensor)
    return torch.cat(filled)


def place(inputs: Mapping[str, torch.Tensor], lengths: torch.Tensor, index: Sequence[int]) -> dict[str, torch.Tensor]:
    """Repeats the inputs of distinct lists, so that there is one for each placement; as [`merge`] returns them."""
    placed = {}
    for column, name in enumerate(sorted(inputs)):
        parts = inputs[name].split(lengths[:, column].tolist())
        placed[name] = torch.cat([parts[i] for i in index])
    return placed


def token_types(processor: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns the types of tokens (B, L) that a model of the processor takes, 1 for those of images; `{}` if none."""
    if processor not in _TYPES:
        found = process(processor, [image_prompt(processor, 1)], [[Image.new("RGB", (56, 56))]])
        _TYPES[processor] = [name for name in ("token_type_ids", "mm_token_type_ids") if name in found]
    if not _TYPES[processor]:
        return {}
    types = torch.tensor(processor.create_mm_token_type_ids(ids.tolist()), dtype=torch.int)
    return dict.fromkeys(_TYPES[processor], types)


def chat_text(processor: ProcessorMixin, messages: list[dict], generation_prompt: bool, where: str) -> str:
    """Returns messages as the chat template writes them; a [`DataError`] says why it refuses them."""
    from jinja2 import TemplateError

    try:
        return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
    except TemplateError as error:
        raise DataError(
            f"the model's chat template refuses the conversation ({error}); it may take no system turn", where=where
        ) from None


def image_prompt(processor: ProcessorMixin, count: int) -> str:
    """Returns a prompt of images alone."""
    return chat_text(processor, [{"role": "user", "content": [{"type": "image"}] * count}], True, "")


def refuse_marks(texts: Iterable[str], marks: Iterable[str], where: str) -> None:
    """Raises a [`DataError`] for a text that holds a token that stands for an image."""
    for text in texts:
        for mark in marks:
            if mark in text:
                raise DataError(f"the text holds {mark!r}, which stands for an image; remove it", where=where)
