"""Groups as HTML, for notebooks: thumbnails, the question, and its texts, with their scores the best first.

Nothing that comes from the data is markup, thumbnails are small JPEGs inside the page, and what is not shown is
counted.
Left out: full-size images.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any

from ..errors import ImageError
from ..imagery.raster import ImageOptions, read_image
from ..imagery.sources import ImageSource
from ..runs.page import render
from ..runs.tables import thumbnail
from .group import Group, completion_text, prompt_text

IMAGES, TEXTS = 3, 20  # shown of a group


def groups_html(
    groups: Sequence[Group],
    scores: Sequence[Sequence[float] | None] | None = None,
    *,
    most: int = 20,
    options: ImageOptions | None = None,
    notes: Sequence[Sequence[str]] | None = None,
) -> str:
    """Returns groups as a piece of HTML.

    Args:
        groups (sequence of [`Group`]): What is shown.
        scores (sequence of sequences, *optional*): For each group the scores of its completions: the best is shown
            first, and bars go from the lowest score that is shown anywhere to the highest.
        most (`int`): Groups at most.
        options ([`ImageOptions`], *optional*): How images are found and read.
        notes (sequence of sequences of `str`, *optional*): A word beside each completion.
    """
    shown = [list(row) if row is not None else [] for row in (scores or [None] * len(groups))[:most]]
    known = [score for row in shown for score in row if math.isfinite(score)]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    made = []
    for i, group in enumerate(groups[:most]):
        words = notes[i] if notes else [""] * len(group.completions)
        made.append(_group(group, shown[i], words, (low, high), options))
    return render("data/groups.html", groups=made, left=len(groups) - len(made))


def _group(
    group: Group,
    scores: Sequence[float],
    notes: Sequence[str],
    bounds: tuple[float, float],
    options: ImageOptions | None,
) -> dict[str, Any]:
    low, high = bounds
    order = list(range(len(group.completions)))
    if scores:
        order.sort(key=lambda i: -scores[i] if math.isfinite(scores[i]) else math.inf)
    texts = []
    for i in order[:TEXTS]:
        score = scores[i] if scores else None
        span = high - low or 1.0
        share = 0.0 if score is None or not math.isfinite(score) else 5 + 95 * (score - low) / span
        text = completion_text(group.completions[i])
        texts.append({"text": text, "score": score, "share": f"{share:.1f}", "note": notes[i]})
    images: list[str] = []
    problem = ""
    try:
        images += (data_uri(source, options, group.where) for source in group.images[:IMAGES])
    except ImageError as error:
        problem = str(error)
    return {
        "name": group.where or "the group",
        "prompt": prompt_text(group.prompt),
        "images": images,
        "problem": problem,
        "more_images": max(0, len(group.images) - IMAGES),
        "texts": texts,
        "more_texts": len(order) - len(texts),
    }


def data_uri(source: ImageSource, options: ImageOptions | None = None, where: str = "") -> str:
    """Returns the thumbnail of an image as an address that holds it; an [`ImageError`] if it cannot be read."""
    content = thumbnail(read_image(source, options or ImageOptions(), where))["bytes"]
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
