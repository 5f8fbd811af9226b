"""Rewards of text by rule give the published numbers."""

import pytest
from helpers.chats import said

from rs_rlhf.errors import DeclarationError
from rs_rlhf.rewards import ExactMatchReward, ThinkAnswerFormatReward


def test_exact_match_reward():
    reward = ExactMatchReward()
    completions = [said("<answer>Rural.</answer>"), said("urban"), said(""), said("x")]
    assert reward([None] * 4, completions, solution=["rural", "rural", "", None]) == [1, 0, 0, None]
    with pytest.raises(DeclarationError, match="'solution'; did you mean 'solutions'"):
        reward([None], [said("x")], solutions=["x"])


def test_think_answer_format_reward():
    good = said("<think>a</think><answer>b</answer>")
    assert ThinkAnswerFormatReward()([None] * 2, [good, said("b")]) == [1, 0]
