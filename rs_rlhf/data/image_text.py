"""Image-text rows: captions, questions with answers, and conversations become groups that can be scored.

The first of these columns that a row has determines its form: `conversations` of `{from, value}` as in ShareGPT and
LLaVA, `messages` of `{role, content}`, a question (`prompt`, `question`, `query`, `instruction`) with its answer
(`completion`, `answer`, `response`, `output`, `ground_truth`), a list `captions`, or one text `caption`, `text`,
`title` (OpenCLIP) or `txt` (WebDataset). A row without an image is text-only.

A row that cannot be used has an `error`, so that one bad row in a million does not end the run. Image files are
located, not opened. Left out: preference rows (`preferences`), images in answers, tool calls, image URLs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from ..errors import DataError, RSRLHFError
from .columns import (
    ANSWER_COLUMNS,
    CAPTION_COLUMNS,
    FORMS,
    TURN_COLUMNS,
    URL,
    Columns,
    as_word,
    image_column,
    label_of,
    no_text,
    question_and_answer,
    text_column,
)
from .forms import form_of, is_preference, row_prompt
from .group import (
    Group,
    ImageSource,
    Message,
    Row,
    as_number,
    check_completion,
    check_text,
    completion_text,
    make_group,
    messages_of,
    short,
    turns_of,
)
from .placed_images import stored_image


@dataclass
class ImageTextRow:
    """One row of image-text data: its id `"FILE:NUMBER"`, what is scored, its images, and the row as stored.

    The captions of an image are the completions of one group, whose prompt is an empty user turn with the image; a
    question with its answer is a group of one; a conversation is `whole`, to be kept or dropped as one, and a group of
    one for every assistant turn, its prompt all turns before. Images are paths of existing files inside the image
    root, or `{"bytes", "path"}`. `weight` is that of its texts in training, if a column of weights is named. `error`
    says why a row cannot be used; `groups` and `images` are empty then.
    """

    row_id: str
    groups: list[Group]
    whole: bool
    images: list[ImageSource]
    source: str
    label: str
    raw: Any
    error: DataError | None = field(default=None, compare=False)
    weight: float | None = None

    @property
    def texts(self) -> list[str]:
        """The texts of all completions in order; `text_index` counts them."""
        return [completion_text(completion) for group in self.groups for completion in group.completions]


def image_text_row(
    raw: object,
    row_id: str,
    *,
    root: str,
    where: str = "",
    source: str = "",
    columns: Columns | None = None,
    labels: Mapping[str, Sequence[str]] | None = None,
) -> ImageTextRow:
    """Turns a stored row into an [`ImageTextRow`]; a mistake in it, or a [`DataError`] in its place, becomes its
    `error`.

    Relative image paths start from `root`, which none may leave; `source` is that of a row that names none. A named
    column must be in every row (null: no image); one of texts determines the form by its value. `labels` are the names
    of the classes of columns that hold numbers.
    """
    columns = columns or Columns()
    row = ImageTextRow(row_id, [], False, [], source, "", raw)
    number = row_id.rpartition(":")[2]
    try:
        if isinstance(raw, DataError):
            raise raw
        if not isinstance(raw, Mapping):
            raise DataError(f"the row is {short(raw)}, expected an object with an image and {FORMS}")
        fields = columns.of(raw)
        if columns.text is None and is_preference(fields):
            check_form(fields, columns)
        row.source, row.label = as_word(fields.get("source")) or source, as_word(label_of(fields, labels))
        meta: dict[str, Any] = {"source": row.source, "row": int(number) if number.isdecimal() else -1, "where": where}
        if name := columns.given.get("weight"):
            row.weight = row_weight(fields["weight"], name)
        key = image_column(fields, root)
        form = _form(fields, columns)
        given = None if key is None else fields[key]
        row.whole = form.turns is not None
        if form.turns is None:
            groups = [make_group(form.prompt, form.texts, given, **meta)]
        else:
            groups = _conversation(form.turns, form.start, given, meta)
        check_text(completion_text(groups[-1].prompt), form.question)  # it has the prompts of all turns
        for completion in [completion for group in groups for completion in group.completions]:
            check_completion(completion, form.column)
        # The last group has every image that any group has, in the order of the placeholders.
        for image in groups[-1].images:
            if isinstance(image, str) and URL.match(image):
                raise DataError(f"image {image[:100]!r} is a URL; download the images and give their paths", "image")
        images: list[ImageSource] = [stored_image(image, where, root) for image in groups[-1].images]
        for group in groups:
            group.images = images[: len(group.images)]
        row.groups, row.images = groups, images
    except RSRLHFError as error:
        row.error = DataError(error.detail.removeprefix(f"{where}: "), error.key, where)
    return row


def row_weight(value: object, key: str) -> float:
    """Returns a row's weight, the value of its column `key`; a [`DataError`] if it is no finite number from 0 on."""
    weight = as_number(value)
    if weight is None or weight < 0:
        raise DataError(f"`{key}` is {short(value)}, expected a weight: a finite number, 0 or more", key)
    return weight


def text_list(row: Row, columns: Columns | None = None) -> str | None:
    """Returns the column whose list holds a row's texts one by one; `None` if the row has one text or turns."""
    columns = (columns or Columns()).texts
    key = columns.given[columns.text] if columns.text else text_column(columns.of(row)) or ""
    value = row.get(key)
    listed = isinstance(value, (list, tuple)) and not _turns(value) and bool(columns.text or key == "captions")
    return key if listed else None


def with_texts(row: Row, kept: Collection[int], columns: Columns | None = None) -> Row:
    """Returns a row with the `kept` indices of its [`ImageTextRow`]'s `texts`; the row itself if all are kept.

    [`DataError`] if the row has no such text, or only some turns of a conversation are to be kept.
    """
    key, columns = text_list(row, columns), (columns or Columns()).texts
    count = 1 if key is None else len(row[key])
    if key is None and (form := _form(columns.of(row), columns)).turns is not None:
        count = sum(turn.get("role") == "assistant" for turn in form.turns[form.start :])
    if set(kept) == set(range(count)):
        return row
    if key is None or not set(kept) < set(range(count)):
        reason = "only those of a list can be kept one by one; keep or drop the row as a whole"
        raise DataError(f"the texts {sorted(kept)} are to be kept of {count}, but {reason}", key or "")
    return {**row, key: [text for i, text in enumerate(row[key]) if i in kept]}


def _turns(value: object) -> TypeGuard[Sequence[Row]]:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(turn, Mapping) for turn in value)


@dataclass
class _Form:
    """The texts of a row that answer one prompt, or the turns of a conversation, images still in their parts.

    `column` or `question` is at fault if a text cannot be used. Turns before `start` are a prompt, whose assistant
    turns are no answers.
    """

    column: str
    texts: list[str] = field(default_factory=list)
    prompt: str = ""
    turns: list[Message] | None = None
    start: int = 0
    question: str = "prompt"


def check_form(row: Row, columns: Columns) -> None:
    """Raises [`DataError`] if a row, or one of a file's columns without their values, is of no form of image-text."""
    fields = columns.of(row)
    if columns.text is None and is_preference(fields):
        reason = f"{form_of(fields)}, of which it is not said which text is meant"
        raise DataError(f"{reason}; use `rs-rlhf reward`, or name the texts, as in --columns text=chosen", "chosen")
    if columns.text is None and text_column(fields) is None:
        raise no_text(row)


def _form(row: Row, columns: Columns) -> _Form:
    key = columns.text or text_column(row)
    if key is None:
        named = [column for column in (*TURN_COLUMNS, *ANSWER_COLUMNS, *CAPTION_COLUMNS) if column in row]
        if not named:
            check_form(row, Columns())
        reason = f"`{named[0]}` is null or its question is; write it or remove the row"
        raise DataError(f"the text is missing: {reason}", named[0])
    value = row.get(key)
    if columns.text is not None:
        name = columns.given[key]
        if _turns(value) or isinstance(value, Mapping):
            return _Form(name, turns=_messages(value, name), question=name)
        return _Form(name, _texts(value, name))
    if key in TURN_COLUMNS:
        return _Form(key, turns=_messages(row_prompt(row), key), question=key)
    if asked := question_and_answer(row):
        return _pair(asked[0], value if key == "text" else row_prompt(row), asked[1], row[asked[1]])
    if key == "captions" and isinstance(value, str):
        raise DataError("`captions` is one text, expected a list of texts; a single one is `caption`", key)
    if key != "captions" and not isinstance(value, str):
        raise DataError(f"`{key}` is {short(value)}, expected a text; several are a list `captions`", key)
    return _Form(key, _texts(value, key))


def _pair(key: str, question: object, answer_key: str, answer: object) -> _Form:
    """A question and its answer, or turns and the turns that complete them."""
    if _turns(question) or _turns(answer):
        question = [{"role": "user", "content": question}] if isinstance(question, str) else question
        answer = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
        before = _messages(question, key)
        turns = [*before, *_messages(answer, answer_key)]
        return _Form(answer_key, turns=turns, start=len(before), question=key)
    if isinstance(answer, (int, float)) and not isinstance(answer, bool):
        answer = str(answer)
    if not isinstance(question, str) or not isinstance(answer, str):
        name, value = (answer_key, answer) if isinstance(question, str) else (key, question)
        raise DataError(f"`{name}` is {short(value)}, expected a text; write it as one", name)
    return _Form(answer_key, [answer], question, question=key)


def _texts(value: object, key: str) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"`{key}` is {short(value)}, expected a text, a list of texts or a list of turns", key)
    if not texts:
        raise DataError(f"`{key}` is an empty list, expected one or more texts; write some or remove the row", key)
    return list(texts)


def _messages(value: object, key: str) -> list[Message]:
    """Turns in the normal form."""
    turns = turns_of(value) if isinstance(value, Mapping) else value
    if not _turns(turns):
        expected = "expected a list of turns {from, value} or {role, content}"
        raise DataError(f"`{key}` is {short(value)}, {expected}", key)
    return messages_of(turns, key, "user")


def _conversation(turns: list[Message], start: int, images: object, meta: Mapping[str, Any]) -> list[Group]:
    """One group for every assistant turn from `start` on."""
    turns = [*turns]
    first = next((i for i, message in enumerate(turns) if message.get("role") != "system"), 0)
    if turns[first].get("role") == "assistant":  # it describes the images, so they belong before it
        turns.insert(first, {"role": "user", "content": ""})
        start += first < start
    normal = make_group(turns, [], images, **meta)
    groups: list[Group] = []
    for i, turn in enumerate(normal.prompt):
        if turn["role"] != "assistant" or i < start:
            continue
        if any(part["type"] == "image" for part in turn["content"]):
            reason = "has an image placeholder; images belong to the turns of the user, move or remove it"
            raise DataError(f"an assistant turn {reason}", "images")
        seen = sum(part["type"] == "image" for message in normal.prompt[:i] for part in message["content"])
        groups.append(Group(normal.prompt[:i], [[turn]], normal.images[:seen], **meta))
    if not groups:
        raise DataError("the conversation has no assistant turn, so nothing to score; add it or remove the row")
    return groups
