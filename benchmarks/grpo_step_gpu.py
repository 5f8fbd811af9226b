"""One GRPO step at the size of Qwen2-VL-2B or 7B on one GPU: time and peak memory per phase, and scoring's speed.

    python benchmarks/grpo_step_gpu.py --size 2b --output benchmarks/results/grpo_step_gpu_2b.json
    python benchmarks/grpo_step_gpu.py --size 7b --output benchmarks/results/grpo_step_gpu_7b.json
    python benchmarks/grpo_step_gpu.py --size 7b --lora --output benchmarks/results/grpo_step_gpu_7b_lora.json

The figures of an H200 lie beside this file; `recipes/qwen2-vl-7b-grpo` shows them. `--size tiny` on a CPU shows that
it runs to its end and says nothing about speed (its seconds are processor time, as in `grpo_reward.py`).

Policy and score model have the real sizes and random weights in bfloat16 (no download); the vocabulary has its real
size too, but only the tokens of a small tokenizer are sampled, so that completions can be read as text. All weights of
a 7B policy with Adam's states and the score model beside it take 81 GiB; `--lora` takes 35.

Scoring's speed is given as floating point operations (PyTorch's count of one forward) per second, and as a share of
what a large matrix product of the same type reaches on the same device at its fastest. On a CPU PyTorch's count leaves
attention out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from grpo_reward import CLOCK, PHASES, WORDS, TimedTrainer, config, summary, write_prompts
from real_size import TEXT, build
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

from rs_rlhf import ScoreModel, Scorer
from rs_rlhf.data.group import Group, make_group
from rs_rlhf.models.tiny_vlm import save_tiny_vlm
from rs_rlhf.rewards.score import ScoreReward
from rs_rlhf.trainers.data.grpo import load_prompts


def lora(rank: int = 64) -> Any:
    """Returns LoRA as in the recipe: all linear layers of the language model."""
    from peft import LoraConfig

    modules = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=modules, task_type="CAUSAL_LM")


def seconds(call: Callable[[], Any], device: str, rounds: int) -> list[float]:
    """Returns the sorted seconds of a call, after one that warms up."""
    times = []
    for _ in range(rounds + 1):
        if device != "cpu":
            torch.cuda.synchronize()
        start = CLOCK()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(CLOCK() - start)
    return sorted(times[1:])


def matmul_peak(device: str, side: int, rounds: int = 10) -> float:
    """Returns the operations per second of a square matrix product in bfloat16."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / seconds(lambda: a @ b, device, rounds)[0]


def scoring(scorer: Scorer, groups: list[Group], device: str, peak: float, rounds: int) -> dict[str, float]:
    """Times scoring groups in one batch, with images and texts prepared and from the start."""
    batch = {name: tensor.to(device) for name, tensor in scorer.collator(groups).items()}
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            scorer.model(**batch)
        forward = statistics.median(seconds(lambda: scorer.model(**batch), device, rounds))
    whole = statistics.median(seconds(lambda: scorer.score_groups(groups, show_progress=False), device, rounds))
    flops = counter.get_total_flops()
    completions = sum(len(group.completions) for group in groups)
    return {
        "completions": completions,
        "tokens": batch["input_ids"].numel(),
        "flops": flops,
        "forward_seconds": forward,
        "forward_flops_per_second": flops / forward,
        "forward_share_of_peak": flops / forward / peak,
        "whole_seconds": whole,
        "whole_share_of_peak": flops / whole / peak,
        "completions_per_second": completions / whole,
    }


def score_groups(count: int, rollouts: int, length: int, side: int) -> list[Group]:
    """Returns groups with an image of its own each and completions of about `length` tokens."""
    from PIL import Image

    groups = []
    for i in range(count):
        image = Image.effect_noise((side, side), 60 + i).convert("RGB")
        texts = [" ".join(WORDS[(i + k + j) % 8] for j in range(max(1, 2 * length // 3))) for k in range(rollouts)]
        groups.append(make_group(" ".join(WORDS), texts, image))
    return groups


def run(args: argparse.Namespace, device: str, folder: str) -> dict[str, Any]:
    """Times the steps, then scoring alone."""
    tiny = args.size == "tiny"
    path = save_tiny_vlm(f"{folder}/tiny", max_pixels=args.image_side**2)
    processor = AutoProcessor.from_pretrained(path, padding_side="left")
    tokenizer = processor.tokenizer
    policy = build(Qwen2VLForConditionalGeneration, args.size, tokenizer, device)
    policy.generation_config.eos_token_id = tokenizer.eos_token_id
    policy.generation_config.pad_token_id = tokenizer.pad_token_id
    score_model = build(ScoreModel, args.size, tokenizer, device)
    parameters = {"policy": policy.num_parameters(), "score_model": score_model.num_parameters()}
    scorer = Scorer(score_model, AutoProcessor.from_pretrained(path), token_budget=args.token_budget)
    data, root = load_prompts(write_prompts(folder, 2 * args.prompts, args.image_side))
    unknown = list(range(len(tokenizer), TEXT[args.size]["vocab_size"]))
    options = config(
        f"{folder}/out",
        root,
        args.rollouts,
        args.completion_length,
        args.rounds + 1,
        gradient_accumulation_steps=args.prompts,
        generation_kwargs={
            "min_new_tokens": args.completion_length,
            "suppress_tokens": unknown,
            **({"cache_implementation": "static"} if args.static else {}),
        },
        use_cpu=device == "cpu",
        bf16=True,
        dataloader_pin_memory=device != "cpu",
    )
    extra = {"peft_config": lora(8 if tiny else 64)} if args.lora else {}
    trainer = TimedTrainer(policy, ScoreReward(scorer), options, data, processing_class=processor, **extra)
    trainer.train()
    result = summary(trainer.steps[1:], trainer.walls[1:])
    peaks: dict[str, float | None] = dict.fromkeys(PHASES)
    if device != "cpu":
        peaks = {name: max(step[name] for step in trainer.peaks) / 2**30 for name in PHASES}
    trainer.accelerator.free_memory()
    peak = matmul_peak(device, 256 if tiny else 8192)
    groups = score_groups(args.scored_groups, args.rollouts, args.completion_length, args.image_side)
    return {
        "parameters": parameters,
        "step": result,
        "peak_memory_gib": peaks,
        "matmul_flops_per_second": peak,
        "scoring": scoring(scorer, groups, device, peak, args.rounds),
    }


def main() -> None:
    """Runs the benchmark and prints what it found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(TEXT), default="2b")
    parser.add_argument("--lora", action="store_true", help="train LoRA adapters, not all weights")
    parser.add_argument("--static", action="store_true", help="generate with a static cache, compiled on a GPU")
    parser.add_argument("--rounds", type=int, default=3, help="steps; one more goes before them and is left out")
    parser.add_argument("--prompts", type=int, default=2, help="distinct prompts of a step")
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--scored_groups", type=int, default=6, help="groups of the batch that times scoring alone")
    parser.add_argument("--image_side", type=int, default=448, help="pixels; 448 makes 256 tokens")
    parser.add_argument("--completion_length", type=int, default=256)
    parser.add_argument("--token_budget", type=int, default=16384, help="of a scored batch")
    parser.add_argument("--output")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and args.size != "tiny":
        parser.error("this size needs a GPU; --size tiny runs on the CPU.")
    results: dict[str, Any] = {
        "hardware": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "device": device,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "dtype": "bfloat16",
        **{name: value for name, value in vars(args).items() if name != "output"},
    }
    with tempfile.TemporaryDirectory() as folder:
        results |= run(args, device, folder)
    for name in PHASES:
        memory = results["peak_memory_gib"][name]
        print(
            f"{name:12} {results['step']['phases'][name]:8.3f} s {results['step']['shares'][name]:5.0%}"
            f"{'' if memory is None else f' {memory:8.1f} GiB at most'}"
        )
    found = results["scoring"]
    print(
        f"scoring: {found['completions_per_second']:.1f} completions/s; the forward reaches"
        f" {found['forward_share_of_peak']:.0%} of the matrix product's {results['matmul_flops_per_second']:.3g}/s"
    )
    if args.output:
        Path(args.output).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
