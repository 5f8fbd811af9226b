"""Column resolver: which columns of a row hold the image or images, the texts, and the class.

Names are looked up in an order of precedence; a column that the caller names comes first. Values count as well, since
a null counts as missing. Left out: columns recognised by their values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import DataError

if TYPE_CHECKING:
    from .group import Row

IMAGE_COLUMNS = ("image", "images", "filepath", "jpg", "jpeg", "png", "webp", "tif", "tiff")
# Data with one of these and none of the above were meant to have images, so they are not read as text-only.
UNREAD_IMAGE_COLUMNS = tuple(
    "image_name image_path image_file image_url image_bytes img img_path file_name img_name".split()
)
TURN_COLUMNS = ("conversations", "messages")
PAIR_COLUMNS = {"prompt": "completion", "question": "answer"}
CAPTION_COLUMNS = ("captions", "txt", "caption", "text", "title")
LABEL_COLUMNS = ("label", "class")
FORMS = "conversations, messages, prompt + completion, question + answer, captions, caption, text or title"
# Columns that tell more about an image than its captions and its class.
MORE_THAN_CAPTIONS = {*TURN_COLUMNS, *PAIR_COLUMNS.values(), "text", "title", "txt"}


def image_column(row: Row, named: str | None = None) -> str | None:
    """Returns the column of the image or images, `None` for a text-only row; a null counts as missing.

    [`DataError`] if there is no column `named`, two hold images, or only one that is not known to be an image.
    """
    if named is not None:
        return require_column(row, named, "image_column")
    keys = [key for key in IMAGE_COLUMNS if row.get(key) is not None]
    if len(keys) > 1:
        raise DataError(f"both `{keys[0]}` and `{keys[1]}` hold images; name one with image_column", keys[1])
    unread = next((key for key in UNREAD_IMAGE_COLUMNS if row.get(key) is not None), None)
    if not keys and unread is not None and not any(key in row for key in IMAGE_COLUMNS):
        advice = "say that it holds the image with image_column, or rename it to `image`"
        raise DataError(f"`{unread}` is not read by itself; {advice}", unread)
    return keys[0] if keys else None


def text_column(row: Row, named: str | None = None) -> str | None:
    """Returns the column that tells a row's form, the first of [`FORMS`] with a value; [`DataError`] if `named` is
    none.
    """
    if named is not None:
        return require_column(row, named, "text_column")
    for key in (*TURN_COLUMNS, *PAIR_COLUMNS, *CAPTION_COLUMNS):
        if row.get(key) is not None and (key not in PAIR_COLUMNS or row.get(PAIR_COLUMNS[key]) is not None):
            return key
    return None


def caption_column(row: Row) -> str | None:
    """Returns the column of an image's captions or caption, `None` if none has a value."""
    return next((key for key in CAPTION_COLUMNS if row.get(key)), None)


def label_of(row: Row, names: Mapping[str, Sequence[str]] | None = None) -> str | int | float | None:
    """Returns the class of a row, by its name if the numbers of its column have `names`; `None` if it is not known."""
    key = next((key for key in LABEL_COLUMNS if row.get(key) is not None), "")
    value, known = row.get(key), (names or {}).get(key, ())
    if type(value) is int and known:  # HF writes -1 where the class is not known
        return known[value] if 0 <= value < len(known) else None
    return value


def as_word(value: object) -> str:
    """Returns a text or number as text, `""` for anything else."""
    return str(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else ""


def check_columns(columns: Sequence[str], image: str | None, text: str | None) -> None:
    """Raises [`DataError`] if a file's columns have no texts, not what is named, or an unread image column alone."""
    row = dict.fromkeys(columns, "")
    if image is not None or not any(key in row for key in IMAGE_COLUMNS):
        image_column(row, image)
    if text_column(row, text) is None:
        raise no_text(row)


def require_column(row: Row, column: str, option: str) -> str:
    """Returns a column that an option names, or raises [`DataError`] if the row does not have it."""
    if column not in row:
        reason = f"no column `{column}`, which {option} names; the columns are {_listed(row)}; name one of them"
        raise DataError(reason, column)
    return column


def no_text(row: Row) -> DataError:
    """Returns the error about a row of no known form."""
    advice = "name the columns with text_column and image_column"
    return DataError(f"no text column; the columns are {_listed(row)}, expected {FORMS}; {advice}")


def _listed(row: Row) -> str:
    return ", ".join(map(str, row)) or "none"
