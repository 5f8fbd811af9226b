"""Charts of curves over the steps of a run, and of figures with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .style import HEIGHT, SERIES, WIDTH, Spec, axis, domain


def lines(
    title: str,
    curves: Sequence[Mapping[str, Any]],
    y: str,
    *,
    x: str = "step",
    share: bool = False,
    right: tuple[str, bool] | None = None,
    powers: bool = False,
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> Spec:
    """Returns a chart of curves, each labelled at its end.

    Args:
        title (`str`): Of the chart.
        curves (sequence of mappings): `name`, `points` (pairs of x and y), and if wanted `colour` (one of [`SERIES`]),
            `dashed`, `band` (triples of x, low and high: an interval) and `side` (`"right"`: by the right axis).
        y (`str`): Title of the axis.
        x (`str`): Title of the axis below.
        share (`bool`): The values are shares: the axis goes from 0 to 100%.
        right (`tuple`, *optional*): Title of the right axis, and whether its values are shares.
        powers (`bool`): x are powers of two.
        size (`tuple`): Width and height of the plotting area.
    """
    many = len(SERIES)  # from then on the colours come again, dashed
    curves = [{"colour": SERIES[i % many], "dashed": i >= many, **curve} for i, curve in enumerate(curves)]
    places = sorted({point[0] for curve in curves for point in curve["points"]})
    first, last = (places[0], places[-1]) if places else (0, 1)
    if first == last:
        first, last = (first / 2, last * 2) if powers else (first - 1, last + 1)
    scale: Spec = {"domain": [first, last], "nice": False, "zero": False}
    below: Spec = {"title": x, "grid": False, "format": "~s", "tickMinStep": 1}
    below["tickCount"] = max(2, min(len(places), size[0] // 60))
    if powers:
        scale, below = {**scale, "type": "log", "base": 2}, {**below, "values": places}
    across = {"field": "x", "type": "quantitative", "scale": scale, "axis": below}
    sides = {"left": (y, share), "right": right or ("", False)}
    layers = []
    for side, (name, is_share) in sides.items():
        own = [curve for curve in curves if curve.get("side", "left") == side]
        if own or (side == "left" and right is None):
            colour = {"titleColor": f"var(--{own[0]['colour']})", "grid": side == "left"} if right else {}
            layers.append(_curves(own, across, {"title": name, "orient": side, **colour}, is_share, size, not right))
    return {
        "title": title,
        "description": title,
        "width": size[0],
        "height": size[1],
        "layer": layers,
        **({"resolve": {"scale": {"y": "independent"}}} if right else {}),
    }


def _curves(
    curves: Sequence[Mapping[str, Any]], across: Spec, look: Spec, share: bool, size: tuple[int, int], named: bool
) -> Spec:
    """The layers of the curves that share a y axis."""
    seen = [point[1] for curve in curves for point in curve["points"]]
    seen += [value for curve in curves for point in curve.get("band", ()) for value in point[1:]]
    low, high = domain(seen, share)
    scale = {"domain": [low, high], "nice": False, "zero": False}
    up = {"field": "y", "type": "quantitative", "scale": scale}
    up["axis"] = axis(share=share, largest=max(abs(low), abs(high)), **look)
    layers: list[Spec] = []
    ends = []
    for curve in curves:
        colour, points = f"var(--{curve['colour']})", curve["points"]
        values = {"values": [{"x": a, "y": b} for a, b in points]}
        encoding = {"x": across, "y": up}
        if curve.get("band"):
            band = {"values": [{"x": a, "y": b, "y2": c} for a, b, c in curve["band"]]}
            layers.append(
                {
                    "data": band,
                    "mark": {"type": "area", "opacity": 0.13, "color": colour, "aria": False},
                    "encoding": {**encoding, "y2": {"field": "y2"}},
                }
            )
        dash = {"strokeDash": [5, 4]} if curve.get("dashed") else {}
        line: Spec = {"type": "line", "color": colour, "strokeWidth": 1.8, "strokeJoin": "round", **dash}
        if len(points) < 25:
            line["point"] = {"color": colour, "size": 22, "filled": True}
        layers.append({"data": values, "mark": {**line, "description": curve["name"]}, "encoding": encoding})
        if points:
            ends.append((size[1] * (high - points[-1][1]) / (high - low), curve["name"], colour))
    if named and len(curves) > 1:
        layers += _labels(ends, size)
    nothing = {"data": {"values": []}, "mark": "point", "encoding": {"x": across, "y": up}}
    return {"layer": layers or [nothing]}


def _labels(ends: Sequence[tuple[float, str, str]], size: tuple[int, int]) -> list[Spec]:
    """The names of curves at their right ends, none over another."""
    places = _apart([place for place, _, _ in ends], 13, size[1])
    return [
        {
            "data": {"values": [{"name": name}]},
            "mark": {"type": "text", "align": "left", "baseline": "middle", "color": colour, "limit": 150},
            "encoding": {"text": {"field": "name"}, "x": {"value": size[0] + 6}, "y": {"value": place}},
        }
        for place, (_, name, colour) in zip(places, ends, strict=True)
    ]


def intervals(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    x: str,
    *,
    share: bool = True,
    mark: float | None = None,
    width: int = WIDTH,
) -> Spec:
    """Returns a chart of figures with their intervals, one line for each label.

    Args:
        title (`str`): Of the chart.
        rows (sequence of mappings): `label`, `value`, and if there are any `low` and `high` (the interval) and `group`
            (such as the model): groups have colours and lie side by side under a label.
        x (`str`): Title of the axis.
        share (`bool`): The values are shares: the axis goes from 0 to 100%.
        mark (`float`, *optional*): A value to draw a line at, such as that of chance.
        width (`int`): Of the plotting area.
    """
    groups = [*dict.fromkeys(str(row.get("group", "")) for row in rows)]
    ends = [row[key] for row in rows for key in ("low", "value", "high") if row.get(key) is not None]
    share = share and all(0 <= end <= 1 for end in ends)
    low, high = domain([*ends, *([] if mark is None else [mark])], share)
    named: Spec = {"field": "label", "type": "nominal", "sort": None, "axis": {"title": None, "grid": False}}
    down: Spec = {"y": named}
    if len(groups) > 1:
        named["scale"] = {"paddingInner": 0.25, "paddingOuter": 0.15}
        down["yOffset"] = {"field": "group", "sort": groups, "scale": {"paddingOuter": 0.3}}
    shades = [f"var(--{SERIES[i % len(SERIES)]})" for i in range(len(groups))]
    shade: Spec = {"field": "group", "type": "nominal", "sort": groups, "scale": {"domain": groups, "range": shades}}
    shade |= {} if len(groups) > 1 else {"legend": None}
    scale = {"scale": {"domain": [low, high], "nice": False, "zero": False}, "axis": axis(x, share)}
    value = {"field": "value", "type": "quantitative", **scale}
    ends_of = {"x": {"field": "low", "type": "quantitative", **scale}, "x2": {"field": "high"}, "color": shade}
    text = {"type": "text", "align": "left", "dx": width + 8, "x": 0}
    layers: list[Spec] = [
        {"mark": {"type": "rule", "strokeWidth": 2.5, "aria": False}, "encoding": ends_of},
        {
            "mark": {"type": "point", "filled": True, "size": 55, "opacity": 1},
            "encoding": {"x": value, "color": shade, "description": {"field": "about"}},
        },
        {"mark": {**text, "aria": False}, "encoding": {"text": {"field": "told"}}},
    ]
    if mark is not None:
        rule = {"type": "rule", "color": "var(--soft)", "strokeDash": [4, 3], "aria": False}
        height = {"y": {"value": 0}, "y2": {"value": "height"}, "yOffset": None}
        layers.insert(
            0, {"data": {"values": [{}]}, "mark": rule, "encoding": {"x": {"datum": mark, **scale}, **height}}
        )
    return {
        "title": title,
        "description": title,
        "width": width,
        "height": {"step": 22 if len(groups) < 2 else 17},
        "data": {"values": [_with_words(row, share) for row in rows]},
        "encoding": down,
        "layer": layers,
    }


def _with_words(row: Mapping[str, Any], share: bool) -> Spec:
    """A row of [`intervals`] with what stands beside it (`told`), and what is told of its point (`about`)."""
    form = "{:.1%}" if share else "{:.3g}"
    around = [form.format(row[key]) for key in ("low", "high") if row.get(key) is not None]
    told = form.format(row["value"]) + (f" ({around[0]} to {around[1]})" if len(around) == 2 else "")
    known = {key: value for key, value in row.items() if value is not None}
    words = {"told": told, "about": f"{row['label']} {row.get('group') or ''}: {told}"}
    return {"group": "", "low": row["value"], "high": row["value"]} | known | words


def _apart(places: Sequence[float], gap: float, height: float) -> list[float]:
    """Moves places on a line apart until they are `gap` from each other, within the height if they fit."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = list(places)
    for a, b in zip(order, order[1:], strict=False):
        moved[b] = max(moved[b], moved[a] + gap)
    bottom = max(height, gap * (len(places) - 1))
    for i in reversed(order):
        moved[i] = bottom = min(moved[i], bottom)
        bottom -= gap
    return moved
