"""Noisy pools of image-text rows, like those found on the web, with known damage: `rs-rlhf data damage`.

Curation is judged by what it keeps and by what is learned from that, so it needs a data set whose errors are known:
true captions (and class labels, as questions and answers) of which a stated share is damaged. Each row says `clean`
and `damage`, which no score ever reads. Kinds for captions:

- `another_class`: a caption of an image of another class, the commonest error of web data;
- `wrong_class`: the class named in the caption is replaced by another;
- `attribute`: a colour, number, size, shape or object is made wrong, see [`damage_attribute`];
- `vague`: says nothing about the image.

For labels: `wrong_label`, a class drawn as often as it occurs. Human or machine paraphrases are left as they are.
Left out: bad images, texts in other languages, advertising, file names as captions.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..data.captioned_images import LABEL_QUESTION, class_name
from ..errors import OptionError
from .damage import ImagePool, check_kinds

CAPTION_DAMAGE = ("another_class", "wrong_class", "attribute", "vague")
_VAGUE = (
    "a view of the ground from the air .",
    "some land can be seen here .",
    "a photo taken by a satellite .",
    "there are different colors in this photo .",
    "an overhead photo of a place .",
    "this area has some objects .",
    "land cover in a remote sensing scene .",
    "the photo shows a part of the earth .",
)


def damaged_caption(
    caption: str, row: Mapping[str, Any], kind: str, pool: ImagePool, rng: random.Random
) -> str | None:
    """Damages a true caption of `row` in one way of [`CAPTION_DAMAGE`]; `None` if it cannot be damaged so."""
    if kind == "vague":
        return rng.choice(_VAGUE)
    if kind != "wrong_class":
        return pool.wrong_caption(row, caption, kind, rng)
    if not row["label"]:
        return None
    name, other = class_name(row["label"]), pool.other_label(row, rng)
    if other is None:
        return None
    # "storage tank" is found in "storage tanks" as well, and "parking" alone says the class of "a parking lot".
    for words in (name, name.removesuffix("s"), name.split()[0]):
        text, count = re.subn(rf"\b{re.escape(words)}s?\b", other[0], caption, count=1, flags=re.I)
        if count and len(words) > 3:
            return text
    return None


def damaged_rows(
    rows: Sequence[Mapping[str, Any]],
    rate: float,
    *,
    seed: int = 0,
    kinds: Sequence[str] = CAPTION_DAMAGE,
    questions: bool = False,
) -> Iterator[dict[str, Any]]:
    """Turns captioned images into image-text rows, one per distinct caption, and damages a share of them.

    Args:
        rows (sequence of `dict`): As for [`rs_rlhf.preferences.damage.build_pairs`].
        rate (`float`): The chance of each text to be damaged; a caption that none of the kinds fits stays clean.
        seed (`int`): Same rows and seed, same texts.
        kinds (sequence of `str`): Kinds of damage, drawn alike; one that does not fit a caption gives way to another.
        questions (`bool`): Also ask for the scene class of each image that has one.

    Yields:
        `dict`: `image`, `caption` or `question` and `answer`, `label` (the true class), `clean`, `damage` (`""` if
        clean), `source` (`"captions"` or `"labels"`) and `id`.

    Raises:
        DataError, OptionError: A row that cannot be used; a rate outside 0 to 1, or an unknown kind.
    """
    if not 0 <= rate <= 1:
        raise OptionError(f"--rate is {rate}; it must lie between 0 and 1.", "rate")
    check_kinds(kinds, CAPTION_DAMAGE)
    pool = ImagePool(rows)
    for row in pool.rows:
        base = {"image": row["image"], "label": row["label"]}
        for number, caption in enumerate(dict.fromkeys(row["captions"])):
            rng = random.Random(f"{seed}:{row['id']}:{number}")
            text, damage = caption, ""
            if rng.random() < rate:
                for kind in rng.sample(list(kinds), len(kinds)):
                    wrong = damaged_caption(caption, row, kind, pool, rng)
                    if wrong is not None and wrong not in row["captions"]:
                        text, damage = wrong, kind
                        break
            about = {"clean": not damage, "damage": damage, "source": "captions", "id": f"{row['id']}#{number}"}
            yield {**base, "caption": text, **about}
        if questions and row["label"]:
            rng = random.Random(f"{seed}:{row['id']}:label")
            other = pool.other_label(row, rng) if rng.random() < rate else None
            answer = class_name(row["label"]) if other is None else other[0]
            about = {"clean": other is None, "damage": "" if other is None else "wrong_label", "source": "labels"}
            yield {**base, "question": LABEL_QUESTION, "answer": answer, **about, "id": f"{row['id']}#label"}
