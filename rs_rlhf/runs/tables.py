"""Tables: Markdown, which rich draws on terminals, and samples with thumbnails as Parquet files and wandb tables.

Sample tables are Parquet so that they are there offline too. The wandb key holds the step, since wandb shows only the
last table of a key. Only the main process writes them. Their metadata name the run that wrote them (`runs.record`).
Left out: full-size images.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from .files import replacing
from .record import KEY, read_run

if TYPE_CHECKING:
    import pyarrow

STEP_FOLDERS = ("samples", "rollouts", "worst_pairs", "completions")  # of a run; the last is TRL's
THUMBNAIL = 160  # longest side, in pixels
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# `_`, `]`, `~`, `&` and `#` only where they are markup, so that names, intervals and amounts read as they are.
_MARKUP = re.compile(r"[\\`*|<>]|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])|~(?=~)|(?<=~)~|&(?=#?\w+;)|#(?=#*$)")


def markdown_text(text: object) -> str:
    """Returns a text on one line in which nothing is markup, neither Markdown's nor HTML's, nor a terminal's."""
    line = _CONTROL.sub("\ufffd", " ".join(str(text).split()))
    return _MARKUP.sub(r"\\\g<0>", line)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]], align: str = "lr") -> str:
    """Returns a Markdown table.

    Args:
        header (sequence of `str`): Names of the columns.
        rows (iterable of sequences): Cells, shown as they are, see [`markdown_text`].
        align (`str`): `"l"` (left) or `"r"` (right) for each column; the last letter holds for all that follow.

    Example:
        >>> print(markdown_table(["task", "n"], [["aid", 3]]))
        | task | n |
        |---|---:|
        | aid | 3 |
    """
    lines = [header, *rows]
    texts = ["| " + " | ".join(map(markdown_text, line)) + " |" for line in lines]
    sides = align.ljust(len(header), align[-1])[: len(header)]
    texts.insert(1, "|" + "|".join("---:" if side == "r" else "---" for side in sides) + "|")
    return "\n".join(texts)


def print_markdown(text: str) -> None:
    """Prints Markdown: drawn on a terminal, elsewhere as it is."""
    if not sys.stdout.isatty():
        print(text)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console().print(Markdown(text))


def thumbnail(image: Image.Image, side: int = THUMBNAIL) -> dict[str, Any]:
    """Returns a PIL image as a JPEG of at most `side` pixels a side, in the form of an undecoded `datasets` image."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return {"bytes": buffer.getvalue(), "path": None}


def write_table(
    rows: Sequence[Mapping[str, Any]], path: Path, types: Mapping[str, str], key: str, report_to: Sequence[str]
) -> None:
    """Writes rows to a Parquet file in a folder of an `output_dir`, and as the table `key` to wandb if `report_to`
    names it.

    Each row has the columns of `types` (name of a `datasets` type), and `image` from [`thumbnail`] or `None`.
    """
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    features = Features({name: Value(kind) for name, kind in types.items()} | {"image": ImageFeature(decode=False)})
    table = Dataset.from_list([{name: row.get(name) for name in features} for row in rows], features=features)
    _write_stamped(table.data.table, path)  # `to_parquet` would draw a progress bar
    if "wandb" not in report_to:
        return
    import wandb

    if wandb.run is not None:
        shown = wandb.Table(columns=list(features))
        for row in rows:
            image = row.get("image")
            picture = None if image is None else wandb.Image(Image.open(io.BytesIO(image["bytes"])))
            shown.add_data(*[picture if name == "image" else row.get(name) for name in features])
        wandb.log({key: shown}, commit=False)


class StepTable(NamedTuple):
    """A table of a run: the file `NAME_STEP.parquet`."""

    path: Path
    name: str
    step: int


def step_tables(folder: Path) -> list[StepTable]:
    """Returns the files of a folder that are named as tables of a run are, in the order of their names."""
    files = sorted(folder.glob("*.parquet"))
    found = [(file, re.fullmatch(r"(.+)_(\d+)", file.stem)) for file in files]
    return [StepTable(file, match[1], int(match[2])) for file, match in found if match]


def is_step_table(path: Path) -> bool:
    """Says whether a Parquet file is a table of a run: it is stamped, or has the column `step`."""
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
    except (ValueError, OSError):  # pyarrow's are both
        return False
    return KEY.encode() in (schema.metadata or {}) or "step" in schema.names


def table_part(path: Path) -> str | None:
    """Returns the part of a run that wrote a table; `None` if it does not say."""
    import pyarrow.parquet

    stamp = (pyarrow.parquet.read_schema(path).metadata or {}).get(KEY.encode())
    return None if stamp is None else json.loads(stamp)["part"]


def stamp_table(path: Path) -> None:
    """Adds to a table of another writer (TRL) the run that now trains in its `output_dir`."""
    import pyarrow.parquet

    _write_stamped(pyarrow.parquet.read_table(path, partitioning=None), path)


def _write_stamped(table: pyarrow.Table, path: Path) -> None:
    import pyarrow.parquet

    if (run := read_run(path.parents[1])) is not None:
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), KEY: json.dumps(run.stamp)})
    with replacing(path, "wb") as file:
        pyarrow.parquet.write_table(table, file)
