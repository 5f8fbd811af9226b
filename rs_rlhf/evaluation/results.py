"""Results of an evaluation on disk: `results.json`, `results.md` and `samples_TASK.jsonl`, written and read back.

`results.json` holds the figures of all tasks run into a folder so far; runs that share a folder take turns. What one
sample record says about one answer is read by [`measured`], the same for comparison and export.

Left out: figures of samples (`metrics`), and the parts of a run that is not finished (`run`).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean as mean
from typing import Any

from ..data.group import short
from ..errors import DataError, ImageError
from ..imagery.arguments import ImageArguments
from ..runs.files import lock, read_json, read_lines, write_json, write_text
from ..runs.progress import versions
from ..runs.tables import THUMBNAIL, markdown_table, thumbnail
from .benchmark import Benchmark
from .lmms.samples import lmms_records, lmms_results, sample_files

# Measure of a single answer -> whether it is right or wrong (McNemar's).
MEASURES = {
    "accuracy": True,
    "image_to_text_R@1": True,
    "text_to_image_R@1": False,
    "image_to_text_R@1_distinct": True,
    "iou": False,
    "score": False,
    "upstream_compat": True,
}
HEADER = ("task", "model", "n", "accuracy", "95% interval", "upstream_compat", "no answer", "other figures")
Results = dict[str, Any]
Figures = Mapping[str, Any]
Record = Mapping[str, Any]


# Writing


@contextmanager
def results_of(out: Path) -> Iterator[Results]:
    """Gives a folder's `results.json` to be changed and writes it back; other runs into the folder wait meanwhile."""
    out.mkdir(parents=True, exist_ok=True)
    handle = os.open(out, os.O_RDONLY)
    try:
        lock(handle, out)
        results = read_results(out, missing_ok=True)
        yield results
        write_json(out / "results.json", results)
    finally:
        os.close(handle)


def add_task(
    out: Path, benchmark: Benchmark, figures: Figures, settings: Mapping[str, Any], budget: list[int] | None
) -> Results:
    """Adds a task's figures to the results of a folder, writes the table anew, and returns all results.

    `settings` are what the answers depend on (`model`, `model_type`, `dataset_hash`, `seed`, …), `budget` the fewest
    and most pixels of an image, `None` if the model was not loaded.
    """
    task = {
        **figures,
        "title": benchmark.title,
        "task": benchmark.task,
        **{key: settings[key] for key in ("model_type", "model", "dataset_hash")},
        "metric_version": benchmark.metric_version,
        "seed": settings["seed"],
        "pixel_budget": budget,
        "settings": dict(settings),
        "published": benchmark.published,
        "versions": versions("torch", "transformers", "trl", "accelerate"),
    }
    with results_of(out) as results:
        old = results["tasks"].get(benchmark.name)
        if old is not None and budget is None:  # judged anew: the model was not loaded
            task |= {"pixel_budget": old["pixel_budget"], "versions": old["versions"]}
        tasks = dict(sorted({**results["tasks"], benchmark.name: task}.items()))
        results.clear()
        last = {key: task[key] for key in ("model", "model_type")} | {"tasks": tasks, "versions": task["versions"]}
        results |= json.loads(json.dumps(last))
        write_text(out / "results.md", results_table(results) + "\n")
    return results


def results_table(results: Results, names: Sequence[str] | None = None) -> str:
    """Returns the table of [`results_rows`] as Markdown."""
    return markdown_table(HEADER, results_rows(results, names), "llrrlrrl")


def results_rows(results: Results, names: Sequence[str] | None = None) -> list[list[str]]:
    """Returns the rows of the table of results, with the columns of [`HEADER`]: the named tasks (by default all), with
    their question types and published figures.
    """
    rows = []
    for name, figures in results["tasks"].items():
        if names is not None and name not in names:
            continue
        rows.append(_row(name, figures["model"], figures))
        parts = figures.get("types", figures.get("by_kind", {}))
        rows += [_row(f"↳ {kind}", "", part) for kind, part in parts.items() if kind]
        rows += [[f"↳ {measure}: {rule}", *[""] * 7] for measure, rule in figures.get("rules", {}).items()]
        for figure in figures["published"]:
            name, value = figure["metric"], f"{figure['value']:.1f}% ({figure['metric']})"
            here = {**figures, **figures.get("metrics", {})}.get(name)
            beside = f"{name} {here:.1%} here" if isinstance(here, float) else ""
            rows.append([f"↳ published: {figure['model']}", figure["source"], "", value, "", "", "", beside])
    return rows


def _row(name: str, model: str, figures: Figures) -> list[str]:
    def percent(value: float | None) -> str:
        return "" if value is None else f"{value:.1%}"

    interval = figures.get("interval")
    other = {**figures.get("metrics", {})}
    other |= {key: figures.get(key) for key in ("average_accuracy", "ties", "swap_error")}
    other |= {"error_rows": figures.get("error_rows")}
    other |= {"shuffle_gap": figures.get("shuffled", {}).get("gap")}
    other |= {"calibration_error": figures.get("calibration", {}).get("error")}
    other |= {f"unreadable ({why})": count for why, count in figures.get("unreadable", {}).items()}
    return [
        name,
        model,
        str(figures["n"]),
        percent(figures.get("accuracy")),
        "{:.1%} – {:.1%}".format(*interval) if interval else "",
        percent(figures.get("upstream_compat")),
        percent(figures.get("parse_failures")),
        ", ".join(f"{key} {value:.4g}" for key, value in other.items() if isinstance(value, int | float)),
    ]


# Reading


def read_results(folder: str | Path, missing_ok: bool = False) -> Results:
    """Reads the `results.json` of an output folder of `rs-rlhf eval`, or sample files of lmms-eval.

    `{"tasks": {}}` with `missing_ok` if there is none. A file that is missing, cut off or without tasks is a
    [`DataError`].
    """
    path = Path(folder) / "results.json"
    if not path.is_file():
        if missing_ok:
            return {"tasks": {}}
        if sample_files(folder):
            return lmms_results(folder)
        advice = "give an output folder (--out) of a finished `rs-rlhf eval`, or one of lmms-eval's samples"
        raise DataError(f"no results.json; {advice}", "", str(folder))
    return read_json(path, "tasks", dict, "`rs-rlhf eval`")


def read_samples(folder: str | Path, task: str, figures: Figures) -> list[dict[str, Any]]:
    """Reads `samples_TASK.jsonl`: one record per question, in the order of the data, as many as the task's figures
    say.

    A [`DataError`] names the file and line that is missing, no JSON object, or without an `id` of its own.
    """
    path = Path(folder) / f"samples_{task}.jsonl"
    if not path.is_file() and task in sample_files(folder):
        return lmms_records(folder, task)
    again = "run `rs-rlhf eval` again with the same --out"
    if not path.is_file():
        raise DataError(f"no such file, though results.json has {task}; {again}", where=str(path))
    lines: dict[str, int] = {}
    records = read_lines(path)
    for number, record in enumerate(records, start=1):
        where, name = f"{path}, line {number}", record.get("id")
        if not isinstance(name, str):
            raise DataError(f"`id` is {short(name)}, expected a text; {again}", "id", where)
        if name in lines:
            raise DataError(f"the id {name!r} stands in line {lines[name]} too; {again}", "id", where)
        lines[name] = number
    n = figures.get("rows", figures.get("n"))  # for preferences `n` counts comparisons
    if n is not None and n != len(records):
        raise DataError(f"{len(records)} records, but results.json was made of {n}; {again}", where=str(path))
    return records


def measured(record: Record, where: str = "") -> dict[str, float]:
    """Returns what is known of one answer, by the names of [`MEASURES`]: right or wrong as 1 or 0.

    `iou` is the mean over the question's boxes, `text_to_image_R@1` the share of the image's own captions for which it
    is ranked first. A value of another type is a [`DataError`] at `where`.
    """
    measures: dict[str, float] = {}

    def known(key: str, types: type | tuple[type, ...], expected: str) -> bool:
        value = record.get(key)
        if value is None:
            return False
        if not isinstance(value, types) or (isinstance(value, bool) and types is not bool):
            raise DataError(f"`{key}` is {short(value)}, expected {expected}", key, where)
        return value != []

    if known("strict", bool, "true or false"):
        measures["accuracy"] = float(record["strict"])
    if known("image_to_text_rank", int, "a rank from 1"):
        measures["image_to_text_R@1"] = float(record["image_to_text_rank"] == 1)
    if known("text_to_image_ranks", list, "a list of numbers"):
        measures["text_to_image_R@1"] = mean(rank == 1 for rank in record["text_to_image_ranks"])
    if known("image_to_text_rank_distinct", int, "a rank from 1"):
        measures["image_to_text_R@1_distinct"] = float(record["image_to_text_rank_distinct"] == 1)
    if known("ious", list, "a list of numbers"):
        measures["iou"] = mean(map(float, record["ious"]))
    if known("score", (int, float), "a number"):
        measures["score"] = float(record["score"])
    if known("upstream_compat", bool, "true or false"):
        measures["upstream_compat"] = float(record["upstream_compat"])
    if broken := next((name for name, value in measures.items() if not math.isfinite(value)), None):
        raise DataError(f"{broken} is {measures[broken]}, expected a finite number", broken, where)
    return measures


def models_of(results: Mapping[str, Any], tasks: Sequence[str] | None = None) -> list[str]:
    """Returns the models that the tasks (by default all) evaluated: a folder may hold tasks of several."""
    figures = results["tasks"]
    return list(dict.fromkeys(str(figures[task].get("model", results.get("model"))) for task in tasks or figures))


def thumbnail_of(record: Record, figures: Figures, side: int = THUMBNAIL) -> tuple[dict[str, Any] | None, str]:
    """Reads the picture of a record, with the bands and the stretch that the model saw it with; returns its thumbnail
    (see [`runs.tables.thumbnail`]) or `None`, and why there is none.
    """
    from ..imagery.raster import read_image

    if not record.get("image"):
        return None, "no picture: it lies inside the data's file (Parquet); eval compare shows it with --data_root"
    reading = (figures.get("settings") or {}).get("reading") or {}
    try:  # the paths of records are whole; a file does not say which hosts may be asked
        options = ImageArguments(**{**reading, "image_root": None, "image_hosts": None}).reader_options()
        return thumbnail(read_image(record["image"], options), side), ""
    except ImageError as error:
        return None, f"no picture: {error}"
