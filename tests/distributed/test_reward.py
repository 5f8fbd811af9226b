"""Two real processes under `accelerate launch`: DDP, ZeRO-2 and ZeRO-3 on the CPU, with mixed batches; and kill -9."""

import json

import pytest
import torch
import yaml
from helpers import ROOT, picture, warm
from transformers import AutoProcessor

from rs_rlhf import GroupCollator, ScoreModel, make_group
from rs_rlhf.models.tiny_vlm import save_tiny_vlm
from rs_rlhf.runs.checkpoints import is_whole


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a tiny model, mixed preference data, a recipe, and the run of one process."""
    folder = tmp_path_factory.mktemp("distributed")
    save_tiny_vlm(folder / "vlm", max_pixels=12 * 28 * 28)
    rows = []
    for i in range(16):
        picture(i).save(folder / f"{i}.png")
        row = {"chosen": f"a river number {i % 3}.", "rejected": "many trees.", "kind": "abc"[i % 3]}
        # three rows in four are text-only, so that with one row per process most batches mix both kinds of process
        row |= {"prompt": "", "image": f"{i}.png"} if i % 4 == 0 else {"prompt": "Is water wet?"}
        rows.append(row)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # 15 rows on two processes: the sampler repeats one, which must not count twice
    (folder / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:15]))
    recipe = {
        "model_name_or_path": str(folder / "vlm"),
        "dataset_name": str(folder / "pairs.jsonl"),
        "eval_dataset_name": str(folder / "held_out.jsonl"),
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "learning_rate": 1.0e-3,
        "logging_steps": 1,
        "max_steps": 5,
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 5,
        "gradient_checkpointing": True,
        "seed": 3,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    train(folder, "one", "--per_device_train_batch_size", "2", "--per_device_eval_batch_size", "4")
    return folder


def train(folder, name, *flags, **kwargs):
    recipe = ["--config", str(folder / "recipe.yaml"), "--output_dir", str(folder / name)]
    return warm.launched(["reward", *recipe, *flags], folder, **kwargs)


def history(folder, name):
    checkpoints = sorted((folder / name).glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    return json.loads((checkpoints[-1] / "trainer_state.json").read_text())["log_history"]


def losses(folder, name):
    return [entry["loss"] for entry in history(folder, name) if "loss" in entry]


def scores(path, folder):
    model = ScoreModel.from_pretrained(path).eval()
    collator = GroupCollator(AutoProcessor.from_pretrained(path))
    groups = [make_group("", ["a river.", "many trees."], str(folder / f"{i}.png")) for i in range(3)]
    with torch.no_grad():
        return model(**collator(groups)).scores


@pytest.mark.parametrize(
    "config", ["cpu_zero3", *(pytest.param(config, marks=pytest.mark.slow) for config in ("cpu_2proc", "cpu_zero2"))]
)
def test_two_processes_train_as_one(work, config):
    train(
        work,
        config,
        "--accelerate_config",
        config,
        "--per_device_train_batch_size",
        "1",
        "--per_device_eval_batch_size",
        "2",
    )
    assert losses(work, config) == pytest.approx(losses(work, "one"), abs=1e-3)
    norms = [[e["grad_norm"] for e in history(work, n) if "grad_norm" in e] for n in ("one", config)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-2)  # Adam would hide gradients of the wrong scale
    one, two = ([e for e in history(work, n) if "eval_loss" in e][-1] for n in ("one", config))
    # not eval_loss: transformers averages it over batches, in which the repeated row counts
    for name in ("margin", "accuracy", "mean", "std", "shuffle_gap"):
        name = f"eval_score/{name}"
        assert two[name] == pytest.approx(one[name], abs=1e-3), name
    assert list((work / config).glob("*.safetensors"))
    torch.testing.assert_close(scores(work / config, work), scores(work / "one", work), atol=1e-3, rtol=0)


def test_accelerate_launch_runs_the_module(work):
    config = str(ROOT / "accelerate_configs" / "cpu_2proc.yaml")
    flags = ["--output_dir", work / "launched", "--max_steps", "2", "--eval_strategy", "no"]
    program = ["-m", "rs_rlhf", "reward", "--config", work / "recipe.yaml", "--per_device_train_batch_size", "1"]
    warm.launched(["-c", warm.ACCELERATE, "--config_file", config, *program, *flags], work)
    assert losses(work, "launched") == pytest.approx(losses(work, "one")[:2], abs=1e-3)


@pytest.mark.slow
def test_zero3_resumes_from_a_checkpoint(work):
    flags = ["--accelerate_config", "cpu_zero3", "--per_device_train_batch_size", "1", "--eval_strategy", "no"]
    train(work, "resumed", *flags, "--max_steps", "2", "--lr_scheduler_type", "constant")
    train(
        work,
        "resumed",
        *flags,
        "--max_steps",
        "4",
        "--lr_scheduler_type",
        "constant",
        "--resume_from_checkpoint",
        "true",
    )
    train(work, "unbroken", *flags, "--max_steps", "4", "--lr_scheduler_type", "constant")
    assert losses(work, "resumed") == pytest.approx(losses(work, "unbroken"), abs=1e-5)


@pytest.mark.slow
def test_lora_under_zero3_saves_a_loadable_adapter_with_its_head(work):
    train(
        work,
        "lora",
        "--accelerate_config",
        "cpu_zero3",
        "--per_device_train_batch_size",
        "1",
        "--use_peft",
        "--lora_target_modules",
        "all-linear",
        "--eval_strategy",
        "no",
        "--positions",
        "sequential",
    )
    assert ScoreModel.from_pretrained(work / "lora").config.positions == "sequential"
    assert scores(work / "lora", work).isfinite().all() and len(losses(work, "lora")) == 5


KILLED_IN_THE_SAVE = """
import os, signal, sys
from rs_rlhf.cli.main import main
from rs_rlhf.trainers.reward import VisionRewardTrainer

save = VisionRewardTrainer._save_optimizer_and_scheduler

def killed(self, output_dir):
    if output_dir.endswith("checkpoint-4"):
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, output_dir)

VisionRewardTrainer._save_optimizer_and_scheduler = killed
main(sys.argv[1:])
"""


def test_a_run_killed_while_it_saves_resumes_from_the_last_whole_checkpoint(work):
    recipe = ["--config", str(work / "recipe.yaml"), "--output_dir", str(work / "killed")]
    recipe += ["--per_device_train_batch_size", "2"]
    warm.run(["-c", KILLED_IN_THE_SAVE, "reward", *recipe], check=-9)
    assert is_whole(work / "killed" / "checkpoint-2")
    assert (work / "killed" / "checkpoint-4").is_dir() and not is_whole(work / "killed" / "checkpoint-4")
    done = warm.run(["reward", *recipe, "--resume_from_checkpoint", "true"], check=0)
    assert "checkpoint-4 was not saved to the end" in done.stderr
    assert losses(work, "killed") == pytest.approx(losses(work, "one"), abs=1e-5)
