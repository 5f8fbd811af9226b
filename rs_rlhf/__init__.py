"""rs-rlhf: RLHF for remote-sensing vision-language models, on top of TRL.

Names are imported when they are first used, so that `import rs_rlhf` and `rs-rlhf --help` load neither torch nor
transformers.
"""
# ruff: noqa: F401 - the imports below are for type checkers, `__getattr__` makes the real ones

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Group": "data",
    "make_group": "data",
    "load_preferences": "readers",
    "GroupCollator": "groups",
    "ImageOptions": "imagery",
    "read_image": "imagery",
    "ScoreModel": "score_model",
    "Scorer": "scorer",
    "VisionRewardConfig": "reward_trainer",
    "VisionRewardTrainer": "reward_trainer",
}
__all__ = list(_HOMES)

if TYPE_CHECKING:
    from .data import Group, make_group
    from .groups import GroupCollator
    from .imagery import ImageOptions, read_image
    from .readers import load_preferences
    from .reward_trainer import VisionRewardConfig, VisionRewardTrainer
    from .score_model import ScoreModel
    from .scorer import Scorer


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rs_rlhf' has no attribute {name!r}")
    return getattr(import_module(f"rs_rlhf.{_HOMES[name]}"), name)
