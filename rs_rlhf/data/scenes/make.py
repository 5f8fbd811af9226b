"""Procedural overhead scenes with exact ground truth, for trying out and testing without downloads.

Each scene is a small aerial-looking picture (airport, port, forest, ...) drawn with PIL from a seed, with its class,
five correct captions and the facts behind them. A caption that is true by construction can be damaged in a known way.
Good results here show that the training code works, not that a model reads satellite images.

Left out: photorealism, perspective, georeferencing, several bands, and mixed scenes.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import OptionError
from ...runs.files import replacing
from .painters import PAINTERS, Facts, draw_scene

CLASSES: tuple[str, ...] = tuple(PAINTERS)
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_SPLIT_SEEDS = 500_000  # scene seeds reserved for each split of one data seed
_SUPERSAMPLE = 2  # drawn larger, then reduced: PIL polygons have no anti-aliasing of their own


@dataclass
class Scene:
    """A generated RGB picture with its class, five correct captions, the seed that drew it, and the facts behind them.

    The facts are `object` (singular noun), `count` (`None` where counting makes no sense), `color`, `ground`,
    `has_road`, `has_pond` and `has_trees`.
    """

    image: Image.Image
    label: str
    captions: list[str]
    facts: Facts
    seed: int


def _things(facts: Facts) -> tuple[str, str]:
    """Count, colour and noun as words, and the verb that agrees: `("three white planes", "are")`."""
    noun, color, count = facts["object"], facts["color"], facts["count"]
    if noun == "ground":
        return f"bare {color} ground", "is"
    if count == 1:
        # "one lake" would suggest that there could be two of it; natural features take the article.
        return (f"a {color} {noun}" if noun in ("lake", "river") else f"one {color} {noun}"), "is"
    words = "many" if count is None or count >= len(_NUMBERS) else _NUMBERS[count]
    return f"{words} {color} {noun}s", "are"


def _captions(rng: random.Random, label: str, facts: Facts) -> list[str]:
    _, place, doing = PAINTERS[label]
    things, verb = _things(facts)
    if facts["count"] == 1:
        doing = doing.replace("side by side ", "")
    names = [("has_road", "a road"), ("has_pond", "a pond"), ("has_trees", "some trees")]
    if label == "residential":
        names[0] = ("has_road", "a few straight roads")
    extra = " and ".join(words for key, words in names if facts[key])
    near, plus = (f" near {extra}", f" and {extra}") if extra else ("", "")
    base = f" on {facts['ground']} land" if label not in ("bare land", "port", "forest") else ""
    texts = [
        f"{things} {verb} {doing}{near} .",
        f"there {verb} {things} in {place}{near} .",
        f"an aerial image of {place} with {things}{plus} .",
        f"{things} can be seen in {place}{base} .",
        f"{place} with {things} is seen from above{f' next to {extra}' if extra else ''} .",
        f"this is {place}{base} , where there {verb} {things}{plus} .",
        f"in the picture , {things} {verb} {doing} .",
    ]
    if extra:
        texts.append(f"{extra} {'is' if extra in ('a road', 'a pond') else 'are'} near {things} in {place} .")
    return rng.sample(texts, 5)


def make_scene(seed: int, label: str | None = None, size: int = 112) -> Scene:
    """Draws the scene of a non-negative seed, `size` (at least 32) pixels square, its class too unless given."""
    if size < 32:
        raise OptionError(f"size is {size} pixels; below 32 the counted objects merge: pass size >= 32.")
    rng = random.Random(f"scene:{seed}")
    drawn = rng.choice(CLASSES)
    label = drawn if label is None else label
    if label not in PAINTERS:
        raise OptionError(f"Unknown scene class {label!r}; choose one of: {', '.join(CLASSES)}.")
    noise = np.random.default_rng(seed)
    image, facts = draw_scene(label, rng, size * _SUPERSAMPLE)
    pixels_in = np.asarray(image.resize((size, size), Image.Resampling.BOX), dtype=np.float32)
    cells = Image.fromarray(noise.normal(0, 5.0, (12, 12)).astype(np.float32))
    texture = np.asarray(cells.resize((size, size), Image.Resampling.BICUBIC))  # a smooth field of brightness
    light = (texture + noise.normal(0, 5, (size, size)))[..., None]
    tint = noise.uniform(0.965, 1.035, 3) * noise.uniform(0.88, 1.08)
    final = np.clip(pixels_in * tint + light + noise.uniform(-8, 8), 0, 255).astype(np.uint8)
    return Scene(Image.fromarray(final), label, _captions(rng, label, facts), facts, seed)


def make_scenes(n: int, seed: int = 0, size: int = 112, first: int = 0) -> list[Scene]:
    """Draws `n` scenes, from number `first` of a seed on, whose classes take turns; no two seeds share a scene."""
    base = 2 * _SPLIT_SEEDS * seed + first
    return [make_scene(base + i, CLASSES[i % len(CLASSES)], size) for i in range(n)]


def write_scenes(path: str | Path, n_train: int, n_validation: int, seed: int = 0, size: int = 112) -> None:
    """Writes PNG images and one JSON lines file per split into a folder; no scene is in both splits.

    `train.jsonl` and `validation.jsonl` hold rows `{"image", "label", "captions"}`, `image` being relative to the
    folder. Those that are there go first: their images would be of other scenes.
    """
    root = Path(path)
    for split in ("train", "validation"):
        (root / f"{split}.jsonl").unlink(missing_ok=True)
    for split, n, first in (("train", n_train, 0), ("validation", n_validation, _SPLIT_SEEDS)):
        if n > _SPLIT_SEEDS:
            raise OptionError(f"{split}: {n} scenes asked for; one data seed holds {_SPLIT_SEEDS}: use a second seed.")
        with replacing(root / f"{split}.jsonl") as lines:
            for i, scene in enumerate(make_scenes(n, seed, size, first)):
                name = f"images/{split}/{i + 1:06d}.png"
                with replacing(root / name, "wb", sync=False) as file:
                    scene.image.save(file, "PNG")
                print(json.dumps({"image": name, "label": scene.label, "captions": scene.captions}), file=lines)
