"""Trainings that diverge: by their learning rate, or by a loss that is not finite beside finite weights."""

import json
import math

import pytest
from datasets import Dataset
from helpers import picture

from rs_rlhf import VisionRewardConfig, VisionRewardTrainer
from rs_rlhf.cli.main import main
from rs_rlhf.errors import TrainingDiverged

ROWS = [{"prompt": "", "chosen": f"a river {i}.", "rejected": "many trees."} for i in range(4)]
QUICK = "--use_cpu true --bf16 false --report_to none --disable_tqdm true --per_device_train_batch_size 2".split()


class Spoilt(VisionRewardTrainer):
    """Adds NaN to the losses of some steps; the gradients stay finite."""

    spoilt: tuple[int, ...] = ()

    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        return loss + math.nan if self.state.global_step + 1 in self.spoilt else loss


def trainer(model, folder, cls=VisionRewardTrainer, **options):
    given = dict(
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
        per_device_train_batch_size=2,
        logging_steps=1,
        max_steps=8,
        save_strategy="no",
        disable_tqdm=True,
        lr_scheduler_type="constant",
    )
    return cls(model, VisionRewardConfig(str(folder), **(given | options)), train_dataset=Dataset.from_list(ROWS))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_third_loss_in_a_row_stops_the_run(tiny_vlm, tmp_path, accumulation):
    run = trainer(tiny_vlm, tmp_path, learning_rate=1e30, gradient_accumulation_steps=accumulation)
    with pytest.raises(TrainingDiverged) as error:
        run.train()
    assert error.value.key == "learning_rate" and "losses of steps 2 to 4" in error.value.detail
    assert "1e+30" in error.value.detail and "weight tensors are not finite" in error.value.detail
    assert run.state.global_step == 3
    assert [math.isfinite(entry["loss"]) for entry in run.state.log_history if "loss" in entry] == [True, False, False]


def test_weights_that_are_not_finite_are_never_saved(tiny_vlm, tmp_path):
    run = trainer(tiny_vlm, tmp_path, learning_rate=1e30, max_steps=2)
    run.train()  # too short for three losses
    with pytest.raises(TrainingDiverged):
        run.save_model()
    run = trainer(tiny_vlm, tmp_path, learning_rate=1e30, save_strategy="steps", save_steps=1)
    with pytest.raises(TrainingDiverged) as error:
        run.train()
    assert f"resume from {tmp_path / 'checkpoint-1'}" in error.value.detail
    assert [path.parent.name for path in tmp_path.rglob("*.safetensors")] == ["checkpoint-1"]


def test_single_losses_that_are_not_finite_stop_nothing_and_later_ones_are_logged(tiny_vlm, tmp_path):
    run = trainer(tiny_vlm, tmp_path, Spoilt)
    run.spoilt = (2, 3, 5, 6)
    run.train()
    logged = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert [step for step, loss in enumerate(logged, start=1) if not math.isfinite(loss)] == [2, 3, 5, 6]


def test_the_cause_is_not_the_weights_if_they_are_finite(tiny_vlm, tmp_path):
    run = trainer(tiny_vlm, tmp_path, Spoilt)
    run.spoilt = (3, 4, 5)
    with pytest.raises(TrainingDiverged) as error:
        run.train()
    assert "all weights are finite" in error.value.detail and "steps 3 to 5" in error.value.detail


@pytest.mark.parametrize("command", ["reward", "sft", "grpo", "clip", "dpo"])
def test_every_training_command_ends_in_a_sentence(command, tiny_vlm, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for i in range(4):
        picture(i).save(tmp_path / f"{i}.png")
    rows = {
        "reward": [{"image": f"{i}.png", "chosen": "a river.", "rejected": "trees."} for i in range(4)],
        "dpo": [{"image": f"{i}.png", "chosen": "a river.", "rejected": "trees."} for i in range(4)],
        "sft": [{"image": f"{i}.png", "caption": f"a river {i}."} for i in range(4)],
        "clip": [{"image": f"{i}.png", "caption": f"a river {i}."} for i in range(4)],
        "grpo": [{"image": f"{i}.png", "prompt": "What?", "solution": "a"} for i in range(4)],
    }[command]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model, flags = tiny_vlm, []
    if command == "clip":
        assert main(["tiny-clip", "clip"]) == 0
        model, flags = "clip", ["--grad_cache_chunk_size", "1"]
    if command == "grpo":
        (tmp_path / "mine.py").write_text(
            "def first(completions, **columns): return [1.0, *[0.0] * 63][: len(completions)]"
        )
        monkeypatch.syspath_prepend(tmp_path)
        flags = ["--reward_funcs", "mine.first", "--num_generations", "2"]
        flags += ["--max_completion_length", "4", "--beta", "0.1"]
    argv = ["--dataset_name", "rows.jsonl", "--model_name_or_path", model, "--output_dir", "out"]
    assert main([command, *argv, *QUICK, "--max_steps", "6", "--learning_rate", "1e30", *flags]) == 1
    printed = capsys.readouterr()
    assert f"rs-rlhf {command}: training diverged" in printed.err and "saved to" not in printed.out
    assert not list((tmp_path / "out").rglob("*.safetensors"))
