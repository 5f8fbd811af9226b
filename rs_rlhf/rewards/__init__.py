"""Reward callables in TRL's signature: the score model's, boxes, exact answers, and the published mix.

How a score is computed does not live here (`scoring`). Names are imported when they are used, for TRL's command line.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "ExactMatchReward": "rules",
    "IoUReward": "boxes",
    "PublishedExactMatchReward": "rules",
    "RSReward": "rs",
    "RewardFailed": "score",
    "ScoreReward": "score",
    "ThinkAnswerFormatReward": "rules",
    "score_reward": "score",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rs_rlhf.rewards' has no attribute {name!r}")
    return getattr(import_module(f"rs_rlhf.rewards.{_HOMES[name]}"), name)
