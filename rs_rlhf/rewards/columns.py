"""Types of TRL's reward signature, and access to the columns of a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..data.group import ImageSource
from ..declarations import did_you_mean
from ..errors import DeclarationError

Text = str | list[dict]
"""A prompt or completion: plain, or messages in conversational form."""
Rewards = list[float | None]
Columns = Mapping[str, Any]
"""What TRL passes beside prompts and completions: a list per column of the data set, and its own state."""


def column(columns: Columns, name: str, reward: str) -> Sequence[Any]:
    """Returns a column that a reward needs, or raises DeclarationError with the nearest name."""
    if columns.get(name) is None:
        known = [key for key, value in columns.items() if isinstance(value, list)]
        raise DeclarationError(f"{reward} needs the column {name!r}{did_you_mean(name, known)}", name)
    return columns[name]


def row_images(prompt: Text, columns: Columns, i: int) -> ImageSource | list[ImageSource] | None:
    """Returns the images of a row's column, or `None` if its prompt holds them already."""
    for message in () if isinstance(prompt, str) else prompt:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part.get("type") == "image" and part.get("image") is not None:
                return None
    images = columns.get("images") if columns.get("images") is not None else columns.get("image")
    return None if images is None else images[i]


def rows_of(columns: Columns, rows: Sequence[int], count: int) -> dict[str, Any]:
    """Returns some rows of the columns of `count` rows, with TRL's logging; other values are dropped."""
    kept = {key: value for key, value in columns.items() if key == "log_metric"}
    lists = {key: value for key, value in columns.items() if isinstance(value, list) and len(value) == count}
    return kept | {key: [value[i] for i in rows] for key, value in lists.items()}
