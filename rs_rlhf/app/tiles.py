"""Tiles for the page: those of a folder or drawn ones, and any file as the picture that the models see.

Files are read by the one reader of images, within its limits. Left out: maps and coordinates, several images at once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.scenes.make import make_scenes
from ..errors import DataError, ImageError, RequestError
from ..imagery.options import IMAGE_SUFFIXES, ImageOptions
from ..imagery.raster import read_image

SHOWN = 48  # tiles of a folder that can be chosen
DRAWN = 8
PREVIEW = 1024  # longest side of the picture on the page
THUMBNAIL = 160


@dataclass(frozen=True)
class Tile:
    """A file and how it is read."""

    path: str
    options: ImageOptions

    def read(self) -> Image.Image:
        """Returns the RGB picture; an [`ImageError`] says why there is none."""
        return read_image(self.path, self.options, "")


def read_as(options: ImageOptions, *fields: str | None) -> ImageOptions:
    """Returns reading options with what the page's fields say in place of the command's; empty fields change nothing.

    Args:
        options ([`ImageOptions`]): The command's.
        *fields (`str`): Bands, stretch, its range and the no-data value, as they were typed.

    Raises:
        ImageError, RequestError: A field says what no image can be read by.
    """
    bands, stretch, span, nodata = (field or "" for field in fields)
    shown, ends = _numbers(bands, "bands"), _numbers(span, "range")
    if not (shown or stretch or ends or nodata.strip()):
        return options
    if any(number != int(number) for number in shown):
        raise RequestError(400, f"bands is {bands[:60]!r}, expected whole numbers such as 4 3 2.")
    given: dict[str, Any] = {"bands": tuple(map(int, shown)) or options.bands, "stretch": stretch or options.stretch}
    given["stretch_range"] = tuple(ends) or (None if stretch else options.stretch_range)
    given["nodata"] = _numbers(nodata, "nodata")[0] if nodata.strip() else options.nodata
    return replace(options, sensors=(), **given)


def _numbers(text: str, what: str) -> list[float]:
    """The numbers of a field, between spaces or commas."""
    try:
        return [float(part) for part in re.split(r"[\s,;]+", text.strip()) if part]
    except ValueError:
        raise RequestError(400, f"{what} is {text[:60]!r}, expected numbers.") from None


def preview(image: Image.Image, side: int = PREVIEW) -> Image.Image:
    """Returns a picture for the page, no side longer than `side`."""
    small = image.copy()
    small.thumbnail((side, side))
    return small


def example_tiles(folder: Path | None, options: ImageOptions, drawn_in: Path) -> list[tuple[Tile, Image.Image, str]]:
    """Returns tiles to choose from: each with its thumbnail and name.

    Args:
        folder (`Path`, *optional*): Its images, and those of the folders in it, the first of the names; without one,
            scenes are drawn.
        options ([`ImageOptions`]): How they are read.
        drawn_in (`Path`): Where scenes are drawn.

    Raises:
        DataError: The folder is none, or holds no image that can be read; says why the first cannot.
    """
    if folder is None:
        plain, found = options.plain(), []
        for i, scene in enumerate(make_scenes(DRAWN, seed=7, size=224)):
            path = drawn_in / f"{i}-{scene.label.replace(' ', '-')}.png"
            scene.image.save(path)
            found.append((Tile(str(path), plain), preview(scene.image, THUMBNAIL), scene.label))
        return found
    if not folder.is_dir():
        raise DataError("no such folder; expected one of images", "tiles", str(folder))
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise DataError(
            f"no images in it, expected files that end in {', '.join(IMAGE_SUFFIXES)}", "tiles", str(folder)
        )
    return _readable(files, options, folder)


def _readable(files: Sequence[Path], options: ImageOptions, folder: Path) -> list[tuple[Tile, Image.Image, str]]:
    found, failed = [], list[ImageError]()
    for path in files[: 4 * SHOWN]:
        tile = Tile(str(path), options)
        try:
            found.append((tile, preview(tile.read(), THUMBNAIL), str(path.relative_to(folder))))
        except ImageError as error:
            failed.append(error)
        if len(found) == SHOWN:
            break
    if not found:
        raise DataError(f"none of its images can be read; the first: {failed[0]}", "tiles", str(folder))
    if failed:
        print(f"left out of the tiles: {len(failed)} images of {folder}, the first: {failed[0]}", flush=True)
    return found


def side_by_side(images: Sequence[Image.Image], gap: int = 8) -> Image.Image:
    """Returns pictures as one, from left to right, each as high as the highest."""
    if len(images) == 1:
        return images[0]
    height = min(PREVIEW, max(image.height for image in images))
    scaled = [image.resize((max(1, round(image.width * height / image.height)), height)) for image in images]
    whole = Image.new("RGB", (sum(image.width + gap for image in scaled) - gap, height), "white")
    left = 0
    for image in scaled:
        whole.paste(image, (left, 0))
        left += image.width + gap
    return whole
