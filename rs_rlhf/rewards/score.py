"""`ScoreReward`: the score model as a reward callable of any TRL trainer.

Completions of one prompt are scored as one group, whatever order or part of it TRL hands over. A failure is never a
silent 0: the row gets `None`, which TRL leaves out, the share is logged as `reward/failed_fraction`, and too many
failures, or reward servers that stay away, stop the run with their cause.

Left out: scores of intermediate steps of a reasoning trace.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cache
from statistics import fmean
from typing import Any

from ..data.group import Group, make_group, short
from ..data.other_images import with_other_images
from ..declarations import did_you_mean
from ..errors import (
    DataError,
    DeclarationError,
    ImageError,
    ModelMismatch,
    OptionError,
    RewardFailed,
    RSRLHFError,
    ScorerUnavailable,
)
from ..imagery.identity import source_key
from ..imagery.sources import DEFAULTS, ImageOptions
from ..metrics.answers import extract_answer, message_text
from ..scoring.base import GroupScorer
from ..scoring.load import load_scorer
from .columns import Columns, Rewards, Text, row_images

logger = logging.getLogger(__name__)
SCORE_MODEL = "RS_RLHF_SCORE_MODEL"  # the environment variable that names the model of `score_reward`
TRANSFORMS = ("none", "exp", "softmax")
_IMAGE_TOKEN = re.compile(r"<[^<>\s]*(image|img|video)[^<>\s]*>", re.IGNORECASE)  # of any family


@dataclass
class Place:
    """Where a row's texts are scored, and their scores."""

    group: int = -1
    texts: tuple[int, ...] = ()  # indices of the group's completions: the row's, then the reference or other choices
    error: str = ""  # why the row fails, if it does
    scores: list[float] = field(default_factory=list)  # of the texts, once they are there; empty if the row fails

    def take(self, results: Sequence[list[float] | Exception]) -> None:
        """Takes the row's scores, or its error, out of the results of all groups."""
        if self.error:
            return
        if isinstance(result := results[self.group], Exception):
            self.error = _cause(result)
        elif all(map(math.isfinite, scores := [result[k] for k in self.texts])):
            self.scores = scores
        else:
            self.error = f"a score is {min(scores, key=math.isfinite)}, not a finite number"


class ScoreReward:
    """The score model's score of each completion, for its prompt and images.

    Args:
        model (`str` or [`GroupScorer`]): A name in `reward_models/`, a folder, a hub id, the URL(s) of a reward
            server, or a scorer. A named model is loaded at the first call, on the process's device.
        relative_to_reference (`bool`): Give `1 - exp(-scale * (s(answer) - s(reference)))`, and 0 if the answer does
            not beat the reference (arXiv 2503.00743). The reference is scored in the same group.
        scale (`float`): Of the above.
        transform (`str`): `"none"`, or `"exp"`: the reward is `exp(score)`. Under the loss that score models are
            trained with, scores are log-odds, and `exp(score)` is proportional to the probability of being the best
            answer: it rewards being right, where the score itself rewards not being absurd. `"softmax"`: that
            probability itself, among the completion and the texts of the row's column `choices` (the class names,
            say). It weighs easy and hard images alike.
        answer_only (`bool`): Score the answer inside a completion, as evaluation does; see [`extract_answer`].
        reference (`str`): Column of the reference texts.
        system_turns (`bool`): Show the score model the system turns of the prompt; by default they are left out, since
            they instruct the policy.
        shuffle_images (`bool`): Score with another prompt's images, of the same call or the one before. The control
            run of a reward that should look.
        max_failed_fraction (`float`): Stop if over the last `failure_window` calls more rows than this share failed.
        failure_window (`int`): Calls looked back on; those before the first call count as good.
        image_options ([`ImageOptions`], *optional*): How images are found and read.
        **options: Passed to [`load_scorer`].

    Example:
        >>> from rs_rlhf.rewards import ScoreReward  # doctest: +SKIP
        >>> GRPOTrainer(model, reward_funcs=ScoreReward("out/score-model"), train_dataset=data)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | GroupScorer,
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
        self.relative_to_reference, self.scale = relative_to_reference, scale
        if transform not in TRANSFORMS:
            raise OptionError(f"unknown transform {transform!r}{did_you_mean(transform, TRANSFORMS)}", "transform")
        if relative_to_reference and transform != "none":
            raise OptionError(f"transform {transform!r} has no effect on relative_to_reference; give one of the two.")
        self.model, self.transform, self.answer_only, self.reference = model, transform, answer_only, reference
        self.system_turns, self.shuffle_images = system_turns, shuffle_images
        self.max_failed_fraction = max_failed_fraction
        self._failed: deque[float] = deque(maxlen=failure_window)
        self._before: list[Group] = []  # of the last call: a call of one prompt has no other images
        self._scores: list[float | None] = []  # of the last call's rows
        self.image_options, self._options = image_options, options
        self._scorer = None if isinstance(model, str | os.PathLike) else model
        self.on_failure: Callable[[RSRLHFError], None] | None = None
        """Takes what must stop the run, where a trainer has to stop all its processes; otherwise it is raised."""

    def __getstate__(self) -> dict[str, Any]:
        named = isinstance(self.model, str | os.PathLike)  # another process loads it itself
        return {**self.__dict__, "_scorer": None if named else self._scorer, "_before": [], "on_failure": None}

    @property
    def scorer(self) -> GroupScorer:
        """The scorer, loaded when it is first asked for."""
        if self._scorer is None:
            self._scorer = load_scorer(str(self.model), self.image_options, **self._options)
        return self._scorer

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list], None] | None = None,
        **columns: object,
    ) -> Rewards:
        """Rewards completions.

        Args:
            prompts, completions (sequences of `str` or messages): One of each per row; rows of a prompt may repeat.
            log_metric, log_extra (callables, *optional*): TRL's, for `reward/failed_fraction`, `score/…` and the
                column `score` of the completions table.
            **columns: The other columns: `image` or `images` (paths or pictures) unless the prompts hold them, the
                reference's, and `choices`.

        Returns:
            `list`: A reward per row, `None` if it failed.

        Raises:
            DeclarationError: The reference's column is missing, or for `"softmax"` the column `choices`.
            RewardFailed: Too many rows failed.
            ScorerUnavailable, ModelMismatch: The reward servers are gone, or have another model.
        """
        groups, places = self.layout(prompts, completions, columns)
        if self.shuffle_images:
            groups = self._shuffled(groups)
        # Asked without groups too: a score model that is sharded needs every process if one scores.
        results = self.score_groups(groups)
        for place in places:
            place.take(results)
        self._scores = [None if place.error else place.scores[0] for place in places]
        if log_extra is not None:
            log_extra("score", list(self._scores))
        if log_metric is not None and places:
            self._report([place.scores for place in places if not place.error], len(places), log_metric)
        self._watch([place.error for place in places if place.error], len(places))
        return [None if place.error else self._reward(place.scores) for place in places]

    def last_scores(self) -> list[float | None]:
        """Returns the scores of the last call's rows, `None` for those that failed, and forgets them."""
        scores, self._scores = self._scores, []
        return scores

    def score_groups(self, groups: Sequence[Group]) -> list[list[float] | Exception]:
        """Returns the scores of each group, or its error."""
        try:
            return self.scorer.score_groups(groups, on_error="return")
        except (ScorerUnavailable, ModelMismatch) as error:
            self._stop(error)
            return [error] * len(groups)

    def _stop(self, error: RSRLHFError) -> None:
        if self.on_failure is None:
            raise error
        self.on_failure(error)

    def layout(
        self, prompts: Sequence[Text], completions: Sequence[Text], columns: Columns
    ) -> tuple[list[Group], list[Place]]:
        """Gathers rows into groups: one per distinct prompt with its images, each distinct text once.

        Returns the groups, and for each row its [`Place`], with an error if it fits no group. A text that holds an
        image token stands alone, since its group cannot be scored.
        """
        more = self._further_texts(columns)
        groups: list[Group] = []
        texts: list[dict[str, int]] = []
        known: dict[Hashable, int] = {}
        pictures: dict[int, Hashable] = {}
        places: list[Place] = []
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            wanted = [self._text(completion)]
            try:
                wanted += more(i)
                group = make_group(self._prompt(prompt), [], row_images(prompt, columns, i), row=i)
                keys = tuple(source_key(image, pictures) for image in group.images)
            except (DataError, ImageError) as error:
                places.append(Place(error=_cause(error)))
                continue
            key = (json.dumps(group.prompt), keys, wanted[0] if _IMAGE_TOKEN.search(wanted[0]) else "")
            if key not in known:
                known[key] = len(groups)
                groups.append(group)
                texts.append({})
            indices = texts[known[key]]
            row = [indices.setdefault(text, len(indices)) for text in wanted]
            places.append(Place(known[key], tuple(dict.fromkeys(row) if self.transform == "softmax" else row)))
        for group, indices in zip(groups, texts, strict=True):
            group.completions = make_group("", list(indices)).completions
        return groups, places

    def shown(self, group: Group) -> Group:
        """Returns a group as the score model is shown it: without system turns, the answers inside of completions."""
        answers = [self._text(completion) for completion in group.completions]
        prompt = self._prompt(group.prompt)
        return make_group(prompt, answers, group.images, row=group.row, where=group.where, source=group.source)

    def _further_texts(self, columns: Columns) -> Callable[[int], list[str]]:
        """Returns what gives the texts that are scored beside a row's completion."""
        if self.transform == "softmax":
            option, name, texts = "transform 'softmax'", "choices", "texts to choose from"
        elif self.relative_to_reference:
            option, name, texts = "relative_to_reference", self.reference, "reference texts"
        else:
            return lambda i: []
        if (values := columns.get(name)) is None:
            needed, given = f"the column {name!r} with the {texts}", ", ".join(columns) or "none"
            raise DeclarationError(f"{option} needs {needed}; the columns are {given}.", name)
        return lambda i: _choices(values[i]) if self.transform == "softmax" else [self._reference_text(values[i])]

    def _reference_text(self, value: Text | float | None) -> str:
        if isinstance(value, int | float):
            value = str(value)
        written = isinstance(value, str) or isinstance(value, list) and all(isinstance(one, dict) for one in value)
        text = self._text(value) if written else ""  # type: ignore[arg-type]
        if not text.strip():
            raise DataError(f"`{self.reference}` is {short(value)}, expected the reference text", self.reference)
        return text

    def _text(self, value: Text | None) -> str:
        text = message_text(value)
        answer = extract_answer(text) if self.answer_only else text
        return text if answer == text.strip() else answer  # what was sampled, with its white space, is what is trained

    def _prompt(self, prompt: Text) -> Text:
        if isinstance(prompt, str) or self.system_turns:
            return prompt
        return [message for message in prompt if message["role"] != "system"]

    def _shuffled(self, groups: list[Group]) -> list[Group]:
        others = with_other_images([*groups, *self._before], self.image_options or DEFAULTS)[: len(groups)]
        if groups and all(other.images is group.images for other, group in zip(others, groups, strict=True)):
            logger.warning("shuffle_images: no other images in this call, so that it is scored with its own")
        self._before = groups or self._before
        return others

    def _reward(self, scores: Sequence[float]) -> float:
        score = scores[0]
        if self.transform == "exp":
            return math.exp(min(score, 80.0))  # e^80 is within float32
        if self.transform == "softmax":
            top = max(scores)
            return math.exp(score - top - math.log(math.fsum(math.exp(other - top) for other in scores)))
        if self.relative_to_reference:
            return 1 - math.exp(-self.scale * max(0.0, score - scores[1]))
        return score

    def _report(self, rows: Sequence[Sequence[float]], count: int, log_metric: Callable[[str, float], None]) -> None:
        log_metric("reward/failed_fraction", (count - len(rows)) / count)
        if not rows:
            return
        scores = [row[0] for row in rows]
        mean = fmean(scores)
        log_metric("score/mean", mean)
        log_metric("score/std", math.sqrt(fmean((score - mean) ** 2 for score in scores)))
        log_metric("score/min", min(scores))
        log_metric("score/max", max(scores))
        if self.relative_to_reference:
            log_metric("score/reference_mean", fmean(row[1] for row in rows))

    def _watch(self, causes: Sequence[str], rows: int) -> None:
        if rows:
            self._failed.append(len(causes) / rows)
        if not causes:
            return
        logger.warning("%d of %d rewards failed and are left out; the first: %s", len(causes), rows, causes[0])
        share = sum(self._failed) / (self._failed.maxlen or 1)
        if share > self.max_failed_fraction:
            failed = f"{share:.0%} of the rewards of the last {self._failed.maxlen} steps failed"
            most = f"max_failed_fraction ({self.max_failed_fraction:.0%})"
            self._stop(RewardFailed(f"{failed}, more than {most}; a cause: {causes[0]}"))


def _cause(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _choices(value: object) -> list[str]:
    if not isinstance(value, list | tuple) or not value or not all(isinstance(text, str) for text in value):
        raise DataError(f"`choices` is {short(value)}, expected the texts to choose from", "choices")
    return list(value)


_score_reward_of = cache(ScoreReward)


def named_score_reward(**options: Any) -> ScoreReward:
    """Returns the [`ScoreReward`] of the model that the environment variable `RS_RLHF_SCORE_MODEL` names, made once.

    Raises:
        DeclarationError: The variable is not set.
    """
    model = os.environ.get(SCORE_MODEL)
    if not model:
        raise DeclarationError(f"set {SCORE_MODEL} to a score model: a folder, a name, a hub id or a server's URL.")
    return _score_reward_of(model, **options)


def score_reward(prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> Rewards:
    """The reward of [`named_score_reward`], for TRL's command line.

    Example:
        RS_RLHF_SCORE_MODEL=scorers-7b trl grpo --reward_funcs rs_rlhf.rewards.score_reward …
    """
    return named_score_reward()(prompts, completions, **columns)
