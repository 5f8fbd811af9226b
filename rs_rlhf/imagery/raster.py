"""Image reader: any source, from 8-bit PNG to many-band GeoTIFF, to an 8-bit RGB picture.

A vision-language model sees three 8-bit channels; remote-sensing archives hold 16-bit, float and many-band rasters.
Guessing how to get from one to the other gives black or falsely coloured pictures that train without complaint, so
nothing is guessed here: an image that is not plainly 8-bit gray or RGB is refused, in one sentence that says which
option chooses. TIFF goes through rasterio when it is installed; without it, what Pillow reads correctly.

Left out: reprojection, pansharpening, resampling by ground distance, JPEG 2000, the later pages of a many-page TIFF
(the first is read, as viewers do), and any guess at which band of an unlabelled file is red.
"""

import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import ImageFileDirectory_v2 as Tags

from ..errors import ImageError
from .sources import DEFAULTS, ImageOptions, ImageSource, check_size, locate, opened

__all__ = ["ImageError", "ImageOptions", "image_size", "read_image"]

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_WIDE_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
_NEEDS_GEO = "install rasterio with `pip install rs-rlhf[geo]`"
_TRANSPOSE = Image.Transpose
# The TIFF/EXIF orientation tag -> what puts the picture upright (5 to 8 swap height and width).
_UPRIGHT = {
    2: _TRANSPOSE.FLIP_LEFT_RIGHT,
    3: _TRANSPOSE.ROTATE_180,
    4: _TRANSPOSE.FLIP_TOP_BOTTOM,
    5: _TRANSPOSE.TRANSPOSE,
    6: _TRANSPOSE.ROTATE_270,
    7: _TRANSPOSE.TRANSVERSE,
    8: _TRANSPOSE.ROTATE_90,
}


@dataclass
class _Raster:
    """The chosen bands before they become RGB.

    Args:
        data: `(H, W, 1 or 3)`, any real dtype.
        alpha: `(H, W)` uint8 opacity, or `None`.
        valid: `(H, W)` bool from a mask in the file, or `None`.
        nodata: The file's own nodata value, or `None`.
        indexed: A palette image: nodata was an index, and `valid` already says where.
    """

    data: np.ndarray
    alpha: np.ndarray | None = None
    valid: np.ndarray | None = None
    nodata: float | None = None
    indexed: bool = False


# --- decoding ---------------------------------------------------------------------------------------------------


def _choose_bands(
    count: int, alpha: int | None, dtype: np.dtype | str, options: ImageOptions, name: str
) -> tuple[int, ...]:
    """Return the 1-based bands to show, or say how to choose them."""
    dtype = np.dtype("complex64" if "complex" in str(dtype) else dtype)  # numpy does not know GDAL's complex_int16
    if dtype.kind not in "buif":
        raise ImageError(f"{name}: holds {dtype} values, expected real numbers; save their magnitude as a raster")
    data_bands = tuple(band for band in range(1, count + 1) if band != alpha)
    bands = data_bands if options.bands is None else options.bands
    if max(bands, default=0) > count:
        raise ImageError(f"{name}: option `bands: {list(bands)}` names a band that is not there; it has {count}")
    asks = []
    if len(bands) not in (1, 3):
        example = "[4, 3, 2]" if len(bands) > 3 else "[1]"
        asks.append(f"`bands: {example}` (three for R, G, B or one for gray, counted from 1)")
    if options.stretch is None and dtype.name not in ("uint8", "bool"):
        asks.append("`stretch: percentile` or `stretch: fixed` with `stretch_range: [low, high]`")
    if asks:
        raise ImageError(
            f"{name}: has {len(data_bands)} band(s) of {dtype.name}, which is not 8-bit gray or RGB; choose how to "
            f"show it with the image options {' and '.join(asks)}"
        )
    return bands


def _from_array(array: np.ndarray, options: ImageOptions, name: str) -> _Raster:
    if array.ndim not in (2, 3):
        raise ImageError(f"{name}: expected an array (H, W) or (H, W, C)")
    array = array[..., None] if array.ndim == 2 else array
    check_size(array.shape[1], array.shape[0], options, name)
    bands = _choose_bands(array.shape[2], None, array.dtype, options, name)
    data = _chosen(array, bands)
    return _Raster(data.astype(np.uint8) * 255 if data.dtype == bool else data)


def _open_pil(stream: IO[bytes], head: bytes, formats: tuple[str, ...], name: str) -> Image.Image:
    """Open lazily with the plugins themselves: `Image.open` has a process-wide size limit that is not ours."""
    Image.init()
    for key in formats:
        factory, accept = Image.OPEN[key]
        if accept is not None and accept(head[:16]) is True:
            return factory(stream, "")
    kinds = ", ".join((*_FORMATS, "TIFF"))
    raise ImageError(f"{name}: is not an image in a known format; expected one of {kinds}")


def _from_pil(image: Image.Image, options: ImageOptions, name: str) -> _Raster:
    """Decode a PIL image, upright, with palettes and colour spaces resolved to gray or RGB."""
    check_size(image.width, image.height, options, name)
    image = ImageOps.exif_transpose(image)
    if image.mode in _WIDE_MODES:
        return _from_array(np.asarray(image), options, name)
    valid = None
    if image.mode == "P" and options.nodata is not None:
        valid = np.asarray(image) != options.nodata  # of a palette image, nodata is an index
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("LA", "La") else "RGBA")
    elif image.mode != "L":
        image = image.convert("L" if image.mode == "1" else "RGB")
    data = np.asarray(image)
    data = data[..., None] if data.ndim == 2 else data
    has_alpha = image.mode in ("LA", "RGBA")
    bands = _choose_bands(data.shape[2], data.shape[2] if has_alpha else None, data.dtype, options, name)
    alpha = data[..., -1] if has_alpha and options.bands is None else None
    return _Raster(_chosen(data, bands), alpha, valid, indexed=valid is not None)


def _chosen(data: np.ndarray, bands: tuple[int, ...]) -> np.ndarray:
    """Take bands of `(H, W, C)`: a copy only if they are not all that there are."""
    return data if bands == tuple(range(1, data.shape[2] + 1)) else data[..., [band - 1 for band in bands]]


def _tiff_tags(stream: IO[bytes], head: bytes) -> Tags:
    """Read the first directory of a TIFF: Pillow opens few of the rasters that rasterio does, but reads any's tags."""
    order = head[:2]
    if head[:4] == b"MM\0+":  # Pillow looks for BigTIFF's mark in the third byte whatever the byte order
        head = b"II+\0" + head[4:]
    tags = Tags(head[: 16 if b"+" in head[:4] else 8], prefix=order)
    stream.seek(tags.next)
    tags.load(stream)
    stream.seek(0)
    if 256 not in tags or 257 not in tags:
        raise ValueError("the first directory of the TIFF gives no width and height")  # `opened` names the file
    return tags


def _has_rasterio() -> bool:
    try:
        import rasterio  # noqa: F401
    except ImportError:
        return False
    return True


def _from_gdal(
    found: Path | bytes, driver: str, options: ImageOptions, name: str, premultiplied: bool = False
) -> _Raster:
    """Read a TIFF, or a PNG of several 16-bit channels, with rasterio; not yet upright."""
    import rasterio
    from rasterio.enums import ColorInterp, MaskFlags

    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        stack.enter_context(rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="TRUE"))
        # The driver is named: GDAL's own guess could take a text file for a VRT, which reads any path or URL.
        if isinstance(found, bytes):
            file = stack.enter_context(stack.enter_context(rasterio.MemoryFile(found)).open(driver=driver))
        else:
            file = stack.enter_context(rasterio.open(found, driver=driver))
        check_size(file.width, file.height, options, name)
        own = next((nodata for nodata in file.nodatavals if nodata is not None), None)
        if file.colorinterp[0] == ColorInterp.palette:
            return _paint_palette(file.read(1), file.colormap(1), own, options, name)
        flagged = [i for i, kind in enumerate(file.colorinterp, 1) if kind == ColorInterp.alpha]
        alpha = flagged[0] if flagged else None
        bands = _choose_bands(file.count, alpha, file.dtypes[0], options, name)
        data = np.moveaxis(file.read(list(bands)), 0, -1)
        bits = int(file.tags(bands[0], ns="IMAGE_STRUCTURE").get("NBITS", 8))
        if data.dtype == np.uint8 and bits < 8:  # gray of 1, 2 or 4 bits: full white is not 255 in the file
            data = data * np.uint8(255 // (2**bits - 1))
        raster = _Raster(data, nodata=own)
        flags = file.mask_flag_enums[bands[0] - 1]
        if alpha is not None and options.bands is None:
            raster.alpha = _opacity(file.read(alpha))
            if premultiplied and data.dtype == np.uint8:
                share = np.maximum(raster.alpha, 1)[..., None] / 255
                raster.data = np.rint(np.clip(data / share, 0, 255)).astype(np.uint8)
        elif MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags:
            raster.valid = file.read_masks(bands[0]) > 0
        return raster


def _opacity(alpha: np.ndarray) -> np.ndarray:
    """Bring an alpha band to 8 bits."""
    if alpha.dtype == np.uint8:
        return alpha
    return (alpha >> 8).astype(np.uint8) if alpha.dtype == np.uint16 else (alpha > 0).astype(np.uint8) * 255


def _paint_palette(index: np.ndarray, colours: dict, own: float | None, options: ImageOptions, name: str) -> _Raster:
    """Turn palette indices `(H, W)` into RGB; nodata is an index here."""
    table = np.zeros((np.iinfo(index.dtype).max + 1, 3), np.uint8)
    for entry, colour in colours.items():
        table[entry] = colour[:3]
    raster = _from_array(table[index], options, name)
    nodata = own if options.nodata is None else options.nodata
    raster.valid, raster.indexed = None if nodata is None else index != nodata, True
    return raster


def _from_plain_tiff(image: Image.Image, tags: Tags, options: ImageOptions, name: str) -> _Raster:
    """Read a TIFF with Pillow alone, refusing what Pillow would read wrongly without saying so."""
    bits, samples, layout = max(tags.get(258, (1,))), tags.get(277, 1), tags.get(339, (1,))[0]
    wide = image.mode in _WIDE_MODES
    if samples != len(image.getbands()) or (bits > 8 and not wide) or (bits == 32 and layout == 1):
        raise ImageError(f"{name}: {samples} band(s) of {bits} bits need rasterio; {_NEEDS_GEO}")
    raster = _from_pil(image, options, name)
    own = str(tags.get(42113, "")).strip("\0 ")  # GDAL's own tag for nodata
    if own and image.mode == "P" and options.nodata is None:
        raise ImageError(f"{name}: a palette with a nodata index needs rasterio; {_NEEDS_GEO}")
    raster.nodata = float(own) if own else None
    return raster


def _read_encoded(found: Path | bytes, options: ImageOptions, name: str) -> Image.Image:
    with opened(found, name) as (stream, head):
        if head[:4] in _TIFF_MAGIC:
            tags = _tiff_tags(stream, head)
            check_size(tags[256], tags[257], options, name)
            if _has_rasterio():
                # GDAL leaves the orientation tag alone, and does not tell premultiplied alpha (extra sample 1).
                raster = _from_gdal(found, "GTiff", options, name, premultiplied=1 in tags.get(338, ()))
                image, turn = _render(raster, options, name), _UPRIGHT.get(tags.get(274, 1))
                return image if turn is None else image.transpose(turn)
            try:
                plain = _open_pil(stream, head, ("TIFF",), name)
            except Exception as error:
                raise ImageError(f"{name}: Pillow cannot open this TIFF ({error}); {_NEEDS_GEO}") from error
            return _render(_from_plain_tiff(plain, tags, options, name), options, name)
        image = _open_pil(stream, head, _FORMATS, name)
        check_size(image.width, image.height, options, name)
        if image.format == "PNG" and head[24] == 16 and head[25] != 0:  # bit depth, colour type other than gray
            # Pillow would drop the low byte of each channel without a word.
            if not _has_rasterio():
                raise ImageError(f"{name}: a PNG of several 16-bit channels needs rasterio; {_NEEDS_GEO}")
            return _render(_from_gdal(found, "PNG", options, name), options, name)
        return _render(_from_pil(image, options, name), options, name)


# --- from bands to RGB ------------------------------------------------------------------------------------------


def _render(raster: _Raster, options: ImageOptions, name: str) -> Image.Image:
    """Stretch the bands, paint nodata black, and put alpha on white as qwen-vl-utils does."""
    data, nodata = raster.data, raster.nodata if options.nodata is None else options.nodata
    nodata = None if raster.indexed else nodata
    # Most pictures are 8-bit RGB in which every pixel counts; masks of them would cost as much as the decoding.
    plain = raster.valid is None and raster.alpha is None and nodata is None and data.dtype == np.uint8
    if not plain or options.stretch is not None or not data.size:
        data = _masked(raster, nodata, options, name)
    image = Image.fromarray(np.ascontiguousarray(np.broadcast_to(data, (*data.shape[:2], 3))))
    if raster.alpha is None:
        return image
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=Image.fromarray(np.ascontiguousarray(raster.alpha)))
    return white


def _masked(raster: _Raster, nodata: float | None, options: ImageOptions, name: str) -> np.ndarray:
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


def read_image(source: ImageSource, options: ImageOptions = DEFAULTS, where: str = "") -> Image.Image:
    """Returns any image as a new PIL image of mode RGB, upright, transparency on white.

    Args:
        source: What the row holds; see `ImageSource`.
        options: Where images may come from and how they are shown.
        where: The caller's place for the message, such as `"pairs.jsonl row 12"`.

    Raises:
        ImageError: The image is missing, forbidden, too large, damaged, or needs a choice of bands or stretch.
    """
    found, name = locate(source, options, where)
    if isinstance(found, np.ndarray):
        return _render(_from_array(found, options, name), options, name)
    if not isinstance(found, Image.Image):
        return _read_encoded(found, options, name)
    try:
        return _render(_from_pil(found, options, name), options, name)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # a lazily opened image is decoded only now, and a damaged one raises anything
        raise ImageError(f"{name}: cannot be decoded, the file is truncated or corrupt ({error})") from error


def image_size(source: ImageSource, options: ImageOptions = DEFAULTS, where: str = "") -> tuple[int, int]:
    """Returns `(height, width)` in pixels as `read_image` would give them, from the header alone if the format allows.

    Args:
        source, options, where: As for `read_image`. A URL is downloaded whole.

    Raises:
        ImageError: The image is missing, forbidden, too large or has no readable header.
    """
    found, name = locate(source, options, where)
    if isinstance(found, np.ndarray):
        if found.ndim not in (2, 3):
            raise ImageError(f"{name}: expected an array (H, W) or (H, W, C)")
        check_size(found.shape[1], found.shape[0], options, name)
        return found.shape[0], found.shape[1]
    if isinstance(found, Image.Image):
        return _upright_size(found, options, name)
    with opened(found, name) as (stream, head):
        if head[:4] not in _TIFF_MAGIC:
            return _upright_size(_open_pil(stream, head, _FORMATS, name), options, name)
        tags = _tiff_tags(stream, head)
        width, height = int(tags[256]), int(tags[257])
        check_size(width, height, options, name)
        return (width, height) if tags.get(274, 1) in (5, 6, 7, 8) else (height, width)


def _upright_size(image: Image.Image, options: ImageOptions, name: str) -> tuple[int, int]:
    check_size(image.width, image.height, options, name)
    # Pillow's TIFF plugin turns the picture itself and gives the turned size from the start.
    turned = image.format != "TIFF" and image.getexif().get(274, 1) in (5, 6, 7, 8)
    return (image.width, image.height) if turned else (image.height, image.width)
