"""Benchmarks: what is asked about which data and how the answers are judged, declared in `eval/*.yaml`.

A benchmark says where its data lie below the data root, in which layout, what a model is asked, and what of its answer
counts. Its questions are [`QuestionRow`]s, whatever the layout, so that the same rows can be evaluated, sampled for
preferences or trained on. The readers of the layouts are in `reader` and `layouts`.

Left out: Python in declarations. A layout that no reader knows is converted to rows (`layout: rows`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from .. import declarations
from ..declarations import did_you_mean
from ..errors import DeclarationError, OptionError
from ..metrics.quantities import SCHEMES

# Task -> the types of model that it can be put to, the usual one first.
TASKS: dict[str, tuple[str, ...]] = {
    "classification": ("vlm", "clip", "score"),
    "vqa": ("vlm",),
    "choice": ("vlm", "score"),
    "grounding": ("vlm",),
    "captions": ("vlm",),
    "retrieval": ("clip",),
    "preference": ("score",),
}
# Layout -> the optional keys that it reads.
LAYOUTS: dict[str, tuple[str, ...]] = {
    "images": ("split", "columns", "prompt", "choices", "class_names"),
    "authors": ("annotations", "prompt", "choices", "class_names"),
    "rows": ("split", "annotations", "images", "columns", "prompt", "choices"),
    "rsvqa": ("split", "images", "prompt", "choices"),
    "lhrs_bench": ("annotations", "images", "prompt"),
    "dior_rsvg": ("split", "annotations", "images", "prompt"),
    "vrsbench": ("annotations", "images", "prompt"),
    "karpathy": ("split", "annotations", "images", "prompt"),
    "meter_ml": ("split", "prompt", "choices", "class_names"),
    "preferences": ("split", "annotations", "images", "columns"),
    "pairs": ("split", "columns"),
}
OPTIONAL_KEYS = {key for keys in LAYOUTS.values() for key in keys}


@dataclass
class Benchmark:
    """A declared benchmark.

    Args:
        title (`str`): One line for `rs-rlhf eval --list`.
        task (`str`): A key of [`TASKS`]; it decides how answers are judged.
        layout (`str`): A key of [`LAYOUTS`]: how the data lie, see `layouts`.
        path (`str`): Folder or file below the data root.
        source (`str`): Paper or page that the data and the protocol come from.
        metric_version (`int`): Raised when a change of parser or metric makes older figures incomparable.
        split (`str`, *optional*): Split of the data.
        annotations (`str`, *optional*): File or pattern of the annotations below `path`, for layouts that have them.
        images (`str`, *optional*): Folder of the images below `path`, for layouts that have one.
        columns (`dict[str, str]`): Columns by the fields that they hold, as with `--columns`: `{image: tile}`.
        prompt (`str`): What is asked; `{question}`, `{choices}` and `{object}` are filled in, and `{box_request}`, how
            the model that is evaluated is asked for a box (see `models.profiles`). In the layout `rows` it goes around
            the prompts, which must be texts then.
        choices (`list[str]`): The well-formed answers of every question; by default those of the data.
        class_names (`dict[str, str]`): Class folder, label or type -> the words for it, if they differ.
        templates (`list[str]`): CLIP's prompts, with `{c}`; their text features are averaged.
        types (`list[str]`): Question types asked for; by default all.
        core_types (`list[str]`): The types that `--core_only` keeps (the subset that VLM papers report).
        numbers (`str`, *optional*): How numbers are bucketed before they are compared: `"rsvqa_lr"` or `"rsvqa_hr"`.
        box_unit (`str`, *optional*): Refused, with what to write instead: see `models.profiles`.
        max_new_tokens (`int`): Longest answer.
        published (`list[dict]`): Figures from papers: `model`, `metric`, `value` (percent), `source`.
        name (`str`): The file's name; filled in on loading. It names the files of the output.

    Raises:
        DeclarationError: A value of another type, or a key that the layout does not read.
    """

    title: str
    task: str
    layout: str
    path: str
    source: str
    metric_version: int = 2
    split: str | None = None
    annotations: str | None = None
    images: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    prompt: str = "{question}"
    choices: list[str] = field(default_factory=list)
    class_names: dict[str, str] = field(default_factory=dict)
    templates: list[str] = field(default_factory=list)
    types: list[str] = field(default_factory=list)
    core_types: list[str] = field(default_factory=list)
    numbers: str | None = None
    box_unit: str | None = None
    max_new_tokens: int = 32
    published: list[dict[str, Any]] = field(default_factory=list)
    name: str = ""

    def __post_init__(self) -> None:
        if self.box_unit is not None:
            raise DeclarationError(
                "box_unit is no longer a benchmark's: the unit that a model answers in is in its profile "
                "(eval/profiles); take the key out, write {box_request} in the prompt where it asks for the box, and "
                "give --profile NAME for a model whose type has none.",
                "box_unit",
            )
        for entry in fields(self):
            declarations.check_type(entry.name, str(entry.type), getattr(self, entry.name))
        _check_published(self.published)
        allowed = (("task", TASKS), ("layout", LAYOUTS), ("numbers", (None, *SCHEMES)))
        for key, choices in allowed:
            if (value := getattr(self, key)) not in choices:
                raise DeclarationError(f"{key} is {value!r}{did_you_mean(str(value), filter(None, choices))}", key)
        for key, start in (("path", "the data root"), ("annotations", "path"), ("images", "path")):
            value = getattr(self, key) or ""
            if Path(value).is_absolute() or ".." in Path(value).parts:
                raise DeclarationError(f"{key} is {value!r}, expected one below {start}.", key)
        if not re.fullmatch(r"[\w.-]*", self.name):  # it names files, and stands in `--task a,b`
            detail = f"the benchmark's name is {self.name!r}, expected letters, digits, _, - and . only; rename it."
            raise DeclarationError(detail, "name")
        read = LAYOUTS[self.layout]
        for entry in fields(self):
            unset = getattr(self, entry.name) in (entry.default, [], {})
            if not unset and entry.name in OPTIONAL_KEYS and entry.name not in read:
                raise DeclarationError(
                    f"the layout {self.layout} does not read {entry.name}, only {', '.join(read)}; take it out.",
                    entry.name,
                )


def _check_published(figures: Iterable[Any]) -> None:
    for figure in figures:
        if not (isinstance(figure, dict) and set(figure) == {"model", "metric", "value", "source"}):
            detail = f"published holds {figure!r:.80}, expected model, metric, value and source."
            raise DeclarationError(detail, "published")
        if type(figure["value"]) not in (int, float):
            detail = f"published has the value {figure['value']!r:.80}, expected a number (percent)."
            raise DeclarationError(detail, "published")


def load_benchmark(name_or_path: str) -> Benchmark:
    """Loads a benchmark by name or from a YAML file; a [`DeclarationError`] says the nearest name, or the key at
    fault.
    """
    benchmark = declarations.load("eval", name_or_path, Benchmark)
    file = declarations.find("eval", name_or_path)
    try:
        return replace(benchmark, name=benchmark.name or file.stem)
    except DeclarationError as error:
        raise DeclarationError(error.detail, error.key, str(file)) from None


def benchmark_list() -> str:
    """Returns the table of `rs-rlhf eval --list`."""
    lines = [f"{'name':<24}{'task':<16}{'data below the root':<28}what"]
    for benchmark in map(load_benchmark, declarations.names("eval")):
        lines.append(f"{benchmark.name:<24}{benchmark.task:<16}{benchmark.path:<28}{benchmark.title}")
    return "\n".join(lines)


def model_type_of(benchmark: Benchmark, given: str | None) -> str:
    """Returns the type of model that a benchmark evaluates: the usual one, or the given one; an [`OptionError`] if the
    task cannot be put to it.
    """
    known = TASKS[benchmark.task]
    if given is not None and given not in known:
        raise OptionError(
            f"{benchmark.name} is a {benchmark.task} task, for models of type {' or '.join(known)}, not {given}; "
            "leave it out, or give another --model-type.",
            "model_type",
        )
    return given or known[0]


def data_paths(data: Iterable[str], names: Iterable[str]) -> dict[str, Path]:
    """Returns the paths that `--data TASK=PATH` gives, by task; an [`OptionError`] says which value is of another form
    or of a task that is not run.
    """
    paths, known = {}, list(names)
    for value in data:
        name, equals, path = value.partition("=")
        if not equals or not path or name not in known:
            raise OptionError(f"--data {value}: expected TASK=PATH with TASK one of {', '.join(known)}.", "data")
        paths[name] = Path(path)
    return paths


def locate_data(benchmark: Benchmark, data_root: str | None, given: Mapping[str, Path] | None = None) -> Path:
    """Returns where a benchmark's data are: what [`data_paths`] gives, or the benchmark's path below `data_root`.

    An [`OptionError`] or [`DeclarationError`] says where they were looked for and where they come from.
    """
    if given and benchmark.name in given:
        path = given[benchmark.name]
        if not path.exists():
            raise OptionError(f"--data {benchmark.name}={path}: no such file or folder.", "data")
        return path
    root = Path(data_root) if data_root else declarations.data_root()
    if not root.is_dir():
        raise DeclarationError(
            f"no data root {root}; give --data_root, or set RS_RLHF_DATA, the folder that holds the benchmarks' data.",
            "data_root",
        )
    path = root / benchmark.path
    if not path.exists():
        raise DeclarationError(
            f"{benchmark.name}: no data at {path}; put {benchmark.title} there ({benchmark.source}), or give another "
            f"--data_root, or --data {benchmark.name}=PATH.",
            "path",
        )
    return path
