"""What lies in a folder of one's own: its data files, told by the readers that the commands use, and its images."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ...data.columns import Columns, find_columns, image_column, is_image
from ...data.group import image_sources
from ...data.rows import HEAD, HELD_OUT, data_files, is_text, open_rows
from ...data.survey import FIRST, MOST_BYTES, Survey
from ...errors import DataError
from ...imagery.options import IMAGE_SUFFIXES, split_sensor
from ...preferences.convert import Kind, kind_of

MADE = "`rs-rlhf init`"  # stands in the script that the command writes
MOST_FOLDERS = 200  # in which a file's images are looked for


@dataclass
class Found:
    """A data file, or a folder of images, and what it holds.

    `root` is where its image paths start from, `None` for the file's own folder, `files` the images that are there,
    `images` how many, with those inside the file. `kind` is `None` if no command reads
    its rows. `held_out` says whether its name is that of a split for evaluation.
    """

    path: Path
    survey: Survey
    kind: Kind | None = None
    root: Path | None = None
    images: int = 0
    files: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    held_out: bool = False
    split: str | None = None
    problem: str = ""

    def line(self, folder: Path) -> str:
        """Returns the line about it."""
        name = "the folder" if self.path == folder else os.path.relpath(self.path, folder)
        if self.problem:
            return f"{name}: cannot be read: {self.problem}"
        survey = self.survey
        forms = ", ".join(survey.forms) or "no rows"
        rows = f"{'' if survey.whole else 'first '}{survey.rows} rows"
        text = f"{name}: {forms}; {rows}, {self.images} images found"
        text += f" in {os.path.relpath(self.root, folder)}" if self.root and self.root != self.path else ""
        text += f", {len(self.missing)} missing (the first: {self.missing[0]:.80})" if self.missing else ""
        text += f", {survey.unread} rows cannot be read" if survey.unread else ""
        return text + ("; held out" if self.held_out else "")


def look(folder: Path) -> tuple[list[Found], list[Path]]:
    """Looks at all files of a folder.

    Returns what was found, files first, and the images that no row names.
    """
    made = recipes(folder)
    images = [image for image in image_files(folder) if not made & {*image.parents}]
    folders = list(dict.fromkeys([folder, *(image.parent for image in images)]))[:MOST_FOLDERS]
    found, named = [], set[str]()
    for place in [folder, *sorted(path for path in folder.rglob("*") if path.is_dir() and not _hidden(path, folder))]:
        if made & {place, *place.parents}:
            continue
        for files in data_files(place).values():
            found += [look_at(file, folders, named) for file in files if file.parent == place]
    left = [image for image in images if os.path.realpath(image) not in named]
    return [*found, *_class_folders(folder, left)], left


def recipes(folder: Path) -> set[Path]:
    """Returns the folders that this command has written below a folder, which are no data of the user's."""
    return {
        path.parent for path in folder.rglob("run.sh") if MADE in path.read_text(encoding="utf-8", errors="replace")
    }


def image_files(folder: Path) -> Iterator[Path]:
    """Yields the image files below a folder, but for hidden ones."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and not _hidden(path, folder) and path.is_file():
            yield path


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def look_at(file: Path, folders: list[Path], named: set[str]) -> Found:
    """Looks at the rows of a file, of a large one at the first; adds the images that they name to `named`."""
    start = re.split(r"[-_.]", file.name)[0].lower()
    found = Found(file, Survey(), held_out=start in HELD_OUT or file.parent.name.lower() in HELD_OUT)
    try:
        head = [row for _, row in islice(open_rows(file, columns=Columns(), on_error="return"), HEAD)]
        mappings = [row for row in head if isinstance(row, Mapping)]
        roots = [file.parent, *(place for place in folders if place != file.parent)]
        root = min(roots, key=lambda place: _missing_in(mappings, place))
        columns = find_columns(mappings, None, str(root))
    except DataError as error:
        found.problem = str(error)
        return found
    found.root = None if root == file.parent else root
    found.survey.whole = is_text(file) and file.stat().st_size <= MOST_BYTES
    rows = open_rows(file, columns=Columns(), on_error="return")
    looked = [row for _, row in (rows if found.survey.whole else islice(rows, FIRST))]
    for row, _ in zip(looked, found.survey.look(looked, columns, str(root)), strict=True):
        _look_at_row(row, columns, root, found, named)
    if found.survey.unread and not found.survey.rows:
        found.problem = str(next((row for row in looked if isinstance(row, DataError)), "no row is of a known form"))
    return found


def _look_at_row(row: Any, columns: Columns, root: Path, found: Found, named: set[str]) -> None:
    try:
        fields = columns.of(row)
        found.kind = found.kind or kind_of(fields)
        key = image_column(fields, str(root))
        sources = image_sources(fields[key] if key else None)
    except (DataError, AttributeError):
        return
    for source in sources:
        path = source.get("path") if isinstance(source, dict) and source.get("bytes") is None else source
        if not isinstance(path, str):
            found.images += 1
            continue
        name = os.path.join(root, split_sensor(path, str(root))[0])
        beside = os.path.join(found.path.with_suffix(""), path)
        name = name if os.path.isfile(name) or not os.path.isfile(beside) else beside
        if os.path.isfile(name):
            found.images += 1
            named.add(os.path.realpath(name))
            found.files.append(name)
        else:
            found.missing.append(path)


def _missing_in(rows: list[Mapping[str, Any]], root: Path) -> int:
    """How many paths of images in these rows lead nowhere from a folder."""
    values = [value for row in rows for value in row.values() if isinstance(value, str | list) and is_image(value)]
    paths = [path for value in values for path in (value if isinstance(value, list) else [value])]
    return sum(not os.path.isfile(os.path.join(root, str(path))) for path in paths)


def _class_folders(folder: Path, images: list[Path]) -> list[Found]:
    """The images that no row names, if their folders are classes; one for each split."""
    splits: dict[str | None, list[Path]] = {}
    for image in images:
        first = image.relative_to(folder).parts[0]
        splits.setdefault(first if first in ("train", *HELD_OUT) else None, []).append(image)
    if None in splits:
        splits = {None: images}
    found = []
    for split, files in splits.items():
        classes = {file.parent.name for file in files if file.parent != folder}
        if len(classes) < 2:
            continue
        shown = ", ".join(sorted(classes)[:5]) + ", …" * (len(classes) > 5)
        survey = Survey(len(files), len(files), forms={f"images by class ({len(classes)} classes: {shown})": None})
        names = [str(file) for file in files]
        found.append(
            Found(folder, survey, "classes", None, len(files), names, held_out=split in HELD_OUT, split=split)
        )
    return found
