"""Pictures of what was measured: preference accuracy, a ranked example, learning curves, accuracy of best-of-n.

Drawn with matplotlib, which is imported late. Left out: interactive pages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DeclarationError


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def plot_preferences(
    reports: Mapping[str, Mapping[str, Any]],
    path: str | Path,
    example: tuple[Any, Sequence[tuple[str, float]]] | None = None,
) -> None:
    """Draws preference accuracy per kind with 95% intervals, and a picture with its texts ranked by score.

    Args:
        reports (mapping): Name of a model to its report from [`rs_rlhf.evaluation.preferences.evaluate_preferences`].
        path (`str`): PNG to write.
        example (`tuple`, *optional*): A PIL image, and texts with their scores.
    """
    plt = _pyplot()
    kinds = [kind for kind in next(iter(reports.values()))["by_kind"] if kind]
    figure, axes = plt.subplots(
        1,
        1 if example is None else 3,
        figsize=(7 if example is None else 15, 4.2),
        squeeze=False,
        layout="constrained",
        width_ratios=[1] if example is None else [1.5, 0.8, 1.5],
    )
    bars, width = axes[0][0], 0.8 / len(reports)
    for place, (name, report) in enumerate(reports.items()):
        parts = [report["by_kind"][kind] for kind in kinds] + [report]
        heights = [part["accuracy"] for part in parts]
        errors = [
            [max(0.0, part["accuracy"] - part["interval"][0]) for part in parts],
            [max(0.0, part["interval"][1] - part["accuracy"]) for part in parts],
        ]
        x = [i + (place - (len(reports) - 1) / 2) * width for i in range(len(parts))]
        bars.bar(x, heights, width * 0.92, yerr=errors, capsize=2, label=name)
    labels = [kind.replace("_", "\n") for kind in kinds] + ["all"]
    bars.set_xticks(range(len(labels)), labels)
    bars.axhline(0.5, color="gray", linewidth=0.8, linestyle="--")
    bars.set_ylim(0, 1.05)
    bars.set_ylabel("prefers the better text")
    bars.set_title(f"Held-out pairs (n = {next(iter(reports.values()))['n']}), 95% intervals")
    bars.legend(loc="lower right")
    if example is not None:
        image, texts = example
        axes[0][1].imshow(image)
        axes[0][1].set_title("a held-out scene")
        axes[0][1].axis("off")
        ranked = sorted(texts, key=lambda entry: entry[1])
        axes[0][2].barh([_wrap(text) for text, _ in ranked], [score for _, score in ranked], color="tab:orange")
        axes[0][2].set_xlabel("score")
        axes[0][2].set_title("its candidate captions, ranked")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _wrap(text: str, width: int = 38) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))


def plot_run(run: str | Path, path: str | Path) -> None:
    """Draws the learning curve of a training run: loss, and accuracy in training and at evaluation.

    Args:
        run (`str`): The run's `output_dir`, or a checkpoint; its `trainer_state.json` is read.
        path (`str`): PNG to write.

    Raises:
        DeclarationError: There is no `trainer_state.json` in it.
    """
    log = history(Path(run))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    plt = _pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, key in (("training", "loss"), ("evaluation", "eval_loss")):
        points = [(entry["step"], entry[key]) for entry in log if key in entry]
        if points:
            left.plot(*zip(*points, strict=True), label=name, marker="o" if len(points) < 20 else None)
    left.set(xlabel="step", ylabel="loss")
    left.legend()
    shown = {"score/accuracy": "training", "eval_score/accuracy": "evaluation", "eval_exact_match": "exact match"}
    shown |= {
        key: key.removeprefix("eval_score/accuracy_kind/").replace("_", " ")
        for entry in log
        for key in entry
        if key.startswith("eval_score/accuracy_kind/")
    }
    for key, name in shown.items():
        points = [(entry["step"], entry[key]) for entry in log if key in entry]
        if points:
            marker = "o" if len(points) < 20 else None
            right.plot(*zip(*points, strict=True), label=name, marker=marker, alpha=0.5 if name == "training" else 1)
    right.set(xlabel="step", ylabel="accuracy", ylim=(None, 1.02))
    right.legend(fontsize="small")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def plot_grpo(run: str | Path, path: str | Path) -> None:
    """Draws a GRPO run: the reward, and beside it how often the answers are right, so that a gap shows.

    Args:
        run (`str`): The run's `output_dir`.
        path (`str`): PNG to write.
    """
    log = history(Path(run))
    plt = _pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")

    def draw(axis: Any, key: str, name: str, **style: Any) -> None:
        points = [(entry["step"], entry[key]) for entry in log if entry.get(key) is not None]
        if points:
            axis.plot(*zip(*points, strict=True), label=name, **style)

    draw(left, "reward", "sampled answers")
    draw(left, "eval_score/greedy_mean", "greedy answers, held out", marker="o")
    left.set(xlabel="step", ylabel="reward: the score model's score")
    draw(right, "audit/accuracy", "sampled answers", alpha=0.5)
    draw(right, "eval_audit/greedy_accuracy", "greedy answers, held out", marker="o")
    draw(right, "eval_audit/greedy_unparseable", "not one of the choices, held out", marker="o", linestyle="--")
    right.set(xlabel="step", ylabel="share of answers that are right", ylim=(0, None))
    for axis in (left, right):
        axis.legend(fontsize="small")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def plot_best_of_n(curves: Mapping[str, Any], path: str | Path) -> None:
    """Draws accuracy against n for each way of choosing an answer, with bands of its 95% intervals.

    Args:
        curves (mapping): What [`rs_rlhf.metrics.best_of_n.curve_figures`] returns.
        path (`str`): PNG to write.
    """
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    dashed = {"random": "gray", "oracle": "black"}  # bounds, not ways of choosing
    for name, entries in curves["methods"].items():
        sizes = [one["n"] for one in entries]
        style = {"linestyle": "--", "color": dashed[name]} if name in dashed else {}
        (line,) = axes.plot(sizes, [one["accuracy"] for one in entries], marker="o", label=name, **style)
        low, high = zip(*(one["interval"] for one in entries), strict=True)
        axes.fill_between(sizes, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.minorticks_off()
    axes.set(xlabel="n, answers to choose from", ylabel="accuracy")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def history(run: Path) -> list[dict[str, Any]]:
    """Returns the log of the state that went furthest: the run's own, or its newest checkpoint's."""
    return run_state(run)["log_history"]


def run_state(run: Path) -> dict[str, Any]:
    """Returns the `trainer_state.json` that went furthest: the run's own, or its newest checkpoint's."""
    files = [run / "trainer_state.json", *run.glob("checkpoint-*/trainer_state.json")]
    states = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]
    if not states:
        raise DeclarationError(f"{run} holds no trainer_state.json; give the output_dir of a training run.")
    return max(states, key=lambda state: state["global_step"])
