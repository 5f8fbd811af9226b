"""Reward callables in TRL's signature: the score model's, boxes, exact answers, and the published mix.

How a score is computed does not live here (`scoring`). Names are imported when they are used. Every reward class has a
function for TRL's command line, which takes what it finds as it is: `rs_rlhf.rewards.exact_match_reward` is an
`ExactMatchReward()`, and so on.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "CountReward": "rules",
    "ExactMatchReward": "rules",
    "IoUReward": "boxes",
    "MathReward": "rules",
    "PublishedExactMatchReward": "rules",
    "RSReward": "rs",
    "RewardFailed": "score",
    "ScoreReward": "score",
    "ThinkAnswerFormatReward": "rules",
    "score_reward": "score",
}
FUNCTIONS = {
    "count_reward": "CountReward",
    "exact_match_reward": "ExactMatchReward",
    "iou_reward": "IoUReward",
    "math_reward": "MathReward",
    "published_exact_match_reward": "PublishedExactMatchReward",
    "rs_reward": "RSReward",
    "think_answer_format_reward": "ThinkAnswerFormatReward",
}
__all__ = [*_HOMES, *FUNCTIONS]


def __getattr__(name: str) -> Any:
    if name in FUNCTIONS:
        return __getattr__(FUNCTIONS[name])()  # anew each time: a trainer may tell it about its policy
    if name not in _HOMES:
        raise AttributeError(f"module 'rs_rlhf.rewards' has no attribute {name!r}")
    return getattr(import_module(f"rs_rlhf.rewards.{_HOMES[name]}"), name)
