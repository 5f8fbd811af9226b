"""Image sources: a path, a URL, encoded bytes, or a picture that is in memory already.

Everything that keeps a row from reading what it must not is here: paths are held inside `image_root`, hosts are
allowed by name, and sizes are limited before anything is decoded. `raster` turns what is found into RGB.
"""

import io
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPMessage
from pathlib import Path
from typing import IO, TypeGuard
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import numpy as np
from PIL import Image

from ..errors import ImageError
from .options import DEFAULTS, ImageOptions, split_sensor

ImageSource = str | os.PathLike | Image.Image | np.ndarray | bytes | dict
"""A path or URL, a PIL image, an array `(H, W)` or `(H, W, C)`, encoded bytes, or HF datasets' `{"bytes", "path"}`."""

Located = Path | bytes | Image.Image | np.ndarray
"""An existing file, encoded bytes, a picture or an array."""

DOWNLOAD_BYTES = 64 * 2**20
DOWNLOAD_SECONDS = 30


def resolve_path(path: str | os.PathLike, options: ImageOptions = DEFAULTS, where: str = "") -> Path:
    """Returns an existing regular file, held inside `options.image_root` if that is set.

    With `image_root`, `..`, absolute paths and symbolic links have been followed. A `#sensor` at the end is left out.

    Raises:
        ImageError: No such file, not a regular file, or outside `image_root`; the message begins with `where`.
    """
    name = _label(os.fspath(path), where)
    path, _ = split_sensor(os.fspath(path), options.image_root or "")
    try:
        if options.image_root is None:
            found, inside = Path(path), ""
        else:
            root = Path(options.image_root).resolve()
            found, inside = (root / path).resolve(), f" under image_root {options.image_root!r}"
            if not found.is_relative_to(root):
                raise ImageError(
                    f"{name}: the path leaves image_root {options.image_root!r}; move the file inside it or change "
                    "image_root"
                )
        if found.is_dir():
            raise ImageError(f"{name}: is a directory{inside}, expected an image file")
        if not found.exists():
            raise ImageError(f"{name}: no such file{inside}; check the path and image_root")
        if not found.is_file():
            raise ImageError(f"{name}: is not a regular file{inside}")
    except ImageError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # a loop of links, a NUL byte, a forbidden folder
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{name}: the path cannot be followed ({reason})") from error
    return found


def _label(what: str, where: str) -> str:
    return f"{where}: image {what!r}" if where else f"image {what!r}"


def locate(source: ImageSource, options: ImageOptions, where: str) -> tuple[Located, str]:
    """Finds what any source stands for, downloading a URL.

    Returns:
        An existing file, encoded bytes, picture or array to decode, and its name for messages.

    Raises:
        ImageError: The image is missing, forbidden, or of no known kind.
    """
    if isinstance(source, Image.Image):
        return source, _label(f"PIL {source.mode} {source.width}x{source.height}", where)
    if isinstance(source, np.ndarray):
        return source, _label(f"array {source.shape} {source.dtype}", where)
    if isinstance(source, dict):
        content, path = source.get("bytes"), source.get("path")
        if content is not None:
            return locate(content, options, where)[0], _label(str(path or "bytes"), where)
        if path is None:
            raise ImageError(f"{_label('dict', where)}: has neither `bytes` nor `path`")
        return locate(path, options, where)
    if isinstance(source, (bytes, bytearray)):
        return bytes(source), _label("bytes", where)
    if not isinstance(source, (str, os.PathLike)):
        raise ImageError(
            f"{_label(type(source).__name__, where)}: expected a path, URL, PIL image, numpy array, bytes or "
            "{'bytes', 'path'}"
        )
    if is_url(source):
        name = _label(source if len(source) <= 200 else source[:200] + "...", where)
        return _download(source, options, name), name
    return resolve_path(source, options, where), _label(os.fspath(source), where)


def is_url(source: object) -> TypeGuard[str]:
    """Whether an image source is a URL, of any kind."""
    return isinstance(source, str) and bool(re.match(r"(?i)[a-z][a-z0-9+.-]*://|(data|file):", source))


def check_host(url: str, options: ImageOptions, name: str) -> None:
    """Refuses a URL that may not be read, without reading it."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").lower()
    except ValueError as error:
        raise ImageError(f"{name}: is not a usable URL ({error})") from error
    if parts.scheme.lower() not in ("http", "https"):
        raise ImageError(f"{name}: {parts.scheme}: URLs are never read; give a path, or bytes")
    if host not in options.allowed_hosts:
        allowed = ", ".join(options.allowed_hosts) or "none"
        raise ImageError(f"{name}: host {host!r} is not in allowed_hosts ({allowed}); add it or use a local file")


def _download(url: str, options: ImageOptions, name: str) -> bytes:
    check_host(url, options, name)

    class Redirects(HTTPRedirectHandler):
        def redirect_request(
            self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
        ) -> Request | None:
            check_host(newurl, options, f"{name} (redirected to {newurl})")
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    chunks, size, end = [], 0, time.monotonic() + DOWNLOAD_SECONDS
    try:
        with build_opener(Redirects).open(url, timeout=DOWNLOAD_SECONDS) as reply:
            while chunk := reply.read1(2**20):
                chunks.append(chunk)
                size += len(chunk)
                if size > DOWNLOAD_BYTES:
                    raise ImageError(f"{name}: is larger than {DOWNLOAD_BYTES} bytes; download it beforehand")
                if time.monotonic() > end:
                    raise ImageError(f"{name}: took more than {DOWNLOAD_SECONDS} s; download it beforehand")
    except ImageError:
        raise
    except Exception as error:  # urllib, http.client and ssl each have their own
        raise ImageError(f"{name}: the download failed ({error})") from error
    return b"".join(chunks)


def check_size(width: int, height: int, options: ImageOptions, name: str) -> None:
    """Refuses, before it is decoded, an image of too many pixels or of none."""
    if width * height > options.max_image_pixels:
        raise ImageError(
            f"{name}: is {width}x{height} pixels, more than max_image_pixels={options.max_image_pixels}; cut it into "
            "tiles or raise the limit"
        )
    if width * height < 1:
        raise ImageError(f"{name}: has no pixels ({width}x{height})")


@contextmanager
def opened(found: Path | bytes, name: str) -> Iterator[tuple[IO[bytes], bytes]]:
    """Opens an encoded image, yields the stream and its first 32 bytes, and turns every decoder's error into ours.

    Raises:
        ImageError: The image is empty, or what was done with the stream failed.
    """
    try:
        with found.open("rb") if isinstance(found, Path) else io.BytesIO(found) as stream:
            head = stream.read(32)
            stream.seek(0)
            if not head:
                raise ImageError(f"{name}: is empty (0 bytes); write the file again")
            yield stream, head
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:  # Pillow's WebP reader asks before we can; others never do
        raise ImageError(
            f"{name}: is larger than Pillow reads of this format whatever max_image_pixels is; cut it into tiles or "
            f"save it as TIFF or PNG ({error})"
        ) from error
    except Exception as error:  # a damaged file raises anything: SyntaxError, struct.error, zlib.error, ...
        raise ImageError(f"{name}: cannot be decoded, the file is truncated or corrupt ({error})") from error
