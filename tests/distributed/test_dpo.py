"""DPO and KTO in two real CPU processes under ZeRO-2 and ZeRO-3, with rows with and without images, against one."""

import json

import pytest
import torch
from helpers import picture, warm
from transformers import AutoModelForImageTextToText

from rs_rlhf.models.tiny_vlm import save_tiny_vlm


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a tiny policy and pairs, of which most are text-only, so that the processes' batches differ."""
    folder = tmp_path_factory.mktemp("dpo")
    save_tiny_vlm(folder / "vlm", max_pixels=12 * 28 * 28)
    rows = []
    for i in range(8):
        picture(i).save(folder / f"{i}.png")
        row = {"chosen": f"a river number {i % 3}.", "rejected": "many trees."}
        rows.append(row | ({"prompt": "What?", "image": f"{i}.png"} if i % 3 == 0 else {"prompt": "Is water wet?"}))
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def train(work, method, name, batch, *flags):
    given = {
        "model_name_or_path": work / "vlm",
        "dataset_name": work / "pairs.jsonl",
        "eval_dataset_name": work / "pairs.jsonl",
        "eval_strategy": "steps",
        "eval_steps": 3,
        "output_dir": work / name,
        "per_device_train_batch_size": batch,
        "per_device_eval_batch_size": batch,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_steps": 3,
        "max_steps": 3,
        "beta": 0.5,
        "seed": 3,
    }
    quick = "--bf16 false --use_cpu true --report_to none --disable_tqdm true".split()
    argv = [method, *(str(word) for key, value in given.items() for word in (f"--{key}", value)), *quick, *flags]
    warm.launched(argv, work)
    return json.loads((work / name / "trainer_state.json").read_text())["log_history"]


def weights(work, name):
    return AutoModelForImageTextToText.from_pretrained(work / name).state_dict()


@pytest.mark.parametrize(
    ("method", "config"),
    [
        ("dpo", "cpu_zero2"),
        pytest.param("dpo", "cpu_zero3", marks=pytest.mark.slow),
        pytest.param("kto", "cpu_zero2", marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_as_one(work, method, config):
    """KTO is compared without its KL term, whose answers come from each process's own batch."""
    flags = ["--loss_type", "apo_zero_unpaired"] if method == "kto" else []
    one, two = ([], ["--accelerate_config", config])
    logs = [
        train(work, method, f"{method}-{config}-{number}", batch, *flags, *more)
        for number, batch, more in ((1, 4, one), (2, 2, two))
    ]
    for name in ("loss", "grad_norm", "rewards/margins", "num_tokens", "eval_loss", "eval_rewards/margins"):
        values = [[entry[name] for entry in log if name in entry] for log in logs]
        assert values[1] == pytest.approx(values[0], rel=1e-2, abs=1e-4), name
    single, several = (weights(work, f"{method}-{config}-{number}") for number in (1, 2))
    start = AutoModelForImageTextToText.from_pretrained(work / "vlm").state_dict()
    moved = max((single[name] - start[name]).abs().max() for name in start)
    for name, weight in single.items():
        torch.testing.assert_close(several[name], weight, atol=float(moved) / 10, rtol=0)


@pytest.mark.slow
def test_kto_with_its_kl_term_trains_under_zero2_and_resumes(work):
    two = ["--accelerate_config", "cpu_zero2"]
    log = train(work, "kto", "kl", 2, *two)
    assert all(entry["kl"] >= 0 for entry in log if "kl" in entry)
    assert [entry for entry in log if "eval_loss" in entry][0]["eval_rewards/margins"] > 0
    more = train(work, "kto", "kl", 2, *two, "--resume_from_checkpoint", "true", "--max_steps", "4")
    assert [entry["step"] for entry in more if "loss" in entry] == [1, 2, 3, 4]
