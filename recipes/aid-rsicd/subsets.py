"""Which images teach which model: the subsets of AID with RSICD's captions that the experiments read.

    python recipes/aid-rsicd/subsets.py DATA TEST OUT [--limit N]

`learn`: the images of `train-00000`, for score models and the CLIP score. Those of `train-00001` are drawn apart by a
seed: `policy` (1,000, whose labels teach the policy), `choose` (500, for what is chosen) and `pool` (the rest, for RL
and curation). An image that is in TEST too is in none of them.
`learn_250` and `learn_1000` are the first images of `learn`, for a learning curve.
`learn_labels.jsonl` are lists of the right class against all others. `pool_choices.jsonl` and `test_choices.jsonl`
ask for the class of each image, with all classes as the answers.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from rs_rlhf.data.captioned_images import LABEL_QUESTION, class_name, load_images
from rs_rlhf.data.questions import placed_images, read_questions
from rs_rlhf.imagery.identity import pixel_hash

POLICY, CHOOSE = 1000, 500
CURVE = (250, 1000)  # images of a learning curve


def parse_place(place: str) -> tuple[str, str | None]:
    """Splits `PATH:SPLIT`, as `--exclude_images_of` takes it."""
    path, _, split = place.rpartition(":")
    return (path, split) if path else (place, None)


def write_choices(out: Path, path: str, split: str | None, classes: list[str]) -> None:
    """Writes the question for the class of each image, with all classes as candidates of `rs-rlhf data best`."""
    rows = read_questions(path, split)
    images, _ = placed_images(rows, out.parent, out.parent / "images" / out.stem, True)
    with out.open("w", encoding="utf-8") as file:
        for row, (image,) in zip(rows, images, strict=True):
            asked = {"id": row.id, "prompt": row.prompt, "image": image, "completions": classes}
            file.write(json.dumps({**asked, "solution": row.reference}) + "\n")


def write_labels(choices: Path, out: Path) -> None:
    """Writes lists of the right class of each image against all others, as `rs-rlhf reward` reads them."""
    with out.open("w", encoding="utf-8") as file:
        for asked in map(json.loads, choices.read_text(encoding="utf-8").splitlines()):
            right, classes = asked.pop("solution"), asked.pop("completions")
            wrong = [name for name in classes if name != right]
            file.write(json.dumps({**asked, "chosen": right, "rejected": wrong, "kind": "labels"}) + "\n")


def main() -> None:
    """Writes the subsets, the names of the classes and the declarations of the evaluations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("test", metavar="PATH[:SPLIT]")
    parser.add_argument("out", type=Path)
    parser.add_argument("--limit", type=int, help="images of each half at most, to try the way")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path, split = parse_place(args.test)
    seen = {pixel_hash(row["image"]) for row in load_images(path, split)}
    halves = [pq.read_table(file) for file in sorted(args.data.glob("train-*.parquet"))]
    counts = {}
    for number, table in enumerate(halves):
        images = [{"bytes": row["bytes"]} for row in table["image"].to_pylist()]
        places = [i for i, image in enumerate(images) if pixel_hash(image) not in seen]
        parts = {"learn": places[: args.limit]}
        parts |= {f"learn_{count}": places[:count] for count in CURVE}
        if number:
            random.Random(0).shuffle(places)
            share = 1 if args.limit is None else args.limit / len(places)
            policy, choose = round(POLICY * share), round(CHOOSE * share)
            last = None if args.limit is None else args.limit
            parts = {"policy": places[:policy], "choose": places[policy : policy + choose]}
            parts["pool"] = places[policy + choose : last]
        for name, chosen in parts.items():
            pq.write_table(table.take(sorted(chosen)), args.out / f"{name}.parquet")
            counts[name] = len(chosen)
    about: dict[str, Any] = json.loads(halves[0].schema.metadata[b"huggingface"])["info"]["features"]["label"]
    (args.out / "classes.txt").write_text("\n".join(map(class_name, about["names"])) + "\n", encoding="utf-8")
    for images, place in (("", {"path": Path(path).name, "split": split}), ("choose_", {"path": "choose.parquet"})):
        for task in ("classification", "retrieval"):
            declared = {"title": f"AID scenes, {task}", "source": "images of AID with captions of RSICD"}
            declared |= {"task": task, "layout": "images"} | {key: value for key, value in place.items() if value}
            if task == "classification":
                declared |= {"prompt": LABEL_QUESTION, "max_new_tokens": 12}
                declared["templates"] = ["a satellite photo of {c}.", "a satellite image of {c}"]
            (args.out / f"{images}{task}.yaml").write_text(yaml.safe_dump(declared), encoding="utf-8")
    learned = ["learn", *(f"learn_{count}" for count in CURVE)]
    for name, place in [
        *((name, (str(args.out / f"{name}.parquet"), None)) for name in (*learned, "pool", "choose")),
        ("test", (path, split)),
    ]:
        choices = args.out / f"{name}_choices.jsonl"
        write_choices(choices, *place, [*map(class_name, about["names"])])
        if name in learned:
            write_labels(choices, args.out / f"{name}_labels.jsonl")
    print(", ".join(f"{name} {count}" for name, count in counts.items()))


if __name__ == "__main__":
    main()
