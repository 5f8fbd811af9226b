"""Before the first step of GRPO the score model's choice is compared with the greedy answer, on labelled prompts."""

import json
import shutil

import pytest
from helpers import WORDS, picture

from rs_rlhf.cli import main as cli
from rs_rlhf.runs.plots import history
from rs_rlhf.runs.report_tables import read_evaluations
from rs_rlhf.trainers.audit.choice_check import FOLDER

COUNT = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("choice")
    rows = []
    for i in range(COUNT):
        picture(i).save(folder / f"{i}.png")
        rows.append({"prompt": f"{i}: which class?", "image": f"{i}.png", "solution": WORDS[i % 4], "choices": WORDS})
    (folder / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    unlabelled = [{"prompt": row["prompt"], "image": row["image"]} for row in rows]
    (folder / "unlabelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in unlabelled))
    return folder


@pytest.fixture(scope="module")
def grpo(data, policy_path, score_model_path):
    def run(out, train, *more, code=0):
        options = {
            "model_name_or_path": policy_path,
            "score_model": score_model_path,
            "dataset_name": data / train,
            "output_dir": out,
            "max_steps": 1,
            "per_device_train_batch_size": 8,
            "num_generations": 4,
            "num_generations_eval": 1,
            "per_device_eval_batch_size": 8,
            "max_completion_length": 6,
            "learning_rate": 1e-3,
            "bf16": False,
            "use_cpu": True,
            "report_to": "none",
            "logging_steps": 1,
            "save_strategy": "no",
            "gradient_checkpointing": False,
            "disable_tqdm": True,
        }
        flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        assert cli.main(["grpo", *flags, *more]) == code

    return run


def losses(out):
    return [entry["loss"] for entry in history(out) if "loss" in entry]


def test_the_comparison_is_made_on_evaluation_prompts_and_changes_nothing(grpo, data, tmp_path, capsys):
    evaluated = ["--eval_dataset_name", str(data / "labelled.jsonl"), "--eval_strategy", "steps", "--eval_on_start"]
    evaluated += ["true", "--validation_prompts", str(COUNT)]
    grpo(tmp_path / "with", "unlabelled.jsonl", *evaluated)
    printed = capsys.readouterr().out
    assert f"best of 4 on {COUNT} labelled evaluation prompts, {5 * COUNT} answers" in printed
    results = json.loads((tmp_path / "with" / "eval" / FOLDER / "best_of_n.json").read_text())
    assert results["questions"] == COUNT and results["n"] == 4 and results["malformed"] < 1
    assert all(line in printed for line in results["conclusions"])
    greedy = results["pooled"]["methods"]["greedy"][0]["accuracy"]
    (first, *_) = (entry for entry in history(tmp_path / "with") if "eval_audit/greedy_accuracy" in entry)
    assert first["step"] == 0 and greedy == first["eval_audit/greedy_accuracy"] > 0
    shown = {row["what"]: row["accuracy"] for row in read_evaluations(tmp_path / "with")}
    assert shown[f"{FOLDER}: greedy"] == greedy and f"{FOLDER}: score, n = 4" in shown
    grpo(tmp_path / "without", "unlabelled.jsonl", *evaluated, "--check_best_of_n", "0")
    assert "labelled" not in capsys.readouterr().out and not (tmp_path / "without" / "eval").exists()
    assert losses(tmp_path / "with") == losses(tmp_path / "without")  # its draws are its own


def test_training_prompts_are_drawn_if_nothing_else_is_labelled(grpo, tmp_path, capsys):
    grpo(tmp_path / "run", "labelled.jsonl", "--check_best_of_n", "3")
    assert "best of 4 on 3 labelled training prompts, 15 answers" in capsys.readouterr().out


def test_an_image_that_an_evaluation_would_fail_on_is_told_before_the_first_step(grpo, data, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes((data / "0.png").read_bytes()[:-40])  # its header is whole
    rows = [{"prompt": "which class?", "image": "broken.png", "solution": "port"}]
    (tmp_path / "broken.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    late = ["--eval_dataset_name", str(tmp_path / "broken.jsonl"), "--eval_strategy", "steps", "--eval_steps", "9"]
    grpo(tmp_path / "run", "unlabelled.jsonl", *late, code=1)
    said = capsys.readouterr()
    assert "broken.png" in said.err and "'loss'" not in said.out


@pytest.mark.slow
def test_a_score_that_is_missing_ends_the_comparison_and_not_the_run(grpo, score_model_path, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    shutil.copytree(score_model_path, tmp_path / "unsure")
    weights = load_file(tmp_path / "unsure" / "model.safetensors")
    weights["reward_head.weight"] *= float("nan")
    save_file(weights, tmp_path / "unsure" / "model.safetensors", {"format": "pt"})
    funcs = ["--reward_funcs", "rs_rlhf.rewards.ExactMatchReward"]
    grpo(tmp_path / "run", "labelled.jsonl", *funcs, "--score_model", str(tmp_path / "unsure"))
    printed = capsys.readouterr().out
    assert "is not compared with the greedy answer: " in printed and "has the score nan" in printed
    assert losses(tmp_path / "run") and not (tmp_path / "run" / "eval").exists()


@pytest.mark.slow
def test_without_labels_or_without_scores_nothing_is_compared(grpo, tmp_path, capsys):
    grpo(tmp_path / "unlabelled", "unlabelled.jsonl")
    mixed = tmp_path / "mixed"
    grpo(mixed, "labelled.jsonl", "--reward_funcs", "rs_rlhf.rewards.ExactMatchReward", "--score_transform", "softmax")
    printed = capsys.readouterr().out
    assert printed.count("Before the work") == 1 and not (tmp_path / "unlabelled" / "eval").exists()
