"""Two runs compared question by question: counted by hand, mirrored, refused, and shown in a real browser."""

import re

import pytest
from helpers.evaluation_runs import records, write_run

from rs_rlhf.cli import main as cli
from rs_rlhf.errors import DataError
from rs_rlhf.evaluation.compare import compare
from rs_rlhf.metrics.intervals import holm

# 40 questions: 10 right in both, 2 in A only, 12 in B only, 16 in neither.
A_RIGHT = [1] * 10 + [1] * 2 + [0] * 12 + [0] * 16
B_RIGHT = [1] * 10 + [0] * 2 + [1] * 12 + [0] * 16


@pytest.fixture
def runs(tmp_path):
    a = write_run(tmp_path / "a", {"aid": records(A_RIGHT)}, model="org/a")
    return a, write_run(tmp_path / "b", {"aid": records(B_RIGHT)[::-1]}, model="org/b")  # another order of the lines


def test_counts_and_p_are_those_of_a_calculation_by_hand(runs):
    (row,) = compare(*runs)["rows"]
    assert (row["n"], row["a"], row["b"], row["only_a"], row["only_b"]) == (40, 12 / 40, 22 / 40, 2, 12)
    assert row["difference"] == pytest.approx(0.25) and row["interval"][0] < 0.25 < row["interval"][1]
    assert row["p"] == pytest.approx(2 * (1 + 14 + 91) / 2**14)  # P(X <= 2) of Binomial(14, 1/2), both sides
    assert row["p_holm"] == row["p"] and row["verdict"].startswith("B is better at n = 40 (B - A = +25.0 points")


def test_swapped_runs_mirror_the_verdict_and_equal_ones_differ_in_nothing(runs):
    forward, back = (compare(*pair)["rows"][0] for pair in (runs, runs[::-1]))
    assert back["verdict"].startswith("A is better") and back["p"] == forward["p"]
    assert back["difference"] == pytest.approx(-forward["difference"])
    assert back["interval"] == pytest.approx([-forward["interval"][1], -forward["interval"][0]])
    same = compare(runs[0], runs[0])
    assert same["rows"][0]["verdict"].startswith("no difference can be told at n = 40") and same["rows"][0]["p"] == 1
    assert same["flips"] == {"aid": []} and same["notes"] == []


def test_figures_that_are_not_right_or_wrong_go_through_the_bootstrap(tmp_path):
    low, high = [[0.1 + i / 100] for i in range(20)], [[0.2 + i / 100] for i in range(20)]
    a = write_run(tmp_path / "a", {"rsvg": records([0] * 20, ious=low, score=[1.0] * 20)})
    b = write_run(tmp_path / "b", {"rsvg": records([0] * 20, ious=high, score=[1.0] * 20)})
    rows = {row["measure"]: row for row in compare(a, b)["rows"]}
    assert list(rows) == ["accuracy", "iou", "score"]
    assert rows["iou"]["difference"] == pytest.approx(0.1) and rows["iou"]["interval"] == pytest.approx([0.1, 0.1])
    assert rows["iou"]["only_a"] is None and rows["iou"]["verdict"].startswith(
        "B is better at n = 20 (B - A = +0.1000"
    )
    assert [rows[name]["verdict"].startswith("no difference") for name in ("accuracy", "score")] == [True, True]


def test_retrieval_counts_first_places(tmp_path):
    def ranked(ranks):
        return [
            {"id": str(i), "image_to_text_rank": own[0], "text_to_image_ranks": own[1:]} for i, own in enumerate(ranks)
        ]

    a = write_run(tmp_path / "a", {"rsicd": ranked([(1, 2, 1), (3, 1, 1), (2, 5, 5)])})
    b = write_run(tmp_path / "b", {"rsicd": ranked([(1, 1, 1), (1, 1, 1), (2, 5, 5)])})
    compared = compare(a, b)
    to_text, to_image = compared["rows"]
    assert (to_text["measure"], to_text["a"], to_text["only_a"], to_text["only_b"]) == (
        "image_to_text_R@1",
        1 / 3,
        0,
        1,
    )
    assert to_text["p"] == 1 and to_image["a"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert [flip["id"] for flip in compared["flips"]["rsicd"]] == ["1"]


def test_p_values_of_several_tasks_are_corrected(tmp_path):
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06]) and holm([]) == []
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    # 7 to 0: p = 2 / 2**7 = 0.0156, so 0.0469 of three tasks and 0.0625 of four.
    tasks = ["one", "two", "three", "four"]
    better = {task: records([1] * 8) if task == "one" else records([0] * 8) for task in tasks}
    a = write_run(tmp_path / "a", {task: records([0] * 7 + [task == "one"]) for task in tasks})
    b = write_run(tmp_path / "b", better)
    three, four = compare(a, b, tasks[:3])["rows"][0], compare(a, b)["rows"][0]
    assert three["p"] == four["p"] == pytest.approx(2 / 2**7)
    assert three["p_holm"] == pytest.approx(6 / 2**7) and three["verdict"].startswith("B is better")
    assert four["p_holm"] == pytest.approx(8 / 2**7) and four["verdict"].startswith("no difference")


def test_other_settings_are_told_and_tasks_without_single_figures_too(runs, tmp_path):
    captions = [{key: value for key, value in one.items() if key != "strict"} for one in records([1] * 3)]
    settings = {"model": "org/x", "temperature": 0.7}
    other = write_run(tmp_path / "c", {"captions": captions}, settings=settings, pixel_budget=[1, 2])
    compared = compare(write_run(tmp_path / "d", {"captions": captions}), other)
    assert compared["rows"] == [] and compared["flips"] == {}
    assert "nothing can be paired" in compared["notes"][0]
    assert "temperature 0.0 / 0.7; pixel_budget [3136, 9408] / [1, 2]" in compared["notes"][1]
    assert "model" not in compared["notes"][1]


def refused(*arguments):
    """Returns the key of the error, and the end of its place."""
    with pytest.raises(DataError) as caught:
        compare(*arguments)
    return caught.value.key, caught.value.where.rpartition("/")[2]


def test_what_cannot_be_compared_is_refused(runs, tmp_path):
    a, b = runs

    def other(tasks, **figures):
        return write_run(tmp_path / "other", tasks, **figures)

    assert refused(a, other({"aid": records(B_RIGHT[:30])})) == ("id", "")
    assert refused(a, other({"aid": records(B_RIGHT)}, dataset_hash="moved")) == ("dataset_hash", "")
    assert refused(a, other({"aid": records(B_RIGHT)}, metric_version=2)) == ("metric_version", "")
    assert refused(a, other({"aid": records(B_RIGHT)}, dataset_hash=None)) == ("dataset_hash", "")
    assert refused(a, other({"nwpu": records(B_RIGHT)})) == ("task", "")
    with pytest.raises(DataError, match="'adi' is not in both .*did you mean 'aid'"):
        compare(a, b, ["adi"])
    scored = other({"aid": records(B_RIGHT, score=[None if i == 3 else 1.0 for i in range(40)])})
    assert refused(a, scored) == ("score", "other: aid")
    compared = compare(a, other({"aid": records(B_RIGHT, score=[1.0] * 40)}))
    assert len(compared["rows"]) == 1 and compared["notes"] == ["aid: only B has score, which is not compared."]
    yes = other({"aid": [records([1])[0] | {"strict": "yes"}, *records(B_RIGHT)[1:]]})
    assert refused(a, yes)[0] == "strict"


def test_damaged_files_are_named(runs, tmp_path):
    a, b = runs
    file = b / "samples_aid.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:5]) + lines[5][:20])
    assert refused(a, b) == ("", "samples_aid.jsonl, line 6")
    file.write_text("".join(lines[:5]))
    assert refused(a, b) == ("", "samples_aid.jsonl")
    file.write_text("".join([*lines[:39], lines[4]]))
    assert refused(a, b) == ("id", "samples_aid.jsonl, line 40")
    file.unlink()
    assert refused(a, b) == ("", "samples_aid.jsonl")
    (b / "results.json").write_text('{"model": ')
    assert refused(a, b) == ("", "results.json")
    assert refused(a, tmp_path / "nowhere") == ("", "nowhere")


def test_scores_of_two_score_models_are_not_compared(tmp_path):
    def run(name, **settings):
        return write_run(tmp_path / name, {"vqa": records([1, 0], score=[1.0, 2.0])}, settings=settings)

    a, same = run("a", score_model="s", score_model_hash="1"), run("b", score_model="s", score_model_hash="1")
    assert [row["measure"] for row in compare(a, same)["rows"]] == ["accuracy", "score"]
    for other in (run("c", score_model="t", score_model_hash="1"), run("d", score_model="s", score_model_hash="2")):
        compared = compare(a, other)
        assert [row["measure"] for row in compared["rows"]] == ["accuracy"]
        assert "score is not compared" in compared["notes"][0]
    assert "'s' has other weights" in compared["notes"][0]
    several = {"score_model": "s,t", "score_model_hash": "1", "score_combine": "mean", "score_calibration_hash": "2"}
    for i, change in enumerate(({}, {"score_combine": "min"}, {"score_calibration_hash": "3"})):
        compared = compare(run(f"e{i}", **several), run(f"f{i}", **several | change))
        assert len(compared["rows"]) == (1 if change else 2)


def test_the_latex_table_has_intervals_and_no_markup_of_the_names(runs, tmp_path, capsys):
    a = write_run(tmp_path / "c", {"aid_50%": records(A_RIGHT)}, model="org/a_b&c")
    b = write_run(tmp_path / "d", {"aid_50%": records(B_RIGHT)}, model="org/b")
    assert cli.main(["eval", "compare", str(a), str(b), "--latex", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    lines = printed.out.rstrip("\n").split("\n")
    assert (
        lines[0] == r"% A: org/a\_b\&c" and lines[2].startswith(r"\begin{tabular}") and lines[-1] == r"\end{tabular}"
    )
    cells = lines[6].removesuffix(r" \\").split(" & ")
    assert cells[:5] == [r"aid\_50\%", "accuracy", "40", "30.0", r"\textbf{55.0}"]
    assert re.fullmatch(r"\$\+25\.0\$ \(\$[+-]\d+\.\d\$ to \$\+\d+\.\d\$\)", cells[5]) and cells[6] == "0.013"
    assert "compare.html" in printed.err and [line for line in lines if line.endswith("rule")] == [
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
    ]
