"""The report on preference files: figures that can be checked by hand, and the command."""

import json

import pytest
from conftest import picture

from rs_rlhf import make_group
from rs_rlhf.metrics import preference_metrics, wilson_interval
from rs_rlhf.preference_eval import evaluate_preferences, format_report, main


class LengthScorer:
    """Scores a text by its length, and a text with a picture by one more: known answers for the report."""

    def score_groups(self, groups):
        return [[len(c[0]["content"][0]["text"]) + len(g.images) for c in g.completions] for g in groups]


def test_report_counts_by_hand():
    groups = [
        make_group("", ["long text", "short"], kind="a", source="x"),
        make_group("", ["tiny", "longer"], kind="a", source="x"),
        make_group("", ["same", "four"], kind="b", source="y"),
        make_group("", ["longest of all", "b", "cc"], kind="b", source="y"),
    ]
    report = evaluate_preferences(LengthScorer(), groups)
    assert (report["n"], report["rows"]) == (5, 4)
    assert report["accuracy"] == pytest.approx(3 / 5) and report["ties"] == pytest.approx(1 / 5)
    assert report["interval"] == pytest.approx(list(wilson_interval(3, 5)))
    assert report["by_kind"]["a"]["accuracy"] == 0.5 and report["by_kind"]["b"]["n"] == 3
    assert "kind: a | 2 | 50.0%" in format_report(report)


def test_swap_test_finds_a_scorer_that_looks_at_the_order():
    class First(LengthScorer):
        def score_groups(self, groups):
            return [[1.0] + [0.0] * (len(g.completions) - 1) for g in groups]

    groups = [make_group("", ["a", "b"]), make_group("", ["c", "d"])]
    assert evaluate_preferences(First(), groups)["swap_error"] == 1.0
    pairs = [make_group("", ["a", "bb"]), make_group("", ["cc", "d"])]
    assert evaluate_preferences(LengthScorer(), pairs)["swap_error"] == 0.0


def test_shuffle_gap_is_zero_for_a_scorer_that_does_not_look_and_one_for_one_that_only_looks():
    class Sees(LengthScorer):
        def score_groups(self, groups):
            return [[float(g.images[0] in c[0]["content"][0]["text"]) for c in g.completions] for g in groups]

    groups = [make_group("", [f"shows {name}", "nothing"], name) for name in ("p.png", "q.png", "r.png")]
    assert evaluate_preferences(Sees(), groups)["shuffled"]["gap"] == 1.0
    assert evaluate_preferences(LengthScorer(), groups)["shuffled"]["gap"] == 0.0


def test_the_trainers_metrics_agree_with_the_report():
    records = [{"scores": [3.0, 1.0]}, {"scores": [1.0, 2.0]}, {"scores": [1.0, 1.0]}]
    metrics = preference_metrics(records)
    assert metrics["accuracy"] == pytest.approx(1 / 3) and metrics["ties"] == pytest.approx(1 / 3)
    assert metrics["margin"] == pytest.approx(1 / 3) and (metrics["min"], metrics["max"]) == (1.0, 3.0)


def test_wilson_interval_of_a_known_case():
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson_interval(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)


def test_command_writes_the_report(score_model_path, tmp_path, capsys):
    for i in range(4):
        picture(i).save(tmp_path / f"{i}.png")
    rows = [{"chosen": "a river.", "rejected": "trees.", "image": f"{i}.png", "kind": "k"} for i in range(4)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "deep" / "report.json"
    options = ["--preferences", str(tmp_path / "pairs.jsonl"), "--output", str(output)]
    assert main(["--model", score_model_path, *options]) == 0
    report = json.loads(output.read_text())
    assert report["n"] == 4 and 0 <= report["accuracy"] <= 1 and report["shuffled"]["n"] == 4
    assert "| kind: k | 4 |" in capsys.readouterr().out
