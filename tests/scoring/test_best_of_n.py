"""The best of n answers: sampled in rounds, scored as one group, stopped early."""

import math

import pytest
from helpers import picture

from rs_rlhf import Scorer, best_answer
from rs_rlhf.errors import OptionError, ScoreError
from rs_rlhf.models.policies.qwen_vl import QwenVLPolicy

SAMPLING = {"temperature": 1.0, "top_p": 0.95, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def policy(policy_path):
    return QwenVLPolicy.from_pretrained(policy_path, device="cpu")


@pytest.fixture(scope="module")
def scorer(score_model_path):
    return Scorer.from_pretrained(score_model_path, device="cpu")


def test_best_answer_is_the_best_of_what_was_sampled(policy, scorer):
    options = {**SAMPLING, "seed": 3, "n": 10}
    best = best_answer(policy, scorer, "What is it?", picture(1), **options)
    assert (best.sampled, best.saved, len(best.answers)) == (10, 0, 10)
    assert best.score == max(best.scores) and best.answer == best.answers[best.scores.index(best.score)]
    assert best.scores == pytest.approx(scorer.score([picture(1)], ["What is it?"], [best.answers])[0], abs=1e-3)
    assert len(set(best.answers)) > 3 and best.answers[:4] != best.answers[4:8], "each round has draws of its own"
    other = best_answer(policy, scorer, "What is it?", picture(1), **{**options, "seed": 4})
    assert other.answers != best.answers
    assert best_answer(policy, scorer, "What is it?", picture(1), **options, stop_at=best.score + 1) == best


def test_early_stopping_saves_samples_and_changes_none(policy, scorer):
    ask = (policy, scorer, "What is it?", picture(1))
    options = {**SAMPLING, "seed": 3}
    full = best_answer(*ask, n=24, **options)
    early = best_answer(*ask, n=24, **options, stop_at=full.scores[1])
    assert early.sampled == 4 and early.saved == 20 and early.answers == full.answers[:4]
    assert early.score == max(full.scores[:4]) >= full.scores[1]
    patient = best_answer(*ask, n=24, **options, patience=5)
    place = patient.scores.index(patient.score)
    assert patient.sampled < 24 and patient.sampled + patient.saved == 24
    assert patient.answers == full.answers[: patient.sampled] and patient.sampled - 1 - place >= 5
    with pytest.raises(OptionError, match="patience .0. must be at least 1"):
        best_answer(*ask, patience=0)


class FailingScorer:
    """What a remote scorer that gave up hands back."""

    def __init__(self, score):
        self.score = score

    def score_groups(self, groups, *, on_error="raise", show_progress=None):
        return [[self.score] * len(group.completions) for group in groups]


@pytest.mark.parametrize("score", [None, math.nan, math.inf])
def test_a_missing_score_is_an_error(policy, score):
    with pytest.raises(ScoreError, match="has the score .*, expected a finite number; check the score model"):
        best_answer(policy, FailingScorer(score), "What is it?", picture(1), n=2, **SAMPLING)
