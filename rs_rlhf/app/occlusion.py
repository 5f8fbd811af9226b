"""What moves a text's score: patches of the image are hidden one at a time (Zeiler and Fergus 2014, section 4.2).

A grey patch that lowers the score hid what speaks for the text, one that raises it what speaks against. All pictures
go through the one scoring path, in the scorer's own batches. Left out: gradients, which a server does not give, and
patches that overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
from PIL import Image

from ..data.group import make_group
from ..errors import RequestError
from ..scoring.base import GroupScorer

GREY = 127
GRIDS = (2, 16)  # fewest and most patches along the longer side
AT_ONCE = 2**26  # pixels of hidden pictures that are in memory at a time
FOR, AGAINST = (213, 94, 0), (0, 114, 178)  # vermilion and blue, which the colour-blind tell apart (Okabe and Ito)


@dataclass(frozen=True)
class Occlusion:
    """By how much hiding each patch lowers a text's score.

    Args:
        score (`float`): The score of the text and the whole image.
        drops (array of shape (rows, columns)): That score less the score without the patch.
    """

    score: float
    drops: np.ndarray


def occlude(scorer: GroupScorer, image: Image.Image, prompt: str, text: str, grid: int = 8) -> Occlusion:
    """Scores a text with each patch of its image hidden.

    Args:
        scorer ([`GroupScorer`]): What scores; it is asked for rows × columns + 1 pictures.
        image (`PIL.Image.Image`): An RGB picture.
        prompt, text (`str`): The question, which may be empty, and the text.
        grid (`int`): Patches along the longer side; there are as many along the other as make them square.

    Raises:
        RequestError: The grid is too fine or too coarse.
        ImageError, DataError, ScoreError: It cannot be scored.
    """
    grid = int(grid)
    if not GRIDS[0] <= grid <= min(GRIDS[1], max(image.size)):
        most = min(GRIDS[1], max(image.size))
        raise RequestError(400, f"{grid} patches were asked for along a side, expected {GRIDS[0]} to {most}.")
    columns, rows = (max(1, round(grid * side / max(image.size))) for side in image.size)
    scores: list[float] = []
    many = max(1, AT_ONCE // (image.width * image.height))
    supply = chain([image], _hidden(image, rows, columns))
    while pictures := list(islice(supply, many)):
        groups = [make_group(prompt, [text], picture, where="the tile") for picture in pictures]
        scores += [float(score) for (score,) in scorer.score_groups(groups, show_progress=False)]
    return Occlusion(scores[0], scores[0] - np.array(scores[1:]).reshape(rows, columns))


def _hidden(image: Image.Image, rows: int, columns: int) -> Iterator[Image.Image]:
    """Copies of a picture, each with one patch in grey, row by row."""
    across, down = (
        np.linspace(0, side, count + 1).round().astype(int)
        for side, count in zip(image.size, (columns, rows), strict=True)
    )
    for row in range(rows):
        for column in range(columns):
            copy = image.copy()
            copy.paste((GREY,) * 3, (across[column], down[row], across[column + 1], down[row + 1]))
            yield copy


def overlay(image: Image.Image, found: Occlusion, strength: float = 0.65) -> Image.Image:
    """Returns the picture in grey, patches that speak for the text in orange, against it in blue.

    The colour is as strong as the patch's part of the largest change.
    """
    rows, columns = found.drops.shape
    largest = float(np.abs(found.drops).max()) or 1.0
    part = Image.fromarray((found.drops / largest).astype(np.float32)).resize(image.size, Image.Resampling.NEAREST)
    weight = np.asarray(part)[..., None]
    grey = np.asarray(image.convert("L").convert("RGB"), dtype=np.float32)
    colour = np.where(weight > 0, np.array(FOR, np.float32), np.array(AGAINST, np.float32))
    share = np.abs(weight) * strength
    return Image.fromarray((grey * (1 - share) + colour * share).round().astype(np.uint8))
