"""The published reward mix of format and accuracy, with the accuracy that each row asks for (arXiv 2503.00743)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ..declarations import did_you_mean
from ..errors import DeclarationError, OptionError
from ..models.profiles import Profile
from ..scoring.base import GroupScorer
from .boxes import IoUReward
from .columns import Rewards, Text, column, rows_of
from .rules import CountReward, ExactMatchReward, MathReward, PublishedExactMatchReward, ThinkAnswerFormatReward
from .score import ScoreReward, named_score_reward

if TYPE_CHECKING:
    from transformers import ProcessorMixin


FORMAT_WEIGHT = 0.3  # as published


class RSReward:
    """The published mix: `0.3·format + 0.7·accuracy`, and 0 if the format fails (arXiv 2503.00743).

    The accuracy is that of the row's `reward_type`: `em` (a right answer), `iou` (boxes), or `open_ended` (the score
    relative to the reference); beside these `math` (a right answer, which may be a formula) and `count` (how near a
    number is). TRL logs the share that has the format as `rs_reward/format`, the mean accuracy of each type, of the
    answers that have it, as `rs_reward/em` and so on, and both of every answer in the completions table.

    Args:
        score ([`ScoreReward`], `str` or [`GroupScorer`], *optional*): The score model, for `open_ended` rows; one that
            is not a `ScoreReward` yet becomes one with `relative_to_reference=True`. By default the one that the
            environment variable `RS_RLHF_SCORE_MODEL` names.
        format_weight (`float`, *optional*): Weight of the format, from 0 to 1; by default 0.3.
        iou ([`IoUReward`], *optional*): How boxes are read; by default in best pairing, the solution's from 0 to 1000.
        solution (`str`): Column of solutions and references.
        profile (`str` or [`Profile`], *optional*): How the policy writes boxes, see [`IoUReward`].
        em ([`ExactMatchReward`] or [`PublishedExactMatchReward`], *optional*): How answers are compared; by default as
            evaluation does.
    """

    def __init__(
        self,
        score: ScoreReward | str | GroupScorer | None = None,
        format_weight: float | None = None,
        iou: IoUReward | None = None,
        solution: str = "solution",
        profile: str | Profile | None = None,
        em: ExactMatchReward | PublishedExactMatchReward | None = None,
    ) -> None:
        self.__name__ = "rs_reward"
        if iou is not None and profile is not None:
            raise OptionError("give the profile to the IoUReward, not both.", "profile")
        if score is not None and not isinstance(score, ScoreReward):
            score = ScoreReward(score, relative_to_reference=True, reference=solution)
        self._own_weight, self.solution = format_weight, solution
        self.format_weight = FORMAT_WEIGHT if format_weight is None else _checked(format_weight)
        self.format = ThinkAnswerFormatReward()
        self.accuracy: dict[str, Callable[..., Rewards] | None] = {
            "em": em or ExactMatchReward(solution),
            "iou": iou or IoUReward(solution=solution, profile=profile),
            "math": MathReward(solution),
            "count": CountReward(solution),
            "open_ended": score,
        }

    def filled(self, options: Mapping[str, Any]) -> tuple[RSReward, set[str]]:
        """Returns the reward with those options (`format_weight`, and those of [`IoUReward.filled`]) that it was not
        made with, and their names.
        """
        made, read = copy.copy(self), set[str]()
        if isinstance(boxes := self.accuracy["iou"], IoUReward):
            filled, read = boxes.filled(options)
            made.accuracy = {**self.accuracy, "iou": filled}
        if self._own_weight is None and "format_weight" in options:
            made.format_weight, read = _checked(options["format_weight"]), {*read, "format_weight"}
        return made, read

    def use_policy(self, model_type: str, processor: ProcessorMixin | None = None) -> None:
        """Tells the policy's type and processor to the box reward, see [`IoUReward.use_policy`]."""
        if isinstance(self.accuracy["iou"], IoUReward):
            self.accuracy["iou"].use_policy(model_type, processor)

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list], None] | None = None,
        **columns: object,
    ) -> Rewards:
        """Rewards completions; `log_metric` and `log_extra` are TRL's.

        Raises:
            DeclarationError: No column `reward_type`, an unknown type, or an open-ended row without a score model.
        """
        types = list(map(str, column(columns, "reward_type", self.__name__)))
        good = self.format(prompts, completions)
        accuracies: Rewards = [None] * len(completions)
        formatted = [i for i, value in enumerate(good) if value]
        kinds = set(types)
        if self.accuracy["open_ended"] is not None:
            kinds.add("open_ended")  # without rows too: see `ScoreReward` on sharded score models
        for kind in sorted(kinds):
            if kind not in self.accuracy:
                raise DeclarationError(f"unknown reward_type {kind!r}{did_you_mean(kind, self.accuracy)}")
            if (accuracy := self.accuracy[kind]) is None:
                accuracy = named_score_reward(relative_to_reference=True, reference=self.solution)
            rows = [i for i in formatted if types[i] == kind]
            parts = rows_of({**columns, "log_metric": log_metric}, rows, len(completions))
            values = accuracy([prompts[i] for i in rows], [completions[i] for i in rows], **parts)
            for i, value in zip(rows, values, strict=True):
                accuracies[i] = value
            known = [value for value in values if value is not None]
            if log_metric is not None and known:
                log_metric(f"{self.__name__}/{kind}", fmean(known))
        if log_metric is not None and completions:
            log_metric(f"{self.__name__}/format", len(formatted) / len(completions))
        if log_extra is not None:
            log_extra(f"{self.__name__}/format", list(good))
            log_extra(f"{self.__name__}/accuracy", list(accuracies))
        return [self._mixed(has, accuracy) for has, accuracy in zip(good, accuracies, strict=True)]

    def _mixed(self, has_format: float | None, accuracy: float | None) -> float | None:
        if not has_format:
            return 0.0
        return None if accuracy is None else self.format_weight + (1 - self.format_weight) * accuracy


def _checked(weight: float) -> float:
    """Returns a weight of the format that is from 0 to 1."""
    if not 0 <= weight <= 1:
        raise OptionError(f"format_weight is {weight:g}, expected a number from 0 to 1.", "format_weight")
    return weight
