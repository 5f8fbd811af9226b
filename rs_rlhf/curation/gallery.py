"""The samples that the report of `rs-rlhf curate` shows: the best, those at the cut, the worst, near-duplicates.

Their rows are read again from the input, for the images and the questions; no image is ever shown but through the
project's reader. Left out: drawing samples at random (`rs-rlhf browse` does).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.group import completion_text, prompt_text
from ..data.image_text import ImageTextRow
from ..errors import ImageError
from ..imagery.raster import read_image
from ..runs.report_tables import TEXT, Images
from ..runs.tables import thumbnail
from .cut import DROPPED, KEPT, Cut, Samples
from .figures import FATES
from .near_duplicates import read_rows
from .samples import Scored

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
    """Chooses samples to show, none of them twice.

    Args:
        samples ([`Samples`]): With their final `status`.
        strata (`np.ndarray`): Int `(samples,)`: the stratum of each.
        cuts (sequence of [`Cut`]): Of these strata.
        count (`int`): How many of each kind.

    Returns:
        `dict`: `best`, `worst`, `above` and `below` -> numbers of samples, the highest score first, of
            the worst the lowest.
    """
    at = np.full(int(strata.max(initial=0)) + 1, np.nan, np.float32)
    for one in cuts:
        at[one.stratum] = np.nan if one.score is None else one.score
    margin = samples.score - at[strata]
    kept, dropped = samples.status == KEPT, samples.status == DROPPED
    taken = np.zeros(len(strata), bool)
    out: dict[str, list[int]] = {}
    for name, which, key, highest in (
        ("best", kept, samples.score, True),
        ("worst", dropped, samples.score, False),
        ("above", kept, margin, False),
        ("below", dropped, margin, True),
    ):
        places = np.flatnonzero(which & ~taken & np.isfinite(key))
        own = places[np.argsort(-key[places] if highest else key[places], kind="stable")[:count]]
        taken[own] = True
        shown = samples.score[own] if name == "worst" else -samples.score[own]
        out[name] = own[np.argsort(shown, kind="stable")].tolist()
    return out


def make_gallery(
    scored: Scored, samples: Samples, cuts: Sequence[Cut], by: str, near: Sequence[tuple[int, int]], images: int
) -> list[dict[str, Any]]:
    """Reads the samples to show.

    Args:
        scored ([`Scored`]): Where they are from.
        samples ([`Samples`]): With their final `status`.
        cuts (sequence of [`Cut`]): What the cut did in each stratum.
        by (`str`): What the strata are.
        near (sequence of `tuple[int, int]`): Sample left out as a near-duplicate, and sample that stays.
        images (`int`): How many to show at most.

    Returns:
        `list[dict]`: Sections of cards, as `curation_report.page` shows them.
    """
    pairs = near[: images // 6]
    count = (images - 2 * len(pairs)) // 4
    chosen = pick(samples, samples.strata(by)[0], cuts, count)
    chosen["near"] = [number for pair in pairs for number in pair]
    numbers = np.unique(np.array([number for own in chosen.values() for number in own], np.int64))
    if not len(numbers):
        return []
    rows = np.unique(samples.row[numbers], return_index=True)[1]
    ids = scored.row_ids(numbers[rows])
    of_row = dict(zip(samples.row[numbers[rows]].tolist(), range(len(rows)), strict=True))
    cards: dict[int, dict[str, Any]] = {}
    uris = Images()
    for at, row in read_rows(scored.inputs, scored.units, ids):
        picture = _picture(scored, row, uris)
        for number in numbers[[of_row[own] == at for own in samples.row[numbers].tolist()]].tolist():
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
        place = uris.add(thumbnail(read_image(row.images[0], scored.options, row.row_id)))
    except ImageError as error:
        return {"image": None, "why": f"This image cannot be shown: {error}"}
    if place is None:
        return {"image": None, "why": "The page holds as many pictures as it may."}
    more = f"the first of {len(row.images)} images" if len(row.images) > 1 else ""
    return {"image": uris.uris[place], "why": more}


def _card(scored: Scored, samples: Samples, number: int, row: ImageTextRow) -> dict[str, Any]:
    first = int(samples.first[number])
    after = int(samples.first[number + 1]) if number + 1 < len(samples.first) else len(scored.sample)
    places = scored.lines["text_index"].slice(first, after - first).to_pylist()
    answers = [(group.prompt, completion) for group in row.groups for completion in group.completions]
    parts = []
    for place, score in list(zip(places, scored.scores[first:after].tolist(), strict=True))[:PARTS]:
        prompt, completion = answers[place] if place < len(answers) else ([], [])
        asked, said = cut_off(prompt_text(prompt[-1:])), cut_off(completion_text(completion))
        parts.append({"asked": asked, "text": said, "score": f"{score:.4g}" if after - first > 1 else ""})
    about = [
        samples.sources[samples.source[number]],
        samples.labels[samples.label[number]],
        f"{samples.tokens[number]} tokens",
        row.row_id,
    ]
    score = f"{samples.score[number]:.4g}"
    if samples.other is not None:
        other = samples.other[number]
        score += f" (other score: {f'{other:.4g}' if np.isfinite(other) else 'none'})"
    return {
        "parts": parts,
        "more": max(0, after - first - PARTS),
        "score": score,
        "about": " · ".join(filter(None, about)),
        "fate": FATES[samples.status[number]],
    }


def cut_off(text: str) -> str:
    """Returns a text, its beginning if it is very long."""
    return text if len(text) <= TEXT else text[:TEXT] + " … (cut)"


__all__ = ["cut_off", "make_gallery", "pick"]
