"""Sample files of lmms-eval (0.4 and later), `TIME_samples_TASK.jsonl`, read as results and answers.

A line is a question: `doc_id`, `input`, `target`, `doc_hash`, `filtered_resps` (what was judged), `resps` if that
differs, and a value of each metric that the task reports. The figure that is taken as right or wrong is `accuracy`,
`acc` or `exact_match`, else the first that is 0 or 1 for every question; one with other values becomes the `score`.

Left out: several filters in one file, whose lines repeat each question.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...data.group import short
from ...errors import DataError
from ...runs.files import read_lines

FILE = re.compile(r"(?P<time>.*)_samples_(?P<task>.+)\.jsonl")
USUAL = ("accuracy", "acc", "exact_match")  # figures that say whether an answer is right, the first that is there
FIELDS = (
    *("doc_id", "doc", "target", "arguments", "input", "resps", "filtered_resps", "token_counts", "doc_hash"),
    *("input_media", "filter", "metrics", "prompt_hash", "target_hash"),
)


def sample_files(place: str | Path) -> dict[str, Path]:
    """Returns lmms-eval's sample files by task: that file, or of a folder and the folders in it the latest of each."""
    path = Path(place)
    files = [path] if path.is_file() else [*path.glob("*_samples_*.jsonl"), *path.glob("*/*_samples_*.jsonl")]
    found = {}
    for file in sorted(files, key=lambda file: file.name):
        if match := FILE.fullmatch(file.name):
            found[match["task"]] = file
    return found


def lmms_results(place: str | Path) -> dict[str, Any]:
    """Returns what `results.json` holds, as far as sample files say it; see [`read_results`]."""
    tasks = {}
    for task, file in sample_files(place).items():
        records, figure = _read(file, file.stat().st_mtime_ns)
        right = [record["strict"] for record in records if "strict" in record]
        hashes = sorted(f"{record['id']} {record['doc_hash']}" for record in records)
        tasks[task] = {
            "n": len(records),
            **({"accuracy": sum(right) / len(right)} if right else {}),
            "title": f"{task}, by lmms-eval",
            "task": "vqa",
            "model": file.parent.name,
            "model_type": "vlm",
            "dataset_hash": hashlib.sha256("\n".join(hashes).encode()).hexdigest(),
            "metric_version": f"lmms-eval {figure}",
            "published": [],
            "settings": {},
        }
    return {"tasks": tasks}


def lmms_records(place: str | Path, task: str) -> list[dict[str, Any]]:
    """Returns the records of a task; see [`read_samples`]. [`DataError`] names the line that cannot be used."""
    file = sample_files(place)[task]
    return [dict(record) for record in _read(file, file.stat().st_mtime_ns)[0]]


@lru_cache(maxsize=8)
def _read(file: Path, stamp: int) -> tuple[list[dict[str, Any]], str]:
    """The records of a file, which has a time stamp, and the name of the figure that judges them."""
    lines = read_lines(file)
    if not lines:
        raise DataError("no samples; run lmms-eval with --log_samples", "", str(file))
    figure, binary = _figure(lines, str(file))
    records, seen = [], dict[str, int]()
    for number, line in enumerate(lines, start=1):
        where, name = f"{file}, line {number}", str(line.get("doc_id"))
        if line.get("doc_id") is None or name in seen:
            detail = "no `doc_id`" if line.get("doc_id") is None else f"doc_id {name} stands in line {seen[name]} too"
            raise DataError(f"{detail}; expected a line for each question, of one filter", "doc_id", where)
        seen[name] = number
        value = _value(line, figure)
        if value is None:
            raise DataError(f"no figure `{figure}`, though others have it", figure, where)
        answers, judged = answers_of(line, where), texts_of(line.get("filtered_resps"))
        record: dict[str, Any] = {"id": name, "prompt": str(line.get("input") or ""), "output": answers[0]}
        record |= {"answer": judged[0] if judged and judged[0] != "[invalid]" else None}
        record |= {"references": _targets(line.get("target")), "types": [], "doc_hash": str(line.get("doc_hash"))}
        records.append(record | ({"strict": value == 1} if binary else {"score": float(value)}))
    return records, figure


def answers_of(line: Mapping[str, Any], where: str) -> list[str]:
    """Returns all responses to a question: `resps`, which is left out where it is what was judged."""
    answers = texts_of(line.get("resps")) or texts_of(line.get("filtered_resps"))
    if not answers:
        found = short(line.get("resps", line.get("filtered_resps")))
        raise DataError(f"`resps` is {found}, expected the responses as texts", "resps", where)
    return answers


def texts_of(value: object) -> list[str]:
    """Returns the texts of a response: itself, or those in lists of any depth."""
    if isinstance(value, str):
        return [value]
    return [text for part in value for text in texts_of(part)] if isinstance(value, list | tuple) else []


def _targets(target: object) -> list[str]:
    """The right answers; lmms-eval writes a list of them as Python does."""
    text = str(target)
    try:
        value = ast.literal_eval(text) if text.startswith("[") else text
    except (ValueError, SyntaxError):
        value = text
    return [str(part) for part in value] if isinstance(value, list) else [text]


def _value(line: Mapping[str, Any], name: str) -> float | None:
    """The value of a figure; many tasks report an object with a `score`."""
    value = line.get(name)
    value = value.get("score") if isinstance(value, Mapping) else value
    return value if isinstance(value, int | float) and value == value else None


def _figure(lines: Sequence[Mapping[str, Any]], where: str) -> tuple[str, bool]:
    """The figure that judges the answers, and whether it says right or wrong."""
    names = [name for name in lines[0] if name not in FIELDS and _value(lines[0], name) is not None]
    names.sort(key=lambda name: USUAL.index(name) if name in USUAL else len(USUAL))
    binary = [name for name in names if all(_value(line, name) in (0, 1) for line in lines)]
    if not names:
        others = ", ".join(name for name in lines[0] if name not in FIELDS) or "none"
        raise DataError(f"no figure of a single answer; beside its texts a line has {others}", "metrics", where)
    return (binary or names)[0], bool(binary)
