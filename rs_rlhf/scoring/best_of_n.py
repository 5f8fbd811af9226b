"""Best of N: sample answers, score them as one group, and take the best.

Left out: the benchmark run (`evaluation.best_of_n`) and its figures (`metrics.best_of_n`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..data.group import Group, ImageSource, make_group
from ..errors import OptionError, ScoreError
from ..runs.progress import progress
from ..runs.sample_log import SampleLog
from .base import GroupScorer, raise_first

if TYPE_CHECKING:
    from ..models.policies.policy import Policy

SCORED_TOGETHER = 32  # questions: what a killed run scores again at most


@dataclass
class BestAnswer:
    """What [`best_answer`] returns."""

    answer: str  # that of the best score; of equal ones the first
    score: float
    answers: list[str]  # all that were sampled, in order
    scores: list[float]
    sampled: int
    saved: int  # answers of the n that were not needed

    def _repr_html_(self) -> str:
        from ..data.views import groups_html

        counts = Counter(self.answers)
        known = dict(zip(self.answers, self.scores, strict=True))
        group = make_group("", list(known))
        notes = [f"{count} of {self.sampled}" for count in (counts[text] for text in known)]
        return groups_html([group], [list(known.values())], notes=[notes])


def best_answer(
    policy: Policy,
    scorer: GroupScorer,
    prompt: str | list[dict],
    image: ImageSource | list[ImageSource] | None = None,
    n: int = 16,
    *,
    temperature: float = 0.85,
    top_p: float = 0.95,
    max_new_tokens: int = 50,
    seed: int = 0,
    stop_at: float | None = None,
    patience: int | None = None,
    batch: int = 4,
) -> BestAnswer:
    """Samples up to n answers in rounds and returns the one with the best score.

    A round's answers depend on the seed and `batch` alone, so stopping early never changes the answers before it.

    Args:
        policy ([`Policy`]), scorer ([`GroupScorer`]): Answer and score.
        prompt (`str` or `list[dict]`): The question, as in [`make_group`].
        image (source or `list` of sources, *optional*): Its images.
        n (`int`): Answers at most.
        temperature, top_p, max_new_tokens, seed: See [`SamplingOptions`].
        stop_at (`float`, *optional*): Stop once an answer has at least this score.
        patience (`int`, *optional*): Stop once so many answers in a row have not improved the best score.
        batch (`int`): Answers of a round; each round reads the prompt anew.

    Raises:
        OptionError, ImageError, DataError: An option, a prompt or an image that cannot be used.
        ScoreError: A score that is missing or not finite.

    Example:
        >>> best_answer(policy, scorer, "Rural or urban?", "a.png", n=16, stop_at=2.0).answer  # doctest: +SKIP
        'urban'
    """
    from ..models.policies.sampling import SamplingOptions

    if n < 1 or batch < 1 or (patience is not None and patience < 1):
        raise OptionError(f"n ({n}), batch ({batch}) and patience ({patience}) must be at least 1.")
    group, size, best = make_group(prompt, [], image), min(batch, n), 0
    answers: list[str] = []
    scores: list[float] = []
    known: dict[str, float] = {}
    # A round is an item of its own, whose place gives it random numbers of its own; it is sampled when asked for.
    sampling = SamplingOptions(size, temperature, top_p, max_new_tokens=max_new_tokens, seed=seed, batch_size=1)
    rounds = policy.sample_batches([group] * math.ceil(n / size), sampling)
    for _, (texts,) in rounds:
        texts = texts[: n - len(answers)]
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            known |= zip(new, _group_scores(scorer, [group], [new])[0], strict=True)
        answers += texts
        scores += [known[text] for text in texts]
        best = scores.index(max(scores))
        enough = stop_at is not None and scores[best] >= stop_at
        if enough or (patience is not None and len(answers) - 1 - best >= patience):
            break
    return BestAnswer(answers[best], scores[best], answers, scores, len(answers), n - len(answers))


def _group_scores(scorer: GroupScorer, groups: Sequence[Group], texts: Sequence[Sequence[str]]) -> list[list[float]]:
    """Scores the texts of each group; a score that is missing is an error, never a number."""
    pairs = zip(groups, texts, strict=True)
    filled = [replace(group, completions=make_group("", answers).completions) for group, answers in pairs]
    scores = scorer.score_groups(filled, show_progress=False)
    raise_first(scores)
    for group, answers, row in zip(groups, texts, scores, strict=True):
        for text, score in zip(answers, row, strict=True):
            if score is None or not math.isfinite(score):
                detail = (
                    f"the answer {text!r:.60} has the score {score}, expected a finite number; check the score model."
                )
                raise ScoreError(detail, where=group.where or "the question")
    return scores


def score_answers(
    log: SampleLog, groups: Sequence[Group], scorer: GroupScorer, what: str = "Scoring", shown: bool = True
) -> list[list[float]]:
    """Adds to a log the scores that its answers lack, each question's distinct answers as one group.

    Returns for each question the scores of its N answers; raises ScoreError for one that is missing or not finite.
    """
    with progress(len(groups), len(log.scores), what, shown=shown) as advance:
        for start in range(0, len(groups), SCORED_TOGETHER):
            places = range(start, min(start + SCORED_TOGETHER, len(groups)))
            if all(i in log.scores for i in places):
                continue
            distinct = [list(dict.fromkeys(log.answers[i])) for i in places]
            scores = _group_scores(scorer, [groups[i] for i in places], distinct)
            tables = [dict(zip(texts, row, strict=True)) for texts, row in zip(distinct, scores, strict=True)]
            rows = [[table[text] for text in log.answers[i]] for i, table in zip(places, tables, strict=True)]
            log.add_scores(places, rows)  # in one line: all of them are there or none
            advance(len(places))
    return [log.scores[i] for i in range(len(groups))]  # type: ignore[misc]  # none of them is None, see above
