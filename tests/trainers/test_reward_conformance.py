"""TRL's RewardTrainer and ours under the same conditions: what a script for TRL may expect of our class.

The cases are the table of docs/trl_conformance.md. Both trainers get the same arguments, made anew; a case of "the
same losses" compares every figure that TRL's logs.
"""

import inspect
import math
from copy import deepcopy
from importlib.util import find_spec

import pytest
import torch
import transformers
from helpers import picture
from helpers.conformance import documented, table
from helpers.reward_cases import CASES, EVALUATED, Given, rows
from helpers.reward_image_cases import tokenizer  # the import adds its cases
from transformers import set_seed
from transformers.modeling_outputs import SequenceClassifierOutput
from trl import RewardTrainer

from rs_rlhf import ScoreModel, VisionRewardTrainer
from rs_rlhf.errors import RSRLHFError
from rs_rlhf.models.tiny_vlm import build_tokenizer

QUICK = ("text_classifier", "vlm_by_name", "labels")  # in the default tier
CLOCKS = ("runtime", "per_second", "total_flos", "step_time", "memory")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Paths of a tiny causal language model and of a tiny text classifier with dropout."""
    folder, tokenizer = tmp_path_factory.mktemp("text"), build_tokenizer()
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 64, "vocab_size": len(tokenizer), "attention_dropout": 0.3, "num_labels": 1}
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    for name in ("CausalLM", "SequenceClassification"):
        torch.manual_seed(1)
        config = transformers.Qwen2Config(**sizes, **ids)
        getattr(transformers, f"Qwen2For{name}")(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return str(folder / "CausalLM"), str(folder / "SequenceClassification")


@pytest.fixture
def given(models, tiny_vlm, tmp_path):
    """The place of a run, emptied for each."""
    images = []
    for i in range(4):
        picture(i).save(tmp_path / f"{i}.png")
        images.append(str(tmp_path / f"{i}.png"))
    return Given(*models, tiny_vlm, images, tmp_path / "out")


def run(trainer_class, arguments):
    """Trains, and returns the log, or the exception."""
    try:
        resume = arguments.pop("resume_from_checkpoint", None)
        trainer = trainer_class(**arguments)
        trainer.train(resume_from_checkpoint=resume)
    except Exception as error:  # whatever TRL's raises
        return error
    return trainer.state.log_history


def figures(log):
    """The figures of a log that do not depend on the clock."""
    return [
        {name: value for name, value in entry.items() if not any(word in name for word in CLOCKS)} for entry in log
    ]


def marked(name):
    return pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)


@pytest.mark.parametrize("name", map(marked, CASES))
@pytest.mark.filterwarnings("ignore")
def test_a_script_for_trl_gives_what_the_table_says(name, given):
    expected, make = CASES[name]
    if "without bitsandbytes" in expected.feature and find_spec("bitsandbytes"):
        pytest.skip("bitsandbytes is here")
    stock = run(RewardTrainer, make(given))
    if expected.stock == "works":
        assert isinstance(stock, list), stock
    else:
        assert isinstance(stock, Exception)
    arguments = make(given)
    watched = {key: arguments.get(key) for key in ("args", "peft_config")}
    before = deepcopy(watched)
    ours = run(VisionRewardTrainer, arguments)
    assert watched == before  # the caller's objects are never changed
    if expected.ours == "the same error":
        assert (type(ours), str(ours)) == (type(stock), str(stock))
    elif expected.ours.startswith("refuses"):
        assert isinstance(ours, RSRLHFError) and (ours.key or ours.where), ours
    else:
        assert isinstance(ours, list), ours
        assert all(math.isfinite(entry["loss"]) for entry in ours if "loss" in entry)
        names = {"accuracy", "margin", "min_reward", "mean_reward", "max_reward", "num_tokens"}
        assert names <= set(ours[0]) or {f"eval_{one}" for one in names} <= set(ours[0])
    if expected.ours == "the same losses":
        for entry, other in zip(figures(stock), figures(ours), strict=True):
            assert {key: other.get(key) for key in entry} == pytest.approx(entry, abs=1e-6)


def test_the_table_is_true():
    assert documented("VisionRewardTrainer") == table(case for case, _ in CASES.values())


def test_the_arguments_are_trl_s_in_their_order():
    assert list(inspect.signature(VisionRewardTrainer).parameters) == list(inspect.signature(RewardTrainer).parameters)


class Classifier(ScoreModel):
    """A score model as TRL's trainer takes it."""

    def forward(self, input_ids, attention_mask, **_):
        """Returns the scores as logits."""
        return SequenceClassifierOutput(logits=super().forward(input_ids, attention_mask).scores[:, None])


@pytest.mark.filterwarnings("ignore")
def test_a_score_model_trains_as_trl_trains_a_classifier(given):
    """The group layout, its loss and its figures are TRL's, for conversations without images."""
    logs = []
    for cls, trainer in ((Classifier, RewardTrainer), (ScoreModel, VisionRewardTrainer)):
        set_seed(0)
        model = ScoreModel.from_pretrained(given.vlm, output_activation="identity")
        model.__class__ = cls
        model.reward_head.weight.data.mul_(20)
        args = given.args(**EVALUATED, center_rewards_coefficient=0.01, learning_rate=1e-4)
        data = rows(form="conversational", margin=0.3)
        own = {"processing_class": tokenizer(given), "train_dataset": data, "eval_dataset": data.select(range(5))}
        logs.append(run(trainer, {"model": model, "args": args, **own}))
    for stock, ours in zip(*map(figures, logs), strict=True):
        assert {key: ours.get(key) for key in stock} == pytest.approx(stock, rel=1e-4, abs=2e-5)
