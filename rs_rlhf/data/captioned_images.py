"""Captioned or labelled images: rows of one image with its captions and its class, and the questions about them.

Left out: near-duplicate search (only images with the same decoded pixels are kept apart).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import DataError, ImageError
from ..imagery.identity import encoded_hash, pixel_hash
from ..imagery.options import IMAGE_SUFFIXES, split_sensor
from ..options import option
from .columns import TURN_COLUMNS, ColumnOptions, caption_column, image_column, label_of, listed
from .group import Row, check_encodable
from .packed_records import parquet_labels
from .placed_images import check_image, stored_image
from .rows import FORMATS, HELD_OUT, SUFFIXES, data_files, draw_rows, format_of, is_text, naming, open_rows, split_of
from .survey import announce

LABEL_QUESTION = "What is the scene class of this image?"
CAPTION_REQUEST = "Describe the image."


def class_name(label: str) -> str:
    """Turns a class label into words: `"BareLand"` -> `"bare land"`, `"storage_tanks"` -> `"storage tanks"`."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", label)
    return " ".join(re.split(r"[\s_\-]+", words.strip())).lower()


def load_images(
    path: str | Path,
    split: str | None = None,
    *,
    image_root: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Reads images as rows with `image`, `captions`, `label`, `id`, `source` and their place, `where`.

    A row of Parquet and WebDataset files is an image, whose class may be a number with a name (`ClassLabel`). Rows of
    one image of text files are merged. A folder of images, `{split}/class/*.jpg` or `class/*.jpg`, has labels only.
    Without a `split` all of a folder is read. Image paths start from `image_root` (default: their file's folder),
    which none may leave; `columns` names columns by their fields. Raises [`ImageError`] if an image is missing or
    outside, [`DataError`] if there is nothing to read, or a row has no image or texts of the wrong type.
    """
    root = Path(path)
    if not root.exists():
        raise DataError(f"{root} does not exist; give a Parquet, JSONL or CSV file or a folder.")
    files = split_files(root, split, image_root, columns) if root.is_dir() else [root]
    rows: list[dict[str, Any]] = []
    for file in files:
        if file.suffix.lower() not in FORMATS:
            raise DataError(f"expected {SUFFIXES}, or a folder of images by class.", where=str(file))
        rows += _file_rows(file, str(file.parent) if image_root is None else image_root, columns)
    if not files and (not split or (root / split).is_dir()):
        left_out: list[Path] = []
        rows += _image_folder(root, split, left_out)
        if left_out:
            others = f" and {len(left_out) - 1} more" * (len(left_out) > 1)
            why = "links that lead out of the folder or nowhere, or no plain files; put the images themselves there"
            print(f"{root}: left out {left_out[0].relative_to(root)}{others}: {why}")
    if not rows and root.is_file():
        raise DataError("no rows; give data that has some", "", str(root))
    if not rows:
        what, name, folder = (
            (f"nothing of split {split!r}", f"{split}*", f"{split}/") if split else ("no images", "*", "")
        )
        expected = f"expected {name}.parquet, {name}.jsonl, {name}.csv or {folder}class/*.jpg"
        raise DataError(f"{root}: {what} found; {expected}. Check the path{', or leave the split out' * bool(split)}.")
    if root.is_dir():
        _say_what_is_read(root, split, files, rows)
    return [{**row, "source": row.get("source") or root.stem} for row in rows]


def split_files(
    root: Path, split: str | None, image_root: str | None = None, columns: Mapping[str, str] | None = None
) -> list[Path]:
    """Returns the data files of a split of a folder, all of one format; none if it is a folder of images.

    Of files of several formats, and of files beside images, those are the data whose rows have images, or are
    questions or conversations. `image_root` and `columns` are as for [`load_images`].
    """
    found = data_files(root, split)
    kinds = [found[kind] for kind in ("parquet", "jsonl", "csv", "json", "webdataset") if kind in found]
    images = any(_image_folder(root, split))
    if len(kinds) + images < 2:
        return kinds[0] if kinds else []
    other = [] if images else kinds[0]
    return next((files for files in kinds if _holds_images(files[0], image_root, columns)), other)


def _split_folder(root: Path, split: str | None) -> Path:
    return root / split if split and (root / split).is_dir() else root


def _holds_images(file: Path, image_root: str | None, columns: Mapping[str, str] | None) -> bool:
    """Whether one of the first rows of a file has an image, there or not, or is a question or a conversation."""
    root = str(file.parent) if image_root is None else image_root
    rows = islice(open_rows(file, columns=columns, image_root=root, on_error="return"), 20)
    asked = {"prompt", "question", *TURN_COLUMNS}
    return any(asked & set(row) or image_column(row, root) for _, row in rows if not isinstance(row, DataError))


def _say_what_is_read(root: Path, split: str | None, files: Sequence[Path], rows: Sequence[Row]) -> None:
    """Prints what of a folder is read, if it has files that are not, or images that no row names."""
    aside = [file.name for kind in data_files(root, split).values() for file in kind if file not in files]
    paths = {split_sensor(row["image"])[0] for row in rows if isinstance(row["image"], str)}
    left = 0
    if files and paths and (not split or (root / split).is_dir()):
        left = sum(os.path.realpath(row["image"]) not in paths for row in _image_folder(root, split))
    if aside or left:
        more = f" and {len(files) - 1} more files" * (len(files) > 1)
        what = f"rows of {files[0].name}{more}" if files else "images by class folder"
        others = [f"{left} image{'s' * (left > 1)} that no row names"] * bool(left)
        others += [", ".join(aside[:3]) + ", …" * (len(aside) > 3)] * bool(aside)
        print(f"{root}: read the {what}; not read: {' and '.join(others)}")


def _file_rows(file: Path, root: str, columns: Mapping[str, str] | None) -> list[dict[str, Any]]:
    """The images of a file; in text files rows of one image are gathered."""
    embeds = not is_text(file)
    names = parquet_labels(file) if format_of(file) == "parquet" else {}
    rows: dict[str | int, dict[str, Any]] = {}
    for number, (where, row) in enumerate(open_rows(file, columns=columns, image_root=root)):
        with naming(where):
            image = _one_image(row)
            captions, label = _texts(row, names)
        path = image.get("path") if isinstance(image, dict) else image if isinstance(image, str) else None
        if not embeds and path in rows:
            rows[path]["captions"] += captions
            rows[path]["label"] = rows[path]["label"] or label
            continue
        name = (embeds and row.get("filename")) or path or f"{file.stem}-{number:06d}"
        known = {"id": split_sensor(str(name), root)[0], "captions": captions, "label": label, "where": str(where)}
        made = {**(row if embeds else {}), "image": stored_image(image, where, root), **known}
        rows[number if embeds else str(path or number)] = made
    return list(rows.values())


def _one_image(row: Row) -> Any:
    key = image_column(row)
    value = None if key is None else row[key]
    if isinstance(value, list | tuple):
        if len(value) != 1:
            raise DataError(f"`{key}` holds {len(value)} images, expected one; split the row", key or "")
        value = value[0]
    if value is None or value == "":
        advice = "add it, remove the row, or name the column, as in --columns image=COLUMN"
        raise DataError(f"the image is missing; the columns are {listed(row)}; {advice}", "image")
    return value


def _texts(row: Row, names: Mapping[str, Sequence[str]]) -> tuple[list[str], str | None]:
    key, label = caption_column(row) or "", label_of(row, names)
    texts = (key and row[key]) or []
    if key == "captions" and isinstance(texts, str):
        raise DataError("`captions` must be a list of texts; a single one is `caption`.", key)
    if key == "captions" and not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
        raise DataError(f"`captions` must be a list of texts, not {texts!r:.60}.", key)
    if key not in ("", "captions") and not isinstance(texts, str):
        raise DataError(f"`{key}` must be a text, not {texts!r:.60}; several are a list `captions`.", key)
    if label is not None and not isinstance(label, str):
        raise DataError(f"`label` must be the class name, not {label!r:.60}; map numbers to names first.", "label")
    captions = [texts] if isinstance(texts, str) else list(texts)
    for text in (*captions, label or ""):
        check_encodable(text, key)
    return captions, label or None


def _image_folder(root: Path, split: str | None, left_out: list[Path] | None = None) -> Iterator[dict[str, Any]]:
    """The images below a folder's split, or all of it; adds what is no file of the folder itself to `left_out`."""
    inside, folder = root.resolve(), _split_folder(root, split)
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)  # such as the `._1.png` that macOS writes
        if file.suffix.lower() not in IMAGE_SUFFIXES or hidden or file.is_dir():
            continue
        if not file.is_file() or not file.resolve().is_relative_to(inside):
            if left_out is not None:
                left_out.append(file)
        else:
            yield {"image": str(file), "label": file.parent.name, "captions": [], "id": name.as_posix()}


def exclude_images(
    rows: list[dict[str, Any]],
    path: str,
    split: str | None,
    exclude_images_of: Sequence[str],
    image_root: str | None,
    columns: Mapping[str, str] | None = None,
) -> list[dict[str, Any]] | None:
    """Drops rows whose picture is also in data kept for evaluation, prints how many; `None` if there is no such data.

    These are the evaluation splits of a folder `path` whose `split` is `"train"`, and `exclude_images_of`
    (`PATH[:SPLIT]`).
    """
    root = Path(path)
    splits = HELD_OUT if split == "train" and root.is_dir() else ()
    held_out = [(path, name) for name in splits if _holds(root, name, image_root, columns)]
    named = [other for other in map(split_of, exclude_images_of) if other not in held_out]
    if not held_out and not named:
        return None
    others = [row for other in held_out for row in load_images(*other, image_root=image_root, columns=columns)]
    others += [row for other in named for row in load_images(*other)]
    excluded = {picture_of(row) for row in others}
    kept = [row for row in rows if picture_of(row) not in excluded]
    names = ", ".join(f"{path}:{split}" if split else path for path, split in [*held_out, *named])
    print(f"{len(rows) - len(kept)} of them excluded, being in {names}")
    return kept


def _holds(root: Path, split: str, image_root: str | None, columns: Mapping[str, str] | None) -> bool:
    """Whether a folder has a split; "val" also begins the names of the files of "validation"."""
    files = split_files(root, split, image_root, columns)
    return (
        any(not file.name[len(split) :][:1].isalpha() for file in files)
        or (root / split).is_dir()
        and any(_image_folder(root, split))
    )


def picture_of(row: Row) -> str:
    """Hash of the decoded picture, or of the file if decoding needs a choice of bands or stretch."""
    image, where = row["image"], row.get("where", "")
    try:
        return pixel_hash(image, where=where)
    except ImageError:
        check_image(image, where)
    return encoded_hash(image, where=where)


def image_texts(data: str) -> list[str]:
    """Returns the captions and class names of images at `PATH[:SPLIT]`, and the question asked about them."""
    texts = [LABEL_QUESTION]
    for row in load_images(*split_of(data)):
        texts += [text for text in (*row["captions"], class_name(row.get("label") or "")) if text]
    return texts


@dataclass(kw_only=True)
class InputOptions(ColumnOptions):
    """Which captioned or labelled images a command reads."""

    input: str = option(help="Parquet, JSONL or CSV file, a folder of them, or a folder of images by class")
    split: str | None = option(
        None,
        "split of the input folder to read, e.g. train (default: all of it); train leaves out the images that are "
        "also in the folder's validation, test or other evaluation splits",
    )
    image_root: str | None = option(
        None, "image paths in the input start here, and images lie in it (default: their file's folder)", metavar="DIR"
    )
    exclude_images_of: list[str] = option(
        [],
        "drop images whose decoded pixels occur in this other data too; may be repeated",
        action="append",
        metavar="PATH[:SPLIT]",
    )
    seed: int = option(0, "seed of all choices", least=0)

    def read(self, limit: int | None = None) -> tuple[list[dict[str, Any]], bool]:
        """Reads at most `limit` images, drawn by the seed, as folders of images are sorted by class; prints how many.

        Returns the rows of [`load_images`], and whether all of them were decoded; [`DataError`] if none are left.
        """
        columns = self.named_columns()
        rows = load_images(self.input, self.split, image_root=self.image_root, columns=columns)
        announce(self.input, len(rows), len(rows), self.split, columns=columns, image_root=self.image_root)
        excluded = exclude_images(rows, self.input, self.split, self.exclude_images_of, self.image_root, columns)
        rows = rows if excluded is None else excluded
        if limit is not None and limit < len(rows):
            rows = [rows[i] for i in draw_rows(len(rows), limit, self.seed)]
            print(f"{len(rows)} of them used (--limit)")
        if not rows:
            raise DataError("No images are left; check --input, --split and --exclude-images-of.")
        return rows, excluded is not None
