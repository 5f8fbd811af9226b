"""Forms in which models write boxes: a text in, what is written in it out, in the writer's unit.

Left out: coordinates in words ("top left"), and coordinates with names (`x1=10`).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..declarations import did_you_mean
from ..errors import OptionError

Box = tuple[float, float, float, float]
PLAIN = ("pairs", "brackets")  # forms of texts whose writer is not a known model

_NUMBER = r"[\"']?-?(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?(?:\s?%)?[\"']?"
_NUMBERS = re.compile(_NUMBER, re.I)
_LIST = re.compile(rf"[\[(]\s*({_NUMBER}(?:(?:\s*[,;]\s*|\s+){_NUMBER})*)\s*\\?[\])]", re.I)
_POINT = rf"[\[(]\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\\?[\])]"
_POINTS = re.compile(rf"{_POINT}(?:\s*,\s*{_POINT})*", re.I)
_TOKENS = re.compile(rf"((?:<\s*{_NUMBER}\s*>\s*){{3,}})(\|\s*(?:<\s*({_NUMBER})\s*>)?)?", re.I)
_KEY = re.compile(r"bbox_2d[\"']?\s*:")
_VALUE = re.compile(r"\s*[\"']?(\[(?:[^\[\]]|\[[^\[\]]*\])*\]|null)")


class Written(NamedTuple):
    """A box as it is written: corners in the writer's unit, or in percent; degrees that it is turned by."""

    corners: Box
    percent: bool = False
    angle: float = 0.0


Found = list[Written | None]  # `None`: something that should be a box and is none


def written_boxes(text: str, forms: Sequence[str]) -> Found:
    """Finds what is written in the first form that has anything; an [`OptionError`] names a form that is not known."""
    if unknown := [form for form in forms if form not in FORMS]:
        raise OptionError(f"the form of boxes is {unknown[0]!r}{did_you_mean(unknown[0], FORMS)}", "forms")
    text = unicodedata.normalize("NFKC", text).replace("\u2212", "-")  # full-width brackets and digits, minus sign
    return next((found for form in forms if (found := FORMS[form](text))), [])


def _written(numbers: Sequence[str], angle: float = 0.0) -> Written | None:
    """A box of four numbers; `None` for more or fewer, and for some in percent."""
    percent = {number.strip("\"'").endswith("%") for number in numbers}
    if len(numbers) != 4 or len(percent) > 1:
        return None
    x1, y1, x2, y2 = (float(number.strip("\"'% ")) for number in numbers)
    return Written((x1, y1, x2, y2), percent == {True}, angle)


def _pairs(text: str) -> Found:
    """Qwen2-VL's `(x1,y1),(x2,y2)`; three points and more in a row are a polygon, unless each line is a box."""
    found: Found = []
    for points in _POINTS.findall(text.replace("[", " ").replace("]", " ")):
        numbers, lines = _NUMBERS.findall(points), [_NUMBERS.findall(line) for line in points.split("\n")]
        if all(len(line) == 4 for line in lines):
            found += map(_written, lines)
        elif len(numbers) > 2:  # a single point is no box, and none was meant
            found.append(_written(numbers))
    return found


def _json(text: str) -> Found:
    """Qwen2.5-VL's and Qwen3-VL's `{"bbox_2d": [x1, y1, x2, y2], "label": …}`; the JSON may be cut off behind it."""
    found: Found = []
    for key in _KEY.finditer(text):
        value = _VALUE.match(text, key.end())
        if value is None:
            found.append(None)
        elif _NUMBERS.search(value[1]):
            found += _brackets(value[1]) or [None]
    return found


def _geochat(text: str) -> Found:
    """GeoChat's `{<x1><y1><x2><y2>|<degrees>}`, the degrees may be left out."""
    found: Found = []
    for tokens, bar, degrees in _TOKENS.findall(text):
        angle = float(degrees.strip("\"'% ") or 0) if degrees or not bar else math.nan
        found.append(None if not math.isfinite(angle) else _written(_NUMBERS.findall(tokens), angle))
    return found


def _brackets(text: str) -> Found:
    """`[x1, y1, x2, y2]`, InternVL's `<box>[[x1, y1, x2, y2]]</box>` with it; six numbers or more are a polygon."""
    lists = [_NUMBERS.findall(numbers) for numbers in _LIST.findall(text)]
    return [_written(numbers) for numbers in lists if len(numbers) == 4 or (len(numbers) > 5 and not len(numbers) % 2)]


def _polygon(text: str) -> Found:
    """Three points or more, `[x1, y1, x2, y2, x3, y3, …]` or `[[x1, y1], [x2, y2], …]`; the box around them."""
    outlines = [_NUMBERS.findall(points) for points in [*_LIST.findall(text), *_POINTS.findall(text)]]
    found: Found = []
    for outline in outlines:
        if len(outline) > 5 and not len(outline) % 2:
            numbers = [number.strip("\"'") for number in outline]
            xs, ys = sorted(numbers[::2], key=_value), sorted(numbers[1::2], key=_value)
            found.append(_written((xs[0], ys[0], xs[-1], ys[-1])))
    return found


def _value(number: str) -> float:
    return float(number.strip("% "))


FORMS: dict[str, Callable[[str], Found]] = {
    "pairs": _pairs,
    "json": _json,
    "geochat": _geochat,
    "brackets": _brackets,
    "polygon": _polygon,
}
