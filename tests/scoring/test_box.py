"""The score model and the policy that come with the package, `reward_models/aid-rsicd-tiny`."""

import json

import pytest
import torch
from helpers import ROOT, data_folder

from rs_rlhf import Scorer, declarations
from rs_rlhf.data.captioned_images import LABEL_QUESTION, class_name, load_images
from rs_rlhf.data.scenes.make import make_scenes
from rs_rlhf.models.policies.load import load_policy
from rs_rlhf.models.profiles import checkpoint_type
from rs_rlhf.scoring.cards import find_card, model_stamp

BOX = ROOT / "reward_models" / "aid-rsicd-tiny"


@pytest.fixture(scope="module")
def box():
    return Scorer.from_pretrained("aid-rsicd-tiny", device="cpu")


def test_it_is_found_by_its_name_in_any_folder(tmp_path, monkeypatch, box):
    monkeypatch.chdir(tmp_path)
    card = find_card("aid-rsicd-tiny")
    assert card.model == str(BOX) and model_stamp("aid-rsicd-tiny") == model_stamp(str(BOX)) is not None
    assert declarations.in_the_box("aid-rsicd-tiny/policy") == str(BOX / "policy")
    for other in ("aid-rsicd-tiny/no", "org/model", ".", "", "../reward_models/aid-rsicd-tiny", str(tmp_path)):
        assert declarations.in_the_box(other) == other
    (tmp_path / "aid-rsicd-tiny" / "policy").mkdir(parents=True)
    assert declarations.in_the_box("aid-rsicd-tiny/policy") == "aid-rsicd-tiny/policy", "one's own folder goes first"


def test_weights_are_small_on_the_disk_and_in_single_precision_in_memory(box):
    files = [path for path in BOX.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 9e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".jinja", ".md"}
    assert {value.dtype for value in box.model.parameters()} == {torch.float32}


def test_scores_are_of_the_image_and_of_the_text(box):
    one, other = (scene.image for scene in make_scenes(2, seed=5))
    texts = ["many planes are parked near a terminal in an airport .", "it is a piece of farmland ."]
    first, second = box.score([one, other], None, [texts, texts])
    assert len({*first, *second}) == 4


def test_held_out_images_get_the_figures_of_the_card(box):
    """On every fifth of the evaluation images the right class is chosen as often as the card says, in its interval."""
    folder = data_folder("aid_rsicd")
    rows = load_images(folder, "validation")[::5]
    for row in rows:
        row["label"] = class_name(row["label"])
    classes = sorted({row["label"] for row in rows})
    scores = box.score([row["image"] for row in rows], [LABEL_QUESTION] * len(rows), [classes] * len(rows))
    best = [classes[max(range(len(classes)), key=own.__getitem__)] for own in scores]
    right = [answer == row["label"] for answer, row in zip(best, rows, strict=True)]
    figures = json.loads((ROOT / "recipes" / "aid-rsicd" / "results" / "box.json").read_text())
    share, spread = figures["choice"]["accuracy"], 3 * (0.25 / len(rows)) ** 0.5
    assert abs(sum(right) / len(right) - share) < spread and share > 0.25  # of 30 classes


def test_its_policy_answers_with_a_class():
    policy, rows = (
        load_policy("aid-rsicd-tiny/policy", device="cpu"),
        load_images(data_folder("aid_rsicd"), "validation"),
    )
    items = [(LABEL_QUESTION, row["image"]) for row in rows[:40]]
    answers = [texts[0] for texts in policy.sample(items, temperature=0, max_new_tokens=12)]
    assert checkpoint_type("aid-rsicd-tiny/policy") == "qwen2_vl"  # by which the profile of its answers is chosen
    assert sum(answer in {class_name(row["label"]) for row in rows} for answer in answers) >= 38
