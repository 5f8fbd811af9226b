"""Scenes: exact, reproducible, balanced, and their captions say what the facts say."""
# ruff: noqa: D103 - the names of the tests say it

import json
import re
import time

import numpy as np
import pytest
from PIL import Image

from rs_rlhf.data.scenes.make import CLASSES, make_scene, make_scenes, write_scenes

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def test_same_seed_same_scene():
    first, again, other = make_scene(3), make_scene(3), make_scene(4)
    assert (first.label, first.captions, first.facts) == (again.label, again.captions, again.facts)
    assert np.array_equal(np.asarray(first.image), np.asarray(again.image))
    assert not np.array_equal(np.asarray(first.image), np.asarray(other.image))


def test_a_known_scene_stays_as_it_is():
    # Recipes and measured results rest on these scenes: a change here changes them all.
    scene = make_scene(7, "port")
    assert scene.facts == {
        "object": "ship",
        "count": 7,
        "color": "white",
        "ground": "brown",
        "has_road": True,
        "has_pond": True,
        "has_trees": False,
    }
    assert scene.captions[0] == "in the picture , seven white ships are moored at a pier of a port ."
    assert scene.image.size == (112, 112) and scene.image.mode == "RGB"


@pytest.mark.parametrize("label", CLASSES)
def test_captions_agree_with_facts(label):
    words = {"parking": "parking", "residential": "residential", "industrial": "industrial"}.get(label, label)
    for seed in range(30):
        scene = make_scene(seed, label, size=32)
        facts = scene.facts
        assert len(set(scene.captions)) == 5
        for caption in scene.captions:
            assert words in caption and facts["color"] in caption, caption
            said = set(re.findall("|".join(rf"\b{n}\b" for n in NUMBERS), caption))
            countable = facts["object"] not in ("lake", "river") and (facts["count"] or 99) <= 10
            assert said == ({NUMBERS[facts["count"]]} if countable else set()), caption
            for key, word in (("has_pond", "a pond"), ("has_trees", "some trees")):
                assert facts[key] or word not in caption, caption
            assert facts["has_road"] or not re.search(r"\broads?\b", caption), caption


@pytest.mark.parametrize(("label", "colour"), [("port", "orange"), ("airport", "blue"), ("industrial", "red")])
def test_the_counted_colour_is_in_the_picture(label, colour):
    reference = {"orange": (216, 130, 56), "blue": (58, 104, 186), "red": (188, 62, 50)}[colour]
    scenes = [s for s in (make_scene(seed, label) for seed in range(40)) if s.facts["color"] == colour]
    assert scenes
    for scene in scenes:
        distance = np.abs(np.asarray(scene.image).astype(int) - reference).sum(-1)
        assert (distance < 110).sum() > 20


def test_every_fact_varies_and_classes_are_balanced():
    scenes = make_scenes(120, seed=1, size=32)
    assert {label: [s.label for s in scenes].count(label) for label in CLASSES} == dict.fromkeys(CLASSES, 10)
    for key in ("has_road", "has_pond", "has_trees"):
        assert {s.facts[key] for s in scenes} == {True, False}
    assert len({s.facts["count"] for s in scenes}) > 6


def test_write_scenes(tmp_path):
    write_scenes(tmp_path, 12, 6, seed=2, size=48)
    seen = set()
    for split, n in (("train", 12), ("validation", 6)):
        rows = [json.loads(line) for line in (tmp_path / f"{split}.jsonl").read_text().splitlines()]
        assert len(rows) == n and rows[0]["image"] == f"images/{split}/000001.png"
        for row in rows:
            assert sorted(row) == ["captions", "image", "label"]
            with Image.open(tmp_path / row["image"]) as image:
                assert image.size == (48, 48)
                seen.add(image.tobytes())
    assert len(seen) == 18  # no scene twice, within or across splits


def test_wrong_arguments_say_what_to_do():
    with pytest.raises(ValueError, match="Unknown scene class 'harbour'; choose one of: airport"):
        make_scene(0, "harbour")
    with pytest.raises(ValueError, match="pass size >= 32"):
        make_scene(0, size=16)


def test_fast_enough():
    start = time.perf_counter()
    make_scenes(24)
    assert time.perf_counter() - start < 2  # 600 scenes/s on one idle core; loose, for busy machines
