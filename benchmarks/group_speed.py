"""Speed of the group form against scoring rows in batches of 2, as ratios within one run.

    python benchmarks/group_speed.py --rounds 3 --output benchmarks/group_speed.json

The budget is that of a real question: 324 prompt tokens, 256 of them image tokens, and completions of about 65
tokens, on a random Qwen2-VL backbone (text 512 × 8 layers, vision 512 × 8 layers). The ways are timed in turns, so
that a change in the machine's speed meets all of them, and the medians are compared. Before timing, the scores are
checked to be the same.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoProcessor

from rs_rlhf import GroupCollator, ScoreModel, make_group
from rs_rlhf.groups import split_rows
from rs_rlhf.preference_loss import plackett_luce_loss
from rs_rlhf.synthetic import save_tiny_vlm


def build(folder: str):
    """Returns the model and its collator."""
    path = save_tiny_vlm(folder, 512, 8, 512, 8, num_heads=8, vision_heads=8, max_pixels=256 * 28 * 28)
    torch.manual_seed(0)
    model = ScoreModel.from_pretrained(path).eval()
    return model, GroupCollator(AutoProcessor.from_pretrained(path))


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


def compare(ways: dict, rounds: int) -> dict[str, float]:
    """Times the ways in turns and returns their median seconds."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Runs the benchmark and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--output")
    args = parser.parse_args()
    results: dict = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    results |= {"torch": torch.__version__, "rounds": args.rounds, "scoring": {}}
    with tempfile.TemporaryDirectory() as folder:
        model, collator = build(folder)
        for n in args.sizes:
            batch = collator([group(n, 0)])
            rows = as_row_batches(batch, 2)
            with torch.inference_mode():
                grouped = model(**batch).scores.flatten()
                plain = torch.cat([model(**row).scores for row in rows])
                assert (grouped - plain).abs().max() < 1e-4, "the two ways disagree"
                ways = {"group": lambda b=batch: model(**b), "rows": lambda r=rows: [model(**row) for row in r]}
                seconds = compare(ways, args.rounds)
            seconds["ratio"] = seconds["rows"] / seconds["group"]
            results["scoring"][n] = seconds
            print(f"scoring N={n:2d}: group {seconds['group']:.2f} s, rows by 2 {seconds['rows']:.2f} s,"
                  f" {seconds['ratio']:.2f}x", flush=True)
        results["training"] = training(model, collator, args.rounds)
        trained = results["training"]
        print(f"forward+backward, 4 pairs: {trained['ratio']:.2f}x group by group over pair by pair,"
              f" {trained['ratio_one_batch']:.2f}x with all groups in one batch", flush=True)
    if args.output:
        Path(args.output).write_text(json.dumps(results, indent=2) + "\n")


def training(model, collator, rounds: int) -> dict[str, float]:
    """Times the loss and its gradients on 4 pairs: rows pair by pair, group by group, and all groups in one batch."""
    groups = [group(2, seed) for seed in range(4)]
    batch = collator(groups)
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

    singles = [collator([one]) for one in groups]
    ways = {
        "pairs": lambda: step(rows, False),
        "groups": lambda: step(singles, True),
        "one_batch": lambda: step([batch], True),
    }
    losses = [way() for way in ways.values()]
    assert max(losses) - min(losses) < 1e-4, "the ways disagree"
    seconds = compare(ways, rounds)
    pairs = seconds["pairs"]
    return seconds | {"ratio": pairs / seconds["groups"], "ratio_one_batch": pairs / seconds["one_batch"]}


if __name__ == "__main__":
    main()
