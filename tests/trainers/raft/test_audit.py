"""The audit of a RAFT run's answers."""

from collections import Counter
from pathlib import Path

import pytest

from rs_rlhf import make_group
from rs_rlhf.data.questions import QuestionRow
from rs_rlhf.preferences.best import BestOptions, scored_answers
from rs_rlhf.runs.sample_log import SampleLog
from rs_rlhf.scoring.baselines import LengthScorer, RandomScorer
from rs_rlhf.scoring.ensemble import EnsembleScorer, Standard
from rs_rlhf.trainers.audit.rollout_audit import audit_metrics
from rs_rlhf.trainers.raft.audit import judged_answers


def test_the_disagreement_of_several_models_is_known_when_a_run_is_resumed(tmp_path):
    group = make_group("What is it?", [], None, where="row 1")
    row = QuestionRow(group, "What is it?", "q", columns={"completions": ["a river", "a port", "a river"]})
    options = BestOptions(input="", output=Path("x.jsonl"), score_model="a,b")
    scorer = EnsembleScorer([LengthScorer(), RandomScorer()], "mean", [Standard(0.0, 1.0), Standard(0.0, 1.0)])
    metrics = []
    for load in (lambda: scorer, lambda: pytest.fail("all is scored")):
        log = SampleLog(tmp_path / "log", {}, by="a,b")
        scored = scored_answers(options, [row], log, load, Counter())
        metrics.append(audit_metrics(judged_answers(scored)))
    group.completions = make_group("", ["a river", "a port"]).completions
    river, port = (score.std for score in scorer.score_groups([group])[0])
    assert [one["audit/disagreement"] for one in metrics] == [pytest.approx((2 * river + port) / 3)] * 2
