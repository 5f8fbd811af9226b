"""Named score models: what a name means, and what a card says."""

import json

import pytest

from rs_rlhf import ImageOptions
from rs_rlhf.errors import DeclarationError, ImageError
from rs_rlhf.scoring.cards import RewardModelCard, find_card, model_stamp


def test_names_are_found_and_near_misses_explained(tmp_path):
    card = find_card("scorers-7b")
    assert card.positions == "sequential" and card.licence
    with pytest.raises(DeclarationError, match="did you mean 'scorers-7b'"):
        find_card("scorers-7")
    (tmp_path / "x.yaml").write_text(json.dumps({"model": "a/b", "licence": "MIT", "recipe": "r", "prompt_from": "x"}))
    with pytest.raises(DeclarationError, match="unknown key 'prompt_from'; did you mean 'prompt_form'"):
        find_card(str(tmp_path / "x.yaml"))


def test_a_stamp_is_of_the_files_whatever_the_model_is_called(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"12")
    (tmp_path / "x.yaml").write_text(json.dumps({"model": str(folder), "licence": "MIT", "recipe": "r"}))
    stamp = model_stamp(str(folder))
    assert stamp is not None and model_stamp(str(tmp_path / "x.yaml")) == stamp
    (folder / "model.safetensors").write_bytes(b"13")
    assert model_stamp(str(tmp_path / "x.yaml")) == model_stamp(str(folder)) != stamp
    assert model_stamp("org/hub-id") is None and model_stamp(None) is None


def test_a_named_model_says_how_its_images_are_read():
    card = RewardModelCard("m", "MIT", "r", bands=[4, 3, 2], stretch="percentile", stretch_range=[1, 99], nodata=0)
    options = card.image_options()
    assert (options.bands, options.stretch_range, options.nodata) == ((4, 3, 2), (1, 99), 0)
    sensors = {"s1": {"path": "s1/*", "bands": [1]}}
    radar = RewardModelCard("m", "MIT", "r", sensors=sensors)
    assert radar.image_options() == ImageOptions(sensors=sensors)
    assert not radar.image_options(ImageOptions(bands=(1,))).sensors  # what is given holds for all images
    given = card.image_options(ImageOptions(image_root="x", bands=(1,), stretch="fixed", stretch_range=(0, 5)))
    assert (given.image_root, given.bands, given.stretch, given.stretch_range) == ("x", (1,), "fixed", (0, 5))
    with pytest.raises(ImageError, match="`bands` takes one or three"):
        RewardModelCard("m", "MIT", "r", bands=[4, 3])
