"""Pixel budgets of the Qwen2-VL image processors: reading and setting them, and image sizes after the resize.

Other image processors have no budget: what they make of an image of a size is found by showing them an empty one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from PIL import Image

from ..data.group import Group
from ..errors import ImageError, OptionError
from ..imagery.raster import ImageOptions, image_size
from ..imagery.sources import ImageSource

if TYPE_CHECKING:
    from transformers import ProcessorMixin


_LOOKS: WeakKeyDictionary[ProcessorMixin, dict[tuple[int, int], tuple[int, tuple[int, int]]]] = WeakKeyDictionary()
_BUDGETED: WeakKeyDictionary[ProcessorMixin, bool] = WeakKeyDictionary()
_QWEN = {"Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2VLImageProcessorPil"}


def has_budget(processor: Any) -> bool:
    """Whether a processor resizes images, and counts their tokens, as Qwen2-VL's does."""
    if not _QWEN & {kind.__name__ for kind in type(getattr(processor, "image_processor", None)).__mro__}:
        return False
    if processor not in _BUDGETED:
        import torch

        side = 2 * processor.image_processor.merge_size
        grids = {"image_grid_thw": torch.tensor([[1, side, side]])}
        _BUDGETED[processor] = processor.replace_image_token(grids, 0) == 4 * processor.image_token
    return _BUDGETED[processor]


def pixel_budget(processor: ProcessorMixin) -> tuple[int, int]:
    """Returns the processor's `(min_pixels, max_pixels)`."""
    size = processor.image_processor.size
    return size["shortest_edge"], size["longest_edge"]


def set_pixel_budget(processor: Any, min_pixels: int | None = None, max_pixels: int | None = None) -> None:
    """Sets the processor's pixel budget in place, so that it is saved with the model; what is `None` stays as it is.

    Raises:
        OptionError: A number below 1, an empty budget, or one for a processor that has none.
    """
    if min_pixels is None and max_pixels is None:
        return
    for name, value in (("min_pixels", min_pixels), ("max_pixels", max_pixels)):
        if value is None:
            continue
        if not has_budget(processor):
            kind = type(processor).__name__
            raise OptionError(f"the model's {kind} has no pixel budget; leave {name} out.", name)
        if value < 1:
            raise OptionError(f"{name} is {value}, expected at least 1; leave it out for the processor's own.", name)
    old_min, old_max = pixel_budget(processor)
    low, high = old_min if min_pixels is None else min_pixels, old_max if max_pixels is None else max_pixels
    if low > high:
        raise OptionError(
            f"min_pixels ({low}) is greater than max_pixels ({high}); lower min_pixels or raise max_pixels.",
            "min_pixels",
        )
    processor.image_processor.size = {"shortest_edge": low, "longest_edge": high}


def resize_factor(processor: ProcessorMixin) -> int:
    """Returns the side in pixels of the square that one image token covers."""
    return processor.image_processor.patch_size * processor.image_processor.merge_size


def fit_pixel_budget(
    image: Image.Image, *, min_pixels: int, max_pixels: int, factor: int = 28, name: str = "image", where: str = ""
) -> Image.Image:
    """Resizes as qwen-vl-utils' `fetch_image` does: sides in multiples of `factor`, area within the budget.

    Args:
        image (`Image`): RGB image; Pillow's default (bicubic) filter is used.
        min_pixels, max_pixels (`int`): Smallest and largest area in pixels.
        factor (`int`): Patch size x merge size: 28 for Qwen2-VL and Qwen2.5-VL, 32 for Qwen3-VL.
        name, where (`str`): The image and its place, for the error.

    Raises:
        ImageError: The budget is empty, or the image too long and thin for it.
    """
    limits: dict[str, Any] = {"min_pixels": min_pixels, "max_pixels": max_pixels, "factor": factor}
    return image.resize(fitted_size(*image.size, **limits, name=name, where=where))


def settle(image: Image.Image, processor: ProcessorMixin, where: str = "") -> Image.Image:
    """Resizes an image as its processor will, so that a processor with any wider pixel budget keeps its size.

    What the model sees differs from the processor's own resize in rounding: Pillow's 8 bits and torchvision's are up
    to two of 255 levels apart, 0.01 on average.

    Args:
        image (`Image`): RGB image; one that has its size already is returned as it is.
        processor (`ProcessorMixin`): Of the Qwen2-VL families.
        where (`str`): The image's place, for the error.

    Raises:
        ImageError: The image is so long and thin that a second resize would change its size again.
    """
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    factor, (low, high) = resize_factor(processor), pixel_budget(processor)
    try:
        height, width = smart_resize(image.height, image.width, factor, low, high)
        settled = smart_resize(height, width, factor, low, high) == (height, width)
    except ValueError:
        settled = False
    if not settled:
        raise ImageError(
            f"an image of {image.width}x{image.height} pixels is too long and thin for max_pixels={high}; cut it into "
            "tiles or remove the row",
            where=where,
        )
    if (width, height) == image.size:
        return image
    return image.resize((width, height), processor.image_processor.resample)


def fitted_size(
    width: int,
    height: int,
    *,
    min_pixels: int,
    max_pixels: int,
    factor: int = 28,
    name: str = "image",
    where: str = "",
) -> tuple[int, int]:
    """Returns `(width, height)` of an image after [`fit_pixel_budget`], whose errors it raises; they name the image
    and its place.
    """
    if not 0 < min_pixels <= max_pixels:
        raise ImageError(f"expected 0 < min_pixels <= max_pixels, got {min_pixels} and {max_pixels}", where=where)
    thin = f"{name} of {width}x{height} pixels is too long and thin"
    try:
        new_width, new_height = resized(width, height, factor, (min_pixels, max_pixels))
    except ValueError as error:
        raise ImageError(f"{thin}: {error}; cut it into tiles or remove the row", where=where) from error
    if min(new_height, new_width) < factor:  # smart_resize rounds a thin side down to nothing under a small budget
        raise ImageError(f"{thin} for max_pixels={max_pixels}; cut it into tiles or raise max_pixels", where=where)
    return new_width, new_height


def image_sizes(group: Group, options: ImageOptions) -> list[tuple[int, int]]:
    """Returns `(width, height)` in pixels of a group's images, from their headers."""
    return [image_size(source, options, row_name(group))[::-1] for source in group.images]


def seen_sizes(group: Group, processor: ProcessorMixin, options: ImageOptions) -> list[tuple[int, int]]:
    """Returns `(width, height)` in pixels of a group's images after the resize, from their headers alone; of one tile
    if the processor cuts tiles. An [`ImageError`] names file and row.
    """
    if not has_budget(processor):
        return [size for _, size in looks(group, processor, options)]
    low, high = pixel_budget(processor)
    factor, where = resize_factor(processor), row_name(group)
    return [
        fitted_size(*size, min_pixels=low, max_pixels=high, factor=factor, where=where)
        for size in image_sizes(group, options)
    ]


def resized(width: int, height: int, factor: int, budget: tuple[int, int]) -> tuple[int, int]:
    """Returns the `(width, height)` that an image is resized to: multiples of `factor`, the area within the budget; a
    ValueError for one that is too long and thin.
    """
    from qwen_vl_utils.vision_process import smart_resize

    height, width = smart_resize(height, width, factor, *budget)
    return width, height


def estimated_length(group: Group, processor: ProcessorMixin, options: ImageOptions) -> int:
    """Estimates the tokens of a prompt from its characters and image headers; decodes nothing."""
    if not has_budget(processor):
        return text_length(group) + sum(tokens for tokens, _ in looks(group, processor, options))
    sizes = seen_sizes(group, processor, options)
    return text_length(group) + sum(width * height // resize_factor(processor) ** 2 for width, height in sizes)


def looks(group: Group, processor: ProcessorMixin, options: ImageOptions) -> list[tuple[int, tuple[int, int]]]:
    """Returns what [`look`] does of a group's images; an [`ImageError`] names file and row."""
    with refusing_images(row_name(group)):
        return [look(processor, size) for size in image_sizes(group, options)]


def look(processor: Any, size: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    """Returns the tokens that a processor makes of an image of a size `(width, height)`, and the size that it gives
    the image, found with an empty one; a ValueError is the processor's.
    """
    known = _LOOKS.setdefault(processor, {})
    if size not in known:
        from .seen_images import image_prompt, process

        blank = [[Image.new("RGB", size)]]
        inputs = process(processor, [image_prompt(processor, 1)], blank, return_tensors="pt")
        height, width = inputs["pixel_values"].shape[-2:]
        if (grid := inputs.get("image_grid_thw")) is not None:  # flat patches
            height, width = (grid[0, 1:] * processor.image_processor.patch_size).tolist()
        known[size] = inputs["input_ids"].shape[1], (int(width), int(height))
    return known[size]


@contextmanager
def refusing_images(where: str, name: str = "image") -> Iterator[None]:
    """Turns a processor's ValueError into an [`ImageError`]."""
    try:
        yield
    except ValueError as error:
        reason = str(error).strip().splitlines()[0]
        raise ImageError(f"{name}: the model's processor refuses it: {reason}", "image", where) from error


def text_length(group: Group) -> int:
    """Estimates the text tokens of a prompt from its characters."""
    return 12 + sum(len(part.get("text", "")) for turn in group.prompt for part in turn["content"]) // 3


def completion_length(completion: Sequence[Mapping[str, Any]]) -> int:
    """Estimates the tokens of a completion from its characters."""
    return sum(len(part.get("text", "")) for message in completion for part in message["content"]) // 3 + 6


def image_name(source: ImageSource) -> str:
    """Returns what an image is called in messages: its path where it has one."""
    path = (source.get("path") or "bytes") if isinstance(source, dict) else source
    return f"image {os.fspath(path)!r}" if isinstance(path, (str, os.PathLike)) else "image"


def row_name(group: Group) -> str:
    """Returns the file and row of a group, for messages."""
    return group.where or (f"{group.source or 'sample'}, row {group.row}" if group.row >= 0 else "sample")
