"""Sample files of lmms-eval: ours read back, its own forms, comparison, best-of-n, and what is refused."""

import json

import pytest
from helpers import picture
from helpers.evaluation_runs import records, write_run

from rs_rlhf.cli.main import run
from rs_rlhf.errors import DataError, OptionError
from rs_rlhf.evaluation.compare import compare
from rs_rlhf.evaluation.lmms.samples import lmms_records, lmms_results, sample_files

RIGHT = {"a": [1, 1, 0, 0, 1, 0, 1, 1], "b": [1, 0, 1, 1, 1, 1, 1, 1]}


def line(number, **more):
    """A line as lmms-eval writes it for a task that generates."""
    known = {
        "doc_id": number,
        "target": "yes",
        "filtered_resps": "yes",
        "token_counts": [None],
        "input": f"Is it {number}?",
    }
    return {**known, "doc_hash": f"{number:064x}", **more}


def samples(folder, lines, task="mine", time="20261130_101500"):
    """Writes a sample file where lmms-eval does."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{time}_samples_{task}.jsonl"
    file.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    return file


def test_an_exported_run_compares_as_the_run_itself(tmp_path):
    for name, right in RIGHT.items():
        write_run(tmp_path / name, {"rsvqa-lr": records(right)}, model=f"org/{name}")
        run("eval export", [str(tmp_path / name), "--format", "lmms-eval", "--out", str(tmp_path / "lmms" / name)])
        (file,) = (tmp_path / "lmms" / name).glob("*/*_samples_rsvqa-lr.jsonl")
        first = json.loads(file.read_text().splitlines()[0])
        assert (first["filtered_resps"], first["resps"], first["acc"]) == ("answer 0", ["an answer 0"], 1)
        assert not {"doc", "arguments"} & set(first)
    ours = compare(tmp_path / "a", tmp_path / "b")["rows"]
    theirs = compare(tmp_path / "lmms" / "a", tmp_path / "lmms" / "b")["rows"]
    assert [row["measure"] for row in theirs] == ["accuracy"]
    keys = ("task", "n", "a", "b", "difference", "p", "only_a", "only_b")
    assert {key: theirs[0][key] for key in keys} == {key: ours[0][key] for key in keys}


def test_figures_are_told_by_their_values(tmp_path):
    lines = [line(i, gqa={"question_id": i, "score": i % 2}, anls=0.5) for i in range(4)]
    samples(tmp_path / "org__model", lines, time="20250101_000000")
    samples(tmp_path / "org__model", [{**entry, "exact_match": 1.0} for entry in lines[:3]])
    results = lmms_results(tmp_path)
    assert results["tasks"]["mine"]["accuracy"] == 1.0 and results["tasks"]["mine"]["n"] == 3  # the later file
    assert results["tasks"]["mine"]["model"] == "org__model"
    older = sample_files(tmp_path / "org__model/20250101_000000_samples_mine.jsonl")["mine"]
    assert [record["strict"] for record in lmms_records(older, "mine")] == [False, True, False, True]
    file = samples(tmp_path / "scored", [line(i, anls=0.25 * i) for i in range(3)])
    assert [record["score"] for record in lmms_records(file, "mine")] == [0.0, 0.25, 0.5]


def test_responses_and_targets_in_the_forms_that_lmms_eval_leaves(tmp_path):
    forms = [
        line(0, acc=1),
        line(1, acc=1, resps=["<think> … </think> yes"], filtered_resps="yes"),
        line(2, acc=0, resps=[["no", "yes"]], filtered_resps=["no", "yes"], target="['yes', 'Yes']"),
        line(3, acc=0, filtered_resps="[invalid]", resps=["perhaps"]),
    ]
    found = lmms_records(samples(tmp_path / "m", forms), "mine")
    assert [record["output"] for record in found] == ["yes", "<think> … </think> yes", "no", "perhaps"]
    assert [record["answer"] for record in found] == ["yes", "yes", "no", None]
    assert found[2]["references"] == ["yes", "Yes"] and found[0]["prompt"] == "Is it 0?"


@pytest.mark.parametrize(
    ("lines", "key", "number"),
    [
        ([line(0, acc=1), line(0, acc=0)], "doc_id", 2),
        ([line(0, acc=1), {**line(1, acc=1), "doc_id": None}], "doc_id", 2),
        ([line(0, acc=1), line(1)], "acc", 2),
        ([line(0, acc=1, filtered_resps=None)], "resps", 1),
        ([line(0)], "metrics", None),
        ([], "", None),
    ],
)
def test_lines_that_cannot_be_used_are_named(tmp_path, lines, key, number):
    file = samples(tmp_path / "m", lines)
    with pytest.raises(DataError) as error:
        lmms_records(file, "mine")
    assert error.value.key == key and error.value.where == (f"{file}, line {number}" if number else str(file))


def test_best_of_n_chooses_among_written_answers(score_model_path, tmp_path, capsys):
    words = ["river", "forest", "beach", "field"]
    for number in range(8):
        picture(number).save(tmp_path / f"{number}.png")
    rows = [{"image": f"{i}.png", "prompt": f"What is in tile {i}?", "solution": words[i % 4]} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "asked.yaml").write_text("title: T\nsource: here\nlayout: rows\npath: rows.jsonl\ntask: vqa\n")
    asked = [f"What is in tile {i}?" for i in range(8)]
    greedy = samples(tmp_path / "g", [line(i, input=asked[i], filtered_resps=words[0], acc=0) for i in range(8)])
    several = [[words[(i + k) % 4] for k in range(4)] for i in range(8)]
    sampled = samples(tmp_path / "s", [line(i, input=asked[i], resps=several[i], acc=0) for i in range(8)])

    def choose(policy, out, n="4"):
        given = ["--policy", policy, "--score_model", str(score_model_path), "--task", str(tmp_path / "asked.yaml")]
        given += ["--data_root", str(tmp_path), "--out", str(tmp_path / out), "-n", n]
        run("best-of-n", given)

    choose(f"{sampled},{greedy}", "out")
    found = json.loads((tmp_path / "out" / "best_of_n.json").read_text())["pooled"]["methods"]
    assert found["greedy"][-1]["accuracy"] == 0.25 and found["oracle"][-1]["accuracy"] == 1.0
    log = (tmp_path / "out" / "answers_asked_seed0.jsonl").read_text()
    assert json.dumps(several[3])[1:-1] in log
    with pytest.raises(OptionError) as needed:
        choose(str(sampled), "other")
    assert needed.value.key == "policy"
    other = samples(tmp_path / "o", [line(i, input="Is it a road?", filtered_resps="x", acc=0) for i in range(8)])
    with pytest.raises(DataError) as wrong:
        choose(f"{sampled},{other}", "third")
    assert wrong.value.key == "input"


def test_a_folder_without_either_says_what_is_missing(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="no results.json"):
        compare(tmp_path / "a", tmp_path / "a")
