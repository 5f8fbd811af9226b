"""Page of `rs-rlhf eval`: figures with intervals, by question type, confusion matrix, wrong answers with pictures.

Left out: right answers (`samples_TASK.jsonl` has all).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import DataError
from ...runs.files import write_text
from ...runs.page import render
from ...runs.report_tables import Images, spread
from ..results import HEADER, Figures, Record, models_of, read_results, read_samples, results_rows
from .cards import Pictures, answer_card, confusion_chart, type_chart, with_pictures

SHOWN = 60  # wrong answers of a task
FILE = "results.html"


def write_results_page(folder: Path, stored: Mapping[str, Pictures] | None = None) -> Path:
    """Writes `results.html` into an output folder of `rs-rlhf eval`, of all tasks that it holds; returns the file.

    `stored` are by task the images of questions whose records name no file.
    """
    results, images, notes = read_results(folder), Images(), []
    tasks = []
    for name, figures in results["tasks"].items():
        try:
            records = read_samples(folder, name, figures)
        except DataError as error:  # of an earlier run: the figures stand all the same
            notes.append(f"The answers of {name} are not shown: {error}")
            records = []
        tasks.append(_task(name, figures, records, (stored or {}).get(name, {}), images))
    models = ", ".join(models_of(results))
    page = render(
        "evaluation/pages/answers.html",
        title=f"Evaluation of {models}",
        facts=_facts(results),
        verdicts=[],
        notes=notes,
        columns=HEADER,
        rows=results_rows(results),
        charts=[],
        tasks=tasks,
        foot="Written by rs-rlhf eval. results.json has all figures, samples_TASK.jsonl all answers.",
        data={"kinds": {"is-wrong": "wrong"}, "tasks": tasks_data(tasks), "images": images.uris},
    )
    write_text(folder / FILE, page)
    return folder / FILE


def tasks_data(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns what the page's script needs of tasks."""
    return [{key: task[key] for key in ("total", "cards", "none")} for task in tasks]


def _task(name: str, figures: Figures, records: Sequence[Record], stored: Pictures, images: Images) -> dict[str, Any]:
    charts = [type_chart(name, {"": figures}), confusion_chart(name, records)]
    wrong = [record for record in records if record.get("strict") is False]
    cards = [
        answer_card(record, "is-wrong", [("answer", _answer(record), "wrong"), *_read(record)], images, figures)
        for record in with_pictures(spread(wrong, SHOWN), stored)
    ]
    none = (
        "No answer is wrong."
        if any("strict" in record for record in records)
        else "Answers are not right or wrong here."
    )
    return {
        "name": f"{name}: {figures.get('title') or 'answers'}",
        "charts": [chart for chart in charts if chart],
        "total": len(wrong),
        "cards": cards,
        "none": none,
    }


def _answer(record: Record) -> object:
    return record["output"] if "output" in record else record.get("answer")


def _read(record: Record) -> list[tuple[str, object, str]]:
    """How the answer was read, if that is not what was written, and its score."""
    parts: list[tuple[str, object, str]] = []
    if record.get("answer") is not None and str(record["answer"]).strip() != str(_answer(record)).strip():
        parts.append(("read as", str(record["answer"]), ""))
    if isinstance(record.get("score"), int | float):
        parts.append(("score", f"{record['score']:.4g}", ""))
    return parts


def _facts(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was evaluated, on which data, with which settings."""
    facts = {"Model": ", ".join(models_of(results))}
    for name, figures in results["tasks"].items():
        facts[f"Data of {name}"] = f"hash {str(figures.get('dataset_hash'))[:16]}, seed {figures.get('seed')}"
    last = next(reversed(results["tasks"].values()))
    if budget := last.get("pixel_budget"):
        facts["Pixels of an image"] = f"{budget[0]:,} to {budget[1]:,}"
    settings = last.get("settings") or {}
    facts |= {name: str(settings[name]) for name in ("temperature", "system_prompt", "limit") if settings.get(name)}
    versions = last.get("versions") or results.get("versions") or {}
    facts["Versions"] = ", ".join(f"{name} {number}" for name, number in versions.items())
    return [(name, text) for name, text in facts.items() if text]
