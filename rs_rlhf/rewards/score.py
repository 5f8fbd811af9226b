"""`ScoreReward`: the score model as a reward callable of any TRL trainer.

Completions of one prompt are scored as one group, whatever order or part of it TRL hands over. A failure is never a
silent 0: the row gets `None`, which TRL leaves out, the share is logged as `reward/failed_fraction`, and too many
failures stop the run with their cause. Users import it from `rs_rlhf.rewards.rules`.

Left out: scores of intermediate steps of a reasoning trace.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cache
from typing import Any

from ..data.group import Group, make_group, short
from ..data.other_images import with_other_images
from ..declarations import did_you_mean
from ..errors import DataError, DeclarationError, ImageError, OptionError, RewardFailed
from ..imagery.identity import source_key
from ..imagery.sources import DEFAULTS, ImageOptions
from ..metrics import answers
from ..scoring.load import load_scorer

logger = logging.getLogger(__name__)
SCORE_MODEL = "RS_RLHF_SCORE_MODEL"  # the environment variable that names the model of `score_reward`
TRANSFORMS = ("none", "exp", "softmax")
IMAGE_TOKEN = "<|image_pad|>"
Rewards = list[float | None]


class ScoreReward:
    """The score model's score of each completion, for its prompt and images.

    Args:
        model (`str` or scorer): A name in `reward_models/`, a folder, a hub id, the URL(s) of a reward server, or a
            [`Scorer`] or [`RemoteScorer`]. A named model is loaded at the first call, on the process's device.
        relative_to_reference (`bool`): Give `1 - exp(-scale * (s(answer) - s(reference)))`, and 0 where the answer
            does not beat the reference (arXiv 2503.00743). The reference is scored in the same group.
        scale (`float`): Of the above.
        transform (`str`): `"none"`, or `"exp"`: the reward is `exp(score)`. Under the loss that score models are
            trained with, scores are log-odds, and `exp(score)` is proportional to the probability of being the best
            answer: it rewards being right, where the score itself rewards not being absurd. `"softmax"`: that
            probability itself, among the completion and the texts of the row's column `choices` (the class names,
            say). It weighs easy and hard images alike.
        answer_only (`bool`): Score the text inside `<answer>` where there is one.
        reference (`str`): Column of the reference texts.
        system_turns (`bool`): Show the score model the system turns of the prompt; by default they are left out, since
            they instruct the policy.
        shuffle_images (`bool`): Score with another prompt's images, of the same call or the one before. The control
            run of a reward that should look.
        max_failed_fraction (`float`): Stop when over the last `failure_window` calls more rows than this share failed.
        failure_window (`int`): Calls looked back on; those that have not been count as good.
        image_options ([`ImageOptions`], *optional*): How images are found and read.
        **options: Passed to [`Scorer.from_pretrained`] or [`RemoteScorer`].

    Example:
        >>> from rs_rlhf.rewards.rules import ScoreReward  # doctest: +SKIP
        >>> GRPOTrainer(model, reward_funcs=ScoreReward("out/score-model"), train_dataset=data)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Any,
        *,
        relative_to_reference: bool = False,
        scale: float = 0.2,
        transform: str = "none",
        answer_only: bool = True,
        reference: str = "solution",
        system_turns: bool = False,
        shuffle_images: bool = False,
        max_failed_fraction: float = 0.5,
        failure_window: int = 10,
        image_options: ImageOptions | None = None,
        **options: Any,
    ) -> None:
        self.__name__ = "score_reward"
        self.model = model
        self.relative_to_reference, self.scale = relative_to_reference, scale
        if transform not in TRANSFORMS:
            raise OptionError(f"unknown transform {transform!r}{did_you_mean(transform, TRANSFORMS)}")
        if relative_to_reference and transform != "none":
            raise OptionError(f"transform {transform!r} has no effect on relative_to_reference; give one of the two.")
        self.transform = transform
        self.answer_only, self.reference = answer_only, reference
        self.system_turns, self.shuffle_images = system_turns, shuffle_images
        self.max_failed_fraction = max_failed_fraction
        self._failed: deque[float] = deque(maxlen=failure_window)
        self._before: list[Group] = []  # of the last call: a call of one prompt has no other images
        self._options = {"image_options": image_options, **options}
        self._scorer: Any = None if isinstance(model, (str, os.PathLike)) else model

    def __getstate__(self) -> dict[str, Any]:
        named = isinstance(self.model, (str, os.PathLike))  # another process loads it itself
        return {**self.__dict__, "_scorer": None if named else self._scorer, "_before": []}

    @property
    def scorer(self) -> Any:
        """The scorer, loaded when it is first asked for."""
        if self._scorer is None:
            self._scorer = load_scorer(str(self.model), **self._options)
        return self._scorer

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list], None] | None = None,
        **columns: Any,
    ) -> Rewards:
        """Rewards completions.

        Args:
            prompts, completions (sequences of `str` or messages): One of each per row; rows of a prompt may repeat.
            log_metric, log_extra (callables, *optional*): TRL's, for `reward/failed_fraction`, `score/…` and the
                column `score` of the completions table.
            **columns: The other columns: `image` or `images` (paths or pictures) unless the prompts hold them, the
                reference's, and `choices`.

        Returns:
            `list`: A reward per row, `None` where it failed.

        Raises:
            DeclarationError: The reference's column is missing, or for `"softmax"` the column `choices`.
            RewardFailed: Too many rows failed.
        """
        groups, places = self.layout(prompts, completions, columns)
        if self.shuffle_images:
            own, groups = (
                groups,
                with_other_images([*groups, *self._before], self._options["image_options"] or DEFAULTS)[: len(groups)],
            )
            if own and all(group.images is mine.images for group, mine in zip(groups, own, strict=True)):
                logger.warning("shuffle_images: no other images in this call, so that it is scored with its own")
            self._before = own or self._before
        # Asked without groups too: a score model that is sharded needs every process wherever one scores.
        scored = self.scorer.score_groups(groups, on_error="return")
        scores: list[float | None] = []
        references: list[float | None] = []
        totals: list[float] = []
        causes: list[str] = []
        for place in places:
            row = place if isinstance(place, Exception) else scored[place[0]]
            if isinstance(row, Exception):
                causes.append(f"{type(row).__name__}: {row}")
                values: list[float] = [math.nan, math.nan]
            else:
                values = [row[k] for k in place[1:]]  # type: ignore[index]
                if not all(map(math.isfinite, values)):
                    causes.append(f"a score is {min(values, key=math.isfinite)}, not a finite number")
            right = all(map(math.isfinite, values))
            scores.append(values[0] if right else None)
            references.append(values[-1] if right else None)
            totals.append(_log_sum_exp(values) if right else math.nan)
        self._report(scores, references, len(causes), log_metric, log_extra)
        self._watch(len(causes), len(places), causes)
        if self.transform == "exp":
            return [None if s is None else math.exp(min(s, 80.0)) for s in scores]  # e^80 is within float32
        if self.transform == "softmax":
            return [None if s is None else math.exp(s - total) for s, total in zip(scores, totals, strict=True)]
        if not self.relative_to_reference:
            return scores
        return [
            None if s is None or r is None else 1 - math.exp(-self.scale * max(0.0, s - r))
            for s, r in zip(scores, references, strict=True)
        ]

    def layout(
        self, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any]
    ) -> tuple[list[Group], list[Any]]:
        """Gathers rows into groups: one per distinct prompt with its images, each distinct text once.

        Args:
            prompts, completions, columns: As in a call.

        Returns:
            `tuple`: The groups, and for each row `(group, completion)` or `(group, completion, reference)` as indices,
            for `"softmax"` `(group, completion, *other choices)`, or the error of a row that fits no group. A text
            that holds an image token stands alone, since its group cannot be scored.
        """
        images = columns.get("images") if columns.get("images") is not None else columns.get("image")
        references = columns.get(self.reference)
        choices = columns.get("choices")
        if self.transform == "softmax" and choices is None:
            raise DeclarationError(
                "transform 'softmax' needs the column 'choices' with the texts to choose from; the columns are "
                f"{', '.join(columns) or 'none'}."
            )
        if self.relative_to_reference and references is None:
            raise DeclarationError(
                f"relative_to_reference needs the column {self.reference!r} with the reference texts; the columns are "
                f"{', '.join(columns) or 'none'}."
            )
        groups: list[Group] = []
        texts: list[dict[str, int]] = []
        known: dict[Any, int] = {}
        pictures: dict[int, Hashable] = {}
        places: list[Any] = []
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            wanted = [self._text(completion)]
            try:
                if self.relative_to_reference and references is not None:
                    wanted.append(self._reference_text(references[i]))
                if self.transform == "softmax" and choices is not None:
                    wanted += _choices(choices[i])
                group = make_group(self._prompt(prompt), [], row_images(prompt, images, i), row=i)
                keys = tuple(source_key(image, pictures) for image in group.images)
            except (DataError, ImageError) as error:
                places.append(error)
                continue
            key = (json.dumps(group.prompt), keys, wanted[0] if IMAGE_TOKEN in wanted[0] else "")
            if key not in known:
                known[key] = len(groups)
                groups.append(group)
                texts.append({})
            mine = texts[known[key]]
            found = [mine.setdefault(text, len(mine)) for text in wanted]
            places.append((known[key], *(dict.fromkeys(found) if self.transform == "softmax" else found)))
        for group, own in zip(groups, texts, strict=True):
            group.completions = make_group("", list(own)).completions
        return groups, places

    def _text(self, value: Any) -> str:
        text = answers.message_text(value)
        return answers.extract_answer(text) if self.answer_only and answers.has_answer(text) else text

    def _reference_text(self, value: Any) -> str:
        text = self._text(value if value is None or isinstance(value, (str, list)) else str(value))
        if not text.strip():
            raise DataError(f"`{self.reference}` is empty, expected the reference text", self.reference)
        return text

    def _prompt(self, prompt: Any) -> Any:
        if isinstance(prompt, str) or self.system_turns:
            return prompt
        return [message for message in prompt if message["role"] != "system"]

    def _report(
        self, scores: Sequence[float | None], references: Sequence[float | None], failed: int, metric: Any, extra: Any
    ) -> None:
        if extra is not None:
            extra("score", list(scores))
        if metric is None or not scores:
            return
        metric("reward/failed_fraction", failed / len(scores))
        found = [score for score in scores if score is not None]
        if found:
            mean = math.fsum(found) / len(found)
            metric("score/mean", mean)
            metric("score/std", math.sqrt(math.fsum((score - mean) ** 2 for score in found) / len(found)))
            metric("score/min", min(found))
            metric("score/max", max(found))
            if self.relative_to_reference:
                metric("score/reference_mean", math.fsum(r for r in references if r is not None) / len(found))

    def _watch(self, failed: int, rows: int, causes: Sequence[str]) -> None:
        if not rows:
            return
        self._failed.append(failed / rows)
        if not failed:
            return
        logger.warning("%d of %d rewards failed and are left out; the first: %s", failed, rows, causes[0])
        share = sum(self._failed) / (self._failed.maxlen or 1)
        if share > self.max_failed_fraction:
            raise RewardFailed(
                f"{share:.0%} of the rewards of the last {self._failed.maxlen} steps failed, more than "
                f"max_failed_fraction ({self.max_failed_fraction:.0%}); a cause: {causes[0]}"
            )


def _choices(value: Any) -> list[str]:
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(text, str) for text in value):
        raise DataError(f"`choices` is {short(value)}, expected the texts to choose from", "choices")
    return list(value)


def _log_sum_exp(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values))


def row_images(prompt: Any, images: Any, i: int) -> Any:
    """The images of a row: those that its prompt holds already, else those of its column."""
    if not isinstance(prompt, str):
        for message in prompt:
            for part in message["content"] if isinstance(message["content"], list) else []:
                if part.get("type") == "image" and part.get("image") is not None:
                    return None
    return None if images is None else images[i]


@cache
def _score_reward_of(model: str) -> ScoreReward:
    return ScoreReward(model)


def score_reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Rewards:
    """[`ScoreReward`] of the model that the environment variable `RS_RLHF_SCORE_MODEL` names, for TRL's command line.

    Example:
        RS_RLHF_SCORE_MODEL=scorers-7b trl grpo --reward_funcs rs_rlhf.rewards.score_reward …

    Raises:
        DeclarationError: The variable is not set.
    """
    model = os.environ.get(SCORE_MODEL)
    if not model:
        raise DeclarationError(f"set {SCORE_MODEL} to a score model: a folder, a name, a hub id or a server's URL.")
    return _score_reward_of(model)(prompts, completions, **columns)
