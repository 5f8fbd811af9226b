"""Choices that one text lists by letters, such as `"A. port; B. farm"`, and the choice that an answer of a file names.

Left out: choices without letters, more than sixteen of them, and roman numerals.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# What stands before a letter: the stricter of two that find as many choices decides.
_STARTS = (r"^[ \t]*", r"(?:\A|;)\s*", r"(?:\A|,)\s*", r"(?:^|(?<=[\s,;]))")


def lettered(text: str, by_line: bool = False) -> list[str]:
    """Splits `"A. one; B. two."` into the texts of the choices; none unless they begin with A and B, or a and b.

    A choice may begin with an initial or end with one (`N. America`, `Washington D.C.`).

    Args:
        text (`str`): The choices, or (`by_line`) a question that lists one on every line.
        by_line (`bool`): A choice begins its line and ends with it.

    Example:
        >>> lettered("A. one; B. two, or three.")
        ['one', 'two, or three']
        >>> lettered("A. N. America B. C. America C. Washington D.C.")
        ['N. America', 'C. America', 'Washington D.C.']
    """
    for letters in ("A-P", "a-p"):
        found = [_split(text, start, letters, by_line) for start in (_STARTS[:1] if by_line else _STARTS)]
        if len(longest := max(found, key=len)) > 1:
            return longest
    return []


def _split(text: str, start: str, letters: str, by_line: bool) -> list[str]:
    marks: list[re.Match[str]] = []
    for mark in re.finditer(rf"{start}\(?([{letters}])[.):]\s*", text, re.MULTILINE):
        before = text[marks[-1].end() : mark.start()].strip(" \t\n,;") if marks else ""
        if mark[1].upper() == chr(65 + len(marks)) and (before or not marks):  # no choice is empty: it is an initial
            marks.append(mark)
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    parts = [text[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=False)]
    return [_undotted((part.split("\n")[0] if by_line else part).strip(" \t\n,;")) for part in parts]


def _undotted(part: str) -> str:
    """The text without the full stop of a sentence; that of an abbreviation stays."""
    return part if re.search(r"(?:^|[\s.])[A-Z]\.$", part) else part.removesuffix(".")


def listed_choices(given: str | Sequence[object]) -> list[str]:
    """Returns the choices of a text, see [`lettered`], or of a list, without the letters that all its items have."""
    if isinstance(given, str):
        return lettered(given)
    texts = [str(choice) for choice in given]
    without = lettered("\n".join(texts), by_line=True)
    return without if len(without) == len(texts) else texts


def letter_of(answer: str, choices: Sequence[str]) -> str | None:
    """Returns the letter of the choice that an answer names by its letter or its text, in whatever case; `None` if
    that is none of them.
    """
    letter = re.fullmatch(r"\(?\s*([A-Za-z])\s*[.):]*", answer.strip())
    forms = [" ".join(text.casefold().split()) for text in (answer, *choices)]
    if letter is None and forms.count(forms[0]) != 2:
        return None
    place = ord(letter[1].upper()) - 65 if letter else forms.index(forms[0], 1) - 1
    return chr(65 + place) if place < len(choices) else None
