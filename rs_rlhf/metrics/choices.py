"""Texts and choices in answers: whether two texts are the same, the text that is meant, the choice that is meant.

Left out: synonyms, spelling mistakes, roman numerals.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from .answers import EXPLAINED, clauses, hedged
from .quantities import only_quantity, plain, quantities

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_BARE_LETTER = re.compile(r"(?:(?:option|choice|letter|answer)\s+)?[(\[<\s]*([A-Z])[)\]>.:!\s]*", re.I)
_LETTER = re.compile(r"[(\[<]*([A-Z])([)\]>.:!]*)(?:\s+(.*))?", re.DOTALL | re.I)
_MENTIONED = re.compile(r"(?<![\w'])(?!A\s+[a-z]|I\s+[a-z])([A-Z])(?![\w'])")
_RIGHT = re.compile(
    r"\s+(?:(?:is|seems|would be) (?:the )?(?:only |most )?(?:correct|right|best|true|accurate|suitable)?"
    r"(?: (?:answer|one|choice|option))?|it is|(?:best )?(?:describes|matches|fits|represents)\b.*)\s*$"
)
_LABEL = re.compile(r"\(?([A-Z])[.):]\s*(?=\S)")
# Words around an answer: "this is an urban area" is "urban".
_LEAD = set(
    "this that it its is statement image picture photo scene shows show showing depicts depict appears appear to be "
    "looks look like seems seem must should in shown i we think believe see would say confirm there are was class "
    "category type belongs represents classified described as area region satellite aerial remote sensing view given "
    "of displayed can clearly definitely choose pick select go going with my answer option choice color colour land "
    "cover use dominant main object for only correct best one".split()
)
_TRAIL = set("area region scene image zone picture photo class category here in this 1 shown visible".split())


def fold(word: str) -> str:
    """One form for the singular and the plural of a word: bus, buses; house, houses; city, cities; volcano(es)."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    return word[:-1] if len(word) > 3 and word.endswith(("se", "xe", "ze", "che", "she", "oe")) else word


@lru_cache(maxsize=4096)
def keys(text: str) -> frozenset[str]:
    """Forms of an answer, of which two that mean the same share one: words folded, spaces dropped.

    Spaces between two digits stay: "1 2" is not "12".
    """
    folded = " ".join(map(fold, plain(text).split()))
    closed = [re.sub(r"(?<!\d) | (?!\d)", "", one) for one in (folded, plain(text))]
    return frozenset({closed[0], fold(closed[1])} - {""})


@lru_cache(maxsize=4096)
def bare(text: str) -> str:
    """The normal form of a text without the words around an answer: "this is an urban area" → "urban"."""
    words = plain(text).split()
    while len(words) > 1 and words[0] in _LEAD:
        del words[0]
    while len(words) > 1 and words[-1] in _TRAIL:
        del words[-1]
    return " ".join(words)


def own_words(piece: str, texts: Sequence[str]) -> int | None:
    """The place of the one text that a piece repeats word for word, whatever else the words could mean."""
    said = piece.strip(" .").lower()
    same = [i for i, text in enumerate(texts) if len(said) > 1 and said == text.strip(" .").lower()]
    return same[0] if len(same) == 1 else None


def same_text(piece: str, texts: Sequence[str]) -> bool:
    """Whether a piece is one of the texts but for articles, plurals, number words and spaces."""
    alike = [text for text in texts if keys(piece) & keys(text) and len(clauses(piece)) == len(clauses(text))]
    return own_words(piece, texts) is not None or bool(alike) and not hedged(piece)


def read_text(piece: str) -> str | None:
    """The text that an answer consists of: its first clause, unless another short one could be the answer too."""
    head = re.split(r"\b(?:with|which|where)\b", EXPLAINED.split(piece)[0])[0]
    said = [bare(clause) for clause, affirmed in clauses(head) if affirmed]
    others = [one for one in said[1:] if len(one.split()) <= 3 and not keys(one) & keys(said[0])]
    return None if not said or others or re.search(r"\bor\b", said[0]) else said[0] or None


def labelled(choices: Sequence[str]) -> tuple[str, list[str]]:
    """The letters of choices and their texts: written before them ("B. urban"), the choices themselves, or A, B, …"""
    if all(re.fullmatch(r"[A-Za-z]", one.strip()) for one in choices):
        return "".join(one.strip().upper() for one in choices), [one.strip() for one in choices]
    found = [_LABEL.match(one.strip()) for one in choices]
    if {one[1] for one in found if one} == set(LETTERS[: len(choices)]):  # "N. America" has no label
        texts = [text.strip()[one.end() :] for text, one in zip(choices, found, strict=True) if one]
        return "".join(one[1] for one in found if one), texts
    return (LETTERS[: len(choices)] if len(choices) <= len(LETTERS) else ""), list(choices)


def read_choice(piece: str, labels: str, texts: Sequence[str]) -> int | None:
    """The place of the choice that a text means; `None` if it means none, or names others beside it."""
    head, *reason = EXPLAINED.split(piece, maxsplit=1)
    affirmed = [clause for clause, meant in clauses(head) if meant]
    found = [(_one_choice(clause, labels, texts), clause) for clause in affirmed]
    chosen = {place for place, _ in found if place is not None}
    named = {other for place, clause in found if place is None for other in _named(clause, labels, texts)}
    if all(_by_text(clause, texts) is None for clause in affirmed):  # of a letter the reason has to fit
        named |= {other for clause, meant in clauses(" ".join(reason)) if meant for other in _named(clause, "", texts)}
    return chosen.pop() if len(chosen) == 1 and named <= chosen else None


def letter_place(clause: str, labels: str) -> int | None:
    """The place of the choice whose letter is all of a clause."""
    letter = _BARE_LETTER.fullmatch(clause)
    return labels.index(letter[1].upper()) if letter and letter[1].upper() in labels else None


def _one_choice(clause: str, labels: str, texts: Sequence[str]) -> int | None:
    """The choice that a letter, a letter with a text, or a text means; `None` where they contradict each other."""
    place = letter_place(clause, labels)
    if place is not None:
        return place
    words = _RIGHT.sub("", clause).split()
    while len(words) > 1 and words[0].lower() in {"the", *_LEAD}:
        del words[0]
    letter = _LETTER.fullmatch(" ".join(words))
    if letter is None or (letter[1].upper() if letter[2] else letter[1]) not in labels:
        return _by_text(clause, texts)
    place, mark, text = labels.index(letter[1].upper()), letter[2], letter[3]
    if not text:
        return place
    if mark or letter[1] != "A":  # "B) urban", "B urban"
        agrees = _by_text(text, texts) == place or mark and _named(text, labels, texts) <= {place}
        return place if agrees else None
    by_text = _by_text(clause, texts)  # "A bridge" has an article; "A urban" is a letter and a text
    return None if by_text != place and re.match("[aeiou]", text, re.I) else by_text


def _by_text(said: str, texts: Sequence[str]) -> int | None:
    """The choice whose text is said, with or without words around it."""
    if all(len(text) == 1 and text.isalpha() for text in texts):
        return None
    same = [i for i, text in enumerate(texts) if plain(text) == plain(said)]
    for form in (said, bare(said)):
        same = same or [i for i, text in enumerate(texts) if keys(form) & (keys(text) | keys(bare(text)))]
    if not same and len(amounts := {*quantities(said)}) == 1:
        same = [i for i, text in enumerate(texts) if (amount := only_quantity(text)) and amount in amounts]
    return same[0] if len(same) == 1 else None


def _named(clause: str, labels: str, texts: Sequence[str]) -> set[int]:
    """The choices that a text names by letter or by text; a name inside a longer one is not another choice."""
    named = {labels.index(letter) for letter in _MENTIONED.findall(clause) if letter in labels}
    left = f" {' '.join(map(fold, plain(clause).split()))} "
    forms = {f" {' '.join(map(fold, plain(text).split()))} ": i for i, text in enumerate(texts)}
    for form in sorted(forms, key=len, reverse=True):
        if form in left and re.search(r"\w\w|\d", form):
            named.add(forms[form])
            left = left.replace(form, " | ")
    return named
