"""The one loader of what scores."""

import json
import shutil

import pytest
import torch

from rs_rlhf import ImageOptions, RemoteScorer, Scorer
from rs_rlhf.errors import OptionError
from rs_rlhf.runs.files import differences
from rs_rlhf.scoring.baselines import LengthScorer, RandomScorer
from rs_rlhf.scoring.load import ScorerOptions, load_scorer, scorer_settings, token_counter


def test_each_kind_of_scorer_is_loaded(score_model_path):
    assert isinstance(load_scorer(ScorerOptions(scorer="length")), LengthScorer)
    assert load_scorer(ScorerOptions(scorer="random", seed=3)) == RandomScorer(3)
    remote = load_scorer("http://127.0.0.1:9", ImageOptions(bands=(1,)), retries=0)
    assert isinstance(remote, RemoteScorer) and (remote.retries, remote.image_options.bands) == (0, (1,))
    by_name = load_scorer(score_model_path, device="cpu", prompt_form="user-turn", token_budget=7)
    options = ScorerOptions(model=score_model_path, prompt_form="user-turn", token_budget=7)
    for scorer in (by_name, load_scorer(options, device="cpu")):
        assert isinstance(scorer, Scorer)
        assert (scorer.collator.prompt_form, scorer.token_budget) == ("user-turn", 7)


def test_weights_keep_the_dtype_of_the_checkpoint(score_model_path, tmp_path):
    from transformers import AutoProcessor

    low = load_scorer(score_model_path, device="cpu", dtype="bfloat16")
    low.model.save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(score_model_path).save_pretrained(tmp_path)
    assert load_scorer(str(tmp_path), device="cpu").model.dtype == low.model.dtype == torch.bfloat16
    assert load_scorer(score_model_path, device="cpu").model.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"scorer": "clip"}, "model"),
        ({"scorer": "length", "model": "m"}, "model"),
        ({"scorer": "clip", "model": "m", "prompt_form": "user-turn"}, "prompt_form"),
        ({"model": "m", "seed": 1}, "seed"),
        ({"model": "m", "token_budget": 0}, "token_budget"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, key):
    with pytest.raises(OptionError) as error:
        ScorerOptions(**options).check()
    assert error.value.key == key


def test_settings_hold_what_a_score_depends_on(score_model_path):
    reading = ImageOptions(bands=(3, 2, 1))
    settings = scorer_settings(ScorerOptions(model=score_model_path), reading)
    assert (settings["prompt_form"], settings["bands"]) == ("question-answer", (3, 2, 1)) and settings["model_stamp"]
    assert settings == scorer_settings(
        ScorerOptions(model=score_model_path, token_budget=9), ImageOptions(bands=(3, 2, 1))
    )
    sensors = ImageOptions(bands=(3, 2, 1), sensors={"s1": {"path": "s1/*", "bands": [1]}})
    recorded = scorer_settings(ScorerOptions(model=score_model_path), sensors)
    assert recorded == settings | {"sensors": [{"name": "s1", "path": ["s1/*"], "bands": [1]}]}
    for other in (ScorerOptions(model=score_model_path, dtype="bfloat16"), ScorerOptions(scorer="random", seed=1)):
        assert scorer_settings(other, ImageOptions()) != settings


def test_settings_of_several_models_follow_their_files_rule_and_calibration(score_models, tmp_path):
    def settings(model, **options):
        options = {"score_calibration": str(score_models / "calibration.jsonl")} | options
        return scorer_settings(ScorerOptions(model=model, **options), ImageOptions())

    def differ(new):
        return differences(first, new).keys()

    a, b = str(score_models / "a"), str(score_models / "b")
    first = settings(f"{a},{b}")
    moved = shutil.copytree(a, tmp_path / "moved")
    assert not differ(settings(f"{moved}, {b}")) and not differ(settings(f"{a},{b}", score_combine="mean"))
    assert differ(settings(f"{b},{a}")) == {"model", "model_stamp", "models_hash"}
    assert differ(settings(f"{a},{b}", score_combine="min")) == {"score_combine"}
    other = shutil.copy(score_models / "calibration.jsonl", tmp_path / "other.jsonl")
    assert not differ(settings(f"{a},{b}", score_calibration=str(other)))
    (tmp_path / "other.jsonl").write_text("{}")
    assert differ(settings(f"{a},{b}", score_calibration=str(other))) == {
        "score_calibration",
        "score_calibration_hash",
    }
    card = {"model": b, "licence": "", "recipe": "", "prompt_form": "user-turn"}
    (tmp_path / "card.yaml").write_text(json.dumps(card))
    assert differ(settings(f"{a},{tmp_path / 'card.yaml'}")) == {"models_hash"}
    alone = scorer_settings(ScorerOptions(model=a), ImageOptions())
    assert scorer_settings(ScorerOptions(model=f"{a},"), ImageOptions()) == alone and "models_hash" not in alone


def test_tokens_are_counted_by_the_scorers_tokenizer_and_else_as_words(score_model_path):
    scorer = load_scorer(score_model_path, device="cpu")
    texts = ["a river.", "two planes"]
    ids = scorer.processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert token_counter(scorer)(texts) == [len(row) for row in ids] and token_counter(scorer)([]) == []
    assert token_counter(LengthScorer())(texts) == [2, 2]
