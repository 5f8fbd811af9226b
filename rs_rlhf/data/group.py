"""The sample form: rows of preferences in, groups (a prompt, its images, N completions) out.

The documented schema is TRL's: columns `prompt`, `chosen`, `rejected`, plain strings or conversational, with optional
`image` or `images`, `margin`, `source`, `kind`, `id`; a `rejected` list holds several completions, best to worst.
Unlike in TRL's text-only trainers, plain text is laid out with the chat template: the prompt is a user turn, the
completion an assistant turn, and a plain caption (no prompt) answers an empty user turn. So an implicit prompt is
looked for in conversations only: two captions that begin alike share no prompt.

Normal form of a message: `{"role", "content"}` whose content is a list of `{"type": "image"}` and
`{"type": "text", "text": ...}` parts, for every role; an empty text gives no part. Images are kept apart, in the order
of their placeholders, as unread sources (path, `{"bytes", "path"}`, PIL or array): they are decoded late, by workers.

Left out: tool calls and reasoning fields (an error, not dropped), images in completions.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import DataError
from ..imagery.sources import ImageSource

Message = dict[str, Any]
"""`{"role", "content"}`; the content is a text, or in the normal form a list of parts."""

Row = Mapping[str, Any]
"""A row of a file as stored: a value for each column."""

COLUMNS = "prompt, chosen, rejected, image or images, margin, source, kind, id"
ROLES = ("system", "user", "assistant", "tool")
_PLACEHOLDER = re.compile(r"\n?<image>\n?")
_UNREAD = ("tool_calls", "reasoning_content", "thinking")  # templates render these: not to be dropped


@dataclass
class Group:
    """One prompt, its images and N completions: everything that is scored is a group.

    Args:
        prompt (`list[dict]`): Messages in the normal form; at least a (possibly empty) user turn.
        completions (`list[list[dict]]`): N completions, each a list of messages; best to worst in preference data.
        images (`list`): One unread source per `{"type": "image"}` part of the prompt, in order.
        margin (`float`): By how much the chosen completion should win.
        source (`str`): Name of the data source.
        kind (`str`): Kind of sample, such as `"caption"`.
        row (`int`): Line (JSONL, from 1) or row (others, from 0) in the file, -1 if unknown; not compared.
        where (`str`): File and row in words, for messages; not compared.
    """

    prompt: list[dict]
    completions: list[list[dict]]
    images: list[ImageSource] = field(default_factory=list)
    margin: float = 0.0
    source: str = ""
    kind: str = ""
    row: int = field(default=-1, compare=False)
    where: str = field(default="", compare=False)


def completion_text(messages: Sequence[Mapping]) -> str:
    """Returns the plain text of messages, one line break between two messages, images left out."""
    texts = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        texts.append("".join(part["text"] for part in parts if part["type"] == "text"))
    return "\n".join(text for text in texts if text)


def prompt_text(messages: Sequence[Mapping]) -> str:
    """Returns the plain text of a prompt: all its turns, images left out."""
    return completion_text(messages)


def make_group(prompt: Any, completions: Sequence[Any], images: Any = None, **meta: Any) -> Group:
    """Brings a prompt, its completions and images into the normal form.

    Placeholders are `{"type": "image"}` parts and literal `<image>` strings (with a line break on either side) of the
    prompt; without any, the images are put at the start of the first user turn. A part's own image
    (`{"type": "image", "image": source}`) fills its placeholder. Where completions are whole conversations (the first
    turn is not the assistant's) and the prompt is a string or missing, their longest common prefix is the prompt.
    A literal `<image>` in a completion stays text here, since a policy may write it; preference rows refuse it.

    Args:
        prompt (`str`, `list[dict]` or `None`): The question; empty or `None` for a plain caption.
        completions (sequence of `str` or `list[dict]`): N completions; may be empty strings.
        images (source or `list` of sources, *optional*): Paths, `{"bytes", "path"}`, PIL images or arrays.
        **meta: `margin`, `source`, `kind`, `row`, `where` of the [`Group`].

    Raises:
        DataError: If a type or role is wrong, a completion holds an image, or placeholders and images differ
            in number.

    Example:
        >>> make_group("Rural or urban?", ["urban"], "a.png").prompt
        [{'role': 'user', 'content': [{'type': 'image'}, {'type': 'text', 'text': 'Rural or urban?'}]}]
    """
    return _build(prompt, completions, [f"completions[{i}]" for i in range(len(completions))], _sources(images), meta)


def group_from_row(row: Mapping[str, Any], row_number: int = -1, where: str = "") -> Group:
    """Turns one preference row into a group whose completions are `[chosen, *rejected]`.

    Args:
        row (`dict`): A raw row of the documented schema, or a row of [`load_preferences`].
        row_number (`int`): Becomes [`Group`]'s `row`; by default the `row` that [`load_preferences`] has written.
        where (`str`): File and row for messages; by default the `where` that [`load_preferences`] has written.

    Raises:
        DataError: The first of the row's problems, with where, column, what was expected and what to do.
    """
    group, errors = inspect_row(row, row_number, where)
    if errors or group is None:
        raise errors[0]
    return group


def inspect_row(row: Any, row_number: int = -1, where: str = "") -> tuple[Group | None, list[DataError]]:
    """Like [`group_from_row`], but returns the group (`None` if unusable) and *all* problems, for the data check."""
    if not isinstance(row, Mapping):
        return None, [DataError(f"the row is {short(row)}, expected an object with {COLUMNS}", "", where)]
    if row_number < 0 and isinstance(row.get("row"), int):
        row_number = row["row"]
    where = where or str(row.get("where") or "") or (f"row {row_number}" if row_number >= 0 else "")
    errors: list[DataError] = []

    def attempt(function: Callable, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except DataError as error:
            errors.append(DataError(error.detail, error.key, where))
            return None

    meta = {"row": row_number, "where": where, "margin": attempt(_margin, row) or 0.0}
    meta |= {key: attempt(string_column, row, key) or "" for key in ("source", "kind")}
    attempt(string_column, row, "id")
    images = attempt(_row_images, row)
    keyed = attempt(_row_completions, row)
    if keyed is None or images is None:
        return None, errors
    keys, completions = zip(*keyed, strict=True)
    group = attempt(_build, row.get("prompt"), completions, keys, images, meta)
    if group is not None:
        for key, completion in zip(keys, group.completions, strict=True):
            attempt(_check_completion, key, completion)
    return (None if errors else group), errors


def _row_completions(row: Mapping) -> list[tuple[str, Any]]:
    missing = [key for key in ("chosen", "rejected") if key not in row]
    if missing:
        raise DataError(
            f"no column {' and '.join(f'`{k}`' for k in missing)}; the columns are "
            f"{', '.join(map(str, row)) or 'none'}, expected {COLUMNS}; rename them",
            missing[0],
        )
    chosen, rejected = row["chosen"], row["rejected"]
    if not isinstance(chosen, str) and not _is_conversation(chosen):
        raise DataError(f"`chosen` is {short(chosen)}, expected one text or one list of messages", "chosen")
    if isinstance(rejected, str) or _is_conversation(rejected):
        return [("chosen", chosen), ("rejected", rejected)]
    if isinstance(rejected, (list, tuple)) and rejected:
        if len({isinstance(one, str) for one in rejected}) == 1 and all(
            isinstance(one, str) or _is_conversation(one) for one in rejected
        ):
            return [("chosen", chosen), *((f"rejected[{i}]", one) for i, one in enumerate(rejected))]
    raise DataError(
        f"`rejected` is {short(rejected)}, expected one completion or a list, best to worst: texts, or "
        "lists of messages",
        "rejected",
    )


def _is_conversation(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(m, Mapping) for m in value)


def _check_completion(key: str, completion: list[dict]) -> None:
    text = completion_text(completion)
    if not text.strip():
        raise DataError(f"`{key}` is empty, expected a text; remove the row", key)
    if "<image>" in text:
        raise DataError(f"`{key}` has an image placeholder; images belong to the prompt, move or remove it", key)


def _margin(row: Mapping) -> float:
    value = row.get("margin")
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
        raise DataError(f"`margin` is {short(value)}, expected a finite number; correct or remove it", "margin")
    return float(value)


def string_column(row: Mapping, key: str) -> str:
    """Returns a column that holds a string, `""` where it is missing; an `id` may be a number."""
    value = row.get(key)
    if key == "id" and isinstance(value, int):
        value = str(value)
    if value is not None and not isinstance(value, str):
        raise DataError(f"`{key}` is {short(value)}, expected a string; write it in quotes or remove it", key)
    return value or ""


def _row_images(row: Mapping) -> list[ImageSource]:
    unread = [key for key in ("image_name", "image_path") if row.get(key) is not None]
    if unread:
        raise DataError(f"`{unread[0]}` is not read beside `prompt`; rename it to `image`", unread[0])
    if row.get("image") is not None and row.get("images") is not None:
        raise DataError("both `image` and `images` are given; keep one of them", "images")
    return _sources(row["image"], "image") if row.get("image") is not None else _sources(row.get("images"))


def _sources(images: Any, key: str = "images") -> list[ImageSource]:
    if images is None:
        return []
    return [_source(one, key) for one in (images if isinstance(images, (list, tuple)) else [images])]


def _source(source: Any, key: str) -> ImageSource:
    if isinstance(source, Mapping) and set(source) <= {"bytes", "path"}:
        if source.get("bytes") is not None:
            return dict(source)
        source = source.get("path")  # an undecoded HF `Image` that is only a path
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if (isinstance(source, (str, bytes)) and source) or hasattr(source, "shape") or hasattr(source, "getbands"):
        return source
    raise DataError(
        f"`{key}` holds {short(source)}, expected a path, {{bytes, path}}, a PIL image or an array; "
        "leave the column out or null for a text-only row",
        key,
    )


def _messages(value: Any, key: str, role: str) -> list[dict]:
    """Messages in the normal form, images still inside their parts; a string becomes one message of `role`."""
    if isinstance(value, str):
        value = [{"role": role, "content": value}]
    if not isinstance(value, (list, tuple)):
        raise DataError(f"`{key}` is {short(value)}, expected a string or a list of messages", key)
    messages = []
    for message in value:
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise DataError(f"`{key}` holds {short(message)}, expected messages {{role, content}}", key)
        if message["role"] not in ROLES:
            raise DataError(f"`{key}` has the unknown role {message['role']!r}, expected {', '.join(ROLES)}", key)
        unread = [name for name in _UNREAD if message.get(name)]
        if unread:
            raise DataError(f"`{key}` has a message with `{unread[0]}`, which is not read; write it as text", key)
        content = message["content"]
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, (list, tuple)):
            raise DataError(f"`{key}` has the content {short(content)}, expected a string or a list of parts", key)
        parts = [_part(part, key) for part in content]
        messages.append({"role": message["role"], "content": [p for p in parts if p.get("text") != ""]})
    return messages


def _part(part: Any, key: str) -> dict:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind == "image":
        payload = next((part[name] for name in ("image", "path", "url") if part.get(name) is not None), None)
        return {"type": "image"} if payload is None else {"type": "image", "image": _source(payload, key)}
    raise DataError(
        f'`{key}` has the part {short(part)}, expected {{"type": "image"}} or {{"type": "text", "text": a string}}',
        key,
    )


def _build(prompt: Any, completions: Sequence[Any], keys: Sequence[str], images: list, meta: Mapping) -> Group:
    normal = [_messages(one, key, "assistant") for key, one in zip(keys, completions, strict=True)]
    given = prompt
    implicit = (given is None or isinstance(given, str)) and any(m and m[0]["role"] != "assistant" for m in normal)
    if implicit:
        messages, normal = _split_prompt(normal)
        if given and given.strip() not in prompt_text(messages):
            raise DataError(
                "`prompt` is a string that is not part of the prompt turns in `chosen` and `rejected`; "
                "remove those turns or the column",
                "prompt",
            )
    else:
        messages = _messages("" if given is None else given, "prompt", "user")
    for key, completion in zip(keys, normal, strict=True):
        if not completion or completion[0]["role"] != "assistant":
            start = f"begins with a {completion[0]['role']!r} turn" if completion else "has no messages"
            raise DataError(
                f"`{key}` {start} after the prompt, expected an assistant turn: all completions must "
                "answer the same prompt",
                key,
            )
        if any(part["type"] == "image" for message in completion for part in message["content"]):
            raise DataError(f"`{key}` has an image placeholder; images belong to the prompt, move or remove it", key)
    messages, ordered = _place_images(messages, images)
    return Group(messages, normal, ordered, **meta)


def _split_prompt(conversations: list[list[dict]]) -> tuple[list[dict], list[list[dict]]]:
    """Longest common prefix as TRL's `extract_prompt`, but the last message is always left as the completion."""
    end, first = 0, conversations[0]
    while all(end < len(c) - 1 and _same(c[end], first[end]) for c in conversations):
        end += 1
    return first[:end], [conversation[end:] for conversation in conversations]


def _same(a: dict, b: dict) -> bool:
    if a["role"] != b["role"] or len(a["content"]) != len(b["content"]):
        return False
    for p, q in zip(a["content"], b["content"], strict=True):
        images = p.get("image"), q.get("image")
        same_image = images[0] is images[1] or not hasattr(images[0], "shape") and bool(images[0] == images[1])
        if (p["type"], p.get("text")) != (q["type"], q.get("text")) or not same_image:
            return False
    return True


def _place_images(messages: list[dict], images: list) -> tuple[list[dict], list]:
    """Turns literal placeholders into parts, and lists the images in the order of all placeholders."""
    for message in messages:
        parts = []
        for part in message["content"]:
            pieces = _PLACEHOLDER.split(part["text"]) if part["type"] == "text" else []
            for i, piece in enumerate(pieces):
                parts += [{"type": "image"}] * bool(i) + [{"type": "text", "text": piece}] * bool(piece)
            parts += [] if pieces else [part]
        message["content"] = [dict(part) for part in parts]
    slots = [part for message in messages for part in message["content"] if part["type"] == "image"]
    user = next((message for message in messages if message["role"] == "user"), None)
    if user is None and (not messages or images):
        user = {"role": "user", "content": []}
        messages.append(user)
    if images and not slots and user is not None:
        slots = [{"type": "image"} for _ in images]
        user["content"][:0] = slots
    empty = sum("image" not in part for part in slots)
    if empty != len(images):
        raise DataError(
            f"{empty} image placeholder{'s' * (empty != 1)} in the prompt but {len(images)} "
            f"image{'s' * (len(images) != 1)}; give one image per placeholder, or remove the placeholders to have the "
            "images put at the start of the first user turn",
            "images",
        )
    supply = iter(images)
    return messages, [part.pop("image") if "image" in part else next(supply) for part in slots]


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its name if it has none."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def short(value: Any) -> str:
    """Returns a value and its type for a message, cut to one short line."""
    text = "null" if value is None else repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})" if value is not None else text
