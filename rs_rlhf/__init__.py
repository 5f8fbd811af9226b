"""rs-rlhf: RLHF for remote-sensing vision-language models, on top of TRL.

Names are imported when they are first used, so that `import rs_rlhf` and `rs-rlhf --help` load neither torch nor
transformers.
"""
# ruff: noqa: F401 - the imports below are for type checkers, `__getattr__` makes the real ones

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

_HOMES = {
    "Group": "data.group",
    "make_group": "data.group",
    "load_preferences": "preferences.reader",
    "GroupCollator": "models.collator",
    "ImageOptions": "imagery.sources",
    "read_image": "imagery.raster",
    "ScoreModel": "models.score_model",
    "Scorer": "scoring.scorer",
    "RemoteScorer": "scoring.remote",
    "Policy": "models.policies.policy",
    "best_answer": "scoring.best_of_n",
    "VisionRewardConfig": "trainers.reward",
    "VisionRewardTrainer": "trainers.reward",
    "VisionGRPOConfig": "trainers.grpo",
    "VisionGRPOTrainer": "trainers.grpo",
    "RSRLHFError": "errors",
}
__all__ = list(_HOMES)

if TYPE_CHECKING:
    from .data.group import Group, make_group
    from .errors import RSRLHFError
    from .imagery.raster import read_image
    from .imagery.sources import ImageOptions
    from .models.collator import GroupCollator
    from .models.policies.policy import Policy
    from .models.score_model import ScoreModel
    from .preferences.reader import load_preferences
    from .scoring.best_of_n import best_answer
    from .scoring.remote import RemoteScorer
    from .scoring.scorer import Scorer
    from .trainers.grpo import VisionGRPOConfig, VisionGRPOTrainer
    from .trainers.reward import VisionRewardConfig, VisionRewardTrainer


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rs_rlhf' has no attribute {name!r}")
    return getattr(import_module(f"rs_rlhf.{_HOMES[name]}"), name)
