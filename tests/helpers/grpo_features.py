"""What a TRL script may use with its GRPO trainer: one entry for each, run through TRL's class and ours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from . import picture
from .conformance import Case

QWEN = "qwen2_vl"
SUPPRESSED = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
QUESTIONS = ("Is there water?", "Which class is this scene?", "How many ships?", "Where is the port?")
MADE = {"per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 6, "max_steps": 2, "seed": 1}
MADE |= {"bf16": False, "use_cpu": True, "report_to": "none", "logging_steps": 1, "save_strategy": "no"}
MADE |= {"learning_rate": 1e-3, "disable_tqdm": True, "gradient_checkpointing": False}


def length(completions: list, **_: Any) -> list[float]:
    """A reward that differs between completions."""
    return [float(sum(map(ord, _text(completion))) % 11) for completion in completions]


def _text(completion: Any) -> str:
    return completion if isinstance(completion, str) else "".join(str(turn.get("content")) for turn in completion)


async def length_later(completions: list, **_: Any) -> list[float]:
    await asyncio.sleep(0)
    return length(completions)


def texts(**columns: list) -> Dataset:
    """Prompts without images, as plain texts."""
    return Dataset.from_dict({"prompt": list(QUESTIONS), **columns})


def turns(**columns: list) -> Dataset:
    """Prompts without images, as messages."""
    return Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in QUESTIONS], **columns})


def scenes(counts: tuple[int, ...] = (1, 1, 1, 1), **columns: list) -> Dataset:
    """Messages with so many pictures each."""
    images = [[picture(7 * i + k, 56 if i % 2 else 84) for k in range(count)] for i, count in enumerate(counts)]
    return turns(images=images, **columns)


def tiles(**columns: list) -> Dataset:
    """Messages with one picture each in the column `image`."""
    return turns(image=[picture(i) for i in range(4)], **columns)


@dataclass(frozen=True)
class Feature(Case):
    """A case, and how its trainer is made.

    Args:
        policy (`str`): A family of `helpers.policy_families`, or Qwen2-VL.
        rows (callable): Makes the training set.
        rewards (callable): Makes `reward_funcs`.
        options (`dict`): Of the config, beside those of all cases.
        more (callable, *optional*): Makes further arguments of the trainer from the policy's path.
    """

    policy: str = QWEN
    rows: Callable[[], Any] = scenes
    rewards: Callable[[], Any] = lambda: length
    options: dict[str, Any] = field(default_factory=dict)
    more: Callable[[str], dict[str, Any]] = lambda path: {}

    @property
    def name(self) -> str:
        """The feature as the name of a test."""
        return "".join(c if c.isalnum() else "_" for c in self.feature.lower()).strip("_")


def history(kind: type, config: type, feature: Feature, path: str, folder: Any) -> list[dict[str, float]]:
    """Trains, and returns what is logged at each step, without times."""
    options = dict(feature.options)
    if feature.policy == QWEN:
        from transformers import AutoTokenizer

        known = AutoTokenizer.from_pretrained(path).get_vocab()
        forbidden = {"suppress_tokens": sorted(known[name] for name in SUPPRESSED)}
        options["generation_kwargs"] = {**forbidden, **options.get("generation_kwargs", {})}
    args = config(**MADE | {"output_dir": str(folder)} | options)
    given = {"model": path, "reward_funcs": feature.rewards(), "train_dataset": feature.rows(), **feature.more(path)}
    trainer = kind(args=args, **given)
    trainer.train()
    return [{key: value for key, value in entry.items() if isinstance(value, (int, float))} for entry in trainer.state.log_history]
