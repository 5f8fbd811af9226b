"""Throughput of the reward server against scoring in process, as ratios within one run.

    python benchmarks/server_throughput.py --rounds 3 --output benchmarks/results/server_throughput.json

The same groups (a 224×224 image of 64 tokens, a question, 4 completions) are scored on one thread of a random
Qwen2-VL backbone (text 384 × 6 layers, vision 384 × 6 layers) in five ways, in turns: all in one call in process;
all in one call of a `RemoteScorer`; and one group per request by 1, 8 and 32 clients. The scores are checked to be
the same first. Clients and server share the machine. Two ratios are given, of the fastest times and of the medians:
where they differ, other work on the machine was in the way, and neither says more than the spread of the times.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoProcessor

from rs_rlhf import ScoreModel, Scorer, make_group
from rs_rlhf.models.tiny_vlm import save_tiny_vlm
from rs_rlhf.scoring.remote import RemoteScorer

CLIENTS = (1, 8, 32)
SERVE = [sys.executable, "-m", "rs_rlhf", "serve"]


def build(folder: str) -> str:
    """Saves the score model with its processor and returns its folder."""
    path = save_tiny_vlm(
        f"{folder}/vlm",
        hidden_size=384,
        num_layers=6,
        vision_dim=384,
        vision_depth=6,
        num_heads=6,
        vision_heads=6,
        max_pixels=64 * 28 * 28,
    )
    torch.manual_seed(0)
    ScoreModel.from_pretrained(path).save_pretrained(f"{folder}/scorer")
    AutoProcessor.from_pretrained(path).save_pretrained(f"{folder}/scorer")
    return f"{folder}/scorer"


def group(seed: int):
    """Returns a group with an image of its own, a question of about 25 tokens and 4 completions of about 30."""
    image = Image.effect_noise((224, 224), 60 + seed).convert("RGB")
    words = ["river", "bridge", "trees", "road", "plane", "tanks", "building", "image"]
    question = " ".join(words[(seed + i) % 8] for i in range(20))
    return make_group(question, [" ".join(words[(seed + k + i) % 8] for i in range(22)) for k in range(4)], image)


def by_clients(url: str, groups: list, clients: int) -> list:
    """Scores one group per request, `clients` at a time, each with its own connection."""
    scorers = [RemoteScorer(url) for _ in range(clients)]

    def run(k: int) -> list:
        return [(i, scorers[k].score_groups([groups[i]])[0]) for i in range(k, len(groups), clients)]

    with ThreadPoolExecutor(clients) as pool:
        return [scores for _, scores in sorted(pair for pairs in pool.map(run, range(clients)) for pair in pairs)]


def measure(ways: dict, rounds: int) -> dict[str, list[float]]:
    """Checks that the ways agree, then times them in turns; returns their seconds."""
    expected, *others = [torch.tensor(way()) for way in ways.values()]
    assert all((other - expected).abs().max() < 1e-4 for other in others), "the ways disagree"
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    return times


def summary(seconds: list[float], base: list[float], count: int) -> dict:
    """Returns completions per second (at the fastest) and the ratios to scoring in process."""
    return {
        "completions_per_second": round(count / min(seconds), 1),
        "ratio_of_fastest": round(min(base) / min(seconds), 3),
        "ratio_of_medians": round(statistics.median(base) / statistics.median(seconds), 3),
        "seconds": [round(value, 3) for value in seconds],
    }


def main() -> None:
    """Runs the benchmark and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--groups", type=int, default=64)
    parser.add_argument("--output")
    args = parser.parse_args()
    torch.set_num_threads(1)
    groups = [group(seed) for seed in range(args.groups)]
    with tempfile.TemporaryDirectory() as folder:
        path = build(folder)
        scorer = Scorer.from_pretrained(path, device="cpu")
        command = [*SERVE, "--model", path, "--device", "cpu", "--port", "0"]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
            url = process.stdout.readline().split()[-1]
            remote = RemoteScorer(url)
            ways = {"in process": lambda: scorer.score_groups(groups)}
            ways["server, one call"] = lambda: remote.score_groups(groups)
            ways |= {f"server, {n} clients": lambda n=n: by_clients(url, groups, n) for n in CLIENTS}
            load = os.getloadavg()[0]
            times = measure(ways, args.rounds)
            process.terminate()
    count = sum(len(one.completions) for one in groups)
    results = {
        "note": "CPU, one thread for the model; the machine was shared with other work: one way's times vary as "
        "much as the ways differ, so small differences mean nothing",
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average_before": round(load, 1),
        "torch": torch.__version__,
        "rounds": args.rounds,
        "groups": len(groups),
        "completions": count,
        "ways": {name: summary(values, times["in process"], count) for name, values in times.items()},
    }
    for name, row in results["ways"].items():
        print(
            f"{name:<20} {row['completions_per_second']:7.1f} completions/s, {row['ratio_of_fastest']:.2f}x of the "
            f"fastest, {row['ratio_of_medians']:.2f}x of the medians",
            flush=True,
        )
    if args.output:
        Path(args.output).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
