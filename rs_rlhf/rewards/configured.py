"""Several rewards of one training: the options that a command gives them, their names and their weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import OptionError
from .boxes import IoUReward
from .columns import Rewards
from .rs import RSReward

Reward = Callable[..., Rewards]


def reward_name(reward: object) -> str:
    """Returns the name that a reward is logged under."""
    return getattr(reward, "__name__", type(reward).__name__)


def configured(rewards: Sequence[Reward], options: Mapping[str, Any]) -> list[Reward]:
    """Returns rewards with those options that they were not made with.

    Args:
        rewards (sequence of callables): The rewards of a training.
        options (`dict`): `format_weight`, and `profile`, `solution_unit` and `pairing` of boxes, where they are given.

    Raises:
        OptionError: No reward reads an option.
    """
    filled, read = list[Reward](), set[str]()
    for reward in rewards:
        names = set[str]()
        if isinstance(reward, IoUReward | RSReward):
            reward, names = reward.filled(options)
        filled.append(reward)
        read |= names
    if unread := next((name for name in options if name not in read), None):
        readers = "reward 'rs'" if unread == "format_weight" else "reward 'rs' and iou_reward"
        raise OptionError(f"{unread} is read by {readers} only; leave it out, or add one that reads it.", unread)
    return filled


def check_names(names: Sequence[str]) -> None:
    """Refuses two rewards of one name, whose figures TRL would log as one."""
    if repeated := next((name for name, count in Counter(names).items() if count > 1), None):
        raise OptionError(f"two rewards are called {repeated}; leave one of them out, or rename it.", "reward_funcs")


def check_weights(weights: Sequence[float] | None, rewards: Sequence[object]) -> None:
    """Refuses weights that are not as many as the rewards."""
    if weights is not None and rewards and len(weights) != len(rewards):
        names = ", ".join(map(reward_name, rewards))
        raise OptionError(
            f"reward_weights has {len(weights)} numbers, expected one for each of the {len(rewards)} rewards, in this "
            f"order: {names}.",
            "reward_weights",
        )
