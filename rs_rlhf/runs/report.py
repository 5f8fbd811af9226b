"""Report of a training run: one HTML page, for people without W&B.

Everything comes from local files: `trainer_state.json` for the curves, and the Parquet tables that our trainers
(`rollouts/`, `samples/`, `worst_pairs/`) and TRL's (`completions/`) write. The page needs no network: data, style,
script and thumbnails are inside it. At its top the reward stands beside the task accuracy, since a reward that rises
while answers get worse is what a run with a learned reward must be watched for. The data is embedded as JSON and the
page's script (`report.js`) sets it as text, never as HTML.

Left out: comparing runs, live updates (run the command again), and full-size images.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ..errors import DataError
from .files import write_text
from .page import render
from .plots import run_state, states
from .record import read_run
from .report_tables import TABLE_CAPS, Images, read_evaluations, read_tables, spread

PREFIXES = ("score", "reward", "audit", "curation", "bon", "eval", "train")
# Name, reward and accuracy of a comparison; the first reward key that the run has.
COMPARED = (
    ("Greedy answers to the fixed validation prompts", ("eval_score/greedy_mean",), "eval_audit/greedy_accuracy"),
    ("Sampled answers at evaluation", ("eval_reward", "eval_score/mean"), "eval_audit/accuracy"),
    ("Sampled answers in training", ("reward", "score/mean"), "audit/accuracy"),
)
# The same place of the page where a run has no rewards: a score model or a policy is being trained.
ALONE = (
    ("Held-out preference pairs", ("eval_score/margin", "eval_loss"), "eval_score/accuracy"),
    ("Preference pairs in training", ("score/margin", "loss"), "score/accuracy"),
    ("Held-out pairs, as DPO's policy orders them", ("eval_rewards/margins",), "eval_rewards/accuracies"),
    ("Pairs in training, as DPO's policy orders them", ("rewards/margins",), "rewards/accuracies"),
    ("Held-out answers", ("eval_loss",), "eval_exact_match"),
)
SUMMARY = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos")
FALL = 0.01  # of accuracy, from which a warning is given
POINTS = 1000
CAPS = f"Caps: {POINTS} points per curve, {TABLE_CAPS}."


def write_report(run: str | Path, output: str | Path) -> dict[str, Any]:
    """Writes the page of a run and returns the data in it, see [`page_data`]."""
    data = page_data(Path(run))
    write_text(Path(output), render("runs/report.html", title=data["title"], data=data))
    return data


def page_data(run: Path) -> dict[str, Any]:
    """Reads a run.

    Returns:
        `dict`: `title`, `facts` (name and text), `notes`, `warnings`, `statements`, `compared` (pairs of curves),
        `groups` (curves by prefix), `histograms`, `tables`, `samples` (fixed prompts over the evaluations),
        `evaluations` (what `rs-rlhf eval` and `best-of-n` wrote below `RUN_DIR/eval`), `images` (data URIs, which
        rows name by place) and `caps`.

    Raises:
        DataError: The folder holds neither a log nor tables.
    """
    images = Images()
    found = read_tables(run, images)
    state: dict[str, Any] = {"log_history": []}
    if states(run) or not (found.tables or found.samples):
        state = run_state(run)
    else:
        found.notes.append("No trainer_state.json yet, so there are no curves: it is written with a checkpoint.")
    curves = read_curves(state["log_history"])
    if not curves and not found.tables and not found.samples:
        raise DataError(f"{run} has logged nothing yet; come back after the run's first logging_steps.")
    compared, warnings, statements = compare(curves)
    if images.left_out:
        found.notes.append(f"{images.left_out} thumbnails were left out: the page holds as many as its cap allows.")
    evaluations = read_evaluations(run, found.notes)
    return {
        "title": run.resolve().name,
        "facts": facts(run, state),
        "warnings": warnings,
        "statements": statements,
        "compared": compared,
        "groups": grouped(curves),
        **vars(found),
        "evaluations": evaluations,
        "images": images.uris,
        "caps": CAPS,
    }


# The log


def read_curves(log: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """Returns the numbers of each logged key by step; the last one if a step was logged twice."""
    curves: dict[str, dict[int, float]] = {}
    for entry in log:
        for key, value in entry.items():
            if key not in ("step", "epoch", *SUMMARY) and isinstance(value, int | float) and "step" in entry:
                curves.setdefault(key, {})[int(entry["step"])] = float(value)
    return curves


def place(key: str, keys: Iterable[str] = ()) -> tuple[str, str, str]:
    """Says where a metric of transformers' history is shown.

    Args:
        key (`str`): Such as `score/accuracy`, `eval_score/accuracy`, `rewards/score_reward/mean`, `loss`.
        keys (iterable of `str`): All keys of the run: `eval_loss` lies beside `loss` if there is one.

    Returns:
        `tuple`: Group (one of [`PREFIXES`]), name of the chart, name of the curve in it.

    Example:
        >>> place("eval_score/accuracy")
        ('score', 'score/accuracy', 'evaluation')
    """
    if match := re.fullmatch(r"eval_(?:([^/]+)_)?((?:score|rewards?|audit|curation|bon)(?:/.*|_std)?)", key):
        return _group(match[2]), match[2], f"evaluation {match[1] or ''}".strip()
    if key.startswith("eval_"):
        name = key.removeprefix("eval_")
        return ("train", name, "evaluation") if name in keys else ("eval", key, "evaluation")
    group = _group(key)
    return group, key, "evaluation" if group == "eval" else "training"


def _group(name: str) -> str:
    prefix = name.split("/")[0]
    prefix = "reward" if prefix in ("rewards", "reward_std") else prefix
    return prefix if prefix in PREFIXES else "train"


def grouped(curves: Mapping[str, Mapping[int, float]]) -> list[dict[str, Any]]:
    """Lays the curves out in charts, and the charts in groups."""
    groups: dict[str, dict[str, list[Any]]] = {prefix: {} for prefix in PREFIXES}
    for key, values in curves.items():
        group, name, curve = place(key, curves)
        groups[group].setdefault(name, []).append(_curve(curve, values))

    def chart(name: str, lines: list[Any]) -> dict[str, Any]:
        return {"name": name, "curves": sorted(lines, key=lambda line: (line["name"] != "training", line["name"]))}

    return [
        {"name": prefix, "charts": [chart(*entry) for entry in sorted(charts.items())]}
        for prefix, charts in groups.items()
        if charts
    ]


def _curve(name: str, values: Mapping[int, float]) -> dict[str, Any]:
    points = [[step, value] for step, value in sorted(values.items()) if math.isfinite(value)]
    return {"name": name, "points": spread(points, POINTS), "not_finite": len(values) - len(points)}


def compare(curves: Mapping[str, Mapping[int, float]]) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """Puts the reward beside the task accuracy, and says whether they part.

    Returns the pairs of curves, a sentence for each pair whose reward rose while the accuracy fell, and one for each
    other.
    """
    pairs: list[dict[str, Any]] = []
    warnings: list[str] = []
    statements: list[str] = []
    rewarded = any(key in curves for key in ("reward", "eval_reward", "audit/accuracy", "eval_audit/accuracy"))
    for name, rewards, accuracy in COMPARED if rewarded else ALONE:
        reward = next((key for key in rewards if key in curves), None)
        if reward is None or accuracy not in curves:
            continue
        keys = {"left": reward, "right": accuracy}
        pairs.append({"name": name, **{side: _curve(key, curves[key]) for side, key in keys.items()}})
        if rewarded:
            sentence, parted = trend(curves[reward], curves[accuracy], reward, accuracy)
            (warnings if parted else statements).extend([f"{name}: {sentence}"] if sentence else [])
    if rewarded and not pairs:
        statements.append(
            "This run logs a reward but no task accuracy (audit/accuracy), so it cannot show whether the reward is "
            "earned by right answers: give the prompts a solution."
        )
    return pairs, warnings, statements


def trend(
    reward: Mapping[int, float], accuracy: Mapping[int, float], reward_name: str, accuracy_name: str
) -> tuple[str, bool]:
    """Compares the run's last quarter with that earlier quarter since which the accuracy fell most.

    Returns a sentence (empty with fewer than two common steps), and whether the reward rose while the accuracy fell by
    [`FALL`] or more. Quarters are of the steps that both have, since single steps are noisy.
    """
    steps = sorted(s for s in reward if s in accuracy and math.isfinite(reward[s]) and math.isfinite(accuracy[s]))
    parts = min(4, len(steps))
    if parts < 2:
        return "", False
    quarters = [steps[i * len(steps) // parts : (i + 1) * len(steps) // parts] for i in range(parts)]
    means = [[fmean(kind[s] for s in own) for kind in (reward, accuracy)] for own in quarters]
    rise = [i for i in range(parts - 1) if means[i][0] < means[-1][0] and means[i][1] - means[-1][1] >= FALL]
    parted = bool(rise)
    begin = max(rise, key=lambda i: means[i][1]) if parted else 0
    (r0, a0), (r1, a1) = means[begin], means[-1]

    def moved(name: str, old: str, new: str, up: bool) -> str:
        if old == new:
            return f"{name} did not move from {old}"
        return f"{name} {'rose' if up else 'fell'} from {old} to {new}"

    text = f"{moved(reward_name, f'{r0:.3g}', f'{r1:.3g}', r1 > r0)} {'while' if parted else 'and'} "
    text += moved(accuracy_name, f"{a0:.1%}", f"{a1:.1%}", a1 > a0)
    return f"{text} ({_steps(quarters[begin])}, then {_steps(quarters[-1])}).", parted


def _steps(steps: Sequence[int]) -> str:
    return f"step {steps[0]}" if len(steps) == 1 else f"mean of steps {steps[0]} to {steps[-1]}"


# Facts


def facts(run: Path, state: Mapping[str, Any]) -> list[list[str]]:
    """Returns name and text of what is known of a run: steps, time, model, versions."""
    found = {"Steps": f"{state['global_step']} of {state['max_steps']}"} if "max_steps" in state else {}
    if state.get("epoch") is not None:
        found["Epochs"] = f"{state['epoch']:.3g}"
    last = {key: value for entry in state["log_history"] for key, value in entry.items() if key in SUMMARY}
    if "train_runtime" in last:
        minutes, seconds = divmod(round(last["train_runtime"]), 60)
        found["Training time"] = f"{minutes // 60} h {minutes % 60} min {seconds} s".removeprefix("0 h ")
    if "train_samples_per_second" in last:
        found["Samples per second"] = f"{last['train_samples_per_second']:.3g}"
    if "train_loss" in last:
        found["Mean training loss"] = f"{last['train_loss']:.4g}"
    begun = read_run(run)
    if begun is not None:
        resumed = ", ".join(str(step) for _, step in begun.parts if step)
        found["Run"] = begun.id + (f", resumed at step {resumed}" if resumed else "")
    found |= _model_facts(run)
    return [[name, str(text)[:200]] for name, text in found.items()]


def _model_facts(run: Path) -> dict[str, str]:
    """From the model's files and TRL's model card, in the run's folder or else in its newest checkpoint's."""
    found: dict[str, str] = {}
    steps = {file.parent: state["global_step"] for file, state in states(run).items()}
    stale = run not in steps and (run / "trainer_state.json").is_file()  # the model there is of an earlier run
    newest = sorted((folder for folder in steps if folder != run), key=lambda folder: steps[folder])[-1:]
    for folder in [*([] if stale else [run]), *newest]:
        adapter, config = (_json(folder / name) for name in ("adapter_config.json", "config.json"))
        card = folder / "README.md"
        text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
        base = re.search(r"^base_model: *(\S.*)$", text, re.MULTILINE)
        names = [adapter.get("base_model_name_or_path"), base and base[1], config.get("_name_or_path")]
        new = {
            "Model": next((name for name in names if name), None),
            "Architecture": ", ".join(config.get("architectures", [])),
        }
        if adapter:
            new["Adapter"] = f"{adapter.get('peft_type')}, rank {adapter.get('r')}"
        versions = dict(re.findall(r"^- (TRL|Transformers|Pytorch|Datasets|Tokenizers): *(\S+)", text, re.MULTILINE))
        if "transformers_version" in config:
            versions.setdefault("Transformers", config["transformers_version"])
        new["Versions"] = ", ".join(f"{name} {number}" for name, number in versions.items())
        found = {name: value for name, value in new.items() if value} | found
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
