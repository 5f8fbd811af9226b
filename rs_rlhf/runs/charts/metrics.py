"""Charts of what runs log: a metric of one or several runs, reward beside accuracy, histograms, evaluations.

Left out: which charts the report has, and in what order (`report`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..report_tables import spread
from .counts import heat
from .curves import intervals, lines
from .style import SERIES, Spec, figure

POINTS = 1000
# What makes a metric of a log a share of something, whatever it is of; its axis goes from 0 to 100%.
SHARE = re.compile(
    r"accurac|exact_match|unparseable|parse_failures|(^|[/_])(ties|precision|recall|fraction|frac|share|kept|"
    r"clipped_ratio|right_above_wrong)([/_]|$)"
)
Values = Mapping[int, float]  # step -> value


def is_share(name: str) -> bool:
    """Says whether a metric is a share, by its name.

    Example:
        >>> [is_share(name) for name in ("audit/accuracy", "reward/failed_fraction", "clip_ratio/low", "loss")]
        [True, True, False, False]
    """
    return SHARE.search(name) is not None


def curve(name: str, values: Values, **more: Any) -> Spec:
    """Returns a curve of a metric's values, at most [`POINTS`] of them, and how many were not finite."""
    points = [[step, value] for step, value in sorted(values.items()) if math.isfinite(value)]
    return {"name": name, "points": spread(points, POINTS), "not_finite": len(values) - len(points), **more}


def metric_chart(name: str, curves: Sequence[Spec], runs: Sequence[str]) -> Spec:
    """Returns the chart of a metric: of one run training and evaluation, of several a colour for each run.

    Args:
        name (`str`): The metric.
        curves (sequence of `dict`): Of [`curve`], with `run` (its place in `runs`) and `kind` (`"training"` or
            `"evaluation …"`).
        runs (sequence of `str`): Names of the runs.
    """
    shown = []
    for one in sorted(curves, key=lambda one: (one["run"], one["kind"] != "training", one["kind"])):
        evaluated = one["kind"] != "training"
        several = len({other["kind"] for other in curves}) > 1
        named = f"{runs[one['run']]}, {one['kind']}" if several else runs[one["run"]]
        look = {"name": named, "colour": SERIES[one["run"] % len(SERIES)], "dashed": evaluated}
        if len(runs) == 1:
            look = {"name": one["kind"], "colour": "two" if evaluated else "one", "dashed": evaluated}
        shown.append({**one, **look})
    unit = "share" if is_share(name) else name.rsplit("/", 1)[-1].replace("_", " ")
    return _figure(name, shown, lines(name, shown, unit, share=is_share(name)))


def beside_chart(name: str, left: Spec, right: Spec) -> Spec:
    """Returns the chart of a reward and, by a second axis, of the accuracy."""
    shown = [{**left, "colour": "one"}, {**right, "colour": "two", "side": "right"}]
    spec = lines(name, shown, left["name"], share=is_share(left["name"]), right=(right["name"], True))
    sides = zip(shown, ("left", "right"), strict=True)
    return _figure(name, [{**one, "name": f"{one['name']} ({side} axis)"} for one, side in sides], spec)


def score_chart(answers: Mapping[str, Mapping[str, Any]]) -> Spec | None:
    """Returns the chart of the score and the reward of one prompt's answers over the steps; `None` without two."""
    curves = []
    for name in ("score", "reward"):
        found = {int(step): own[name] for step, own in answers.items() if isinstance(own.get(name), int | float)}
        if len(found) > 1:
            curves.append(curve(name, found))
    title = "Score over the evaluations"
    return _figure(title, curves, lines(title, curves, "score")) if curves else None


def histogram_chart(made: Mapping[str, Any]) -> Spec:
    """Returns the chart of a histogram over the steps, see [`rs_rlhf.runs.report_tables.histogram`]."""
    bins = len(made["counts"][0])
    edges = [made["low"] + (made["high"] - made["low"]) * i / bins for i in range(bins + 1)]
    title = f"{made['name']} · {made['title']}"
    spec = heat(title, made["steps"], edges, made["counts"], made["name"])
    label = f"{title}: histograms by step, from {made['low']:.4g} to {made['high']:.4g}"
    return figure(spec, label, note="darker: more of the step's rows")


def evaluation_chart(rows: Sequence[Mapping[str, Any]]) -> Spec | None:
    """Returns the chart of evaluations with their intervals; `None` if none has an accuracy."""
    shown = [
        {"label": f"{row['task']}, {row['what']}", "value": row["accuracy"]}
        | dict(zip(("low", "high"), row["interval"] or (None, None), strict=True))
        for row in rows
        if row["accuracy"] is not None
    ]
    title = "Evaluations, 95% intervals"
    return figure(intervals(title, shown, "accuracy", width=220), title) if shown else None


def _figure(name: str, curves: Sequence[Spec], spec: Spec) -> Spec:
    """A figure that tells the values of its curves."""
    told = [
        {
            "name": one["name"],
            "points": [[step, float(f"{value:.6g}")] for step, value in one["points"]],
            "share": is_share(one["name"]) or is_share(name) or one.get("side") == "right",
            "smooth": not one.get("dashed", False),
        }
        for one in curves
    ]
    broken = sum(one["not_finite"] for one in curves)
    last = [one["points"][-1][1] for one in curves if one["points"]]
    note = f"last {_number(last[0], told[0]['share'])}" if len(curves) == 1 and last else ""
    summary = "; ".join(map(_summary, told))
    label = f"{name}: {summary}. Arrow keys move along the steps."
    return figure(spec, label, curves=told, note=note, broken=f"not finite at {broken} steps" if broken else "")


def _number(value: float, share: bool) -> str:
    return f"{value:.1%}" if share else f"{value:.4g}"


def _summary(told: Spec) -> str:
    """A curve in words, for readers who do not see it."""
    points, share = told["points"], told["share"]
    if not points:
        return f"{told['name']}, no finite value"
    end = f" to {_number(points[-1][1], share)} at step {points[-1][0]}" if len(points) > 1 else ""
    return f"{told['name']}, {_number(points[0][1], share)} at step {points[0][0]}{end}"
