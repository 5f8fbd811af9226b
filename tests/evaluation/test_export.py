"""An evaluation handed on: lm-evaluation-harness's files parsed back, and what W&B's offline file holds."""

import json
import os

import pytest
from helpers import picture
from helpers.evaluation_runs import records, write_run
from helpers.wandb_files import logged
from PIL import Image

from rs_rlhf.cli import main as cli
from rs_rlhf.errors import DataError
from rs_rlhf.evaluation.export import lm_eval_results, lm_eval_samples, wandb_figures, write_lm_eval
from rs_rlhf.evaluation.results import read_results
from rs_rlhf.runs.tables import THUMBNAIL

TYPES = {"count": {"n": 2, "accuracy": 0.5, "interval": [0.1, 0.9]}, "a, b": {"n": 1, "accuracy": 1.0}}
FIGURES = {
    "accuracy": 0.75,
    "interval": [0.3, 0.95],
    "upstream_compat": 1.0,
    "parse_failures": 0.25,
    "types": TYPES,
    "metrics": {"precision@0.5": 0.75, "CIDEr": 1.25, "METEOR": None},
    "task": "vqa",
}


@pytest.fixture
def run(tmp_path):
    for i in range(2):
        picture(i, 400, 300).save(tmp_path / f"{i}.png")
    right = records([1, 1, 1, 0], images=[*(str(tmp_path / f"{i}.png") for i in (0, 1, 0)), None])
    right[3] |= {"answer": None, "output": "no idea \u2028 at all", "references": ["a road", "road"]}
    return write_run(tmp_path / "run", {"rsvqa-lr": right}, model="org/a model", **FIGURES)


def test_results_have_the_shape_of_lm_eval(run):
    exported = lm_eval_results(read_results(run))
    figures = exported["results"]["rsvqa-lr"]
    assert figures["alias"] == "rsvqa-lr" and figures["acc,none"] == figures["exact_match,strict-match"] == 0.75
    assert figures["acc_stderr,none"] == pytest.approx(0.25)  # sqrt(0.75 * 0.25 / 3)
    assert figures["upstream_compat,none"] == 1.0 and figures["upstream_compat_stderr,none"] == 0.0
    assert figures["acc_count,none"] == 0.5 and figures["acc_count_stderr,none"] == pytest.approx(0.5)
    assert figures["acc_a; b,none"] == 1.0 and figures["acc_a; b_stderr,none"] == "N/A"
    assert figures["CIDEr,none"] == 1.25 and "METEOR,none" not in figures
    assert all(key.count(",") == 1 for key in figures if key != "alias")
    better = exported["higher_is_better"]["rsvqa-lr"]
    assert better["acc"] and better["CIDEr"] and not better["parse_failures"] and "acc_stderr" not in better
    assert exported["n-samples"] == {"rsvqa-lr": {"original": 4, "effective": 4}}
    assert exported["versions"] == {"rsvqa-lr": 1} and exported["n-shot"] == {"rsvqa-lr": 0}
    assert exported["configs"]["rsvqa-lr"]["output_type"] == "generate_until"
    assert exported["configs"]["rsvqa-lr"]["metadata"]["dataset_hash"] == "hash of rsvqa-lr"
    assert exported["group_subtasks"] == {"rsvqa-lr": []} and exported["model_name"] == "org/a model"


def test_samples_have_the_fields_of_lm_eval():
    own = records([1, 0], ious=[[0.5, 1.0], [0.0]])
    own[1] |= {"answer": None, "references": ["a", "b"]}
    first, second = lm_eval_samples(own, "t")
    assert (first["doc_id"], first["target"], first["resps"]) == (0, "class 0", [["an answer 0"]])
    assert first["filtered_resps"] == ["answer 0"] and second["filtered_resps"] == ["[invalid]"]
    assert first["metrics"] == ["acc", "iou", "exact_match"] and (first["acc"], first["iou"]) == (1.0, 0.75)
    assert first["arguments"]["gen_args_0"]["arg_0"] == first["input"] == "Question 0?"
    assert json.loads(second["target"]) == ["a", "b"]
    assert all(len(first[f"{key}_hash"]) == 64 for key in ("doc", "prompt", "target"))
    moved, _ = lm_eval_samples([{**one, "image": "/elsewhere/x.png", "output": "other"} for one in own], "t")
    assert moved["doc_hash"] == first["doc_hash"] != second["doc_hash"]
    (ranked,) = lm_eval_samples([{"id": "x", "image_to_text_rank": 2, "text_to_image_ranks": [1, 3]}], "t")
    assert json.loads(ranked["resps"][0][0]) == {"image_to_text_rank": 2, "text_to_image_ranks": [1, 3]}
    assert (ranked["image_to_text_R@1"], ranked["text_to_image_R@1"], "acc" in ranked) == (0.0, 0.5, False)


def test_files_are_named_as_lm_eval_names_them_and_the_same_each_time(run, tmp_path, capsys):
    os.utime(run / "results.json", (1_700_000_000, 1_700_000_000))
    assert cli.main(["eval", "export", str(run), "--format", "lm-eval"]) == 0
    folder = run / "lm_eval" / "org__a__model"
    names = ["results_2023-11-14T22-13-20.000000.json", "samples_rsvqa-lr_2023-11-14T22-13-20.000000.jsonl"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert all(str(folder / name) in capsys.readouterr().out for name in names[:1])
    lines = [json.loads(line) for line in (folder / names[1]).read_text().rstrip("\n").split("\n")]
    assert [line["acc"] for line in lines] == [1.0, 1.0, 1.0, 0.0]
    results = json.loads((folder / names[0]).read_text())
    mean = sum(line["acc"] for line in lines) / len(lines)
    assert results["results"]["rsvqa-lr"]["acc,none"] == mean and len(results["task_hashes"]["rsvqa-lr"]) == 64
    again = write_lm_eval(run, tmp_path / "again")
    assert [path.read_bytes() for path in again] == [(folder / path.name).read_bytes() for path in again]
    from datasets import load_dataset

    table = load_dataset("json", data_files=str(folder / names[1]), split="train", cache_dir=str(tmp_path / "cache"))
    assert table["filtered_resps"][3] == ["[invalid]"] and table["resps"][3] == [["no idea \u2028 at all"]]


def test_preferences_count_rows_and_their_kinds(tmp_path):
    kinds = {"caption": {"n": 3, "accuracy": 2 / 3}, "": {"n": 1, "accuracy": 1.0}}
    own = [{**one, "scores": [1.0, 0.5]} for one in records([1, 0])]
    run = write_run(
        tmp_path / "run", {"liked": own}, by_kind=kinds, n=3, rows=2, task="preference", model_type="score"
    )
    exported = lm_eval_results(read_results(run))
    assert (
        exported["n-samples"]["liked"]["effective"] == 2 and exported["results"]["liked"]["acc_caption,none"] == 2 / 3
    )
    assert exported["configs"]["liked"]["output_type"] == "multiple_choice"
    assert not any(key.startswith("acc_,") for key in exported["results"]["liked"])
    assert not any("//" in key for key in wandb_figures(read_results(run)))
    assert len(write_lm_eval(run, tmp_path / "out")) == 2


def test_tasks_of_several_models_are_exported_under_their_own_names(tmp_path):
    run = write_run(tmp_path / "run", {"aid": records([1, 0]), "vqa": records([1]), "eurosat": records([1])}, "last")
    results = json.loads((run / "results.json").read_text())
    for task, model, limit in (("aid", "org/a", 2), ("vqa", "org/b", None), ("eurosat", "org/b", 7)):
        results["tasks"][task] |= {"model": model, "model_type": "clip", "settings": {"limit": limit}}
    (run / "results.json").write_text(json.dumps(results))
    paths = write_lm_eval(run, tmp_path / "out")
    assert sorted({path.parent.name for path in paths}) == ["org__a", "org__b"] and len(paths) == 5
    held = {path.parent.name: json.loads(path.read_text()) for path in paths if path.name.startswith("results_")}
    assert {name: list(one["results"]) for name, one in held.items()} == {
        "org__a": ["aid"],
        "org__b": ["vqa", "eurosat"],
    }
    assert held["org__a"]["model_name"] == "org/a" and held["org__a"]["config"]["limit"] == 2
    assert (
        held["org__b"]["config"]["limit"] == {"vqa": None, "eurosat": 7}
        and held["org__b"]["config"]["model"] == "clip"
    )
    results["tasks"]["vqa"]["model"] = "org__a"
    (run / "results.json").write_text(json.dumps(results))
    with pytest.raises(DataError, match="org__a and another model would both be written to"):
        write_lm_eval(run, tmp_path / "clash")
    assert not (tmp_path / "clash").exists()


def test_figures_for_wandb_are_all_numbers_under_the_tasks(run):
    figures = wandb_figures(read_results(run))
    assert figures["eval/rsvqa-lr/accuracy"] == 0.75 and figures["eval/rsvqa-lr/interval_low"] == 0.3
    assert figures["eval/rsvqa-lr/types/count/interval_high"] == 0.9 and figures["eval/rsvqa-lr/metrics/CIDEr"] == 1.25
    assert not any("settings" in key or "seed" in key or "METEOR" in key for key in figures)
    nested = wandb_figures({"tasks": {"t": {"intervals": {"R@1": [0.1, 0.2]}, "pixel_budget": [1, 2]}}})
    assert nested == {"eval/t/intervals/R@1_low": 0.1, "eval/t/intervals/R@1_high": 0.2}


def test_a_run_logged_offline_reads_back(run, tmp_path, monkeypatch, capsys):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staged"))
    wandb.teardown()  # wandb keeps the folder of the process's first run, which another test may have made
    command = ["eval", "export", str(run), "--format", "wandb", "--project", "p", "--limit", "3"]
    assert cli.main(command) == 0
    assert "1 tasks -> W&B project p" in capsys.readouterr().out
    wandb.teardown()  # waits until its process has written the file
    (history,), artifacts = logged(tmp_path)
    assert history["eval/rsvqa-lr/accuracy"] == 0.75 and history["eval/rsvqa-lr/types/count/accuracy"] == 0.5
    table = history["eval/rsvqa-lr/samples"]
    assert table["_type"] == "table-file" and table["nrows"] == 3  # of 4: the first, the last, one between
    (artifact,) = [one for one in artifacts if one.type == "run_table"]
    entries = {entry.path: entry.local_path for entry in artifact.manifest.contents}
    (stored,) = [local for path, local in entries.items() if path.endswith(".table.json")]
    with open(stored) as file:
        content = json.load(file)
    rows = [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
    assert [row["id"] for row in rows] == ["q0", "q2", "q3"] and [row["accuracy"] for row in rows] == [1, 1, 0]
    assert rows[2]["image"] is None and "inside the data's file" in rows[2]["note"] and rows[0]["note"] == ""
    assert rows[2]["output"] == "no idea \u2028 at all" and json.loads(rows[2]["references"]) == ["a road", "road"]
    pictures = [local for path, local in entries.items() if path.startswith("media/images/")]
    assert pictures
    for path in pictures:
        with Image.open(path) as image:
            assert max(image.size) == THUMBNAIL


def test_mistakes_are_told(run, tmp_path, capsys):
    assert cli.main(["eval", "export", str(tmp_path / "none"), "--format", "lm-eval"]) == 1
    assert "no results.json" in capsys.readouterr().err
    assert cli.main(["eval", "export", str(run), "--format", "wandb", "--limit", "-1"]) == 1
    assert "--limit is -1" in capsys.readouterr().err
    assert cli.main(["eval", "export", str(run), "--format", "csv"]) == 1
    (run / "samples_rsvqa-lr.jsonl").write_text('{"id": 7}\n')
    with pytest.raises(DataError, match=r"line 1: `id` is 7 \(int\), expected a text"):
        write_lm_eval(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
