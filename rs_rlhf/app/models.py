"""The models behind the page: policies that answer, and what scores answers; one question at a time.

Images come in as read pictures, so that every model sees what the page shows. Left out: how a tile is read (`tiles`),
and how results look (`shown`).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from ..data.group import make_group
from ..errors import RequestError
from ..metrics.closed_answers import read_answer
from ..metrics.votes import ballot
from ..scoring.base import GroupScorer, spread
from .occlusion import Occlusion, occlude

if TYPE_CHECKING:
    from ..models.policies.policy import Policy

MOST = 32  # answers, or texts, at a time
LONGEST = 4000  # characters of a question or text


@dataclass(frozen=True)
class Scored:
    """A text with its score (`None` without a score model), its models' spread, and how often it was said."""

    text: str
    score: float | None = None
    std: float | None = None
    count: int = 1
    policy: str = ""


@dataclass(frozen=True)
class Ranking:
    """Distinct answers, the best first; the shares of a vote among all answers, plain and weighted by the scores."""

    answers: list[Scored]
    votes: dict[str, float]
    weighted: dict[str, float]
    unread: int  # answers that cast no vote: empty, hedged or contradictory


class Models:
    """Policies by their letter, `A` and `B`, and a scorer, which may be missing; called from several threads."""

    def __init__(
        self, policies: Mapping[str, Policy], scorer: GroupScorer | None, *, max_new_tokens: int = 64, seed: int = 0
    ) -> None:
        self.policies, self.scorer = dict(policies), scorer
        self.max_new_tokens, self.seed = max_new_tokens, seed
        self._turn = threading.Lock()  # a model answers one question at a time

    def ask(self, image: Image.Image, question: str) -> list[Scored]:
        """Returns every policy's greedy answer, scored as one group."""
        question = _checked(question, "question")
        with self._turn:
            said = {name: self._sample(name, image, question, 1, 0.0)[0] for name in self.policies}
            scores = self._scores(image, question, list(said.values()))
        return [Scored(text, *score, policy=name) for (name, text), score in zip(said.items(), scores, strict=True)]

    def rank(
        self, image: Image.Image, question: str, policy: str, n: int, temperature: float, seed: int = 0
    ) -> Ranking:
        """Samples n answers of a policy and ranks the distinct ones; see [`Ranking`]."""
        question, n = _checked(question, "question"), int(n)
        if policy not in self.policies:
            raise RequestError(400, f"there is no policy {policy[:20]!r}; start the app with one.")
        if not 1 <= n <= MOST:
            raise RequestError(400, f"{n} answers were asked for, expected 1 to {MOST}.")
        with self._turn:
            texts = self._sample(policy, image, question, n, temperature, seed)
            distinct = list(dict.fromkeys(texts))
            scores = dict(zip(distinct, self._scores(image, question, distinct), strict=True))
        answers = [Scored(text, *scores[text], count=texts.count(text), policy=policy) for text in distinct]
        answers.sort(key=lambda one: (-(one.score or 0.0), -one.count))
        read = [read_answer(text) for text in texts]
        own = [scores[text][0] for text in texts]
        weighted = {} if None in own else ballot(read, [score or 0.0 for score in own])
        return Ranking(answers, ballot(read), weighted, read.count(None))

    def score(self, image: Image.Image, question: str, texts: Sequence[str]) -> list[Scored]:
        """Scores texts as one group, in their order."""
        question, texts = _checked(question, "question"), [_checked(text, "text") for text in texts]
        if not texts:
            raise RequestError(400, "there is no text to score; write one a line.")
        if len(texts) > MOST:
            raise RequestError(400, f"there are {len(texts)} texts, at most {MOST} are scored at a time.")
        with self._turn:
            return [
                Scored(text, *score) for text, score in zip(texts, self._scores(image, question, texts), strict=True)
            ]

    def occlusion(self, image: Image.Image, question: str, text: str, grid: int) -> Occlusion:
        """Returns what hiding each patch of the image does to a text's score; see [`occlude`]."""
        if self.scorer is None:
            raise RequestError(400, "there is no score model; start the app with a --score_model.")
        with self._turn:
            return occlude(self.scorer, image, _checked(question, "question"), _checked(text, "text"), grid)

    def _sample(
        self, policy: str, image: Image.Image, question: str, n: int, temperature: float, seed: int = 0
    ) -> list[str]:
        group = make_group(question, [], image, where="the question")
        options = {"temperature": temperature, "max_new_tokens": self.max_new_tokens, "seed": self.seed + int(seed)}
        (texts,) = self.policies[policy].sample([group], n, show_progress=False, **options)
        return [text.strip() for text in texts]

    def _scores(
        self, image: Image.Image, question: str, texts: Sequence[str]
    ) -> list[tuple[float | None, float | None]]:
        """The score and spread of each text of one group; of an empty text too, which a policy may say."""
        if self.scorer is None or not texts:
            return [(None, None)] * len(texts)
        group = make_group(question, list(texts), image, where="the texts")
        (scores,) = self.scorer.score_groups([group], show_progress=False)
        return [(float(score), spread(score)) for score in scores]


def _checked(text: str, what: str) -> str:
    text = (text or "").strip()
    if len(text) > LONGEST:
        raise RequestError(413, f"the {what} has {len(text)} characters, at most {LONGEST} are read; shorten it.")
    return text
