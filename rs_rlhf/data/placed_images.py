"""Image files of rows: located inside their root, and written once each beside the JSON lines that name them.

Images below the output's folder stay where they are; others (bytes in Parquet, files elsewhere) are written. Left out:
Parquet output, which would hold each image once per row.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from ..errors import DataError, OptionError
from ..imagery.identity import source_key
from ..imagery.options import IMAGE_SUFFIXES, split_sensor
from ..imagery.raster import read_image
from ..imagery.sources import ImageOptions, ImageSource, resolve_path
from ..options import option
from ..runs.files import replacing

# Decodes what has many bands or more than 8 bits too.
_ANY_RASTER = ImageOptions(bands=(1,), stretch="fixed", stretch_range=(0, 1))

StoredImage = dict[str, Any] | str
"""The `{"bytes", "path"}` of an embedded image, or the path of an existing file."""


def stored_image(value: object, where: str, root: str) -> StoredImage:
    """Returns a row's image: its stored bytes, or the path of a file inside `root`; [`DataError`] or [`ImageError`] if
    none.
    """
    if isinstance(value, bytes):
        return {"bytes": value, "path": None}
    if isinstance(value, dict) and value.get("bytes") is not None:
        return value
    path = value.get("path") if isinstance(value, dict) else value
    if path is None or isinstance(path, str) and not path:
        raise DataError("the image is missing; add it or remove the row.", "image", where)
    if not isinstance(path, str):
        raise DataError(f"`image` is {path!r:.60}, expected a path, bytes or {{'bytes', 'path'}}.", "image", where)
    return str(resolve_path(path, ImageOptions(image_root=root), where)) + split_sensor(path, root)[1]


def check_image(image: ImageSource, where: str) -> None:
    """Decodes an image of any kind, or raises [`ImageError`]."""
    read_image(image, _ANY_RASTER, where)


def place_images(rows: Sequence[dict[str, Any]], root: Path, folder: Path, overwrite: bool, checked: bool) -> int:
    """Makes each row's `image` a path relative to `root`; images that are not below it are written once under
    `folder`.

    A row's `id` names its file. `checked` says that all images have been decoded before. Returns how many were
    written. Nothing is written if a file would be replaced without `overwrite`, two rows would share one, or something
    is not an image: [`OptionError`], [`DataError`] or [`ImageError`].
    """
    check_folder(folder, root)
    root, folder = root.resolve(), folder.resolve()
    todo: dict[Path, tuple[str, StoredImage]] = {}
    for row in rows:
        image = row["image"]
        row["image"], target = placed(image, row["id"], root, folder)
        if target is None:
            continue
        if target in todo:
            raise DataError(f"Rows {todo[target][0]!r} and {row['id']!r} would both be {target}; rename one.", "id")
        if not checked:
            check_image(image, row.get("where", ""))
        todo[target] = (row["id"], image)
    for target, (_, image) in todo.items():
        check_target(target, image, overwrite)
    for target, (_, image) in todo.items():
        write_image(target, image)
    return len(todo)


def check_folder(folder: Path, root: Path) -> None:
    """Refuses a folder of images that paths starting from `root` do not lead to."""
    if not folder.resolve().is_relative_to(root.resolve()):
        reason = f"--images-dir {folder} is outside {root}, where image paths start; choose one in it."
        raise OptionError(reason, "images_dir")


def placed(image: StoredImage, name: str, root: Path, folder: Path) -> tuple[str, Path | None]:
    """Returns an image's path relative to `root`, and the file below `folder` that it must be written to.

    The file is called `name`; there is none for an image that lies below the root. Both folders are resolved paths.
    """
    file, sensor = split_sensor(str(image.get("path") if isinstance(image, dict) else image))
    if isinstance(image, str) and (source := Path(file).resolve()).is_relative_to(root):
        return source.relative_to(root).as_posix() + sensor, None
    # Only plain name parts: an id such as "../x.jpg" must not lead out of the folder.
    target = folder.joinpath(*[part for part in Path(name).parts if part not in ("..", "/")])
    if target.suffix.lower() not in IMAGE_SUFFIXES:
        target = target.with_name(target.name + ".png")
    return target.relative_to(root).as_posix() + sensor, target


def image_name(image: StoredImage, root: str) -> str:
    """Returns a name for a picture that many rows may share: its path below `root`, or one made of its content."""
    if not isinstance(image, dict):
        return os.path.relpath(split_sensor(image)[0], os.path.realpath(root))
    return str(source_key(image))[:16] + PurePath(split_sensor(image.get("path") or "")[0]).suffix


def image_bytes(image: StoredImage) -> bytes:
    """Returns the encoded bytes of an image."""
    return image["bytes"] if isinstance(image, dict) else Path(split_sensor(image)[0]).read_bytes()


def check_target(target: Path, image: StoredImage, overwrite: bool) -> None:
    """Refuses to replace a file of other content, unless it may be replaced."""
    if target.exists() and not overwrite and target.read_bytes() != image_bytes(image):
        raise OptionError(f"{target} exists with other content; choose another --images-dir or --overwrite.")


def write_image(target: Path, image: StoredImage) -> None:
    """Writes the bytes of an image, whole or not at all: the next run would refuse to replace half of one."""
    with replacing(target, "wb", sync=False) as file:
        file.write(image_bytes(image))


def check_output(output: Path, overwrite: bool, suffixes: Sequence[str] = (".jsonl",)) -> None:
    """Refuses an output that does not end in one of the suffixes, or that exists and may not be replaced."""
    if output.suffix not in suffixes:
        raise OptionError(f"--output {output} must end in {' or '.join(suffixes)}; name it so.", "output")
    if output.exists() and not overwrite:
        raise OptionError(f"{output} exists; choose another --output or pass --overwrite.", "output")


@dataclass(kw_only=True)
class OutputOptions:
    """Where a command writes JSON lines and the images that they name."""

    output: Path = option(help="JSONL file to write; image paths in it are relative to its folder", writes="file")
    images_dir: Path | None = option(
        None,
        "where images that are not below the output's folder are written, once each (default: images, or "
        "images/SPLIT, beside the output)",
        writes="folder",
    )
    overwrite: bool = option(False, "replace an existing output")

    def write(
        self, made: Sequence[Mapping[str, Any]], rows: Sequence[dict[str, Any]], checked: bool, folder: str, what: str
    ) -> None:
        """Writes `made`, rows made of [`numbered`] rows and called `what`, with the images of `rows`; prints how many.

        `folder` is the `images_dir` beside the output by default; `checked` is as for [`place_images`].
        """
        root = self.output.parent
        images = self.images_dir or root / folder
        written = place_images(rows, root, images, self.overwrite, checked)
        with replacing(self.output) as lines:
            for row in made:
                lines.write(json.dumps({**row, "image": rows[int(row["image"])]["image"]}, ensure_ascii=False) + "\n")
        print(f"{len(made)} {what} -> {self.output}" + (f"; {written} images -> {images}" if written else ""))


def numbered(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns rows with their number in place of the image, which [`OutputOptions.write`] puts back as a path."""
    return [{**row, "image": str(number)} for number, row in enumerate(rows)]
