"""Profiles: every one loads, reads back what its model writes at any image size, and is found by the model's type."""

import json

import pytest
from helpers import CASES, ROOT
from helpers.benchmark_files import write
from helpers.box_writers import FORMS, in_unit, write_box
from hypothesis import given, settings
from hypothesis import strategies as st

from rs_rlhf import declarations, make_group
from rs_rlhf.data.group import prompt_text
from rs_rlhf.errors import DeclarationError, ImageError, ModelError, OptionError
from rs_rlhf.evaluation import benchmark
from rs_rlhf.metrics.boxes import iou
from rs_rlhf.models.profiles import (
    TASKS,
    Profile,
    checkpoint_type,
    load_profile,
    model_profile,
    processor_budget,
    profile_of_type,
)

NAMES = declarations.names("eval/profiles")
PLAIN = {"title": "t", "unit": "0-1000", "forms": ["brackets"], "request": "Where?", "source": "here"}


def test_profiles_are_no_benchmarks_and_all_have_a_writer():
    assert NAMES and set(NAMES) == set(FORMS)
    assert not any("profiles" in name for name in declarations.names("eval"))


@pytest.mark.parametrize("name", NAMES)
def test_every_profile_loads_and_is_in_the_readme(name):
    profile = load_profile(name)
    assert profile.name == name and f"--profile {name} " in (ROOT / f"eval/profiles/{name}.yaml").read_text()
    assert f"`{name}`" in (ROOT / "eval" / "README.md").read_text()


def test_a_type_of_model_has_one_profile():
    types = [kind for name in NAMES for kind in load_profile(name).model_types]
    assert len(set(types)) == len(types) and "" not in types
    expected = {"qwen2_vl": "qwen2-vl", "qwen2_5_vl": "qwen2.5-vl", "qwen3_vl": "qwen3-vl", "internvl": "internvl"}
    assert {kind: profile_of_type(kind).name for kind in expected} == expected
    assert profile_of_type("bert") is None and profile_of_type(None) is None


def test_tasks_are_those_of_models_that_answer_in_words():
    assert set(TASKS) == {task for task, kinds in benchmark.TASKS.items() if "vlm" in kinds}


@pytest.mark.parametrize("case", json.loads((CASES / "boxes.json").read_text()), ids=lambda case: case["output"])
def test_golden_boxes(case):
    width, height = case["size"]
    boxes, unreadable = load_profile(case["profile"]).read(case["output"], case["size"], case["seen_size"])
    assert unreadable is None
    assert [(x1 * width, y1 * height, x2 * width, y2 * height) for x1, y1, x2, y2 in boxes] == [
        pytest.approx(case["box"])
    ]


sides = st.integers(28, 5000)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(sides, sides),
    shares=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    budget=st.sampled_from([None, (28, 3136, 401408), (32, 65536, 2**24)]),
)
def test_what_a_model_writes_is_read_back_at_any_size(name, size, shares, budget):
    profile = load_profile(name)
    try:
        seen = profile.seen_size(size, budget or (28, 3136, 12845056))
    except ImageError:  # too long and thin
        return
    (x1, x2), (y1, y2) = sorted(shares[:2]), sorted(shares[2:])
    x1, y1 = max(0, min(x1, x2 - 0.1)), max(0, min(y1, y2 - 0.1))  # a tenth of a side at least
    right = (x1 * size[0], y1 * size[1], max(x2, 0.1) * size[0], max(y2, 0.1) * size[1])
    (a, b, c, d), usual = in_unit(name, right, size, seen)
    steps = (
        (c - a) * 10**usual,
        (d - b) * 10**usual,
    )  # its sides; rounding moves an edge by half a step
    rounded = max(0, steps[0] - 1) * max(0, steps[1] - 1) / ((steps[0] + 1) * (steps[1] + 1))
    for digits, least in ((6, 0.98), (None, rounded - 1e-6)):
        boxes, unreadable = profile.read(write_box(name, right, size, seen, digits), size, seen)
        assert unreadable is None and len(boxes) == 1
        ((a, b, c, d),) = boxes
        assert iou((a * size[0], b * size[1], c * size[0], d * size[1]), right) > least


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30, deadline=None)
@given(text=st.text(alphabet="0123456789.,-%<>()[]{}| \n:bo_2dxe'", max_size=60))
def test_any_text_is_read_or_says_why_not(name, text):
    boxes, unreadable = load_profile(name).read(text, (640, 480), (644, 476))
    assert bool(boxes) == (unreadable is None)
    assert all(0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1 for x1, y1, x2, y2 in boxes)


def test_the_resized_image_is_that_of_the_budget_else_of_the_declaration():
    profile = load_profile("qwen2.5-vl")
    assert profile.seen_size((800, 600)) == (812, 588)
    assert profile.seen_size((800, 800), (28, 3136, 616 * 616)) == (616, 616)
    text = '{"bbox_2d": [77, 77, 154, 154]}'
    assert profile.read(text, (800, 800), (616, 616))[0] == [pytest.approx((0.125, 0.125, 0.25, 0.25))]
    assert profile.read(text, (800, 800))[0] == [pytest.approx([77 / 812, 77 / 812, 154 / 812, 154 / 812])]
    with pytest.raises(OptionError) as error:
        profile.read(text, None)
    assert error.value.key == "size"


def test_a_question_is_asked_in_the_models_way_and_the_row_stays_as_it_is():
    user = {"role": "user", "content": "Where? {box_request}"}
    asked = make_group([{"role": "system", "content": "Be brief."}, user], [])
    told = Profile(**PLAIN | {"request": "As a box.", "prefixes": {"grounding": "[refer] "}})
    assert prompt_text(told.ask(asked, "grounding").prompt) == "Be brief.\n[refer] Where? As a box."
    assert prompt_text(told.ask(asked, "vqa").prompt) == "Be brief.\nWhere? As a box."
    assert prompt_text(asked.prompt).endswith("{box_request}")
    assert told.asks("grounding") == {"prefix": "[refer] ", "box_request": "As a box."} and told.asks("vqa") == {}
    geochat = load_profile("geochat").ask(make_group("Where is a ship? {box_request}", [], "a.png"), "grounding")
    assert prompt_text(geochat.prompt) == "[refer] Where is a ship?" and len(geochat.images) == 1


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"unit": "percent"}, "unit"),
        ({"unit": 1}, "unit"),
        ({"forms": ["bracket"]}, "forms"),
        ({"forms": []}, "forms"),
        ({"forms": "brackets"}, "forms"),
        ({"prefixes": {"grouding": "[refer] "}}, "prefixes"),
        ({"model_types": [2]}, "model_types"),
        ({"unit": "pixel of the resized image"}, "resize"),
        ({"unit": "pixel of the resized image", "resize": {"factor": 28}}, "resize"),
        ({"resize": {"factor": 28, "min_pixels": 1, "max_pixels": 9}}, "resize"),
        ({"request": None}, "request"),
    ],
)
def test_a_profile_that_cannot_be_meant_is_refused_by_its_key(tmp_path, change, key):
    file = write(tmp_path / "mine.yaml", PLAIN | change)  # JSON is YAML
    with pytest.raises(DeclarationError) as error:
        load_profile(str(file))
    assert error.value.key == key and error.value.where == str(file)


def test_a_profile_of_ones_own_is_named_by_its_file(tmp_path):
    assert load_profile(str(write(tmp_path / "mine.yaml", PLAIN))).name == "mine"


def test_the_profile_given_wins_over_that_of_the_type(tiny_vlm, tmp_path):
    assert model_profile(str(tiny_vlm)).name == "qwen2-vl"
    assert model_profile(str(tiny_vlm), "geochat").name == "geochat"
    assert model_profile("http://localhost:8000/v1") is None and model_profile("m", None, "http://here") is None
    write(tmp_path / "adapter" / "adapter_config.json", {"base_model_name_or_path": str(tiny_vlm)})
    assert checkpoint_type(str(tmp_path / "adapter")) == "qwen2_vl"
    other = write(tmp_path / "other" / "config.json", {"model_type": "geochat"}).parent
    assert checkpoint_type(str(other)) == "geochat"
    with pytest.raises(ModelError):
        checkpoint_type(str(tmp_path / "nothing"))


def test_the_budget_of_a_processor(tiny_vlm):
    from transformers import AutoProcessor

    assert processor_budget(AutoProcessor.from_pretrained(tiny_vlm)) == (28, 56 * 56, 12 * 28 * 28)
    assert processor_budget(None) is None and processor_budget(object()) is None
