"""Recipes and commands of the whole way, for the data and the machine that there are."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...runs.files import write_text
from .data import Data
from .machine import Sizes

EVERY = {"report_to": "none", "seed": 0}


@dataclass
class Plan:
    """The way: commands with a line about each, and the recipes that they name.

    `reading` is how images are read: keys of recipes and flags of commands.
    """

    folder: Path
    data: Data
    sizes: Sizes
    reading: dict[str, Any]
    commands: list[tuple[str, list[str]]] = field(default_factory=list)
    recipes: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        """The folder of what the commands make."""
        return self.folder / "out"

    @property
    def model(self) -> str:
        """The model that training starts from."""
        return self.sizes.model or str(self.out / "tiny")

    def add(self, why: str, *words: object, reads_images: bool = False, **flags: Any) -> None:
        """Adds a command; one that decodes images has the flags of reading them."""
        flags |= self.reading if reads_images else {}
        parts = [*map(str, words)]
        for name, value in flags.items():
            parts += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        self.commands.append((why, ["rs-rlhf", *parts]))

    def train(self, why: str, command: str, name: str, **keys: Any) -> None:
        """Adds a training and its recipe."""
        self.recipes[f"{name}.yaml"] = {**keys, "output_dir": str(self.out / name), **self.reading, **EVERY}
        self.add(why, command, config=self.folder / f"{name}.yaml")


def make_plan(folder: Path, data: Data, sizes: Sizes, reading: dict[str, Any]) -> Plan:
    """Returns the way from the data to an evaluated policy."""
    plan = Plan(folder, data, sizes, reading)
    if sizes.model is None:
        texts: dict[str, Any] = {"texts": data.files["images_train"]} if data.has("images") else {}
        plan.add("a tiny model, to try the way", "tiny-vlm", plan.out / "tiny", **texts, max_pixels=112 * 112)
    pairs = _preferences(plan)
    reward = plan.out / "reward"
    every = {"model_name_or_path": plan.model, **sizes.every}
    evaluated = {"eval_strategy": "steps", "eval_steps": sizes.reward.get("max_steps", 100)}
    plan.train(
        "the score model",
        "reward",
        "reward",
        **every,
        **sizes.reward,
        dataset_name=str(pairs["train"]),
        eval_dataset_name=str(pairs["validation"]),
        **evaluated,
    )
    plan.add(
        "how often it prefers the better text, on held-out pairs",
        *("eval", "preferences"),
        model=reward,
        preferences=pairs["validation"],
        output=plan.out / "preferences.json",
        reads_images=True,
    )
    policy = _supervised(plan, every)
    prompts = next(what for what in ("questions", "images", "preferences") if data.has(what))
    files = {split: str(data.files[f"{prompts}_{split}"]) for split in ("train", "validation")}
    trained = {**every, **sizes.policy, "model_name_or_path": policy, "score_model": str(reward)}
    trained |= {"dataset_name": files["train"], "eval_dataset_name": files["validation"], "max_eval_samples": 64}
    trained |= {"eval_strategy": "steps", "eval_steps": max(2, sizes.policy["max_steps"] // 4), "logging_steps": 1}
    plan.train("the policy, rewarded by the score model", "grpo", "grpo", **trained)
    if prompts == "questions":
        _evaluation(plan)
    plan.add("a page about the run", "report", plan.out / "grpo")
    return plan


def _preferences(plan: Plan) -> dict[str, Path]:
    """Adds what makes preference pairs, and their check; returns the files of pairs."""
    data, folder = plan.data, plan.folder / "data"
    pairs = {split: folder / f"pairs_{split}.jsonl" for split in ("train", "validation")}
    if data.has("preferences"):
        pairs = {split: data.files[f"preferences_{split}"] for split in pairs}
    elif data.has("images"):
        for split, output in pairs.items():
            given = data.files[f"images_{split}"]
            plan.add(f"pairs with known damage: {split}", *("data", "pairs"), input=given, output=output)
    else:
        for split, output in pairs.items():
            plan.add(
                f"the model's own wrong answers: {split}",
                *("data", "sample-pairs"),
                policy=plan.model,
                input=data.files[f"questions_{split}"],
                limit=plan.sizes.limit,
                n=4,
                max_new_tokens=32 if plan.sizes.model else 8,
                output=output,
                reads_images=True,
            )
    plan.add(
        "every problem of the pairs",
        *("data", "check", pairs["train"]),
        eval=pairs["validation"],
        reads_images=True,
    )
    return pairs


def _supervised(plan: Plan, every: dict[str, Any]) -> str:
    """Adds curation and supervised tuning, or DPO if there are preferences alone; returns the model that comes out."""
    data = plan.data
    texts = "images" if data.captions else "questions"
    if not data.has(texts):
        given = {"dataset_name": str(data.files["preferences_train"])}
        plan.train("the policy, on the preferences themselves", "dpo", "dpo", **every, **plan.sizes.sft, **given)
        return _merged(plan, "dpo")
    scores, kept = plan.out / "scores", plan.out / "kept"
    source, model = data.files[f"{texts}_train"], plan.out / "reward"
    plan.add("a score for every text", "score", input=source, model=model, output=scores, reads_images=True)
    plan.add("the better half of them, with a page", "curate", scores, keep=0.5, output=kept)
    plan.train("supervised tuning on that half", "sft", "sft", **every, **plan.sizes.sft, dataset_name=str(kept))
    return _merged(plan, "sft")


def _merged(plan: Plan, name: str) -> str:
    """Adds what makes a whole model of an adapter; returns the model that GRPO starts from."""
    adapter = plan.out / name
    if not plan.sizes.every.get("use_peft"):
        return str(adapter)
    plan.add("the adapter merged into its base", "merge", adapter, f"{adapter}-merged")
    return f"{adapter}-merged"


def _evaluation(plan: Plan) -> None:
    """Adds the benchmark of the held-out questions, and both policies' evaluation on it."""
    data = plan.data
    plan.recipes["benchmark.yaml"] = {
        "title": "held-out questions of one's own data",
        "task": "classification" if data.about_classes else "vqa",
        "layout": "rows",
        "path": "data",
        "annotations": data.files["questions_validation"].name,
        "source": "rs-rlhf init",
        "max_new_tokens": 32 if plan.sizes.model else 8,
    }
    given = {"task": plan.folder / "benchmark.yaml", "data_root": plan.folder}
    before = "sft" if "sft.yaml" in plan.recipes else "dpo"
    for name, what in ((before, "before"), ("grpo", "after")):
        out = plan.out / "eval" / name
        plan.add(f"right answers {what} GRPO", "eval", model=plan.out / name, **given, out=out, reads_images=True)
    runs = [plan.out / "eval" / name for name in (before, "grpo")]
    plan.add("what has changed, question by question", "eval", "compare", *runs)


def write_plan(plan: Plan, folder: Path) -> None:
    """Writes the recipes, the commands as a script, and a README into a folder that becomes that of the plan."""
    import yaml

    texts = {}
    commands = {words[-1]: shlex.join(words) for _, words in plan.commands}
    for name, keys in plan.recipes.items():
        path = str(plan.folder / name)
        command = commands.get(path) or next(line for line in map(_line, plan.commands) if path in line)
        texts[name] = f"# {command}\n" + yaml.safe_dump(keys, sort_keys=False, allow_unicode=True)
    steps = [f"# {why}\n{shlex.join(words)}" for why, words in plan.commands]
    texts["run.sh"] = "#!/bin/sh\n# The whole way; run it in the folder in which `rs-rlhf init` was run.\nset -e\n\n"
    texts["run.sh"] += "\n\n".join(steps) + "\n"
    texts["README.md"] = (
        f"# {plan.folder.name}\n\nWritten by `rs-rlhf init`: {plan.sizes.told}. `data/` holds the data in one form "
        "with their images, each `.yaml` is a recipe, whose keys are the flags of its command. `run.sh` runs this:"
        "\n\n"
        "```bash\n" + "\n".join(steps) + "\n```\n"
    )
    for name, text in texts.items():
        write_text(folder / name, text)


def _line(command: tuple[str, list[str]]) -> str:
    return shlex.join(command[1])
