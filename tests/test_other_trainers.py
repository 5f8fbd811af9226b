"""One `ScoreReward`, unchanged, in TRL's own trainers, with real images; and TRL's command line.

Of TRL 1.16's experimental online trainers GMPO and Online DPO take reward functions and images. A2PO and SDPO take
reward functions too, in set-ups of their own (values of another model, text feedback), and are not tried here.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import picture
from datasets import Dataset, Image

from rs_rlhf import Scorer
from rs_rlhf.rewards import ScoreReward

N = 4


class Watched:
    """A scorer that keeps the groups it was asked for."""

    def __init__(self, scorer):
        self.scorer, self.groups = scorer, []

    def score_groups(self, groups, **options):
        self.groups += groups
        return self.scorer.score_groups(groups, **options)


@pytest.fixture(scope="module")
def scorer(score_model_path):
    return Scorer.from_pretrained(score_model_path, device="cpu")


def dataset():
    prompt = [{"role": "user", "content": "What is it?"}]
    return Dataset.from_dict({"prompt": [prompt] * N, "image": [picture(i) for i in range(N)]}).cast_column(
        "image", Image()
    )


def trainer_of(name, tiny_vlm, reward, out):
    import trl

    common = dict(
        output_dir=str(out), max_steps=2, per_device_train_batch_size=4, learning_rate=1e-3, bf16=False,
        use_cpu=True, report_to="none", logging_steps=1, save_strategy="no", gradient_checkpointing=False,
        disable_tqdm=True, seed=1,
    )  # fmt: skip
    if name == "online DPO":
        from transformers import AutoModelForImageTextToText, AutoProcessor
        from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

        args = OnlineDPOConfig(**common, max_new_tokens=5, max_length=256, missing_eos_penalty=None)
        return OnlineDPOTrainer(
            model=AutoModelForImageTextToText.from_pretrained(tiny_vlm), reward_funcs=[reward], args=args,
            train_dataset=dataset(), processing_class=AutoProcessor.from_pretrained(tiny_vlm),
        )  # fmt: skip
    if name == "GMPO":
        from trl.experimental.gmpo import GMPOConfig, GMPOTrainer

        config, trainer = GMPOConfig, GMPOTrainer
    else:
        config, trainer = getattr(trl, f"{name}Config"), getattr(trl, f"{name}Trainer")
    args = config(**common, num_generations=2, max_completion_length=5)
    return trainer(model=tiny_vlm, reward_funcs=reward, args=args, train_dataset=dataset())


@pytest.mark.parametrize("name", ["GRPO", "RLOO", "GMPO", "online DPO"])
def test_the_same_reward_runs_in_trls_trainers(name, tiny_vlm, scorer, tmp_path):
    watched = Watched(scorer)
    trainer = trainer_of(name, tiny_vlm, ScoreReward(watched), tmp_path)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    assert any(not torch.equal(p, before[n]) for n, p in trainer.model.named_parameters())
    assert watched.groups and all(len(group.images) == 1 and group.completions for group in watched.groups)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    key = "objective/scores" if name == "online DPO" else "rewards/score_reward/mean"
    assert len(logs) == 2 and all(math.isfinite(entry[key]) for entry in logs if key in entry)
    if name != "online DPO":
        assert all(key in entry and entry["reward/failed_fraction"] == 0 for entry in logs)


def test_trls_command_line_takes_the_reward_by_its_path(tiny_vlm, score_model_path, tmp_path):
    (tmp_path / "data").mkdir()
    dataset().to_parquet(str(tmp_path / "data" / "train.parquet"))
    command = Path(sys.executable).parent / "trl"
    done = subprocess.run(
        [command, "grpo", "--model_name_or_path", str(tiny_vlm), "--dataset_name", str(tmp_path / "data"),
         "--reward_funcs", "rs_rlhf.rewards.score_reward", "--output_dir", str(tmp_path / "out"), "--max_steps", "1",
         "--per_device_train_batch_size", "4", "--num_generations", "2", "--max_completion_length", "5",
         "--bf16", "false", "--use_cpu", "true", "--report_to", "none", "--logging_steps", "1"],
        env={**os.environ, "RS_RLHF_SCORE_MODEL": str(score_model_path), "ACCELERATE_USE_CPU": "true"},
        capture_output=True, text=True, timeout=400, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    (state,) = (tmp_path / "out").glob("checkpoint-1/trainer_state.json")
    (log,) = [entry for entry in json.loads(state.read_text())["log_history"] if "reward" in entry]
    assert math.isfinite(log["rewards/score_reward/mean"]) and log["reward/failed_fraction"] == 0
