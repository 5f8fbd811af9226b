"""A TRL script's features through TRL's GRPOTrainer and ours: what works in TRL's gives the same losses in ours."""

import math
import random
from copy import deepcopy

import pytest
from helpers import picture
from helpers.conformance import documented, table
from helpers.grpo_features import FEATURES, RUN, Feature, history, length, lora, scenes, trainer_of, turns
from helpers.policy_families import save_policy
from trl import GRPOConfig, GRPOTrainer

from rs_rlhf.errors import OptionError
from rs_rlhf.trainers.grpo import VisionGRPOConfig, VisionGRPOTrainer

FAST = ("Gemma 3", "`solution`: nested lists")  # of the default tier


@pytest.fixture(scope="session")
def paths(tiny_vlm, tmp_path_factory):
    """Returns the path of a tiny policy of a family."""
    made = {"qwen2_vl": tiny_vlm}

    def path(family):
        if family not in made:
            made[family] = save_policy(tmp_path_factory.mktemp("policies") / family, family)
        return made[family]

    return path


def cases():
    return [
        pytest.param(case, id=case.name, marks=[] if case.feature in FAST else [pytest.mark.slow]) for case in FEATURES
    ]


@pytest.mark.parametrize("case", cases())
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_feature_of_a_trl_script(case, paths, tmp_path):
    """With none of our options set; `stock` and `ours` are what the table says."""

    def run(kind):
        return history(trainer_of(kind, GRPOConfig, case, paths, tmp_path / kind.__name__))

    ours = run(VisionGRPOTrainer)
    assert sum("loss" in entry for entry in ours) == RUN["max_steps"]
    if case.stock != "works":
        assert case.stock.startswith("fails: ") and case.ours == "works"
        with pytest.raises((ValueError, TypeError)):
            run(GRPOTrainer)
        assert all(math.isfinite(entry["loss"]) for entry in ours if "loss" in entry)
        assert max(entry["grad_norm"] for entry in ours if "loss" in entry) > 0
        return
    stock = run(GRPOTrainer)
    assert case.ours == "the same losses" and len(ours) >= len(stock)  # ours also logs greedy answers by themselves
    logged = [entry for entry in ours if any(key.endswith("loss") for key in entry)]
    for theirs, entry in zip(stock, logged, strict=True):
        assert {key: entry.get(key) for key in theirs} == pytest.approx(theirs, rel=1e-5, abs=1e-6, nan_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("feature", ["Qwen2-VL, column `images`", "evaluation", "a text model, prompts as texts"])
def test_our_config_with_no_option_of_ours_set(feature, paths, tmp_path):
    case = next(case for case in FEATURES if case.feature == feature)
    stock = history(trainer_of(GRPOTrainer, GRPOConfig, case, paths, tmp_path / "stock"))
    ours = history(trainer_of(VisionGRPOTrainer, VisionGRPOConfig, case, paths, tmp_path / "ours"))
    for key in ("loss", "grad_norm", "eval_loss", "train_loss"):
        both = [[entry[key] for entry in entries if key in entry] for entries in (stock, ours)]
        assert both[1] == pytest.approx(both[0], rel=1e-5, abs=1e-6)


def test_the_table_is_the_matrix():
    assert len({case.name for case in FEATURES}) == len(FEATURES)
    assert documented("VisionGRPOTrainer") == table(FEATURES)


def given(feature, paths, folder, **options):
    """A config of ours with a pixel budget and more in it, and its trainer's other arguments."""
    args = VisionGRPOConfig(**RUN | {"output_dir": str(folder)} | options)
    return args, {"model": paths(feature.policy), "reward_funcs": [length], "train_dataset": feature.rows()}


def test_what_the_caller_gives_stays_as_it_is(paths, tmp_path):
    options = {
        "model_init_kwargs": {"dtype": "float32"},
        "generation_kwargs": {"suppress_tokens": [3], "bad_words_ids": [[4]]},
        "chat_template_kwargs": {"enable_thinking": False},
        "reward_weights": [0.5],
        "max_pixels": 8 * 28 * 28,
        "log_multimodal": True,
        "max_steps": 1,
    }
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(paths("qwen2_vl"), padding_side="left")
    args, more = given(Feature("any", rows=lambda: scenes().to_iterable_dataset()), paths, tmp_path, **options)
    adapter, budget, rewards = lora(), dict(processor.image_processor.size), more["reward_funcs"]
    before = deepcopy((args, adapter))
    trainer = VisionGRPOTrainer(args=args, peft_config=adapter, processing_class=processor, **more)
    trainer.train()
    assert (args, adapter) == before and rewards == [length]
    assert dict(processor.image_processor.size) == budget
    assert trainer.processing_class.image_processor.size["longest_edge"] == 8 * 28 * 28
    assert 3 in trainer.generation_kwargs["suppress_tokens"] and trainer.log_multimodal


@pytest.mark.parametrize("family", ["qwen2", "gemma3"])
def test_a_family_that_is_not_known_is_left_as_it_is(family, paths, tmp_path):
    args, more = given(Feature("any", policy=family), paths, tmp_path)
    trainer, stock = VisionGRPOTrainer(args=args, **more), GRPOTrainer(args=deepcopy(args), **more)
    ours, theirs = (dict(each.generation_kwargs) for each in (trainer, stock))
    suppressed = [set(options.pop("suppress_tokens", None) or ()) for options in (ours, theirs)]
    assert ours == theirs and suppressed[0] >= suppressed[1]
    assert family != "qwen2" or suppressed[0] == suppressed[1]
    assert len(trainer.model._forward_pre_hooks) == len(stock.model._forward_pre_hooks)
    assert "get_image_features" not in vars(trainer.model.model)
    sizes = [getattr(each.processing_class, "image_processor", None) for each in (trainer, stock)]
    assert family == "qwen2" or sizes[0].size == sizes[1].size
    args, more = given(Feature("any", policy=family), paths, tmp_path, max_pixels=10**5)
    with pytest.raises(OptionError) as error:
        VisionGRPOTrainer(args=args, **more)
    assert error.value.key == "max_pixels"


def odd(rng, depth=0):
    """Any value that a column may hold."""
    kinds = [None, 3, 2.5, True, "yes", "", "A", float("nan"), float("inf"), 10**400, b"\\x00", picture(1), object()]
    if depth < 3 and rng.random() < 0.5:
        inner = [odd(rng, depth + 1) for _ in range(rng.randrange(3))]
        return rng.choice([inner, tuple(inner), {"a": inner}, {str(i): value for i, value in enumerate(inner)}])
    return rng.choice(kinds)


def test_the_audit_stops_at_no_value(paths, tmp_path, caplog):
    args, more = given(Feature("any", policy="qwen2", rows=turns), paths, tmp_path)
    trainer, rng = VisionGRPOTrainer(args=args, **more), random.Random(0)
    for _ in range(300):
        row = {"prompt": odd(rng), "solution": odd(rng), "choices": odd(rng)}
        verdict = trainer.audit._judged("3", row)
        assert set(verdict) == {"correct", "readable", "unjudged"}
        assert not verdict["unjudged"] or verdict["correct"] is None
    assert 1 <= len(caplog.records) <= 2
