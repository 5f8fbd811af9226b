"""The published mix of format and accuracy."""

import math
import pickle

import pytest
from helpers.chats import TEXTS, asked, said

from rs_rlhf.errors import DeclarationError, OptionError
from rs_rlhf.rewards import IoUReward, RSReward


def test_rs_reward_mixes_format_and_accuracy(scorer, expected):
    def form(text):
        return said(f"<think>t</think><answer>{text}</answer>")

    boxes = "[0, 0, 1000, 1000]"
    rows = [("em", form("rural"), "rural"), ("em", form("urban"), "rural"), ("em", said("rural"), "rural")]
    rows += [("iou", form(boxes), boxes), ("open_ended", form(TEXTS[0]), TEXTS[1]), ("open_ended", said("a"), "b")]
    kinds, completions, solutions = map(list, zip(*rows, strict=True))
    columns = {"solution": solutions, "reward_type": kinds, "image": ["0.png"] * 6}
    found = RSReward(scorer)([asked()] * 6, completions, **columns)
    relative = 1 - math.exp(-0.2 * max(0.0, expected[0][0] - expected[0][1]))
    assert found == pytest.approx([1.0, 0.3, 0.0, 1.0, 0.3 + 0.7 * relative, 0.0], abs=1e-4)
    broken = RSReward(scorer)([asked()] * 6, completions, **columns | {"image": ["missing.png"] * 6})
    assert broken[4] is None and broken[:4] == pytest.approx([1.0, 0.3, 0.0, 1.0])
    with pytest.raises(DeclarationError, match="'open_endd'; did you mean 'open_ended'"):
        RSReward(scorer)([asked()], [form("a")], solution=["a"], reward_type=["open_endd"])
    with pytest.raises(DeclarationError, match="'reward_type'; did you mean 'reward_types'"):
        RSReward(scorer)([asked()], [form("a")], solution=["a"], reward_types=["em"])
    metrics = {}
    again = pickle.loads(pickle.dumps(RSReward(scorer, format_weight=0.5)))
    assert again([asked()] * 6, completions, **columns, log_metric=metrics.__setitem__)[1] == 0.5
    assert metrics["reward/failed_fraction"] == 0 and metrics["score/mean"] == pytest.approx(expected[0][0], abs=1e-4)
    with pytest.raises(DeclarationError, match="score model"):
        RSReward()([asked()], [form("a")], solution=["a"], reward_type=["open_ended"])


def test_numbers_and_formulas_have_kinds_of_their_own_and_every_part_is_logged():
    def form(text):
        return said(f"<think>t</think><answer>{text}</answer>")

    rows = [("count", form("3"), "4"), ("count", form("about 4"), "4"), ("count", said("4"), "4")]
    rows += [("math", form(r"\boxed{\frac{1}{2}}"), "0.5"), ("math", form("2"), "0.5"), ("em", form("x"), None)]
    kinds, completions, solutions = map(list, zip(*rows, strict=True))
    metrics, extra = {}, {}
    found = RSReward(format_weight=0.2)(
        [asked()] * 6,
        completions,
        solution=solutions,
        reward_type=kinds,
        log_metric=metrics.__setitem__,
        log_extra=extra.__setitem__,
    )
    assert found == pytest.approx([0.2 + 0.8 * 0.75, 0.2, 0.0, 1.0, 0.2, None])
    assert metrics == pytest.approx({"rs_reward/format": 5 / 6, "rs_reward/count": 0.375, "rs_reward/math": 0.5})
    assert extra == {
        "rs_reward/format": [1, 1, 0, 1, 1, 1],
        "rs_reward/accuracy": [0.75, 0.0, None, 1.0, 0.0, None],
    }


def test_options_fill_in_what_a_reward_was_not_made_with():
    options = {"format_weight": 0.5, "profile": "geochat", "pairing": "order", "solution_unit": "pixel"}
    reward = RSReward()
    told, read = reward.filled(options)
    boxes = told.accuracy["iou"]
    assert read == {*options} and (told.format_weight, reward.format_weight) == (0.5, 0.3)
    assert (boxes.profile.name, boxes.pairing, boxes.solution_unit) == ("geochat", "order", "pixel")
    own = RSReward(format_weight=0.1, iou=IoUReward("0-100", pairing="best"))
    told, read = own.filled(options)
    assert read == {"solution_unit"} and told.format_weight == 0.1 and told.accuracy["iou"].profile.unit == "0-100"
    with pytest.raises(OptionError) as error:
        reward.filled({"format_weight": -0.1})
    assert error.value.key == "format_weight"
