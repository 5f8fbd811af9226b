"""The report of `rs-rlhf curate`: what was kept of which source and class, and what the cut looks like.

`report.md` and `report.html` show the same tables; the page adds histograms of the scores and a gallery. It asks
nothing of the network and runs no script, and whatever comes from the data is escaped.

Left out: choosing another cut in the page (that is `rs-rlhf browse`), full-size images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..runs.page import render
from ..runs.tables import markdown_table, markdown_text
from .figures import BINS

LINES = 60  # rows of a table by source or class
FATES = {
    "error": "no score",
    "excluded": "image is in an evaluation set",
    "copy": "copy of another",
    "near_duplicate": "looks like a better one",
    "dropped": "below the cut",
}
LISTED = 200  # rows of a list of what was left out


@dataclass
class Table:
    """A table of the report: title, a sentence or none, names of the columns, rows; numbers from the second column on.

    With `words`, all columns are texts.
    """

    title: str
    text: str
    columns: list[str]
    rows: list[list[str]]
    words: bool = False


# Tables


def tables_of(report: Mapping[str, Any]) -> list[Table]:
    """Lays the figures of a report out as tables; see [`markdown`] for what a report holds."""
    figures = report["figures"]
    total = figures["samples"]["all"]
    fates = [
        [FATES.get(name, name), *(_count(figures[of][name]) for of in ("samples", "texts", "rows")), _share(n / total)]
        for name, n in figures["samples"].items()
        if n or name in ("all", "kept")
    ]
    text = f"A sample is what is kept or dropped together: {report['sample']}. A row counts wherever it has a sample."
    columns = ["", "samples", "texts", "rows", "of all samples"]
    tables = [Table("What became of the data", text, columns, fates)]
    tables.append(_strata(figures["strata"], report["by"]))
    for key, title in (("sources", "By source"), ("labels", "By class")):
        if figures[key]:
            tables.append(_groups(figures[key], title, key[:-1]))
    tables += [_spreads(figures["scores"], "Scores kept and dropped", ""), _lengths(figures)]
    if figures["agreement"] is not None:
        tables.append(_agreement(figures["agreement"], report["compared"]))
    tables += _lists(report)
    return tables


def _strata(strata: Sequence[Mapping[str, Any]], by: str) -> Table:
    rows = [
        [
            one["name"] or "(none)",
            _count(one["candidates"]),
            _count(one["kept"]),
            _number(one["score"]),
            _count(one["equal_kept"]),
            _count(one["equal_dropped"]),
        ]
        for one in sorted(strata, key=lambda one: -one["candidates"])[:LINES]
    ]
    text = "The lowest score kept, and how many samples have exactly this score; the order of the data decides which "
    text += f"of them are kept.{_cut_off(strata)}"
    columns = ["" if by == "none" else by, "to choose from", "kept", "lowest kept", "equal, kept", "equal, dropped"]
    return Table("The cut", text, columns, rows)


def _groups(groups: Sequence[Mapping[str, Any]], title: str, what: str) -> Table:
    rows = [
        [
            one["name"] or "(none)",
            _count(one["samples"]),
            _count(one["candidates"]),
            _count(one["kept"]),
            _share(one["share"]),
            _number(one["mean"]),
            _number(one["mean_kept"]),
        ]
        for one in groups[:LINES]
    ]
    columns = [what, "samples", "to choose from", "kept", "share kept", "mean score", "mean of kept"]
    return Table(title, _cut_off(groups).strip(), columns, rows)


def _cut_off(entries: Sequence[Any]) -> str:
    return f" The {LINES} largest of {len(entries)} are shown; curation.json has all." if len(entries) > LINES else ""


def _spreads(parts: Mapping[str, Mapping[str, Any]], title: str, text: str) -> Table:
    columns = ["mean", "min", "p10", "median", "p90", "max"]
    rows = [[name, _count(one["n"]), *(_number(one[key]) for key in columns)] for name, one in parts.items()]
    return Table(title, text, ["", "samples", *columns], rows)


def _lengths(figures: Mapping[str, Any]) -> Table:
    rho = figures["length_spearman"]
    told = "cannot be told" if rho is None else f"is {rho:.3f}"
    text = "Tokens of a sample's texts, as the scorer's tokenizer counts them; words where it has none. "
    text += f"Spearman's correlation of score and length {told}."
    return _spreads(figures["lengths"], "Length", text)


def _agreement(found: Mapping[str, Any], name: str) -> Table:
    rows = [
        ["samples with both scores", _count(found["n"])],
        ["Spearman's correlation", _number(found["spearman"], 3)],
        ["kept of them", _count(found["kept"])],
        ["the other would keep too", _count(found["both"])],
        ["overlap", _share(found["overlap"])],
        ["overlap to expect by chance", _share(found["chance"])],
    ]
    return Table("Agreement with other scores", f"With {name}, keeping as many of each stratum.", ["", "found"], rows)


def _lists(report: Mapping[str, Any]) -> list[Table]:
    """What was left out before the cut."""
    tables = []
    for one in report["lists"]:
        shown = [list(map(str, row)) for row in one["rows"][:LISTED]]
        text = f"{_count(one['count'])} in all, of which the first {len(shown)} are shown."
        tables.append(
            Table(one["title"], text if one["count"] > len(shown) else "", one["columns"], shown, words=True)
        )
    return tables


def _count(value: int) -> str:
    return f"{value:,}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}g}"


# Markdown


def markdown(report: Mapping[str, Any]) -> str:
    """Returns the report as Markdown.

    Args:
        report (mapping): `title`, `facts` (name and text of each setting), `notes` (sentences), `sample` (what is
            kept or dropped together), `by`, `compared` (name of the other scores), `figures` of
            [`rs_rlhf.curation.figures.figures_of`], and `lists` of what was left out (`title`, `columns`, `rows`, the
            first ones, and `count`, how many there are).
    """
    lines = [f"# {markdown_text(report['title'])}", ""]
    lines += [f"- {markdown_text(name)}: {markdown_text(text)}" for name, text in report["facts"]]
    lines += ["", *(f"**Note:** {markdown_text(note)}\n" for note in report["notes"])]
    for table in [*tables_of(report), *_bin_tables(report["figures"]["histograms"])]:
        lines += [f"## {markdown_text(table.title)}", ""]
        lines += [markdown_text(table.text), ""] if table.text else []
        rows = [[markdown_text(cell) for cell in row] for row in table.rows]
        lines += [markdown_table([*map(markdown_text, table.columns)], rows, "l" if table.words else "lr"), ""]
    return "\n".join(lines).rstrip() + "\n"


def _bin_tables(histograms: Sequence[Mapping[str, Any]]) -> list[Table]:
    tables = []
    for made in histograms:
        width = (made["high"] - made["low"]) / BINS
        rows = [
            [f"{made['low'] + i * width:.4g} to {made['low'] + (i + 1) * width:.4g}", _count(kept), _count(dropped)]
            for i, (kept, dropped) in enumerate(zip(made["kept"], made["dropped"], strict=True))
        ]
        text = "The outermost bins hold what lies beyond too."
        tables.append(Table(f"Histogram: {made['name']}", text, ["score", "kept", "dropped"], rows))
    return tables


# The page


def page(report: Mapping[str, Any], gallery: Sequence[Mapping[str, Any]]) -> str:
    """Returns the report as one HTML page.

    Args:
        report (mapping): As for [`markdown`].
        gallery (sequence of mappings): Sections of [`rs_rlhf.curation.gallery.make_gallery`]: `title`, `text`, whether
            they are `pairs`, and `cards`: `parts` (`asked`, `text`, `score`), how many `more` there are, `score`,
            `about` (source, class, length, row), `fate`, and `image` (a data URI), or `why` there is none.
    """
    first, *tables = tables_of(report)
    histograms = report["figures"]["histograms"]
    figures = [{"title": table.title, "table": table} for table in tables if not table.words]
    lists = [{"title": table.title, "table": table} for table in tables if table.words]
    charts = {
        "title": "Scores" if len(histograms) < 2 else "Scores by source",
        "charts": list(map(_chart, histograms)),
    }
    sections = [{"title": first.title, "table": first}, charts, *figures, *gallery, *lists]
    shown = {name: report[name] for name in ("title", "facts", "notes")}
    return render("curation/report.html", **shown, sections=sections, fates=FATES)


def _chart(made: Mapping[str, Any], width: int = 340, height: int = 120) -> dict[str, Any]:
    """A histogram as the shapes of an SVG: of each bin what is kept below, and what is dropped on top."""
    bins = list(zip(made["kept"], made["dropped"], strict=True))
    most = max(kept + dropped for kept, dropped in bins) or 1
    step, floor = width / BINS, height - 18
    bars = []
    for i, counts in enumerate(bins):
        top = float(floor)
        for kind, count in zip(("kept", "dropped"), counts, strict=True):
            if count:
                tall = max(count / most * (floor - 16), 0.7)
                top -= tall
                bars.append((kind, i * step + 0.5, top, step - 1, tall))
    line = None
    if made["cut"] is not None:
        x = min(max((made["cut"] - made["low"]) / (made["high"] - made["low"]), 0), 1) * width
        side, shift = ("end", -4) if x > width / 2 else ("start", 4)
        line = {"x": x, "at": x + shift, "side": side, "text": f"{made['cut']:.4g}"}
    kept, total = sum(made["kept"]), sum(map(sum, bins))
    label = f"Histogram of the scores of {made['name']}: {kept} kept, {total - kept} dropped"
    own = {"name": made["name"], "kept": kept, "total": total, "label": label, "bars": bars, "line": line}
    ends = {end: f"{made[end]:.4g}" for end in ("low", "high")}
    return own | ends | {"width": width, "height": height, "floor": floor}
