"""Throughput of `rs-rlhf score` against scoring tensors that are in memory, and from one process to two.

    python benchmarks/score_throughput.py --output benchmarks/results/score_throughput.json

A random Qwen2-VL score model (text 512 × 8 layers, vision 192 × 4, as in `eval_speed.py`) scores rows of a JPEG of
640 × 640 pixels, seen as 64 tokens and another for every row, and a caption of 10 to 40 words.

- `decode`: `score`, the work of the command (rows, files and headers read, JPEGs decoded and resized, texts laid out,
  images hashed, shards written), against `in_memory`: the same batches, laid out beforehand, through the same model.
  One after the other, in turns, in this process on `--threads` threads, by default half of the cores, so that others
  are there to decode, as they are beside a GPU; the model is loaded outside of the times. `decode_all_cores` is the
  same where the model has all cores, and decoding takes them from it.
  `share` is the time in memory by the time of the command: 1 is no cost at all, above it is noise. `cpu_share` is the
  same of processor seconds, which other work on the machine disturbs less. The scores are checked to be the same.
- `shared`: the same command on rows of which five have one image; `speedup` is its texts per second by those of rows
  with an image each.
- `processes`: whole commands, each process on one thread. Of one and two at a time it is the texts per second of the
  run's own summary (from the first shard begun to the last written, so without imports), on a machine of two cores or
  more that does nothing else. `speedup` is two by one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor

from rs_rlhf import ScoreModel, Scorer
from rs_rlhf.curation.shards import planned, read_scores
from rs_rlhf.curation.worker import Work
from rs_rlhf.data.image_text_dataset import open_image_texts
from rs_rlhf.models.tiny_vlm import save_tiny_vlm

WORDS = ["river", "bridge", "trees", "road", "plane", "tanks", "building", "image"]


def write_data(root: Path, rows: int, captions: int = 1) -> Path:
    """Writes the rows, of which `captions` share a picture; returns the folder."""
    draw, noise = random.Random(0), np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    for i in range(-(-rows // captions)):
        blocks = Image.fromarray(noise.integers(0, 256, (40, 40, 3), dtype=np.uint8))
        blocks.resize((640, 640), Image.Resampling.BICUBIC).save(root / "images" / f"{i}.jpg", quality=90)
    with (root / "rows.jsonl").open("w") as lines:
        for i in range(rows):
            caption = " ".join(draw.choices(WORDS, k=draw.randint(10, 40)))
            lines.write(json.dumps({"image": f"images/{i // captions}.jpg", "caption": caption}) + "\n")
    return root


def write_model(path: Path) -> Path:
    """Writes the score model with its processor; its head is scaled so that scores differ."""
    sizes: dict[str, Any] = {"hidden_size": 512, "num_layers": 8, "vision_dim": 192, "vision_depth": 4}
    save_tiny_vlm(path / "vlm", **sizes, min_pixels=224 * 224, max_pixels=224 * 224)
    torch.manual_seed(0)
    model = ScoreModel.from_pretrained(path / "vlm", output_activation="identity")
    model.reward_head.weight.data.mul_(20)
    model.save_pretrained(path / "scorer")
    AutoProcessor.from_pretrained(path / "vlm").save_pretrained(path / "scorer")
    return path / "scorer"


def clocks() -> np.ndarray:
    """Seconds by the clock and of the processor."""
    return np.array([time.perf_counter(), time.process_time()])


def by_command(scorer: Scorer, data: Path, rows_per_shard: int, workers: int) -> tuple[np.ndarray, list[float]]:
    """The work of the command, all but its imports and the loading of the model; returns seconds and scores."""
    scorer.num_workers = workers

    def count_tokens(texts: Any) -> list[int]:
        return [len(ids) for ids in scorer.processor.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    with tempfile.TemporaryDirectory() as out:
        start = clocks()
        source = open_image_texts(data)
        settings = {"input": str(data), "stamp": source.stamp, "scorer": {}, "rows_per_shard": rows_per_shard}
        with planned(Path(out), settings, lambda: source.units(rows_per_shard)) as manifest:
            Work(source, manifest, Path(out), scorer, count_tokens, workers).run()
        return clocks() - start, read_scores(out, ["score"])["score"].to_pylist()


def in_memory(scorer: Scorer, batches: list[Any], count: int) -> tuple[np.ndarray, list[float]]:
    """The model alone, on batches that are laid out; returns seconds and scores."""
    scores = [0.0] * count
    start = clocks()
    for batch, inputs in batches:
        inputs = {name: tensor.to(scorer.model.device) for name, tensor in inputs.items()}
        with torch.inference_mode():
            rows = scorer.model(**inputs).scores.tolist()
        for entry, row in zip(batch, rows, strict=True):
            for (i, _), score in zip(entry, row, strict=False):
                scores[i] = score
    return clocks() - start, scores


def decode(scorer: Scorer, data: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Command and model alone in turns."""
    scorer.num_workers = 0
    groups = [row.groups[0] for row in open_image_texts(data)]
    batches: list[Any] = []
    for first in range(0, len(groups), args.rows_per_shard):  # batches never reach over a shard
        part = groups[first : first + args.rows_per_shard]
        planned_batches = list(scorer._batches(part, [None] * len(part), "raise"))
        laid_out = list(scorer._inputs(planned_batches, part, [], "raise"))
        for batch, inputs in laid_out:
            batches.append(([[(first + i, k) for i, k in entry] for entry in batch], inputs))
    times: dict[str, list[Any]] = {"score": [], "in_memory": []}
    for number in range(args.rounds + 1):  # the first warms up
        command, scores = by_command(scorer, data, args.rows_per_shard, args.num_workers)
        memory, expected = in_memory(scorer, batches, len(groups))
        difference = max(abs(a - b) for a, b in zip(scores, expected, strict=True))
        if difference > 1e-4:
            raise SystemExit(f"the scores differ by {difference}")
        if number:
            times["score"].append(command)
            times["in_memory"].append(memory)
    shares = np.array(times["in_memory"]) / np.array(times["score"])
    share, cpu_share = np.median(shares, 0)
    seconds = {name: [round(float(one[0]), 2) for one in values] for name, values in times.items()}
    return {
        "share": round(float(share), 3),
        "cpu_share": round(float(cpu_share), 3),
        "shares": [round(float(one), 3) for one in shares[:, 0]],
        "share_of_fastest": round(min(seconds["in_memory"]) / min(seconds["score"]), 3),
        "seconds": seconds,
        "rows_per_second": round(len(groups) / min(seconds["score"]), 1),
        "batches": len(batches),
    }


def shared(scorer: Scorer, alone: Path, together: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Rows with an image each, and rows of which five have one, in turns."""
    speeds: dict[str, list[float]] = {"alone": [], "together": []}
    for _ in range(args.rounds):
        for name, data in (("alone", alone), ("together", together)):
            seconds, scores = by_command(scorer, data, args.rows_per_shard, args.num_workers)
            speeds[name].append(round(len(scores) / float(seconds[0]), 2))
    ratios = [b / a for a, b in zip(speeds["alone"], speeds["together"], strict=True)]
    return {"speedup": round(statistics.median(ratios), 2), "texts_per_second": speeds}


def processes(model: Path, data: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Whole commands, one and two at a time, in turns."""
    speeds: dict[int, list[float]] = {1: [], 2: []}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "rs_rlhf",
        "score",
        "--input",
        str(data),
        "--model",
        str(model),
        "--rows_per_shard",
        str(args.rows_per_shard),
        "--num_workers",
        str(args.num_workers),
    ]
    for _ in range(args.rounds):
        for count in speeds:
            with tempfile.TemporaryDirectory() as out:
                run = [
                    subprocess.Popen(
                        [*command, "--output", out],
                        env=environment,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                    )
                    for _ in range(count)
                ]
                if any(one.wait() for one in run):
                    raise SystemExit("a process failed")
                summary = json.loads((Path(out) / "summary.json").read_text())
            speeds[count].append(summary["texts_per_second"])
    ratios = [two / one for one, two in zip(speeds[1], speeds[2], strict=True)]
    return {
        "speedup": round(statistics.median(ratios), 2),
        "speedups": [round(one, 2) for one in ratios],
        "texts_per_second": {str(count): values for count, values in speeds.items()},
    }


def main() -> None:
    """Runs the comparisons and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--rows_per_shard", type=int, default=64)
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 1) // 2))
    parser.add_argument("--device", help="of the first comparison (default: the accelerator, or cpu)")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data, model = write_data(Path(folder) / "data", args.rows), write_model(Path(folder))
        five = write_data(Path(folder) / "five", args.rows, captions=5)
        scorer = Scorer.from_pretrained(model, device=args.device)
        report: dict[str, Any] = {}
        for name, threads in (("decode_all_cores", os.cpu_count() or 1), ("decode", args.threads)):
            torch.set_num_threads(threads)
            report[name] = decode(scorer, data, args)
        report["shared"] = shared(scorer, data, five, args)
        report["processes"] = processes(model, data, args)
    report |= {
        "rows": args.rows,
        "rows_per_shard": args.rows_per_shard,
        "num_workers": args.num_workers,
        "rounds": args.rounds,
        "threads": args.threads,
        "cores": os.cpu_count(),
        "device": str(scorer.model.device),
        "torch": torch.__version__,
    }
    print(json.dumps(report, indent=2))
    if args.output:
        args.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
