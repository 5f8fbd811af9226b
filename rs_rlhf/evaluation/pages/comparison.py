"""Page of `rs-rlhf eval compare`: verdict, numbers and charts above the answers that changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import DataError
from ...runs.charts.curves import intervals
from ...runs.charts.style import Spec, figure
from ...runs.files import json_lines, write_text
from ...runs.page import render
from ...runs.report_tables import Images, spread
from ..benchmark import load_benchmark, locate_data
from ..compare import DIRECTIONS, HEADER, is_share, markdown, table_rows
from ..reader import dataset_hash, read_benchmark
from ..results import Figures, read_results
from .cards import Pictures, answer_card, type_chart, with_pictures
from .results import tasks_data

SHOWN = 200  # flips of a task
WAYS = dict(zip(DIRECTIONS, ("right → wrong", "wrong → right"), strict=True))


def write(
    compared: Mapping[str, Any],
    folder: str | Path,
    data_root: str | None = None,
    data: Mapping[str, Path] | None = None,
) -> list[Path]:
    """Writes `compare.json`, `compare.md`, `flips_TASK.jsonl` and the page `compare.html` into a folder; returns the
    files.

    `data_root` and `data` (task -> path) say where the benchmarks' data lie, for pictures inside Parquet files; data
    that are not those of the questions are a [`DataError`].
    """
    report = {key: value for key, value in compared.items() if key != "flips"}
    report["flips"] = {
        task: {way: sum(flip["direction"] == way for flip in flips) for way in DIRECTIONS}
        for task, flips in compared["flips"].items()
    }
    texts = {"compare.json": json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"}
    texts["compare.md"] = markdown(compared) + "\n"
    for task, flips in compared["flips"].items():
        texts[f"flips_{task}.jsonl"] = json_lines(flips)
    texts["compare.html"] = comparison_page(compared, data_root, data or {})
    for name, text in texts.items():
        write_text(Path(folder, name), text)
    return [Path(folder, name) for name in texts]


def comparison_page(
    compared: Mapping[str, Any], data_root: str | None = None, data: Mapping[str, Path] | None = None
) -> str:
    """Returns the page of a comparison, see [`rs_rlhf.evaluation.compare.compare`] and [`write`]."""
    images = Images()
    results = {side: read_results(compared[side]["folder"])["tasks"] for side in ("a", "b")}
    sides = {side: f"{side.upper()}: {compared[side]['model']}" for side in ("a", "b")}
    names = dict.fromkeys(row["task"] for row in compared["rows"])
    tasks = []
    for name in {**names, **compared["flips"]}:
        figures = results["a"][name]  # the paths of flips are those of A
        flips = compared["flips"].get(name, [])
        shown = spread(flips, SHOWN)
        if (data_root or name in (data or {})) and any(not flip["image"] for flip in shown):
            shown = with_pictures(shown, _stored_pictures(name, figures, data_root, data or {}))
        chart = type_chart(name, {text: results[side][name] for side, text in sides.items()})
        tasks.append(
            {
                "name": name,
                "charts": [chart] if chart else [],
                "total": len(flips),
                "cards": [_card(flip, sides, images, figures) for flip in shown],
                "none": "No question's answer became right or wrong from A to B.",
            }
        )
    return render(
        "evaluation/pages/answers.html",
        title=f"{sides['a']} - {sides['b']}",
        facts=[(text.split(":")[0], compared[side]["folder"]) for side, text in sides.items()],
        verdicts=[f"{row['task']}, {row['measure']}: {row['verdict']}." for row in compared["rows"]],
        notes=compared["notes"],
        columns=HEADER,
        rows=table_rows(compared),
        charts=_difference_charts(compared),
        tasks=tasks,
        foot="Written by rs-rlhf eval compare. Questions whose answer became right or wrong from A to B; all of them "
        "are in flips_TASK.jsonl.",
        data={"kinds": WAYS, "tasks": tasks_data(tasks), "images": images.uris},
    )


def _difference_charts(compared: Mapping[str, Any]) -> list[Spec]:
    """B - A with its interval, of shares in points; one chart for all shares, and one for each other measure."""
    families: dict[str, list[dict[str, Any]]] = {}
    for row in compared["rows"]:
        share = is_share(row["measure"])
        factor = 100 if share else 1
        low, high = (factor * end for end in row["interval"])
        entry = {
            "label": f"{row['task']}, {row['measure']}",
            "value": factor * row["difference"],
            "low": low,
            "high": high,
        }
        families.setdefault("points" if share else row["measure"], []).append(entry)
    charts = []
    for unit, rows in families.items():
        title = f"B - A, {unit}, 95% intervals"
        charts.append(figure(intervals(title, rows, f"B - A, {unit}", share=False, mark=0, width=220), title))
    return charts


def _card(flip: Mapping[str, Any], sides: Mapping[str, str], images: Images, figures: Figures) -> dict[str, Any]:
    lost = flip["direction"] == "right_to_wrong"
    styles = {"a": "right" if lost else "wrong", "b": "wrong" if lost else "right"}
    parts = [(text, flip[side].get("output", flip[side] or None), styles[side]) for side, text in sides.items()]
    return answer_card(flip, flip["direction"], parts, images, figures)


def _stored_pictures(task: str, figures: Figures, data_root: str | None, data: Mapping[str, Path]) -> Pictures:
    """Id -> image of a benchmark's questions, read from its data again."""
    benchmark = load_benchmark(task)
    path = locate_data(benchmark, data_root, data)
    for core_only in (False, True):
        rows = read_benchmark(benchmark, path, core_only=core_only)
        if dataset_hash(rows) == figures["dataset_hash"]:
            return {row.id: row.group.images[0] for row in rows if row.group.images}
    raise DataError(
        f"{task}: these are not the data that the questions are of; correct --data_root or --data", where=str(path)
    )
