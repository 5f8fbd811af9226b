"""Rewards of text by rule give the published numbers."""

import pytest
from helpers.chats import said

from rs_rlhf import rewards
from rs_rlhf.errors import DeclarationError
from rs_rlhf.rewards import (
    ExactMatchReward,
    IoUReward,
    PublishedExactMatchReward,
    RSReward,
    ThinkAnswerFormatReward,
)


def test_exact_match_reward():
    reward = ExactMatchReward()
    completions = [said("<answer>Rural.</answer>"), said("urban"), said(""), said("x")]
    assert reward([None] * 4, completions, solution=["rural", "rural", "", None]) == [1, 0, None, None]
    with pytest.raises(DeclarationError, match="'solution'; did you mean 'solutions'"):
        reward([None], [said("x")], solutions=["x"])


@pytest.mark.parametrize(
    ("solution", "rewards"),
    [
        (3, [1, 0, 0]),
        (3.0, [1, 0, 0]),
        (True, [0, 0, 1]),
        ("3", [1, 0, 0]),
        (None, [None] * 3),
        (float("nan"), [None] * 3),
        ([10, 20, 30, 40], [None] * 3),
        ([[1, 2, 3, 4], [5, 6, 7, 8]], [None] * 3),
        ({"count": 3}, [None] * 3),
    ],
)
def test_solutions_of_any_type(solution, rewards):
    completions = [said("3"), said("30"), said("Yes, there are.")]
    assert ExactMatchReward()([None] * 3, completions, solution=[solution] * 3) == rewards
    assert IoUReward(profile="qwen2-vl")([None], [said("3")], solution=[solution])[0] in (None, 0.0)
    assert RSReward()([None], [said("<think>a</think><answer>3</answer>")], solution=[solution], reward_type=["em"])


def test_a_choice_may_be_given_by_its_letter():
    columns = {"solution": ["urban", "urban"], "choices": [["rural", "urban"], None]}
    assert ExactMatchReward()([None] * 2, [said("(B)"), said("(B)")], **columns) == [1, 0]


def test_the_published_rule_is_beside_it():
    reward, completions = PublishedExactMatchReward(), [said("Rural ."), said("3.5"), said("3"), said("x")]
    assert reward([None] * 4, completions, solution=["rural", "35", "3.0", None]) == [1, 1, 0, None]
    mixed = RSReward(em=PublishedExactMatchReward())
    good = said("<think>a</think><answer>3.5</answer>")
    assert mixed([None], [good], solution=["35"], reward_type=["em"]) == [1.0]
    assert RSReward()([None], [good], solution=["35"], reward_type=["em"]) == [0.3]


def test_think_answer_format_reward():
    good = said("<think>a</think><answer>b</answer>")
    assert ThinkAnswerFormatReward()([None] * 2, [good, said("b")]) == [1, 0]


def test_every_reward_class_has_a_function_for_the_command_line():
    classes = {name for name in rewards.__all__ if name.endswith("Reward")}
    assert {*rewards.FUNCTIONS.values(), "ScoreReward"} == classes
    for name, kind in rewards.FUNCTIONS.items():
        function = getattr(rewards, name)
        assert function.__name__ == name and type(function) is getattr(rewards, kind)
        assert getattr(rewards, name) is not function  # so that what a trainer tells one is not told another
    assert rewards.exact_match_reward([None], [said("a river")], solution=["river"]) == [1]


def test_an_open_ended_row_without_a_score_model_names_the_variable(monkeypatch):
    monkeypatch.delenv("RS_RLHF_SCORE_MODEL", raising=False)
    with pytest.raises(DeclarationError, match="RS_RLHF_SCORE_MODEL"):
        rewards.rs_reward(
            [""], [said("<think>a</think><answer>b</answer>")], solution=["b"], reward_type=["open_ended"]
        )
