"""Speed of sampling N answers to a prompt that is read once, against plain generation, as ratios within one run.

    python benchmarks/rollout_speed.py --rounds 3 --output benchmarks/results/rollout_speed.json
    python benchmarks/rollout_speed.py --size 2b --output benchmarks/results/rollout_speed_gpu_2b.json  # one GPU

The prompt has about 320 tokens, 256 of them of its image; the policy is a random Qwen2-VL (text 512 × 8 layers, vision
512 × 8 layers; seed 0), with `--size` one of the real size of Qwen2-VL-2B or 7B in bfloat16. `plain` is transformers'
`generate` on N rows, `vision` the same with the vision tower run once per image (`share_vision`), `shared` what GRPO
and `HFPolicy` do (`share_prompts`). The ways are timed in turns and their medians compared; in float32 their answers
are checked to be the same first. `prefill` is the time to the first token, `answer` that to the last (left out with
`--tokens 1`); on a CPU both are CPU time, in which other work on the machine does not count.

`--static` adds `vision` with a static cache, whose steps transformers compiles on a GPU. `--texts` compares `plain`,
`shared` and transformers' continuous batching (`paged`) on as many tokens without an image, which it does not take.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import real_size
import torch
from group_speed import compare
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen2VLForConditionalGeneration

from rs_rlhf.models.policies.shared_generation import share_prompts
from rs_rlhf.models.tiny_vlm import save_tiny_vlm
from rs_rlhf.models.vision_sharing import share_vision


def build(folder: str, size: str | None, device: str):
    """Returns the policy and its processor."""
    sizes = {"hidden_size": 512, "num_layers": 8, "vision_dim": 512, "vision_depth": 8}
    path = save_tiny_vlm(folder, num_heads=8, vision_heads=8, max_pixels=256 * 28 * 28, **sizes)
    processor = AutoProcessor.from_pretrained(path, padding_side="left")
    if size:
        model = real_size.build(Qwen2VLForConditionalGeneration, size, processor.tokenizer, device)
    else:
        model = AutoModelForImageTextToText.from_pretrained(path).to(device)
    model.generation_config.eos_token_id = None  # every answer has all its tokens
    return model.eval(), processor


def prompt(processor, n: int, device: str):
    """Returns n rows of one prompt: an image of 256 tokens and a question of about 60."""
    words = ["river", "bridge", "trees", "road", "plane", "tanks", "building", "image"]
    text = " ".join(words[i % 8] for i in range(40))
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    image = Image.effect_noise((448, 448), 60).convert("RGB")
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    return processor(text=[text] * n, images=[[image]] * n, padding=True, return_tensors="pt").to(device)


def measured(options: dict, inputs: dict, args: argparse.Namespace, clock) -> dict:
    """Times the ways, each a model with options of `generate` or `None` for continuous batching."""

    def answer(name: str, count: int):
        model, more = options[name]
        torch.manual_seed(0)
        if more is None:
            config = copy.deepcopy(model.generation_config)
            config.update(do_sample=True, max_new_tokens=count)
            return model.generate_batch(inputs["input_ids"].tolist(), config)
        return model.generate(**inputs, do_sample=True, max_new_tokens=count, **more)

    if next(iter(options.values()))[0].dtype == torch.float32:
        answers = [answer(name, 4) for name in options if options[name][1] is not None]
        assert all(torch.equal(answers[0], other) for other in answers), "the ways disagree"
    found: dict = {}
    for part, count in (("prefill", 1), ("answer", args.tokens))[: 1 + (args.tokens > 1)]:
        ways = {name: lambda name=name, count=count: answer(name, count) for name in options}
        seconds = compare(ways, args.rounds, clock)
        others = [name for name in options if name != "shared"]
        found[part] = seconds | {f"ratio_{name}": seconds[name] / seconds["shared"] for name in others}
        over = ", ".join(f"{found[part][f'ratio_{name}']:.2f}x over {name}" for name in others)
        print(f"N={len(inputs['input_ids'])} {part}: {seconds['shared']:.3f} s, {over}", flush=True)
    return found


def main() -> None:
    """Runs the benchmark and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--size", choices=list(real_size.TEXT), help="a real size, in bfloat16")
    parser.add_argument("--static", action="store_true", help="also a static cache, compiled on a GPU")
    parser.add_argument("--texts", action="store_true", help="also texts, by continuous batching too")
    parser.add_argument("--output")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    hardware = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    results: dict = {"hardware": hardware, "cores": os.cpu_count(), "torch": torch.__version__, "seed": 0}
    results |= {"size": args.size, "rounds": args.rounds, "tokens": args.tokens, "samples": {}}
    with tempfile.TemporaryDirectory() as folder:
        plain, processor = build(folder, args.size, device)
    models = {"plain": plain, "vision": copy.deepcopy(plain), "shared": copy.deepcopy(plain)}
    share_vision(models["vision"])
    share_vision(models["shared"])
    share_prompts(models["shared"])
    clock = time.perf_counter if device == "cuda" else time.process_time
    for n in args.samples:
        inputs = dict(prompt(processor, n, device))
        results["prompt_tokens"] = inputs["input_ids"].shape[1]
        options = {name: (model, {}) for name, model in models.items()}
        if args.static:
            options["static"] = (models["vision"], {"cache_implementation": "static"})
        results["samples"][n] = measured(options, inputs, args, clock)
        if args.texts:
            words = inputs["input_ids"].clamp(min=20) if args.size is None else inputs["input_ids"] % 200 + 20
            texts = {"input_ids": words, "attention_mask": torch.ones_like(words)}
            options = {"plain": (plain, {}), "shared": (models["shared"], {}), "paged": (models["vision"], None)}
            results.setdefault("texts", {})[n] = measured(options, texts, args, clock)
    if args.output:
        Path(args.output).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
