"""Preference pairs from captioned or labelled images, each with a known kind of damage.

A reward model learns from (chosen, rejected) texts of one image. If nobody has ranked answers, a ranking can be made:
the chosen text is a human caption (or the class) of the image; the rejected one belongs to another image, or is the
same text with one thing made wrong. Every pair records its `kind`, so that accuracy can be read kind by kind: a model
that is right on `truncated` and at chance on `another_class` has not looked at the image.

Texts from other images (`another_class`, `same_class`, `wrong_label`) are drawn as the chosen ones are, so that texts
alone hardly tell them apart: on RSICD captions a bag-of-words model that never sees the image gets 45, 58 and 50 % of
unseen pairs right. `attribute` and `truncated` do leave traces in the text (86 and 100 %); they teach what the others
cannot, and their share is the caller's choice. Nobody has checked that a `same_class` caption is wrong for the image:
it only says other things than the image's own captions.

Choices for an image depend on the seed and its id alone, except for the image that lends a text: more data may change
that one. Left out: damage by a language model (no ground truth).
"""

from __future__ import annotations

import difflib
import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from ..data.captioned_images import LABEL_QUESTION, class_name
from ..errors import DataError, OptionError

NEEDS = {
    "another_class": "captions, a label, and another class with captions that say something else",
    "same_class": "captions, a label, and an image of its class whose caption says something else",
    "attribute": "a caption with a colour, number, size, shape or object that can be made wrong",
    "wrong_label": "a label, and another class",
    "truncated": "captions",
}
KINDS = tuple(NEEDS)
# Kind -> prompt. A caption answers the empty question: the published form for a plain image-text pair.
PROMPTS: dict[str, str] = dict.fromkeys(KINDS, "") | {"wrong_label": LABEL_QUESTION}
_LABEL_TEXTS = (
    "{}",
    "{} .",
    "the scene class is {} .",
    "this is an aerial image of {} .",
    "an aerial image of {}",
    "the image shows the scene class {} .",
)
_EMPTY_TEXTS = (
    "an aerial image .",
    "there are some things in the picture .",
    "this is a picture .",
    "it is an image from above .",
    "there is something in the image .",
    "a remote sensing image .",
)

# Attribute and a family of groups a line. Words of one group can be true of the same thing, so a word is only ever
# replaced by one of another group of its family, and only if no caption of the image uses that other group.
_FAMILIES = """
color: green blue cyan, white silver gray grey black, yellow khaki brown orange red
number: two, three, four, five, six, seven, eight, nine, ten
number: 2, 3, 4, 5, 6, 7, 8, 9
quantity: many numerous, few
size: large big huge vast, small tiny
size: tall, low
size: long, short
size: wide broad, narrow
size: dense, sparse scarce
size: densely, sparsely
shape: straight, curved crooked winding twisted
shape: rectangular, circular round oval, triangular
shape: rectangle, circle oval, triangle
object: river lake pond sea ocean, airport, church, stadium playground, mountain hill, desert beach, forest, \
bridge viaduct overpass road highway, port harbor harbour dock, school, factory, meadow farmland lawn
object: planes aircraft airplanes, boats ships, cars vehicles
"""
# Word -> attribute, its family and its group within the family.
_WORDS: dict[str, tuple[str, list[str], str]] = {
    word: (name, groups.strip().split(", "), group)
    for name, _, groups in (line.partition(":") for line in _FAMILIES.strip().splitlines())
    for group in groups.strip().split(", ")
    for word in group.split()
}
# So common beside anything else that naming them would often be true.
_NEVER_INSERTED = frozenset(
    "pond road highway scarce cars vehicles lawn dock factory playground farmland school".split()
)
# An object is only replaced where it stands alone: "a river with" but not "a river bank".
_BEFORE_OBJECT = frozenset("a an the this one large big small long wide narrow curved many some several and".split())
_AFTER_OBJECT = frozenset(
    " is are was with and in on near by next which that has between beside at to from surrounded close".split(" ")
)
_FUNCTION_WORDS = frozenset(
    "a an the of in on at by to with and or is are was were be been it its this that there here some many several few "
    "near next close around between two both side sides one "
    "located found piece pieces area picture image which where has have together lot".split()
)


def _tokens(text: str) -> list[str]:
    return [word for word in re.findall(r"\w+", text.lower()) if word not in ("a", "an", "the")]


def near_equal(first: str, second: str) -> bool:
    """Whether two texts say nearly the same: case, punctuation and articles aside, 90 % of their words are shared."""
    a, b = _tokens(first), _tokens(second)
    return a == b or len({*a} & {*b}) >= 0.9 * len({*a} | {*b})


def _content(text: str) -> set[str]:
    # A plural counts as its singular: "tree" says nothing that "trees" has not said.
    return {w[:-1] if len(w) > 3 and w.endswith("s") else w for w in _tokens(text)} - _FUNCTION_WORDS


def _adds(caption: str, others: Sequence[str], same_class: bool) -> bool:
    """Whether a caption says something that none of the others says, so that it is likely wrong where they are right.

    Captions of one class are full of synonyms, so there a second new word, or a number, is asked for.
    """
    if any(near_equal(caption, other) for other in others):
        return False
    new = _content(caption).difference(*map(_content, others))
    return len(new) > same_class or any(_WORDS.get(word, ("",))[0] == "number" for word in new)


def _bigrams(captions: Iterable[str]) -> Counter[tuple[str, str]]:
    return Counter(pair for caption in captions for pair in pairwise(re.findall(r"\w+", caption.lower())))


def damage_attribute(
    caption: str,
    known_texts: Iterable[str],
    rng: random.Random,
    bigrams: Mapping[tuple[str, str], int] | None = None,
) -> str | None:
    """Makes one attribute of a caption wrong: a colour, number, quantity, size, shape or object; `None` if it holds
    none.

    What `known_texts` (all captions of the image, and its class in words) mention is never put in, since it may well
    be true. A replacement that reads naturally by the `bigrams` of the data is preferred, so that odd wording alone
    does not betray the damage.
    """
    bigrams = bigrams or {}
    known = {word for text in known_texts for word in re.findall(r"\w+", text.lower())} | {*_tokens(caption)}
    known |= {word[:-1] for word in known if word.endswith("s")}
    parts = re.split(r"(\W+)", caption)  # words at even indices, separators at odd ones
    words = ["", *(word.lower() for word in parts[::2]), ""]
    options: dict[str, list[tuple[int, list[str]]]] = defaultdict(list)
    for index in range(1, len(words) - 1):
        before, word, after = words[index - 1 : index + 2]
        if word in _WORDS and not _is_idiom(before, word, after):
            name, family, own_group = _WORDS[word]
            groups = [group.split() for group in family if group != own_group and not known & {*group.split()}]
            new = [w for group in groups for w in group if w not in _NEVER_INSERTED]
            if new:
                options[name].append((index, new))
    if not options:
        return None
    index, new = rng.choice(options[rng.choice(sorted(options))])
    before, after = words[index - 1], words[index + 1]
    weights = [(0.1 + bigrams.get((before, w), 0)) * (0.1 + bigrams.get((w, after), 0)) for w in new]
    word = rng.choices(new, weights)[0]
    at = 2 * index - 2
    parts[at] = word.capitalize() if parts[at][:1].isupper() else word
    if before in ("a", "an"):
        article = "an" if word[0] in "aeiou" else "a"
        parts[at - 2] = article.capitalize() if parts[at - 2][:1].isupper() else article
    return "".join(parts)


def _is_idiom(before: str, word: str, after: str) -> bool:
    """Whether a word between its neighbours does not say what it says alone, or would read oddly when replaced."""
    name = _WORDS[word][0]
    return (
        (name == "number" and after.startswith("side"))  # "on two sides of" is an idiom, not a count
        or (word == "few" and before == "a")
        or (word == "green" and after.startswith("building"))  # translators' slip for "buildings and green trees"
        or (name == "object" and (after not in _AFTER_OBJECT or before not in _BEFORE_OBJECT | {*_WORDS, ""}))
    )


def truncated(caption: str, rng: random.Random) -> str:
    """Cuts a caption short, repeats its beginning without end, or replaces it by a text that fits any image."""
    words = caption.split()
    way = rng.randrange(4) if len(words) > 5 else 3
    if way == 3:
        return rng.choice(_EMPTY_TEXTS)
    start = " ".join(words[: rng.randint(2, 4)])
    return (start, f"{start} .", f"{start} and and and the")[way]


class ImagePool:
    """All rows of a data set, indexed for drawing texts of other images.

    Args:
        rows (iterable of `dict`): As for [`build_pairs`].

    Raises:
        DataError: A row without an image, or without texts of the right type.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]]):
        self.rows = [_checked(row, number) for number, row in enumerate(rows)]
        self.captioned = [row for row in self.rows if row["captions"] and row["label"]]
        self.labelled = [row for row in self.rows if row["label"]]
        self.by_label: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in self.captioned:
            self.by_label[row["label"]].append(row)
        self.bigrams = _bigrams(caption for row in self.rows for caption in row["captions"])

    def swap(self, row: Mapping[str, Any], same_class: bool, rng: random.Random) -> tuple[str, str, str] | None:
        """A caption of `row`, one of another image, and that image's id, each saying what the other image's do not.

        Chosen and rejected are drawn alike, uniformly over images and then over captions, and the condition on them
        is the same both ways, so that nothing in the texts tells which one is right.
        """
        others = self.by_label[row["label"]] if same_class else self.captioned
        for _ in range(64 if others and row["label"] else 0):
            chosen, other = rng.choice(row["captions"]), rng.choice(others)
            rejected = rng.choice(other["captions"])
            if other["id"] == row["id"] or (other["label"] == row["label"]) != same_class:
                continue
            if _adds(rejected, row["captions"], same_class) and _adds(chosen, other["captions"], same_class):
                return chosen, rejected, other["id"]
        return None

    def other_label(self, row: Mapping[str, Any], rng: random.Random) -> tuple[str, str] | None:
        """Class of another image in words, drawn as often as the classes occur, and the id of that image."""
        for _ in range(64):
            other = rng.choice(self.labelled)
            if (name := class_name(other["label"])) != class_name(row["label"]):
                return name, other["id"]
        return None

    def wrong_caption(self, row: Mapping[str, Any], caption: str, kind: str, rng: random.Random) -> str | None:
        """A caption of `row` with an `attribute` made wrong or `truncated`, or one of an image of another class."""
        if kind == "attribute":
            return damage_attribute(caption, [*row["captions"], class_name(row["label"])], rng, self.bigrams)
        if kind == "truncated":
            return truncated(caption, rng)
        drawn = self.swap(row, False, rng)
        return drawn and drawn[1]


def _checked(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Row with `id`, `captions` and `label` always present, or an error that says what is missing."""
    where = row.get("where") or f"Row {number}"
    image, label = row.get("image"), row.get("label")
    captions = row.get("captions") or ([row["caption"]] if row.get("caption") else [])
    if not image:
        raise DataError("no `image`; expected a path or {'bytes', 'path'}.", "image", where)
    if isinstance(captions, str) or not all(isinstance(caption, str) for caption in captions):
        raise DataError(f"`captions` must be a list of strings, not {captions!r:.60}.", "captions", where)
    if label is not None and not isinstance(label, str):
        detail = f"`label` must be the class name, not {label!r:.60}; map numbers to names first."
        raise DataError(detail, "label", where)
    captions = [caption.strip() for caption in captions if caption.strip()]
    if not captions and not label:
        raise DataError("neither `captions` nor `label`; a pair needs one of them.", "captions", where)
    name = image if isinstance(image, (str, os.PathLike)) else image.get("path") or number
    return {**row, "id": str(row.get("id") or name), "captions": captions, "label": label or ""}


def _one_pair(row: Mapping[str, Any], kind: str, pool: ImagePool, rng: random.Random) -> tuple[str, str, str] | None:
    """Chosen text, rejected text and the id of the image that lent the latter, or `None` if the row cannot serve."""
    captions = row["captions"]
    if kind == "wrong_label":
        drawn = pool.other_label(row, rng) if row["label"] else None
        text = rng.choice(_LABEL_TEXTS)
        return drawn and (text.format(class_name(row["label"])), text.format(drawn[0]), drawn[1])
    if not captions:
        return None
    if kind == "attribute":
        for chosen in rng.sample(captions, len(captions)):
            damaged = pool.wrong_caption(row, chosen, kind, rng)
            if damaged is not None:
                return chosen, damaged, ""
        return None
    if kind == "truncated":
        chosen = rng.choice(captions)
        return chosen, truncated(chosen, rng), ""
    return pool.swap(row, kind == "same_class", rng)


def check_kinds(kinds: Sequence[str], choices: Sequence[str]) -> None:
    """Raises an [`OptionError`] that names the nearest choice if a kind is unknown, or if there is none."""
    for kind in kinds or [""]:
        if kind not in choices:
            near = difflib.get_close_matches(kind, choices, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            what = f"unknown kind {kind!r}" if kind else "no kinds given"
            raise OptionError(f"--kinds: {what}; choose from: {', '.join(choices)}.{hint}", "kinds")


def build_pairs(
    rows: Iterable[Mapping[str, Any]],
    *,
    kinds: Sequence[str] = KINDS,
    pairs_per_image: int = 5,
    seed: int = 0,
    answer_prompt: str = "",
    stats: dict[str, Counter[str]] | None = None,
) -> Iterator[dict[str, Any]]:
    """Makes preference pairs in TRL's form from captioned or labelled images.

    Args:
        rows (iterable of `dict`): Images with `image` (path, or `{"bytes", "path"}`), `captions` (`list[str]`) or
            `caption`, and/or `label` (class name); `id` and `source` are passed on if present. All are read first,
            because the rejected text of one comes from another.
        kinds (sequence of `str`): Kinds of damage to make.
        pairs_per_image (`int`): Attempts per image. The kinds take turns, starting anywhere, so the mix is balanced
            over images; no pair is made twice for an image.
        seed (`int`): Same rows and seed, same pairs.
        answer_prompt (`str`): Prompt of the caption kinds; [`PROMPTS`] has the other.
        stats (`dict`, *optional*): Filled with `{"made": Counter, "skipped": Counter}` by kind, once all pairs are
            taken: attempts that the image could not serve are skipped and counted.

    Yields:
        `dict`: `prompt`, `chosen`, `rejected`, `image` as in the row, `kind`, `source`, `id`, and `rejected_from`, the
        id of the image that the rejected text belongs to (`""` after damage).

    Raises:
        DataError, OptionError: A row that cannot be used; an unknown kind, or fewer than one pair per image.

    Example:

    ```python
    >>> rows = [{"image": "a.png", "label": "Port"}, {"image": "b.png", "label": "BareLand"}]
    >>> next(build_pairs(rows, kinds=["wrong_label"], pairs_per_image=1))["prompt"]
    'What is the scene class of this image?'

    ```
    """
    check_kinds(kinds, KINDS)
    if pairs_per_image < 1:
        raise OptionError(f"pairs_per_image is {pairs_per_image}; it must be at least 1.", "pairs_per_image")
    stats = {} if stats is None else stats
    made, skipped = stats.setdefault("made", Counter()), stats.setdefault("skipped", Counter())
    pool = ImagePool(rows)
    for row in pool.rows:
        # A string seed is hashed by `random` itself, so it does not vary between processes as `hash` would.
        order = random.Random(f"{seed}:{row['id']}").sample(list(kinds), len(kinds))
        seen: set[tuple[str, str]] = set()
        for turn in range(pairs_per_image):
            kind = order[turn % len(order)]
            pair = _one_pair(row, kind, pool, random.Random(f"{seed}:{row['id']}:{kind}:{turn}"))
            if pair is None or pair[:2] in seen or _tokens(pair[0]) == _tokens(pair[1]):
                skipped[kind] += 1
                continue
            seen.add(pair[:2])
            made[kind] += 1
            prompt = LABEL_QUESTION if kind == "wrong_label" else answer_prompt
            base = {"prompt": prompt, "chosen": pair[0], "rejected": pair[1], "image": row["image"], "kind": kind}
            yield base | {"source": row.get("source", ""), "id": f"{row['id']}#{turn}", "rejected_from": pair[2]}
