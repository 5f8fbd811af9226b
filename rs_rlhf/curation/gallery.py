"""Gallery of the curation report: the best samples, those at the cut, the worst, and near-duplicates.

Their rows are read again from the input, for the images and the questions; images are shown only through the
project's reader. Left out: random samples (`rs-rlhf browse` shows them).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.group import completion_text, prompt_text
from ..data.image_text import ImageTextRow
from ..errors import ImageError
from ..imagery.raster import read_image
from ..runs.report_tables import Images, cut
from ..runs.tables import thumbnail
from .cut import DROPPED, KEPT, Cut, Samples
from .figures import FATES
from .near_duplicates import read_rows
from .samples import Scored

SIDE = 384  # longest side of a picture, which is enlarged when it is clicked
PARTS = 6  # texts of a sample that are shown
SECTIONS = {
    "best": ("The best", "Kept, the highest scores."),
    "above": ("Just above the cut", "Kept, nearest to the cut (to that of their source or class, if each has one)."),
    "below": ("Just below the cut", "Dropped, nearest to the cut."),
    "worst": ("The worst", "Dropped, the lowest scores."),
    "near": (
        "Near-duplicate images",
        "Each that was left out, and beside it the one that stays: by the mean score of its samples.",
    ),
}


def pick(samples: Samples, strata: np.ndarray, cuts: Sequence[Cut], count: int) -> dict[str, list[int]]:
    """Chooses `count` samples of each kind to show, none of them twice.

    Returns `best`, `worst`, `above` and `below` (the cut of their stratum) -> numbers of samples, the highest score
    first, of the worst the lowest first.
    """
    lowest_kept = np.full(int(strata.max(initial=0)) + 1, np.nan, np.float32)
    for made in cuts:
        lowest_kept[made.stratum] = np.nan if made.score is None else made.score
    margin = samples.score - lowest_kept[strata]
    kept, dropped = samples.status == KEPT, samples.status == DROPPED
    taken = np.zeros(len(strata), bool)
    picked: dict[str, list[int]] = {}
    for name, which, key in (
        ("best", kept, -samples.score),
        ("worst", dropped, samples.score),
        ("above", kept, margin),
        ("below", dropped, -margin),
    ):
        numbers = np.flatnonzero(which & ~taken & np.isfinite(key))
        numbers = numbers[np.argsort(key[numbers], kind="stable")[:count]]
        taken[numbers] = True
        shown = samples.score[numbers] if name == "worst" else -samples.score[numbers]
        picked[name] = numbers[np.argsort(shown, kind="stable")].tolist()
    return picked


def make_gallery(
    scored: Scored, samples: Samples, cuts: Sequence[Cut], by: str, near: Sequence[tuple[int, int]], images: int
) -> list[dict[str, Any]]:
    """Reads at most `images` samples to show; returns sections of cards, see [`rs_rlhf.curation.report.page`].

    `near` are pairs of the sample that is dropped as a near-duplicate and the sample that stays.
    """
    pairs = near[: images // 6]
    chosen = pick(samples, samples.strata(by)[0], cuts, (images - 2 * len(pairs)) // 4)
    chosen["near"] = [number for pair in pairs for number in pair]
    numbers = np.unique(np.array([number for group in chosen.values() for number in group], np.int64))
    if not len(numbers):
        return []
    _, first, row_of = np.unique(samples.row[numbers], return_index=True, return_inverse=True)
    cards: dict[int, dict[str, Any]] = {}
    uris = Images()
    for i, row in read_rows(scored.inputs, scored.units, scored.row_ids(numbers[first])):
        picture = _picture(scored, row, uris)
        for number in numbers[row_of == i].tolist():
            cards[number] = {**_card(scored, samples, number, row), **picture}
    return [
        {"title": title, "text": text, "cards": [cards[number] for number in chosen[name]], "pairs": name == "near"}
        for name, (title, text) in SECTIONS.items()
        if chosen[name]
    ]


def _picture(scored: Scored, row: ImageTextRow, uris: Images) -> dict[str, Any]:
    """The first image of a row as a data URI, or why there is none."""
    if not row.images:
        return {"image": None, "why": "no image" if row.error is None else str(row.error)}
    try:
        index = uris.add(thumbnail(read_image(row.images[0], scored.options, row.row_id), SIDE))
    except ImageError as error:
        return {"image": None, "why": f"This image cannot be shown: {error}"}
    if index is None:
        return {"image": None, "why": "The page holds as many pictures as it may."}
    more = f"the first of {len(row.images)} images" if len(row.images) > 1 else ""
    return {"image": uris.uris[index], "why": more}


def _card(scored: Scored, samples: Samples, number: int, row: ImageTextRow) -> dict[str, Any]:
    texts = scored.text_slice(number)
    count = texts.stop - texts.start
    indices, scores = scored.lines["text_index"][texts].to_pylist(), scored.scores[texts].tolist()
    answers = [(group.prompt, completion) for group in row.groups for completion in group.completions]
    parts = []
    for index, text_score in list(zip(indices, scores, strict=True))[:PARTS]:
        prompt, completion = answers[index] if index < len(answers) else ([], [])
        asked, text = cut(prompt_text(prompt[-1:])), cut(completion_text(completion))
        parts.append({"asked": asked, "text": text, "score": f"{text_score:.4g}" if count > 1 else ""})
    names = samples.sources[samples.source[number]], samples.labels[samples.label[number]]
    score = f"{samples.score[number]:.4g}"
    if samples.other is not None:
        other = samples.other[number]
        score += f" (other score: {f'{other:.4g}' if np.isfinite(other) else 'none'})"
    return {
        "parts": parts,
        "more": max(0, count - PARTS),
        "score": score,
        "about": " · ".join(filter(None, [*names, f"{samples.tokens[number]} tokens", row.row_id])),
        "fate": FATES[samples.status[number]],
    }
