"""Label Studio's pairwise comparison: its tasks as rows, and rows as its tasks.

A task is `{"data": {…}, "annotations": […]}`, the JSON that Label Studio exports and imports. `data` holds two texts
in columns whose names differ in their last sign (`text1` and `text2`, `answer_a` and `answer_b`), the question as
`prompt`, and the image; an annotation's result of type `pairwise` says `left` or `right`, which is the first or the
second of them. A picture of Label Studio's local storage (`/data/local-files/?d=tiles/a.png`) is the path after `d=`.

Left out: Label Studio's JSON-MIN and CSV, which no longer say which result is the comparison, and its server.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from ..errors import DataError
from .group import Row, short

LOCAL_FILES = "/data/local-files/"
FIRST, SECOND = "text1", "text2"  # the columns of a task that is written, those of Label Studio's own template
CONFIG = """<View>
  <Image name="image" value="$image"/>
  <Text name="prompt" value="$prompt"/>
  <Pairwise name="pw" toName="text1,text2"/>
  <Text name="text1" value="$text1"/>
  <Text name="text2" value="$text2"/>
</View>"""


def is_task(row: Row) -> bool:
    """Whether a row is a task of Label Studio."""
    return isinstance(row.get("data"), Mapping) and not {"chosen", "rejected", "prompt"} & set(row)


def is_annotated(row: Row) -> bool:
    """Whether a row is a task of Label Studio as it is exported, with its annotations."""
    return is_task(row) and isinstance(row.get("annotations"), list)


def task_data(row: Row) -> dict[str, Any]:
    """Returns the columns of a task, with the paths of pictures in local storage as they are there."""
    return {str(key): _path(value) for key, value in row["data"].items()}


def sides(row: Row) -> list[int]:
    """Returns what the annotations of a task chose: 0 for left, 1 for right; cancelled ones are none.

    Raises:
        DataError: There is no choice, or one of something else.
    """
    found = []
    annotations = row.get("annotations")
    for annotation in annotations if isinstance(annotations, list) else ():
        results = annotation.get("result") if isinstance(annotation, Mapping) else None
        for result in () if not isinstance(results, list) or annotation.get("was_cancelled") else results:
            if not isinstance(result, Mapping) or result.get("type") != "pairwise":
                continue
            value = result.get("value")
            selected = value.get("selected") if isinstance(value, Mapping) else None
            if selected not in ("left", "right"):
                detail = f"a pairwise result selects {short(selected)}, expected left or right; correct the annotation"
                raise DataError(detail, "annotations")
            found.append(int(selected == "right"))
    if not found:
        advice = "compare its texts first, or export only tasks that are annotated"
        raise DataError(f"the task has no pairwise result; {advice}", "annotations")
    return found


def task(prompt: str, texts: tuple[str, str], right: bool, rest: Row) -> dict[str, Any]:
    """Returns a task of two texts, the better first, that is annotated; `right` puts the better one on the right."""
    left, other = texts[::-1] if right else texts
    value = {"selected": "right" if right else "left"}
    result = {"from_name": "pw", "to_name": f"{FIRST},{SECOND}", "type": "pairwise", "value": value}
    data = {**rest, "prompt": prompt, FIRST: left, SECOND: other}
    return {"data": data, "annotations": [{"result": [result]}]}


def with_image(made: Row, image: str) -> dict[str, Any]:
    """Returns a task with its image, a path below the root of Label Studio's local storage."""
    return {**made, "data": {**made["data"], "image": f"{LOCAL_FILES}?d={quote(image)}"}}


def _path(value: Any) -> Any:
    if isinstance(value, str) and LOCAL_FILES in value:
        parts = urlsplit(value)
        if parts.path.endswith(LOCAL_FILES) and (named := parse_qs(parts.query).get("d")):
            return named[0]
    return value
