"""The model card of each training: right, without private paths, with figures that the hub reads back."""

import dataclasses
import json
import re

import pytest
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results

from rs_rlhf.metrics.intervals import wilson_interval
from rs_rlhf.runs.cards import hidden
from rs_rlhf.runs.files import FILLING
from rs_rlhf.runs.record import Run
from rs_rlhf.trainers.model_card.card import FILE, write_model_card

VERSIONS = dict.fromkeys(["rs-rlhf", "trl", "transformers", "torch", "datasets", "tokenizers"], "1.2.3")
PRIVATE = "/home/ada/secret project"
LOGS = {  # of the last evaluation of each method, what it makes, and a figure of it with its interval
    "reward": (
        "score model",
        {
            "eval_score/accuracy": 0.75,
            "eval_score/n": 8,
            "eval_score/shuffle_gap": 0.25,
            "eval_score/accuracy_kind/count": 0.5,
        },
        ("accuracy", 0.75, 8),
    ),
    "SFT": ("policy", {"eval_loss": 1.5, "eval_exact_match": 0.5}, ("exact_match", 0.5, 40)),
    "GRPO": (
        "policy",
        {"eval_audit/greedy_accuracy": 0.6, "eval_audit/greedy_n": 10, "eval_score/greedy_mean": 1.25},
        ("greedy_accuracy", 0.6, 10),
    ),
    "DPO": ("policy", {"eval_rewards/accuracies": 0.9, "eval_loss": 0.6}, ("accuracies", 0.9, 40)),
    "KTO": ("policy", {"eval_loss": 0.4, "eval_rewards/margins": 0.1}, None),
    "RAFT": ("policy", {"eval_audit/greedy_accuracy": 0.5, "eval_audit/greedy_n": 4}, ("greedy_accuracy", 0.5, 4)),
    "CLIP": (
        "dual encoder",
        {"eval_aid_top1": 0.5, "eval_aid_n": 30, "eval_rsicd-retrieval_mean_recall": 0.2, "eval_rsicd-retrieval_n": 9},
        ("top1", 0.5, 30),
    ),
}


def run_of(method, **changes):
    about = {
        "method": method,
        "makes": LOGS[method][0],
        "command": ["rs-rlhf", method.lower(), "--dataset_name", f"{PRIVATE}/pairs.jsonl", "--learning_rate", "1e-5"],
        "data": {
            "data": f"{PRIVATE}/pairs.jsonl,{PRIVATE}/more.jsonl",
            "eval_data": "ada/held-out",
            "eval_split": "test",
        },
        "config": {"seed": 3, "learning_rate": 1e-5, "image_root": PRIVATE, "score_model": "http://10.0.0.7:80/v1"},
        "processes": 2,
        "versions": VERSIONS,
        "positions": "mrope",
        "pixel_budget": [3136, 9408],
    }
    settings = {
        "model": f"{PRIVATE}/stage 1",
        "model_hash": "0123456789abcdef",
        "data": "120 rows, aaaa1111aaaa1111",
        "eval_data": "40 rows, bbbb2222bbbb2222",
        "lora": None,
        "trained_parameters": 1234,
    }
    for key, value in changes.items():
        (about if key in about else settings)[key] = value
    return Run("run1", [["run1", 0], ["part2", 4]], settings, about)


def written(folder, run, log, **options):
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        "global_step": 9,
        "log_history": [{"step": 4, "eval_loss": 99.0}, {"step": 9, "loss": 1.0}, {"step": 9, **log}],
    }
    write_model_card(folder, run, state, "my-model", run_dir=folder, **options)
    return ModelCard.load(folder / FILE, ignore_metadata_errors=False)


def code_of(card):
    return re.search(r"```python\n(.*?)\n```", card.content, re.DOTALL)[1]


@pytest.mark.parametrize("method", LOGS)
def test_every_training_has_a_card_that_is_right(method, tmp_path):
    _, log, figure = LOGS[method]
    card = written(tmp_path / "out", run_of(method), log)
    text = card.content
    assert "None" not in text and "capital of France" not in text and "[]" not in text
    assert "ada/secret" not in text and "/home" not in text and "10.0.0.7" not in text
    assert "pairs.jsonl, more.jsonl" in text and "120" in text and "aaaa1111aaaa1111" in text
    assert "`stage 1` (files `0123456789abcdef`)" in text
    assert (
        f"rs-rlhf {method.lower()} --dataset_name pairs.jsonl --learning_rate 1e-05".replace("1e-05", "1e-5") in text
    )
    assert "resumed at step 4" in text and "3,136 to 9,408 pixels" in text and "| position mode | mrope |" in text
    assert "2503.00743" in text and "vonwerra2020trl" in text and '"out"' in code_of(card)
    head = ModelCardData(**{**card.data.to_dict()})
    assert head.license is None and "licence is yours to state" in text
    assert "generated_from_trainer" in head.tags and head.base_model is None and head.datasets == ["ada/held-out"]
    results = card.data.eval_results
    name, again = model_index_to_eval_results(card.data.to_dict()["model-index"])
    assert name == "my-model" and [dataclasses.asdict(r) for r in again] == [dataclasses.asdict(r) for r in results]
    assert all(isinstance(result, EvalResult) and result.metric_value != 99.0 for result in results)
    if figure is not None:
        kind, value, n = figure
        (found,) = (result for result in results if result.metric_type == kind)
        low, high = wilson_interval(round(value * n), n)
        assert found.metric_value == value and found.metric_args["n"] == n
        assert found.metric_args["interval"] == pytest.approx([low, high], abs=1e-6)
        assert f"{low:.1%} – {high:.1%}" in text
    assert results[0].dataset_name == ("aid" if method == "CLIP" else "ada/held-out")


def test_the_shuffle_gap_is_explained_and_kinds_are_told(tmp_path):
    text = written(tmp_path, run_of("reward"), LOGS["reward"][1]).content
    assert (
        "does not look at the image" in text and "Image-shuffle gap | 25.0%" in text and "kind count | 50.0%" in text
    )
    assert "does not look at the image" not in written(tmp_path, run_of("SFT"), LOGS["SFT"][1]).content


def test_a_base_on_the_hub_is_named_in_the_head(tmp_path):
    run = run_of("DPO", model="Qwen/Qwen2-VL-2B-Instruct", model_hash=None, lora={"r": 8, "lora_alpha": 16})
    card = written(tmp_path, run, {}, repo="ada/my-policy")
    assert card.data.base_model == "Qwen/Qwen2-VL-2B-Instruct" and card.data.library_name == "peft"
    assert "LoRA adapter" in card.content and "r 8, lora_alpha 16" in card.content
    assert 'Policy.from_pretrained("ada/my-policy")' in code_of(card)
    assert "has not been evaluated" in card.content.replace("\n", " ") or card.data.eval_results


def test_figures_are_those_of_the_weights_that_are_saved(tmp_path):
    run = run_of("SFT", config={"load_best_model_at_end": True})
    log = [{"step": step, "eval_loss": 2.0 - step, "eval_exact_match": step / 10} for step in (1, 2)]
    state = {"global_step": 2, "best_global_step": 1, "log_history": log}
    write_model_card(tmp_path, run, state, "m", run_dir=tmp_path)
    card = ModelCard.load(tmp_path / FILE)
    assert {r.metric_type: r.metric_value for r in card.data.eval_results}["exact_match"] == 0.1
    assert "Evaluated at step 1; the model is of step 2" in card.content


def test_a_model_that_was_never_evaluated_says_so(tmp_path):
    state = {"global_step": 0, "log_history": []}
    write_model_card(tmp_path, run_of("KTO", eval_data=None, data={}), state, "m", run_dir=tmp_path)
    card = ModelCard.load(tmp_path / FILE)
    assert "has not been evaluated" in card.content and card.data.eval_results is None
    assert "rows given in Python" in card.content and "None" not in card.content


def test_evaluations_of_several_sets_are_told_apart(tmp_path):
    run = run_of("SFT", eval_data=None, eval_data_a="10 rows, aa", eval_data_b="20 rows, bb")
    card = written(tmp_path, run, {"eval_a_exact_match": 0.1, "eval_b_exact_match": 0.2})
    found = {r.dataset_revision: (r.metric_value, r.metric_args["n"]) for r in card.data.eval_results}
    assert found == {"aa": (0.1, 10), "bb": (0.2, 20)}


def test_a_licence_that_was_stated_is_kept_and_a_strangers_card_stays(tmp_path):
    written(tmp_path, run_of("SFT"), {})
    path = tmp_path / FILE
    path.write_text(path.read_text().replace("---\n", "---\nlicense: mit\n", 1))
    card = written(tmp_path, run_of("SFT"), {})
    assert card.data.license == "mit" and "yours to state" not in card.content
    path.write_text("# What I tried\n")
    state = {"global_step": 1, "log_history": []}
    write_model_card(tmp_path, run_of("SFT"), state, "m", run_dir=tmp_path)
    assert path.read_text() == "# What I tried\n"
    new = tmp_path / FILLING
    new.mkdir()
    (new / FILE).write_text("library_name: peft\n")  # as peft writes one beside an adapter
    write_model_card(new, run_of("SFT"), state, "m", run_dir=tmp_path)
    assert not (new / FILE).exists(), "it would take the place of the user's"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/ada/a b/pairs.jsonl", "pairs.jsonl"),
        ("/data/pairs.jsonl:train", "pairs.jsonl:train"),
        ("/a/x.jsonl,/b/y.jsonl", "x.jsonl,y.jsonl"),
        ("rsrm:/data/x/RSRM.json", "rsrm:RSRM.json"),
        ("~/models/a/", "a"),
        ("../../out/model", "model"),
        ("--score_model=/a/b", "--score_model=b"),
        ("Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-2B-Instruct"),
        ("https://me:pw@host:8000/v1", "ADDRESS"),
        ('{"a": "/home/ada/x.json"}', '{"a": "x.json"}'),
        ("pairs.jsonl, line 3", "pairs.jsonl, line 3"),
        (0.1, "0.1"),
        ("3/4", "3/4"),
    ],
)
def test_paths_are_names(value, shown):
    assert hidden(value) == shown


def test_the_head_is_plain_yaml(tmp_path):
    import yaml

    written(tmp_path, run_of("reward"), LOGS["reward"][1])
    head = yaml.safe_load((tmp_path / FILE).read_text().split("---")[1])
    assert head["library_name"] == "rs-rlhf" and json.dumps(head["model-index"])
