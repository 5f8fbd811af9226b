"""Style of all charts, and how they are drawn: by Vega-Lite, as SVG in a page, and as PNG, SVG and PDF files.

The colours are those of Okabe and Ito, which colour-blind readers tell apart; shares have an axis from 0 to 100%. A
specification names colours as the CSS variables of our pages, so that a chart in a page follows its light or dark
scheme; in files the light ones stand. Pages hold finished SVG: they need no chart library, and are readable without
script. `vl_convert`, which draws, is imported late.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from ...declarations import did_you_mean
from ...errors import OptionError
from ...options import option
from ..files import replacing

Spec = dict[str, Any]
FORMATS = ("png", "svg", "pdf")
# CSS variable -> its value on a light and on a dark page. `one` to `seven` are of Okabe and Ito (2008), on dark pages
# lightened where they would be hard to see.
COLOURS = {
    "page": ("#f6f7f9", "#12161c"),
    "card": ("#ffffff", "#1b212a"),
    "ink": ("#1b2330", "#e6eaf0"),
    "soft": ("#596375", "#9ba6b6"),
    "line": ("#dde1e8", "#343d4a"),
    "grid": ("#e9ecf1", "#2a323d"),
    "fill": ("#edf1f7", "#222b37"),
    "mute": ("#b9c1cd", "#4d586a"),
    "good": ("#1b7a43", "#7fd6a2"),
    "bad": ("#b3261e", "#ff9b93"),
    "warn": ("#fdecea", "#3c2020"),
    "one": ("#0072b2", "#56b4e9"),
    "two": ("#d55e00", "#f08a3c"),
    "three": ("#009e73", "#2cc79b"),
    "four": ("#cc79a7", "#dd9cc1"),
    "five": ("#e69f00", "#f0e442"),
    "six": ("#56b4e9", "#9fd4f5"),
    "seven": ("#000000", "#ffffff"),
}
SERIES = ("one", "two", "three", "four", "five", "six", "seven")
FONT = "Arial, Liberation Sans, Helvetica, sans-serif"
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufffe\uffff]")
WIDTH, HEIGHT = 270, 150  # of the plotting area of a chart in a page, in pixels
CONFIG: Spec = {
    "font": FONT,
    "background": None,
    "view": {"stroke": None},
    "title": {"color": "var(--ink)", "fontSize": 13, "anchor": "start", "offset": 8},
    "axis": {
        "labelColor": "var(--soft)",
        "titleColor": "var(--soft)",
        "gridColor": "var(--grid)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "labelLimit": 190,
        "labelFlush": False,
        "labelOverlap": True,
    },
    "legend": {
        "labelColor": "var(--soft)",
        "labelFontSize": 11,
        "labelLimit": 400,
        "symbolSize": 60,
        "orient": "top",
        "offset": 6,
        "columnPadding": 18,
        "title": None,
    },
    "text": {"color": "var(--soft)", "fontSize": 11},
    "header": {"labelColor": "var(--ink)"},
}


@dataclass(kw_only=True)
class ChartOptions:
    """In which formats pictures are written."""

    format: list[str] | None = option(
        None, f"formats of the picture, separated by commas: {','.join(FORMATS)} (default: png)", metavar="F"
    )

    def formats(self) -> list[str]:
        """Returns the formats that are asked for; an [`OptionError`] names one that is not known."""
        names = [name.strip().lower() for entry in self.format or () for name in entry.split(",") if name.strip()]
        for name in names:
            if name not in FORMATS:
                raise OptionError(f"--format {name} is not known{did_you_mean(name, FORMATS)}", "format")
        return [*dict.fromkeys(names)]


def css() -> str:
    """Returns the colours as the style sheet of our pages: light, and dark where the reader prefers that."""
    light, dark = (" ".join(f"--{name}: {pair[i]};" for name, pair in COLOURS.items()) for i in (0, 1))
    return f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"


# Drawing


def svg(spec: Spec) -> str:
    """Draws a chart as the SVG element of a page, in the colours of the page."""
    import vl_convert

    return vl_convert.vegalite_to_svg(_text({**spec, "config": CONFIG}))


def _text(spec: Spec) -> str:
    """A specification as JSON, whose texts hold nothing that the renderer ends the process over, or cannot read."""
    return json.dumps(_seen(spec), ensure_ascii=False, allow_nan=False)


def _seen(value: Any) -> Any:
    if isinstance(value, str):
        return _UNSEEN.sub("\ufffd", value).encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {_seen(key): _seen(one) for key, one in value.items()}
    return [*map(_seen, value)] if isinstance(value, list | tuple) else value


def figure(spec: Spec, label: str, *, curves: Sequence[Spec] = (), note: str = "", broken: str = "") -> Spec:
    """Draws a chart for a page: what the macro of `charts/chart.html` shows.

    Args:
        spec (`dict`): The chart.
        label (`str`): Its title, and after a colon what a reader who does not see it is told.
        curves (sequence of mappings): `name`, `points`, whether their values are a `share`, and whether the page may
            `smooth` them, in the order in which they are drawn: what the page tells at a step.
        note (`str`): A line below the chart.
        broken (`str`): What is wrong with it.
    """
    start = f'<svg role="img" tabindex="0" aria-label="{escape(label)}" '
    drawn = Markup(svg(spec).replace("<svg ", start, 1).replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "", 1))
    return {"svg": drawn, "label": label, "curves": [*curves], "note": note, "broken": broken}


def save(spec: Spec, path: str | Path, formats: Sequence[str] = ()) -> list[Path]:
    """Writes a chart to a file of the suffix's format, or to a file of each of `formats` with its suffix.

    Returns the files. A suffix that is no format of [`FORMATS`] is an [`OptionError`]; without one it is a PNG.
    """
    import vl_convert

    paths = chart_paths(path, formats)
    whole = _text({**spec, "config": {**CONFIG, "background": "var(--card)"}, "padding": 8})
    whole = re.sub(r"var\(--(\w+)\)", lambda match: COLOURS.get(match[1], (match[0], ""))[0], whole)
    for file in paths:
        kind = file.suffix[1:].lower()
        drawn = _png(whole) if kind == "png" else getattr(vl_convert, f"vegalite_to_{kind}")(whole)
        with replacing(file, "wb") as stream:
            stream.write(drawn.encode() if isinstance(drawn, str) else drawn)
    return paths


def _png(spec: str) -> bytes:
    """A PNG of two dots a pixel, made as small as Pillow can: a third of what the renderer writes."""
    import vl_convert
    from PIL import Image

    small = io.BytesIO()
    with Image.open(io.BytesIO(vl_convert.vegalite_to_png(spec, scale=2))) as image:
        image.convert("RGB").save(small, "PNG", optimize=True)
    return small.getvalue()


def chart_paths(path: str | Path, formats: Sequence[str] = ()) -> list[Path]:
    """Returns the files that [`save`] writes; an [`OptionError`] if the suffix is that of another format."""
    path = Path(path)
    if path.suffix[1:].lower() in FORMATS:
        return [path.with_suffix(f".{kind}") for kind in formats] or [path]
    if path.suffix and not formats:
        raise OptionError(
            f"{path} ends in {path.suffix}, expected .png, .svg or .pdf; name another file.", "output", str(path)
        )
    return [path.with_name(f"{path.name}.{kind}") for kind in dict.fromkeys(formats or ("png",))]


# Scales


def domain(values: Iterable[float], share: bool = False) -> list[float]:
    """Returns the range of an axis: 0 to 1 of shares, else a little more than the values, without crossing zero.

    Example:
        >>> domain([0.2, 0.9], share=True), domain([0.0, 0.0]), domain([2.0, 2.0])
        ([0, 1], [0, 1], [0, 4.0])
    """
    values = [*values]
    if not values or (share and all(0 <= value <= 1 for value in values)):
        return [0, 1]
    low, high = min(values), max(values)
    if high - low <= 1e-9 * abs(high):
        return [min(0, 2 * low), max(0, 2 * high)] if low else [0, 1]
    room = (high - low) * 0.06
    return [
        max(low - room, 0) if low >= 0 else low - room,
        min(high + room, 0) if high <= 0 else high + room,
    ]


def axis(title: str, share: bool = False, largest: float = 1.0, **more: Any) -> Spec:
    """Returns an axis of shares or of numbers, the largest of which decides how they are written; `more` are its
    properties in Vega-Lite.
    """
    number = "~e" if abs(largest) < 1e-3 else "~s" if abs(largest) >= 1e4 else ",~f"
    return {"title": title, "tickCount": 5, "format": ".0%" if share else number, **more}
