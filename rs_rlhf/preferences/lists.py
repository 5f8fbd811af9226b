"""Preference lists from captioned or labelled images: one right text against many wrong ones.

In the group form a further text costs a few tokens and the image none, so a list teaches more in its time than pairs
do. Its kinds of damage are those of pairs, several at once. The rejected texts are not ranked among themselves, so
lists are for `--ranked_rejected false`. Left out: captions of other images of the same class, which may be true.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..data.captioned_images import LABEL_QUESTION, class_name
from ..errors import OptionError
from .damage import ImagePool

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
        rejected (`int`): Maximum number of rejected texts of a list.
        lists_per_image (`int`): Maximum number of lists of an image: one of its class, if it has one, and the others
            of its captions in turn.
        seed (`int`): Same rows and seed, same lists.
        stats (`dict`, *optional*): Filled with `{"made": Counter, "skipped": Counter}` by kind: rejected texts, and
            lists that could not be made.

    Yields:
        `dict`: `prompt`, `chosen`, `rejected` (list), `image`, `kind` (`"captions"` or `"labels"`), `source`, `id`.

    Raises:
        DataError, OptionError: A row that cannot be used; fewer than one rejected text or list.
    """
    if rejected < 1 or lists_per_image < 1:
        raise OptionError(f"rejected ({rejected}) and lists_per_image ({lists_per_image}) must be at least 1.")
    stats = {} if stats is None else stats
    made, skipped = stats.setdefault("made", Counter()), stats.setdefault("skipped", Counter())
    pool = ImagePool(rows)
    names = sorted({class_name(row["label"]) for row in pool.labelled})
    for row in pool.rows:
        rng = random.Random(f"{seed}:{row['id']}:lists")
        captions = rng.sample(row["captions"], len(row["captions"]))
        label = class_name(row["label"])
        kinds = ["labels"] if label and lists_per_image > 1 or not captions else []
        kinds = ["captions"] * min(lists_per_image - len(kinds), len(captions)) + kinds
        for turn, kind in enumerate(kinds):
            if kind == "labels":
                others = [name for name in names if name != label]
                texts = dict.fromkeys(rng.sample(others, min(rejected, len(others))), "wrong_label")
                chosen, prompt = label, LABEL_QUESTION
            else:
                chosen, prompt = captions[turn], ""
                texts = _wrong_captions(row, chosen, rejected, pool, rng)
            if not texts:
                skipped["wrong_label" if kind == "labels" else "another_class"] += 1
                continue
            made.update(texts.values())
            base = {"prompt": prompt, "chosen": chosen, "rejected": list(texts), "image": row["image"], "kind": kind}
            yield base | {"source": row.get("source", ""), "id": f"{row['id']}#list{turn}"}


def _wrong_captions(
    row: Mapping[str, Any], caption: str, count: int, pool: ImagePool, rng: random.Random
) -> dict[str, str]:
    """Distinct wrong captions of an image, with the kind of each."""
    kinds: dict[str, str] = {}
    for attempt in range(4 * count):
        kind = _TURNS[attempt % len(_TURNS)]
        text = pool.wrong_caption(row, caption, kind, rng)
        if text is not None and text not in row["captions"]:
            kinds.setdefault(text, kind)
        if len(kinds) == count:
            break
    return kinds
