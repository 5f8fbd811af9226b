"""Grounding through `eval run`: a policy that writes perfect boxes in its own form and unit is measured as perfect."""

import json

import pytest
from helpers import picture
from helpers.benchmark_files import write
from helpers.box_writers import FORMS, write_box

from rs_rlhf.cli import main as cli
from rs_rlhf.errors import OptionError
from rs_rlhf.evaluation.evaluate import evaluate
from rs_rlhf.evaluation.options import EvalOptions
from rs_rlhf.models.policies import load
from rs_rlhf.models.policies.endpoint import EndpointPolicy
from rs_rlhf.models.policies.qwen_vl import QwenVLPolicy
from rs_rlhf.models.profiles import load_profile
from rs_rlhf.models.tiny_vlm import save_tiny_vlm
from rs_rlhf.runs.files import read_lines

SIZES = [(300, 200), (120, 260), (84, 56), (640, 512)]
BOXES = [(30.0, 20.0, 150.0, 100.0), (12.0, 26.0, 96.0, 208.0), (21.0, 14.0, 63.0, 42.0), (64.0, 64.0, 576.0, 320.0)]
BUDGET = {"min_pixels": 56 * 56, "max_pixels": 12 * 28 * 28}  # most pictures are made smaller


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    rows = []
    for i, ((width, height), box) in enumerate(zip(SIZES, BOXES, strict=True)):
        picture(i, width, height).save(root / f"{i}.png")
        rows.append({"id": f"q{i}", "image": f"{i}.png", "prompt": f"ship {i}", "boxes": [box]})
    write(root / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    prompt = "task: grounding\nprompt: Where is {object}? {box_request}\n"
    write(root / "boxes.yaml", f"title: Boxes\nsource: drawn here\nlayout: rows\npath: rows.jsonl\n{prompt}")
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {family: save_tiny_vlm(folder / family, family=family) for family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")}


def answering(name, monkeypatch, policy=QwenVLPolicy, seen=None):
    """Lets policies write perfect boxes of a profile; everything else of them is as it is."""

    def answers(self, groups, places, sampling):
        texts = []
        for i in places:
            number = int(groups[i].images[0].rsplit("/")[-1].removesuffix(".png"))
            size = seen(SIZES[number]) if seen else self.pixels(groups[i])[0]
            texts.append([write_box(name, BOXES[number], SIZES[number], size)])
        return texts

    monkeypatch.setattr(policy, "_answers", answers)


def options(data, out, model, **more):
    given = {"task": str(data / "boxes.yaml"), "data_root": str(data), "out": out, **more}
    return EvalOptions(model=str(model), **given)


def measured(out):
    return json.loads((out / "results.json").read_text())["tasks"]["boxes"]


@pytest.mark.parametrize(
    ("family", "name"), [("qwen2_vl", "qwen2-vl"), ("qwen2_5_vl", "qwen2.5-vl"), ("qwen3_vl", "qwen3-vl")]
)
def test_perfect_boxes_of_a_known_type_are_perfect_at_any_pixel_budget(
    family, name, data, models, tmp_path, monkeypatch
):
    answering(name, monkeypatch)
    argv = ["eval", "--model", models[family], "--task", data / "boxes.yaml", "--data_root", data, "--out", tmp_path]
    budget = [text for key, value in BUDGET.items() for text in (f"--{key}", value)]
    assert cli.main([*map(str, argv), *map(str, budget)]) == 0
    task = measured(tmp_path)
    assert task["profile"] == name and task["metrics"]["mean_iou"] > 0.95 and task["accuracy"] == 1
    assert task["parse_failures"] == 0 and task["unreadable"] == {}
    said = read_lines(tmp_path / "samples_boxes.jsonl")
    assert said[0]["prompt"] == f"Where is ship 0? {load_profile(name).request}"
    assert any(one["pixels"] != list(size) for one, size in zip(said, SIZES, strict=True))


@pytest.mark.parametrize("name", FORMS)
def test_perfect_boxes_of_every_profile_are_perfect(name, data, models, tmp_path, monkeypatch):
    answering(name, monkeypatch)
    list(evaluate(options(data, tmp_path, models["qwen2_vl"], profile=name)))
    task = measured(tmp_path)
    assert task["profile"] == name and task["metrics"]["mean_iou"] > 0.9 and task["unreadable"] == {}


def test_boxes_in_another_models_way_are_unreadable_or_wrong_and_counted(data, models, tmp_path, monkeypatch, capsys):
    answering("geochat", monkeypatch)
    list(evaluate(options(data, tmp_path / "form", models["qwen2_vl"])))
    assert measured(tmp_path / "form")["unreadable"] == {"no box in its form": 4}
    answering("qwen2-vl", monkeypatch)
    list(evaluate(options(data, tmp_path / "unit", models["qwen2_vl"], profile="fractions")))
    task = measured(tmp_path / "unit")
    assert task["parse_failures"] == 1 and sum(task["unreadable"].values()) == 4
    assert "unreadable (no box in its form) 4" in (tmp_path / "unit" / "results.md").read_text()


def test_another_profile_is_another_question_but_the_same_one_is_judged_anew(data, models, tmp_path, monkeypatch):
    answering("qwen2-vl", monkeypatch)
    list(evaluate(options(data, tmp_path, models["qwen2_vl"])))
    with pytest.raises(OptionError, match="box_request was"):
        list(evaluate(options(data, tmp_path, models["qwen2_vl"], profile="qwen3-vl")))
    mine = {
        "title": "t",
        "unit": "pixel",
        "forms": ["pairs"],
        "source": "s",
        "request": load_profile("qwen2-vl").request,
    }
    monkeypatch.setattr(QwenVLPolicy, "_answers", lambda *_: pytest.fail("the model was asked again"))
    list(evaluate(options(data, tmp_path, models["qwen2_vl"], profile=str(write(tmp_path / "mine.yaml", mine)))))
    assert measured(tmp_path)["profile"] == "mine" and measured(tmp_path)["metrics"]["mean_iou"] < 0.5


def test_a_model_whose_way_of_boxes_is_not_known_is_not_asked(data, tmp_path, monkeypatch):
    monkeypatch.setattr(load, "load_policy", lambda *_, **__: pytest.fail("the model was loaded"))
    other = write(tmp_path / "bert" / "config.json", {"model_type": "bert"}).parent
    for model in (str(other), "http://localhost:1/v1"):
        with pytest.raises(OptionError, match="give the name of one") as error:
            list(evaluate(options(data, tmp_path / "out", model)))
        assert error.value.key == "profile"
    assert not (tmp_path / "out").exists()


def test_what_a_server_makes_of_an_image_is_that_of_the_profile(data, tmp_path, monkeypatch):
    seen = load_profile("qwen2.5-vl").seen_size
    answering("qwen2.5-vl", monkeypatch, EndpointPolicy, seen)
    list(evaluate(options(data, tmp_path, "m", endpoint="http://localhost:1/v1", profile="qwen2.5-vl")))
    task = measured(tmp_path)
    assert task["profile"] == "qwen2.5-vl" and task["metrics"]["mean_iou"] > 0.95


def test_a_benchmark_of_words_needs_no_profile_and_names_that_of_the_type(models, tmp_path, monkeypatch):
    picture(0).save(tmp_path / "0.png")
    write(
        tmp_path / "rows.jsonl", json.dumps({"id": "a", "image": "0.png", "prompt": "Ship?", "solution": "yes"}) + "\n"
    )
    write(tmp_path / "asked.yaml", "title: t\nsource: s\ntask: vqa\nlayout: rows\npath: rows.jsonl\n")
    monkeypatch.setattr(QwenVLPolicy, "_answers", lambda self, groups, places, sampling: [["yes"] for _ in places])
    given = {"task": str(tmp_path / "asked.yaml"), "data_root": str(tmp_path), "out": tmp_path / "out"}
    list(evaluate(EvalOptions(model=str(models["qwen2_vl"]), **given)))
    task = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]["asked"]
    assert task["profile"] == "qwen2-vl" and "box_request" not in task["settings"]
