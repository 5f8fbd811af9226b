"""Image reader: any source, from 8-bit PNG to many-band GeoTIFF, to an 8-bit RGB picture.

A vision-language model sees three 8-bit channels; remote-sensing archives hold 16-bit, float and many-band rasters.
Guessing how to get from one to the other gives black or falsely coloured pictures that train without complaint, so
nothing is guessed here: an image that is not plainly 8-bit gray or RGB is refused, in one sentence that says which
option chooses. TIFF and JPEG 2000 go through rasterio when it is installed; without it, what Pillow reads correctly.

Left out: reprojection, pansharpening, resampling by ground distance, the later pages of a many-page TIFF (the first is
read, as viewers do), and any guess at which band of an unlabelled file is red (`bands` reads the labels).
"""

import struct
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import ImageFileDirectory_v2 as Tags

from ..errors import ImageError
from .bands import RGB, Label, band_label, choose_bands, gdal_labels, label_of, opacity_of
from .rendering import Raster, render
from .sources import DEFAULTS, ImageOptions, ImageSource, check_size, locate, opened

__all__ = ["ImageError", "ImageOptions", "image_size", "read_image"]

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JP2_MAGIC = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")  # in boxes, or the bare codestream
_WIDE_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
_FLAGS = {"L": ("gray",), "LA": ("gray", "alpha"), "RGB": RGB, "RGBA": (*RGB, "alpha")}
_BY_MODE = {mode: tuple(map(label_of, ((),) * len(flags), flags)) for mode, flags in _FLAGS.items()}
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


def _from_array(array: np.ndarray, options: ImageOptions, name: str) -> Raster:
    if array.ndim not in (2, 3):
        raise ImageError(f"{name}: expected an array (H, W) or (H, W, C)")
    array = array[..., None] if array.ndim == 2 else array
    check_size(array.shape[1], array.shape[0], options, name)
    bands, _ = choose_bands([Label()] * array.shape[2], lambda band: array[..., band - 1], array.dtype, options, name)
    data = _chosen(array, bands)
    return Raster(data.astype(np.uint8) * 255 if data.dtype == bool else data)


def _open_pil(stream: IO[bytes], head: bytes, formats: tuple[str, ...], name: str) -> Image.Image:
    """Open lazily with the plugins themselves: `Image.open` has a process-wide size limit that is not ours."""
    Image.init()
    for key in formats:
        factory, accept = Image.OPEN[key]
        if accept is not None and accept(head[:16]) is True:
            return factory(stream, "")
    kinds = ", ".join((*_FORMATS, "TIFF", "JPEG 2000"))
    raise ImageError(f"{name}: is not an image in a known format; expected one of {kinds}")


def _from_pil(image: Image.Image, options: ImageOptions, name: str, labels: Sequence[Label] = ()) -> Raster:
    """Decode a PIL image, upright, with palettes and colour spaces resolved to gray or RGB."""
    check_size(image.width, image.height, options, name)
    certain = image.format not in ("TIFF", "JPEG2000")  # a PNG's fourth channel is alpha by its format
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
    if image.mode in ("L", "RGB") and not labels and options.bands is None:  # most pictures, soonest
        return Raster(data, valid=valid, indexed=valid is not None)
    labels = labels or _BY_MODE[image.mode]
    bands, alpha = choose_bands(labels, lambda band: data[..., band - 1], data.dtype, options, name, certain)
    return Raster(_chosen(data, bands), alpha, valid, indexed=valid is not None)


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


def _jp2_header(stream: IO[bytes], head: bytes) -> tuple[int, int, int, int]:
    """Read width, height, number of bands and most bits of a band from a JPEG 2000 file's codestream."""
    stream.seek(0)
    while head[:4] != _JP2_MAGIC[1]:  # step over the boxes before it
        start, box = stream.tell(), stream.read(16)
        length, kind = int.from_bytes(box[:4]), box[4:8]
        length = int.from_bytes(box[8:]) if length == 1 else length
        if kind == b"jp2c":
            stream.seek(start + (16 if box[:4] == b"\0\0\0\1" else 8))
            break
        if length < 8:
            raise ValueError("the JPEG 2000 file has no codestream")  # `opened` names the file
        stream.seek(start + length)
    size = stream.read(42)
    x1, y1, x0, y0 = struct.unpack(">4I", size[8:24])
    count = int.from_bytes(size[40:42])
    bits = max(depth & 127 for depth in stream.read(3 * count)[::3]) + 1
    stream.seek(0)
    return x1 - x0, y1 - y0, count, bits


def _has_rasterio(driver: str = "GTiff") -> bool:
    try:
        import rasterio
    except ImportError:
        return False
    with rasterio.Env() as env:
        return driver == "GTiff" or driver in env.drivers()


def _from_gdal(
    found: Path | bytes, driver: str, options: ImageOptions, name: str, premultiplied: bool = False
) -> Raster:
    """Read a TIFF, a JPEG 2000, or a PNG of several 16-bit channels, with rasterio; not yet upright."""
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
        inverted = file.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES"
        if file.colorinterp[0] == ColorInterp.palette and not inverted:
            return _paint_palette(file.read(1), file.colormap(1), own, options, name)
        labels = _labels(file)
        # PNG's fourth channel is alpha by its format; colours that are multiplied by alpha are nowhere above it.
        certain = driver == "PNG" or premultiplied and _below_alpha(file, labels)
        bands, alpha = choose_bands(labels, file.read, file.dtypes[0], options, name, certain)
        raster = Raster(np.moveaxis(file.read(list(bands)), 0, -1), alpha, nodata=own, inverted=inverted)
        bits = int(file.tags(bands[0], ns="IMAGE_STRUCTURE").get("NBITS", 8))
        if raster.data.dtype == np.uint8 and bits < 8:  # gray of 1, 2 or 4 bits: full white is not 255 in the file
            raster.gain = 255 // (2**bits - 1)
            raster.data = raster.data * np.uint8(raster.gain)
        flags = file.mask_flag_enums[bands[0] - 1]
        if alpha is None and MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags:
            raster.valid = file.read_masks(bands[0]) > 0
        if alpha is not None and premultiplied and raster.data.dtype.kind == "u":
            colours = raster.data / (np.maximum(alpha, 1)[..., None] / 255)
            most = np.iinfo(raster.data.dtype).max
            raster.data = np.rint(np.clip(colours, 0, most)).astype(raster.data.dtype)
        return raster


def _labels(file: Any) -> list[Label]:
    """What an open dataset of rasterio says of its bands."""
    shared = file.tags()
    tags = [{**file.tags(i), f"band_{i}": shared.get(f"Band_{i}", "")} for i in file.indexes]
    kinds = [kind.name for kind in file.colorinterp]
    return list(map(band_label, tags, file.indexes, kinds, file.descriptions))


def _below_alpha(file: Any, labels: Sequence[Label]) -> bool:
    alpha = [i for i, label in enumerate(labels, 1) if label.colour == "alpha"]
    others = [i for i in file.indexes if i not in alpha]
    return bool(alpha and others and (file.read(others) <= file.read(alpha[0])).all())


def _paint_palette(index: np.ndarray, colours: dict, own: float | None, options: ImageOptions, name: str) -> Raster:
    """Turn palette indices `(H, W)` into RGB; nodata is an index here."""
    table = np.zeros((np.iinfo(index.dtype).max + 1, 3), np.uint8)
    for entry, colour in colours.items():
        table[entry] = colour[:3]
    raster = _from_array(table[index], options, name)
    nodata = own if options.nodata is None else options.nodata
    raster.valid, raster.indexed = None if nodata is None else index != nodata, True
    return raster


def _from_plain_tiff(image: Image.Image, tags: Tags, options: ImageOptions, name: str, advice: str) -> Raster:
    """Read a TIFF with Pillow alone, refusing what Pillow would read wrongly without saying so."""
    bits, samples, layout = max(tags.get(258, (1,))), tags.get(277, 1), tags.get(339, (1,))[0]
    wide = image.mode in _WIDE_MODES
    if samples != len(image.getbands()) or (bits > 8 and not wide) or (bits == 32 and layout == 1):
        raise ImageError(f"{name}: {samples} band(s) of {bits} bits need rasterio; {advice}")
    own = str(tags.get(42113, "")).strip("\0 ")  # GDAL's own tag for nodata
    if image.mode == "P" and own and options.nodata is None:
        raise ImageError(f"{name}: a palette with a nodata index needs rasterio; {advice}")
    if 1 in tags.get(338, ()) and opacity_of(np.asarray(image.getchannel(image.getbands()[-1]))) is None:
        raise ImageError(f"{name}: colours multiplied by a soft alpha need rasterio; {advice}")
    flags = _FLAGS.get(image.mode)
    labels = gdal_labels(samples, str(tags.get(42112, "")), flags) if flags else ()
    raster = _from_pil(image, options, name, labels)
    raster.nodata = float(own) if own else None
    raster.inverted = tags.get(262) == 0
    if raster.inverted and image.mode in ("1", "L"):  # Pillow has inverted these, and nodata is a value of the file
        raster.data = 255 - raster.data
    if bits < 8:
        raster.gain = 255 // (2**bits - 1)
    return raster


def _from_jp2(found: Path | bytes, stream: IO[bytes], head: bytes, options: ImageOptions, name: str) -> Raster:
    width, height, count, bits = _jp2_header(stream, head)
    check_size(width, height, options, name)
    if _has_rasterio("JP2OpenJPEG"):
        return _from_gdal(found, "JP2OpenJPEG", options, name)
    if (count, bits) not in ((1, 8), (1, 16), (3, 8)):  # Pillow scales other depths, and takes a fourth for alpha
        raise ImageError(f"{name}: JPEG 2000 of {count} band(s) of {bits} bits needs rasterio; {_NEEDS_GEO}")
    try:
        plain = _open_pil(stream, head, ("JPEG2000",), name)
        plain.load()
    except Exception as error:
        raise ImageError(f"{name}: Pillow cannot read this JPEG 2000 ({error}); {_NEEDS_GEO}") from error
    return _from_pil(plain, options, name)


def _read_encoded(found: Path | bytes, options: ImageOptions, name: str) -> Image.Image:
    with opened(found, name) as (stream, head):
        if head[:4] in _TIFF_MAGIC:
            tags = _tiff_tags(stream, head)
            check_size(tags[256], tags[257], options, name)
            if _has_rasterio():
                # GDAL leaves the orientation tag alone, and does not tell premultiplied alpha (extra sample 1).
                raster = _from_gdal(found, "GTiff", options, name, premultiplied=1 in tags.get(338, ()))
                image, turn = render(raster, options, name), _UPRIGHT.get(tags.get(274, 1))
                return image if turn is None else image.transpose(turn)
            try:
                plain = _open_pil(stream, head, ("TIFF",), name)
            except Exception as error:
                raise ImageError(f"{name}: Pillow cannot open this TIFF ({error}); {_NEEDS_GEO}") from error
            return render(_from_plain_tiff(plain, tags, options, name, _NEEDS_GEO), options, name)
        if head.startswith(_JP2_MAGIC):
            return render(_from_jp2(found, stream, head, options, name), options, name)
        image = _open_pil(stream, head, _FORMATS, name)
        check_size(image.width, image.height, options, name)
        if image.format == "PNG" and head[24] == 16 and head[25] != 0:  # bit depth, colour type other than gray
            # Pillow would drop the low byte of each channel without a word.
            if not _has_rasterio():
                raise ImageError(f"{name}: a PNG of several 16-bit channels needs rasterio; {_NEEDS_GEO}")
            return render(_from_gdal(found, "PNG", options, name), options, name)
        return render(_from_pil(image, options, name), options, name)


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
    options = options.of_image(source)
    if isinstance(found, np.ndarray):
        return render(_from_array(found, options, name), options, name)
    if not isinstance(found, Image.Image):
        return _read_encoded(found, options, name)
    try:
        if found.format == "TIFF" and hasattr(found, "tag_v2"):  # Pillow has opened it, whatever it makes of it
            advice = "give its path or bytes instead of a picture"
            return render(_from_plain_tiff(found, found.tag_v2, options, name, advice), options, name)
        return render(_from_pil(found, options, name), options, name)
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
        if head[:4] in _TIFF_MAGIC:
            tags = _tiff_tags(stream, head)
            width, height = int(tags[256]), int(tags[257])
        elif head.startswith(_JP2_MAGIC):
            tags, (width, height, *_) = None, _jp2_header(stream, head)
        else:
            image = _open_pil(stream, head, _FORMATS, name)
            if image.format == "PNG" and not _may_be_turned(stream):  # Pillow would decode it to look for the tag
                check_size(image.width, image.height, options, name)
                return image.height, image.width
            return _upright_size(image, options, name)
        check_size(width, height, options, name)
        return (width, height) if tags and tags.get(274, 1) in (5, 6, 7, 8) else (height, width)


def _may_be_turned(stream: IO[bytes]) -> bool:
    """Whether a PNG has a chunk that can hold an orientation."""
    start, found = stream.tell(), False
    stream.seek(8)
    while not found and len(head := stream.read(8)) == 8:
        found = head[4:] in (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
        stream.seek(int.from_bytes(head[:4], "big") + 4, 1)
    stream.seek(start)
    return found


def _upright_size(image: Image.Image, options: ImageOptions, name: str) -> tuple[int, int]:
    check_size(image.width, image.height, options, name)
    # Pillow's TIFF plugin turns the picture itself and gives the turned size from the start.
    turned = image.format != "TIFF" and image.getexif().get(274, 1) in (5, 6, 7, 8)
    return (image.width, image.height) if turned else (image.height, image.width)
