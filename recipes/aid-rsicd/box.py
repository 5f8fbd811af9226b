"""Puts a score model and a policy into the box, `reward_models/aid-rsicd-tiny`: weights in half precision.

    python recipes/aid-rsicd/box.py OUT

The figures go to `results/box.json` beside this file; the card is written by hand,
and a test holds its figures against that file. Weights are read back in single precision, as the config says.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from results import choice, right
from safetensors.torch import load_file, save_file

from rs_rlhf.declarations import folder
from rs_rlhf.metrics.intervals import proportion

KEPT = ("config.json", "generation_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json")
KEPT += ("chat_template.jinja",)
FIGURES = ("n", "accuracy", "interval", "shuffled", "calibration", "by_kind")


def copy_model(source: Path, target: Path) -> None:
    """Copies what a model is loaded from; its weights become half as large."""
    target.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    weights = {
        name: value.half() if value.dtype == torch.float32 else value
        for name, value in load_file(source / "model.safetensors").items()
    }
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})


def figures(out: Path) -> dict[str, Any]:
    """What was measured of the score model and the policy on the evaluation images, and on drawn scenes."""
    found: dict[str, Any] = {"choice": choice(out, "box")}
    for name, told in (("eval", "pairs"), ("drawn", "drawn_pairs")):
        report = json.loads((out / "box" / f"{name}.json").read_text())
        found[told] = {key: report[key] for key in FIGURES}
    for way in ("greedy", "sampled"):
        answers = right(out / "answers" / "policy" / "0" / way)
        found[f"policy_{way}"] = proportion(int(sum(answers)), len(answers))
    return found


def main() -> None:
    """Writes models and figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="output folder of reproduce.py")
    args = parser.parse_args()
    box = folder("reward_models") / "aid-rsicd-tiny"
    copy_model(args.out / "box" / "reward", box)
    copy_model(args.out / "policy" / "0" / "policy", box / "policy")
    results = Path(__file__).parent / "results" / "box.json"
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps(figures(args.out), indent=1) + "\n", encoding="utf-8")
    size = sum(file.stat().st_size for file in box.rglob("*") if file.is_file())
    print(f"{box}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
