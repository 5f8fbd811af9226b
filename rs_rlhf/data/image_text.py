"""Image-text rows: captions, questions with answers, and conversations become groups that can be scored.

Forms, told by their columns (the first that is there): `conversations` of `{from, value}` as in ShareGPT and LLaVA,
`messages` of `{role, content}`, TRL's `prompt` with `completion`, `question` with `answer`, a list `captions`, or one
text `caption`, `text`, `title` (OpenCLIP) or `txt` (WebDataset). Images are in `image`, `images`, `filepath` or a
column named like an image file's suffix; a row without any is text-only. `image_text_files` reads the rows of files.

A row that cannot be used is not an exception: it comes with its `error`, so that one bad row in a million is counted
and shown instead of ending the work. Images are found, not opened. Left out: preference rows (see `data`), images in
answers, tool calls, image URLs.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import DataError, ImageError
from .captioned_images import stored_image
from .group import Group, completion_text, make_group, short

IMAGE_COLUMNS = ("image", "images", "filepath", "jpg", "jpeg", "png", "webp", "tif", "tiff")
TEXT_COLUMNS = ("captions", "txt", "caption", "text", "title")
# A set with one of these and none of the above was meant to have images: not to be taken for text.
UNREAD_IMAGE_COLUMNS = (
    "image_name",
    "image_path",
    "image_file",
    "image_url",
    "image_bytes",
    "img",
    "img_path",
    "file_name",
    "img_name",
)
FORMS = "conversations, messages, prompt + completion, question + answer, captions, caption, text or title"
_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}


@dataclass
class ImageTextRow:
    """One row of image-text data.

    Args:
        row_id (`str`): `"FILE:NUMBER"`, the file relative to the input and the record's number in it, from 0.
        groups (`list[Group]`): What is scored. The captions of an image are the completions of one group, whose prompt
            is an empty user turn with the image; a question with its answer is a group of one; a conversation is a
            group of one for every assistant turn, its prompt all turns before.
        whole (`bool`): A conversation, to be kept or dropped as a whole; other rows' texts can be kept one by one.
        images (`list`): Unread sources: paths of existing files inside the image root, or `{"bytes", "path"}`.
        source (`str`): The row's `source`, else the file's stem.
        label (`str`): The row's `label` or `class` in words of the file, `""` where there is none.
        raw: The row as stored.
        error (`DataError`, *optional*): Why the row cannot be used; `groups` and `images` are empty then.
    """

    row_id: str
    groups: list[Group]
    whole: bool
    images: list[Any]
    source: str
    label: str
    raw: Any
    error: DataError | None = field(default=None, compare=False)

    @property
    def texts(self) -> list[str]:
        """All completions' texts in order; the place of one is its `text_index`."""
        return [completion_text(completion) for group in self.groups for completion in group.completions]


def image_text_row(
    raw: Any,
    row_id: str,
    *,
    root: str,
    where: str = "",
    source: str = "",
    image_column: str | None = None,
    text_column: str | None = None,
    labels: Mapping[str, Sequence[str]] | None = None,
) -> ImageTextRow:
    """Turns a stored row into an [`ImageTextRow`]; what is wrong with it becomes its `error`.

    Args:
        raw: The row, an object with the columns of one of the forms above; a [`DataError`] becomes the row's error.
        row_id (`str`): As in [`ImageTextRow`].
        root (`str`): Folder that relative image paths start from and that none may leave.
        where (`str`): File and row for messages.
        source (`str`): The source of a row that names none.
        image_column (`str`, *optional*): Column of the image or images; every row must then have it (null: no image).
        text_column (`str`, *optional*): Column of the texts; what it holds tells the form.
        labels (mapping, *optional*): Names of the classes of columns that hold numbers.
    """
    columns = raw if isinstance(raw, Mapping) else {}
    row = ImageTextRow(row_id, [], False, [], _word(columns.get("source")) or source, _label(columns, labels), raw)
    meta = {"source": row.source, "row": _number(row_id), "where": where}
    try:
        if isinstance(raw, DataError):
            raise raw
        if not isinstance(raw, Mapping):
            raise DataError(f"the row is {short(raw)}, expected an object with an image and {FORMS}")
        images = row_images(raw, image_column)
        texts, row.whole = _form(raw, text_column)
        groups = _conversation(texts, images, meta) if row.whole else [make_group(texts[0], texts[1], images, **meta)]
        _check_texts(groups, texts[2] if not row.whole else text_column or "conversation")
        # The last group has seen every image that any group sees, in the order of the placeholders.
        found = [_found(image, where, root) for image in groups[-1].images]
        for group in groups:
            group.images = found[: len(group.images)]
        row.groups, row.images = groups, found
    except (DataError, ImageError, ValueError) as error:
        detail = error.detail if isinstance(error, DataError) else str(error).removeprefix(f"{where}: ")
        row.error = DataError(detail, getattr(error, "key", ""), where)
    return row


def row_images(row: Mapping[str, Any], image_column: str | None = None) -> Any:
    """Returns what a row's image column holds, `None` for a text-only row.

    Raises:
        DataError: There is no such column, two columns hold images, or only one that is not known to be an image.
    """
    if image_column is not None:
        _require(row, image_column, "image_column")
        return row[image_column]
    found = [key for key in IMAGE_COLUMNS if row.get(key) is not None]
    if len(found) > 1:
        raise DataError(f"both `{found[0]}` and `{found[1]}` hold images; name one with image_column", found[1])
    unread = next((key for key in UNREAD_IMAGE_COLUMNS if row.get(key) is not None), None)
    if not found and unread is not None and not any(key in row for key in IMAGE_COLUMNS):
        raise DataError(f"`{unread}` is not read by itself; say that it holds the image with image_column", unread)
    return row[found[0]] if found else None


def check_columns(columns: Sequence[str], where: str, image_column: str | None, text_column: str | None) -> None:
    """Checks a whole file's columns, where they are known beforehand.

    Raises:
        DataError: The texts, or what `image_column` names, are not among them, or no image is but for an unread one.
    """
    row = dict.fromkeys(columns, "")
    try:
        if image_column is not None or not any(key in row for key in IMAGE_COLUMNS):
            row_images(row, image_column)
        if text_column is not None:
            _require(row, text_column, "text_column")
        elif not _form_column(row):
            raise _no_text(row)
    except DataError as error:
        raise DataError(error.detail, error.key, where) from None


def text_list(row: Mapping[str, Any], text_column: str | None = None) -> str | None:
    """Returns the column whose list holds a row's texts one by one; `None` if the row has one text or turns."""
    key = text_column or _form_column(row)
    value = row.get(key)
    listed = isinstance(value, (list, tuple)) and not _turns(value) and bool(text_column or key == "captions")
    return key if listed else None


def with_texts(row: Mapping[str, Any], kept: Collection[int], text_column: str | None = None) -> Mapping[str, Any]:
    """Returns a row that keeps only some of its texts: itself if that is all of them, else a changed copy.

    Args:
        row (`dict`): A stored row that can be used. Its other columns stay as they are.
        kept (collection of `int`): Places of the texts that stay, as in [`ImageTextRow`]'s `texts`.
        text_column (`str`, *optional*): As for [`image_text_row`].

    Raises:
        DataError: The row has no such text, or its texts cannot be told apart because they are turns.
    """
    key = text_list(row, text_column)
    count = len(row[key]) if key is not None else _count(row, text_column)
    if set(kept) == set(range(count)):
        return row
    if key is None or not set(kept) < set(range(count)):
        raise DataError(
            f"the texts {sorted(kept)} are to be kept of {count}, but only those of a list can be kept "
            "one by one; keep or drop the row as a whole",
            key or "",
        )
    return {**row, key: [text for i, text in enumerate(row[key]) if i in kept]}


_PAIRS = {"prompt": "completion", "question": "answer"}


def _form_column(row: Mapping[str, Any]) -> str:
    """The column that tells a row's form, `""` if none of a known form is there."""
    for key in ("conversations", "messages", *_PAIRS, *TEXT_COLUMNS):
        if row.get(key) is not None and (key not in _PAIRS or row.get(_PAIRS[key]) is not None):
            return key
    return ""


def _number(row_id: str) -> int:
    number = row_id.rpartition(":")[2]
    return int(number) if number.isdecimal() else -1


def _word(value: Any) -> str:
    return str(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else ""


def _label(row: Mapping[str, Any], labels: Mapping[str, Sequence[str]] | None) -> str:
    key = next((key for key in ("label", "class") if row.get(key) is not None), "")
    value, names = row.get(key), (labels or {}).get(key, ())
    if type(value) is int and names:  # HF writes -1 where the class is not known
        return names[value] if 0 <= value < len(names) else ""
    return _word(value)


def _require(row: Mapping[str, Any], column: str, option: str) -> None:
    if column not in row:
        raise DataError(
            f"no column `{column}`, which {option} names; the columns are "
            f"{', '.join(map(str, row)) or 'none'}; name one of them",
            column,
        )


def _no_text(row: Mapping[str, Any]) -> DataError:
    return DataError(
        f"no text column; the columns are {', '.join(map(str, row)) or 'none'}, expected {FORMS}; name "
        "the columns with text_column and image_column"
    )


def _turns(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(one, Mapping) for one in value)


def _form(row: Mapping[str, Any], text_column: str | None) -> tuple[list[Any], bool]:
    """`(messages, True)` of a conversation, `([prompt, completions, column], False)` of other rows."""
    if text_column is not None:
        _require(row, text_column, "text_column")
        value = row[text_column]
        if _turns(value) or isinstance(value, Mapping):
            return _messages(value, text_column), True
        return ["", _texts(value, text_column), text_column], False
    key = _form_column(row)
    value = row.get(key)
    if not key:
        named = [one for one in ("conversations", "messages", *_PAIRS.values(), *TEXT_COLUMNS) if one in row]
        if not named:
            raise _no_text(row)
        raise DataError(
            f"the text is missing: `{named[0]}` is null or its question is; write it or remove the row", named[0]
        )
    if key in ("conversations", "messages"):
        return _messages(value, key), True
    if key in _PAIRS:
        return _pair(key, value, _PAIRS[key], row[_PAIRS[key]])
    if key == "captions" and isinstance(value, str):
        raise DataError("`captions` is one text, expected a list of texts; a single one is `caption`", key)
    if key != "captions" and not isinstance(value, str):
        raise DataError(f"`{key}` is {short(value)}, expected a text; several are a list `captions`", key)
    return ["", _texts(value, key), key], False


def _count(row: Mapping[str, Any], text_column: str | None) -> int:
    """How many texts a usable row has that is not a list of them."""
    turns, whole = _form(row, text_column)
    start = turns.index(None) if None in turns else 0
    return sum(turn.get("role") == "assistant" for turn in turns[start:] if turn) if whole else 1


def _pair(key: str, asked: Any, answer_key: str, said: Any) -> tuple[list[Any], bool]:
    """A question and its answer, or turns and the turns that complete them (`None` is put between)."""
    if _turns(asked) or _turns(said):
        asked = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        said = [{"role": "assistant", "content": said}] if isinstance(said, str) else said
        return [*_messages(asked, key), None, *_messages(said, answer_key)], True
    for name, value in ((key, asked), (answer_key, said)):
        if not isinstance(value, str):
            raise DataError(f"`{name}` is {short(value)}, expected a text; write it as one", name)
    return [asked, [said], answer_key], False


def _texts(value: Any, key: str) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"`{key}` is {short(value)}, expected a text, a list of texts or a list of turns", key)
    if not texts:
        raise DataError(f"`{key}` is an empty list, expected one or more texts; write some or remove the row", key)
    return list(texts)


def _messages(value: Any, key: str) -> list[dict]:
    """Turns as messages `{role, content}`; those of `{from, value}` are renamed."""
    if isinstance(value, Mapping) and value and all(isinstance(column, (list, tuple)) for column in value.values()):
        value = [dict(zip(value, turn, strict=False)) for turn in zip(*value.values(), strict=False)]  # HF `Sequence`
    if not _turns(value):
        raise DataError(
            f"`{key}` is {short(value)}, expected a list of turns {{from, value}} or {{role, content}}", key
        )
    messages = []
    for turn in value:
        if turn.get("from") is None or "value" not in turn:
            messages.append(dict(turn))  # `make_group` checks `role` and `content`
            continue
        role, text = _ROLES.get(turn["from"]) if isinstance(turn["from"], str) else None, turn["value"]
        if role is None:
            raise DataError(f"`{key}` has a turn from {short(turn['from'])}, expected one of {', '.join(_ROLES)}", key)
        if not isinstance(text, str):
            raise DataError(f"`{key}` has a turn with the value {short(text)}, expected a text", key)
        messages.append({"role": role, "content": text})
    return messages


def _conversation(messages: list[Any], images: Any, meta: Mapping[str, Any]) -> list[Group]:
    """One group for every assistant turn; of a prompt with its completion (`None` is between), for those after it."""
    start = messages.index(None) if None in messages else 0
    turns = [message for message in messages if message is not None]
    place = next((i for i, message in enumerate(turns) if message.get("role") != "system"), 0)
    if turns[place].get("role") == "assistant":  # it says something about the images: they belong before it
        turns.insert(place, {"role": "user", "content": ""})
        start += place < start
    normal = make_group(turns, [], images, **meta)
    groups: list[Group] = []
    for i, turn in enumerate(normal.prompt):
        if turn["role"] != "assistant" or i < start:
            continue
        if any(part["type"] == "image" for part in turn["content"]):
            raise DataError(
                "an assistant turn has an image placeholder; images belong to the turns of the user, move "
                "or remove it",
                "images",
            )
        seen = sum(part["type"] == "image" for message in normal.prompt[:i] for part in message["content"])
        groups.append(Group(normal.prompt[:i], [[turn]], normal.images[:seen], **meta))
    if not groups:
        raise DataError("the conversation has no assistant turn, so nothing to score; add it or remove the row")
    return groups


def _check_texts(groups: Sequence[Group], key: str) -> None:
    for group in groups:
        for completion in group.completions:
            text = completion_text(completion)
            if not text.strip():
                raise DataError(f"`{key}` has an empty text; write it or remove it", key)
        for message in [*group.prompt, *(m for completion in group.completions for m in completion)]:
            try:
                completion_text([message]).encode()
            except UnicodeEncodeError:
                raise DataError(
                    f"`{key}` has characters that are no text (not UTF-8, or half a surrogate pair); save "
                    "it as UTF-8 or remove the row",
                    key,
                ) from None


def _found(image: Any, where: str, root: str) -> Any:
    if isinstance(image, str) and re.match(r"(?i)[a-z][a-z0-9+.-]*://|(data|file):", image):
        raise DataError(f"image {image[:100]!r} is a URL; download the images and give their paths", "image")
    if isinstance(image, (str, bytes, dict)):
        return stored_image(image, where, root)
    raise DataError(f"the image is a {type(image).__name__}, expected a path, bytes or {{bytes, path}}", "image")
