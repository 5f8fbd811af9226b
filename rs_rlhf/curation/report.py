"""The report of `rs-rlhf curate`: what was kept of which source and class, and what the cut looks like.

`report.md` and `report.html` show the same tables; the page adds histograms of the scores and a gallery. It asks
nothing of the network and runs no script, and whatever comes from the data is escaped.

Left out: choosing another cut in the page (that is `rs-rlhf browse`), full-size images.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ..runs.report_tables import fill_page
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
    lines = [f"# {_plain(report['title'])}", ""]
    lines += [f"- {_plain(name)}: {_plain(text)}" for name, text in report["facts"]]
    lines += ["", *(f"**Note:** {_plain(note)}\n" for note in report["notes"])]
    for table in [*tables_of(report), *_bin_tables(report["figures"]["histograms"])]:
        lines += [f"## {_plain(table.title)}", ""]
        lines += [_plain(table.text), ""] if table.text else []
        lines.append("| " + " | ".join(map(_plain, table.columns)) + " |")
        lines.append(
            "|" + "|".join("---" if i == 0 or table.words else "---:" for i in range(len(table.columns))) + "|"
        )
        lines += ["| " + " | ".join(map(_plain, row)) + " |" for row in table.rows]
        lines.append("")
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


def _plain(text: str) -> str:
    """A text on one line in which nothing is markup, neither Markdown's nor HTML's."""
    return re.sub(r"([\\`*\[\]|<>])", r"\\\1", " ".join(str(text).split()))


# The page


def page(report: Mapping[str, Any], gallery: Sequence[Mapping[str, Any]]) -> str:
    """Returns the report as one HTML page.

    Args:
        report (mapping): As for [`markdown`].
        gallery (sequence of mappings): Sections of `curation_gallery.make_gallery`: `title`, `text`, whether
            they are `pairs`, and `cards`: `parts` (`asked`, `text`, `score`), how many `more` there are, `score`,
            `about` (source, class, length, row), `fate`, and `image` (a data URI), or `why` there is none.
    """
    facts = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in report["facts"])
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in report["notes"])
    first, *tables = tables_of(report)
    lists = [table for table in tables if table.words]
    histograms = report["figures"]["histograms"]
    sections = [
        (first.title, _table(first)),
        ("Scores" if len(histograms) < 2 else "Scores by source", _charts(histograms)),
        *((table.title, _table(table)) for table in tables if not table.words),
        *((section["title"], _section(section)) for section in gallery),
        *((table.title, _table(table)) for table in lists),
    ]
    links = "".join(f"<li><a href='#s{i}'>{escape(title)}</a></li>" for i, (title, _) in enumerate(sections))
    parts = [f"<section id='s{i}'><h2>{escape(name)}</h2>{part}</section>" for i, (name, part) in enumerate(sections)]
    head = f"<header><h1>{escape(report['title'])}</h1><dl>{facts}</dl>{notes}</header>"
    body = f"{head}<nav aria-label='Sections'><ul>{links}</ul></nav><main>{''.join(parts)}</main>"
    return fill_page("curation/report.html", report["title"], None, BODY=body)


def _charts(histograms: Sequence[Mapping[str, Any]]) -> str:
    marks = [("kept", "kept"), ("dropped", "dropped")]
    marks += [("line", "lowest score kept")] if any(made["cut"] is not None for made in histograms) else []
    legend = "".join(f"<span><i class='{kind}'></i>{name}</span>" for kind, name in marks)
    legend += "<span>The outermost bars hold what lies beyond too.</span>"
    return f"<p class='legend'>{legend}</p><div class='charts'>{''.join(map(_chart, histograms))}</div>"


def _table(table: Table) -> str:
    text = f"<p class='soft'>{escape(table.text)}</p>" if table.text else ""
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in table.columns)
    words = " class='words'" if table.words else ""
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    return f"{text}<div class='scroll'><table{words}><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"


def _chart(made: Mapping[str, Any], width: int = 340, height: int = 120) -> str:
    """A histogram as SVG: of each bin what is kept below, and what is dropped on top."""
    bins = list(zip(made["kept"], made["dropped"], strict=True))
    most = max(kept + dropped for kept, dropped in bins) or 1
    step, floor = width / BINS, height - 18
    parts = []
    for i, counts in enumerate(bins):
        top = floor
        for kind, count in zip(("kept", "dropped"), counts, strict=True):
            if count:
                tall = max(count / most * (floor - 16), 0.7)
                top -= tall
                place = f'x="{i * step + 0.5:.1f}" y="{top:.1f}" width="{step - 1:.1f}" height="{tall:.1f}"'
                parts.append(f'<rect class="{kind}" {place}/>')
    if made["cut"] is not None:
        x = min(max((made["cut"] - made["low"]) / (made["high"] - made["low"]), 0), 1) * width
        side, shift = ("end", -4) if x > width / 2 else ("start", 4)
        parts.append(f'<line class="line" x1="{x:.1f}" x2="{x:.1f}" y1="2" y2="{floor}"/>')
        parts.append(f'<text x="{x + shift:.1f}" y="11" text-anchor="{side}">{made["cut"]:.4g}</text>')
    parts.append(f'<text x="0" y="{height - 4}">{made["low"]:.4g}</text>')
    parts.append(f'<text x="{width}" y="{height - 4}" text-anchor="end">{made["high"]:.4g}</text>')
    kept, dropped = sum(made["kept"]), sum(made["dropped"])
    label = escape(f"Histogram of the scores of {made['name']}: {kept} kept, {dropped} dropped")
    return (
        f"<figure><figcaption>{escape(made['name'])} <span>{_count(kept)} of {_count(kept + dropped)} kept</span>"
        f'</figcaption><svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
        "</figure>"
    )


def _section(section: Mapping[str, Any]) -> str:
    pairs = section["pairs"]
    cards = "".join(_card(card, told=pairs) for card in section["cards"])
    kind = "cards pairs" if pairs else "cards"
    return f"<p class='soft'>{escape(section['text'])}</p><div class='{kind}'>{cards}</div>"


def _card(card: Mapping[str, Any], told: bool) -> str:
    why = f"<span class='soft'>{escape(card['why'])}</span>"
    picture = why if card["image"] is None else f'<img src="{escape(card["image"])}" alt="{escape(card["about"])}">'
    texts = ""
    for part in card["parts"]:
        asked = f"<p class='soft asked'>{escape(part['asked'])}</p>" if part["asked"] else ""
        score = f" <span class='soft'>({escape(part['score'])})</span>" if part["score"] else ""
        texts += f"{asked}<p>{escape(part['text'])}{score}</p>"
    texts += f"<p class='soft'>… and {_count(card['more'])} more</p>" if card["more"] else ""
    fate = f"<p class='soft'>{escape(FATES.get(card['fate'], card['fate']))}</p>" if told else ""
    more = why if card["image"] is not None and card["why"] else ""
    kind = "kept" if card["fate"] == "kept" else "dropped"
    return (
        f"<article class='{kind}'><div class='picture'>{picture}{more}</div><div class='said'>"
        f"<b>{escape(card['score'])}</b>{fate}<div class='texts'>{texts}</div>"
        f"<p class='soft'>{escape(card['about'])}</p></div></article>"
    )
