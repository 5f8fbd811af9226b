"""Reward callables in TRL's signature: `(prompts, completions, **columns)` to a list of floats, `None` for no reward.

Small picklable objects with a `__name__` that run unchanged in any TRL trainer that takes reward functions: the score
model's, [`ScoreReward`], and the rule-based ones of ScoreRS (arXiv 2503.00743).

Left out: the `math` reward of the paper, which is not about images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

from ..data.group import make_group
from ..declarations import did_you_mean
from ..errors import DataError, DeclarationError, ImageError, OptionError, RewardFailed
from ..imagery.raster import ImageOptions, image_size
from ..metrics import answers
from ..metrics.boxes import BOX_UNITS, Box, paired_ious, parse_boxes, to_unit
from .score import Rewards, ScoreReward, row_images, score_reward

__all__ = [
    "ExactMatchReward",
    "IoUReward",
    "RSReward",
    "RewardFailed",
    "ScoreReward",
    "ThinkAnswerFormatReward",
    "score_reward",
]


class ExactMatchReward:
    """1 where the answer equals the solution in the published normal form (see [`answers.normalize`]), else 0.

    Args:
        solution (`str`): Column of the solutions.
    """

    def __init__(self, solution: str = "solution") -> None:
        self.__name__ = "exact_match_reward"
        self.solution = solution

    def __call__(self, prompts: Any, completions: Sequence[Any], **columns: Any) -> Rewards:
        """Rewards completions; a row without a solution gets `None`."""
        pairs = zip(completions, _column(columns, self.solution, self.__name__), strict=True)
        return [
            None if solution is None else float(answers.exact_match(answers.message_text(completion), str(solution)))
            for completion, solution in pairs
        ]


class IoUReward:
    """The published shaping of box answers (arXiv 2503.00743).

    0.5, split over the boxes of the solution, for every box with IoU above 0.5, and for every box 0.1, 0.2 or 0.5 more
    above 0.6, 0.7 or 0.8; 0 where the number of boxes differs. One box gives at most 1, n boxes 0.5 + 0.5·n.

    Args:
        answer_unit, solution_unit (`str`): Units of the coordinates: `"0-1000"` (Qwen2-VL), `"pixel"`, `"0-100"` or
            `"0-1"`. Nothing is guessed from the numbers.
        pairing (`str`): `"best"` pairs boxes one to one for the greatest total IoU, `"order"` by place, as published.
        solution (`str`): Column of the solutions: a text with boxes, or a list of `[x1, y1, x2, y2]`.
        image_options ([`ImageOptions`], *optional*): For pixels, which need the size of the `image` or `images`
            column where there is no column `size` of `(width, height)`.
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
            raise OptionError(f"pairing must be 'best' or 'order', got {pairing!r}.")
        self.answer_unit, self.solution_unit, self.pairing = answer_unit, solution_unit, pairing
        self.solution, self.image_options = solution, image_options or ImageOptions()

    def __call__(self, prompts: Any, completions: Sequence[Any], **columns: Any) -> Rewards:
        """Rewards completions; a row without boxes in its solution, or without a size where one is needed: `None`."""
        solutions = _column(columns, self.solution, self.__name__)
        return [
            self._reward(answers.message_text(completion), solution, self._size(prompts[i], columns, i))
            for i, (completion, solution) in enumerate(zip(completions, solutions, strict=True))
        ]

    def _reward(self, text: str, solution: Any, size: tuple[int, int] | None) -> float | None:
        right = _boxes(solution)
        if not right or (size is None and "pixel" in (self.answer_unit, self.solution_unit)):
            return None
        given = parse_boxes(answers.extract_answer(text))
        if len(given) != len(right):
            return 0.0
        given = [to_unit(box, self.answer_unit, size) for box in given]
        right = [to_unit(box, self.solution_unit, size) for box in right]
        ious = paired_ious(given, right, by_order=self.pairing == "order")
        steps = ((0.8, 0.5), (0.7, 0.2), (0.6, 0.1))
        bonus = math.fsum(next((more for level, more in steps if value > level), 0.0) for value in ious)
        return 0.5 * sum(value > 0.5 for value in ious) / len(right) + bonus

    def _size(self, prompt: Any, columns: Mapping[str, Any], i: int) -> tuple[int, int] | None:
        if "pixel" not in (self.answer_unit, self.solution_unit):
            return None
        if columns.get("size") is not None and columns["size"][i] is not None:
            width, height = columns["size"][i]
            return width, height
        images = columns.get("images") if columns.get("images") is not None else columns.get("image")
        try:
            group = make_group(prompt, [], row_images(prompt, images, i))
            height, width = image_size(group.images[0], self.image_options)
        except (DataError, ImageError, IndexError):
            return None
        return width, height


class ThinkAnswerFormatReward:
    """1 where the completion is `<think>…</think><answer>…</answer>` and nothing else, 0 otherwise."""

    def __init__(self) -> None:
        self.__name__ = "think_answer_format_reward"

    def __call__(self, prompts: Any, completions: Sequence[Any], **columns: Any) -> Rewards:
        """Rewards completions."""
        return [float(answers.is_think_answer(answers.message_text(completion))) for completion in completions]


class RSReward:
    """The published mix: `0.3·format + 0.7·accuracy`, and 0 where the format fails (arXiv 2503.00743).

    The accuracy is that of the row's `reward_type`: `em` (exact match), `iou` (boxes), or `open_ended` (the score
    relative to the reference).

    Args:
        score ([`ScoreReward`], `str` or scorer, *optional*): The score model, for `open_ended` rows; one that is not
            a `ScoreReward` yet becomes one with `relative_to_reference=True`.
        format_weight (`float`): Weight of the format.
        iou ([`IoUReward`], *optional*): How boxes are read; by default 0–1000 on both sides, best pairing.
        solution (`str`): Column of solutions and references.
    """

    def __init__(
        self, score: Any = None, format_weight: float = 0.3, iou: IoUReward | None = None, solution: str = "solution"
    ) -> None:
        self.__name__ = "rs_reward"
        if score is not None and not isinstance(score, ScoreReward):
            score = ScoreReward(score, relative_to_reference=True, reference=solution)
        self.format_weight = format_weight
        self.format = ThinkAnswerFormatReward()
        self.accuracy: dict[str, Any] = {
            "em": ExactMatchReward(solution),
            "iou": iou or IoUReward(solution=solution),
            "open_ended": score,
        }

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Rewards:
        """Rewards completions.

        Raises:
            DeclarationError: No column `reward_type`, an unknown type, or an open-ended row without a score model.
        """
        types = _column(columns, "reward_type", self.__name__)
        rewards: Rewards = [0.0] * len(completions)
        formatted = [i for i, good in enumerate(self.format(prompts, completions)) if good]
        kinds = {str(t) for t in types}
        if self.accuracy["open_ended"] is not None:
            kinds.add("open_ended")  # without rows too: see `ScoreReward` on sharded score models
        for kind in sorted(kinds):
            if kind not in self.accuracy:
                raise DeclarationError(f"unknown reward_type {kind!r}{did_you_mean(kind, self.accuracy)}")
            if self.accuracy[kind] is None:
                raise DeclarationError(f"reward_type {kind!r} needs a score model; give RSReward one.")
            rows = [i for i in formatted if str(types[i]) == kind]
            parts = {k: [v[i] for i in rows] for k, v in columns.items() if _is_column(v, len(completions))}
            logs = {k: columns[k] for k in ("log_metric",) if k in columns}
            found = self.accuracy[kind]([prompts[i] for i in rows], [completions[i] for i in rows], **parts, **logs)
            for i, value in zip(rows, found, strict=True):
                weight = self.format_weight
                rewards[i] = None if value is None else weight + (1 - weight) * value
        return rewards


def _column(columns: Mapping[str, Any], name: str, reward: str) -> Sequence[Any]:
    if columns.get(name) is None:
        known: Iterable[str] = [key for key, value in columns.items() if isinstance(value, list)]
        raise DeclarationError(f"{reward} needs the column {name!r}{did_you_mean(name, known)}")
    return columns[name]


def _boxes(solution: Any) -> list[Box]:
    """The boxes of a solution: of a text, or of one `[x1, y1, x2, y2]` or a list of these."""
    if solution is None or isinstance(solution, str):
        return parse_boxes(solution or "")
    boxes = [solution] if any(isinstance(x, Real) for x in solution) else solution
    if any(len(box) != 4 for box in boxes):
        return []
    return [(float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in boxes]


def _is_column(value: Any, rows: int) -> bool:
    return isinstance(value, list) and len(value) == rows
