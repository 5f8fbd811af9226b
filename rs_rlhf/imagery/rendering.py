"""Decoded bands to an 8-bit RGB picture: stretch, nodata in black, transparency on white."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..errors import ImageError
from .sources import ImageOptions


@dataclass
class Raster:
    """The chosen bands before they become RGB.

    Args:
        data: `(H, W, 1 or 3)`, any real dtype.
        alpha: `(H, W)` uint8 opacity, or `None`.
        valid: `(H, W)` bool from a mask in the file, or `None`.
        nodata: The file's own nodata value, or `None`.
        indexed: A palette image: nodata was an index, and `valid` already says where.
        inverted: White is zero: the picture is the negative of the data.
        gain: What the file's values, and its nodata, were multiplied by to span 8 bits.
    """

    data: np.ndarray
    alpha: np.ndarray | None = None
    valid: np.ndarray | None = None
    nodata: float | None = None
    indexed: bool = False
    inverted: bool = False
    gain: int = 1


def render(raster: Raster, options: ImageOptions, name: str) -> Image.Image:
    """Returns the RGB picture of decoded bands, stretched as the options say, as qwen-vl-utils puts alpha on white."""
    data, nodata = raster.data, raster.nodata if options.nodata is None else options.nodata
    nodata = None if raster.indexed or nodata is None else nodata * raster.gain
    # Most pictures are 8-bit RGB in which every pixel counts; masks of them would cost as much as the decoding.
    plain = raster.valid is None and raster.alpha is None and nodata is None and data.dtype == np.uint8
    if not plain or raster.inverted or options.stretch is not None or not data.size:
        data = _masked(raster, nodata, options, name)
    image = Image.fromarray(np.ascontiguousarray(np.broadcast_to(data, (*data.shape[:2], 3))))
    if raster.alpha is None:
        return image
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=Image.fromarray(np.ascontiguousarray(raster.alpha)))
    return white


def _masked(raster: Raster, nodata: float | None, options: ImageOptions, name: str) -> np.ndarray:
    """Stretch `(H, W, 1 or 3)` by the pixels that are seen, and paint those that are not valid black."""
    data = raster.data
    valid = np.ones(data.shape[:2], bool) if raster.valid is None else raster.valid
    if nodata is not None:
        with np.errstate(over="ignore"):  # a nodata value beyond float32 becomes infinite, which is nodata as well
            valid = valid & ~(data == nodata).all(axis=-1)
    if data.dtype.kind == "f":
        valid = valid & np.isfinite(data).all(axis=-1)
    seen = valid if raster.alpha is None else valid & (raster.alpha > 0)
    if not seen.any():
        raise ImageError(
            f"{name}: every pixel is nodata or transparent; drop the image, or choose other `bands` or `nodata`"
        )
    if options.stretch is not None:
        parts = [_stretch(data[..., i], seen, nodata, options, name) for i in range(data.shape[2])]
        data = np.stack(parts, axis=-1)
    if raster.inverted:
        data = 255 - data
    return data if valid.all() else np.where(valid[..., None], data, np.uint8(0))


def _stretch(band: np.ndarray, seen: np.ndarray, nodata: float | None, options: ImageOptions, name: str) -> np.ndarray:
    """Map one band `(H, W)` to uint8, linearly between two values."""
    values = band.astype(np.result_type(band.dtype.newbyteorder("="), np.float32))
    low, high = options.stretch_range or (2, 98)
    if options.stretch == "percentile":
        counted = values[seen if nodata is None else seen & (band != nodata)]
        if counted.size == 0:
            raise ImageError(f"{name}: a chosen band is nodata everywhere; choose other `bands`")
        at = (low, high)
        low, high = (float(value) for value in np.percentile(counted, at))
        if low >= high:
            raise ImageError(
                f"{name}: percentiles {at[0]} and {at[1]} of a band are both {low:g}, so there is nothing to stretch; "
                "use a wider `stretch_range`, or `stretch: fixed`"
            )
    clipped = np.clip(np.where(np.isnan(values), low, values), low, high)
    return np.rint((clipped - low) * (255 / (high - low))).astype(np.uint8)
