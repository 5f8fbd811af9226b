"""Results of the experiments on AID and RSICD: figures with intervals over images and repetitions, tables, pictures.

A figure is the mean over score models, trainings with each, and images. Its interval is that of a nested bootstrap of
all three (`rs_rlhf.metrics.intervals.nested_bootstrap`). What is trained once for each policy is repeated once there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from plan import CONTROLS, OF_MODEL, OF_NONE, ROUNDS, Plan
from subsets import CURVE

from rs_rlhf.metrics.intervals import nested_bootstrap, proportion
from rs_rlhf.runs.charts.curves import intervals
from rs_rlhf.runs.charts.style import save

# Arms of RL by where their answers lie; those without `{j}` are trained once for each policy.
RL = {
    "before": "policy/{k}",
    **{f"RAFT, {r} round{'s' * (r > 1)}": f"raft/{{k}}/{{j}}/{r}" for r in range(1, ROUNDS + 1)},
    "GRPO": "grpo/{k}/{j}",
    "DPO": "dpo/{k}/{j}",
    **{
        f"self-training on {what}, {r} round{'s' * (r > 1)}": f"controls/{control}/{{k}}/{r}"
        for control, what in zip(CONTROLS, ("random answers", "majority votes"), strict=True)
        for r in (1, ROUNDS)
    },
    "RAFT with another image in the score, 1 round": "shuffled/{k}/{j}/1",
    "the score model's own choice as labels": "ceiling/{k}/{j}",
}
CURATION = {
    "before": "start/{k}",
    "all rows, same steps": "full/{k}",
    "all rows, same epochs": "full_epochs/{k}",
    "random 30%": "random/{k}",
    "CLIP score, top 30%": "clip/{k}",
    "CLIP score, every image": "clip_image/{k}",
    "score model, top 30%": "model/{k}/{j}",
    "score model, every image": "model_image/{k}/{j}",
    "mean − sd of three score models, top 30%": "three/{k}",
    "mean − sd of three score models, every image": "three_image/{k}",
    "mean rank with the CLIP score": "mean_rank/{k}/{j}",
    "undamaged 30% (oracle)": "oracle/{k}",
}
assert len(CURATION) == 1 + len(OF_NONE) + len(OF_MODEL) + 1
LEAD = "score model, every image"  # the cut that is compared with the others, fixed beforehand
KINDS = ("another_class", "same_class", "attribute", "wrong_label", "truncated")


def samples(folder: Path, task: str) -> list[dict[str, Any]]:
    """Reads the samples of an evaluation, in the order of their images; for choosing they have another name."""
    name = f"samples_{task}.jsonl"
    lines = next(folder.glob(f"*_{task}.jsonl"), folder / name).read_text(encoding="utf-8").splitlines()
    return sorted(map(json.loads, lines), key=lambda row: row["id"])


def right(folder: Path) -> list[float]:
    """Whether the class of each image is right."""
    return [float(row["strict"]) for row in samples(folder, "classification")]


def recall(folder: Path) -> list[float]:
    """Of each image whether one of its captions is among the five nearest, over all captions (text R@5)."""
    return [float(row["image_to_text_rank"] <= 5) for row in samples(folder, "retrieval")]


def repeated(plan: Plan, where: str, read: Any) -> np.ndarray:
    """Reads an arm: `(score models, trainings, images)`."""
    return np.asarray(
        [
            [read(plan.out / plan.evaluated(where.format(k=k, j=j))) for j in range(plan.trainings)]
            for k in range(plan.score_models)
        ]
    )


def figure(values: np.ndarray) -> dict[str, Any]:
    """Mean, interval, and the mean of each repetition."""
    mean, interval = nested_bootstrap(values)
    return {"mean": mean, "interval": list(interval), "runs": values.mean(2).round(4).tolist()}


def told(value: dict[str, Any], points: bool = False) -> str:
    """A figure with its interval, as a share or in points."""
    low, high = value["interval"]
    if points:
        return f"{100 * value['mean']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    return f"{value['mean']:.1%} ({max(0.0, low):.1%} – {min(1.0, high):.1%})"  # few repetitions widen it beyond


def reinforcement(plan: Plan) -> dict[str, Any]:
    """Figures of RL: right answers, greedy and sampled, of each arm, and their gain on the policy before; not of arms
    whose evaluations are not there yet.
    """
    found: dict[str, Any] = {}
    for way in ("greedy", "sampled"):
        before = repeated(plan, f"answers/{RL['before']}/{way}", right)
        for arm, where in RL.items():
            try:
                values = repeated(plan, f"answers/{where}/{way}", right)
            except FileNotFoundError as error:
                print(f"{arm}, {way}, is not there yet: {error.filename}")
                continue
            own = found.setdefault(arm, {})
            own[way] = figure(values)
            if arm != "before":
                own[f"{way}_gain"] = figure(values - before)
    return found


def curation(plan: Plan) -> dict[str, Any]:
    """Figures of curation: what CLIP and VLM learned from each cut, and the lead of one cut over the others."""
    found: dict[str, Any] = {}
    columns = {
        "CLIP zero-shot accuracy": ("clip", right),
        "CLIP text R@5": ("clip", recall),
        "VLM accuracy": ("vlm", right),
    }
    for column, (kind, read) in columns.items():
        arms = {}
        for arm, where in CURATION.items():
            place = f"evaluated/{kind}/{where}"
            if arm == "before" and kind == "vlm":
                place = "answers/policy/{k}/greedy"
            arms[arm] = repeated(plan, place, read)
            found.setdefault(arm, {})[column] = figure(arms[arm])
        for arm, values in arms.items():
            if arm != LEAD:
                found[arm][f"{column}, lead"] = figure(arms[LEAD] - values)
    return found


def score_models(plan: Plan) -> dict[str, Any]:
    """Figures of the score models: pairs by kind and calibration, and right choices among all classes.

    Beside them are one that is blind to images, and some that saw lists of fewer images.
    """
    found: dict[str, Any] = {}
    for k in range(plan.score_models):
        found[f"choice/{k}"] = choice(plan.out, f"score/{k}")
    for count in CURVE:
        found[f"curve/{count}"] = json.loads((plan.out / "curve" / f"{count}.json").read_text())
    for step in ("reward", "blind"):
        for k in range(plan.score_models if step == "reward" else 1):
            found[f"{step}/{k}"] = json.loads((plan.out / "score" / str(k) / f"eval_{step}.json").read_text())
    return found


def choice(out: Path, chosen_by: str) -> dict[str, Any]:
    """The share of evaluation images of which a score model prefers the right class to all others."""
    asked, chosen = (
        {row["id"]: row for row in map(json.loads, out.joinpath(*place).read_text("utf-8").splitlines())}
        for place in (("data", "test_choices.jsonl"), (chosen_by, "test_choice.jsonl"))
    )
    right = [row["id"] in chosen and chosen[row["id"]]["completion"] == row["solution"] for row in asked.values()]
    return proportion(sum(right), len(right))


def table(figures: dict[str, Any], columns: dict[str, bool], head: str) -> list[str]:
    """A table in Markdown; `columns` says which are gains in points."""
    lines = [f"| {head} | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for arm, own in figures.items():
        cells = [told(own[name], points) if name in own else "" for name, points in columns.items()]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return lines


def write_results(plan: Plan, folder: Path) -> None:
    """Writes the figures whose stages are done, their tables and pictures, and prints the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make, write in (
        ("score_models", score_models, write_figures),
        ("rl", reinforcement, write_rl),
        ("curation", curation, write_curation),
    ):
        try:
            found = make(plan)
        except FileNotFoundError as error:
            print(f"{name}.json is not written yet: {error.filename} is missing.")
            continue
        write(plan, found, folder / f"{name}.json")


def write_figures(plan: Plan, figures: dict[str, Any], path: Path, lines: list[str] | None = None) -> None:
    """Writes figures and their table to a file, with the core seconds of every stage, and prints the table."""
    seconds = {note.stem: json.loads(note.read_text())["seconds"] for note in sorted(plan.out.glob("stages/*.json"))}
    about = {"test": plan.test, "score_models": plan.score_models, "trainings": plan.trainings}
    written = {**about, "figures": figures, "table": lines or [], "seconds": seconds}
    path.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines or []), end="\n\n")


def write_rl(plan: Plan, found: dict[str, Any], path: Path) -> None:
    """Writes figures of RL, their table and a picture."""
    columns = {"greedy": False, "greedy_gain": True, "sampled": False, "sampled_gain": True}
    write_figures(plan, found, path, table(found, columns, "right"))
    bars = [bar(arm, own["greedy"]) for arm, own in found.items()]
    save(intervals("right on held-out images, greedy, with 95% intervals", bars, "right"), path.with_suffix(".png"))


def write_curation(plan: Plan, found: dict[str, Any], path: Path) -> None:
    """Writes figures of curation, their table and a picture."""
    columns = {name: "lead" in name for name in found["random 30%"]}
    write_figures(plan, found, path, table(found, columns, "what is kept"))
    charts = []
    for column in ("CLIP zero-shot accuracy", "VLM accuracy"):
        bars = [bar(arm, own[column]) for arm, own in found.items()]
        charts.append(intervals(f"{column} after training on each cut, with 95% intervals", bars, column))
    save({"hconcat": charts}, path.with_suffix(".png"))


def bar(label: str, value: dict[str, Any]) -> dict[str, Any]:
    """A line of a chart of intervals."""
    low, high = (min(1.0, max(0.0, end)) for end in value["interval"])
    return {"label": label, "value": value["mean"], "low": low, "high": high}
