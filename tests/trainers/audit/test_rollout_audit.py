"""The audit's numbers, and that the failure it is for shows: scores rise while answers get wrong."""

import math
from types import SimpleNamespace

import pytest

from rs_rlhf.trainers.audit.rollout_audit import RolloutAudit, audit_metrics, correlation, judged


def messages(text):
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


@pytest.mark.parametrize(
    ("text", "row", "correct", "readable"),
    [
        ("River.", {"prompt": "Which class?", "solution": "river"}, True, True),
        ("storage tanks", {"prompt": "Which class?", "solution": "Storage Tanks ."}, True, True),
        ("a river", {"prompt": "Which class?", "solution": "river"}, True, True),
        ("not a river", {"prompt": "Which class?", "solution": "river"}, False, False),
        ("", {"prompt": "Which class?", "solution": "river"}, False, False),
        ("...", {"prompt": "?", "solution": "river", "choices": ["river", "port"]}, False, False),
        ("anything", {"prompt": "Describe."}, None, True),
        ("", {"prompt": "Describe."}, None, False),
        ("port", {"prompt": "?", "solution": "river", "choices": ["River", "Port"]}, False, True),
        ("a port", {"prompt": "?", "solution": "river", "choices": ["River", "Port"]}, False, True),
        ("B", {"prompt": "?", "solution": "river", "choices": ["Port", "River"]}, True, True),
        ("a lake", {"prompt": "?", "solution": "river", "choices": ["River", "Port"]}, False, False),
        # choices of None or none are no restriction
        ("a port", {"prompt": "?", "solution": "river", "choices": None}, False, True),
        ("a port", {"prompt": "?", "solution": "river", "choices": []}, False, True),
        ("river", {"prompt": messages("Answer in <answer> </answer>."), "solution": "river"}, True, False),
        ("<answer>river</answer>", {"prompt": messages("In <answer> </answer>."), "solution": "river"}, True, True),
        ("<think>x</think><answer>Port</answer>", {"prompt": "?", "solution": "river"}, False, True),
        ("<answer> </answer>", {"prompt": "?", "solution": "river"}, False, False),
        ("0", {"prompt": "How many?", "solution": "0"}, True, True),
        ("anything", {}, None, True),
        ("3", {"prompt": "How many?", "solution": 3.0}, True, True),
        ("30", {"prompt": "How many?", "solution": 3.0}, False, True),
        ("yes", {"prompt": "?", "solution": True}, True, True),
        ("3", {"prompt": "How many?", "solution": {"count": 3}}, None, True),
        ("3", {"prompt": "Where?", "solution": [10, 20, 30, 40]}, None, True),
        ("", {"prompt": "Where?", "solution": [[1, 2, 3, 4]]}, None, False),
        ("3", {"prompt": "How many?", "solution": None}, None, True),
        ("3", {"prompt": "How many?", "solution": float("nan")}, None, True),
    ],
)
def test_judged(text, row, correct, readable):
    assert judged(text, row) == {"correct": correct, "readable": readable}


def rows(*entries):
    names = ("correct", "readable", "length", "score")
    return [dict(zip(names, entry, strict=True)) for entry in entries]


def test_audit_metrics():
    some = rows((True, True, 1, 2.0), (True, True, 2, 0.0), (False, False, 3, 1.0), (None, True, 4, 1.0))
    assert audit_metrics(some) == {
        "audit/unparseable": 0.25,
        "audit/accuracy": pytest.approx(2 / 3),
        "audit/score_right": 1.0,
        "audit/score_wrong": 1.0,
        "audit/right_above_wrong": 0.5,  # 2 > 1 and 0 < 1
        "audit/score_length_correlation": pytest.approx(-1 / math.sqrt(10)),
    }
    ties = audit_metrics(rows((True, True, 1, 1.0), (False, True, 1, 1.0)))
    assert ties["audit/right_above_wrong"] == 0.5 and "audit/score_length_correlation" not in ties


def test_solutions_that_cannot_be_compared_are_counted():
    counted = [row | {"unjudged": i < 1} for i, row in enumerate(rows((None, True, 1, 1.0), (True, True, 2, 2.0)))]
    assert audit_metrics(counted)["audit/unjudged"] == 0.5 and audit_metrics(counted)["audit/accuracy"] == 1.0
    assert "audit/unjudged" not in audit_metrics(counted[1:])


def test_audit_metrics_leave_out_what_cannot_be_told():
    assert audit_metrics([]) == {}
    assert audit_metrics(rows((None, True, 3, None), (None, False, 3, None))) == {"audit/unparseable": 0.5}
    failed = audit_metrics(rows((True, True, 3, None), (False, True, 4, 1.0), (False, True, 5, 3.0)))
    assert "audit/score_right" not in failed and "audit/right_above_wrong" not in failed
    assert failed["audit/score_wrong"] == 2.0 and failed["audit/accuracy"] == pytest.approx(1 / 3)
    assert failed["audit/score_length_correlation"] == pytest.approx(1.0)


def test_disagreement_is_the_mean_spread_of_the_rollouts_that_have_one():
    some = rows((True, True, 1, 2.0), (False, True, 2, 0.0), (None, True, 3, None))
    spreads = (0.5, 0.25, None)
    assert "audit/disagreement" not in audit_metrics([row | {"score_std": None} for row in some])
    known = [row | {"score_std": std} for row, std in zip(some, spreads, strict=True)]
    assert audit_metrics(known) == audit_metrics(some) | {"audit/disagreement": 0.375}


def test_correlation():
    assert correlation([(1, 2), (2, 4), (3, 6)]) == pytest.approx(1.0)
    assert correlation([(1, 3), (2, 2), (3, 1)]) == pytest.approx(-1.0)
    assert correlation([(0, 0), (1, 1), (2, 0)]) == pytest.approx(0.0)
    assert correlation([(1, 2), (2, 1), (3, 4), (4, 3)]) == pytest.approx(0.6)
    for flat in ([], [(1, 2)], [(1, 2), (1, 3)], [(1, 2), (3, 2)], [(0.1, 0.3), (0.1, 0.1)]):
        assert correlation(flat) is None


def test_scores_that_rise_while_answers_get_wrong_show():
    """A policy that learns to please the score model: the reward says better, the audit says worse."""
    row = {"prompt": "Which class?", "solution": "river", "choices": ["river", "port"]}

    def step(texts_and_scores):
        return audit_metrics(
            [judged(text, row) | {"length": len(text), "score": score} for text, score in texts_and_scores]
        )

    def mean(texts_and_scores):
        return sum(score for _, score in texts_and_scores) / len(texts_and_scores)

    honest = [("river", 1.0), ("river", 1.1), ("port", 0.2), ("river", 0.9)]
    gamed = [("river", 1.0), ("port", 2.0), ("a river river river", 2.5), ("river river", 2.2)]
    before, after = step(honest), step(gamed)
    assert mean(gamed) > mean(honest)
    assert before["audit/accuracy"] == 0.75 and after["audit/accuracy"] == 0.25
    assert before["audit/right_above_wrong"] == 1.0 and after["audit/right_above_wrong"] == 0.0
    assert after["audit/score_wrong"] > after["audit/score_right"]
    assert before["audit/unparseable"] == 0.0 and after["audit/unparseable"] == 0.5
    assert after["audit/score_length_correlation"] > 0.5


@pytest.mark.parametrize("solution", [[10, 20, 30, 40], [[1, 2, 3, 4]], {"count": 2}])
def test_a_solution_of_another_kind_is_left_out_and_said_once(solution, caplog):
    audit = RolloutAudit(SimpleNamespace())
    found = [audit._judged("3", {"prompt": "?", "solution": solution}) for _ in range(3)]
    assert found == [{"correct": None, "readable": True, "unjudged": True}] * 3
    assert len(caplog.records) == 1 and "`solution`" in caplog.text
    assert audit._judged("3", {"prompt": "?", "solution": 3.0}) == {
        "correct": True,
        "readable": True,
        "unjudged": False,
    }
    assert not audit._judged("3", {"prompt": "?", "solution": None})["unjudged"]
