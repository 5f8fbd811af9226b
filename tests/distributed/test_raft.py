"""Rounds of RAFT whose trainings are two real processes under ZeRO-2 on the CPU, and weights of rows in them."""

import json

import pytest
from helpers import WORDS, picture, warm

TRAINING = {"use_cpu": "true", "bf16": "false", "gradient_checkpointing": "false", "report_to": "none"}
TRAINING |= {"disable_tqdm": "true", "max_steps": 3, "learning_rate": 1e-3, "logging_steps": 1, "save_strategy": "no"}


def flags(**given):
    return [str(part) for key, value in given.items() for part in (f"--{key}", value)]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raft_distributed")
    rows = []
    for i in range(8):
        picture(i).save(folder / f"{i}.png")
        rows.append({"prompt": "What is it?", "image": f"{i}.png", "solution": WORDS[i % 4]})
    for name, column in (("asked", "solution"), ("answered", "completion")):
        weights = [{column: row["solution"], "w": i % 3} for i, row in enumerate(rows)]
        kept = [
            {"prompt": row["prompt"], "image": row["image"], **more} for row, more in zip(rows, weights, strict=True)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    return folder


def losses(folder):
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in log if "loss" in entry]


@pytest.mark.slow
def test_weights_of_two_processes_are_those_of_one(work, policy_path):
    given = {
        "model_name_or_path": policy_path,
        "dataset_name": work / "answered.jsonl",
        "weight_column": "w",
        "seed": 3,
    }
    one = flags(**given, **TRAINING, output_dir=work / "one", per_device_train_batch_size=4)
    two = flags(
        **given, **TRAINING, output_dir=work / "two", per_device_train_batch_size=2, accelerate_config="cpu_zero2"
    )
    warm.run(["sft", *one], check=0)
    warm.launched(["sft", *two], work)
    assert losses(work / "two") == pytest.approx(losses(work / "one"), abs=1e-3) and len(losses(work / "one")) == 3


@pytest.mark.slow
def test_rounds_are_trained_by_two_processes(work, policy_path, score_model_path):
    given = {"model_name_or_path": policy_path, "score_model": score_model_path, "dataset_name": work / "asked.jsonl"}
    given |= {
        "n": 4,
        "max_new_tokens": 6,
        "rounds": 2,
        "check_best_of_n": 0,
        "eval_dataset_name": work / "asked.jsonl",
        **TRAINING,
    }
    one = flags(**given, output_dir=work / "raft one", per_device_train_batch_size=4)
    two = flags(**given, output_dir=work / "raft two", per_device_train_batch_size=2, accelerate_config="cpu_zero2")
    warm.run(["raft", *one], check=0)
    printed = warm.launched(["raft", *two], work)
    assert "policy after round" in printed
    first = [(work / name / "round-1" / "best.jsonl").read_bytes() for name in ("raft one", "raft two")]
    assert first[0] == first[1]
    trained = [losses(work / name / "round-1" / "policy") for name in ("raft one", "raft two")]
    assert trained[1] == pytest.approx(trained[0], abs=1e-3)
    assert (work / "raft two" / "round-2" / "policy" / "model.safetensors").is_file()
    assert len(losses(work / "raft two")) == 2
