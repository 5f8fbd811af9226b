"""Benchmarks: what is asked of which data and how it is judged, declared in `eval/*.yaml`.

A benchmark says where its data lie below the data root, in which layout, what a model is asked and what of its answer
counts. Its samples are [`QuestionRow`]s, whatever the layout, so that the same rows can be evaluated, sampled for
preferences or trained on. The readers of the layouts are in `benchmark_data`.

Left out: Python in declarations. A layout that no reader knows is converted to rows (`layout: rows`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .. import declarations
from ..declarations import did_you_mean
from ..errors import DeclarationError, OptionError
from ..metrics.boxes import BOX_UNITS
from ..metrics.closed_answers import SCHEMES

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
# Layout -> which of the keys that not all of them read it does.
LAYOUTS: dict[str, tuple[str, ...]] = {
    "images": ("split", "prompt", "choices", "class_names"),
    "authors": ("annotations", "prompt", "choices", "class_names"),
    "rows": ("split", "annotations", "images", "prompt", "choices"),
    "rsvqa": ("split", "images", "prompt", "choices"),
    "lhrs_bench": ("annotations", "images", "prompt"),
    "dior_rsvg": ("split", "annotations", "images", "prompt"),
    "vrsbench": ("annotations", "images", "prompt"),
    "karpathy": ("split", "annotations", "images", "prompt"),
    "preferences": ("split", "annotations", "images"),
    "pairs": ("split",),
}


@dataclass
class Benchmark:
    """A declared benchmark.

    Args:
        title (`str`): One line for `rs-rlhf eval --list`.
        task (`str`): A key of [`TASKS`]; it decides how answers are judged.
        layout (`str`): A key of [`LAYOUTS`]: how the data lie, see `benchmark_data`.
        path (`str`): Folder or file below the data root.
        source (`str`): Paper or page that the data and the protocol come from.
        metric_version (`int`): Raised when a change of parser or metric makes older figures incomparable.
        split (`str`, *optional*): Split of the data.
        annotations (`str`, *optional*): File or pattern of the annotations below `path`, for layouts that have them.
        images (`str`, *optional*): Folder of the images below `path`, for layouts that have one.
        prompt (`str`): What is asked; `{question}`, `{choices}` and `{object}` are filled in. Of `rows` it goes
            around the prompts, which must be texts then.
        choices (`list[str]`): The well-formed answers of every question; by default those of the data.
        class_names (`dict[str, str]`): Class folder, label or type -> the words for it, where they differ.
        templates (`list[str]`): CLIP's prompts, with `{c}`; their text features are averaged.
        types (`list[str]`): Question types asked for; by default all.
        core_types (`list[str]`): The types that `--core_only` keeps (the subset that VLM papers report).
        numbers (`str`, *optional*): How numbers are bucketed before they are compared: `"rsvqa_lr"` or `"rsvqa_hr"`.
        box_unit (`str`): Units of the boxes that models answer with, a key of `answers.BOX_UNITS`.
        max_new_tokens (`int`): Longest answer.
        published (`list[dict]`): Figures from papers: `model`, `metric`, `value` (percent), `source`.
        name (`str`): The file's name; filled in on loading. It names the files of the output.

    Raises:
        ValueError: A value of another kind, or a key that the layout does not read.
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
        _check_kinds(self)
        allowed = (("task", TASKS), ("layout", LAYOUTS), ("numbers", (None, *SCHEMES)), ("box_unit", BOX_UNITS))
        for key, choices in allowed:
            value = getattr(self, key)
            if value not in choices:
                raise OptionError(f"{key} is {value!r}{did_you_mean(str(value), filter(None, choices))}")
        for key, start in (("path", "the data root"), ("annotations", "path"), ("images", "path")):
            value = getattr(self, key) or ""
            if Path(value).is_absolute() or ".." in Path(value).parts:
                raise OptionError(f"{key} is {value!r}, expected one below {start}.")
        if self.name:
            check_name(self.name)
        read = LAYOUTS[self.layout]
        for one in fields(self):
            unset = getattr(self, one.name) in (one.default, [], {})
            if not unset and one.name not in read and any(one.name in keys for keys in LAYOUTS.values()):
                raise OptionError(
                    f"the layout {self.layout} does not read {one.name}, only {', '.join(read)}; take it out."
                )


def _check_kinds(benchmark: Benchmark) -> None:
    """Refuses values of another kind than declared: YAML reads an unquoted `yes` as true and `1` as a number."""
    quotes = "write it in quotes."
    for one in fields(benchmark):
        value = getattr(benchmark, one.name)
        kind = str(one.type)
        if kind.startswith("str") and not (isinstance(value, str) or (value is None and "None" in kind)):
            raise OptionError(f"{one.name} is {value!r:.60}, expected a text; {quotes}")
        if kind == "int" and (type(value) is not int or value < 1):
            raise OptionError(f"{one.name} is {value!r:.60}, expected a whole number of at least 1.")
        if kind.startswith("list") and not isinstance(value, list):
            raise OptionError(f"{one.name} is {value!r:.60}, expected a list.")
        for text in value if kind == "list[str]" else ():
            if not isinstance(text, str):
                raise OptionError(f"{one.name} holds {text!r:.60}, expected texts; {quotes}")
    if not isinstance(benchmark.class_names, dict):
        raise OptionError(f"class_names is {benchmark.class_names!r:.60}, expected names and their words.")
    for text in (one for pair in benchmark.class_names.items() for one in pair):
        if not isinstance(text, str):
            raise OptionError(f"class_names holds {text!r:.60}, expected texts; {quotes}")
    for entry in benchmark.published:
        if not isinstance(entry, dict) or set(entry) != {"model", "metric", "value", "source"}:
            raise OptionError(f"published holds {entry!r:.80}, expected model, metric, value and source.")
        if type(entry["value"]) not in (int, float):
            raise OptionError(f"published has the value {entry['value']!r:.60}, expected a number (percent).")


def check_name(name: str) -> None:
    """Refuses a name that cannot be part of a file's name, or of `--task a,b`.

    Raises:
        ValueError: It holds something else than letters, digits, `_`, `-` and `.`.
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise OptionError(f"the benchmark's name is {name!r}, expected letters, digits, _, - and . only; rename it.")


def load_benchmark(name_or_path: str) -> Benchmark:
    """Loads a benchmark by name or from a YAML file.

    Raises:
        DeclarationError: No such name (says the nearest), or a key or value that cannot be used.
    """
    benchmark = declarations.load("eval", name_or_path, Benchmark)
    file = declarations.find("eval", name_or_path)
    benchmark.name = benchmark.name or file.stem
    try:
        check_name(benchmark.name)
    except ValueError as error:
        raise DeclarationError(f"{file}: {error}") from None
    return benchmark


def data_root(given: str | None) -> Path:
    """Returns the folder that benchmarks' paths start from: what is given, else [`declarations.data_root`].

    Raises:
        DeclarationError: It does not exist.
    """
    root = Path(given) if given else declarations.data_root()
    if not root.is_dir():
        raise DeclarationError(
            f"no data root {root}; give --data_root, or set RS_RLHF_DATA, the folder that holds the benchmarks' data."
        )
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
