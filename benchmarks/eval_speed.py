"""The evaluation harness: batches against one question at a time, and what it costs over a bare `generate`.

    python benchmarks/eval_speed.py --output benchmarks/results/eval_speed.json

A random Qwen2-VL (text 512 × 8 layers, as in `group_speed.py`, vision 192 × 4), 64 questions of 4 to 40 words about
images of 64 tokens, 32 new tokens each and the token budget (both the defaults of `rs-rlhf eval`), greedy, on two
threads. Three ways take turns: `harness`, a task of `rs-rlhf eval` from the question file to the written samples and
figures; `one_by_one`, the same with `--batch_size 1`; `generate`, what a script must do at least: the same batches of
images read and laid out, and transformers' own `generate` on them. The model is loaded once, outside of the times.
Seconds are by the clock, on a machine that does nothing else. The answers of all three are the same but for
`differing_answers`: a padded batch moves the last bits of the logits.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image

from rs_rlhf.evaluation.benchmark import load_benchmark
from rs_rlhf.evaluation.protocols import vlm_protocol
from rs_rlhf.evaluation.reader import read_benchmark
from rs_rlhf.evaluation.run import run_task
from rs_rlhf.models.policies.policy import Policy
from rs_rlhf.models.policies.qwen_vl import QwenVLPolicy
from rs_rlhf.models.policies.sampling import SamplingOptions
from rs_rlhf.models.tiny_vlm import save_tiny_vlm
from rs_rlhf.runs.files import read_lines

COUNT, NEW_TOKENS = 64, 32
WORDS = ["river", "bridge", "trees", "road", "plane", "tanks", "building", "image"]


def write_data(root: Path) -> Path:
    """Writes the questions, their images and the declaration; returns the declaration."""
    draw = random.Random(0)
    noise = np.random.default_rng(0)
    rows = []
    for i in range(COUNT):
        Image.fromarray(noise.integers(0, 256, (224, 224, 3), dtype=np.uint8)).save(root / f"{i}.png")
        text = " ".join(draw.choices(WORDS, k=draw.randint(4, 40)))
        rows.append(json.dumps({"id": str(i), "prompt": text, "image": f"{i}.png", "solution": "river"}) + "\n")
    (root / "rows.jsonl").write_text("".join(rows))
    path = root / "speed.yaml"
    path.write_text("title: speed\ntask: vqa\nlayout: rows\npath: rows.jsonl\nsource: made up\n")
    return path


def harness(policy: Policy, declaration: Path, batch_size: int | None, budget: int) -> tuple[float, list[str]]:
    """One whole task; returns its seconds and the answers."""
    sampling = SamplingOptions(temperature=0, max_new_tokens=NEW_TOKENS, token_budget=budget, batch_size=batch_size)
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        benchmark = load_benchmark(str(declaration))
        rows = read_benchmark(benchmark, declaration.parent / "rows.jsonl")
        run_task("speed", rows, vlm_protocol(benchmark, lambda: policy, sampling), Path(out), {}, state=PartialState())
        seconds = time.perf_counter() - start
        return seconds, [one["output"] for one in read_lines(Path(out) / "samples_speed.jsonl")]


def generate(policy: QwenVLPolicy, declaration: Path, budget: int) -> tuple[float, list[str]]:
    """Transformers' generation on the harness's batches."""
    rows = read_benchmark(load_benchmark(str(declaration)), declaration.parent / "rows.jsonl")
    groups = [row.group for row in rows]
    places = [batch for batch, _ in plan(policy, groups, budget)]
    answers = [""] * len(rows)
    seconds = 0.0
    never = [[token] for token in policy.never]
    for batch in places:
        start = time.perf_counter()
        tensors = policy._inputs([groups[i] for i in batch])
        with torch.inference_mode():
            tokens = policy.model.generate(
                **tensors, max_new_tokens=NEW_TOKENS, do_sample=False, bad_words_ids=never, eos_token_id=policy.end_ids
            )
        seconds += time.perf_counter() - start
        texts = policy.tokenizer.batch_decode(tokens[:, tensors["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in zip(batch, texts, strict=True):
            answers[i] = text
    return seconds, answers


def plan(policy: Policy, groups: list[Any], budget: int) -> list[tuple[list[int], Any]]:
    """The harness's batches."""
    sampling = SamplingOptions(max_new_tokens=NEW_TOKENS, temperature=0, token_budget=budget)
    return list(policy.sample_batches(groups, sampling))


def main() -> None:
    """Runs the rounds and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--token_budget", type=int, default=16384)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        declaration = write_data(root)
        sizes = {"hidden_size": 512, "num_layers": 8, "vision_dim": 192, "vision_depth": 4}
        save_tiny_vlm(root / "model", **sizes, min_pixels=224 * 224, max_pixels=224 * 224)
        policy = Policy.from_pretrained(root / "model", device="cpu")
        ways = {
            "harness": lambda: harness(policy, declaration, None, args.token_budget),
            "one_by_one": lambda: harness(policy, declaration, 1, args.token_budget),
            "generate": lambda: generate(policy, declaration, args.token_budget),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        answers = {name: way()[1] for name, way in ways.items()}  # also warms up
        for _ in range(args.rounds):
            for name, way in ways.items():
                seconds[name].append(way()[0])
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = [a / b for a, b in zip(seconds["one_by_one"], seconds["harness"], strict=True)]
    overheads = [a / b - 1 for a, b in zip(seconds["harness"], seconds["generate"], strict=True)]
    differ = {
        name: sum(a != b for a, b in zip(answers["harness"], answers[name], strict=True))
        for name in ("one_by_one", "generate")
    }
    report = {
        "seconds": {name: round(value, 3) for name, value in medians.items()},
        "batched_speedup": round(statistics.median(ratios), 2),
        "overhead_over_generate": round(statistics.median(overheads), 3),
        "differing_answers": differ,
        "questions": COUNT,
        "rounds": args.rounds,
        "threads": args.threads,
        "machine": platform.processor(),
        "torch": torch.__version__,
    }
    print(json.dumps(report, indent=2))
    if args.output:
        args.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
