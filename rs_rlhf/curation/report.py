"""The report of `rs-rlhf curate`: what was kept of which source and class, as Markdown and as one HTML page.

`report.md` and `report.html` show the same tables; the page adds histograms of the scores and a gallery. It loads
nothing from the network, and whatever comes from the data is escaped.

Left out: moving the cut in the page (that is `rs-rlhf browse`), full-size images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from ..runs.charts.counts import stacked
from ..runs.charts.style import figure
from ..runs.page import render
from ..runs.tables import markdown_table, markdown_text
from .cut import Cut, Samples
from .figures import BINS, figures_of
from .options import CurateOptions
from .samples import LeftOut, Scored, scorer_name
from .shards import reason

LINES = 60  # rows of a table by source or class
LISTED = 200  # rows of a list of what was left out
LENGTH = 0.3  # Spearman's correlation of score and length from which the report warns
# Keys of figures -> the columns that show them.
STRATA = {"candidates": "to choose from", "kept": "kept", "score": "lowest kept"}
STRATA |= {"equal_kept": "equal, kept", "equal_dropped": "equal, dropped"}
GROUPS = {"samples": "samples", "candidates": "to choose from", "kept": "kept", "share": "share kept"}
GROUPS |= {"mean": "mean score", "mean_kept": "mean of kept"}
COUNTS = ("samples", "candidates", "kept", "equal_kept", "equal_dropped", "n")
SPREAD = {"n": "samples"} | {name: name for name in ("mean", "min", "p10", "median", "p90", "max")}
FATES = {
    "error": "no score",
    "unsure": "score models disagree",
    "excluded": "image is in an evaluation set",
    "copy": "copy of another",
    "near_duplicate": "looks like a better one",
    "dropped": "below the cut",
}


@dataclass
class Table:
    """A table of the report."""

    title: str
    text: str  # a sentence, or none
    columns: list[str]
    rows: list[list[str]]
    words: bool = False  # all columns are texts, not only the first


def make_report(
    scored: Scored,
    samples: Samples,
    cuts: Sequence[Cut],
    left: LeftOut,
    options: CurateOptions,
    way: Mapping[str, float],
) -> dict[str, Any]:
    """Collects what the report of a cut says.

    The samples have their final `status`; `way` is the cut, such as `{"keep": 0.3}`.

    Returns:
        `dict`: `title`, `facts` (name and text of each setting), `notes` (sentences), `sample` (what is kept or
        dropped together), `by`, `compared`, `figures` of [`figures_of`], and `lists` of what was dropped before the
        cut (`title`, `columns`, `rows`, the first ones, and `count`, how many there are).
    """
    figures = figures_of(samples, cuts, options.by)
    share = figures["samples"]["kept"] / max(sum(entry.candidates for entry in cuts), 1)
    return {
        "title": f"Curation of {Path(scored.manifest['input']).name}: {share:.1%} kept",
        "facts": _facts(scored, options, way),
        "notes": [*_notes(scored, figures, options), *left.notes],
        "sample": _sample(scored, options),
        "by": options.by,
        "compared": scored.compared,
        "figures": figures,
        "lists": _lists(scored, left, figures),
    }


def _sample(scored: Scored, options: CurateOptions) -> str:
    how = f"by the {options.aggregate} of its texts' scores"
    if options.per == "row":
        return f"a whole row, {how}"
    if not scored.complete.any():
        return "one text"
    return f"a whole conversation, {how}" + ("" if scored.complete.all() else "; of other rows, one text")


def _facts(scored: Scored, options: CurateOptions, way: Mapping[str, float]) -> list[list[str]]:
    split = scored.manifest.get("split")
    of = {"none": "", "source": " of every source", "label": " of every class"}[options.by]
    cut = f"the best {100 * way['keep']:g}%{of}" if "keep" in way else f"scores of {way['threshold']:g} and higher"
    bits = f"{options.near_distance} of 64 bits"
    dedup = {
        "none": "kept",
        "exact": "copies are left out",
        "near": f"copies are left out, and images within {bits} of a better one",
    }
    facts = [
        ["Data", Path(scored.manifest["input"]).name + (f", split {split}" if split else "")],
        ["Scorer", scorer_name(scored.manifest)],
        ["Kept", cut + ", the best of every image first" * options.best_of_every_image],
        ["Duplicates", dedup[options.dedup]],
    ]
    if options.rank != "score":
        facts.insert(2, ["Ranked by", "the mean of the models' scores less their standard deviation"])
    if options.max_std is not None:
        facts.append(["Largest standard deviation of the models' scores", f"{options.max_std:g}"])
    if options.exclude_images_of:
        near = f", and images within {bits} of theirs" if options.exclude_near else ""
        facts.append(["Evaluation sets whose images are left out", ", ".join(options.exclude_images_of) + near])
    return facts + ([["Compared with", scored.compared]] if scored.compared else [])


def _notes(scored: Scored, figures: Mapping[str, Any], options: CurateOptions) -> list[str]:
    """What a reader of the report should not miss."""
    notes = []
    if scored.missing:
        notes.append(
            f"The scores are not complete: {scored.missing} of {len(scored.units)} shards are missing, and "
            "nothing of their rows is kept."
        )
    if limit := scored.manifest.get("limit"):
        notes.append(f"Only the first {limit} rows were scored (--limit); nothing of the others is kept.")
    empty = [entry["name"] or "(none)" for entry in figures["strata"] if entry["candidates"] and not entry["kept"]]
    if empty:
        some = ", ".join(empty[:5]) + (", …" if len(empty) > 5 else "")
        notes.append(f"Nothing is kept of {len(empty)} of {len(figures['strata'])} strata: {some}.")
    if equal := sum(entry["equal_dropped"] for entry in figures["strata"]):
        notes.append(
            f"{equal} samples were dropped with exactly the lowest score kept, since they come later in the data."
        )
    rho = figures["length_spearman"]
    if rho is not None and abs(rho) >= LENGTH:
        longer = "longer" if rho > 0 else "shorter"
        notes.append(
            f"The score goes with the length of the text (Spearman's correlation {rho:.2f}): {longer} texts "
            "are kept more often."
        )
    if options.dedup != "none":
        notes.append("Images of the same bytes with other texts are no duplicates: they stay.")
    return notes


def _lists(scored: Scored, left: LeftOut, figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was dropped before the cut: errors by kind; evaluation images and near-duplicates row by row."""
    failed = scored.lines.filter(pc.is_valid(scored.lines["error"]))
    examples: dict[str, list[str]] = {}
    counts: Counter[str] = Counter()
    for row_id, error in zip(failed["row_id"].to_pylist(), failed["error"].to_pylist(), strict=True):
        examples.setdefault(reason(error), [row_id, error])
        counts[reason(error)] += 1
    errors = [[count, *examples[kind]] for kind, count in counts.most_common()]
    pairs = np.array(left.near, np.int64).reshape(-1, 2)
    near = zip(*(scored.row_ids(column).to_pylist() for column in pairs.T), strict=True)
    lists = [
        _list("Texts without a score", ["texts", "first of them", "why"], errors, len(errors)),
        _list(
            "Images that are in an evaluation set",
            ["row", "evaluation image", "how"],
            left.excluded,
            figures["rows"]["excluded"],
        ),
        _list("Near-duplicate images, row by row", ["left out", "stays"], list(map(list, near)), left.near_images),
    ]
    return [made for made in lists if made["rows"]]


def _list(title: str, columns: list[str], rows: Sequence[object], count: int) -> dict[str, Any]:
    return {"title": title, "columns": columns, "rows": rows, "count": count}


def tables_of(report: Mapping[str, Any]) -> list[Table]:
    """Lays out the figures of a report as tables; see [`make_report`]."""
    figures = report["figures"]
    total = figures["samples"]["all"]
    fates = [
        [FATES.get(name, name), *(_count(figures[of][name]) for of in ("samples", "texts", "rows")), _share(n / total)]
        for name, n in figures["samples"].items()
        if n or name in ("all", "kept")
    ]
    text = f"A sample is what is kept or dropped together: {report['sample']}. A row counts wherever it has a sample."
    tables = [Table("What became of the data", text, ["", "samples", "texts", "rows", "of all samples"], fates)]
    text = "The lowest score kept, and how many samples have exactly this score; the order of the data decides which "
    text += "of them are kept."
    largest = sorted(figures["strata"], key=lambda entry: -entry["candidates"])
    tables.append(_table("The cut", text, "" if report["by"] == "none" else report["by"], STRATA, largest))
    for key, title in (("sources", "By source"), ("labels", "By class")):
        if figures[key]:
            tables.append(_table(title, "", key[:-1], GROUPS, figures[key]))
    rho = figures["length_spearman"]
    text = "Tokens of a sample's texts, as the scorer's tokenizer counts them; words where it has none. Spearman's "
    text += f"correlation of score and length {'cannot be told' if rho is None else f'is {rho:.3f}'}."
    for key, title, about in (("scores", "Scores kept and dropped", ""), ("lengths", "Length", text)):
        tables.append(
            _table(title, about, "", SPREAD, [{"name": name, **part} for name, part in figures[key].items()])
        )
    if figures["agreement"] is not None:
        tables.append(_agreement(figures["agreement"], report["compared"]))
    for dropped in report["lists"]:
        shown = [list(map(str, row)) for row in dropped["rows"][:LISTED]]
        text = f"{_count(dropped['count'])} in all, of which the first {len(shown)} are shown."
        text *= dropped["count"] > len(shown)
        tables.append(Table(dropped["title"], text, dropped["columns"], shown, words=True))
    return tables


def _table(
    title: str, text: str, first: str, columns: Mapping[str, str], entries: Sequence[Mapping[str, Any]]
) -> Table:
    """A table with a row for each entry, under its name; too many of them are cut off."""
    if len(entries) > LINES:
        text = f"{text} The {LINES} largest of {len(entries)} are shown; curation.json has all.".strip()

    def shown(key: str, value: Any) -> str:
        return _share(value) if key == "share" else _count(value) if key in COUNTS else _number(value)

    rows = [[entry["name"] or "(none)", *(shown(key, entry[key]) for key in columns)] for entry in entries[:LINES]]
    return Table(title, text, [first, *columns.values()], rows)


def _agreement(agreement: Mapping[str, Any], name: str) -> Table:
    rows = [
        ["samples with both scores", _count(agreement["n"])],
        ["Spearman's correlation", _number(agreement["spearman"], 3)],
        ["kept of them", _count(agreement["kept"])],
        ["the other would keep too", _count(agreement["both"])],
        ["overlap", _share(agreement["overlap"])],
        ["overlap to expect by chance", _share(agreement["chance"])],
    ]
    return Table("Agreement with other scores", f"With {name}, keeping as many of each stratum.", ["", "found"], rows)


def _bin_tables(histograms: Sequence[Mapping[str, Any]]) -> list[Table]:
    tables = []
    for bars in histograms:
        width = (bars["high"] - bars["low"]) / BINS
        rows = [
            [f"{bars['low'] + i * width:.4g} to {bars['low'] + (i + 1) * width:.4g}", _count(kept), _count(dropped)]
            for i, (kept, dropped) in enumerate(zip(bars["kept"], bars["dropped"], strict=True))
        ]
        text = "The outermost bins hold what lies beyond too."
        tables.append(Table(f"Histogram: {bars['name']}", text, ["score", "kept", "dropped"], rows))
    return tables


def _count(value: int) -> str:
    return f"{value:,}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}g}"


def markdown(report: Mapping[str, Any]) -> str:
    """Returns the report of [`make_report`] as Markdown."""
    text = markdown_text
    lines = [f"# {text(report['title'])}", ""]
    lines += [f"- {text(name)}: {text(value)}" for name, value in report["facts"]]
    lines += ["", *(f"**Note:** {text(note)}\n" for note in report["notes"])]
    for table in [*tables_of(report), *_bin_tables(report["figures"]["histograms"])]:
        lines += [f"## {text(table.title)}", ""]
        lines += [text(table.text), ""] if table.text else []
        lines += [markdown_table(table.columns, table.rows, "l" if table.words else "lr"), ""]
    return "\n".join(lines).rstrip() + "\n"


def page(report: Mapping[str, Any], gallery: Sequence[Mapping[str, Any]]) -> str:
    """Returns the report as one HTML page.

    Args:
        report (mapping): From [`make_report`].
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


def _chart(made: Mapping[str, Any]) -> dict[str, Any]:
    """A histogram as the page draws it, with the lowest score kept."""
    width = (made["high"] - made["low"]) / len(made["kept"])
    edges = [made["low"] + i * width for i in range(len(made["kept"]) + 1)]
    counts = {name: made[name] for name in ("kept", "dropped")}
    kept, dropped = (sum(own) for own in counts.values())
    mark = None if made["cut"] is None else (made["cut"], f"lowest kept {made['cut']:.4g}")
    spec = stacked(made["name"] or "(none)", edges, counts, "score", "samples", mark=mark)
    label = f"Histogram of the scores of {made['name']}: {kept} kept, {dropped} dropped"
    return figure(spec, label, note=f"{_count(kept)} of {_count(kept + dropped)} kept")
