"""All rows looked at before the first step, so that a run does not die at the batch that meets a bad one.

Each trainer says with `row_errors` why a row cannot be trained on; the data check asks the same functions. The
processes share the rows, and all stop at the first bad one.

Left out: streaming data sets, whose rows are met in their batches, and the decoding of images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset, Image

from ..data.group import Group, make_group
from ..data.rows import naming
from ..errors import RSRLHFError
from ..models.row_limits import RowLimits
from ..runs.progress import progress
from ..scoring.base import ahead, raise_first

Row = Mapping[str, Any]
RowErrors = Callable[[Row], Iterable[RSRLHFError]]
CHUNK = 256  # rows that a thread looks at in one go
THREADS = 4  # opening a file waits for the disk


def prompt_errors(row: Row, limits: RowLimits) -> Iterator[RSRLHFError]:
    """Yields why a prompt of GRPO cannot be trained on."""
    yield from limits.errors(prompt_group(row))


def prompt_group(row: Row) -> Group:
    """Returns a row of `prompt` and `images` or `image` as a group without completions."""
    images = row.get("images") if row.get("images") is not None else row.get("image")
    where = row_place(row)
    with naming(where):
        return make_group(row["prompt"], [], images, where=where)


def has_images(columns: Iterable[str]) -> bool:
    """Whether images of prompts have a column of their own."""
    return bool({"image", "images"} & {*columns})


def plain_turns(prompt: Any, images: int) -> bool:
    """Whether a prompt is messages that TRL lays out with so many images as we do: no images of their own, no literal
    `<image>`, and a place for every image unless all turns are plain texts.
    """
    if not isinstance(prompt, list):
        return False
    contents = [message.get("content") for message in prompt]
    parts = [part for content in contents for part in (content if isinstance(content, list) else [{"text": content}])]
    if any(part.get("image") is not None or "<image>" in (part.get("text") or "") for part in parts):
        return False
    places = sum(part.get("type") == "image" for part in parts)
    return places == images or not any(isinstance(content, list) for content in contents)


def row_place(row: Row) -> str:
    """Returns the file and row that our readers put in `where`, `""` if there is none; other columns of that name are
    the caller's.
    """
    where = row.get("where")
    return where if isinstance(where, str) else ""


def pair_errors(row: Row, limits: RowLimits) -> Iterator[RSRLHFError]:
    """Yields why a row of `image` and `texts` cannot be trained on by a dual encoder."""
    yield from limits.errors(make_group("", row["texts"], row["image"], where=row_place(row)))


def undecoded(dataset: Any) -> Any:
    """Returns a data set whose images are not decoded."""
    for name, feature in (dataset.features or {}).items():
        if isinstance(feature, Image):
            dataset = dataset.cast_column(name, Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), Image):
            dataset = dataset.cast_column(name, type(feature)(Image(decode=False)))
    return dataset


def problems(rows: Sequence[Row], errors_of: RowErrors, first: int = 0, shown: bool = True) -> Iterator[RSRLHFError]:
    """Yields the errors of rows in their order; each names its place, at least its number, counted from `first`."""

    def look(chunk: Sequence[tuple[int, Row]]) -> tuple[int, list[RSRLHFError]]:
        return len(chunk), [error for i, row in chunk for error in located_errors(i, row, errors_of)]

    numbered = enumerate(undecoded(rows) if isinstance(rows, Dataset) else rows, first)
    chunks = iter(lambda: list(islice(numbered, CHUNK)), [])
    with progress(len(rows), 0, "Looking at the rows", shown=shown, leave=False) as advance:
        for count, found in ahead(look, chunks, THREADS):
            yield from found
            advance(count)


def located_errors(number: int, row: Row, errors_of: RowErrors) -> list[RSRLHFError]:
    """Returns the errors of a row with its place, by default its number."""
    found: list[RSRLHFError] = []
    where = row_place(row) or f"row {number}"
    try:
        with naming(where):
            found += errors_of({**row, "where": where})
    except RSRLHFError as error:
        found.append(error)
    return found


def check_rows(sets: Iterable[Sequence[Row]], errors_of: RowErrors, accelerator: Accelerator) -> None:
    """Raises the first error of the rows of all data sets, in all processes."""
    share, count = accelerator.process_index, accelerator.num_processes
    for rows in sets:
        start, stop = (len(rows) * part // count for part in (share, share + 1))
        own = rows.select(range(start, stop)) if isinstance(rows, Dataset) else rows[start:stop]
        found = next(problems(own, errors_of, start, share == 0), None)
        raise_first(gather_object([found]) if count > 1 else [found])
