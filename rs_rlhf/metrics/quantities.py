"""Numbers in answers: the normal form of words, number words, units, bounds and ranges, RSVQA's buckets.

A [`Quantity`] is a number, a range or a bound with its unit, so that "at least 3", "3+" and ">= 3" are the same and
none of them is 3. Left out: roman numerals, ordinals, "several", decimal commas ("1,5" is two numbers).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import inf

from ..errors import OptionError

SCHEMES = ("rsvqa_lr", "rsvqa_hr")

_ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_WORDS = {word: i for i, word in enumerate([*_ONES, "seventeen", "eighteen", "nineteen"])}
_WORDS |= {word: 10 * i for i, word in enumerate(_TENS, start=2)}
_SCALES = {"thousand": 1000, "million": 10**6, "billion": 10**9}
_MULTIPLES = ("hundred", "dozen", *_SCALES)
_ARTICLES = {"a", "an", "the"}

_UNIT_WORDS = (
    (r"(?:square|sq)\.? ?(?:kilomet(?:er|re)s?|km)|km ?\^ ?2", "km2"),
    (r"(?:square|sq)\.? ?(?:met(?:er|re)s?|m)|m ?\^ ?2|sqm", "m2"),
    (r"(?:square|sq)\.? ?(?:feet|foot|ft)|ft ?\^ ?2|sqft", "ft2"),
    (r"(?:square|sq)\.? ?(?:miles?|mi)", "mi2"),
    (r"kilomet(?:er|re)s?", "km"),
    (r"centimet(?:er|re)s?", "cm"),
    (r"met(?:er|re)s?", "m"),
    (r"hectares?", "ha"),
    (r"acres?", "acre"),
    (r"miles?", "mi"),
    (r"feet|foot", "ft"),
    (r"per ?cent", "percent"),
    (r"pixels?", "px"),
)
# Unit -> its dimension and how many of the dimension's first unit it is.
_SIZES = {
    "m2": {"m2": "1", "km2": "1e6", "ha": "1e4", "acre": "4046.8564224", "ft2": "0.09290304", "mi2": "2589988.110336"},
    "m": {"m": "1", "km": "1000", "cm": "0.01", "ft": "0.3048", "mi": "1609.344"},
    "percent": {"percent": "1"},
    "px": {"px": "1"},
}
_UNITS = {unit: (base, Fraction(size)) for base, sizes in _SIZES.items() for unit, size in sizes.items()}
# Signs -> the words that mean the same; the order counts.
_SIGNS = (
    (r"(?:>=|=>|[≥≧⩾])\s*(?=[\d.])", " at least "),
    (r"(?:<=|=<|[≤≦⩽])\s*(?=[\d.])", " at most "),
    (r">\s*(?=[\d.])", " more than "),
    (r"<\s*(?=[\d.])", " less than "),
    (r"(?<=\d)\s*(?:[-–—~]|\.\.+)\s*(?=\d)", " to "),
    (r"[~≈±∼≃≅]\s*(?=[\d.])", " about "),
    (r"(?<=\d)\s*[<>]=?", " or so "),
    (r"\bhalf (?:a )?dozen\b", "6"),
    (r"(?<=[\d%])\s*\+(?!\s*\d)", " or more "),
    (r"(?<=\d)\s*%", " percent "),
    (r"(?<=\d)-?ish\b", " or so "),
    (r"(?<=\d)k\b", " thousand "),
    (r"(?<![\d.,])\d{1,3}(?:[, ]\d{3})+(?![\d,])", lambda found: re.sub("[, ]", "", found[0])),
    (r"(?<![\w.])\d+(?:\.\d+)?e[+-]?\d{1,2}(?!\w)", lambda found: _decimal(Fraction(found[0]))),
    (r"(?<![\w.])(\d+)\s*\^\s*(\d)(?!\w)", lambda found: str(int(found[1]) ** int(found[2]))),
)
_N = rf"(-?\d+(?:\.\d+|/[1-9]\d*)?)({'|'.join(sorted(_UNITS, key=len, reverse=True))})?(?!\S)"
_ABOUT = (
    r"(?:about|around|approximately|approx|roughly|nearly|almost|circa|ca|c|close to|as (?:many|few|much) as|estimated"
    r"|some)"
)
_MORE = r"(?:more|above|greater|higher|larger|bigger|longer|over|up|upwards)"
_LESS = r"(?:less|fewer|below|lower|smaller|shorter|under)"
_QUANTITY = re.compile(
    rf"(?<!\S)(?:(?P<about>{_ABOUT} (?:to )?{_N}|{_N}(?: \w+)? (?:or so|approximately|roughly|give or take))"
    rf"|(?P<range>(?:between |from )?{_N} to {_N}|between {_N} and {_N})"
    rf"|(?P<least>(?:at least|minimum(?: of)?|min|(?:no|not) (?:fewer|less) than|upwards of) {_N}"
    rf"|{_N}(?: \w+)? (?:(?:or|and) (?:even )?{_MORE}|plus|upwards?|onwards?|at least|minimum))"
    rf"|(?P<most>(?:at most|up to|maximum(?: of)?|max|(?:no|not) (?:more|greater) than) {_N}"
    rf"|{_N}(?: \w+)? (?:or (?:even )?{_LESS}|at most|maximum|max|tops))"
    rf"|(?P<above>(?:(?:more|greater|larger|higher|bigger) than|over|above|beyond|exceed(?:s|ing)?) {_N})"
    rf"|(?P<below>(?:(?:less|fewer|smaller|lower) than|under|below) {_N})"
    rf"|{_N})"
)
# Words that a number may follow; behind another one ("near 3", "step 3") it is not what is counted.
_BEFORE = set(
    "am are be is was were have has had do see saw seen count counted find found identify identified detect "
    "detected spot spotted observe observed contain contains show shows shown depicts includes holds cover covers "
    "measures exactly only just precisely total number answer equals equal get got gives make makes think believe "
    "say that there all and also so thus hence image picture photo scene here visible sum result yes no".split()
)
_REST = re.compile(r" (?:x|times|squared|cubed|minus|divided|per|th)\b")  # the number is a part of what is said
_AMOUNT_OF = re.compile(r"\b(?:total|number|count|sum|area|length|size|share|extent) of $")
_EDGES = (0, 10, 100, 1000)


@dataclass(frozen=True)
class Quantity:
    """A number (`low` is `high`), a range, or a bound (an end is infinite), in the unit in which it was said."""

    low: Fraction | float
    high: Fraction | float
    unit: str = ""
    open: bool = False  # a bound that leaves its end out: more than 3

    @property
    def dimension(self) -> str:
        """The unit that numbers of this kind are compared in; empty without one."""
        return _UNITS[self.unit][0] if self.unit else ""

    def based(self, unit: str = "") -> Quantity:
        """The same in the first unit of its dimension; without a unit it is taken to be in `unit`."""
        unit = self.unit or unit
        if not unit:
            return self
        dimension, size = _UNITS[unit]
        return Quantity(self.low * size, self.high * size, dimension, self.open)

    def __str__(self) -> str:
        one, unit = self.based(), self.dimension
        low, high = (_decimal(Fraction(end)) if -inf < end < inf else "" for end in (one.low, one.high))
        if one.low == one.high:
            return f"{low}{unit}"
        if low and high:
            return f"between {low}{unit} and {high}{unit}"
        words = ("more than", "less than") if one.open else ("at least", "at most")
        return f"{words[0] if low else words[1]} {low or high}{unit}"


def _decimal(value: Fraction) -> str:
    return str(int(value)) if value.denominator == 1 else f"{float(value):.12g}"


def quantities(text: str) -> list[Quantity | None]:
    """Returns the quantities of a text, `None` for one that is only about right or is not an amount ("step 3").

    Example:
        >>> [str(one) for one in quantities("3 or more ships")], quantities("about 3")
        (['at least 3'], [None])
    """
    text = plain(text)
    found = []
    for match in _QUANTITY.finditer(text):
        before = text[: match.start()]
        led = not before or before.split()[-1] in _BEFORE or _AMOUNT_OF.search(before)
        found.append(_quantity(match) if led and not _REST.match(text, match.end()) else None)
    return found


def _quantity(match: re.Match[str]) -> Quantity | None:
    numbers = re.findall(_N, match[0])
    first, last = Fraction(numbers[0][0]), Fraction(numbers[-1][0])
    unit, kind = numbers[-1][1] or numbers[0][1], match.lastgroup
    if kind == "about" or first > last:
        return None
    if kind in ("least", "above"):
        return Quantity(first, inf, unit, kind == "above")
    if kind in ("most", "below"):
        return Quantity(-inf, first, unit, kind == "below")
    return Quantity(first, last, unit)


def only_quantity(text: str) -> Quantity | None:
    """Returns the quantity that is all of a text, `None` if there is none or something else is said."""
    match = _QUANTITY.fullmatch(plain(text))
    return _quantity(match) if match else None


def same_quantity(said: Quantity, reference: Quantity) -> bool | None:
    """Whether two quantities are equal, a unit left out being the reference's; `None` if they cannot be compared."""
    if (said.unit and said.dimension != reference.dimension) or (
        said.low != said.high and reference.low == reference.high
    ):
        return None
    return said.based(reference.unit) == reference.based()


def bucket(answer: str, scheme: str) -> str | None:
    """Returns RSVQA's bucket of a number, or the bucket that a text names.

    Bounds and names are those of the data set's own code (`VQA_model/VocabEncoder.py` of syvlo/RSVQA; Lobry et al.
    2020, arXiv 2003.07333), where 10 belongs to "between 0 and 10", 11 to "between 10 and 100", and so on, and 0
    stays alone. Low resolution (`rsvqa_lr`): all numbers. High resolution (`rsvqa_hr`): areas only, numbers with a
    unit; counts are compared as they are. That the code reads whole numbers only is not kept: 0.5m2 is above 0m2.

    Args:
        answer (`str`): Such as `"There are 12."`, `"between 10 and 100"` or `"245m2"`.
        scheme (`str`): One of [`SCHEMES`].

    Returns:
        `str`: The bucket, `None` if the answer is not exactly one number or bucket of the scheme.

    Example:
        >>> bucket("10", "rsvqa_lr"), bucket("11", "rsvqa_lr"), bucket("245 m²", "rsvqa_hr"), bucket("7", "rsvqa_hr")
        ('between 0 and 10', 'between 10 and 100', 'between 100m2 and 1000m2', None)
    """
    if scheme not in SCHEMES:
        raise OptionError(f"the scheme is {scheme!r}, expected one of {', '.join(SCHEMES)}.")
    found = set(quantities(answer))
    one = found.pop() if len(found) == 1 else None
    return None if one is None or (scheme == "rsvqa_hr" and not one.unit) else bucket_of(one, scheme)


def bucket_of(quantity: Quantity, scheme: str) -> str | None:
    """The bucket of a quantity, which is an area in `rsvqa_hr` whether or not it has a unit; `None` if it has none."""
    unit = "m2" if scheme == "rsvqa_hr" else ""
    one = quantity.based(unit)
    if one.unit != unit or one.low < 0:
        return None
    if one.low == one.high == 0:
        return f"0{unit}"
    if one.low != one.high:
        edges = (*zip(_EDGES, _EDGES[1:], strict=False), (_EDGES[-1], inf))
        return str(one) if (one.low, one.high) in edges and one.open == (one.high == inf) else None
    above = Quantity(Fraction(_EDGES[-1]), inf, unit, True)
    ends = (Quantity(Fraction(low), Fraction(high), unit) for low, high in zip(_EDGES, _EDGES[1:], strict=False))
    return str(next((end for end in ends if one.high <= end.high), above))


@lru_cache(maxsize=4096)  # the choices of a task come again with every question
def plain(text: str) -> str:
    """Returns the normal form of an answer: lower case words and numbers, one space apart.

    Punctuation and articles are dropped (not an article that is the whole answer), number words and thousands
    separators become digits, units are written short and joined to their number, signs become words ("3+": "3 or
    more").

    Example:
        >>> plain("The Twenty-One storage_tanks!"), plain("1,000 square metres"), plain("2.50 km"), plain(">= 3")
        ('21 storage tanks', '1000m2', '2.5km', 'at least 3')
    """
    text = unicodedata.normalize("NFKC", text).lower().replace("_", " ").replace("’", "'")
    for pattern, words in _SIGNS:
        text = re.sub(pattern, words, text)
    for pattern, unit in _UNIT_WORDS:
        text = re.sub(rf"(?<![a-z])(?:{pattern})(?![a-z\d])", unit, text)
    text = re.sub(r"(?<=\d)'(?=\d)|(?<=[a-z])'(?=[a-z])", "", text)
    found = re.findall(
        r"(?:(?<![\w)])-)?\d+(?:/\d+(?![\d/])|(?:\.\d+)?[^\W\d]*(?:(?<=m)2|(?<=ft)2|(?<=mi)2)?)|\.\d+|\w+", text
    )
    words_ = [word for word in found if word not in _ARTICLES] or found
    joined: list[str] = []
    for word in map(_number_form, _digits(words_)):
        number = joined and re.fullmatch(r"-?\d+(?:\.\d+|/\d+)?", joined[-1])
        if word in _UNITS and number:
            joined[-1] += word
        elif word[0].isdigit() and joined and joined[-1] in ("minus", "negative"):
            joined[-1] = f"-{word}"
        else:
            joined.append(word)
    return " ".join(joined)


def _number_form(word: str) -> str:
    """`007` → `7`, `2.50` → `2.5`, `.5` → `0.5`; a unit that follows stays."""
    found = re.fullmatch(r"(-?)(\d*)(?:\.(\d+))?(\D.*)?", word)
    if not found or not (found[2] or found[3]):
        return word
    whole, rest = found[2].lstrip("0") or "0", (found[3] or "").rstrip("0")
    return f"{found[1]}{whole}{'.' + rest if rest else ''}{found[4] or ''}"


def _digits(words: Sequence[str]) -> list[str]:
    """Number words as digits: "two hundred and five" → "205", "twenty one" → "21", "3 thousand" → "3000"."""
    out, i = [], 0
    while i < len(words):
        value, after = _spelled(words, i)
        out.append(words[i] if value is None else _decimal(value))
        i = after if value is not None else i + 1
    return out


def _spelled(words: Sequence[str], start: int) -> tuple[Fraction | None, int]:
    """Reads one number that starts at a word; returns it (`None`: there is none) and the place behind it."""
    total, scale, i = Fraction(0), inf, start  # what has its thousands, the last of them, the place
    part: Fraction | None = None  # what is below them
    while i < len(words):
        word = words[i]
        behind = words[i + 1] if i + 1 < len(words) else ""
        if part is None:
            room = 1000
        else:
            room = 100 if part and part % 100 == 0 else 10 if part >= 20 and part % 10 == 0 else 0
        if word in _WORDS and _WORDS[word] < room and (part is None or _WORDS[word]):
            part = (part or Fraction(0)) + _WORDS[word]
        elif i == start and behind in _MULTIPLES and re.fullmatch(r"\d+(\.\d+)?", word):
            part = Fraction(word)
        elif word == "hundred" and (part is None and not total or part is not None and 0 < part < 100):
            part = (part or 1) * Fraction(100)
        elif word == "dozen" and not total:
            part = (Fraction(1) if part is None else part) * 12
            room = 0
        elif word in _SCALES and _SCALES[word] < scale and (part is None and not total or part):
            scale = _SCALES[word]
            total, part = total + (part or 1) * scale, None
        elif not (word == "and" and (part and part % 100 == 0 or total and part is None) and behind in _WORDS):
            break
        elif words[i + 2 : i + 3] and words[i + 2] in _MULTIPLES:  # "between one hundred and one thousand"
            break
        i += 1
    return (None, start) if part is None and not total else (total + (part or 0), i)
