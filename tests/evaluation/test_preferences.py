"""The report on preference files: figures that can be checked by hand, and the command."""

import json

import pytest
from helpers import picture

from rs_rlhf import Scorer, make_group
from rs_rlhf.cli.main import run
from rs_rlhf.evaluation.preferences import evaluate_preferences, format_report
from rs_rlhf.metrics.intervals import wilson_interval
from rs_rlhf.metrics.preferences import comparisons, preference_metrics


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


def test_the_trainers_metrics_and_the_report_count_a_ranked_list_alike():
    groups = [
        make_group("", ["best text", "worse", "a longer text"], kind="list"),
        make_group("", ["same", "four"], kind="pair"),
    ]
    report = evaluate_preferences(LengthScorer(), groups)
    scores = LengthScorer().score_groups(groups)
    metrics = preference_metrics([{"scores": s, "kind": g.kind} for s, g in zip(scores, groups, strict=True)])
    for name in ("accuracy", "ties", "margin"):
        assert metrics[name] == report[name] == comparisons(scores)[name]
    assert report["accuracy"] == report["ties"] == 1 / 3  # of three comparisons, not of two rows
    for kind in ("list", "pair"):
        assert metrics[f"accuracy_kind/{kind}"] == report["by_kind"][kind]["accuracy"]


def test_lists_report_how_often_the_chosen_is_the_best():
    class Fixed:
        def score_groups(self, groups):
            table = {"best": 3.0, "good": 2.0, "bad": 1.0}
            return [[table[one[0]["content"][0]["text"]] for one in group.completions] for group in groups]

    groups = [make_group("", ["best", "good", "bad"]), make_group("", ["good", "best", "bad"])]
    report = evaluate_preferences(Fixed(), groups)
    assert report["top1"] == 0.5 and report["accuracy"] == 0.75
    assert "Best of its whole list: 50.0% of 2 rows" in format_report(report)
    assert preference_metrics([{"scores": [3, 2, 1]}, {"scores": [2, 3, 1]}])["top1"] == 0.5
    assert "top1" not in preference_metrics([{"scores": [3, 2]}])


def test_command_writes_the_report(score_model_path, tmp_path, capsys):
    for i in range(4):
        picture(i).save(tmp_path / f"{i}.png")
    rows = [{"chosen": "a river.", "rejected": "trees.", "image": f"{i}.png", "kind": "k"} for i in range(4)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "deep" / "report.json"
    options = ["--preferences", str(tmp_path / "pairs.jsonl"), "--output", str(output)]
    assert run("eval preferences", ["--model", score_model_path, *options]) == 0
    report = json.loads(output.read_text())
    assert report["n"] == 4 and 0 <= report["accuracy"] <= 1 and report["shuffled"]["n"] == 4
    assert "| kind: k | 4 |" in capsys.readouterr().out


def test_command_reads_images_as_reward_does(score_model_path, tmp_path, monkeypatch):
    """Relative paths start from each file's own folder, and band and stretch options reach the reader."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        picture(ord(name)).save(tmp_path / name / f"{name}.png")
        row = {"chosen": "a river.", "rejected": "trees.", "image": f"{name}.png"}
        (tmp_path / name / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    used = []
    monkeypatch.setattr(Scorer, "score_groups", lambda self, groups: used.append(self) or [[1.0, 0.0] for _ in groups])
    card = tmp_path / "card.yaml"
    card.write_text(json.dumps({"model": score_model_path, "licence": "x", "recipe": "", "bands": [1], "nodata": 7}))
    files = ["--preferences", *(str(tmp_path / name / "pairs.jsonl") for name in ("a", "b"))]
    flags = ["--stretch", "fixed", "--stretch-range", "0", "9", "--nodata", "3", "--image_hosts", "example.org"]
    assert run("eval preferences", ["--model", str(card), *files, *flags]) == 0
    options = used[0].collator.image_options
    assert options.image_root == str(tmp_path.resolve()) and options.allowed_hosts == ("example.org",)
    assert (options.stretch, options.stretch_range, options.nodata) == ("fixed", (0.0, 9.0), 3.0)
    assert options.bands == (1,)  # the model's own, where no flag says otherwise

    monkeypatch.undo()
    assert run("eval preferences", ["--model", score_model_path, *files]) == 0
    with pytest.raises(ValueError, match="names a band that is not there"):
        run("eval preferences", ["--model", score_model_path, *files, "--bands", "4", "3", "2"])
