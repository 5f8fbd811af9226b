"""Merging of LoRA adapters: the same scores and logits as the adapter on its base, and what is refused."""

import json
import shutil

import pytest
import torch
from helpers import picture
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor

from rs_rlhf import GroupCollator, ScoreModel, Scorer, make_group
from rs_rlhf.cli.main import run
from rs_rlhf.errors import ModelError, OptionError

TEXTS = ["a river runs through a forest.", "two planes."]


def adapter_of(model, folder, base, **config):
    """Saves an adapter with random weights; returns it on its base."""
    torch.manual_seed(0)
    lora = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj", "up_proj"], r=4, **config))
    for name, weight in lora.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            torch.nn.init.normal_(weight, std=0.3)
    lora.peft_config["default"].base_model_name_or_path = str(base)
    lora.save_pretrained(folder)
    return lora.eval()


@pytest.fixture
def score_adapter(score_model_path, tmp_path):
    model = ScoreModel.from_pretrained(score_model_path)
    return adapter_of(model, tmp_path / "adapter", score_model_path, modules_to_save=["reward_head"])


def test_a_merged_score_model_gives_the_scores_of_the_adapter(score_adapter, score_model_path, tmp_path, capsys):
    run("merge", [str(tmp_path / "adapter"), str(tmp_path / "merged")])
    assert capsys.readouterr().out.startswith("score model of ")
    groups = [make_group("What is there?", TEXTS, picture(1))]
    batch = GroupCollator(AutoProcessor.from_pretrained(score_model_path))(groups)
    base, merged = (ScoreModel.from_pretrained(path).eval() for path in (score_model_path, tmp_path / "merged"))
    with torch.no_grad():
        expected = score_adapter(**batch).scores
        torch.testing.assert_close(merged(**batch).scores, expected, atol=1e-4, rtol=0)
        assert not torch.allclose(base(**batch).scores, expected, atol=1e-2)
    scorer = Scorer.from_pretrained(str(tmp_path / "merged"))  # it has its processor
    scores = scorer.score(images=[picture(1)], prompts=["What is there?"], completions=[TEXTS])[0]
    assert scores == pytest.approx(expected[0].tolist(), abs=1e-3)


def test_a_merged_policy_gives_the_logits_of_the_adapter(tiny_vlm, tmp_path):
    adapted = adapter_of(AutoModelForImageTextToText.from_pretrained(tiny_vlm), tmp_path / "adapter", tiny_vlm)
    run("merge", [str(tmp_path / "adapter"), str(tmp_path / "merged"), "--dtype", "float32"])
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()
    ids = AutoProcessor.from_pretrained(tmp_path / "merged").tokenizer("a river .", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(merged(**ids).logits, adapted(**ids).logits, atol=1e-4, rtol=0)
    assert not isinstance(merged, PeftModel) and not (tmp_path / "merged" / "adapter_config.json").exists()
    with safe_open(tmp_path / "merged" / "model.safetensors", "pt") as file:
        assert not any("lora" in name for name in file.keys())  # noqa: SIM118


@pytest.mark.parametrize("other", ["whole", "nothing", "prompt", "headless"])
def test_what_is_no_adapter_is_refused(other, score_adapter, score_model_path, tmp_path):
    place = tmp_path / "adapter"
    if other == "prompt":
        config = json.loads((place / "adapter_config.json").read_text())
        (place / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "PROMPT_TUNING"}))
    elif other == "headless":
        (place / "adapter_model.safetensors").unlink()
    else:
        shutil.rmtree(place)
        shutil.copytree(score_model_path, place) if other == "whole" else place.mkdir()
    with pytest.raises(ModelError) as error:
        run("merge", [str(place), str(tmp_path / "merged")])
    assert (error.value.key, error.value.where) == ("adapter", str(place)) and not (tmp_path / "merged").exists()


def test_an_output_in_use_and_an_adapter_that_is_not_there_are_refused(score_adapter, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    for arguments, key in (([tmp_path / "adapter", tmp_path / "used"], "output"), ([tmp_path / "x", "y"], "adapter")):
        with pytest.raises(OptionError) as error:
            run("merge", [*map(str, arguments)])
        assert error.value.key == key
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["notes.txt"]
