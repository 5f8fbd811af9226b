"""Column resolver: which columns of a row hold the image or images, the texts, and the class.

Images are told by values: a column holds one if its value is a picture, or encoded bytes, or a text that ends like an
image file or is an existing file. Known names come first, and columns that the caller names before all. Texts and
classes are told by their names. Left out: images inside nested values, other than those of messages.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..errors import DataError, OptionError
from ..imagery.options import IMAGE_SUFFIXES, with_sensor
from ..options import option

if TYPE_CHECKING:
    from .group import Row

IMAGE_COLUMNS = ("image", "images", "filepath", "jpg", "jpeg", "png", "webp", "tif", "tiff")
# Names that say that the data were meant to have images, should the values not look like some.
CLAIMED_COLUMNS = (
    *IMAGE_COLUMNS,
    *"image_name image_path image_file image_url image_bytes img img_path img_name file_name filename".split(),
)
TURN_COLUMNS = ("conversations", "messages")
QUESTION_COLUMNS = ("prompt", "question", "query", "instruction")
ANSWER_COLUMNS = ("completion", "answer", "response", "output", "ground_truth")
CAPTION_COLUMNS = ("captions", "txt", "caption", "text", "title")
LABEL_COLUMNS = ("label", "class")
FORMS = "conversations, messages, prompt + completion, question + answer, captions, caption, text or title"
# Columns that tell more about an image than its captions and its class.
MORE_THAN_CAPTIONS = {*TURN_COLUMNS, *ANSWER_COLUMNS, "text", "title", "txt"}
TEXT_COLUMNS = (*TURN_COLUMNS, *QUESTION_COLUMNS, *ANSWER_COLUMNS, *CAPTION_COLUMNS)
PREFERENCE_COLUMNS = ("chosen", "rejected", "rejected_response", "margin", "preference", "human_ranking")
FIELDS = (
    *IMAGE_COLUMNS[:2],
    *TEXT_COLUMNS,
    *PREFERENCE_COLUMNS,
    *LABEL_COLUMNS,
    *"solution choices reward_type source kind id sensor system input type types boxes size weight".split(),
)
_PROSE = {*TEXT_COLUMNS, *PREFERENCE_COLUMNS, *LABEL_COLUMNS, "solution", "choices", "system", "input"}
_ASIDE = ("id", "source", "url", "__key__")  # hold an image only if no other column does
_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM", b"GIF8", b"\0\0\0\x0cjP")
URL = re.compile(r"(?i)[a-z][a-z0-9+.-]*://|(data|file):")


@dataclass(frozen=True)
class Columns:
    """The columns of some rows: those that the caller has named, and the image column that was found by its values.

    `given` maps fields to columns, as in `{"image": "filename"}`; a field without a column is not read.
    """

    given: Mapping[str, str] = field(default_factory=dict)
    found: str = ""

    @property
    def text(self) -> str | None:
        """The field of the texts whose column is named: its value tells its form."""
        return next((key for key in CAPTION_COLUMNS if self.given.get(key)), None)

    @property
    def text_only(self) -> bool:
        """Whether images are not to be read."""
        return self.given.get("image") == ""

    @property
    def texts(self) -> Columns:
        """The columns without those of images, for rows of which only the texts are there."""
        return Columns(
            {name: column for name, column in self.given.items() if name not in ("image", "images", "sensor")}
        )

    def of(self, row: Row) -> Row:
        """Returns a row by its fields, `{field: value}`: columns that are named elsewhere, or left out, are gone.

        [`DataError`] if it does not have a column that the caller has named.
        """
        if self.found and is_missing(row.get(self.found)):
            return Columns(self.given).of(row)
        if not self.given and not self.found:
            return row
        taken = {*self.given.values(), self.found, *self.given}
        if self.text:
            taken |= {*TEXT_COLUMNS}
        if self.found or {"image", "images"} & set(self.given):
            taken |= {*IMAGE_COLUMNS}
        fields = {key: value for key, value in row.items() if key not in taken}
        if self.text_only:
            fields = {
                key: value
                for key, value in fields.items()
                if key not in CLAIMED_COLUMNS and (key in _PROSE or not is_image(value))
            }
        for name, column in self.given.items():
            if column and column not in row:
                reason = f"no column `{column}`, which is named for `{name}`; the columns are {listed(row)}"
                raise DataError(f"{reason}; name one of them", column)
            fields |= {name: row[column]} if column else {}
        fields = {**fields, "image": row[self.found]} if self.found else fields
        key = image_column(fields) if self.given.get("sensor") else None
        return fields if key is None else {**fields, key: of_sensor(fields[key], fields["sensor"])}


def of_sensor(images: Any, sensor: object) -> Any:
    """Returns images whose paths name their sensor; a list of sensors has one for each image, a null names none."""
    if isinstance(sensor, (list, tuple)):
        several = images if isinstance(images, (list, tuple)) else [images]
        if len(several) != len(sensor):
            raise DataError(f"{len(sensor)} sensors of {len(several)} images, expected one, or one for each", "sensor")
        return [of_sensor(*pair) for pair in zip(several, sensor, strict=True)]
    if isinstance(images, (list, tuple)):
        return [of_sensor(image, sensor) for image in images]
    if sensor is None or sensor == "":
        return images
    if isinstance(sensor, bool) or not isinstance(sensor, (str, int)):
        raise DataError(f"`sensor` is {sensor!r:.60}, expected a name, or a list of them", "sensor")
    if isinstance(images, str):
        return with_sensor(images, str(sensor))
    if isinstance(images, bytes):
        return {"bytes": images, "path": with_sensor("", str(sensor))}
    if isinstance(images, Mapping):
        return {**images, "path": with_sensor(images.get("path") or "", str(sensor))}
    raise DataError(f"a {type(images).__name__} in memory has no path to name its sensor; give bytes", "sensor")


def is_missing(value: object) -> bool:
    """Whether a value is null, or NaN, which `pandas` takes for null. An empty text is a mistake, not a null."""
    if isinstance(value, Mapping) and set(value) == {"bytes", "path"}:
        return value["bytes"] is None and value["path"] is None
    return value is None or isinstance(value, float) and value != value


def is_image(value: object) -> bool:
    """Whether a value looks like one or more images: pictures, encoded bytes, or names of image files."""
    if isinstance(value, str):
        if len(value) >= 1000 or "\n" in value:
            return False
        path = value.split("?")[0] if URL.match(value) else value
        return any(os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES for name in (path, path.rpartition("#")[0]))
    if isinstance(value, bytes):
        return value.startswith(_MAGIC) or value[8:12] == b"WEBP"
    if isinstance(value, Mapping):
        embedded = value.get("bytes") is not None
        return set(value) <= {"bytes", "path"} and (embedded or is_image(value.get("path")))
    if isinstance(value, (list, tuple)):
        return len(value) > 0 and all(map(is_image, value))
    return hasattr(value, "getbands") or getattr(value, "ndim", 0) == 3


def image_column(row: Row, root: str = "") -> str | None:
    """Returns the column of the image or images, `None` for a text-only row, see [`is_missing`].

    With a `root`, a text that names an image file in it is an image as well, whatever its suffix. [`DataError`] if
    several columns hold images, and no name tells which one is meant.
    """
    known = [key for key in IMAGE_COLUMNS if not is_missing(row.get(key))]
    if any(row[key] == [] for key in known if isinstance(row[key], (list, tuple))):
        known = [key for key in known if is_image(row[key])] or known[:1]
        return known[0] if len(known) == 1 else _one_of(row, known)
    if likely := [key for key in known if is_image(row[key])]:
        return _one_of(row, likely)
    others = [key for key in row if key not in IMAGE_COLUMNS and key not in _PROSE and key]
    likely = [key for key in others if is_image(row[key])]
    if not likely and root:
        likely = [key for key in others if _is_file(row[key], root)]
    if likely:
        return _one_of(row, likely)
    claimed = [key for key in CLAIMED_COLUMNS if not is_missing(row.get(key))]
    return _one_of(row, known or claimed) if claimed else None


def _one_of(row: Row, keys: Sequence[str]) -> str:
    """The column that is meant of several that hold images: stored content before names, names before URLs and ids."""
    stored = [key for key in keys if not _is_name(row[key])]
    local = [key for key in keys if not (isinstance(row[key], str) and URL.match(row[key]))]
    for some in (stored, [key for key in local if key not in _ASIDE], local):
        if len(some) == 1:
            return some[0]
    if len({repr(row[key]) for key in keys}) > 1:
        advice = f"name one of them with --columns image={keys[0]}"
        raise DataError(f"both `{keys[0]}` and `{keys[1]}` hold images; {advice}", keys[1])
    return keys[0]


def _is_name(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_name, value))
    return isinstance(value, str) or isinstance(value, Mapping) and value.get("bytes") is None


def _is_file(value: object, root: str) -> bool:
    if not isinstance(value, str) or not 0 < len(value) < 256 or "\n" in value or "\0" in value:
        return False
    path = os.path.join(root, value)
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return is_image(file.read(16))


def find_columns(rows: Iterable[Row], columns: Mapping[str, str] | Columns | None = None, root: str = "") -> Columns:
    """Finds the image column of a source in its first rows, unless it is named.

    Args:
        rows (iterable of `dict`): The first rows, as stored.
        columns (`dict`, *optional*): Columns by the fields that they hold, as in [`Columns`].
        root (`str`): Folder that image paths start from.

    Raises:
        DataError: Several columns hold images.
        OptionError: A field that is not known.
    """
    if isinstance(columns, Columns):
        return columns
    known = Columns(parse_columns(columns))
    if {"image", "images"} & set(known.given):
        return known
    keys = {image_column(known.of(row), root) for row in rows} - {None}
    if not keys or keys & set(CLAIMED_COLUMNS):
        return known
    first, *more = sorted(map(str, keys))
    if more:
        advice = f"name one of them with --columns image={first}"
        raise DataError(f"both `{first}` and `{more[0]}` hold images; {advice}", more[0])
    return replace(known, found=first)


def parse_columns(given: Mapping[str, str] | Sequence[str] | None) -> dict[str, str]:
    """Turns `["image=filename", …]` into `{"image": "filename", …}`; an [`OptionError`] names a field that is not
    known, or named twice.
    """
    pairs = given.items() if isinstance(given, Mapping) else [text.partition("=")[::2] for text in given or ()]
    columns: dict[str, str] = {}
    for name, column in pairs:
        if name not in FIELDS or not isinstance(column, str):
            raise OptionError(
                f"--columns has `{name}={column}`, expected FIELD=COLUMN with a FIELD of {', '.join(FIELDS)}.",
                "columns",
            )
        if columns.setdefault(name, column) != column:
            raise OptionError(f"the column of `{name}` is named twice; name it once.", "columns")
    return columns


def text_column(row: Row) -> str | None:
    """Returns the column that tells a row's form, the first of [`FORMS`] with a value."""
    if turns := next((key for key in TURN_COLUMNS if row.get(key) is not None), None):
        return turns
    if asked := question_and_answer(row):
        return asked[0]
    return next((key for key in CAPTION_COLUMNS if row.get(key) is not None), None)


def question_and_answer(row: Row) -> tuple[str, str] | None:
    """Returns the columns of a question and its answer, `None` if one is missing.

    A `text` beside a right answer is a question, as in the data of benchmarks.
    """
    answer = next((key for key in ANSWER_COLUMNS if row.get(key) is not None), None)
    questions = (*QUESTION_COLUMNS, "text") if answer in ("ground_truth", "answer") else QUESTION_COLUMNS
    question = next((key for key in questions if row.get(key) is not None), None)
    return (question, answer) if question and answer else None


def caption_column(row: Row) -> str | None:
    """Returns the column of an image's captions or caption, `None` if none has a value."""
    return next((key for key in CAPTION_COLUMNS if row.get(key)), None)


def label_of(row: Row, names: Mapping[str, Sequence[str]] | None = None) -> str | int | float | None:
    """Returns the class of a row, by its name if the numbers of its column have `names`; `None` if it is not known."""
    key = next((key for key in LABEL_COLUMNS if row.get(key) is not None), None)
    if key is None:
        return None
    value, known = row[key], (names or {}).get(key, ())
    if type(value) is int and known:  # HF writes -1 where the class is not known
        return known[value] if 0 <= value < len(known) else None
    return value


def as_word(value: object) -> str:
    """Returns a text or number as text, `""` for anything else."""
    return str(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else ""


def no_text(row: Row) -> DataError:
    """Returns the error about a row of no known form."""
    advice = "name the columns, as in --columns image=COLUMN caption=COLUMN"
    return DataError(f"no text column; the columns are {listed(row)}; expected {FORMS}; {advice}")


def listed(row: Row) -> str:
    """Returns the names of a row's columns for a message."""
    return ", ".join(map(str, row)) or "none"


@dataclass(kw_only=True)
class ColumnOptions:
    """Which columns are read, for commands that read rows."""

    columns: list[str] | None = option(
        None,
        "columns by the fields that they hold, such as image=filename chosen=better; images are told by their values",
        metavar="FIELD=COLUMN",
    )
    image_column: str | None = option(None, "the same as --columns image=COLUMN", metavar="COLUMN")
    text_column: str | None = option(None, "the same as --columns text=COLUMN", metavar="COLUMN")
    text_only: bool = option(False, "the rows have no images, or they are not to be read")

    def named_columns(self) -> dict[str, str]:
        """Returns the columns by their fields. [`OptionError`]: a field is not known, or named twice."""
        short = {"image": "" if self.text_only else self.image_column, "text": self.text_column}
        named = [*parse_columns(self.columns).items(), *short.items()]
        return parse_columns([f"{name}={column}" for name, column in named if column is not None])
