"""Declared benchmarks as tasks of lmms-eval: `rs-rlhf eval export --tasks`.

A task is a YAML file, made of the declaration, that names a JSONL file of the benchmark's questions and functions of
`utils.py`, which call ours: so a question is asked and an answer judged as `rs-rlhf eval` does. Run them with
`--include_path FOLDER --tasks rs_NAME` in an environment that has rs-rlhf.

Left out: grounding (a box is read by the profile of a model, which lmms-eval does not tell its tasks), captions,
retrieval, and preferences.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ... import declarations
from ...data.group import completion_text
from ...errors import DeclarationError, OptionError
from ...metrics.closed_answers import judge_answer
from ...runs.files import replacing, write_text
from ..benchmark import Benchmark, data_paths, load_benchmark, locate_data

TASKS = ("classification", "vqa", "choice")
UTILS = '''"""What the tasks in this folder call: rs-rlhf's reader and judge."""

from rs_rlhf.evaluation.lmms import tasks


def doc_to_visual(doc):
    return tasks.doc_to_visual(doc)


def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    return tasks.doc_to_text(doc)


def doc_to_target(doc):
    return tasks.doc_to_target(doc)


def process_results(doc, results):
    return tasks.process_results(doc, results)
'''


def write_tasks(names: str, folder: Path, data_root: str | None = None, data: Sequence[str] = ()) -> list[Path]:
    """Writes benchmarks as tasks of lmms-eval, and `utils.py`; the questions too, if their data are there.

    Args:
        names (`str`): Benchmarks by name or YAML file, separated by commas; `"all"` is every one of [`TASKS`].
        folder (`Path`): Folder to write to.
        data_root, data: As for `rs-rlhf eval`.

    Returns:
        `list[Path]`: The files. What is not there is printed.

    Raises:
        OptionError: A benchmark of a task that is left out.
        DataError: Data that cannot be read.
    """
    everything = names.strip() == "all"
    given = declarations.names("eval") if everything else [name.strip() for name in names.split(",") if name.strip()]
    benchmarks = [load_benchmark(name) for name in given]
    for benchmark in benchmarks if not everything else ():
        if benchmark.task not in TASKS:
            detail = f"{benchmark.name} is a {benchmark.task} task, expected one of {', '.join(TASKS)}; leave it out."
            raise OptionError(detail, "tasks")
    benchmarks = [benchmark for benchmark in benchmarks if benchmark.task in TASKS]
    paths = data_paths(data, [benchmark.name for benchmark in benchmarks])
    files = [folder / "utils.py"]
    write_text(files[0], UTILS)
    for benchmark in benchmarks:
        rows = folder / f"rs_{benchmark.name}.jsonl"
        files.append(rows.with_suffix(".yaml"))
        write_text(files[-1], task_yaml(benchmark, rows))
        try:
            path = locate_data(benchmark, data_root, paths)
        except DeclarationError as error:
            if not everything and (data_root or data):
                raise
            print(f"{rows.name} is not written: {error.detail}")
            continue
        write_rows(benchmark, path, rows)
        files.append(rows)
    return files


def task_yaml(benchmark: Benchmark, rows: Path) -> str:
    """Returns the YAML of a task whose questions are in the file `rows`."""
    import yaml

    task = {
        "task": f"rs_{benchmark.name}",
        "task_alias": benchmark.title,
        "tag": "rs_rlhf",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": os.path.abspath(rows)}},
        "test_split": "test",
        "output_type": "generate_until",
        "generation_kwargs": {"max_new_tokens": benchmark.max_new_tokens, "temperature": 0, "do_sample": False},
        "metric_list": [
            {"metric": "accuracy", "aggregation": "mean", "higher_is_better": True},
            {"metric": "parse_failure", "aggregation": "mean", "higher_is_better": False},
        ],
        "metadata": [{"version": float(benchmark.metric_version), "source": benchmark.source}],
    }
    head = "# lmms-eval --include_path FOLDER --tasks NAME --model M; written by `rs-rlhf eval export --tasks`\n"
    functions = ("doc_to_visual", "doc_to_text", "doc_to_target", "process_results")
    called = "".join(f"{name}: !function utils.{name}\n" for name in functions)
    return head + yaml.safe_dump(task, sort_keys=False, allow_unicode=True) + called


def write_rows(benchmark: Benchmark, path: Path, file: Path) -> None:
    """Writes a benchmark's questions, in order: the place of one is its `doc_id`; images by their whole paths."""
    from ...data.placed_images import image_bytes, image_name
    from ..reader import read_benchmark, references_of

    images = file.with_suffix("")
    with replacing(file) as lines:
        for row in read_benchmark(benchmark, path):
            names = []
            for image in row.group.images:
                if isinstance(image, str):
                    names.append(os.path.abspath(image))
                    continue
                target = images / f"{len(names)}-{image_name(image, '')}"  # type: ignore[arg-type]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(image_bytes(image))  # type: ignore[arg-type]
                names.append(os.path.abspath(target))
            question = {"id": row.id, "images": names, "question": completion_text(row.group.prompt)}
            judged = {"references": references_of(row), "choices": row.choices, "numbers": benchmark.numbers}
            line = {**question, **judged, "types": row.columns["types"]}
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")


# What lmms-eval calls


def doc_to_visual(doc: dict[str, Any]) -> list[Any]:
    """Returns the pictures of a question."""
    from ...imagery.raster import read_image

    return [read_image(name) for name in doc["images"]]


def doc_to_text(doc: dict[str, Any]) -> str:
    """Returns the question."""
    return doc["question"]


def doc_to_target(doc: dict[str, Any]) -> str:
    """Returns the right answer, the first if there are several."""
    return doc["references"][0]


def process_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Judges the answer as `rs-rlhf eval` does."""
    verdict = judge_answer(results[0], doc["references"], choices=doc["choices"], numbers=doc["numbers"])
    return {"accuracy": float(verdict["strict"]), "parse_failure": float(verdict["answer"] is None)}
