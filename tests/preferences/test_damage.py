"""Preference pairs: each kind is what it says, and nothing is lost silently."""
# ruff: noqa: D103 - the names of the tests say it

import json
import os
import random
import subprocess
import sys
from collections import Counter

import pytest
from helpers import ROOT, data_folder

from rs_rlhf.data.captioned_images import load_images
from rs_rlhf.data.scenes.make import make_scenes
from rs_rlhf.errors import DataError, OptionError
from rs_rlhf.preferences.damage import KINDS, PROMPTS, build_pairs, class_name, damage_attribute, near_equal


@pytest.fixture(scope="module")
def rows():
    scenes = make_scenes(96, seed=3, size=32)
    return [
        {"image": f"{i}.png", "id": f"{i}", "label": s.label, "captions": s.captions} for i, s in enumerate(scenes)
    ]


def check(rows, pairs):
    """Every pair is of its kind, whatever the data."""
    by_id = {row["id"]: row for row in rows}
    for pair in pairs:
        row = by_id[pair["id"].rsplit("#", 1)[0]]
        chosen, rejected, kind = pair["chosen"], pair["rejected"], pair["kind"]
        assert pair["prompt"] == PROMPTS[kind] and pair["image"] == row["image"]
        if kind == "wrong_label":
            lender = by_id[pair["rejected_from"]]
            assert class_name(row["label"]) in chosen and class_name(lender["label"]) in rejected
            assert chosen.replace(class_name(row["label"]), class_name(lender["label"])) == rejected
            continue
        assert chosen in [caption.strip() for caption in row["captions"]]
        if kind in ("another_class", "same_class"):
            lender = by_id[pair["rejected_from"]]
            assert (lender["label"] == row["label"]) == (kind == "same_class") and lender is not row
            assert rejected in [caption.strip() for caption in lender["captions"]]
            assert not any(near_equal(rejected, caption) for caption in row["captions"])
        if kind == "attribute":
            a, b = chosen.lower().split(), rejected.lower().split()
            changed = [(x, y) for x, y in zip(a, b, strict=True) if x != y]
            assert sum(x not in ("a", "an") for x, _ in changed) == 1 and len(changed) <= 2
        if kind == "truncated":
            assert len(rejected.split()) <= 9 and rejected != chosen


def test_every_kind_is_what_it_says(rows):
    stats = {}
    pairs = list(build_pairs(rows, stats=stats))
    check(rows, pairs)
    assert set(stats["made"]) == set(KINDS)
    assert sum(stats["made"].values()) == len(pairs) and stats["made"] + stats["skipped"] == dict.fromkeys(KINDS, 96)
    assert len({pair["id"] for pair in pairs}) == len(pairs)


def test_every_kind_on_real_captions():
    aid_rows = load_images(data_folder("aid_rsicd"), "validation")[:200]
    stats = {}
    pairs = list(build_pairs(aid_rows, stats=stats))
    check(aid_rows, pairs)
    assert stats["made"]["another_class"] == stats["made"]["wrong_label"] == stats["made"]["truncated"] == 200
    assert min(stats["made"]["attribute"], stats["made"]["same_class"]) > 150


def test_same_seed_same_pairs_in_any_process(rows):
    pairs = list(build_pairs(rows[:24]))
    assert pairs == list(build_pairs(rows[:24])) != list(build_pairs(rows[:24], seed=1))
    code = (
        "import json, sys; from rs_rlhf.preferences.damage import build_pairs\n"
        "print(json.dumps(list(build_pairs(json.load(sys.stdin)))))"
    )
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(rows[:24]), env=env, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == pairs


def test_more_rows_leave_the_choices_within_an_image_alone(rows):
    few, more = (
        {p["id"]: (p["kind"], p["chosen"]) for p in build_pairs(part, kinds=["truncated"], pairs_per_image=2)}
        for part in (rows[:40], rows)
    )
    assert few.items() <= more.items()


def test_wrong_classes_are_as_frequent_as_right_ones():
    names = [label for label, n in (("Port", 60), ("River", 120), ("Forest", 180), ("Pond", 240)) for _ in range(n)]
    rows = [{"image": f"{i}.png", "label": label} for i, label in enumerate(names)]
    pairs = list(build_pairs(rows, kinds=["wrong_label"], pairs_per_image=1))
    rejected = Counter(rows[int(pair["rejected_from"][:-4])]["label"] for pair in pairs)
    # A class cannot stand in for itself, so the largest loses a little; uniform drawing would give 150 each.
    assert rejected["Port"] < rejected["River"] < rejected["Forest"] <= rejected["Pond"] + 30
    assert rejected["Port"] < 110


def test_rows_that_cannot_serve_are_counted():
    rows = [{"image": "a.png", "label": "Port"}, {"image": "b.png", "caption": "it is the same ."}]
    stats = {}
    pairs = list(build_pairs(rows, stats=stats))
    assert [pair["kind"] for pair in pairs] == ["truncated"]
    assert stats["skipped"] == {
        "another_class": 2,
        "same_class": 2,
        "attribute": 2,
        "wrong_label": 2,
        "truncated": 1,
    }


@pytest.mark.parametrize(
    ("caption", "said", "expected"),
    [
        ("two planes are parked .", [], {"number", "object"}),
        ("houses on two sides of it .", [], set()),
        ("a green lake .", ["the water is blue"], {"color", "object"}),
        ("a few people .", [], set()),
        ("a river bank .", [], set()),
    ],
)
def test_only_what_can_be_wrong_is_damaged(caption, said, expected):
    made = {damage_attribute(caption, [caption, *said], random.Random(seed)) for seed in range(60)}
    if not expected:
        assert made == {None}
        return
    changed = {tuple(sorted({*text.split()} ^ {*caption.split()})) for text in made}
    assert caption not in made and len(changed) >= len(expected)
    assert not any("blue" in text for text in made)


def test_articles_follow_the_new_word():
    texts = {damage_attribute("A lake is near .", ["A lake is near ."], random.Random(seed)) for seed in range(80)}
    assert "An airport is near ." in texts and "A church is near ." in texts
    assert not any(text.startswith("A airport") for text in texts)


def test_class_name():
    labels = ["BareLand", "StorageTanks", "dense_residential", "Port", "baseball field", "Sea-Ice"]
    assert [class_name(x) for x in labels] == [
        "bare land",
        "storage tanks",
        "dense residential",
        "port",
        "baseball field",
        "sea ice",
    ]


def test_near_equal():
    assert near_equal("A river is near the road.", "a river is near a  road .")
    assert not near_equal("a river is near a road", "a lake is near a road")


@pytest.mark.parametrize(
    ("row", "key", "message"),
    [
        ({"caption": "x"}, "image", "no `image`"),
        ({"image": "a.png"}, "captions", "neither `captions` nor `label`"),
        ({"image": "a.png", "captions": "x"}, "captions", "must be a list of strings"),
        ({"image": "a.png", "label": 3}, "label", "map numbers to names first"),
    ],
)
def test_bad_rows_say_what_is_wrong(row, key, message):
    with pytest.raises(DataError, match=message) as error:
        list(build_pairs([row]))
    assert error.value.key == key and error.value.where == "Row 0"


def test_unknown_kind_names_the_nearest():
    with pytest.raises(OptionError, match="choose from: another_class.*Did you mean 'attribute'") as error:
        next(build_pairs([], kinds=["atribute"]))
    assert error.value.key == "kinds"
