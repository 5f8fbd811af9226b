"""Image identity: whether two sources are the same file, the same pixels, or look nearly the same.

- [`source_key`] compares sources without reading files: what is read once for a batch, what a log depends on.
- [`encoded_hash`] compares files byte by byte: a copy under another name is the same.
- [`pixel_hash`] compares decoded pictures: another lossless format is the same.
- [`perceptual_hash`] finds near-duplicates: resized, re-encoded or slightly retouched pictures are close.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import DataError, ImageError
from .raster import read_image
from .sources import DEFAULTS, ImageOptions, ImageSource, locate

NEEDS_IMAGEHASH = 'near-duplicates need imagehash: install it with `pip install "rs-rlhf[curation]"`'


def source_key(source: ImageSource | None, pictures: dict[int, Hashable] | None = None) -> Hashable:
    """Returns a key that two mentions of one image share; no file is read.

    Args:
        source: What the row holds; see `ImageSource`.
        pictures (`dict`, *optional*): Compares pictures and arrays in memory by content instead of by object, as is
            needed where one picture is decoded anew for each row. Maps `id(picture)` to its key; the caller keeps the
            pictures alive as long as the dict.

    Returns:
        The path or URL as it is written, the SHA-256 of encoded bytes, or the `id` (with `pictures` the mode, size
        and SHA-256) of a picture in memory.

    Raises:
        ImageError: With `pictures`: a lazily opened picture is damaged.
    """
    if isinstance(source, Mapping):
        source = source["bytes"] if source.get("bytes") is not None else str(source.get("path"))
    if isinstance(source, bytes | bytearray):
        return hashlib.sha256(source).hexdigest()
    if isinstance(source, str) or hasattr(source, "__fspath__"):
        return str(source)
    if pictures is None or source is None:
        return id(source)
    if id(source) not in pictures:
        pictures[id(source)] = _content_key(source)
    return pictures[id(source)]


def _content_key(picture: Image.Image | np.ndarray) -> tuple[str, str]:
    try:
        content = picture.tobytes()
    except Exception as error:  # a lazily opened image is decoded only now, and a damaged one raises anything
        raise ImageError(f"an image cannot be decoded, the file is truncated or corrupt ({error})") from error
    if isinstance(picture, Image.Image):  # a palette's indices say nothing without its colours
        form = [picture.mode, picture.size, picture.getpalette(), picture.info.get("transparency")]
    else:
        form = [picture.shape, picture.dtype]
    return str(form), hashlib.sha256(content).hexdigest()


def encoded_hash(source: ImageSource, options: ImageOptions = DEFAULTS, where: str = "") -> str:
    """Returns the SHA-256, in hex, of an image's encoded bytes (a path, URL, bytes or `{"bytes", "path"}`).

    A missing, forbidden or unreadable image, or a picture in memory, which has no encoding, is an [`ImageError`].
    """
    located, name = locate(source, options, where)
    if isinstance(located, bytes):
        return hashlib.sha256(located).hexdigest()
    if not isinstance(located, Path):
        raise ImageError(f"{name}: is decoded already, expected a file or encoded bytes")
    try:
        with located.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ImageError(f"{name}: cannot be read ({error.strerror}); check the path and image_root") from error


def pixel_hash(source: ImageSource, options: ImageOptions = DEFAULTS, where: str = "") -> str:
    """Returns the SHA-256, in hex, of an image's size and RGB pixels, whatever its file name or lossless format.

    The image is read as by [`read_image`]; other bands or another stretch give another hash.
    """
    image = read_image(source, options, where)
    return hashlib.sha256(f"{image.width}x{image.height}:".encode() + image.tobytes()).hexdigest()


def perceptual_hash(image: Image.Image) -> int:
    """Returns the 64 bits of an image's `phash`; near-duplicates differ in few of them.

    Raises:
        DataError: `imagehash` is not installed.
    """
    try:
        import imagehash
    except ImportError:
        raise DataError(NEEDS_IMAGEHASH) from None
    return int.from_bytes(np.packbits(imagehash.phash(image).hash.ravel()).tobytes(), "big")
