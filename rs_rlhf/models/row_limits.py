"""What a model's processor refuses of a row: images of impossible sizes, special tokens as text, too many tokens.

The data check and every trainer put each row through [`RowLimits.errors`] before a first step, so that what the check
passes trains in any batch, and what it refuses is refused with the same sentence. Images are judged by their headers.

Left out: decoding (a damaged file is found by the data check of preferences, or by its batch), and URLs, whose hosts
alone are checked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..data.group import Group, check_encodable, completion_text
from ..errors import DataError, ImageError, OptionError, loading
from ..imagery.raster import image_size, read_image
from ..imagery.sources import DEFAULTS, ImageOptions, ImageSource, check_host, is_url
from .pixel_budget import (
    fitted_size,
    image_name,
    look,
    pixel_budget,
    refusing_images,
    resize_factor,
    row_name,
    set_pixel_budget,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .collator import GroupCollator

# Qwen's special tokens; those of boxes and references (`<|box_start|>`, …) are words of its answers.
_NAMES = "endoftext im_start im_end vision_start vision_end vision_pad image_pad video_pad"
SPECIAL_TOKENS = frozenset(f"<|{name}|>" for name in _NAMES.split())
_ANSWERED = re.compile(r"<\|(object_ref|box|quad)_(start|end)\|>")
QWEN2_VL = {"min_pixels": 56 * 56, "max_pixels": 12845056, "factor": 28}  # its published budget


@dataclass
class RowLimits:
    """The limits of a model; without one, those of Qwen2-VL as published.

    Args:
        options ([`ImageOptions`]): How images are found and read.
        budget (`dict`, *optional*): `min_pixels`, `max_pixels`, `factor` of [`fitted_size`]; `None`: any size fits.
        special_tokens (set of `str`): What no text may hold.
        collator ([`GroupCollator`], *optional*): Counts tokens, if it has a `max_length`.
        decode (`bool`): Decode images instead of reading their headers.
    """

    options: ImageOptions = DEFAULTS
    budget: Mapping[str, int] | None = field(default_factory=lambda: QWEN2_VL)
    special_tokens: frozenset[str] = SPECIAL_TOKENS
    collator: GroupCollator | None = None
    decode: bool = False

    def __post_init__(self) -> None:
        """Prepares what all rows share."""
        self._special = re.compile("|".join(map(re.escape, sorted(self.special_tokens))) or r"(?!)")
        self._seen: dict[object, tuple[int, int] | ImageError] = {}  # of paths, which many rows may share

    @classmethod
    def of(cls, collator: GroupCollator) -> RowLimits:
        """Returns the limits of a collator's processor."""
        budget = None
        if collator.fits:
            low, high = pixel_budget(collator.processor)
            budget = {"min_pixels": low, "max_pixels": high, "factor": resize_factor(collator.processor)}
        return cls(collator.image_options, budget, special_tokens(collator.tokenizer), collator)

    def errors(self, group: Group, keys: Sequence[str] = ()) -> Iterator[DataError | ImageError]:
        """Yields why a group cannot be trained on; `keys` are the names of its completions, for messages."""
        yield from self.text_errors(group, keys)
        fits = True
        for source in group.images:
            try:
                self.size(source, row_name(group))
            except ImageError as error:
                fits = False
                yield error
        if fits:
            yield from self.length_errors(group)

    def text_errors(self, group: Group, keys: Sequence[str] = ()) -> Iterator[DataError]:
        """Yields which texts would not be read as they are meant."""
        count = len(group.completions)
        keys = keys or (["completion"] if count == 1 else [f"completions[{i}]" for i in range(count)])
        for key, messages in zip(("prompt", *keys), (group.prompt, *group.completions), strict=True):
            text = completion_text(messages)
            try:
                check_encodable(text, key)
                if found := self._special.search(text):
                    token = f"the special token {found[0]}, which the model would not read as text"
                    raise DataError(f"`{key}` has {token}; remove it from the text", key)
                if "<image>" in text:
                    reason = "has an image placeholder; images belong to the prompt, move or remove it"
                    raise DataError(f"`{key}` {reason}", key)
            except DataError as error:
                yield DataError(error.detail, key, row_name(group))

    def length_errors(self, group: Group) -> Iterator[DataError]:
        """Yields that a group, whose images fit, is longer than the collator's `max_length`."""
        if self.collator is None or self.collator.max_length is None:
            return
        try:
            self.collator.tokens(group, self.collator.images_of([self.size(source) for source in group.images]))
        except DataError as error:
            yield error

    def size(self, source: ImageSource, where: str = "") -> tuple[int, int]:
        """Returns `(width, height)` of an image as the model sees it, from its header; `(0, 0)` for a URL.

        Raises:
            ImageError: It does not exist, may not be read, or has a size that the model cannot take.
        """
        known = self._seen.get(source) if isinstance(source, str) else None
        if known is None:
            try:
                known = self._size(source)
            except ImageError as error:
                known = error
            if isinstance(source, str):
                self._seen[source] = known
        if isinstance(known, ImageError):
            raise ImageError(known.detail, "image", where)
        return known

    def _size(self, source: ImageSource) -> tuple[int, int]:
        path = source.get("path") if isinstance(source, Mapping) and source.get("bytes") is None else source
        if isinstance(path, str) and is_url(path):
            check_host(path, self.options, image_name(path))
            return 0, 0
        if isinstance(path, str) and (root := self.options.image_root) is not None:
            below = os.path.relpath(path, root) if os.path.isabs(path) else ".."
            source = source if below.startswith("..") else below  # so that messages are the same however it is written
        if self.decode:
            width, height = read_image(source, self.options).size
        else:
            height, width = image_size(source, self.options)
        if self.budget is None:
            unusual = min(width, height) < 28 or max(width, height) > 50 * min(width, height)
            if self.collator is not None and unusual:
                with refusing_images("", image_name(source)):
                    look(self.collator.processor, (width, height))
            return width, height
        return fitted_size(width, height, **dict[str, Any](self.budget), name=image_name(source))


def limits_for(
    use: str,
    options: ImageOptions,
    model: str | None = None,
    max_length: int | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> RowLimits:
    """Returns the limits of a use: those of a model's processor, or of Qwen2-VL as published; images are decoded.

    Raises:
        ModelError: The model's processor cannot be loaded.
        OptionError: `max_length` without a model, or an empty pixel budget.
    """
    if use == "clip":  # resizes to its own size, cuts texts, and has no tokens of a chat
        return RowLimits(options, None, frozenset(), decode=True)
    if model is None:
        if max_length is not None:
            raise OptionError("max_length counts the tokens of a model; give --model too.", "max_length")
        given = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        budget = QWEN2_VL | {name: value for name, value in given.items() if value is not None}
        return RowLimits(options, budget, decode=use != "reward")
    from .collator import GroupCollator
    from .vlm import load_processor

    with loading(model):
        processor = load_processor(model, {})
    set_pixel_budget(processor, min_pixels, max_pixels)
    limits = RowLimits.of(GroupCollator(processor, options, max_length=max_length))
    limits.decode = use != "reward"  # whose check decodes for itself
    return limits


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """Returns the tokens that a tokenizer reads in a text as something else than its words."""
    own = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    known = SPECIAL_TOKENS & tokenizer.get_vocab().keys()
    return frozenset(token for token in own | known if not _ANSWERED.fullmatch(token))
