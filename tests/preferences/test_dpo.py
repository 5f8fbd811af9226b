"""Candidates ordered by a score model become the data set that TRL's DPOTrainer trains on."""

import functools
import json
from pathlib import Path

import pytest
from helpers import picture
from helpers.processes import kill_when

from rs_rlhf import Scorer, make_group
from rs_rlhf.cli.main import run
from rs_rlhf.data.scenes.make import write_scenes
from rs_rlhf.errors import DataError, OptionError
from rs_rlhf.preferences.dpo import dpo_row, load_dpo
from rs_rlhf.preferences.reader import load_preferences

main = functools.partial(run, "data dpo")

TEXTS = ["a river.", "a forest with a road.", "two ships", "a river.", "", "many buildings near a lake"]


def rows_of(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture
def candidates(tmp_path):
    for k in range(4):
        picture(k).save(tmp_path / f"{k}.png")
    rows = [
        {"prompt": "What is it?", "image": "0.png", "completions": TEXTS, "id": "first"},
        {
            "prompt": [{"role": "user", "content": "<image> or <image>?"}],
            "images": ["1.png", "2.png"],
            "completions": [[{"role": "assistant", "content": text}] for text in TEXTS],
        },
        {"prompt": "", "image": "3.png", "completions": TEXTS[:3]},
        {"prompt": "Alone?", "completions": ["yes", "no"]},
        {"prompt": "What?", "image": "3.png", "completions": ["same", "same ", ""]},
    ]
    file = tmp_path / "candidates.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_dpo_row():
    group = make_group("", ["a", "b", "c"])
    row, _ = dpo_row(group, [0.1, 0.9, 0.3], ["x.png"], 0.5)
    assert (row["chosen"], row["rejected"]) == (group.completions[1], group.completions[0])
    assert (row["chosen_score"], row["rejected_score"], row["images"]) == (0.9, 0.1, ["x.png"])
    assert dpo_row(group, [0.1, 0.9, 0.3], [], 0.9) == (None, "below the margin")
    assert dpo_row(group, [0.4, 0.4, 0.4], []) == (None, "below the margin")
    assert dpo_row(make_group("", ["a"]), [0.4], []) == (None, "fewer than two candidates")


def test_best_against_worst(candidates, score_model_path, tmp_path, capsys):
    out = tmp_path / "dpo.jsonl"
    line = ["--model", score_model_path, "--input", str(candidates), "--output", str(out)]
    assert main(line) == 0
    rows = rows_of(out)
    table = " ".join(capsys.readouterr().out.split())
    assert "rows 5" in table and "fewer than two candidates 1" in table and "rows written 4" in table
    assert "empty or repeated 6" in table and not list(tmp_path.glob("*.partial"))
    assert rows[0]["id"] == "first" and rows[0]["images"] == ["0.png"] and rows[3]["images"] == []
    scorer = Scorer.from_pretrained(score_model_path)
    texts = list(dict.fromkeys(text for text in TEXTS if text))
    (scores,) = scorer.score([str(tmp_path / "0.png")], ["What is it?"], [texts])
    assert rows[0]["chosen_score"] == pytest.approx(max(scores), abs=1e-5)
    assert rows[0]["rejected_score"] == pytest.approx(min(scores), abs=1e-5)
    best = texts[scores.index(max(scores))]
    assert rows[0]["chosen"] == [{"role": "assistant", "content": [{"type": "text", "text": best}]}]
    gaps = sorted(row["chosen_score"] - row["rejected_score"] for row in rows)
    assert main([*line, "--overwrite", "--margin", str((gaps[1] + gaps[2]) / 2)]) == 0
    assert len(rows_of(out)) == 2
    with pytest.raises(OptionError, match="choose another --output") as error:
        main(line)
    assert error.value.key == "output"


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_the_form_of_kto_has_a_row_for_each_of_the_two_answers(suffix, candidates, score_model_path, tmp_path, capsys):
    line = ["--model", score_model_path, "--input", str(candidates)]
    for form in ("dpo", "kto"):
        assert main([*line, "--output", str(tmp_path / form / f"data.{suffix}"), "--form", form]) == 0
    assert "rows written 8" in " ".join(capsys.readouterr().out.split())
    pairs, rows = (list(load_dpo(tmp_path / form / f"data.{suffix}")) for form in ("dpo", "kto"))
    assert len(rows) == 2 * len(pairs) == 8
    for pair, *both in zip(pairs, rows[::2], rows[1::2], strict=True):
        assert [row["label"] for row in both] == [True, False]
        assert [row["completion"] for row in both] == [pair["chosen"], pair["rejected"]]
        assert [row["score"] for row in both] == [pair["chosen_score"], pair["rejected_score"]]
        for row in both:
            assert (row["prompt"], row["id"], len(row["images"])) == (pair["prompt"], pair["id"], len(pair["images"]))
    read = [
        load_preferences(tmp_path / form / f"data.{suffix}", image_root=tmp_path / form, form="labelled")
        for form in ("dpo", "kto")
    ]
    same = ("prompt", "completion", "label", "id")
    assert [[row[key] for key in same] for row in read[0]] == [[row[key] for key in same] for row in read[1]]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_trl_trains_on_it(suffix, candidates, score_model_path, tiny_vlm, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import DPOConfig, DPOTrainer

    out = tmp_path / "out" / f"dpo.{suffix}"
    assert main(["--model", score_model_path, "--input", str(candidates), "--output", str(out)]) == 0
    data = load_dpo(out)
    assert data[0]["images"][0].tobytes() == picture(0).tobytes() and len(data[1]["images"]) == 2
    images = data.filter(lambda row: len(row["images"]) > 0)
    args = DPOConfig(
        str(tmp_path / "run"),
        max_steps=2,
        per_device_train_batch_size=2,
        report_to="none",
        bf16=False,
        gradient_checkpointing=False,
        max_length=None,
        use_cpu=True,
        learning_rate=1e-3,
        logging_steps=1,
    )
    trainer = DPOTrainer(
        AutoModelForImageTextToText.from_pretrained(tiny_vlm),
        args=args,
        train_dataset=images,
        processing_class=AutoProcessor.from_pretrained(tiny_vlm),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2 and losses[0] == pytest.approx(0.693, abs=0.01)


def test_sampled_on_the_spot_and_killed(score_model_path, tiny_vlm, tmp_path):
    write_scenes(tmp_path / "scenes", 12, 4, size=32)
    line = ["--model", score_model_path, "--policy", tiny_vlm, "-n", "4", "--max_new_tokens", "3", "--token_budget"]
    line += ["150", "--input", str(tmp_path / "scenes"), "--split", "train", "--open_ended"]
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    partial = Path(f"{killed}.partial")
    argv = ["data", "dpo", *line, "--output", str(killed)]
    kill_when(lambda: partial.exists() and partial.read_bytes().count(b"\n") >= 3, argv)
    assert not killed.exists() and partial.exists()
    assert main([*line, "--output", str(killed)]) == 0 and main([*line, "--output", str(whole)]) == 0
    assert killed.read_bytes() == whole.read_bytes() and not partial.exists()
    rows = rows_of(whole)
    assert rows and all((tmp_path / row["images"][0]).is_file() for row in rows)
    assert all(row["prompt"][0]["content"][1]["text"] == "Describe the image." for row in rows)


def test_failures_are_counted_and_mistakes_told(candidates, score_model_path, tmp_path, capsys):
    (tmp_path / "0.png").write_bytes(b"no image")
    out = tmp_path / "out" / "dpo.parquet"
    line = ["--model", score_model_path, "--input", str(candidates)]
    assert main([*line, "--output", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "left out: " in printed and "line 1" in printed and "failed" in printed and len(load_dpo(out)) == 3
    candidates.write_text('{"prompt": "a", "image": "1.png"}\n')
    with pytest.raises(DataError, match="`completions` is null, expected a list of texts; give --policy") as error:
        main([*line, "--output", str(tmp_path / "x.jsonl")])
    assert error.value.key == "completions" and error.value.where.endswith("line 1")
    for output, more, key in (("x.json", [], "output"), ("x.jsonl", ["--margin", "-1"], "margin")):
        with pytest.raises(OptionError) as error:
            main([*line, "--output", output, *more])
        assert error.value.key == key


def test_the_score_models_choice_is_compared_before_the_work(policy_path, score_model_path, tmp_path, capsys):
    write_scenes(tmp_path / "scenes", 12, 4, size=32)
    line = ["--model", score_model_path, "--policy", policy_path, "-n", "3", "--max_new_tokens", "4"]
    line += ["--input", str(tmp_path / "scenes"), "--split", "validation"]
    assert main([*line, "--output", str(tmp_path / "a.jsonl"), "--check_best_of_n", "2"]) == 0
    printed = capsys.readouterr().out
    assert "best of 3 on 2 labelled questions, 8 answers" in printed and "the greedy answer" in printed
    results = json.loads((tmp_path / "a_best_of_n" / "best_of_n.json").read_text())
    assert results["questions"] == 2 and results["sizes"] == [1, 2, 3]
    assert main([*line, "--output", str(tmp_path / "b.jsonl"), "--check_best_of_n", "0"]) == 0
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()
    assert "greedy" not in capsys.readouterr().out and not (tmp_path / "b_best_of_n").exists()
