"""Preference lists from captioned or labelled images: one right text against many wrong ones.

In the group form a further text costs a few tokens, the image none, so a list teaches more for its time than pairs do:
its kinds of damage are those of `pairs`, several at once. The rejected are not ranked among themselves, so lists are
for `--ranked_rejected false`. Left out: captions of other images of the same class, which may be true.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..errors import OptionError
from .damage import PROMPTS, ImagePool, class_name, damage_attribute, truncated

LIST_KINDS = ("another_class", "attribute", "truncated", "wrong_label")
# The share of each kind in a list of captions; what an image cannot have is made up for by another image's captions.
_TURNS = ("another_class", "attribute", "another_class", "truncated")


def build_lists(
    rows: Iterable[Mapping[str, Any]],
    *,
    rejected: int = 8,
    lists_per_image: int = 3,
    seed: int = 0,
    stats: dict[str, Counter[str]] | None = None,
) -> Iterator[dict[str, Any]]:
    """Makes preference lists in TRL's form from captioned or labelled images.

    Args:
        rows (iterable of `dict`): As for [`rs_rlhf.preferences.damage.build_pairs`].
        rejected (`int`): Rejected texts of a list at most.
        lists_per_image (`int`): Lists of an image at most: every third one is of the class, if the image has one, the
            others of its captions in turn. An image has one list of the class at most.
        seed (`int`): Same rows and seed, same lists.
        stats (`dict`, *optional*): Filled with `{"made": Counter, "skipped": Counter}` by kind: rejected texts, and
            lists that could not be made.

    Yields:
        `dict`: `prompt`, `chosen`, `rejected` (list), `image`, `kind` (`"captions"` or `"labels"`), `source`, `id`.

    Raises:
        ValueError: Fewer than one rejected text or list.
    """
    if rejected < 1 or lists_per_image < 1:
        raise OptionError(f"rejected ({rejected}) and lists_per_image ({lists_per_image}) must be at least 1.")
    stats = {} if stats is None else stats
    made, skipped = stats.setdefault("made", Counter()), stats.setdefault("skipped", Counter())
    pool = ImagePool(list(rows))
    names = sorted({class_name(row["label"]) for row in pool.labelled})
    for row in pool.rows:
        rng = random.Random(f"{seed}:{row['id']}:lists")
        captions = rng.sample(row["captions"], len(row["captions"]))
        label = class_name(row["label"]) if row["label"] else ""
        places = ["labels"] if label and lists_per_image > 1 or not captions else []
        places = ["captions"] * min(lists_per_image - len(places), len(captions)) + places
        for turn, kind in enumerate(places):
            if kind == "labels":
                others = [name for name in names if name != label]
                texts = {text: "wrong_label" for text in rng.sample(others, min(rejected, len(others)))}
                chosen, prompt = label, PROMPTS["wrong_label"]
            else:
                chosen, prompt = captions[turn], ""
                texts = _wrong_captions(row, chosen, rejected, pool, rng)
            if not texts:
                skipped["wrong_label" if kind == "labels" else "another_class"] += 1
                continue
            made.update(texts.values())
            yield {
                "prompt": prompt,
                "chosen": chosen,
                "rejected": list(texts),
                "image": row["image"],
                "kind": kind,
                "source": row.get("source", ""),
                "id": f"{row['id']}#list{turn}",
            }


def _wrong_captions(
    row: Mapping[str, Any], caption: str, count: int, pool: ImagePool, rng: random.Random
) -> dict[str, str]:
    """Wrong captions of an image, none twice, and the kind of each."""
    found: dict[str, str] = {}
    for attempt in range(4 * count):
        kind = _TURNS[attempt % len(_TURNS)]
        text: str | None
        if kind == "attribute":
            text = damage_attribute(caption, [*row["captions"], class_name(row["label"])], rng, pool.bigrams)
        elif kind == "truncated":
            text = truncated(caption, rng)
        else:
            drawn = pool.swap(row, False, rng) if row["label"] else None
            text = drawn[1] if drawn else None
        if text is not None and text not in row["captions"]:
            found.setdefault(text, kind)
        if len(found) == count:
            break
    return found


__all__ = ["LIST_KINDS", "build_lists"]
