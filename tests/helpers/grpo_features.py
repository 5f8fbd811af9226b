"""What a TRL script may use with its GRPO trainer: one entry for each, run through TRL's class and ours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from . import picture
from .conformance import Case

QWEN, TEXT = "qwen2_vl", "qwen2"
QUESTIONS = ("Is there water?", "Which class is this scene?", "How many ships?", "Where is the port?")
RUN = {"per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 6, "max_steps": 2, "seed": 1}
RUN |= {"bf16": False, "use_cpu": True, "report_to": "none", "logging_steps": 1, "save_strategy": "no"}
RUN |= {"learning_rate": 1e-3, "disable_tqdm": True, "gradient_checkpointing": False, "num_completions_to_print": 0}
EVALUATED = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4}
NO_IMAGE = "fails: a row without images among rows with"


def length(completions: list, **_: Any) -> list[float]:
    """A reward that differs between completions."""
    return [float(sum(map(ord, _text(completion))) % 11) for completion in completions]


def _text(completion: Any) -> str:
    return completion if isinstance(completion, str) else "".join(str(turn.get("content")) for turn in completion)


async def length_later(completions: list, **_: Any) -> list[float]:
    """The same, awaited."""
    await asyncio.sleep(0)
    return length(completions)


def some_fail(completions: list, **_: Any) -> list[float | None]:
    """No reward for every second completion."""
    return [None if i % 2 else value for i, value in enumerate(length(completions))]


def logs(completions: list, log_extra: Callable, log_metric: Callable, **_: Any) -> list[float]:
    """A reward that logs texts by the name that ours logs its scores by."""
    log_extra("score", [_text(completion)[:3] for completion in completions])
    log_metric("mine", 1.0)
    return length(completions)


def of_step(completions: list, trainer_state: Any, **_: Any) -> list[float]:
    """A reward that changes with the step."""
    return [value + trainer_state.global_step for value in length(completions)]


def of_column(completions: list, level: list, **_: Any) -> list[float]:
    """A reward by a further column."""
    return [a * b for a, b in zip(length(completions), level, strict=True)]


def add(a: int, b: int) -> int:
    """
    Adds two numbers.

    Args:
        a: The first number.
        b: The second number.

    Returns:
        Their sum.
    """
    return a + b


class Counter:
    """An environment with a reward of its own."""

    def reset(self, **_: Any) -> str:
        """Begins."""
        self.total = 0
        return "Count."

    def increment(self, by: int) -> int:
        """
        Adds to the total.

        Args:
            by: How much.

        Returns:
            The total.
        """
        self.total += by
        return self.total

    def get_reward(self) -> float:
        """Returns the total."""
        return float(self.total)


def rollouts(prompts: list, trainer: Any) -> dict[str, list]:
    """A rollout function that answers every prompt with its own first tokens."""
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    ids = [tokenizer(str(prompt))["input_ids"][:4] for prompt in prompts]
    said = [each[: 1 + i % 3] for i, each in enumerate(ids)]
    return {"prompt_ids": ids, "completion_ids": said, "logprobs": [[-1.0] * len(each) for each in said]}


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


def some_tiles() -> Dataset:
    """Messages with one picture in some rows."""
    return turns(image=[picture(0), None, picture(1), None])


def questions_about_scenes() -> Dataset:
    """Plain texts with pictures."""
    return texts(images=[[picture(i)] for i in range(4)])


def lora(**options: Any) -> Any:
    """A LoRA of every linear layer."""
    from peft import LoraConfig

    return LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | options)


def loaded(path: str) -> dict[str, Any]:
    """A policy that is loaded already."""
    from transformers import AutoModelForImageTextToText

    return {"model": AutoModelForImageTextToText.from_pretrained(path, dtype="float32")}


def adapted(path: str) -> dict[str, Any]:
    """A loaded policy with an adapter."""
    import torch
    from peft import get_peft_model

    torch.manual_seed(0)
    return {"model": get_peft_model(loaded(path)["model"], lora())}


def as_texts(path: str) -> dict[str, Any]:
    """The tokenizer alone."""
    from transformers import AutoTokenizer

    return {"processing_class": AutoTokenizer.from_pretrained(path, padding_side="left")}


@dataclass(frozen=True)
class Feature(Case):
    """A case, and how its trainer is made.

    Args:
        policy (`str`): A family of `helpers.policy_families`, or Qwen2-VL.
        rows (callable): Makes the training set.
        rewards (callable): Makes `reward_funcs` from the path of a reward model.
        options (`dict`): Of the config, beside those of all cases.
        more (callable): Makes further arguments of the trainer from the policy's path.
    """

    policy: str = QWEN
    rows: Callable[[], Any] = scenes
    rewards: Callable[[str], Any] = lambda judge: length
    options: dict[str, Any] = field(default_factory=dict)
    more: Callable[[str], dict[str, Any]] = lambda path: {}

    @property
    def name(self) -> str:
        """The feature as the name of a test."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.feature).split())


def trainer_of(kind: type, config: type, feature: Feature, paths: Callable[[str], str], folder: Any) -> Any:
    """Makes the trainer of a feature; what is never sampled is the same in both classes."""
    path, options = paths(feature.policy), dict(feature.options)
    from transformers import AutoConfig, AutoProcessor, ProcessorMixin

    from rs_rlhf.models.vlm import placeholder_tokens

    processor = AutoProcessor.from_pretrained(path)
    if isinstance(processor, ProcessorMixin):
        forbidden = {"suppress_tokens": placeholder_tokens(AutoConfig.from_pretrained(path), processor)}
        options["generation_kwargs"] = {**forbidden, **options.get("generation_kwargs", {})}
    given = {"model": path, "reward_funcs": feature.rewards(paths("judge")), "train_dataset": feature.rows()}
    return kind(args=config(**RUN | {"output_dir": str(folder)} | options), **given | feature.more(path))


def history(trainer: Any) -> list[dict[str, float]]:
    """Trains, and returns the numbers that are logged, without times."""
    trainer.train()
    entries = trainer.state.log_history
    return [
        {key: value for key, value in entry.items() if isinstance(value, int | float) and not _timed(key)}
        for entry in entries
    ]


def _timed(key: str) -> bool:
    return any(word in key for word in ("time", "per_second", "flos"))


def _same(feature: str, **given: Any) -> Feature:
    return Feature(feature, **given)


def _text_only(feature: str, **given: Any) -> Feature:
    return Feature(feature, **{"policy": TEXT, "rows": turns} | given)


OTHERS = {
    "gemma3": "Gemma 3",
    "llava_next": "LLaVA-NeXT",
    "llava_onevision": "LLaVA-OneVision",
    "idefics3": "Idefics3",
    "internvl": "InternVL",
}
SOLUTIONS: dict[str, list] = {
    "numbers": [1, 2, 3, 4],
    "lists": [[1, 2], [3], [], [4]],
    "nested lists": [[[1, 2, 3, 4]], [], [[5, 6, 7, 8]], [[]]],
    "dicts": [{"count": 1}, {"count": None}, {"count": 3}, {"count": 4}],
    "None": [None] * 4,
}
CHOICES: dict[str, list] = {"numbers": [1, 2, 3, 4], "one text": ["A, B"] * 4, "nested lists": [[["A"], ["B"]]] * 4}
LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
NUMBERED = {name: [3] * 4 for name in ("id", "source", "kind", "where", "score", "size", "label")}

FEATURES = [
    # policies and processing classes
    _same("Qwen2-VL, column `images`"),
    _same("Qwen2-VL, column `image`", rows=tiles),
    _same("Qwen2-VL, several images a row", rows=lambda: scenes((2, 1, 2, 1))),
    *(_same(name, policy=family) for family, name in OTHERS.items()),
    _text_only("a text model, prompts as texts", rows=texts),
    _text_only("a text model, prompts as messages"),
    _same("Qwen2-VL on messages without images", rows=turns),
    _same("Qwen2-VL on texts", rows=texts),
    _same("Gemma 3 on messages without images", policy="gemma3", rows=turns),
    _same("Qwen2-VL with a tokenizer as processing_class", rows=turns, more=as_texts),
    Feature("Qwen2-VL, rows without images", NO_IMAGE, "works", rows=lambda: scenes((1, 0, 2, 1))),
    *(
        Feature(f"{name}, rows without images", NO_IMAGE, "works", policy=family, rows=lambda: scenes((1, 0, 1, 1)))
        for family, name in OTHERS.items()
    ),
    Feature("Qwen2-VL, column `image`, None in some rows", NO_IMAGE, "works", rows=some_tiles),
    Feature("images, prompts as texts", "fails: wants messages", "works", rows=questions_about_scenes),
    _same("a loaded policy", more=loaded),
    _same("a loaded policy with an adapter, beta", more=adapted, options={"beta": 0.1}),
    _same("peft_config", more=lambda path: {"peft_config": lora()}),
    _same("model_init_kwargs", options={"model_init_kwargs": {"dtype": "float32", "attn_implementation": "eager"}}),
    _same("beta, num_iterations, sync_ref_model", options={"beta": 0.1, "num_iterations": 2, "sync_ref_model": True}),
    # data
    *(
        _text_only(f"`solution`: {kind}", rows=lambda c=column: turns(solution=c))
        for kind, column in SOLUTIONS.items()
    ),
    *(
        _text_only(f"`choices`: {kind}", rows=lambda c=column: turns(solution=["1", "2", "3", "4"], choices=c))
        for kind, column in CHOICES.items()
    ),
    _same(
        "`solution` and `choices` of other kinds, with images",
        rows=lambda: scenes(solution=SOLUTIONS["lists"], choices=[1, 2, 3, 4]),
    ),
    _same("numbers in columns named as ours", rows=lambda: scenes(**NUMBERED)),
    _same("a streaming data set with images", rows=lambda: scenes().to_iterable_dataset()),
    _text_only("a streaming data set of texts", rows=lambda: texts().to_iterable_dataset()),
    _same("evaluation", options=EVALUATED, more=lambda path: {"eval_dataset": scenes()}),
    _same(
        "a streaming evaluation set",
        options=EVALUATED,
        more=lambda path: {"eval_dataset": scenes().to_iterable_dataset()},
    ),
    _text_only(
        "several evaluation sets, eval_on_start",
        options=EVALUATED | {"eval_on_start": True},
        more=lambda path: {"eval_dataset": {"one": turns(solution=[1, 2, 3, 4]), "other": turns()}},
    ),
    _same(
        "num_generations_eval",
        options=EVALUATED | {"num_generations_eval": 1},
        more=lambda path: {"eval_dataset": scenes(solution=[1, 2, 3, 4])},
    ),
    _same("remove_unused_columns", rows=lambda: scenes(level=[1, 2, 3, 4]), options={"remove_unused_columns": True}),
    _same("dataloader_num_workers", options={"dataloader_num_workers": 1}),
    # rewards
    _text_only("an async reward", rewards=lambda judge: length_later),
    _text_only(
        "several rewards, sync and async, reward_weights",
        rewards=lambda judge: [length_later, length],
        options={"reward_weights": [0.3, 0.7]},
    ),
    _text_only("a reward that returns None", rewards=lambda judge: some_fail),
    _text_only("a reward model by its path", rewards=lambda judge: judge),
    _text_only("a reward that logs texts as `score`", rewards=lambda judge: logs, options={"log_completions": True}),
    _text_only("a reward by the trainer's state", rewards=lambda judge: of_step),
    _text_only(
        "a reward by a further column", rewards=lambda judge: of_column, rows=lambda: turns(level=[1, 2, 3, 4])
    ),
    _text_only("tools", more=lambda path: {"tools": [add]}),
    _text_only(
        "environment_factory without reward_funcs",
        rewards=lambda judge: None,
        more=lambda path: {"environment_factory": Counter},
    ),
    _text_only("environment_factory beside reward_funcs", more=lambda path: {"environment_factory": Counter}),
    _text_only(
        "several environments without prompts",
        rewards=lambda judge: None,
        rows=lambda: Dataset.from_dict({"environment": ["a", "b"] * 4}),
        more=lambda path: {"environment_factory": {"a": Counter, "b": Counter}},
    ),
    _text_only(
        "environment_factory without a data set",
        rewards=lambda judge: None,
        rows=lambda: None,
        more=lambda path: {"environment_factory": Counter},
    ),
    _text_only("rollout_func", more=lambda path: {"rollout_func": rollouts}),
    # options
    _same(
        "log_completions, log_multimodal, log_unique_prompts",
        options={"log_completions": True, "log_multimodal": True, "log_unique_prompts": True},
    ),
    _same(
        "steps_per_generation, gradient_accumulation_steps",
        options={"steps_per_generation": 4, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    ),
    _same(
        "generation options",
        options={
            "temperature": 0.7,
            "top_p": 0.9,
            "top_k": 20,
            "repetition_penalty": 1.1,
            "generation_kwargs": {"min_new_tokens": 3},
        },
    ),
    _same("gradient_checkpointing", options={"gradient_checkpointing": True}),
    _same("pad_to_multiple_of", options={"pad_to_multiple_of": 8}),
    _same("mask_truncated_completions", options={"mask_truncated_completions": True}),
    _same("top_entropy_quantile, entropy_coef", options={"top_entropy_quantile": 0.5, "entropy_coef": 0.1}),
    _same(
        "importance_sampling_level, delta, epsilon_high",
        options={"importance_sampling_level": "sequence", "delta": 2.0, "epsilon_high": 0.3},
    ),
    _text_only(
        "scale_rewards, multi_objective_aggregation",
        rewards=lambda judge: [length, of_step],
        options={"scale_rewards": "batch", "multi_objective_aggregation": "normalize_then_sum"},
    ),
    _text_only("chat_template_kwargs", options={"chat_template_kwargs": {"enable_thinking": False}}),
    *(_text_only(f"loss_type {name}", options={"loss_type": name, "num_iterations": 2}) for name in LOSSES),
]
