"""Speed of the group form against scoring rows in batches of 2, as ratios within one run.

    python benchmarks/group_speed.py --rounds 3 --output benchmarks/results/group_speed.json
    python benchmarks/group_speed.py --size 2b --output benchmarks/results/group_speed_gpu_2b.json  # one GPU, bfloat16

The budget is that of a real question: 324 prompt tokens, 256 of them image tokens, and completions of about 65
tokens, on a random Qwen2-VL backbone (text 512 × 8 layers, vision 512 × 8 layers). The ways are timed in turns, so
that a change in the machine's speed meets all of them, and the medians are compared. Before timing, the scores are
checked to be the same. With `--size` the backbone has the real size of Qwen2-VL-2B or 7B, in bfloat16 on a GPU;
there the largest difference of each way from scores in float32 is given instead (`error`).
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import real_size
import torch
from PIL import Image
from transformers import AutoProcessor

from rs_rlhf import GroupCollator, ScoreModel, make_group
from rs_rlhf.models.layout import split_rows
from rs_rlhf.models.tiny_vlm import save_tiny_vlm
from rs_rlhf.trainers.losses.preference import plackett_luce_loss


def build(folder: str, size: str | None, device: str):
    """Returns the model and its collator."""
    path = save_tiny_vlm(
        folder,
        hidden_size=512,
        num_layers=8,
        vision_dim=512,
        vision_depth=8,
        num_heads=8,
        vision_heads=8,
        max_pixels=256 * 28 * 28,
    )
    processor = AutoProcessor.from_pretrained(path)
    if size:
        return real_size.build(ScoreModel, size, processor.tokenizer, device).eval(), GroupCollator(processor)
    torch.manual_seed(0)
    return ScoreModel.from_pretrained(path).eval().to(device), GroupCollator(processor)


def group(n: int, seed: int):
    """Returns a group with a 448×448 image (256 tokens), a question of about 50 tokens and N completions."""
    image = Image.effect_noise((448, 448), 60 + seed).convert("RGB")
    words = ["river", "bridge", "trees", "road", "plane", "tanks", "building", "image"]
    question = " ".join(words[(seed + i) % 8] for i in range(40))
    texts = [" ".join(words[(seed + k + i) % 8] for i in range(45)) for k in range(n)]
    return make_group(question, texts, image)


def as_row_batches(batch: dict, size: int) -> list[dict]:
    """Turns groups of one image each into plain rows in batches, the image repeated for each row."""
    images = [1] * len(batch["input_ids"])
    ids, mask, placements = split_rows(batch["input_ids"], batch["segment_ids"], images)
    patches = batch["pixel_values"].split(batch["image_grid_thw"].prod(1).tolist())
    out = []
    for start in range(0, len(ids), size):
        chosen = [batch["image_index"][p] for p in placements[start : start + size]]
        out.append(
            {
                "input_ids": ids[start : start + size],
                "attention_mask": mask[start : start + size],
                "pixel_values": torch.cat([patches[i] for i in chosen]),
                "image_grid_thw": batch["image_grid_thw"][torch.stack(chosen)],
            }
        )
    return out


def seconds_of(way, clock=time.perf_counter) -> float:
    """Returns the seconds of a call, on a GPU until its work is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = clock()
    way()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def compare(ways: dict, rounds: int, clock=time.perf_counter) -> dict[str, float]:
    """Times the ways in turns and returns their median seconds."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            spent = seconds_of(way, clock)
            if turn:  # the first round warms up
                times[name].append(spent)
    return {name: statistics.median(values) for name, values in times.items()}


def on(device: str, batch: dict) -> dict:
    """Returns the batch with its tensors on the device."""
    return {name: tensor.to(device) for name, tensor in batch.items()}


def errors(model, batches: dict) -> dict[str, float]:
    """Returns each way's largest difference from the scores of the same weights in float32."""
    exact = copy.deepcopy(model).float()
    found = {name: torch.cat([model(**b).scores.flatten().float() for b in many]) for name, many in batches.items()}
    scores = exact(**batches["group"][0]).scores.flatten()
    return {name: (value - scores).abs().max().item() for name, value in found.items()} | {"std": scores.std().item()}


def scoring(model, collator, n: int, device: str, rounds: int) -> dict:
    """Times one group of n completions: as a group, as rows in batches of 2, as rows in one batch."""
    batch = collator([group(n, 0)])
    rows, whole = as_row_batches(batch, 2), as_row_batches(batch, n)
    batches = {
        name: [on(device, b) for b in many]
        for name, many in (("group", [batch]), ("rows", rows), ("rows_one_batch", whole))
    }
    with torch.inference_mode():
        difference = errors(model, batches)
        if model.dtype == torch.float32:
            assert max(difference[name] for name in batches) < 1e-4, "the ways disagree"
        ways = {name: lambda many=many: [model(**b) for b in many] for name, many in batches.items()}
        seconds = compare(ways, rounds)
    found: dict = dict(seconds)
    found["ratio"] = seconds["rows"] / seconds["group"]
    found["ratio_one_batch"] = seconds["rows_one_batch"] / seconds["group"]
    return found | ({} if model.dtype == torch.float32 else {"error": difference})


def main() -> None:
    """Runs the benchmark and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="*", default=[2, 4, 8, 16])
    parser.add_argument("--size", choices=list(real_size.TEXT), help="a real size, in bfloat16")
    parser.add_argument("--output")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    hardware = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    results: dict = {"hardware": hardware, "cores": os.cpu_count(), "torch": torch.__version__}
    results |= {"size": args.size, "rounds": args.rounds, "scoring": {}}
    with tempfile.TemporaryDirectory() as folder:
        model, collator = build(folder, args.size, device)
        for n in args.sizes:
            found = results["scoring"][n] = scoring(model, collator, n, device, args.rounds)
            print(
                f"scoring N={n:2d}: group {found['group']:.3f} s, rows by 2 {found['rows']:.3f} s,"
                f" {found['ratio']:.2f}x; rows in one batch {found['rows_one_batch']:.3f} s,"
                f" {found['ratio_one_batch']:.2f}x",
                flush=True,
            )
        results["training"] = training(model, collator, device, args.rounds)
        trained = results["training"]
        print(
            f"forward+backward, 4 pairs: {trained['ratio']:.2f}x group by group over pair by pair,"
            f" {trained['ratio_one_batch']:.2f}x with all groups in one batch",
            flush=True,
        )
    if args.output:
        Path(args.output).write_text(json.dumps(results, indent=2) + "\n")


def training(model, collator, device: str, rounds: int) -> dict[str, float]:
    """Times the loss and its gradients on 4 pairs: rows pair by pair, group by group, and all groups in one batch."""
    groups = [group(2, seed) for seed in range(4)]
    batch = on(device, collator(groups))
    rows = as_row_batches(batch, 2)
    model.train()

    def step(batches: list[dict], grouped: bool) -> float:
        model.zero_grad()
        total = 0.0
        for one in batches:
            scores = model(**one).scores
            loss = plackett_luce_loss(scores if grouped else scores[None]) / len(batches)
            loss.backward()
            total += loss.item()
        return total

    singles = [on(device, collator([one])) for one in groups]
    ways = {
        "pairs": lambda: step(rows, False),
        "groups": lambda: step(singles, True),
        "one_batch": lambda: step([batch], True),
    }
    losses = [way() for way in ways.values()]
    assert max(losses) - min(losses) < (1e-4 if model.dtype == torch.float32 else 0.05), "the ways disagree"
    seconds = compare(ways, rounds)
    pairs = seconds["pairs"]
    return seconds | {"ratio": pairs / seconds["groups"], "ratio_one_batch": pairs / seconds["one_batch"]}


if __name__ == "__main__":
    main()
