"""The published reward mix of format and accuracy, with the accuracy that each row asks for (arXiv 2503.00743)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..declarations import did_you_mean
from ..errors import DeclarationError, OptionError
from ..models.profiles import Profile
from ..scoring.base import GroupScorer
from .boxes import IoUReward
from .columns import Rewards, Text, column, rows_of
from .rules import ExactMatchReward, PublishedExactMatchReward, ThinkAnswerFormatReward
from .score import ScoreReward, named_score_reward

if TYPE_CHECKING:
    from transformers import ProcessorMixin


class RSReward:
    """The published mix: `0.3·format + 0.7·accuracy`, and 0 if the format fails (arXiv 2503.00743).

    The accuracy is that of the row's `reward_type`: `em` (a right answer), `iou` (boxes), or `open_ended` (the score
    relative to the reference).

    Args:
        score ([`ScoreReward`], `str` or [`GroupScorer`], *optional*): The score model, for `open_ended` rows; one that
            is not a `ScoreReward` yet becomes one with `relative_to_reference=True`. By default the one that the
            environment variable `RS_RLHF_SCORE_MODEL` names.
        format_weight (`float`): Weight of the format.
        iou ([`IoUReward`], *optional*): How boxes are read; by default in best pairing, the solution's from 0 to 1000.
        solution (`str`): Column of solutions and references.
        profile (`str` or [`Profile`], *optional*): How the policy writes boxes, see [`IoUReward`].
        em ([`ExactMatchReward`] or [`PublishedExactMatchReward`], *optional*): How answers are compared; by default as
            evaluation does.
    """

    def __init__(
        self,
        score: ScoreReward | str | GroupScorer | None = None,
        format_weight: float = 0.3,
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
        self.format_weight, self.solution = format_weight, solution
        self.format = ThinkAnswerFormatReward()
        self.accuracy: dict[str, Callable[..., Rewards] | None] = {
            "em": em or ExactMatchReward(solution),
            "iou": iou or IoUReward(solution=solution, profile=profile),
            "open_ended": score,
        }

    def use_policy(self, model_type: str, processor: ProcessorMixin | None = None) -> None:
        """Tells the policy's type and processor to the box reward, see [`IoUReward.use_policy`]."""
        if isinstance(self.accuracy["iou"], IoUReward):
            self.accuracy["iou"].use_policy(model_type, processor)

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **columns: object) -> Rewards:
        """Rewards completions.

        Raises:
            DeclarationError: No column `reward_type`, an unknown type, or an open-ended row without a score model.
        """
        types = list(map(str, column(columns, "reward_type", self.__name__)))
        rewards: Rewards = [0.0] * len(completions)
        formatted = [i for i, good in enumerate(self.format(prompts, completions)) if good]
        kinds = set(types)
        if self.accuracy["open_ended"] is not None:
            kinds.add("open_ended")  # without rows too: see `ScoreReward` on sharded score models
        for kind in sorted(kinds):
            if kind not in self.accuracy:
                raise DeclarationError(f"unknown reward_type {kind!r}{did_you_mean(kind, self.accuracy)}")
            if (accuracy := self.accuracy[kind]) is None:
                accuracy = named_score_reward(relative_to_reference=True, reference=self.solution)
            rows = [i for i in formatted if types[i] == kind]
            parts = rows_of(columns, rows, len(completions))
            values = accuracy([prompts[i] for i in rows], [completions[i] for i in rows], **parts)
            for i, value in zip(rows, values, strict=True):
                rewards[i] = None if value is None else self.format_weight + (1 - self.format_weight) * value
        return rewards
