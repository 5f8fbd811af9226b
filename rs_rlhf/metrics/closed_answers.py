"""Closed-answer metrics: the strict verdict on an answer, and the published one beside it.

The strict metric reads an answer as a careful person would (number words, plurals, choice letters, yes/no, RSVQA's
number buckets) and calls what has no clear reading unparseable: that is counted, and never right. The published
rule of arXiv 2503.00743 is kept under its own name, `upstream_compat`, so that figures can be set beside the paper's;
it takes an empty answer for right, and "1" for "12".

Left out: sentences around a class name ("this is an urban area"), synonyms, spelling mistakes, roman numerals.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ..errors import OptionError
from .answers import extract_answer

SCHEMES = ("rsvqa_lr", "rsvqa_hr")
PAIRS = (("yes", "no"), ("true", "false"))  # references of one pair: the answer is the one word of it that is said
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_WORDS = {word: i for i, word in enumerate([*_ONES, "seventeen", "eighteen", "nineteen"])}
_WORDS |= {word: 10 * i for i, word in enumerate(_TENS, start=2)}
_ARTICLES = {"a", "an", "the"}
_UNITS = (
    (r"(?:square|sq)\.? ?(?:kilomet(?:er|re)s?|km)|km ?\^ ?2", "km2"),
    (r"(?:square|sq)\.? ?(?:met(?:er|re)s?|m)|m ?\^ ?2|sqm", "m2"),
    (r"kilomet(?:er|re)s?", "km"),
    (r"met(?:er|re)s?", "m"),
    (r"hectares?", "ha"),
)
_NUMBER = re.compile(r"(-?\d+(?:\.\d+)?)(km2|m2|km|m|ha)?")
# A number behind one of these is a bound, or is denied: not an answer.
_BOUNDS = {"than", "least", "most", "under", "over", "above", "below", "not", "between"}
_RANGE = re.compile(r"between (\d+)(?:m2)? and (\d+)(?:m2)?|more than (\d+)(?:m2)?")
_EDGES = (0, 10, 100, 1000)

_STATED = re.compile(
    r"(?:the )?(?:\b(?:correct|right|final|best) )?\b(?:answer|choice|option)"
    r"(?:\s+is\b\s*:?|\s*[:=])\s*(?:option\b\s*:?)?",
    re.I,
)
_LETTER = re.compile(r"(?:option\s+)?[(\[]?([A-Za-z])(?:\s*([)\].:,]|-(?=\s)|\n)|(?=\s|$))", re.I)
_LABEL = re.compile(r"\(?([A-Z])[.):]\s*(?=\S)")
_ALSO = re.compile(r"(?:or\b|and\b|&|/|,)?\s*\(?[A-Z]\)?(?:[.,]|$|\s+(?:or|and)\b)", re.I)


def judge_answer(
    output: str, references: Sequence[str], *, choices: Sequence[str] = (), numbers: str | None = None
) -> dict[str, Any]:
    """Judges one closed answer by both metrics.

    Args:
        output (`str`): What the model wrote.
        references (sequence of `str`): The right answers, any of which will do; with choices a text of one or its
            letter. References that are all single letters are read as choices A–Z.
        choices (sequence of `str`): The well-formed answers. A letter stands for the choice that is labelled with it
            ("B. urban"), or else for its place.
        numbers (`str`, *optional*): One of [`SCHEMES`]: numbers are bucketed on both sides, see [`bucket`].

    Returns:
        `dict`: `answer`, the parsed answer in its normal form, `None` if it is unparseable; `strict` (`bool`);
        `upstream_compat` (`bool`), see [`upstream_compat`].

    Raises:
        OptionError: No reference, a reference that is none of the choices, or an unknown scheme.

    Example:
        >>> judge_answer("The answer is (B).", ["urban"], choices=["rural", "urban"])["answer"]
        'urban'
        >>> judge_answer("", ["urban"])
        {'answer': None, 'strict': False, 'upstream_compat': True}
    """
    if not references or not all(one.strip() for one in references):
        raise OptionError(
            f"references are {list(references)!r:.80}, expected at least one and none empty; a question "
            "without a right answer cannot be judged."
        )
    if numbers is not None and numbers not in SCHEMES:
        raise OptionError(f"numbers is {numbers!r}, expected one of {', '.join(SCHEMES)}.")
    said = extract_answer(output)
    if not choices and all(re.fullmatch(r"[A-Za-z]", one.strip()) for one in references):
        choices = LETTERS
    buckets = [bucket(one, numbers) if numbers else None for one in references]
    if numbers and None not in buckets:
        answer = _bucket(said, numbers, bare=True)
        right = answer is not None and answer in buckets
    elif choices:
        answer, right = _judge_choice(said, references, choices)
    else:
        answer, right = _judge_free(said, references)
    return {"answer": answer, "strict": right, "upstream_compat": upstream_compat(output, references)}


def upstream_compat(output: str, references: str | Sequence[str]) -> bool:
    """The published rule: whether the prediction is a *part* of the reference (code of arXiv 2503.00743).

    Of the output what follows a closed `<think>…</think>`, then what is inside `<answer>`; spaces dropped, cut at the
    first "." and ",", lower case. Of the reference spaces dropped, lower case. So an empty prediction is right, and
    "1" is right for "12". The authors' function for LHRS-Bench does not cut at commas; this is the one rule for all.

    Args:
        output (`str`): What the model wrote.
        references (`str` or sequence of `str`): The right answers, any of which will do, letters as they are.

    Example:
        >>> upstream_compat("1", "12"), upstream_compat("12", "1"), upstream_compat("", "urban")
        (True, False, True)
    """
    if "<think>" in output:
        thought = output.split("<think>")[1].split("</think>")
        output = thought[1] if len(thought) > 1 else output
    if "<answer>" in output:
        output = output.split("<answer>")[1].split("</answer>")[0]
    prediction = output.replace(" ", "").split(".")[0].split(",")[0].lower()
    given = [references] if isinstance(references, str) else references
    return any(prediction in one.replace(" ", "").lower() for one in given)


@lru_cache(maxsize=4096)  # the choices of a task come again with every question
def plain(text: str) -> str:
    """Returns the normal form of an answer: lower case words and numbers, one space apart.

    Punctuation and articles are dropped (not an article that is the whole answer), number words and thousands
    separators become digits, the units m, km, m2, km2 and ha are written so and joined to their number.

    Example:
        >>> plain("The Twenty-One storage_tanks!"), plain("1,000 square metres"), plain("2.50 km")
        ('21 storage tanks', '1000m2', '2.5km')
    """
    text = unicodedata.normalize("NFKC", text).lower().replace("_", " ").replace("’", "'")
    text = re.sub(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])", lambda found: found[0].replace(",", ""), text)
    for pattern, unit in _UNITS:
        text = re.sub(rf"(?<![a-z])(?:{pattern})(?![a-z\d])", unit, text)
    text = re.sub(r"(?<=\d)'(?=\d)|(?<=[a-z])'(?=[a-z])", "", text)
    found = re.findall(r"(?:(?<![\w)])-)?\d+(?:\.\d+)?[^\W\d]*(?:(?<=m)2)?|\.\d+|\w+", text)
    words = [word for word in found if word not in _ARTICLES] or found
    words = [_number_form(word) for word in _digits(words)]
    joined: list[str] = []
    for word in words:
        if word in {"m", "km", "m2", "km2", "ha"} and joined and re.fullmatch(r"-?\d+(?:\.\d+)?", joined[-1]):
            joined[-1] += word
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
        out.append(words[i] if value is None else str(value))
        i = after if value is not None else i + 1
    return out


def _spelled(words: Sequence[str], start: int) -> tuple[int | None, int]:
    """Reads one number that starts at a word; returns it (`None`: there is none) and the place behind it."""
    total, part, i = 0, None, start  # whole thousands, what is below them, the place
    while i < len(words):
        word = words[i]
        behind = words[i + 1] if i + 1 < len(words) else ""
        if part is None:
            room = 1000
        else:
            room = 100 if part and part % 100 == 0 else 10 if part >= 20 and part % 10 == 0 else 0
        if word in _WORDS and _WORDS[word] < room and (part is None or _WORDS[word]):
            part = (part or 0) + _WORDS[word]
        elif word.isdigit() and i == start and behind in ("hundred", "thousand"):
            part = int(word)
        elif word == "hundred" and (part is None and not total or part is not None and 0 < part < 100):
            part = (part or 1) * 100
        elif word == "thousand" and not total and (part is None or part):
            total, part = (part or 1) * 1000, None
        elif not (word == "and" and (part and part % 100 == 0 or total and part is None) and behind in _WORDS):
            break
        elif words[i + 2 : i + 3] in (["hundred"], ["thousand"]):  # "between one hundred and one thousand"
            break
        i += 1
    return (None, start) if part is None and not total else (total + (part or 0), i)


def _fold(word: str) -> str:
    """One form for the singular and the plural of a word: bus, buses; house, houses; city, cities; volcano(es)."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    return word[:-1] if len(word) > 3 and word.endswith(("se", "xe", "ze", "che", "she", "oe")) else word


@lru_cache(maxsize=4096)
def _keys(text: str) -> frozenset[str]:
    """Forms of an answer, of which two that mean the same share one: words folded, spaces dropped.

    Spaces between two digits stay: "1 2" is not "12".
    """
    folded = " ".join(_fold(word) for word in plain(text).split())
    closed = [re.sub(r"(?<!\d) | (?!\d)", "", one) for one in (folded, plain(text))]
    return frozenset({closed[0], _fold(closed[1])} - {""})


# Free answers


def _judge_free(said: str, references: Sequence[str]) -> tuple[str | None, bool]:
    """The parsed answer (`None`: unparseable) and whether it is right, without choices."""
    words = plain(said).split()
    forms = [plain(one) for one in references]
    for pair in PAIRS:
        if all(form in pair for form in forms):
            told = [word for word in pair if word in words]
            return (told[0], told[0] in forms) if len(told) == 1 else (None, False)
    parsed = [_NUMBER.fullmatch(form) for form in forms]
    if all(parsed):
        number = _only_number(words)
        if number is None:
            return None, False
        right = any(float(number[1]) == float(one[1]) and number[2] in (None, one[2]) for one in parsed if one)
        return number[0], right
    answers = {plain(piece): _keys(piece) for piece in _statements(said)}
    answer, keys = answers.popitem()
    if answers or not answer:
        return None, False
    return answer, any(keys & _keys(one) for one in references)


def _statements(said: str) -> list[str]:
    """What "the answer is …" and "answer: …" introduce; the whole text if there is no such phrase."""
    return [piece.strip() for piece in _STATED.split(said)[1:]] or [said]


def _only_number(words: Sequence[str]) -> re.Match[str] | None:
    """The one number among words, `None` if there is none, another one, or it is a bound or denied."""
    found = [(i, match) for i, word in enumerate(words) if (match := _NUMBER.fullmatch(word))]
    if len(found) != 1 or (found[0][0] and words[found[0][0] - 1] in _BOUNDS):
        return None
    return found[0][1]


def bucket(answer: str, scheme: str) -> str | None:
    """Returns RSVQA's bucket of a number, or the bucket that a text names.

    Bounds and names are those of the data set's own code (`VQA_model/VocabEncoder.py` of syvlo/RSVQA; Lobry et al.
    2020, arXiv 2003.07333), where 10 belongs to "between 0 and 10", 11 to "between 10 and 100", and so on, and 0
    stays alone. Low resolution (`rsvqa_lr`): all numbers. High resolution (`rsvqa_hr`): areas only, numbers with m2;
    counts are compared as they are. That the code reads whole numbers only is not kept: 0.5m2 is above 0m2.

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
    return _bucket(answer, scheme, bare=False)


def _bucket(answer: str, scheme: str, bare: bool) -> str | None:
    """As [`bucket`]; with `bare` an area may lack its unit, since the question was about one."""
    unit = "m2" if scheme == "rsvqa_hr" else ""
    text = plain(answer)
    if unit and not bare and unit not in text:
        return None
    if not unit and "m2" in text:
        return None
    names = {
        (low, high): f"between {low}{unit} and {high}{unit}" for low, high in zip(_EDGES, _EDGES[1:], strict=False)
    }
    above = f"more than {_EDGES[-1]}{unit}"
    ranges = _RANGE.findall(text)
    if ranges:
        named = {
            above if more == str(_EDGES[-1]) else names.get((int(low or -1), int(high or -1)))
            for low, high, more in ranges
        }
        others = any(_NUMBER.fullmatch(word) for word in _RANGE.sub(" ", text).split())
        return named.pop() if len(named) == 1 and not others else None
    number = _only_number(text.split())
    if number is None or (number[2] or "") not in (unit, "" if bare else unit):
        return None
    value = float(number[1])
    if value <= 0:
        return f"0{unit}" if value == 0 else None
    return next((name for (_, high), name in names.items() if value <= high), above)


# Choices


def _judge_choice(said: str, references: Sequence[str], choices: Sequence[str]) -> tuple[str | None, bool]:
    """The parsed choice (`None`: unparseable) and whether it is right."""
    labels, texts = _labelled(choices)

    def place(text: str) -> int | None:  # in its own words a choice is meant, even "A, B", or "river" near "the river"
        text = text.strip()
        own = [i for i, own in enumerate(texts) if text == choices[i].strip() or len(text) > 1 and text == own.strip()]
        return own[0] if len(own) == 1 else _choice(text, labels, texts)

    right = [place(one) for one in references]
    if None in right:
        wrong = references[right.index(None)]
        raise OptionError(
            f"the reference {wrong!r:.60} is none of the choices {', '.join(choices):.100}, or several; correct it."
        )
    chosen = place(said)
    return (None, False) if chosen is None else (plain(texts[chosen]), chosen in right)


def _labelled(choices: Sequence[str]) -> tuple[str, list[str]]:
    """The letters of choices and their texts: written before them ("B. urban"), the choices themselves, or A, B, …"""
    if all(re.fullmatch(r"[A-Za-z]", one.strip()) for one in choices):
        return "".join(one.strip().upper() for one in choices), [one.strip() for one in choices]
    found = [_LABEL.match(one.strip()) for one in choices]
    if all(found) and len({one[1] for one in found if one}) == len(choices):
        texts = [text.strip()[one.end() :] for text, one in zip(choices, found, strict=True) if one]
        return "".join(one[1] for one in found if one), texts
    return (LETTERS[: len(choices)] if len(choices) <= len(LETTERS) else ""), list(choices)


def _choice(said: str, labels: str, texts: Sequence[str]) -> int | None:
    """The place of the choice that a text means; statements ("the answer is …") that differ cancel each other."""
    said = re.sub(r"[*`\"“”]+", "", said).strip()
    found = {_one_choice(piece, labels, texts) for piece in _statements(said)}
    return found.pop() if len(found) == 1 else None


def _one_choice(said: str, labels: str, texts: Sequence[str]) -> int | None:
    """The choice that a letter, a letter with a text, or a text means; `None` where they contradict each other."""
    letter = _LETTER.match(said)
    if letter is None or letter[1].upper() not in labels:
        return _by_text(said, texts)
    place, rest = labels.index(letter[1].upper()), said[letter.end() :].strip()
    if not rest.strip(".,:;!)"):
        return place
    if letter[2] is None:  # "B urban", "A dense residential area", "B because …"
        by_text = _by_text(said, texts)
        if by_text is not None:  # an "a" before a vowel is no article: "A urban" is a letter and a text
            return None if by_text != place and re.match("a [aeiou]", said, re.I) else by_text
        marked = _by_text(rest, texts) == place or re.match(r"(?:because|since)\b", rest, re.I)
        return place if marked and not _mentions_other(rest, place, texts) else None
    if _ALSO.match(rest) or _mentions_other(rest, place, texts):
        return None
    return place


def _by_text(said: str, texts: Sequence[str]) -> int | None:
    """The choice whose text is said; of yes and no the one that is said among other words."""
    forms = [plain(text) for text in texts]
    if any(set(forms) <= set(pair) for pair in PAIRS):
        told = [i for i, form in enumerate(forms) if form in plain(said).split()]
        return told[0] if len(told) == 1 else None
    same = [i for i, form in enumerate(forms) if form == plain(said)]
    keys = _keys(said)
    found = same or [i for i, text in enumerate(texts) if keys & _keys(text)]
    return found[0] if len(found) == 1 else None


def _mentions_other(rest: str, place: int, texts: Sequence[str]) -> bool:
    """Whether a text behind a letter names a choice that is not the letter's."""

    def words(text: str) -> str:
        return " " + " ".join(_fold(word) for word in plain(text).split()) + " "

    left = words(rest).replace(words(texts[place]), " ") if len(texts[place]) > 1 else words(rest)
    others = (text for i, text in enumerate(texts) if i != place)
    if _by_text(rest, texts) not in (None, place):
        return True
    return any(words(text) in left for text in others if re.search(r"\w\w|\d", text))
