"""Tables of samples that a training run leaves behind, read for `rs-rlhf report`.

Parquet files named `NAME_STEP.parquet` in `rollouts/`, `samples/`, `worst_pairs/` (ours) and `completions/` (TRL's);
rows become plain values for JSON, thumbnails data URIs that rows name by place, and rewards histograms. Everything is
capped, so that a long run still makes a page that opens. Left out: images that are only a path.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .files import read_json
from .record import Run, model_files_hash, read_run
from .tables import STEP_FOLDERS, StepTable, step_tables, table_part

TITLES = ("Fixed prompts", "Rollouts", "Worst pairs", "Completions, as TRL logs them")  # of the step folders
ORDER = "image prompt chosen chosen_score rejected rejected_score completion solution correct reward score".split()
STEPS, ROWS, TEXT, IMAGE_BYTES = 40, 32, 4000, 16_000_000
TABLE_CAPS = (
    f"{STEPS} steps per table (spread evenly, first and last kept), {ROWS} rows per step, {TEXT} characters per text, "
    f"{IMAGE_BYTES // 1_000_000} MB of thumbnails (each stored once)"
)
BINS = 16
T = TypeVar("T")


class Images:
    """Thumbnails as data URIs, each once, up to a total size."""

    def __init__(self) -> None:
        self.uris: list[str] = []
        self.places: dict[bytes, int] = {}
        self.left_out = self.size = 0

    def add(self, image: object) -> int | None:
        """Returns the place of an image given as `{"bytes", "path"}`; `None` without one or if it is too much."""
        content = image.get("bytes") if isinstance(image, Mapping) else None
        kind = {b"\xff\xd8": "jpeg", b"\x89P": "png"}.get((content or b"")[:2])
        if content is None or kind is None:
            return None
        if content not in self.places:
            if self.size + len(content) > IMAGE_BYTES:
                self.left_out += 1
                return None
            self.size += len(content)
            self.places[content] = len(self.uris)
            self.uris.append(f"data:image/{kind};base64,{base64.b64encode(content).decode()}")
        return self.places[content]


def read_evaluations(run: Path, notes: list[str] | None = None) -> list[dict[str, Any]]:
    """Reads the results of `rs-rlhf eval` and `rs-rlhf best-of-n` in folders below `RUN_DIR/eval`.

    Those of a model in the run's folder whose files are not what was evaluated any more (another run has replaced
    them) are left out, and said in `notes`.

    Returns:
        `list[dict]`: A row for each task and method: `task`, `what` (the folder, and for best-of-N the method and n),
        `n` questions, `accuracy` and its 95% `interval`.
    """
    rows: list[dict[str, Any]] = []

    def outdated(what: str, settings: Mapping[str, Any]) -> bool:
        old = [model for name in ("model", "policy", "score_model") if (model := _replaced(run, settings, name))]
        if old and notes is not None:
            notes.append(f"{what} is left out: it evaluated {old[0]}, which holds other weights now.")
        return bool(old)

    for path in sorted((run / "eval").glob("*/results.json")):
        for task, figures in read_json(path, "tasks", dict, "`rs-rlhf eval`")["tasks"].items():
            if outdated(f"{task} in eval/{path.parent.name}", figures.get("settings") or {}):
                continue
            row = {"task": task, "what": path.parent.name, "n": figures["n"], "accuracy": figures.get("accuracy")}
            rows.append(row | {"interval": figures.get("interval")})
    for path in sorted((run / "eval").glob("*/best_of_n.json")):
        found = read_json(path, "pooled", dict, "`rs-rlhf best-of-n`")
        if outdated(f"eval/{path.parent.name}", found.get("settings") or {}):
            continue
        for method, entries in found["pooled"]["methods"].items():
            among = "" if method == "greedy" else f", n = {found['sizes'][-1]}"
            own = {"task": found["task"], "what": f"{path.parent.name}: {method}{among}"}
            last = entries[-1]
            rows.append(own | {"n": found["questions"], "accuracy": last["accuracy"], "interval": last["interval"]})
    return rows


def _replaced(run: Path, settings: Mapping[str, Any], name: str) -> str | None:
    """Returns the path of an evaluated model that lies in the run's folder and has other files now."""
    path, known = settings.get(name), settings.get(f"{name}_hash")
    if not isinstance(path, str) or known is None or not Path(path).resolve().is_relative_to(run.resolve()):
        return None
    if "," in path and not Path(path).is_dir():  # several score models
        return None
    return path if model_files_hash(path) != known else None


def spread(entries: Sequence[T], count: int) -> list[T]:
    """At most `count` entries, evenly spread, the first and the last among them.

    Example:
        >>> spread(range(10), 4)
        [0, 3, 6, 9]
    """
    if len(entries) <= count:
        return list(entries)
    return [entries[round(i * (len(entries) - 1) / (count - 1))] for i in range(count)]


@dataclass
class SampleTables:
    """What the Parquet tables of a run hold, as plain values for the page."""

    tables: list[dict[str, Any]] = field(default_factory=list)  # with a step to choose: `title`, `columns`, `steps`
    samples: list[dict[str, Any]] = field(default_factory=list)  # fixed prompts: `title`, `steps`, `rows`
    histograms: list[dict[str, Any]] = field(default_factory=list)  # of each column of rewards or scores
    notes: list[str] = field(default_factory=list)  # what could not be read


def read_tables(run: Path, images: Images) -> SampleTables:
    """Reads the Parquet tables of the run that was begun in a folder last, named `NAME_STEP.parquet`."""
    found, begun = SampleTables(), read_run(run)
    for folder, title in zip(STEP_FOLDERS, TITLES, strict=True):
        files: dict[str, dict[int, Path]] = {}
        for table in step_tables(run / folder):
            if begun is None or _is_of(table, begun):
                files.setdefault(table.name, {})[table.step] = table.path
        for name, by_step in files.items():
            chosen = {step: by_step[step] for step in spread(sorted(by_step), STEPS)}
            _read_steps(found, chosen, title if name in ("eval", folder) else f"{title}: {name}", images)
    return found


def _is_of(table: StepTable, run: Run) -> bool:
    """Whether a table is of a run, or cannot be read, which a note then says."""
    try:
        return run.holds(table_part(table.path), table.step)
    except (ValueError, OSError):  # pyarrow's are both
        return True


def _read_steps(found: SampleTables, files: Mapping[int, Path], title: str, images: Images) -> None:
    """Reads one table at several steps."""
    import pyarrow.parquet

    steps: dict[int, list[dict[str, Any]]] = {}
    for step, file in files.items():
        try:
            steps[step] = pyarrow.parquet.read_table(file).to_pylist()
        except (ValueError, OSError) as error:  # pyarrow's are both
            found.notes.append(f"{file.parent.name}/{file.name} cannot be read: {str(error)[:120]}")
    numbers = dict.fromkeys(
        key for rows in steps.values() for row in rows for key, value in row.items() if isinstance(value, float)
    )
    found.histograms += [made for key in numbers if (made := histogram(steps, key, title))]
    shown: list[dict[str, Any]] = [
        {"step": step, "rows": [_shown(row, images) for row in rows[:ROWS]]} for step, rows in steps.items()
    ]
    if shown and next(iter(files.values())).parent.name == "samples":
        found.samples.append({"title": title, **followed(shown)})
    elif shown:
        keys = dict.fromkeys(key for entry in shown for row in entry["rows"] for key in row if key != "step")
        columns = sorted(keys, key=lambda key: ORDER.index(key) if key in ORDER else len(ORDER))
        found.tables.append({"title": title, "columns": columns, "steps": shown})


def _shown(row: Mapping[str, Any], images: Images) -> dict[str, Any]:
    """A row as the page shows it: an image by its place, numbers, texts of messages and of anything else."""
    out: dict[str, Any] = {}
    for key, value in row.items():
        if key == "image":
            out[key] = images.add(value)
        elif value is None or isinstance(value, bool | int | float):
            out[key] = value if not isinstance(value, float) or math.isfinite(value) else None
        else:
            out[key] = cut(_text(value))
    return out


def _text(value: object) -> str:
    parts = [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []
    if not parts:
        return str(value)
    texts = [part.get("content", part.get("text")) for part in parts]  # messages, or their parts
    return "\n".join(_text(text) for text in texts if text is not None)


def cut(text: str) -> str:
    """Returns a text of at most [`TEXT`] characters."""
    return text if len(text) <= TEXT else text[:TEXT] + " … (cut)"


def followed(steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Turns tables of the same prompts at several steps into one row per prompt, with its answer at each step."""
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    for entry in steps:
        for i, row in enumerate(entry["rows"]):
            fixed = {key: row.get(key) for key in ("prompt", "solution", "image")}
            asked = rows.setdefault((i, row.get("prompt") or ""), {**fixed, "answers": {}})
            answer = {key: row.get(key) for key in ("completion", "reward", "score", "correct")}
            asked["answers"][str(entry["step"])] = answer
    return {"steps": [entry["step"] for entry in steps], "rows": list(rows.values())}


def histogram(steps: Mapping[int, Sequence[Mapping[str, Any]]], key: str, title: str) -> dict[str, Any] | None:
    """Counts a column's values at each step in bins that all steps share; `None` without two different values."""
    values = {
        step: [value for row in rows if (value := row.get(key)) is not None and math.isfinite(value)]
        for step, rows in steps.items()
    }
    every = [value for column in values.values() for value in column]
    if not every or (low := min(every)) == (high := max(every)):
        return None
    counts = [np.histogram(column, BINS, (low, high))[0].tolist() for column in values.values()]
    return {"title": title, "name": key, "low": low, "high": high, "steps": list(values), "counts": counts}
