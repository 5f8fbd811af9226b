"""Tiles of four land covers for the notebooks: small pictures of noise around a colour, drawn from a seed.

A model of a few thousand weights learns them on a CPU in seconds. Good results here show how the tools are used, not
that a model reads satellite images.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from rs_rlhf.cli.main import main
from rs_rlhf.models.tiny_vlm import save_tiny_vlm

COLOURS = {"water": (40, 80, 150), "forest": (30, 90, 40), "desert": (200, 170, 110), "town": (130, 125, 130)}
LANDS = list(COLOURS)
QUESTION = "What is on this tile?"
SIDE = 56  # pixels
FAST = (  # a training of seconds on a CPU, that says little
    "--use_cpu true --bf16 false --report_to none --disable_tqdm true --activation_checkpointing false "
    "--lr_scheduler_type cosine --warmup_steps 5 --adam_beta2 0.99 --per_device_train_batch_size 24 "
    "--per_device_eval_batch_size 48 --save_strategy no --overwrite_output_dir true"
).split()


def draw(land, rng):
    """Draws a tile of a land cover."""
    colour = np.array(COLOURS[land]) + rng.normal(0, 12, 3)
    return Image.fromarray((colour + rng.normal(0, 14, (SIDE, SIDE, 3))).clip(0, 255).astype("uint8"))


def tiles(name, count, seed):
    """Writes tiles into the folder `tiles`; returns their paths and land covers."""
    rng = np.random.default_rng(seed)
    Path("tiles").mkdir(exist_ok=True)
    found = []
    for i in range(count):
        found.append((f"tiles/{name}-{i:03}.png", LANDS[i % len(LANDS)]))
        draw(found[-1][1], rng).save(found[-1][0])
    return found


def write(path, rows):
    """Writes rows as JSON lines."""
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def pairs(found):
    """Returns preference pairs: the right answer before each wrong one."""
    return [
        {"image": path, "prompt": QUESTION, "chosen": land, "rejected": other}
        for path, land in found
        for other in LANDS
        if other != land
    ]


def tiny_model(folder):
    """Writes a tiny vision-language model with random weights."""
    size = {"hidden_size": 64, "num_layers": 2, "vision_dim": 64, "vision_depth": 1, "vocab_size": 300}
    save_tiny_vlm(folder, **size, min_pixels=SIDE * SIDE, max_pixels=SIDE * SIDE, seed=0)


def train_score_model(folder, steps=90):
    """Trains a score model, as the notebook on training does."""
    tiny_model("start")
    write("train.jsonl", pairs(tiles("train", 160, 0)))
    flags = f"--model_name_or_path start --dataset_name train.jsonl --output_dir {folder} --max_steps {steps}"
    assert main(["reward", *flags.split(), "--learning_rate", "3e-3", "--output_activation", "identity", *FAST]) == 0
