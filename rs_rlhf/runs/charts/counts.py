"""Charts of counts: histograms, histograms over steps, confusion matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .style import HEIGHT, SERIES, WIDTH, Spec, axis


def stacked(
    title: str,
    edges: Sequence[float],
    counts: Mapping[str, Sequence[int]],
    x: str,
    y: str,
    *,
    mark: tuple[float, str] | None = None,
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> Spec:
    """Returns a histogram whose bars are stacked of kinds.

    Args:
        title (`str`): Of the chart.
        edges (sequence of `float`): Of the bins, one more than there are bins.
        counts (mapping): Kind -> the count in each bin; the first kind lies at the bottom.
        x, y (`str`): Titles of the axes.
        mark (`tuple`, *optional*): A value to draw a line at, and the words beside it.
        size (`tuple`): Width and height of the plotting area.
    """
    kinds = [*counts]
    values = [
        {"low": low, "high": high, "n": n, "kind": kind, "order": i, "about": f"{low:.4g} to {high:.4g}: {n:,} {kind}"}
        for i, kind in enumerate(kinds)
        for low, high, n in zip(edges, edges[1:], counts[kind], strict=False)
        if n
    ]
    scale = {"domain": [edges[0], edges[-1]], "nice": False, "zero": False}
    across = {"field": "low", "type": "quantitative", "scale": scale, "axis": axis(x, grid=False), "bin": "binned"}
    up = {"field": "n", "type": "quantitative", "axis": {**axis(y), "format": ",d", "tickMinStep": 1}}
    shades = {"domain": kinds, "range": [f"var(--{name})" for name in ("one", "mute", *SERIES[1:])][: len(kinds)]}
    layers: list[Spec] = [
        {
            "data": {"values": values},
            "mark": {"type": "bar", "binSpacing": 1.7, "strokeWidth": 0.7},
            "encoding": {
                "x": across,
                "x2": {"field": "high"},
                "y": up,
                "color": {"field": "kind", "type": "nominal", "scale": shades},
                "stroke": {"field": "kind", "type": "nominal", "scale": shades},  # so that a bar of a few is seen
                "order": {"field": "order"},
                "description": {"field": "about"},
            },
        }
    ]
    if mark is not None:
        layers += _marked(*mark, edges, across)
    return {"title": title, "description": title, "width": size[0], "height": size[1], "layer": layers}


def _marked(value: float, words: str, edges: Sequence[float], across: Spec) -> list[Spec]:
    """The layers of a line at a value, inside the chart, and of the words beside it."""
    value = min(max(value, edges[0]), edges[-1])
    right = value > (edges[0] + edges[-1]) / 2
    at = {"x": {"datum": value, **{key: across[key] for key in ("type", "scale", "axis")}}}
    rule = {"type": "rule", "color": "var(--bad)", "strokeDash": [4, 3], "strokeWidth": 1.5}
    text = {"type": "text", "align": "right" if right else "left", "dx": -5 if right else 5, "baseline": "top"}
    return [
        {"data": {"values": [{}]}, "mark": rule, "encoding": at},
        {
            "data": {"values": [{"words": words}]},
            "mark": {**text, "color": "var(--ink)"},
            "encoding": {**at, "y": {"value": -4}, "text": {"field": "words"}},
        },
    ]


def matrix(title: str, cells: Sequence[tuple[str, str, int]], x: str, y: str, *, step: int = 30) -> Spec:
    """Returns a confusion matrix: rows are right answers, columns given ones; darker is a larger share of the row.

    Args:
        title (`str`): Of the chart.
        cells (sequence of tuples): Right answer, given answer, and how often; in the order of rows and columns.
        x, y (`str`): Titles of the axes.
        step (`int`): Side of a cell, in pixels.
    """
    totals, values = _cells(cells)
    columns = [*dict.fromkeys([*totals, *(column for _, column, _ in cells)])]
    shades = {"domain": ["right", "wrong"], "range": ["var(--one)", "var(--two)"]}
    nominal: Spec = {"type": "nominal", "scale": {"domain": columns, "padding": 0}}
    return {
        "title": title,
        "description": title,
        "width": {"step": step},
        "height": {"step": step},
        "data": {"values": values},
        "encoding": {
            "x": {
                "field": "column",
                **nominal,
                "axis": {"title": x, "labelAngle": -40, "labelLimit": 110, "labelOverlap": False},
            },
            "y": {
                "field": "row",
                **nominal,
                "scale": {"domain": [*totals], "padding": 0},
                "axis": {"title": y, "labelLimit": 130, "grid": False, "labelOverlap": False},
            },
        },
        "layer": [
            {
                "mark": {"type": "rect", "stroke": "var(--card)"},
                "encoding": {
                    "color": {"field": "shade", "type": "nominal", "scale": shades, "legend": None},
                    "opacity": {
                        "field": "share",
                        "type": "quantitative",
                        "scale": {"domain": [0, 1], "range": [0.12, 1]},
                        "legend": None,
                    },
                    "description": {"field": "about"},
                },
            },
            {
                "mark": {"type": "text", "fontSize": 10, "aria": False},
                "encoding": {
                    "text": {"field": "n", "type": "quantitative", "format": ",d"},
                    "color": {"field": "ink", "type": "nominal", "scale": None},
                },
            },
        ],
    }


def _cells(cells: Sequence[tuple[str, str, int]]) -> tuple[dict[str, int], list[Spec]]:
    """The totals of the rows of a matrix, and its cells that are not empty."""
    totals: dict[str, int] = {}
    for row, _, n in cells:
        totals[row] = totals.get(row, 0) + n
    values = [
        {
            "row": row,
            "column": column,
            "n": n,
            "share": n / totals[row],
            "shade": "right" if row == column else "wrong",
            "ink": "var(--card)" if n > 0.55 * totals[row] else "var(--ink)",
            "about": f"{row}, answered {column}: {n:,} of {totals[row]:,}",
        }
        for row, column, n in cells
        if n
    ]
    return totals, values


def heat(
    title: str,
    steps: Sequence[int],
    edges: Sequence[float],
    counts: Sequence[Sequence[int]],
    y: str,
    *,
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> Spec:
    """Returns histograms over the steps of a run: a column for each step, darker where more of its values lie.

    Args:
        title (`str`): Of the chart.
        steps (sequence of `int`): The columns.
        edges (sequence of `float`): Of the bins, one more than there are bins.
        counts (sequence of sequences): For each step the count in each bin.
        y (`str`): Title of the axis of the values.
        size (`tuple`): Width and height of the plotting area.
    """
    values = [
        {
            "step": str(step),
            "low": low,
            "high": high,
            "share": n / sum(own),
            "about": f"step {step}\n{y} {low:.4g} to {high:.4g}: {n} of {sum(own)}",
        }
        for step, own in zip(steps, counts, strict=True)
        for low, high, n in zip(edges, edges[1:], own, strict=False)
        if n
    ]
    darkest = max((n / sum(own) for own in counts for n in own if n), default=1)
    every = max(1, len(steps) // max(1, size[0] // 45))
    scale = {"domain": [edges[0], edges[-1]], "nice": False, "zero": False}
    names = [str(step) for step in steps]
    return {
        "title": title,
        "description": title,
        "width": size[0],
        "height": size[1],
        "data": {"values": values},
        "mark": {"type": "rect", "color": "var(--one)"},
        "encoding": {
            "x": {
                "field": "step",
                "type": "ordinal",
                "scale": {"domain": names, "paddingInner": 0.05},
                "axis": {"title": "step", "values": names[::every], "labelAngle": 0, "grid": False},
            },
            "y": {"field": "low", "type": "quantitative", "scale": scale, "axis": axis(y, grid=False)},
            "y2": {"field": "high"},
            "opacity": {
                "field": "share",
                "type": "quantitative",
                "scale": {"domain": [0, darkest], "range": [0.12, 1]},
                "legend": None,
            },
            "description": {"field": "about"},
        },
    }
