"""Box reward for grounding: IoU of the answer's boxes with the solution's, shaped as published (arXiv 2503.00743)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

from ..data.group import make_group
from ..declarations import did_you_mean
from ..errors import DataError, ImageError, OptionError
from ..imagery.raster import image_size
from ..imagery.sources import ImageOptions
from ..metrics.answers import extract_answer, message_text
from ..metrics.boxes import BOX_UNITS, Box, paired_ious, parse_boxes, to_unit
from .columns import Columns, Rewards, Text, column, row_images


class IoUReward:
    """The published shaping of box answers (arXiv 2503.00743).

    0.5, split over the boxes of the solution, for every box with IoU above 0.5, and for every box 0.1, 0.2 or 0.5 more
    above 0.6, 0.7 or 0.8; 0 if the number of boxes differs. One box gives at most 1, n boxes 0.5 + 0.5·n.

    Args:
        answer_unit, solution_unit (`str`): Units of the coordinates: `"0-1000"` (Qwen2-VL), `"pixel"`, `"0-100"` or
            `"0-1"`. Nothing is guessed from the numbers.
        pairing (`str`): `"best"` pairs boxes one to one for the greatest total IoU, `"order"` by place, as published.
        solution (`str`): Column of the solutions: a text with boxes, or a list of `[x1, y1, x2, y2]`.
        image_options ([`ImageOptions`], *optional*): For pixels, which need the size of the `image` or `images`
            column unless there is a column `size` of `(width, height)`.
    """

    def __init__(
        self,
        answer_unit: str = "0-1000",
        solution_unit: str = "0-1000",
        pairing: str = "best",
        solution: str = "solution",
        image_options: ImageOptions | None = None,
    ) -> None:
        self.__name__ = "iou_reward"
        for unit in (answer_unit, solution_unit):
            if unit not in BOX_UNITS:
                raise OptionError(f"unknown box unit {unit!r}{did_you_mean(unit, BOX_UNITS)}")
        if pairing not in ("best", "order"):
            raise OptionError(f"pairing must be 'best' or 'order', got {pairing!r}.", "pairing")
        self.answer_unit, self.solution_unit, self.pairing = answer_unit, solution_unit, pairing
        self.solution, self.image_options = solution, image_options or ImageOptions()

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **columns: object) -> Rewards:
        """Rewards completions; a row without boxes in its solution, or without a size if one is needed: `None`."""
        solutions = column(columns, self.solution, self.__name__)
        return [
            self._reward(message_text(completion), _boxes(solution), self._size(prompts[i], columns, i))
            for i, (completion, solution) in enumerate(zip(completions, solutions, strict=True))
        ]

    def _reward(self, text: str, solution: list[Box], size: tuple[int, int] | None) -> float | None:
        if not solution or (size is None and "pixel" in (self.answer_unit, self.solution_unit)):
            return None
        answer = parse_boxes(extract_answer(text))
        if len(answer) != len(solution):
            return 0.0
        answer = [to_unit(box, self.answer_unit, size) for box in answer]
        solution = [to_unit(box, self.solution_unit, size) for box in solution]
        ious = paired_ious(answer, solution, by_order=self.pairing == "order")
        steps = ((0.8, 0.5), (0.7, 0.2), (0.6, 0.1))
        bonus = math.fsum(next((more for level, more in steps if value > level), 0.0) for value in ious)
        return 0.5 * sum(value > 0.5 for value in ious) / len(solution) + bonus

    def _size(self, prompt: Text, columns: Columns, i: int) -> tuple[int, int] | None:
        if "pixel" not in (self.answer_unit, self.solution_unit):
            return None
        if columns.get("size") is not None and columns["size"][i] is not None:
            width, height = columns["size"][i]
            return width, height
        try:
            group = make_group(prompt, [], row_images(prompt, columns, i))
            height, width = image_size(group.images[0], self.image_options)
        except (DataError, ImageError, IndexError):
            return None
        return width, height


def _boxes(solution: Any) -> list[Box]:
    """Returns the boxes of a text, of one `[x1, y1, x2, y2]`, or of a list of these."""
    if solution is None or isinstance(solution, str):
        return parse_boxes(solution or "")
    boxes = [solution] if any(isinstance(x, Real) for x in solution) else solution
    if any(len(box) != 4 for box in boxes):
        return []
    return [(float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in boxes]
