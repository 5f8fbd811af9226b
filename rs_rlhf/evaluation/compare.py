"""Paired comparison of two evaluations, question by question: tests, verdicts, and the answers that changed.

Both are output folders of `rs-rlhf eval` on the same data. Answers to the same question are paired, which tells more
than two intervals side by side: right and wrong answers by the exact McNemar test, other figures (IoU, score) by a
paired bootstrap. The questions whose answer became right or wrong are written as `flips_TASK.jsonl` and, with
thumbnails, as one HTML page that loads nothing from the network and sets text only as text.

A preference counts as right if the chosen text beats all rejected ones.

Left out: tests per question type (the page filters by type, `results.json` has the intervals), figures that belong to
a whole test set (CIDEr, BLEU), and score margins, since two score models share no scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean as mean
from typing import Any

from ..declarations import did_you_mean
from ..errors import DataError
from ..metrics.intervals import holm, mcnemar, paired_bootstrap
from ..runs.tables import markdown_table, markdown_text
from .results import MEASURES, Figures, Record, Results, measured, models_of, read_results, read_samples

ALPHA = 0.05
ROUNDS = 2000
OUTSIDE = ("pixel_budget", "seed", "profile")  # settings that `settings` does not hold
MODEL = ("model", "model_hash", "dataset_hash")  # settings that are compared or checked anyway
HEADER = ("task", "measure", "n", "A", "B", "B - A", "95% interval", "only A", "only B", "p", "p (Holm)")
DIRECTIONS = ("right_to_wrong", "wrong_to_right")


# Comparing


def compare(a: str | Path, b: str | Path, tasks: Sequence[str] | None = None, *, seed: int = 0) -> dict[str, Any]:
    """Compares two runs question by question.

    The p-value of right/wrong measures is that of the exact McNemar test (McNemar 1947), of others that of the paired
    bootstrap; intervals are always the paired bootstrap's, 95%. Verdicts go by p-values corrected after Holm (1979)
    over the tasks, for each measure by itself.

    Args:
        a, b (`str`): Output folders of `rs-rlhf eval`.
        tasks (sequence of `str`, *optional*): By default all that both have.
        seed (`int`): Seed of the bootstrap.

    Returns:
        `dict`: `a` and `b` (`folder`, `model`), `rows` (one per task and measure: `task`, `measure`, `n`, `a`, `b`,
        `difference` (B - A), `interval`, `p`, `p_holm`, `only_a` and `only_b` (questions that only one has right,
        McNemar's b and c; `None` where not right/wrong), `verdict`), `notes`, and `flips` (by task: the records, with
        `direction` from A to B).

    Raises:
        DataError: The two were not run on the same questions, or a file cannot be used.
    """
    results = {"A": read_results(a), "B": read_results(b)}
    folders = {"A": a, "B": b}
    chosen = _common_tasks(folders, results, tasks)
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    flips: dict[str, list[dict[str, Any]]] = {}
    for task in chosen:
        figures = {side: results[side]["tasks"][task] for side in results}
        samples = {side: read_samples(folders[side], task, figures[side]) for side in results}
        _check_same(task, figures, samples)
        for records in samples.values():  # so that neither side's order decides what the bootstrap draws
            records.sort(key=lambda record: record["id"])
        values = _values(task, folders, samples, notes)
        if "score" in values and (reason := _other_scale(figures)):
            del values["score"]
            notes.append(f"{task}: {reason}, and two score models share no scale: score is not compared.")
        rows += [_row(task, name, old, new, seed) for name, (old, new) in values.items()]
        if binary := next((name for name in values if MEASURES[name]), None):
            flips[task] = _flips(samples, values[binary])
        if not values:
            notes.append(f"{task}: its records hold no figure of a single answer, so that nothing can be paired.")
        notes += _settings(task, figures)
    for measure in dict.fromkeys(row["measure"] for row in rows):
        family = [row for row in rows if row["measure"] == measure]
        for row, p in zip(family, holm([row["p"] for row in family]), strict=True):
            row |= {"p_holm": p}
            row |= {"verdict": _verdict(row)}
    sides = {
        side.lower(): {"folder": str(folders[side]), "model": ", ".join(models_of(results[side], chosen))}
        for side in results
    }
    return {**sides, "seed": seed, "rows": rows, "notes": notes, "flips": flips}


def _common_tasks(
    folders: Mapping[str, str | Path], results: Mapping[str, Results], tasks: Sequence[str] | None
) -> list[str]:
    """The tasks to compare: those asked for, which both must have, or all that both have."""
    both = f"both {folders['A']} and {folders['B']}"
    common = [task for task in results["A"]["tasks"] if task in results["B"]["tasks"]]
    if not common:
        held = "; ".join(f"{side} has {', '.join(results[side]['tasks']) or 'none'}" for side in results)
        raise DataError(f"no task is in {both}: {held}; run one of them on the other's tasks", "task")
    for task in tasks or ():
        if task not in common:
            raise DataError(f"the task {task!r} is not in {both}{did_you_mean(task, common)}", "task")
    return list(dict.fromkeys(tasks or common))


def _other_scale(figures: Mapping[str, Figures]) -> str:
    """Names the score models that scored the answers of A and of B if they are not the same one."""
    old, new = (figures[side].get("settings") or {} for side in ("A", "B"))
    if old.get("score_model") != new.get("score_model"):
        return f"A was scored by {old.get('score_model')!r:.60}, B by {new.get('score_model')!r:.60}"
    parts = {
        "score_model_hash": "weights",
        "score_combine": "--score_combine",
        "score_calibration_hash": "calibration",
    }
    other = next((part for key, part in parts.items() if old.get(key) != new.get(key)), None)
    return f"{old.get('score_model')!r:.60} has other {other} of A than of B" if other else ""


def _check_same(task: str, figures: Mapping[str, Figures], samples: Mapping[str, Sequence[Record]]) -> None:
    """Raises if the two sides were not asked the same, or not judged the same."""
    counts = f"A has {len(samples['A'])} questions of {task} and B {len(samples['B'])}"
    again = "run both on the same files with the same --limit"
    for key, what in (("dataset_hash", "run on other data"), ("metric_version", "judged by other versions")):
        a, b = (figures[side].get(key) for side in ("A", "B"))
        if a is None or b is None:
            raise DataError(f"results.json of {'A' if a is None else 'B'} has no {key} of {task}; run it again", key)
        if a != b:
            raise DataError(
                f"{counts}; they were {what}: {key} is {str(a)[:16]} of A and {str(b)[:16]} of B; {again}", key
            )
    ids = {side: {record["id"] for record in samples[side]} for side in samples}
    if ids["A"] != ids["B"]:
        extra = {"A": ids["A"] - ids["B"], "B": ids["B"] - ids["A"]}
        only = [f"only {side} has {min(names)!r}" for side, names in extra.items() if names]
        raise DataError(f"{counts}; they were run on other data: {', '.join(only)}; {again}", "id")


def _values(
    task: str, folders: Mapping[str, str | Path], samples: Mapping[str, Sequence[Record]], notes: list[str]
) -> dict[str, tuple[list[float], list[float]]]:
    """Measure -> the values of A and of B. What only one side has is noted; what only some answers have is refused."""
    measures = {
        side: [measured(record, f"{folders[side]}: {task}, id {record['id']!r}") for record in samples[side]]
        for side in samples
    }
    paired: dict[str, tuple[list[float], list[float]]] = {}
    for name in MEASURES:
        sides = []
        for side, answers in measures.items():
            have = [name in answer for answer in answers]
            sides += [side] * any(have)
            if any(have) and not all(have):
                what = f"id {samples[side][have.index(False)]['id']!r} has no {name}, though others have; run it again"
                raise DataError(what, name, f"{folders[side]}: {task}")
        if len(sides) == 2:
            paired[name] = [one[name] for one in measures["A"]], [one[name] for one in measures["B"]]
        elif sides:
            notes.append(f"{task}: only {sides[0]} has {name}, which is not compared.")
    return paired


def _row(task: str, measure: str, a: Sequence[float], b: Sequence[float], seed: int) -> dict[str, Any]:
    difference, interval, p = paired_bootstrap(a, b, seed, ROUNDS)
    row = {"task": task, "measure": measure, "n": len(a), "a": mean(a), "b": mean(b)}
    row |= {"difference": difference, "interval": list(interval), "p": p, "only_a": None, "only_b": None}
    if MEASURES[measure]:
        only_a = sum(x > y for x, y in zip(a, b, strict=True))
        only_b = sum(x < y for x, y in zip(a, b, strict=True))
        row |= {"only_a": only_a, "only_b": only_b, "p": mcnemar(only_a, only_b)}
    return row


def is_share(measure: str) -> bool:
    """Says whether the mean of a measure is a share of the questions."""
    return MEASURES[measure] or measure.endswith("R@1")


def _verdict(row: Mapping[str, Any]) -> str:
    low, high = row["interval"]
    unit, name, shape = (100, " points", "+.1f") if is_share(row["measure"]) else (1, "", "+.4f")
    figures = (
        f"B - A = {unit * row['difference']:{shape}}{name}, 95% interval {unit * low:{shape}} to {unit * high:{shape}}"
        f", p = {row['p_holm']:.3g}"
    )
    if row["p_holm"] >= ALPHA:
        return f"no difference can be told at n = {row['n']} ({figures})"
    return f"{'B' if row['difference'] > 0 else 'A'} is better at n = {row['n']} ({figures})"


def _flips(samples: Mapping[str, Sequence[Record]], values: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    flips = []
    for a, b, before, after in zip(samples["A"], samples["B"], *values, strict=True):
        if before == after:
            continue
        flip = {"id": a["id"], "direction": DIRECTIONS[before < after], "types": a.get("types") or []}
        flip |= {key: a.get(key) for key in ("prompt", "references", "image")}
        kept = ("answer", "output", "boxes", "scores", "image_to_text_rank")
        flips.append(flip | {side: {k: r[k] for k in kept if k in r} for side, r in (("a", a), ("b", b))})
    return flips


def _settings(task: str, figures: Mapping[str, Figures]) -> list[str]:
    """One sentence if the two were run with other settings, so that not only the models are compared."""
    old, new = (
        {**figures[side].get("settings", {}), **{k: figures[side].get(k) for k in OUTSIDE}} for side in ("A", "B")
    )
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key) and key not in MODEL]
    differ = [f"{key} {old.get(key)!r:.60} / {new.get(key)!r:.60}" for key in keys]
    return [f"{task}: A and B were also run with other settings: {'; '.join(differ)}."] if differ else []


# Writing


def markdown(compared: Mapping[str, Any]) -> str:
    """Returns the table and the verdicts as Markdown."""
    heads = (f"{side.upper()}: {compared[side]['model']} ({compared[side]['folder']})" for side in ("a", "b"))
    lines = [f"{markdown_text(head)}  " for head in heads]
    lines += ["", markdown_table(HEADER, table_rows(compared), "llrrrrlrrrr"), ""]
    verdicts = (f"{row['task']}, {row['measure']}: {row['verdict']}." for row in compared["rows"])
    return "\n".join([*lines, *(f"- {markdown_text(line)}" for line in (*verdicts, *compared["notes"]))])


def table_rows(compared: Mapping[str, Any]) -> list[list[str]]:
    """Returns the rows of the table of a comparison, with the columns of [`HEADER`]."""
    rows = []
    for row in compared["rows"]:
        cells = [row["task"], row["measure"], str(row["n"]), f"{row['a']:.4f}", f"{row['b']:.4f}"]
        cells += [f"{row['difference']:+.4f}", "{:+.4f} to {:+.4f}".format(*row["interval"])]
        cells += ["" if row[key] is None else str(row[key]) for key in ("only_a", "only_b")]
        rows.append([*cells, f"{row['p']:.3g}", f"{row['p_holm']:.3g}"])
    return rows


def latex(compared: Mapping[str, Any]) -> str:
    """Returns the comparison as a LaTeX table for the package `booktabs`.

    Shares are in percent, differences in points with their 95% intervals, p-values corrected after Holm. Of what can
    be told apart the better one is bold.
    """
    lines = [
        *(f"% {side.upper()}: {_tex(compared[side]['model'])}" for side in ("a", "b")),
        r"\begin{tabular}{llrrrrr}",
        r"\toprule",
        r"Task & Measure & $n$ & A & B & B $-$ A (95\% interval) & $p$ \\",
        r"\midrule",
    ]
    for row in compared["rows"]:
        unit, shape = (100, ".1f") if is_share(row["measure"]) else (1, ".4f")
        a, b = (f"{unit * row[side]:{shape}}" for side in ("a", "b"))
        if row["p_holm"] < ALPHA:
            a, b = (a, rf"\textbf{{{b}}}") if row["difference"] > 0 else (rf"\textbf{{{a}}}", b)
        low, high = (f"${unit * end:+{shape}}$" for end in row["interval"])
        difference = f"${unit * row['difference']:+{shape}}$ ({low} to {high})"
        p = "$<0.001$" if row["p_holm"] < 0.001 else f"{row['p_holm']:.3f}"
        lines.append(
            " & ".join([_tex(row["task"]), _tex(row["measure"]), str(row["n"]), a, b, difference, p]) + r" \\"
        )
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _tex(text: str) -> str:
    """A text in which nothing is markup of LaTeX."""
    words = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\n": " "}
    return "".join(words.get(letter, f"\\{letter}" if letter in "&%$#_{}" else letter) for letter in text)
