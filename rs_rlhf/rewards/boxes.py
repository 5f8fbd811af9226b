"""Box reward for grounding: IoU of the answer's boxes with the solution's, shaped as published (arXiv 2503.00743)."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

from ..data.group import make_group
from ..declarations import did_you_mean
from ..errors import DataError, ImageError, OptionError
from ..imagery.raster import image_size
from ..imagery.sources import ImageOptions
from ..metrics.answers import message_text
from ..metrics.box_forms import PLAIN
from ..metrics.boxes import BOX_UNITS, PAIRINGS, RESIZED, needs_size, paired_ious, read_boxes
from ..models.profiles import Profile, load_profile, no_profile, processor_budget, profile_of_type
from .columns import Columns, Rewards, Text, column, row_images

if TYPE_CHECKING:
    from transformers import ProcessorMixin

PUBLISHED = "qwen2-vl"  # profile of the models that the reward was published with
SOLUTION_UNIT = "0-1000"
SOLUTION_FORMS = ("pairs", "json", "geochat", "brackets")
Size = tuple[int, int]
Sizes = tuple[Size | None, Size | None]


class IoUReward:
    """The published shaping of box answers (arXiv 2503.00743).

    0.5, split over the boxes of the solution, for every box with IoU above 0.5, and for every box 0.1, 0.2 or 0.5 more
    above 0.6, 0.7 or 0.8; 0 if the number of boxes differs. One box gives at most 1, n boxes 0.5 + 0.5·n. An answer
    whose boxes cannot be read gives 0; TRL logs their share as `iou_reward/unreadable`.

    How the policy writes boxes is in its profile: the one given, else that of the policy's type, which
    `VisionGRPOTrainer` tells ([`IoUReward.use_policy`]). If neither is known, boxes are read as Qwen2-VL writes them,
    as published, and a warning says so.

    Args:
        answer_unit (`str`, *optional*): In place of a profile: the unit of answers in plain brackets or pairs, a key
            of `metrics.boxes.BOX_UNITS`.
        solution_unit (`str`, *optional*): Unit of the solutions' boxes, one of the same; by default 0-1000. Nothing is
            guessed from the numbers.
        pairing (`str`, *optional*): `"best"` pairs boxes one to one for the greatest total IoU, `"order"` by place, as
            published; by default as the profile says.
        solution (`str`): Column of the solutions: a text with boxes, or a list of `[x1, y1, x2, y2]`.
        image_options ([`ImageOptions`], *optional*): For units that need the size of the `image` or `images`
            column unless there is a column `size` of `(width, height)`.
        profile (`str` or [`Profile`], *optional*): Name in `eval/profiles/`, a YAML file, or a profile.

    Raises:
        OptionError: An unknown unit or pairing, or both a unit and a profile.
        DeclarationError: There is no such profile.
    """

    def __init__(
        self,
        answer_unit: str | None = None,
        solution_unit: str | None = None,
        pairing: str | None = None,
        solution: str = "solution",
        image_options: ImageOptions | None = None,
        profile: str | Profile | None = None,
    ) -> None:
        self.__name__ = "iou_reward"
        if pairing is not None and pairing not in PAIRINGS:
            raise OptionError(f"pairing must be {' or '.join(PAIRINGS)}, got {pairing!r}.", "pairing")
        if answer_unit is not None and profile is not None:
            raise OptionError("give answer_unit or profile, which has a unit, not both.", "answer_unit")
        for name, unit in (("answer_unit", answer_unit), ("solution_unit", solution_unit)):
            if unit is not None and unit not in BOX_UNITS:
                raise OptionError(f"unknown box unit {unit!r}{did_you_mean(unit, BOX_UNITS)}", name)
        if answer_unit == RESIZED:
            raise OptionError("the unit alone does not say how images are resized; give a profile.", "answer_unit")
        self.given = load_profile(profile) if isinstance(profile, str) else profile
        if answer_unit is not None:
            self.given = Profile("as told", answer_unit, [*PLAIN], "", "the caller")
        self._own = {
            "answer_unit": answer_unit,
            "profile": profile,
            "solution_unit": solution_unit,
            "pairing": pairing,
        }
        self.solution_unit, self.pairing, self.solution = solution_unit or SOLUTION_UNIT, pairing, solution
        self.image_options = image_options or ImageOptions()
        self._model_type: str | None = None
        self._of_type: Profile | None = None
        self._budget: tuple[int, int, int] | None = None

    def filled(self, options: Mapping[str, Any]) -> tuple[IoUReward, set[str]]:
        """Returns the reward with those options (`profile`, `solution_unit`, `pairing`) that it was not made with, and
        their names.
        """
        own: dict[str, Any] = {name: value for name, value in self._own.items() if value is not None}
        taken = {*own, "profile"} if "answer_unit" in own else {*own}
        more = {name: value for name, value in options.items() if name in self._own and name not in taken}
        if not more:
            return self, set()
        return IoUReward(solution=self.solution, image_options=self.image_options, **own, **more), {*more}

    def use_policy(self, model_type: str, processor: ProcessorMixin | None = None) -> None:
        """Tells the type of the policy, whose profile is used unless one is given, and its processor, whose pixel
        budget says to what size the policy's images are resized.
        """
        self._model_type, self._budget = model_type, processor_budget(processor)
        self._of_type = profile_of_type(model_type)

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        log_metric: Callable[[str, float], None] | None = None,
        **columns: object,
    ) -> Rewards:
        """Rewards completions; a row without boxes in its solution, or without a size if one is needed: `None`.

        Raises:
            OptionError: The policy's type is known, but has no profile, and none is given.
        """
        solutions = column(columns, self.solution, self.__name__)
        profile, rewards, unreadable = self.profile, [], 0
        for i, (completion, solution) in enumerate(zip(completions, solutions, strict=True)):
            sizes = self._sizes(profile, prompts[i], columns, i)
            reward, why = self._reward(message_text(completion), solution, profile, sizes)
            rewards.append(reward)
            unreadable += why is not None
        if log_metric is not None and rewards:
            log_metric(f"{self.__name__}/unreadable", unreadable / len(rewards))
        return rewards

    @property
    def profile(self) -> Profile:
        """The profile that answers are read by.

        Raises:
            OptionError: The policy's type has none, and none is given.
        """
        known = self.given or self._of_type
        if known is None and self._model_type is not None:
            policy = f"a model of type {self._model_type}"
            raise OptionError(f"{self.__name__} reads boxes: {no_profile(policy)} (profile).", "profile")
        if known is None:
            warnings.warn(
                f"{self.__name__} does not know the policy's type and reads boxes as {PUBLISHED} writes them; "
                "give it a profile.",
                stacklevel=3,
            )
            known = self._of_type = load_profile(PUBLISHED)
        return known

    def _reward(self, text: str, solution: Any, profile: Profile, sizes: Sizes) -> tuple[float | None, str | None]:
        """The reward of an answer, and why its boxes cannot be read."""
        if self._sized(profile) and sizes[0] is None:
            return None, None
        right = read_boxes(_solution_text(solution), self.solution_unit, SOLUTION_FORMS, *sizes)[0]
        if not right:
            return None, None
        answer, unreadable = profile.read(text, *sizes)
        if len(answer) != len(right):
            return 0.0, unreadable
        ious = paired_ious(answer, right, by_order=(self.pairing or profile.pairing) == "order")
        steps = ((0.8, 0.5), (0.7, 0.2), (0.6, 0.1))
        bonus = math.fsum(next((more for level, more in steps if value > level), 0.0) for value in ious)
        return 0.5 * sum(value > 0.5 for value in ious) / len(right) + bonus, None

    def _sized(self, profile: Profile) -> bool:
        return profile.sized or needs_size(self.solution_unit)

    def _sizes(self, profile: Profile, prompt: Text, columns: Columns, i: int) -> Sizes:
        """`(width, height)` of a row's image and of the image as the policy sees it, if they are needed and known."""
        if not self._sized(profile):
            return None, None
        if columns.get("size") is not None and columns["size"][i] is not None:
            width, height = columns["size"][i]
        else:
            try:
                group = make_group(prompt, [], row_images(prompt, columns, i))
                height, width = image_size(group.images[0], self.image_options)
            except (DataError, ImageError, IndexError):
                return None, None
        if RESIZED not in (profile.unit, self.solution_unit) or not (self._budget or profile.resize):
            return (width, height), None
        try:
            return (width, height), profile.seen_size((width, height), self._budget)
        except ImageError:
            return None, None


def _solution_text(solution: Any) -> str:
    """Returns a solution as text: a text, one `[x1, y1, x2, y2]`, a list of these, or an object with `bbox_2d`."""
    if solution is None or isinstance(solution, str):
        return solution or ""
    solution = solution.tolist() if hasattr(solution, "tolist") else solution
    if isinstance(solution, list | tuple):
        boxes = [solution] if any(isinstance(x, Real) for x in solution) else solution
        if any(isinstance(box, list | tuple) and len(box) != 4 for box in boxes):
            return ""
    return json.dumps(solution, default=str)
