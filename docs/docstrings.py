"""Docstrings of the package as mkdocstrings reads them: a griffe extension.

They are written as those of transformers: types in backticks, [`Name`] for other objects, and `Example:`. Here types
lose their backticks, names are shown as code, and examples become sections.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ARGUMENT = re.compile(r"^(\s+\w[\w, *]*) \((.+?)\):", re.MULTILINE)
RETURNED = re.compile(r"^(\s+)\[?`([^`]+)`\]?: ", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites the docstring of every object once it is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites one docstring."""
        if obj.docstring:
            obj.docstring.value = rewritten(obj.docstring.value)


def rewritten(text: str) -> str:
    """Returns a docstring in the words of the Google style."""
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    text = ARGUMENT.sub(lambda match: f"{match[1]} ({plain(match[2])}):", text)
    text = RETURNED.sub(r"\1\2: ", text)
    return re.sub(r"\[(`[^`\]]+`)\](?!\()", r"\1", text)


def plain(kind: str) -> str:
    """Returns a type without marks."""
    return re.sub(r"\[`(\w+)`\]", r"\1", kind).replace("`", "").replace("*", "")
