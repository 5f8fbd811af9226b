"""Cards of answers with pictures, and the charts that both pages of evaluations have."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ...data.group import ImageSource
from ...metrics.quantities import plain
from ...runs.charts.counts import matrix
from ...runs.charts.curves import intervals
from ...runs.charts.style import Spec, figure
from ...runs.page import BLANK
from ...runs.report_tables import IMAGE_BYTES, Images, cut
from ..results import Figures, Record, thumbnail_of

SIDE = 384  # longest side of a picture that is enlarged when it is clicked
LABELS = 16  # rows of a confusion matrix
OTHER, ANOTHER, UNPARSEABLE = "(other classes)", "(another answer)", "(unparseable)"
Pictures = Mapping[str, ImageSource]  # id of a question -> its image, where the record names none


def answer_card(
    record: Record, kind: str, parts: Sequence[tuple[str, object, str]], images: Images, figures: Figures
) -> dict[str, Any]:
    """Returns a card as the page shows it: `id`, `kind`, `types`, `image` (its place in `images`), or `why` there is
    none, and `parts` (name, text, and the class of the style).
    """
    picture, why = thumbnail_of(record, figures, SIDE)
    number = images.add(picture)
    if picture is not None and number is None:
        why = f"no picture: the page holds at most {IMAGE_BYTES // 1_000_000} MB of them"
    references = "\n".join(map(str, record.get("references") or []))
    asked = [("right answer", references, "")] * bool(references) + [("question", record.get("prompt"), "")]
    shown = [(name, _text(value), style) for name, value, style in (*parts, *asked)]
    own = {"id": record["id"], "kind": kind, "types": record.get("types") or []}
    return {**own, "image": number, "why": why, "parts": shown}


def _text(value: object) -> str:
    return cut(value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False))


def with_pictures(records: Sequence[Record], stored: Pictures) -> list[Record]:
    """Returns records with the images of those that name none."""
    return [{**record, "image": record.get("image") or stored.get(record["id"])} for record in records]


def type_chart(task: str, sides: Mapping[str, Figures]) -> Spec | None:
    """Returns the chart of a task's accuracy, overall and by question type, of one model or of several.

    `sides` are the figures by the name of the model; `None` if there are none of closed answers.
    """
    rows = []
    kinds = [*dict.fromkeys(kind for figures in sides.values() for kind in _types(figures))]
    for kind in [None, *kinds]:
        parts = {name: figures if kind is None else _types(figures).get(kind, {}) for name, figures in sides.items()}
        counts = {part["n"] for part in parts.values() if "n" in part}
        label = "all" if kind is None else kind
        label += f" (n = {min(counts)})" if len(counts) == 1 else ""
        for name, part in parts.items():
            if part.get("accuracy") is not None:
                low, high = part.get("interval") or (None, None)
                rows.append({"label": label, "group": name, "value": part["accuracy"], "low": low, "high": high})
    title = f"{task}: accuracy, 95% intervals"
    return figure(intervals(title, rows, "accuracy", width=220), title) if rows else None


def _types(figures: Figures) -> Mapping[str, Any]:
    return {name: part for name, part in figures.get("types", figures.get("by_kind", {})).items() if name}


def confusion_chart(task: str, records: Sequence[Record]) -> Spec | None:
    """Returns the confusion matrix of closed answers; `None` of other answers, or if all questions have one answer.

    Rows are the [`LABELS`] most frequent right answers, columns also what is blank, unparseable, or another answer.
    """
    judged = [record for record in records if "answer" in record and "strict" in record and record.get("references")]
    if not judged or all(record["answer"] is None for record in judged):
        return None
    names = {plain(str(name)): str(name) for record in reversed(judged) for name in record["references"]}
    right = [names[plain(str(record["references"][0]))] for record in judged]
    frequent = [name for name, _ in Counter(right).most_common(LABELS)]
    if len(frequent) < 2:
        return None
    rows = sorted(frequent, key=str.casefold) + [OTHER] * (len(set(right)) > LABELS)

    def given(record: Record, reference: str) -> str:
        if record["strict"]:
            return reference if reference in frequent else OTHER
        if record["answer"] is None:
            return UNPARSEABLE if str(record.get("output", "x")).strip() else BLANK
        name = names.get(plain(str(record["answer"])))
        return name if name in frequent and name != reference else ANOTHER

    counts = Counter(
        (reference if reference in frequent else OTHER, given(record, reference))
        for record, reference in zip(judged, right, strict=True)
    )
    columns = [*rows, *(name for name in (ANOTHER, UNPARSEABLE, BLANK) if any(name == one for _, one in counts))]
    cells = [(row, column, counts[row, column]) for row in rows for column in columns]
    title = f"{task}: right answers and given ones"
    return figure(matrix(title, cells, "answered", "right answer"), title)
