"""The line that a command prints about its rows before it works: how many there are, with which images, of which form.

So data whose images are not read show it at once. Left out: decoding of images.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .columns import TURN_COLUMNS, Columns, find_columns, image_column, parse_columns
from .forms import form_of
from .group import Row, image_sources
from .image_text_dataset import ImageTexts
from .rows import HEAD, PACKED, RSRM, data_files, image_folder, is_saved, open_rows

if TYPE_CHECKING:
    from datasets import Dataset

MOST_BYTES = 2**28  # of text files of which every row is counted; of larger ones and of other formats the first are
FIRST = 1000


@dataclass
class Survey:
    """What rows show: their number, how many have images, the columns of these, their forms, and how many are
    not to be read.
    """

    rows: int = 0
    pictured: int = 0
    columns: dict[str, None] = field(default_factory=dict)
    forms: dict[str, None] = field(default_factory=dict)
    unread: int = 0
    whole: bool = True

    def look(self, rows: Iterable[Any], columns: Columns, root: str) -> Iterator[None]:
        """Looks at rows as stored, one at a time; those that cannot be read are left to the reader."""
        for row in rows:
            try:
                fields = columns.of(row) if isinstance(row, Mapping) else None
                key = columns.found or fields and image_column(fields, root)
                images = image_sources(fields.get("image" if columns.found else key) if fields and key else None)
            except DataError:
                fields = None
            if fields is None:
                self.unread += 1
            else:
                has_image = bool(images) or _inline(fields)
                self.columns |= {columns.given.get(key, key): None} if key and has_image else {}
                self.forms[form_of(fields) or "no known form"] = None
                self.pictured, self.rows = self.pictured + has_image, self.rows + 1
            yield

    def announce(self) -> None:
        """Prints the line, once however many processes run."""
        named = f" (column{'s' * (len(self.columns) > 1)} {', '.join(self.columns)})" if self.columns else ""
        count = f"{'' if self.whole else 'first '}{self.rows} rows"
        line = f"{count}, {self.pictured} with images{named}, {self.rows - self.pictured} text-only"
        line += f"; {', '.join(self.forms)}" * bool(self.forms) + f"; {self.unread} cannot be read" * bool(self.unread)
        if os.environ.get("RANK", "0") == "0":
            print(line)


def require_images(pictured: int, name: str, columns: Mapping[str, str] | None, image_root: str | None) -> None:
    """Refuses data without images, for commands.

    Raises:
        DataError: No row has one, and it was not said that they are text-only, or a root of images was given.
    """
    if pictured or image_root is None and Columns(parse_columns(columns)).text_only:
        return
    advice = f"{'correct image_root, ' if image_root else ''}name their column with --columns image=COLUMN"
    raise DataError(f"no row has an image; {advice}, or give --text_only if there are none", "text_only", name)


def announce(
    path: str | os.PathLike[str],
    rows: int,
    pictured: int,
    split: str | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    image_root: str | None = None,
) -> None:
    """Prints the line about `rows` rows of a path, of which `pictured` have images; their columns and forms are those
    of the first rows. Other arguments are those of [`open_rows`].
    """
    name = os.fspath(path)
    survey, folder = Survey(), Path(name.removeprefix(RSRM))
    files = [file for files in data_files(folder, split).values() for file in files] if folder.is_dir() else [name]
    if folder.is_dir() and not is_saved(folder) and not files:
        survey.forms["images by class"] = None
    else:
        root = image_folder(name) if image_root is None else image_root
        name = str(files[0]) if files and not is_saved(folder) else name
        raw = [row for _, row in islice(open_rows(name, split, columns=Columns(), on_error="return"), HEAD // 10)]
        found = find_columns([row for row in raw if isinstance(row, Mapping)], columns, root)
        for _ in survey.look(raw, found, root):
            pass
    survey.rows, survey.pictured, survey.unread = rows, pictured, 0
    survey.announce()


def announce_texts(data: ImageTexts, image_root: str | None) -> None:
    """Prints the line about image-text data, and refuses data without images, see [`require_images`].

    Of large data, and of files that hold images, the first rows are counted.
    """
    large = (
        data.format in (*PACKED, "dataset") or sum(path.stat().st_size for path in data.files.values()) > MOST_BYTES
    )
    survey, damaged = Survey(), False
    for unit in data.whole_units():
        columns = data.columns_of(unit)
        try:
            for _ in survey.look(data.stored_rows(unit), columns, data.root):
                if large and survey.rows >= FIRST and survey.pictured:
                    survey.whole = False
                    break
        except DataError:  # a damaged file: the reader says so, after the rows before the damage
            damaged = True
        if not survey.whole:
            break
    survey.announce()
    if damaged and not survey.pictured:
        return
    if not survey.rows and not survey.unread:
        raise DataError("no rows; give data that has some", "", data.name)
    if survey.rows:
        require_images(survey.pictured, data.name, data.columns.given, image_root)


def _inline(fields: Row) -> bool:
    """Whether a message of the row holds its image itself."""
    for key in (*TURN_COLUMNS, "prompt"):
        for turn in fields[key] if isinstance(fields.get(key), (list, tuple)) else ():
            parts = turn.get("content") if isinstance(turn, Mapping) else None
            for part in parts if isinstance(parts, (list, tuple)) else ():
                if isinstance(part, Mapping) and any(part.get(name) for name in ("image", "path", "url")):
                    return True
    return False


def count_pictured(data: Dataset, column: str = "images") -> int:
    """Returns how many rows of a data set have images in a column of lists, which are not loaded."""
    import pyarrow.compute as pc

    tables = data.select_columns([column]).with_format("arrow").iter(batch_size=1000)
    return sum(pc.sum(pc.greater(pc.list_value_length(table[column]), 0)).as_py() or 0 for table in tables)
