"""`Group`, the sample form: a prompt, its images and N completions, and `make_group`, which makes one.

Unlike in TRL's text-only trainers, plain text is laid out with the chat template: the prompt is a user turn, the
completion an assistant turn, and a plain caption (no prompt) answers an empty user turn. So an implicit prompt is
looked for in conversations only: two captions that begin alike share no prompt.

Normal form of a message: `{"role", "content"}` whose content is a list of `{"type": "image"}` and `{"type": "text",
"text": ...}` parts, for every role; an empty text gives no part. Images are kept apart, in the order of their
placeholders, as unread sources (path, `{"bytes", "path"}`, PIL or array), decoded late, by workers.

Left out: preference rows (`preferences/schema.py`), tool calls and reasoning fields (an error), images in completions.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from ..errors import DataError
from ..imagery.sources import ImageSource

Message = dict[str, Any]
"""`{"role", "content"}`; the content is a text, or in the normal form a list of parts."""

Row = Mapping[str, Any]
"""A row of a file as stored: a value for each column."""

ROLES = ("system", "user", "assistant", "tool")
_SPEAKERS = {"human": "user", "gpt": "assistant"}  # of ShareGPT's turns, beside the roles themselves
_PLACEHOLDER = re.compile(r"\n?<image>\n?")
_MEDIA = re.compile(r"<(?:video|audio|bbox|ref-object)>")
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

    def _repr_html_(self) -> str:
        from .views import groups_html

        return groups_html([self])


def completion_text(messages: Sequence[Mapping]) -> str:
    """Returns the plain text of messages, one line break between two messages, images left out."""
    texts = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        texts.append("".join(part["text"] for part in parts if part["type"] == "text"))
    return "\n".join(text for text in texts if text)


prompt_text = completion_text  # of all turns


def make_group(
    prompt: object,
    completions: Sequence[object],
    images: object = None,
    *,
    margin: float = 0.0,
    source: str = "",
    kind: str = "",
    row: int = -1,
    where: str = "",
) -> Group:
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
        margin, source, kind, row, where: As in [`Group`].

    Raises:
        DataError: If a type or role is wrong, a completion holds an image, or placeholders and images differ
            in number.

    Example:
        >>> make_group("Rural or urban?", ["urban"], "a.png").prompt
        [{'role': 'user', 'content': [{'type': 'image'}, {'type': 'text', 'text': 'Rural or urban?'}]}]
    """
    meta = {"margin": margin, "source": source, "kind": kind, "row": row, "where": where}
    keys = [f"completions[{i}]" for i in range(len(completions))]
    return build_group(prompt, completions, keys, image_sources(images), meta)


def string_column(row: Mapping, key: str) -> str:
    """Returns a column that holds a string or a number as a string, `""` where it is missing."""
    value = row.get(key)
    value = str(value) if isinstance(value, int | float) else value
    if value is not None and not isinstance(value, str):
        raise DataError(
            f"`{key}` is {short(value)}, expected a string or a number; write it in quotes or remove it", key
        )
    check_encodable(value or "", key)
    return value or ""


def image_sources(images: object, key: str = "images") -> list[ImageSource]:
    """Returns a source, or a list of sources, as a list of checked sources; `key` is the column, for messages."""
    if images is None:
        return []
    return [_source(source, key) for source in (images if isinstance(images, (list, tuple)) else [images])]


def _source(source: object, key: str) -> ImageSource:
    if isinstance(source, Mapping) and set(source) <= {"bytes", "path"}:
        if source.get("bytes") is not None:
            return dict(source)
        source = source.get("path")  # an undecoded HF `Image` that is only a path
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if (isinstance(source, (str, bytes)) and source) or hasattr(source, "shape") or hasattr(source, "getbands"):
        return cast("ImageSource", source)
    expected = "expected a path, {bytes, path}, a PIL image or an array; a text-only row has null, or no such column"
    raise DataError(f"`{key}` holds {short(source)}, {expected}", key)


def messages_of(value: object, key: str, role: str) -> list[dict]:
    """Returns messages in the normal form, images still inside their parts; a string becomes one message of `role`."""
    if isinstance(value, str):
        value = [{"role": role, "content": value}]
    if isinstance(value, Mapping):
        value = turns_of(value)
    if not isinstance(value, (list, tuple)):
        raise DataError(f"`{key}` is {short(value)}, expected a string or a list of messages", key)
    messages = []
    for message in value:
        message = as_message(message)
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            expected = "expected turns {role, content} or {from, value}"
            raise DataError(f"`{key}` holds {short(message)}, {expected}", key)
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


def _part(part: object, key: str) -> dict:
    given = part if isinstance(part, Mapping) else {}
    if given.get("type") == "text" and isinstance(given.get("text"), str):
        return {"type": "text", "text": given["text"]}
    if given.get("type") == "image":
        payload = next((given[name] for name in ("image", "path", "url") if given.get(name) is not None), None)
        return {"type": "image"} if payload is None else {"type": "image", "image": _source(payload, key)}
    expected = 'expected {"type": "image"} or {"type": "text", "text": a string}'
    raise DataError(f"`{key}` has the part {short(part)}, {expected}", key)


def build_group(
    prompt: object, completions: Sequence[object], keys: Sequence[str], images: list[ImageSource], meta: Row
) -> Group:
    """As [`make_group`], from checked images; `keys` are the completions' names in messages."""
    normal = [messages_of(value, key, "assistant") for key, value in zip(keys, completions, strict=True)]
    text = prompt or "" if prompt is None or isinstance(prompt, str) else None
    if text is not None and any(m and m[0]["role"] != "assistant" for m in normal):
        messages, normal = split_prompt(normal)
        if text.strip() not in prompt_text(messages):
            reason = "`prompt` is not part of the prompt turns in `chosen` and `rejected`; remove those turns or it"
            raise DataError(reason, "prompt")
    else:
        messages = messages_of(prompt if text is None else text, "prompt", "user")
    for key, completion in zip(keys, normal, strict=True):
        if not completion or completion[0]["role"] != "assistant":
            start = f"begins with a {completion[0]['role']!r} turn" if completion else "has no messages"
            expected = "expected an assistant turn: all completions must answer the same prompt"
            raise DataError(f"`{key}` {start} after the prompt, {expected}", key)
        if any(part["type"] == "image" for message in completion for part in message["content"]):
            raise DataError(f"`{key}` has an image placeholder; images belong to the prompt, move or remove it", key)
    messages, ordered = _place_images(messages, images)
    return Group(messages, normal, ordered, **meta)


def split_prompt(conversations: list[list[dict]]) -> tuple[list[dict], list[list[dict]]]:
    """Splits conversations into their longest common prefix, as TRL's `extract_prompt`, and what follows it.

    The last message is always left as the completion.
    """
    end, first = 0, conversations[0]
    while all(end < len(c) - 1 and _same(c[end], first[end]) for c in conversations):
        end += 1
    return first[:end], [conversation[end:] for conversation in conversations]


def _same(a: dict, b: dict) -> bool:
    def same_part(p: dict, q: dict) -> bool:
        image, other = p.get("image"), q.get("image")
        same_image = image is other or not hasattr(image, "shape") and bool(image == other)
        return (p["type"], p.get("text")) == (q["type"], q.get("text")) and same_image

    return (
        a["role"] == b["role"]
        and len(a["content"]) == len(b["content"])
        and all(map(same_part, a["content"], b["content"]))
    )


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
        counts = f"{empty} image placeholder{'s' * (empty != 1)} in the prompt but {len(images)} image"
        advice = "give one image per placeholder, or no placeholders to have the images first in the user turn"
        raise DataError(f"{counts}{'s' * (len(images) != 1)}; {advice}", "images")
    supply = iter(images)
    return messages, [part.pop("image") if "image" in part else next(supply) for part in slots]


def as_message(turn: Any) -> Any:
    """Returns a turn `{from, value}` as `{role, content}`; anything else as it is."""
    if isinstance(turn, Mapping) and isinstance(speaker := turn.get("from"), str) and "value" in turn:
        return {"role": _SPEAKERS.get(speaker, speaker), "content": turn["value"]}
    return turn


def turns_of(value: Mapping) -> object:
    """Returns one turn as a list of it, and turns that `datasets` stores as a column each (`Sequence`) as turns."""
    if value and all(isinstance(column, (list, tuple)) for column in value.values()):
        return [dict(zip(value, turn, strict=False)) for turn in zip(*value.values(), strict=False)]
    return [value]


def as_number(value: object) -> float | None:
    """Returns a finite number, also of a text that is one, as in CSV files; `None` for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < 1e300 else None


def check_text(text: str, key: str) -> None:
    """Refuses a text of data that cannot be encoded, or holds the place of something that is not read."""
    check_encodable(text, key)
    if media := _MEDIA.search(text):
        raise DataError(f"`{key}` has the placeholder {media[0]}, which is not read; remove the row", key)


def check_completion(completion: Sequence[Mapping], key: str) -> None:
    """Refuses a completion of data that is empty, or is no text, see [`check_text`]."""
    text = completion_text(completion)
    if not text.strip():
        raise DataError(f"`{key}` has an empty text; write it or remove it", key)
    check_text(text, key)


def check_encodable(text: str, key: str) -> None:
    """Raises [`DataError`] if a text cannot be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        reason = (
            "characters that are no text (not UTF-8, or half a surrogate pair); save it as UTF-8 or remove the row"
        )
        raise DataError(f"`{key}` has {reason}", key) from None


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its name if it has none."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def short(value: object) -> str:
    """Returns a value and its type for a message, cut to one short line."""
    text = "null" if value is None else repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})" if value is not None else text
