"""Options that every training command shares: how images are found, read, sized and augmented.

Mixed into the trainers' configs, so that they can be set in a recipe or as flags; each is documented once, in its
`help`. Commands that only read images take the same flags through [`add_image_flags`]. Left out: anything that only
one trainer has.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, cast, get_args, get_origin, get_type_hints

from .raster import ImageOptions

# The fields that say how an image is read; the others say what a model makes of it.
READING = ("image_root", "image_hosts", "max_image_pixels", "bands", "stretch", "stretch_range", "nodata")


@dataclass
class ImageArguments:
    """Image options of a training config; `image_options()` gives the reader's form."""

    image_root: str | None = field(
        default=None,
        metadata={
            "help": "Folder that image paths are relative to and may not leave; by default each data file's own."
        },
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
            stretch_range=cast("Any", tuple(self.stretch_range)) if self.stretch_range else None,  # its length: there
            nodata=self.nodata,
        )


def add_image_flags(parser: ArgumentParser, without: Sequence[str] = ()) -> None:
    """Adds the flags of [`ImageArguments`] that say how images are read; [`image_options_from`] takes them out."""
    hints = get_type_hints(ImageArguments)
    for one in fields(ImageArguments):
        if one.name in READING and one.name not in without:
            kind = (get_args(hints[one.name]) or (hints[one.name],))[0]  # `X | None` is X
            several = get_origin(kind) is list
            parser.add_argument(
                *dict.fromkeys((f"--{one.name}", f"--{one.name.replace('_', '-')}")),
                type=get_args(kind)[0] if several else kind,
                nargs="+" if several else None,
                default=one.default,
                help=one.metadata["help"],
            )


def image_options_from(namespace: Namespace) -> ImageOptions:
    """Returns the reader's options from the flags of [`add_image_flags`]."""
    given = {name: getattr(namespace, name) for name in READING if hasattr(namespace, name)}
    return ImageArguments(**given).image_options()


def image_flags(arguments: ImageArguments) -> list[str]:
    """Returns the flags of [`add_image_flags`] that give what `arguments` sets."""
    flags = []
    for one in fields(ImageArguments):
        value = getattr(arguments, one.name)
        if one.name in READING and value != one.default:
            flags += [f"--{one.name}", *map(str, value if isinstance(value, list) else [value])]
    return flags
