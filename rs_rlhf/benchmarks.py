"""Benchmarks: what is asked of which data and how it is judged, declared in `eval/*.yaml`.

A benchmark says where its data lie below the data root, in which layout, what a model is asked and what of its answer
counts. Its samples are [`QuestionRow`]s, whatever the layout, so that the same rows can be evaluated, sampled for
preferences or trained on. The readers of the layouts are in `benchmark_data`.

Left out: Python in declarations. A layout that no reader knows is converted to rows (`layout: rows`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import declarations
from .declarations import DeclarationError, did_you_mean

# Task -> the kinds of model that it can be put to, the usual one first.
TASKS: dict[str, tuple[str, ...]] = {
    "classification": ("vlm", "clip", "score"),
    "vqa": ("vlm",),
    "choice": ("vlm", "score"),
    "grounding": ("vlm",),
    "captions": ("vlm",),
    "retrieval": ("clip",),
    "preference": ("score",),
}
MODEL_TYPES = ("vlm", "clip", "score")
LAYOUTS = ("images", "authors", "rows", "rsvqa", "lhrs_bench", "dior_rsvg", "vrsbench", "karpathy", "preferences",
           "pairs")  # fmt: skip


@dataclass
class Benchmark:
    """A declared benchmark.

    Args:
        title (`str`): One line for `rs-rlhf eval --list`.
        task (`str`): A key of [`TASKS`]; it decides how answers are judged.
        layout (`str`): One of [`LAYOUTS`]: how the data lie, see `benchmark_data`.
        path (`str`): Folder or file below the data root.
        source (`str`): Paper or page that the data and the protocol come from.
        metric_version (`int`): Raised when a change of parser or metric makes older figures incomparable.
        split (`str`, *optional*): Split of the data.
        annotations (`str`, *optional*): File or pattern of the annotations below `path`, for layouts that have them.
        images (`str`, *optional*): Folder of the images below `path`, for layouts that have one.
        prompt (`str`): What is asked; `{question}`, `{choices}` and `{object}` are filled in.
        choices (`list[str]`): The well-formed answers of every question; by default those of the data.
        class_names (`dict[str, str]`): Class folder, label or type -> the words for it, where they differ.
        templates (`list[str]`): CLIP's prompts, with `{c}`; their text features are averaged.
        types (`list[str]`): Question types asked for; by default all.
        core_types (`list[str]`): The types that `--core_only` keeps (the subset that VLM papers report).
        numbers (`str`, *optional*): How numbers are bucketed before they are compared: `"rsvqa_lr"` or `"rsvqa_hr"`.
        box_unit (`str`): Units of the boxes that models answer with, a key of `answers.BOX_UNITS`.
        max_new_tokens (`int`): Longest answer.
        published (`list[dict]`): Figures from papers: `model`, `metric`, `value` (percent), `source`.
        name (`str`): The file's name; filled in on loading.
    """

    title: str
    task: str
    layout: str
    path: str
    source: str
    metric_version: int = 1
    split: str | None = None
    annotations: str | None = None
    images: str | None = None
    prompt: str = "{question}"
    choices: list[str] = field(default_factory=list)
    class_names: dict[str, str] = field(default_factory=dict)
    templates: list[str] = field(default_factory=list)
    types: list[str] = field(default_factory=list)
    core_types: list[str] = field(default_factory=list)
    numbers: str | None = None
    box_unit: str = "0-1000"
    max_new_tokens: int = 32
    published: list[dict[str, Any]] = field(default_factory=list)
    name: str = ""

    def __post_init__(self) -> None:
        for key, value, choices in (("task", self.task, tuple(TASKS)), ("layout", self.layout, LAYOUTS)):
            if value not in choices:
                raise ValueError(f"{key} is {value!r}{did_you_mean(str(value), choices)}")
        if os.path.isabs(self.path) or ".." in Path(self.path).parts:
            raise ValueError(f"path is {self.path!r}, expected one below the data root.")
        for entry in self.published:
            if set(entry) != {"model", "metric", "value", "source"}:
                raise ValueError(f"published holds {entry!r:.80}, expected model, metric, value and source.")


def load_benchmark(name_or_path: str) -> Benchmark:
    """Loads a benchmark by name or from a YAML file.

    Raises:
        DeclarationError: No such name (says the nearest), or a key or value that cannot be used.
    """
    benchmark = declarations.load("eval", name_or_path, Benchmark)
    benchmark.name = benchmark.name or Path(declarations.find("eval", name_or_path)).stem
    return benchmark


def data_root(given: str | None) -> Path:
    """Returns the folder that benchmarks' paths start from: what is given, `RS_RLHF_DATA`, or `../shared/data`.

    Raises:
        DeclarationError: It does not exist.
    """
    root = Path(given or os.environ.get("RS_RLHF_DATA") or "../shared/data")
    if not root.is_dir():
        raise DeclarationError(f"no data root {root}; give --data_root, the folder that holds the benchmarks' data.")
    return root


def data_path(benchmark: Benchmark, root: Path) -> Path:
    """Returns where a benchmark's data are.

    Raises:
        DeclarationError: They are not there; says where they were looked for and where they come from.
    """
    path = root / benchmark.path
    if not path.exists():
        raise DeclarationError(
            f"{benchmark.name}: no data at {path}; put {benchmark.title} there ({benchmark.source}), or give another "
            f"--data_root, or --data {benchmark.name}=PATH."
        )
    return path
