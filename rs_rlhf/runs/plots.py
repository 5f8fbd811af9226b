"""Plots: preference accuracy, a ranked example, learning curves, GRPO runs, accuracy of best-of-n.

Each is a PNG, SVG or PDF, by the suffix of its path or by `formats`. Left out: interactive pages.
"""

from __future__ import annotations

import base64
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .charts.curves import intervals, lines
from .charts.style import SERIES, Spec, save
from .files import read_json
from .record import read_run

if TYPE_CHECKING:
    from PIL import Image

Log = list[dict[str, Any]]
Points = list[tuple[float, float]]
SIZE = (380, 240)  # of the plotting area of a chart in a file
ACCURACY = "right, or better text preferred"
KINDS = "eval_score/accuracy_kind/"
# Key of the log -> name of its curve.
LOSSES = {"loss": "training", "eval_loss": "evaluation"}
ACCURACIES = {
    "score/accuracy": "training",
    "rewards/accuracies": "training",  # of DPO
    "eval_score/accuracy": "evaluation",
    "eval_rewards/accuracies": "evaluation",
    "eval_exact_match": "exact match, evaluation",
}


def points_of(log: Log, key: str, smoothing: float = 0.0) -> Points:
    """Returns the finite values of a logged key by step, smoothed (see [`smoothed`])."""
    found = [
        (entry["step"], entry[key]) for entry in log if "step" in entry and isinstance(entry.get(key), int | float)
    ]
    return smoothed([point for point in found if math.isfinite(point[1])], smoothing)


def smoothed(points: Points, weight: float) -> Points:
    """Returns the exponential moving average of a curve, of which each earlier value weighs `weight` times as much as
    the next, as TensorBoard and W&B smooth; 0 leaves it as it is.
    """
    total, weights, out = 0.0, 0.0, []
    for step, value in points:
        total, weights = weight * total + value, weight * weights + 1
        out.append((step, total / weights))
    return out


def run_names(runs: Sequence[Path]) -> list[str]:
    """Returns the names of runs' folders, with as many folders above as tell them apart.

    Example:
        >>> run_names([Path("a/run"), Path("b/run")])
        ['a/run', 'b/run']
    """
    parts = [run.resolve().parts for run in runs]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise DataError("a run is named twice; name each once.", "runs", str(runs[0]))


def plot_preferences(
    reports: Mapping[str, Mapping[str, Any]],
    path: str | Path,
    example: tuple[Image.Image, Sequence[tuple[str, float]]] | None = None,
    formats: Sequence[str] = (),
) -> list[Path]:
    """Draws preference accuracy per kind with 95% intervals, and a picture with its texts ranked by score.

    `reports` are those of [`rs_rlhf.evaluation.preferences.evaluate_preferences`] by the name of the model, `example`
    an image, and texts with their scores. Returns the files.
    """
    first = next(iter(reports.values()))
    kinds = [kind for kind in first["by_kind"] if kind]
    rows = [
        {"label": kind.replace("_", " "), "group": name, "value": part["accuracy"]}
        | dict(zip(("low", "high"), part["interval"], strict=True))
        for kind in [*kinds, "all"]
        for name, report in reports.items()
        for part in [report if kind == "all" else report["by_kind"][kind]]
    ]
    title = f"Held-out pairs (n = {first['n']}), 95% intervals"
    panels = [intervals(title, rows, "prefers the better text", mark=0.5)]
    return save(_beside(panels + ([] if example is None else _ranked(*example))), path, formats)


def _ranked(image: Image.Image, texts: Sequence[tuple[str, float]]) -> list[Spec]:
    """A picture, and its texts by score."""
    stream = io.BytesIO()
    image.convert("RGB").resize((200, 200)).save(stream, "PNG")
    address = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
    picture: Spec = {
        "title": "a held-out scene",
        "width": 200,
        "height": 200,
        "data": {"values": [{"url": address}]},
        "mark": {"type": "image", "width": 200, "height": 200},
        "encoding": {"url": {"field": "url"}, "x": {"value": 100}, "y": {"value": 100}},
    }
    ranked = sorted(texts, key=lambda entry: -entry[1])
    values = [{"text": "\n".join(textwrap.wrap(text, 34)), "score": score} for text, score in ranked]
    bars: Spec = {
        "title": "its candidate captions, ranked",
        "width": 200,
        "height": {"step": 34},
        "data": {"values": values},
        "mark": {"type": "bar", "color": "var(--two)"},
        "encoding": {
            "y": {
                "field": "text",
                "type": "nominal",
                "sort": None,
                "axis": {"title": None, "grid": False, "labelExpr": "split(datum.value, '\\n')"},
            },
            "x": {"field": "score", "type": "quantitative"},
        },
    }
    return [picture, bars]


def _beside(panels: Sequence[Spec], title: str = "") -> Spec:
    """Several charts in a row."""
    row = {"hconcat": [*panels], "spacing": 40, "resolve": {"scale": {"color": "independent"}}}
    return {**row, "title": title} if title else row


def plot_run(
    runs: Path | str | Sequence[str | Path], path: str | Path, formats: Sequence[str] = (), smoothing: float = 0.0
) -> list[Path]:
    """Draws the learning curves of one or several training runs: loss, and accuracy in training and at evaluation.

    Several runs share the charts, a colour each; evaluation is dashed. Returns the files.
    """
    folders = [Path(runs)] if isinstance(runs, str | Path) else [Path(run) for run in runs]
    names, logs = run_names(folders), [history(run) for run in folders]
    if len(folders) == 1:
        kinds = sorted({key for entry in logs[0] for key in entry if key.startswith(KINDS)})
        shown = {**ACCURACIES, **{key: key.removeprefix(KINDS).replace("_", " ") for key in kinds}}
        charts = [_curves(logs[0], keys, smoothing) for keys in (LOSSES, shown)]
    else:
        charts = [
            [
                {**curve, "name": f"{name}, {curve['name']}", "colour": SERIES[i % len(SERIES)]}
                for i, (name, log) in enumerate(zip(names, logs, strict=True))
                for curve in _curves(log, keys, smoothing)
            ]
            for keys in (LOSSES, ACCURACIES)
        ]
    titles = (("Loss", "loss", False), ("Accuracy", ACCURACY, True))
    panels = [
        lines(title, curves, name, share=share, size=SIZE)
        for curves, (title, name, share) in zip(charts, titles, strict=True)
    ]
    return save(_beside(panels, " and ".join(names)), path, formats)


def _curves(log: Log, keys: Mapping[str, str], smoothing: float = 0.0) -> list[dict[str, Any]]:
    """The curves of some keys of a log that have values; those of evaluation are dashed and not smoothed."""
    curves = []
    for key, name in keys.items():
        at_evaluation = key.startswith("eval")
        if points := points_of(log, key, 0.0 if at_evaluation else smoothing):
            curves.append({"name": name, "points": points, "dashed": at_evaluation})
    return curves


def plot_grpo(run: str | Path, path: str | Path, formats: Sequence[str] = ()) -> list[Path]:
    """Draws a GRPO run: the reward, and beside it how often the answers are right, so that a gap shows.

    Returns the files.
    """
    log = history(Path(run))
    sampled, greedy = "sampled answers", "greedy answers, held out"
    none = "not one of the choices, held out"
    rewards = _curves(log, {"reward": sampled, "eval_score/greedy_mean": greedy})
    right = {"audit/accuracy": sampled, "eval_audit/greedy_accuracy": greedy, "eval_audit/greedy_unparseable": none}
    panels = [
        lines("Reward", rewards, "reward: the score model's score", size=SIZE),
        lines("Accuracy", _curves(log, right), "answers that are right", share=True, size=SIZE),
    ]
    return save(_beside(panels, Path(run).resolve().name), path, formats)


def plot_best_of_n(
    curves: Mapping[str, Any], path: str | Path, measure: str = "accuracy", formats: Sequence[str] = ()
) -> list[Path]:
    """Draws the figures of `metrics.best_of_n.curve_figures`: `measure` against n, with 95% intervals.

    Returns the files.
    """
    not_chosen = ("greedy", "random", "oracle")  # among n
    shown = [
        {
            "name": name,
            "points": [(entry["n"], entry["accuracy"]) for entry in entries],
            "band": [(entry["n"], *entry["interval"]) for entry in entries],
            "dashed": name in not_chosen,
        }
        for name, entries in curves["methods"].items()
    ]
    title = f"Best of n: {measure}, 95% intervals"
    chart = lines(title, shown, measure, x="n, answers to choose from", share=True, powers=True, size=SIZE)
    return save(chart, path, formats)


def history(run: Path) -> Log:
    """Returns the log of the state that went furthest: the run's own, or its newest checkpoint's."""
    return run_state(run)["log_history"]


def states(output_dir: Path) -> dict[Path, dict[str, Any]]:
    """Returns the `trainer_state.json` files of the run that was begun in a folder last, its own and its checkpoints',
    and what they say; a damaged one is a [`DataError`].
    """
    run = read_run(output_dir)
    files = [output_dir / "trainer_state.json", *output_dir.glob("checkpoint-*/trainer_state.json")]
    found = {file: read_json(file, "log_history", list, "the training") for file in files if file.is_file()}
    return {file: state for file, state in found.items() if run is None or run.holds_state(state)}


def run_state(output_dir: Path) -> dict[str, Any]:
    """Returns the `trainer_state.json` of a run that went furthest: its own, or its newest checkpoint's.

    Raises:
        DataError: There is none, or a damaged one.
    """
    found = states(output_dir)
    if not found and read_run(output_dir) is not None:
        raise DataError(
            "the run has no trainer_state.json yet: it is written with a checkpoint; come back then.",
            where=str(output_dir),
        )
    if not found:
        raise DataError("no trainer_state.json; give the output_dir of a training run.", where=str(output_dir))
    return max(found.values(), key=lambda state: state["global_step"])
