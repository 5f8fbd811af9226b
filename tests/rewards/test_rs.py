"""The published mix of format and accuracy."""

import math
import pickle

import pytest
from helpers.chats import TEXTS, asked, said

from rs_rlhf.errors import DeclarationError
from rs_rlhf.rewards import RSReward


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
