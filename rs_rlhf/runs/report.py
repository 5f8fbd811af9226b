"""Report of training runs: one HTML page, for people without W&B.

Everything comes from local files: `trainer_state.json` for the curves, `rs_rlhf_run.json` for what the run is of, and
the Parquet tables that our trainers (`rollouts/`, `samples/`, `worst_pairs/`) and TRL's (`completions/`) write. The
page needs no network: data, style, charts and thumbnails are inside it. At its top the reward stands beside the task
accuracy, since a reward that rises while answers get worse is what a run with a learned reward must be watched for.
Several runs share the charts, a colour for each.

Left out: live updates (run the command again), and full-size images.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ..errors import DataError
from .charts.metrics import (
    POINTS,
    beside_chart,
    curve,
    evaluation_chart,
    histogram_chart,
    metric_chart,
    score_chart,
)
from .files import write_text
from .page import render
from .plots import run_names, run_state, states
from .record import read_run
from .report_tables import TABLE_CAPS, Images, read_evaluations, read_tables

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
CAPS = f"Caps: {POINTS} points per curve, {TABLE_CAPS}."


def write_report(
    runs: str | Path | Sequence[str | Path], output: str | Path, smoothing: float = 0.0
) -> dict[str, Any]:
    """Writes the page of one or several runs and returns what it shows, see [`page_data`].

    `smoothing` is where the page's control of the curves of training begins: 0 (none) or more, less than 1.
    """
    folders = [Path(runs)] if isinstance(runs, str | Path) else [Path(run) for run in runs]
    page = page_data(folders)
    embedded = {key: page[key] for key in ("samples", "tables", "images")}
    write_text(Path(output), render("runs/report.html", **page, data=embedded, smoothing=smoothing))
    return page


def page_data(runs: Sequence[Path]) -> dict[str, Any]:
    """Reads one or several runs.

    Returns:
        `dict`: `title`, `runs` (names), `facts` (name and text, of one run), `configuration` (name, the value of each
        run, whether they differ), `notes`, `warnings`, `statements`, `headline` (charts of reward beside accuracy),
        `groups` (charts by prefix; `still` did not move), `histograms` (charts), `tables`, `samples` (fixed prompts
        over the evaluations), `score_charts` (of each of these), `evaluations` (what `rs-rlhf eval` and `best-of-n`
        wrote below `RUN_DIR/eval`) and their chart, `images` (data URIs, which rows name by place), `sections` (id
        and title) and `caps`.

    Raises:
        DataError: A folder holds neither a log nor tables, or is named twice.
    """
    images, names = Images(), run_names(runs)
    read = [_read(run, name if len(runs) > 1 else "", images) for run, name in zip(runs, names, strict=True)]
    page: dict[str, Any] = {
        key: [entry for one in read for entry in one[key]]
        for key in ("notes", "warnings", "statements", "headline", "tables", "samples", "evaluations")
    }
    if images.left_out:
        page["notes"].append(f"{images.left_out} thumbnails were left out: the page holds as many as its cap allows.")
    page |= {
        "title": ", ".join(names),
        "runs": names,
        "facts": read[0]["facts"] if len(runs) == 1 else [],
        "configuration": _beside([dict(one["facts"] * (len(runs) > 1)) | one["configuration"] for one in read]),
        "groups": grouped([one["curves"] for one in read], names),
        "histograms": [histogram_chart(made) for one in read for made in one["histograms"]],
        "score_charts": [[score_chart(row["answers"]) for row in entry["rows"]] for entry in page["samples"]],
        "evaluation_chart": evaluation_chart(page["evaluations"]),
        "images": images.uris,
        "caps": CAPS,
    }
    return page | {"sections": _sections(page)}


def _read(run: Path, name: str, images: Images) -> dict[str, Any]:
    """What one run adds to the page; with `name`, of several runs, its texts begin with that."""
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
    evaluations = read_evaluations(run, found.notes)
    before = f"{name}: " if name else ""
    for made in (*found.tables, *found.samples, *found.histograms):
        made["title"] = before + made["title"]
    for row in evaluations:
        row["what"] = before + row["what"]
    return {
        **vars(found),
        "notes": [before + text for text in found.notes],
        "warnings": [before + text for text in warnings],
        "statements": [before + text for text in statements],
        "headline": [beside_chart(before + title, left, right) for title, left, right in compared],
        "facts": facts(run, state),
        "configuration": configuration(run),
        "curves": curves,
        "evaluations": evaluations,
    }


def _sections(page: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Id and title of each section that the page has."""
    rewarded = any("reward" in label or "audit" in label for label in (made["label"] for made in page["headline"]))
    said = any(page[key] for key in ("headline", "warnings", "statements", "notes"))
    sections = [("headline", "Reward beside accuracy" if rewarded or page["statements"] else "At a glance")] * said
    sections += [("evaluations", "Evaluations")] * bool(page["evaluations"])
    sections += [(f"samples-{i}", entry["title"]) for i, entry in enumerate(page["samples"])]
    sections += [(f"metrics-{group['name']}", group["name"]) for group in page["groups"]]
    sections += [("histograms", "Histograms")] * bool(page["histograms"])
    sections += [(f"table-{i}", entry["title"]) for i, entry in enumerate(page["tables"])]
    return sections + [("configuration", "Configuration")] * bool(page["configuration"])


def _beside(settings: Sequence[Mapping[str, str]]) -> list[tuple[str, list[str], bool]]:
    """Settings of several runs side by side: name, the value of each run, and whether they differ."""
    names = dict.fromkeys(name for own in settings for name in own)
    rows = [(name, [own.get(name, "–") for own in settings]) for name in names]
    return [(name, values, len(set(values)) > 1) for name, values in rows]


# The log


def read_curves(log: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """Returns the numbers of each logged key by step; the last one if a step was logged twice.

    The number of rows that a figure is of, such as `score/n`, makes no curve.
    """
    curves: dict[str, dict[int, float]] = {}
    for entry in log:
        for key, value in entry.items():
            counts = key.endswith(("/n", "_n"))
            if (
                key not in ("step", "epoch", *SUMMARY)
                and not counts
                and isinstance(value, int | float)
                and "step" in entry
            ):
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


def grouped(logs: Sequence[Mapping[str, Mapping[int, float]]], runs: Sequence[str]) -> list[dict[str, Any]]:
    """Lays the curves of runs out in charts, and these in groups: `name`, `charts` and `still`, which did not move.

    `logs` are those of [`read_curves`], `runs` the names of the runs.
    """
    groups: dict[str, dict[str, list[Any]]] = {prefix: {} for prefix in PREFIXES}
    for i, curves in enumerate(logs):
        for key, values in curves.items():
            group, name, kind = place(key, curves)
            groups[group].setdefault(name, []).append(curve(key, values, run=i, kind=kind))
    made = []
    for prefix, charts in groups.items():
        parts: dict[bool, list[Any]] = {True: [], False: []}
        for name, lines in sorted(charts.items()):
            parts[_is_constant(lines)].append(metric_chart(name, lines, runs))
        if charts:
            made.append({"name": prefix, "charts": parts[False], "still": parts[True]})
    return made


def _is_constant(curves: Sequence[Mapping[str, Any]]) -> bool:
    values = {value for one in curves for _, value in one["points"]}
    return len(values) < 2 and not any(one["not_finite"] for one in curves)


def compare(curves: Mapping[str, Mapping[int, float]]) -> tuple[list[tuple[str, Any, Any]], list[str], list[str]]:
    """Puts the reward beside the task accuracy, and says whether they part.

    Returns the pairs of curves with their title, a sentence for each pair whose reward rose while the accuracy fell,
    and one for each other.
    """
    pairs: list[tuple[str, Any, Any]] = []
    warnings: list[str] = []
    statements: list[str] = []
    rewarded = any(key in curves for key in ("reward", "eval_reward", "audit/accuracy", "eval_audit/accuracy"))
    for name, rewards, accuracy in COMPARED if rewarded else ALONE:
        reward = next((key for key in rewards if key in curves), None)
        if reward is None or accuracy not in curves:
            continue
        pairs.append((name, curve(reward, curves[reward]), curve(accuracy, curves[accuracy])))
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


def configuration(run: Path) -> dict[str, str]:
    """Returns what a run was given, by name: command, data and their hashes, seed, model, options, versions."""
    begun = read_run(run)
    if begun is None:
        return {}
    about, settings = begun.about, dict(begun.settings)
    found: dict[str, Any] = {"command": shlex.join(about.get("command") or ())}
    found |= {name.replace("_", " "): value for name, value in dict(about.get("data") or {}).items()}
    for name in [key for key in settings if key == "data" or key.startswith("eval_data")]:
        found[f"{name} hash".replace("_", " ")] = settings.pop(name)
    found |= settings
    found |= {key: value for key, value in dict(about.get("config") or {}).items() if key not in found}
    more = {key: value for key, value in about.items() if key not in ("command", "data", "config", "versions")}
    found |= more | {"versions": about.get("versions")}
    shown = {name: _plain(value) for name, value in found.items() if value is not None}
    return {name: text for name, text in shown.items() if text}


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(one)}" for key, one in value.items() if one is not None)
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return str(value)[:1000]


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
