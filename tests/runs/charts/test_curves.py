"""Curves and figures with intervals: what is drawn where."""

import re

import pytest

from rs_rlhf.runs.charts.curves import intervals, lines
from rs_rlhf.runs.charts.style import svg


def texts(drawn):
    return re.findall(r"<text[^>]*>([^<]*)</text>", drawn)


def paths(drawn):
    """The points of the lines, in pixels of the plotting area."""
    marks = re.findall(r'class="mark-line role-mark[^"]*"[^>]*>(.*?)</g>', drawn)
    found = [re.search(r' d="(M[^"]*)"', mark)[1] for mark in marks]
    return [[tuple(map(float, spot.split(","))) for spot in re.split("[ML]", line)[1:]] for line in found]


def test_curves_lie_where_their_values_are_and_are_named_at_their_ends():
    curves = [
        {"name": "training", "points": [(0, 0.0), (10, 1.0)]},
        {
            "name": "evaluation",
            "points": [(0, 0.5), (5, 0.25)],
            "dashed": True,
            "band": [(0, 0.4, 0.6), (5, 0.1, 0.4)],
        },
    ]
    drawn = svg(lines("accuracy", curves, "right", share=True, size=(200, 100)))
    assert paths(drawn) == [[(0, 100), (200, 0)], [(0, 50), (100, 75)]]
    assert {"accuracy", "right", "step", "training", "evaluation", "0%", "100%"} <= set(texts(drawn))
    assert drawn.count("stroke-dasharray") >= 1 and "mark-area" in drawn


def test_names_of_curves_that_end_together_do_not_lie_over_each_other():
    curves = [{"name": f"run {i}", "points": [(0, 0.1), (1, 0.9)]} for i in range(9)]
    drawn = svg(lines("t", curves, "y", size=(200, 150)))
    places = [float(y) for y in re.findall(r'translate\(206,([\d.-]+)\)"[^>]*>run', drawn)]
    gaps = [b - a for a, b in zip(sorted(places), sorted(places)[1:], strict=False)]
    assert len(places) == 9 and min(gaps) > 10 and -20 < min(places) and max(places) < 170
    marks = re.findall(r'class="mark-line role-mark[^"]*"[^>]*>(.*?)</g>', drawn)
    looks = {(re.search(r"--\w+", mark)[0], "stroke-dasharray" in mark) for mark in marks}
    assert len(looks) == 9, "two curves look the same"


def test_two_axes_each_with_its_own_range():
    curves = [
        {"name": "reward", "points": [(0, 2.0), (10, 12.0)]},
        {"name": "accuracy", "points": [(0, 0.75), (10, 0.5)], "side": "right"},
    ]
    drawn = svg(lines("t", curves, "reward", right=("accuracy", True), size=(200, 100)))
    assert paths(drawn)[1] == [(0, 25), (200, 50)] and {"10", "100%"} <= set(texts(drawn))


def test_nothing_to_draw_is_an_empty_chart():
    assert {"t", "y", "step"} <= set(texts(svg(lines("t", [{"name": "a", "points": []}], "y"))))
    assert "t" in texts(svg(lines("t", [], "y")))


@pytest.mark.parametrize("groups", [1, 2])
def test_intervals_of_every_label_and_group(groups):
    rows = [
        {"label": label, "group": f"model {i}", "value": 0.5, "low": 0.25, "high": 0.625}
        for label in ("rural", "count")
        for i in range(groups)
    ]
    rows[0] = {"label": "rural", "group": "model 0", "value": 0.125, "low": None, "high": None}
    drawn = svg(intervals("By type", rows, "accuracy", mark=0.5, width=200))
    told = texts(drawn)
    assert told.count("50.0% (25.0% to 62.5%)") == 2 * groups - 1 and told.count("12.5%") == 1
    assert ("model 1" in told) == (groups == 2) and {"rural", "count", "100%"} <= set(told)
    assert 'aria-label="count model 0: 50.0% (25.0% to 62.5%)"' in drawn
