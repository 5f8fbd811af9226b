"""Puts a score model and the policy beside it into the box, `reward_models/aid-rsicd-tiny`: weights in half precision.

    python recipes/aid-rsicd/box.py OUT [K]

K is the score model, 0 by default. Its figures are written beside it, as `results.json`; the card is written by hand,
and a test holds its figures against that file. A model reads its weights back in single precision.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from plan import Plan
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


def figures(out: Path, k: int) -> dict[str, Any]:
    """What was measured of the score model and the policy on the evaluation images."""
    report = json.loads((out / "score" / str(k) / "eval_reward.json").read_text())
    found = {"pairs": {name: report[name] for name in FIGURES}, "choice": choice(Plan(out, "", out), k)}
    for way in ("greedy", "sampled"):
        answers = right(out / "answers" / "policy" / str(k) / way)
        found[f"policy_{way}"] = proportion(int(sum(answers)), len(answers))
    return found


def main() -> None:
    """Writes models and figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="output folder of reproduce.py")
    parser.add_argument("k", type=int, nargs="?", default=0, help="the score model")
    args = parser.parse_args()
    box = folder("reward_models") / "aid-rsicd-tiny"
    copy_model(args.out / "score" / str(args.k) / "reward", box)
    copy_model(args.out / "policy" / str(args.k) / "policy", box / "policy")
    (box / "results.json").write_text(json.dumps(figures(args.out, args.k), indent=1) + "\n", encoding="utf-8")
    size = sum(file.stat().st_size for file in box.rglob("*") if file.is_file())
    print(f"{box}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
