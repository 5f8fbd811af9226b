"""Conversion of rows of any known form to that of TRL, LLaVA or Label Studio, or to the documented form.

A row is read as training reads it: preferences as a group, texts (captions, questions with answers, conversations) as
groups, questions as a prompt with what is known of the answer. What a form cannot hold is an error, never dropped.

Left out: files, folders and images (`converted_files`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal, cast

from ..data import label_studio
from ..data.captioned_images import LABEL_QUESTION, class_name
from ..data.columns import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    QUESTION_COLUMNS,
    TURN_COLUMNS,
    Columns,
    image_column,
    label_of,
    no_text,
    question_and_answer,
    text_column,
)
from ..data.forms import form_of, is_preference, known_rows, no_preference, question_rows, row_prompt
from ..data.group import Group, Message, Row, check_text, completion_text, make_group, messages_of
from ..data.image_text import image_text_row
from ..data.placed_images import StoredImage, stored_image
from ..data.rows import Where
from ..errors import DataError
from .schema import group_from_row

Kind = Literal["preferences", "texts", "questions", "classes"]
Form = Literal["trl", "llava", "label-studio", "jsonl", "parquet"]
Pairs = Literal["chosen", "all"]

_USED = ("system", "history", "input")  # what a question is made of beside its own column


@dataclass
class Sample:
    """One row as it is read: its texts as groups, and what it holds beside texts and images.

    The groups share the images: `groups[-1].images` are all of them, stored images. A conversation is `whole`, a group
    for every answer. The rejected texts of an `ordered` list are in order, best to worst.
    """

    kind: Kind
    groups: list[Group]
    where: Where
    rest: dict[str, Any] = field(default_factory=dict)
    whole: bool = False
    ordered: bool = False

    @property
    def images(self) -> list[StoredImage]:
        """The images of the row."""
        return cast("list[StoredImage]", self.groups[-1].images)

    @property
    def plain(self) -> bool:
        """Whether texts say all: one question after its images, and answers of one turn."""
        (first, *others), prompt = self.groups, self.groups[0].prompt
        if others or len(prompt) != 1 or prompt[0]["role"] != "user":
            return False
        types = [part["type"] for part in prompt[0]["content"]]
        count = len(first.images)
        answers = [len(turns) == 1 and len(turns[0]["content"]) == 1 for turns in first.completions]
        return types in (["image"] * count, ["image"] * count + ["text"]) and all(answers)


def read_samples(
    row: Row, where: Where, root: str, columns: Columns, labels: Mapping[str, Sequence[str]]
) -> Iterator[Sample]:
    """Reads a row, by its fields, as training reads it; raises [`DataError`] or [`ImageError`] with its place.

    Args:
        row (`dict`): The row, as [`open_rows`] yields it.
        where ([`Where`]): Its place.
        root (`str`): Folder that image paths start from, and that none may leave.
        columns ([`Columns`]): The columns that the caller has named.
        labels (`dict`): The names of the classes of columns that hold numbers.
    """
    try:
        for sample in _samples(row, where, root, columns, labels):
            for key in (key for key in LABEL_COLUMNS if type(sample.rest.get(key)) is int and labels.get(key)):
                sample.rest[key] = label_of({key: sample.rest[key]}, labels)
            images = [stored_image(image, where, root) for image in sample.groups[-1].images]
            for group in sample.groups:
                group.images = [*images[: len(group.images)]]
            yield sample
    except DataError as error:
        raise DataError(error.detail, error.key, error.where or where) from None


def _samples(
    row: Row, where: Where, root: str, columns: Columns, labels: Mapping[str, Sequence[str]]
) -> Iterator[Sample]:
    if columns.text is None and is_preference(row):
        ordered = "ranked" in form_of(row)
        for made in known_rows(row, where):
            group = group_from_row(made, where.number, where)
            rest = _rest(made, image_column(made), "prompt", "chosen", "rejected")
            yield Sample("preferences", [group], where, rest, ordered=ordered)
        return
    if columns.text is None and ("chosen" in row or "rejected" in row):
        raise no_preference(row)
    key, asked = image_column(row, root), question_and_answer(row)
    kind = _kind(row, columns)
    if kind == "texts":
        named = Columns({columns.text: columns.text} if columns.text else {})
        options: dict[str, Any] = {"source": where.source, "columns": named, "labels": labels}
        read = image_text_row(row, f"{where.file}:{where.number}", root=root, where=where, **options)
        if read.error is not None:
            raise read.error
        texts = [columns.text] if columns.text else [text_column(row), *(asked or ())]
        used = _USED if columns.text is None and (asked or texts[0] in TURN_COLUMNS) else ()
        rest = {**_rest(row, key, *texts, *used), "source": read.source}
        yield Sample(kind, read.groups, where, rest, read.whole)
        return
    made = next(iter(question_rows(row, where))) if kind == "questions" else {**row, "prompt": LABEL_QUESTION}
    group = make_group(made["prompt"], [], None if key is None else made[key], where=where)
    check_text(completion_text(group.prompt), "prompt")
    rest = _rest(made, key, *QUESTION_COLUMNS, *_USED)
    yield Sample(kind, [group], where, rest | {"source": made.get("source") or where.source})


def kind_of(row: Row) -> Kind | None:
    """Returns what a row, by its fields, is; `None` if no form is known."""
    try:
        return "preferences" if is_preference(row) else _kind(row, Columns())
    except DataError:
        return None


def _kind(row: Row, columns: Columns) -> Kind:
    """What a row without preferences is."""
    if columns.text is not None:
        return "texts"
    if (key := text_column(row)) is not None and key in TURN_COLUMNS:
        turns = [] if isinstance(row[key], str) else messages_of(row_prompt(row), key, "user")
        return "questions" if turns and turns[-1]["role"] != "assistant" else "texts"
    if question_and_answer(row) is None and any(row.get(name) is not None for name in QUESTION_COLUMNS):
        return "questions"
    if key is not None:
        return "texts"
    if label_of(row) is None:
        raise no_text(row)
    return "classes"


def _rest(row: Row, *used: str | None) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key and key not in {*used, *IMAGE_COLUMNS, *TURN_COLUMNS}}


# --- Forms --------------------------------------------------------------------------------------------------------


def trl_rows(sample: Sample, pairs: Pairs | None = None) -> Iterator[dict[str, Any]]:
    """Yields TRL's conversational rows: `prompt` with `chosen` and `rejected`, with a `completion`, or alone.

    A row is made for every text. Of several rejected texts, `pairs` says which rows: the chosen one with each
    (`"chosen"`), or every better one with every worse one (`"all"`, for texts in order).
    """
    if sample.kind == "preferences":
        (group,) = sample.groups
        texts = group.completions
        pairs = pairs or ("all" if sample.ordered else None)
        if len(texts) > 2 and pairs is None:
            count = f"`rejected` holds {len(texts) - 1} texts, a row of TRL's form one"
            advice = "give --pairs chosen, or --pairs all if they are in order, or use --to jsonl, which keeps lists"
            raise DataError(f"{count}; {advice}", "rejected", sample.where)
        for better, worse in combinations(texts, 2) if pairs == "all" else ((texts[0], text) for text in texts[1:]):
            yield {"prompt": group.prompt, "chosen": better, "rejected": worse, "images": group.images}
        return
    for group in sample.groups:
        made = {"prompt": group.prompt, "images": group.images}
        if sample.kind != "texts":
            yield made | _solution(sample)
        for completion in group.completions:
            _check_literal(completion, sample.where)
            yield {**made, "completion": completion}


def llava_rows(sample: Sample, pairs: Pairs | None = None) -> Iterator[dict[str, Any]]:
    """Yields LLaVA's rows: `conversations` of `{from, value}`, `<image>` for an image; a row for every caption."""
    if sample.kind == "preferences":
        reason = "a row of LLaVA's form has no rejected text; use --to trl or jsonl"
        raise DataError(f"`rejected` cannot be kept: {reason}", "rejected", sample.where)
    if sample.kind != "texts":
        (group,) = sample.groups
        yield {"conversations": _spoken(group.prompt), "images": group.images} | _solution(sample)
        return
    if any(message["role"] == "assistant" for message in sample.groups[0].prompt):
        reason = "LLaVA's form would make answers to learn of them; use --to trl or jsonl"
        raise DataError(f"the prompt has answers of its own, and {reason}", "prompt", sample.where)
    for group in sample.groups[-1:] if sample.whole else sample.groups:
        for completion in group.completions:
            _check_literal(completion, sample.where)
            yield {"conversations": _spoken([*group.prompt, *completion]), "images": group.images}


def label_studio_rows(sample: Sample, pairs: Pairs | None = None) -> Iterator[dict[str, Any]]:
    """Yields tasks of Label Studio, each comparing two texts, with the preference as its annotation.

    On which side the better text is depends on the texts, so that no side is the better one everywhere.
    """
    if sample.kind != "preferences":
        raise DataError("Label Studio's form compares two texts; give preferences", "chosen", sample.where)
    if not sample.plain or len(sample.images) > 1:
        detail = "a task of Label Studio has a question, one image and two texts; this row has more turns or images"
        raise DataError(f"{detail}; use --to trl or jsonl", "prompt", sample.where)
    rest = {key: value for key, value in sample.rest.items() if key != "margin" and value not in (None, "")}
    for made in trl_rows(sample, pairs):
        prompt, better, worse = (completion_text(made[key]) for key in ("prompt", "chosen", "rejected"))
        right = hashlib.sha256("\0".join(sorted((better, worse))).encode()).digest()[0] % 2 == (better < worse)
        yield {**label_studio.task(prompt, (better, worse), right, rest), "images": sample.images}


def documented_rows(sample: Sample, pairs: Pairs | None = None) -> Iterator[dict[str, Any]]:
    """Yields the row of the documented form, texts as messages; captions of one image stay a list."""
    first, last = sample.groups[0], sample.groups[-1]
    made: dict[str, Any] = {"images": last.images}
    if sample.kind == "preferences":
        made |= {"prompt": first.prompt, "chosen": first.completions[0], "rejected": first.completions[1:]}
    elif sample.kind == "questions":
        made |= {"prompt": first.prompt}
    elif sample.kind == "texts" and not sample.whole and not completion_text(first.prompt):
        made |= {"captions": [completion_text(completion) for completion in first.completions]}
    elif sample.kind == "texts":
        turns = [*last.prompt, *last.completions[0]]
        _check_literal(last.completions[0], sample.where)
        made |= {"prompt": first.prompt, "completion": turns[len(first.prompt) :]}
    yield made


ROWS: dict[Form, Callable[[Sample, Pairs | None], Iterator[dict[str, Any]]]] = {
    "trl": trl_rows,
    "llava": llava_rows,
    "label-studio": label_studio_rows,
    "jsonl": documented_rows,
    "parquet": documented_rows,
}


def as_texts(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row of the documented form, of a `plain` sample, with texts instead of messages."""
    made = dict(row)
    for key in {"prompt", "chosen", "completion"} & set(row):
        made[key] = completion_text(row[key])
    if "rejected" in row:
        made["rejected"] = [completion_text(turns) for turns in row["rejected"]]
    return made


def with_texts(value: Any) -> Any:
    """Returns messages without images, or lists of them, with a text as the content of each; a text as it is."""
    if isinstance(value, list):
        return [with_texts(turn) for turn in value]
    return value if isinstance(value, str) else {**value, "content": completion_text([value])}


def _solution(sample: Sample) -> dict[str, Any]:
    """The class in words, which is the answer to the question for it."""
    return {"solution": class_name(str(label_of(sample.rest)))} if sample.kind == "classes" else {}


def _spoken(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Turns `{from, value}`; the reader takes a line break on either side of `<image>` as a part of it."""
    speakers = {"user": "human", "assistant": "gpt"}
    return [{"from": speakers.get(turn["role"], turn["role"]), "value": _value(turn)} for turn in messages]


def _value(message: Message) -> str:
    value, after = "", ""
    for part in message["content"]:
        image = part["type"] == "image"
        between = "\n" if after == "image" or image and after else ""
        value += between + ("<image>" if image else part["text"])
        after = part["type"]
    return value


def _check_literal(completion: Sequence[Message], where: Where) -> None:
    if "<image>" in completion_text(completion):
        raise DataError("the answer holds `<image>`, which stands for an image; remove it", "completion", where)
