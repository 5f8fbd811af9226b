"""GRPO's loss and gradients from one row per prompt against TRL's rows: seconds and saved activations, as ratios.

    OMP_NUM_THREADS=1 python benchmarks/grpo_loss.py --output benchmarks/results/grpo_loss.json
    python benchmarks/grpo_loss.py --size 2b --output benchmarks/results/grpo_loss_gpu_2b.json  # one GPU, bfloat16

The model is a random Qwen2-VL (text 512 × 8 layers, vision 512 × 8 layers), the batch 8 completions of one prompt with
an image of 256 tokens and a question, 320 tokens in all, or (`--long`) with an image of 1,296 tokens. The ways take
turns:

- `group`: `VisionGRPOTrainer` as it is: the prompt once, the completions behind it (`shared_prefix`);
- `rows`: `shared_prefix=False`: a row per completion, the vision tower once per distinct image (`share_vision`);
- `stock` (`--stock`): the same without sharing the vision tower, as a plain `trl.GRPOTrainer`; it takes 10 GiB.

Before timing, the losses and all gradients are checked to be the same. On a CPU the seconds are the process's own
processor time on one thread, which other work on the machine does not add to. `saved` counts what autograd keeps for
the backward pass besides weights: distinct storages, without gradient checkpointing. `group` and `rows` run the vision
tower once, which costs both the same; so each batch is measured with a trained and with a frozen tower, the tower is
timed by itself (`tower`), and `ratio_of_text` is that of what is left without it. With `--size` the model has the real
size of Qwen2-VL-2B or 7B; in bfloat16 the difference of the gradients is given, and not checked.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import real_size
import torch
from group_speed import seconds_of
from grpo_reward import CLOCK, config, write_prompts
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen2VLForConditionalGeneration

from rs_rlhf.models.tiny_vlm import save_tiny_vlm
from rs_rlhf.trainers.data.grpo import load_prompts
from rs_rlhf.trainers.grpo import VisionGRPOTrainer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZE: dict[str, Any] = {"hidden_size": 512, "num_layers": 8, "num_heads": 8}
SIZE |= {"vision_dim": 512, "vision_depth": 8, "vision_heads": 8}


def some(prompts: list, completions: list, **columns: Any) -> list[float]:
    """A reward that differs between completions."""
    return [float(i % 3) for i in range(len(completions))]


def build(folder: str, side: int, length: int, args: argparse.Namespace) -> VisionGRPOTrainer:
    """Returns a trainer of one prompt a step."""
    path = save_tiny_vlm(f"{folder}/policy", **SIZE, max_pixels=side * side, seed=args.seed)
    processor = AutoProcessor.from_pretrained(path, padding_side="left")
    data, root = load_prompts(write_prompts(folder, 1, side))
    options: dict[str, Any] = {"use_cpu": DEVICE == "cpu", "bf16": args.size is not None, "seed": args.seed}
    options |= {"gradient_checkpointing": False, "dataloader_pin_memory": DEVICE != "cpu"}
    if args.size:
        policy = real_size.build(Qwen2VLForConditionalGeneration, args.size, processor.tokenizer, DEVICE)
    else:
        policy = AutoModelForImageTextToText.from_pretrained(path)
    arguments = config(f"{folder}/out", root, args.rollouts, length, 1, **options)
    trainer = VisionGRPOTrainer(policy, some, arguments, data, processing_class=processor)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # the training loop would set it
    return trainer


def batch_of(trainer: VisionGRPOTrainer, rollouts: int, length: int, prompt_tokens: int, seed: int) -> dict[str, Any]:
    """Returns a micro batch as TRL hands it to the loss, with random completions of a length."""
    row = trainer.read_images([trainer.train_dataset[0]])[0]
    processor = trainer.processing_class
    text = processor.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    images = [row["images"]] * rollouts
    inputs = processor(images=images, text=[text] * rollouts, padding=True, return_tensors="pt")
    ids = inputs["input_ids"]
    assert ids.shape[1] >= prompt_tokens, f"the prompt has {ids.shape[1]} tokens only"
    prompt = torch.cat([ids[:, : prompt_tokens - 8], ids[:, -8:]], 1)  # a question cut at its end
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(20, 250, (rollouts, length), generator=generator)
    types = (torch.cat([prompt, ids], 1) == trainer.model.config.image_token_id).int()
    batch = {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": ids,
        "completion_mask": torch.ones_like(ids),
        "advantages": torch.linspace(-1.5, 1.5, rollouts),
        "num_items_in_batch": torch.tensor(ids.numel()),
        "pixel_values": inputs["pixel_values"],
        "image_grid_thw": inputs["image_grid_thw"],
        "mm_token_type_ids": types,
        "num_images": [1] * rollouts,
    }
    return {name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def ways_of(trainer: VisionGRPOTrainer, batch: dict[str, Any], stock: bool) -> dict[str, Callable[[], float]]:
    """Returns the loss with its gradients of each way."""
    core = trainer.accelerator.unwrap_model(trainer.model).model
    shared, grouped = core.__dict__["get_image_features"], trainer.group_loss

    def step(group: bool, share: bool) -> float:
        trainer.group_loss = grouped if group else None
        core.__dict__.pop("get_image_features", None)
        if share:
            core.__dict__["get_image_features"] = shared
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        return loss.item()

    ways = {"group": lambda: step(True, True), "rows": lambda: step(False, True)}
    return ways | ({"stock": lambda: step(False, False)} if stock else {})


def tower_of(trainer: VisionGRPOTrainer, batch: dict[str, Any]) -> Callable[[], None]:
    """Returns the run of the vision tower on the one distinct image, backwards too if it is trained."""
    core = trainer.accelerator.unwrap_model(trainer.model).model
    grid = batch["image_grid_thw"][:1]
    patches = batch["pixel_values"][: int(grid.prod())]

    def run() -> None:
        trainer.model.zero_grad()
        features = core.get_image_features(patches.to(core.dtype), grid)["pooler_output"]
        total = torch.stack([part.float().sum() for part in features]).sum()
        if total.requires_grad:
            total.backward()

    return run


def check(trainer: VisionGRPOTrainer, ways: dict[str, Callable[[], float]]) -> dict[str, float]:
    """Checks that the ways give the same loss and gradients; the first call is also the run's own check.

    Returns:
        `dict`: each way's gradients' distance from those of `rows`, as a part of their norm.
    """
    found = {}
    for name, way in ways.items():
        loss = way()
        found[name] = (loss, {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None})
    loss, gradients = found.pop("rows")
    norm = sum(g.float().pow(2).sum() for g in gradients.values()).sqrt()
    differences = {}
    for name, (other, values) in found.items():
        assert values.keys() == gradients.keys(), "the ways disagree"
        off = sum((values[n].float() - g.float()).pow(2).sum() for n, g in gradients.items()).sqrt()
        differences[name] = (off / norm).item()
        exact = trainer.model.dtype == torch.float32
        assert not exact or (abs(other - loss) < 1e-5 and differences[name] < 1e-3), "the ways disagree"
    assert trainer.group_loss is None or trainer.group_loss.same, "the run's own check has given the group form up"
    return differences


def saved_bytes(trainer: VisionGRPOTrainer, way: Callable[[], float]) -> int:
    """Returns the bytes of the distinct storages that autograd keeps, without those of weights."""
    weights = {p.untyped_storage().data_ptr() for p in trainer.model.parameters()}
    kept: dict[int, int] = {}
    alive = []  # so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        way()
    return sum(kept.values())


def measure(side: int, length: int, prompt_tokens: int, frozen: bool, args: argparse.Namespace) -> dict[str, Any]:
    """Times one prompt with its completions, perhaps with a frozen vision tower."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(folder, side, length, args)
        trainer.model.model.visual.requires_grad_(not frozen)
        batch = batch_of(trainer, args.rollouts, length, prompt_tokens, args.seed)
        ways: dict[str, Callable[[], Any]] = dict(ways_of(trainer, batch, args.stock))
        differences = check(trainer, ways)
        saved = {name: saved_bytes(trainer, ways[name]) / 2**20 for name in ways}
        ways["tower"] = tower_of(trainer, batch)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(args.rounds):
            for name in list(ways) if turn % 2 else list(ways)[::-1]:
                times[name].append(seconds_of(ways[name], CLOCK))
    seconds = {name: statistics.median(values) for name, values in times.items()}
    ratios = {name: value / seconds["group"] for name, value in seconds.items() if name in ("rows", "stock")}
    tower = seconds["tower"]
    shape: dict[str, Any] = {
        "frozen_tower": frozen,
        "prompt_tokens": prompt_tokens,
        "completion_tokens": length,
        "rollouts": args.rollouts,
    }
    less = {name: value / saved["group"] for name, value in saved.items() if name != "group"}
    shape["ratio_of_text"] = (seconds["rows"] - tower) / (seconds["group"] - tower)
    kept = {"saved_mib": saved, "saved_ratio": less, "gradient_difference": differences}
    return shape | {"seconds": seconds, "all_seconds": times, "ratio": ratios} | kept


def main() -> None:
    """Runs the benchmark and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="steps of each way")
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stock", action="store_true", help="also without sharing the vision tower")
    parser.add_argument("--long", action="store_true", help="also an image of 1,296 tokens")
    parser.add_argument("--size", choices=list(real_size.TEXT), help="a real size, in bfloat16")
    parser.add_argument("--output")
    args = parser.parse_args()
    torch.set_num_threads(1)
    hardware = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, one thread"
    model = "text 512 x 8 layers, vision 512 x 8 layers, float32, no gradient checkpointing"
    results: dict[str, Any] = {
        "command": "OMP_NUM_THREADS=1 python benchmarks/grpo_loss.py " + " ".join(sys.argv[1:]),
        "hardware": torch.cuda.get_device_name() if DEVICE == "cuda" else hardware,
        "load_average_before": round(os.getloadavg()[0], 1),
        "seed": args.seed,
        "torch": torch.__version__,
        "rounds": args.rounds,
        "model": f"Qwen2-VL of {args.size}, bfloat16, no gradient checkpointing" if args.size else model,
        "batches": [],
    }
    shapes = [(448, 64, 320), (448, 32, 320)] + [(1008, 64, 1360)] * args.long
    for frozen, (side, length, prompt) in itertools.product((False, True), shapes):
        found = measure(side, length, prompt, frozen, args)
        results["batches"].append(found)
        print(
            f"{prompt} + {args.rollouts} x {length} tokens{', frozen tower' * frozen}:"
            f" group {found['seconds']['group']:.2f} s,"
            f" {', '.join(f'{ratio:.2f}x over {name}' for name, ratio in found['ratio'].items())}"
            f" ({found['ratio_of_text']:.2f}x without the tower's {found['seconds']['tower']:.2f} s);"
            f" saved {', '.join(f'{ratio:.2f}x less than {name}' for name, ratio in found['saved_ratio'].items())}",
            flush=True,
        )
    if args.output:
        Path(args.output).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
