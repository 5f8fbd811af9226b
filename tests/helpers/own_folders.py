"""Folders as a user may have them: classes, captions, questions or preferences, with drawn tiles."""

import csv
import json

import numpy as np
from PIL import Image

CLASSES = {"Airport": (150, 150, 160), "Dense Forest": (10, 120, 20), "Beach": (200, 190, 120)}


def tile(path, number):
    """Draws a tile of a class; each number is another picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(0, 60, (48, 48, 3))
    pixels = noise + np.array(list(CLASSES.values())[number % 3])
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return list(CLASSES)[number % 3]


def classes(folder, count=30):
    """A folder for each class."""
    for number in range(count):
        tile(folder / list(CLASSES)[number % 3] / f"{number}.png", number)


def captions(folder, count=30):
    """A CSV of captions beside a folder of tiles."""
    rows = []
    for number in range(count):
        name = tile(folder / "tiles" / f"t{number}.png", number)
        rows.append([f"t{number}.png", f"a large {name.lower()} with {number % 4 + 2} roads near the river"])
    with (folder / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "caption"], *rows])


def questions(folder, count=30):
    """A JSON list of questions with answers, beside a folder of tiles."""
    rows = []
    for number in range(count):
        name = tile(folder / "img" / f"q{number}.png", number)
        rows.append({"image": f"q{number}.png", "question": "Is there a beach?", "answer": str(name == "Beach")})
    (folder / "qa.json").write_text(json.dumps(rows))


def preferences(folder, count=30):
    """LLaMA-Factory's pairs."""
    rows = []
    for number in range(count):
        name = tile(folder / "images" / f"p{number}.png", number)
        asked = [{"from": "human", "value": "<image>Describe the scene."}]
        texts = {"chosen": f"a {name.lower()} seen from above .", "rejected": "a cat on a sofa ."}
        said = {key: {"from": "gpt", "value": text} for key, text in texts.items()}
        rows.append({"conversations": asked, **said, "images": [f"images/p{number}.png"]})
    (folder / "dpo.json").write_text(json.dumps(rows))


FOLDERS = {"classes": classes, "captions": captions, "questions": questions, "preferences": preferences}
