"""The reward's share of a GRPO step: groups and a shared vision tower against rows in batches of two without sharing.

    OMP_NUM_THREADS=1 python benchmarks/grpo_reward.py --output benchmarks/results/grpo_reward.json

Real steps of a `VisionGRPOTrainer` on one thread: random Qwen2-VL models as policy and as score model (text 384 × 4
layers, vision 192 × 5 layers each), an image of 256 tokens and a question, 8 completions of exactly 32 tokens,
gradient checkpointing as in the recipes. By a count of multiplications the tower costs about 1.6 times what the text
layers do on a prompt; in Qwen2-VL-2B it is 1.7 times, in 7B 0.35 times, so that sharing the tower gains less there.
The steps take turns between two ways:

- `groups`: the reward scores the completions as groups (`ScoreReward`), the policy's vision tower runs once per
  distinct image (`share_vision`), and rollouts and loss run the prompt once (`share_prompts`, `shared_prefix`);
- `rows`: the reward scores each completion as a row of its own with its own image, in batches of two, as the published
  server of ScoreRS does; the policy's tower runs for every completion, as in TRL.

The reward depends on how it scores alone, generation and the loss on the policy alone. On a CPU the seconds are the
process's own processor time: it has one thread, and waiting for a core that other work holds is not part of a step;
wall-clock seconds are in `wall`. Before timing, the rewards of both ways are checked to be the same.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback

from rs_rlhf import ScoreModel, Scorer
from rs_rlhf.data.group import Group
from rs_rlhf.models.pixel_budget import estimated_length
from rs_rlhf.models.tiny_vlm import save_tiny_vlm
from rs_rlhf.rewards.score import Place, ScoreReward
from rs_rlhf.trainers.data.grpo import load_prompts
from rs_rlhf.trainers.grpo import VisionGRPOConfig, VisionGRPOTrainer

WORDS = ["river", "bridge", "trees", "road", "plane", "tanks", "building", "image"]
CLOCK = time.perf_counter if torch.cuda.is_available() else time.process_time
# What share_vision and share_prompts put into the policy and its base model.
SHARED = ("get_image_features", "_maybe_prepare_encoder_kwargs_for_generation", "_prefill")
PHASES = ("preparation", "generation", "reward", "loss", "optimizer")


class RowReward(ScoreReward):
    """Every completion is a group of one with an image of its own, as a server that knows no groups scores it."""

    def layout(
        self, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any]
    ) -> tuple[list[Group], list[Place]]:
        """Takes the groups apart; images are copied so that two rows of a batch do not share the tower's work."""
        groups, places = super().layout(prompts, completions, columns)
        rows: list[Group] = []
        found: list[Place] = []
        for place in places:
            if place.error:
                found.append(place)
                continue
            group = groups[place.group]
            found.append(Place(len(rows), tuple(range(len(place.texts)))))
            texts = [group.completions[k] for k in place.texts]
            rows.append(replace(group, completions=texts, images=[image.copy() for image in group.images]))
        return rows, found


class TimedTrainer(VisionGRPOTrainer):
    """Notes the seconds (of `CLOCK`) of each phase of each step, and on a GPU the phase's peak memory."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.steps: list[dict[str, float]] = []
        self.walls: list[float] = []
        self.peaks: list[dict[str, int]] = []
        super().__init__(*args, **kwargs)
        self.add_callback(_Steps(self))

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        with self.phase("generation"):
            return super()._generate_single_turn(*args, **kwargs)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        with self.phase("reward"):
            return super()._calculate_rewards(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """A step's rollouts, loss and gradients: what is no rollout is the loss."""
        with self.phase("loss"):
            return super().training_step(*args, **kwargs)

    def _prepare_inputs(self, *args: Any, **kwargs: Any) -> Any:
        with self.phase("preparation"):
            return super()._prepare_inputs(*args, **kwargs)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the time within as the phase's, and what was before as that of the phase around it."""
        outer, self.current = self.current, self._switch(name)
        yield
        self.current = self._switch(outer)

    def begin(self) -> None:
        """Starts a step."""
        self.steps.append(dict.fromkeys(PHASES, 0.0))
        self.peaks.append(dict.fromkeys(PHASES, 0))
        self.walls.append(time.perf_counter())
        self.current = "optimizer"  # what a step does outside training_step
        self._reset()

    def _switch(self, name: str) -> str:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated()
            self.peaks[-1][self.current] = max(self.peaks[-1][self.current], peak)
        self.steps[-1][self.current] += CLOCK() - self.start
        self._reset()
        return name

    def _reset(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.start = CLOCK()


class _Steps(TrainerCallback):
    def __init__(self, trainer: TimedTrainer) -> None:
        self.trainer = trainer

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.begin()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.trainer._switch("optimizer")
        self.trainer.walls[-1] = time.perf_counter() - self.trainer.walls[-1]


class Turns(TrainerCallback):
    """Lets the steps take turns: groups, rows, rows, groups, groups, …"""

    def __init__(self, trainer: TimedTrainer, rewards: dict[str, ScoreReward]) -> None:
        self.trainer, self.rewards = trainer, rewards
        policy = trainer.accelerator.unwrap_model(trainer.model)
        parts = [policy.model, policy]
        self.shared = [(each, name, vars(each)[name]) for each in parts for name in SHARED if name in vars(each)]
        self.group_loss = trainer.group_loss
        self.ways: list[str] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Puts the way of this step in place."""
        way = ("groups", "rows", "rows", "groups")[state.global_step % 4]
        self.ways.append(way)
        self.trainer.reward_funcs[0] = self.rewards[way]
        self.trainer.group_loss = self.group_loss if way == "groups" else None
        for each, name, method in self.shared:
            vars(each).pop(name, None)
            if way == "groups":
                vars(each)[name] = method


def write_prompts(folder: str, count: int, side: int) -> str:
    """Writes prompts with a noise image of its own each, and a question of about 45 tokens; returns the file."""
    rows = []
    for i in range(count):
        Image.effect_noise((side, side), 60 + i).convert("RGB").save(f"{folder}/{i}.png")
        rows.append({"prompt": " ".join(WORDS[(i + k) % 8] for k in range(40)), "image": f"{i}.png"})
    path = Path(folder) / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config(folder: str, root: str, rollouts: int, length: int, steps: int, **options: Any) -> VisionGRPOConfig:
    """Returns the options of a run whose completions all have the same length, and that writes nothing."""
    given: dict[str, Any] = dict(
        image_root=root,
        num_generations=rollouts,
        per_device_train_batch_size=rollouts,
        max_completion_length=length,
        generation_kwargs={"min_new_tokens": length},
        max_steps=steps,
        learning_rate=1e-6,
        gradient_checkpointing=True,
        audit_steps=0,
        logged_samples=0,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return VisionGRPOConfig(folder, **{**given, **options})


def build(folder: str) -> tuple[Any, Scorer]:
    """Returns the policy and the scorer, of the same size."""
    size: dict[str, Any] = {"hidden_size": 384, "num_layers": 4, "vision_dim": 192, "vision_depth": 5}
    size |= {"num_heads": 6, "vision_heads": 3, "max_pixels": 256 * 28 * 28}
    path = save_tiny_vlm(f"{folder}/policy", **size)
    torch.manual_seed(0)
    score_model = ScoreModel.from_pretrained(save_tiny_vlm(f"{folder}/score", seed=1, **size))
    return AutoModelForImageTextToText.from_pretrained(path), Scorer(score_model, AutoProcessor.from_pretrained(path))


def by_twos(scorer: Scorer, group: Group) -> Scorer:
    """Returns a scorer of the same model whose batches hold two rows of such a group: three prompts do not fit."""
    prompt = estimated_length(group, scorer.processor, scorer.collator.image_options)
    return Scorer(scorer.model, scorer.processor, token_budget=int(2.4 * prompt))


def check(rewards: dict[str, ScoreReward], trainer: TimedTrainer) -> None:
    """Checks that both ways give the same rewards, and that the rows are scored by twos."""
    row = trainer.read_images([trainer.train_dataset[0]])[0]
    count = trainer.args.num_generations
    texts = [" ".join(WORDS[(k + i) % 8] for i in range(22)) for k in range(count)]
    given = ([row["prompt"]] * count, texts)
    columns = {"images": [row["images"]] * count}
    found = {name: torch.tensor(reward(*given, **columns)) for name, reward in rewards.items()}
    assert (found["groups"] - found["rows"]).abs().max() < 1e-4, "the two ways disagree"
    groups, _ = rewards["rows"].layout(*given, columns)
    sizes = [len(batch) for batch in rewards["rows"].scorer._batches(groups, [None] * count, "raise")]
    assert sizes == [2] * (count // 2), sizes


def summary(steps: Sequence[Mapping[str, float]], walls: Sequence[float]) -> dict[str, Any]:
    """Returns the median seconds of the step and its phases, and the median of each phase's share of its step."""
    totals = [sum(step.values()) for step in steps]
    shares = {name: [step[name] / total for step, total in zip(steps, totals, strict=True)] for name in PHASES}
    return {
        "step": statistics.median(totals),
        "phases": {name: statistics.median(step[name] for step in steps) for name in PHASES},
        "shares": {name: statistics.median(values) for name, values in shares.items()},
        "steps": totals,
        "wall": list(walls),
    }


def main() -> None:
    """Runs the benchmark and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="steps of each way; one more of each goes before")
    parser.add_argument("--output")
    args = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        policy, scorer = build(folder)
        data, root = load_prompts(write_prompts(folder, 4, 448))
        steps = 2 * (args.rounds + 1)
        trainer = TimedTrainer(
            policy,
            ScoreReward(scorer),
            config(f"{folder}/out", root, 8, 32, steps, use_cpu=True, bf16=False),
            data,
            processing_class=AutoProcessor.from_pretrained(f"{folder}/policy", padding_side="left"),
        )
        row = trainer.read_images([data[0]])[0]
        groups, _ = ScoreReward(scorer).layout([row["prompt"]], ["a"], {"images": [row["images"]]})
        rewards = {"groups": ScoreReward(scorer), "rows": RowReward(by_twos(scorer, groups[0]))}
        check(rewards, trainer)
        turns = Turns(trainer, rewards)
        trainer.add_callback(turns)
        trainer.train()
    places = {way: [i for i, one in enumerate(turns.ways) if one == way][1:] for way in rewards}
    ways = {w: summary([trainer.steps[i] for i in p], [trainer.walls[i] for i in p]) for w, p in places.items()}
    ratios = {n: ways["rows"]["phases"][n] / ways["groups"]["phases"][n] for n in ("generation", "reward", "loss")}
    results = {
        "note": "CPU, one thread; the machine was shared with other work that went first, so seconds are processor "
        "time of the process; `wall` holds the wall-clock seconds of the steps, which say nothing here",
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": 1,
        "load_average_before": round(load, 1),
        "torch": torch.__version__,
        "rounds": args.rounds,
        "models": "policy and score model: text 384 x 4 layers, vision 192 x 5 layers",
        "rollouts": 8,
        "image_tokens": 256,
        "completion_tokens": 32,
        "gradient_checkpointing": True,
        "ways": ways,
        "ratios": ratios | {"step": ways["rows"]["step"] / ways["groups"]["step"]},
    }
    print(f"{'':12} {'groups, shared':>16} {'rows by 2, unshared':>22} {'ratio':>8}")
    for name in (*PHASES, "step"):
        cells = []
        for one in ways.values():
            seconds = one["phases"].get(name, one["step"])
            cells.append(f"{seconds:8.2f} s {one['shares'].get(name, 1.0):5.0%}")
        ratio = results["ratios"].get(name)
        print(f"{name:12} {cells[0]:>16} {cells[1]:>22} {'' if ratio is None else f'{ratio:7.2f}x'}")
    if args.output:
        Path(args.output).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
