"""Plots: preference accuracy, a ranked example, learning curves, GRPO runs, accuracy of best-of-n.

Drawn with matplotlib, which is imported late. Left out: interactive pages.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .files import read_json, replacing
from .record import read_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL import Image

Log = list[dict[str, Any]]


@contextmanager
def _saved(path: str | Path, columns: int, size: tuple[float, float], **settings: Any) -> Iterator[list[Axes]]:
    """Gives the axes of a figure in one row, which is then written."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, columns, figsize=size, layout="constrained", squeeze=False, **settings)
    try:
        yield list(axes[0])
        with replacing(Path(path), "wb") as file:
            figure.savefig(file, dpi=110, format=Path(path).suffix[1:] or "png")
    finally:
        plt.close(figure)


def _draw(axis: Axes, log: Log, key: str, name: str, **style: Any) -> None:
    """Draws the values of a logged key by step, if there are any."""
    points = [(entry["step"], entry[key]) for entry in log if entry.get(key) is not None]
    if points:
        axis.plot(*zip(*points, strict=True), label=name, **style)


def plot_preferences(
    reports: Mapping[str, Mapping[str, Any]],
    path: str | Path,
    example: tuple[Image.Image, Sequence[tuple[str, float]]] | None = None,
) -> None:
    """Draws preference accuracy per kind with 95% intervals as a PNG, and a picture with its texts ranked by score.

    `reports` are those of [`rs_rlhf.evaluation.preferences.evaluate_preferences`] by the name of the model, `example`
    an image, and texts with their scores.
    """
    first = next(iter(reports.values()))
    kinds = [kind for kind in first["by_kind"] if kind]
    columns, size, ratios = (1, (7, 4.2), [1.0]) if example is None else (3, (15, 4.2), [1.5, 0.8, 1.5])
    with _saved(path, columns, size, width_ratios=ratios) as axes:
        width = 0.8 / len(reports)
        for place, (name, report) in enumerate(reports.items()):
            parts = [report["by_kind"][kind] for kind in kinds] + [report]
            errors = [
                [max(0.0, part["accuracy"] - part["interval"][0]) for part in parts],
                [max(0.0, part["interval"][1] - part["accuracy"]) for part in parts],
            ]
            x = [i + (place - (len(reports) - 1) / 2) * width for i in range(len(parts))]
            heights = [part["accuracy"] for part in parts]
            axes[0].bar(x, heights, width * 0.92, yerr=errors, capsize=2, label=name)
        labels = [kind.replace("_", "\n") for kind in kinds] + ["all"]
        axes[0].set_xticks(range(len(labels)), labels)
        axes[0].axhline(0.5, color="gray", linewidth=0.8, linestyle="--")
        title = f"Held-out pairs (n = {first['n']}), 95% intervals"
        axes[0].set(ylim=(0, 1.05), ylabel="prefers the better text", title=title)
        axes[0].legend(loc="lower right")
        if example is not None:
            image, texts = example
            axes[1].imshow(image)
            axes[1].set_title("a held-out scene")
            axes[1].axis("off")
            ranked = sorted(texts, key=lambda entry: entry[1])
            names = ["\n".join(textwrap.wrap(text, 38)) for text, _ in ranked]
            axes[2].barh(names, [score for _, score in ranked], color="tab:orange")
            axes[2].set(xlabel="score", title="its candidate captions, ranked")


def plot_run(run: str | Path, path: str | Path) -> None:
    """Draws the learning curve of a training run as a PNG: loss, and accuracy in training and at evaluation."""
    log = history(Path(run))
    prefix = "eval_score/accuracy_kind/"
    kinds = {key for entry in log for key in entry if key.startswith(prefix)}
    shown = {"score/accuracy": "training", "eval_score/accuracy": "evaluation", "eval_exact_match": "exact match"}
    shown |= {"rewards/accuracies": "training", "eval_rewards/accuracies": "evaluation"}  # of DPO
    shown |= {key: key.removeprefix(prefix).replace("_", " ") for key in sorted(kinds)}
    with _saved(path, 2, (11, 4)) as (left, right):
        for key, name in {"loss": "training", "eval_loss": "evaluation"}.items():
            _draw(left, log, key, name, marker=_marker(log, key))
        for key, name in shown.items():
            _draw(right, log, key, name, marker=_marker(log, key), alpha=0.5 if name == "training" else 1)
        left.set(xlabel="step", ylabel="loss")
        left.legend()
        right.set(xlabel="step", ylabel="accuracy", ylim=(None, 1.02))
        if right.lines:
            right.legend(fontsize="small")


def _marker(log: Log, key: str) -> str | None:
    return "o" if sum(key in entry for entry in log) < 20 else None


def plot_grpo(run: str | Path, path: str | Path) -> None:
    """Draws a GRPO run as a PNG: the reward, and beside it how often the answers are right, so that a gap shows."""
    log = history(Path(run))
    with _saved(path, 2, (11, 4)) as (left, right):
        _draw(left, log, "reward", "sampled answers")
        _draw(left, log, "eval_score/greedy_mean", "greedy answers, held out", marker="o")
        _draw(right, log, "audit/accuracy", "sampled answers", alpha=0.5)
        _draw(right, log, "eval_audit/greedy_accuracy", "greedy answers, held out", marker="o")
        name = "not one of the choices, held out"
        _draw(right, log, "eval_audit/greedy_unparseable", name, marker="o", linestyle="--")
        left.set(xlabel="step", ylabel="reward: the score model's score")
        right.set(xlabel="step", ylabel="share of answers that are right", ylim=(0, None))
        for axis in (left, right):
            axis.legend(fontsize="small")


def plot_best_of_n(curves: Mapping[str, Any], path: str | Path, measure: str = "accuracy") -> None:
    """Draws the figures of `metrics.best_of_n.curve_figures` as a PNG: `measure` against n, with 95% intervals."""
    dashed = {"greedy": "tab:red", "random": "gray", "oracle": "black"}  # not chosen among n
    with _saved(path, 1, (7, 4.5)) as (axis,):
        for name, entries in curves["methods"].items():
            sizes = [entry["n"] for entry in entries]
            style: dict[str, Any] = {"linestyle": "--", "color": dashed[name]} if name in dashed else {"marker": "o"}
            (line,) = axis.plot(sizes, [entry["accuracy"] for entry in entries], label=name, **style)
            low, high = zip(*(entry["interval"] for entry in entries), strict=True)
            axis.fill_between(sizes, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, [str(n) for n in sizes])
        axis.minorticks_off()
        axis.set(xlabel="n, answers to choose from", ylabel=measure)
        axis.legend(fontsize="small")


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
