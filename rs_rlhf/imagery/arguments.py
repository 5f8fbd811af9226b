"""Options of commands and trainers about images: how they are found, read, sized and augmented.

Each option is documented once, in its field's `help`. Commands inherit the part that they read; trainers' configs
inherit [`ImageArguments`], so that a recipe can set them. Left out: anything that only one command has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, cast

from ..options import option
from .options import ImageOptions


@dataclass(kw_only=True)
class RenderingOptions:
    """How pixels become an 8-bit RGB picture."""

    max_image_pixels: int = option(100_000_000, "Images of more pixels are refused before they are decoded.")
    bands: list[int] | None = option(None, "Bands shown as red, green, blue (or one as gray), counted from 1.")
    stretch: str | None = option(None, "Stretch to 8 bits: 'percentile' or 'fixed'. Needed for 16-bit and float data.")
    stretch_range: list[float] | None = option(
        None, "Percentiles (default 2 98), or the values mapped to 0 and 255 if fixed."
    )
    nodata: float | None = option(None, "Value of missing pixels; by default what the file says.")
    image_options: str | None = option(
        None,
        "YAML file of how the images of each sensor are read: names, and below each `path` (patterns), `bands`, "
        "`stretch`, `stretch_range` and `nodata`. Other images are read as the other options say.",
        metavar="FILE",
        reads="file",
    )

    def reader_options(self) -> ImageOptions:
        """Returns the reader's options.

        Raises:
            ImageError: An option is of the wrong kind or contradicts another.
        """
        return ImageOptions(
            max_image_pixels=self.max_image_pixels,
            bands=tuple(self.bands) if self.bands else None,
            stretch=self.stretch,
            stretch_range=cast("Any", tuple(self.stretch_range)) if self.stretch_range else None,  # its length: there
            nodata=self.nodata,
            sensors=cast("Any", self.image_options),  # the file's name, or what `recorded` gave
        )

    def recorded(self, names: Sequence[str]) -> dict[str, Any]:
        """Returns the named options for a record of what was done, such as the head of a log.

        `image_options` is recorded by what the file says, which may change, and left out if it is not given.
        """
        values = {name: getattr(self, name) for name in names}
        if values.pop("image_options", None) is not None:
            values["image_options"] = ImageOptions(sensors=cast("Any", self.image_options)).recorded()["sensors"]
        return values


@dataclass(kw_only=True)
class ReadingOptions(RenderingOptions):
    """Where images may come from, and how pixels become an 8-bit RGB picture."""

    image_root: str | None = option(
        None, "Folder that image paths are relative to and may not leave; by default each data file's own."
    )
    image_hosts: list[str] | None = option(None, "Hosts that image URLs may be fetched from. By default none.")

    def reader_options(self) -> ImageOptions:
        """Returns the reader's options, as [`RenderingOptions.reader_options`]."""
        return replace(
            super().reader_options(), image_root=self.image_root, allowed_hosts=tuple(self.image_hosts or ())
        )


@dataclass(kw_only=True)
class PixelOptions:
    """The pixel budget that images are resized to for a model."""

    min_pixels: int | None = option(None, "Fewest pixels an image is resized to; by default the processor's.")
    max_pixels: int | None = option(None, "Most pixels an image is resized to; by default the processor's.")


@dataclass(kw_only=True)
class ImageArguments(PixelOptions, ReadingOptions):
    """Image options of a training config."""

    augment: bool = option(
        False, "Rotate and flip training images, except where a text speaks of directions or places."
    )


# Names of the options that say how an image is read; the others say what a model makes of it.
READING = tuple(field.name for field in fields(ReadingOptions))
