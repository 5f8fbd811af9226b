"""A folder of four preference pairs, and the command that trains a score model on it."""

import json

from . import picture

QUICK = "--use_cpu true --bf16 false --report_to none --disable_tqdm true --per_device_train_batch_size 2".split()


def write_pairs(folder):
    """Writes four pairs with their pictures; returns the folder."""
    for i in range(4):
        picture(i).save(folder / f"{i}.png")
    rows = [{"image": f"{i}.png", "chosen": "a river.", "rejected": "trees."} for i in range(4)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def reward(model, *flags):
    """The arguments of a long training of the head, run in the folder."""
    options = ["--max_steps", "100000", "--save_steps", "1", "--save_total_limit", "1", "--trainable", "head"]
    data = ["--dataset_name", "pairs.jsonl", "--model_name_or_path", model, "--output_dir", "out"]
    return ["reward", *data, *options, *QUICK, *flags]
