"""Two checkouts against each other: scoring a group, a GRPO step, `rs-rlhf score`; the ratio of their processor times.

    git worktree add ../before COMMIT
    OMP_NUM_THREADS=1 python benchmarks/two_versions.py ../before . --output benchmarks/results/two_versions.json

One process of each checkout does a unit of work in turn, so that a change in the machine's speed meets both. The
seconds are the process's own processor time on one thread; the medians are compared, and `spread` is half the range
of the ratios of the pairs without their outer quarters.
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
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve()
PAIRS = {"group": 16, "grpo": 8, "score": 8}


def work_group(folder: str, turn: Callable) -> None:
    """Lays out and scores a group of 8 completions, as `group_speed.py` does."""
    import group_speed
    import torch

    model, collator = group_speed.build(folder, None, "cpu")
    made = group_speed.group(8, 0)
    with torch.inference_mode():
        while True:
            turn(lambda: model(**collator([made])))


def work_grpo(folder: str, turn: Callable) -> None:
    """Steps of the trainer of `grpo_reward.py`, the reward scored in groups."""
    import grpo_reward
    from transformers import AutoProcessor, TrainerCallback

    class Waits(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            self.end = turn()

        def on_step_end(self, *args, **kwargs):
            self.end()

    policy, scorer = grpo_reward.build(folder)
    data, root = grpo_reward.load_prompts(grpo_reward.write_prompts(folder, 4, 448))
    grpo_reward.VisionGRPOTrainer(
        policy,
        grpo_reward.ScoreReward(scorer),
        grpo_reward.config(f"{folder}/out", root, 8, 32, 1000, use_cpu=True, bf16=False),
        data,
        processing_class=AutoProcessor.from_pretrained(f"{folder}/policy", padding_side="left"),
        callbacks=[Waits()],
    ).train()


def work_score(folder: str, turn: Callable) -> None:
    """`rs-rlhf score` of 400 rows with a tiny score model."""
    import torch
    from PIL import Image
    from transformers import AutoProcessor

    from rs_rlhf import ScoreModel
    from rs_rlhf.cli.main import main
    from rs_rlhf.models.tiny_vlm import save_tiny_vlm

    path = save_tiny_vlm(f"{folder}/vlm", min_pixels=56 * 56, max_pixels=12 * 28 * 28)
    torch.manual_seed(0)
    ScoreModel.from_pretrained(path).save_pretrained(f"{folder}/model")
    AutoProcessor.from_pretrained(path).save_pretrained(f"{folder}/model")
    for i in range(50):
        Image.effect_noise((84, 56), 60 + i).convert("RGB").save(f"{folder}/{i}.png")
    rows = [{"image": f"{i % 50}.png", "caption": f"a river with {i} boats."} for i in range(400)]
    Path(folder, "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["score", "--input", f"{folder}/rows.jsonl", "--model", f"{folder}/model", "--rows_per_shard", "100"]
    for number in range(1000):
        turn(lambda number=number: main([*given, "--output", f"{folder}/out{number}"]))


def work(name: str) -> None:
    """Does a unit of work for every line on standard input, and writes its seconds on standard output."""
    import torch

    sys.path.insert(0, str(Path.cwd() / "benchmarks"))  # each checkout's own
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def turn(unit: Callable | None = None) -> Callable | None:
        if not sys.stdin.readline():
            os._exit(0)
        start, wall = time.process_time(), time.perf_counter()

        def end() -> None:
            print(time.process_time() - start, time.perf_counter() - wall, file=answers)

        if unit is None:
            return end
        unit()
        return end()

    with tempfile.TemporaryDirectory() as folder:
        globals()[f"work_{name}"](folder, turn)


def compare(name: str, checkouts: list[Path], pairs: int) -> dict:
    """Returns the seconds of each checkout and their ratio, new to old."""
    processes = []
    for checkout in checkouts:
        env = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, str(HERE), "--work", name]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        processes.append(subprocess.Popen(command, env=env, text=True, bufsize=1, cwd=checkout, **pipes))
    times: list[list[list[float]]] = [[], []]
    for pair in range(pairs + 1):
        for place in (0, 1) if pair % 2 else (1, 0):
            processes[place].stdin.write("go\n")
            seconds = [float(part) for part in processes[place].stdout.readline().split()]
            if pair:  # the first warms up
                times[place].append(seconds)
                print(name, ("old", "new")[place], *seconds, file=sys.stderr, flush=True)
    for process in processes:
        process.stdin.close()
        process.wait()
    cpu = [[seconds[0] for seconds in one] for one in times]
    ratios = sorted(new / old for old, new in zip(*cpu, strict=True))
    inner = ratios[len(ratios) // 4 : len(ratios) - len(ratios) // 4]
    medians = [statistics.median(one) for one in cpu]
    return {
        "ratio": round(medians[1] / medians[0], 3),
        "median_of_ratios": round(statistics.median(ratios), 3),
        "spread": round((inner[-1] - inner[0]) / 2, 3),
        "pairs": pairs,
        "processor_seconds": {"old": round(medians[0], 3), "new": round(medians[1], 3)},
        "wall_seconds": {
            k: round(statistics.median(s[1] for s in one), 3) for k, one in zip(("old", "new"), times, strict=True)
        },
    }


def main() -> None:
    """Runs the benchmarks and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, nargs="?", help="a checkout")
    parser.add_argument("new", type=Path, nargs="?", help="another")
    parser.add_argument("--only", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--pairs", type=int, help="units of work of each checkout (default: as for each benchmark)")
    parser.add_argument("--work", choices=list(PAIRS), help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.work:
        return work(args.work)
    checkouts = [args.old.resolve(), args.new.resolve()]
    commits = [
        subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=one, capture_output=True, text=True).stdout.strip()
        for one in checkouts
    ]
    import torch

    results: dict = {"old": commits[0], "new": commits[1], "cpu": platform.processor() or platform.machine()}
    results |= {"cores": os.cpu_count(), "threads": 1, "load_average_before": round(os.getloadavg()[0], 1)}
    results |= {"torch": torch.__version__, "benchmarks": {}}
    for name in args.only:
        found = results["benchmarks"][name] = compare(name, checkouts, args.pairs or PAIRS[name])
        print(f"{name}: new / old {found['ratio']} (± {found['spread']}), {found['processor_seconds']}", flush=True)
        if args.output:
            args.output.write_text(json.dumps(results, indent=2) + "\n")
    return None


if __name__ == "__main__":
    main()
