"""Options that every training command shares: how images are found, read, sized and augmented.

Mixed into the trainers' configs, so that they can be set in a recipe or as flags; each is documented once, in its
`help`. Left out: anything that only one trainer has.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .imagery import ImageOptions


@dataclass
class ImageArguments:
    """Image options of a training config; `image_options()` gives the reader's form."""

    image_root: str | None = field(
        default=None, metadata={"help": "Folder that image paths are relative to and may not leave."}
    )
    image_hosts: list[str] | None = field(
        default=None, metadata={"help": "Hosts that image URLs may be fetched from. By default none."}
    )
    max_image_pixels: int = field(
        default=100_000_000, metadata={"help": "Images of more pixels are refused before they are decoded."}
    )
    bands: list[int] | None = field(
        default=None, metadata={"help": "Bands shown as red, green, blue (or one as gray), counted from 1."}
    )
    stretch: str | None = field(
        default=None,
        metadata={"help": "Stretch to 8 bits: 'percentile' or 'fixed'. Needed for 16-bit and float data."},
    )
    stretch_range: list[float] | None = field(
        default=None, metadata={"help": "Percentiles (default 2 98), or the values mapped to 0 and 255 if fixed."}
    )
    nodata: float | None = field(
        default=None, metadata={"help": "Value of missing pixels; by default what the file says."}
    )
    min_pixels: int | None = field(
        default=None, metadata={"help": "Fewest pixels an image is resized to; by default the processor's."}
    )
    max_pixels: int | None = field(
        default=None, metadata={"help": "Most pixels an image is resized to; by default the processor's."}
    )
    augment: bool = field(
        default=False,
        metadata={"help": "Rotate and flip training images, except where a text speaks of directions or places."},
    )

    def image_options(self) -> ImageOptions:
        """Returns the reader's options."""
        return ImageOptions(
            image_root=self.image_root,
            allowed_hosts=tuple(self.image_hosts or ()),
            max_image_pixels=self.max_image_pixels,
            bands=tuple(self.bands) if self.bands else None,
            stretch=self.stretch,
            stretch_range=(self.stretch_range[0], self.stretch_range[1]) if self.stretch_range else None,
            nodata=self.nodata,
        )
