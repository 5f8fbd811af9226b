"""GRPO's loss from one row per prompt in two real CPU processes: the same losses as TRL's rows.

The processes have prompts with two images, one and none at the same time; with ZeRO-3 they must run as many passes.
"""

import json

import pytest
from helpers import ROOT, picture, warm

from rs_rlhf.models.tiny_vlm import save_tiny_vlm

SCRIPT = """
import json, os, sys
import torch
from rs_rlhf.trainers.losses import group as group_loss
from rs_rlhf.trainers.data.grpo import load_prompts
from rs_rlhf.trainers.grpo import VisionGRPOConfig, VisionGRPOTrainer

work, name, given = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
if name == "wrong" and os.environ["RANK"] == "1":  # a plain causal mask, in one of the processes
    right = group_loss.tree_mask
    group_loss.tree_mask = lambda segments, *rest, **more: right(segments.clamp(max=0), *rest, **more)

def letters(prompts, completions, **columns):
    return [float(sum(map(ord, one[0]["content"])) % 7) for one in completions]

prompts, root = load_prompts(os.path.join(work, "prompts.jsonl"))
options = dict(
    image_root=root, per_device_train_batch_size=4, num_generations=4, max_completion_length=6, bf16=False,
    use_cpu=True, report_to="none", logging_steps=1, learning_rate=1e-3, lr_scheduler_type="constant", beta=0.1,
    save_strategy="no", audit_steps=0, logged_samples=0, seed=3, disable_tqdm=True, shared_prefix=name != "rows",
)
args = VisionGRPOConfig(os.path.join(work, name), **options | given)
trainer = VisionGRPOTrainer(os.path.join(work, "vlm"), letters, args=args, train_dataset=prompts)
trainer.train()
same = getattr(trainer.group_loss, "same", None)
found = trainer.gathered([same])
if trainer.accelerator.is_main_process:
    log = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    with open(os.path.join(work, name + ".json"), "w") as file:
        json.dump({"log": log, "same": found}, file)
"""
ACCELERATE = "import sys; from accelerate.commands.launch import main; sys.argv[0] = 'accelerate'; main()"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a tiny policy and prompts of 2, 1 and no images."""
    folder = tmp_path_factory.mktemp("group_loss")
    save_tiny_vlm(folder / "vlm", min_pixels=56 * 56, max_pixels=12 * 28 * 28)
    rows = []
    for i in range(6):
        names = [f"{i}-{k}.png" for k in range((2, 0, 1)[i % 3])]
        for k, name in enumerate(names):
            picture(9 * i + k, *((84, 56) if i % 2 else (56, 112))).save(folder / name)
        rows.append({"prompt": f"Is there water in {i}?" + " river" * i, "images": names})
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "script.py").write_text(SCRIPT)
    return folder


def ran(work, config, name, **options):
    """The log of a run step by step, whether each process goes on with groups, and what was printed."""
    file = str(ROOT / "accelerate_configs" / f"{config}.yaml")
    command = ["-c", ACCELERATE, "--config_file", file, work / "script.py", work, name, json.dumps(options)]
    said = warm.launched(command, work)
    found = json.loads((work / f"{name}.json").read_text())
    return found["log"], found["same"], said


def assert_same(one, other):
    assert len(one) == len(other) > 0 and max(entry["grad_norm"] for entry in one) > 1e-3
    for a, b in zip(one, other, strict=True):
        for key in {"loss", "grad_norm", "entropy", "kl", "reward"} & a.keys():
            assert a[key] == pytest.approx(b[key], abs=1e-3, rel=1e-3), (a["step"], key)


@pytest.mark.slow
def test_zero3_and_a_wrong_mask_in_one_process(work):
    options = {"max_steps": 20, "gradient_checkpointing": True}
    groups, same, said = ran(work, "cpu_zero3", "groups", **options)
    assert same == [True, True] and "shared_prefix false" not in said
    assert {entry["shared_prefix"] for entry in groups} == {1.0}
    rows, same, _ = ran(work, "cpu_zero3", "rows", **options)
    assert same == [None, None] and "shared_prefix" not in rows[0]
    assert_same(groups, rows)
    wrong, same, said = ran(work, "cpu_zero3", "wrong", **options | {"max_steps": 3})
    assert same == [False, False] and said.count("shared_prefix false") == 1
    assert_same(wrong, rows[:3])


@pytest.mark.slow
def test_zero2_with_groups_split_over_processes_and_micro_batches(work):
    options = {"per_device_train_batch_size": 3, "num_generations": 6, "gradient_accumulation_steps": 2}
    options |= {"max_steps": 6, "num_iterations": 2}
    groups, same, _ = ran(work, "cpu_zero2", "groups", **options)
    assert same == [True, True] and max(entry["shared_prefix"] for entry in groups) > 0
    assert_same(groups, ran(work, "cpu_zero2", "rows", **options)[0])
