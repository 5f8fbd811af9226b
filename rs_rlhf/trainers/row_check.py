"""All rows looked at before the first step, so that a run does not die at the batch that meets a bad one.

Each trainer says with `row_errors` why a row cannot be trained on; the data check asks the same functions. The
processes share the rows, and all stop at the first bad one. In the same pass the rows are fingerprinted, whatever the
number of processes: what they hold and their order, but not where the data lie.

Left out: streaming data sets, whose rows are met in their batches, and the decoding of images.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset, Image

from ..data.group import Group, make_group
from ..data.rows import naming
from ..errors import RSRLHFError
from ..imagery.identity import source_key
from ..imagery.options import split_sensor
from ..imagery.sources import is_url
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
    # TRL takes a place with the key `image` for one that has its image, even if that is None.
    own = any("image" in part and (part.get("type") == "image" or part["image"] is not None) for part in parts)
    if own or any("<image>" in (part.get("text") or "") for part in parts):
        return False
    places = sum(part.get("type") == "image" for part in parts)
    return places == images or not any(isinstance(content, list) for content in contents)


def row_place(row: Row) -> str:
    """Returns the file and row that our readers put in `where`, `""` if there is none; other columns of that name are
    the caller's.
    """
    where = row.get("where")
    return where if isinstance(where, str) else ""


def row_texts(row: Row) -> list[str]:
    """Returns the texts of a row: of its prompt, and of every column that a reward may compare answers with. Numbers
    of a list are one text, since they may be a box.
    """
    return [text for name, value in row.items() if name not in {"image", "images", "where"} for text in _texts(value)]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts([*value.values()])
    elif isinstance(value, list | tuple):
        yield str([each for each in value if isinstance(each, int | float)])
        for each in value:
            yield from _texts(each)


def pair_errors(row: Row, limits: RowLimits) -> Iterator[RSRLHFError]:
    """Yields why a row of `image` and `texts` cannot be trained on by a dual encoder."""
    yield from limits.errors(make_group("", row["texts"], row["image"], where=row_place(row)))


def undecoded(dataset: Any) -> Any:
    """Returns a data set whose images are not decoded; one that is not there (`None`) as it is."""
    for name, feature in (getattr(dataset, "features", None) or {}).items():
        if isinstance(feature, Image):
            dataset = dataset.cast_column(name, Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), Image):
            dataset = dataset.cast_column(name, type(feature)(Image(decode=False)))
    return dataset


def _look(
    rows: Sequence[Row], errors_of: RowErrors, first: int, shown: bool, root: str | None
) -> tuple[RSRLHFError | None, int]:
    """Returns the first error of rows, which are counted from `first`, and the sum of their hashes."""

    def look(chunk: Sequence[tuple[int, Row]]) -> tuple[int, list[RSRLHFError], int]:
        errors = [error for i, row in chunk for error in located_errors(i, row, errors_of)]
        return len(chunk), errors, sum(_row_hash(i, row, root) for i, row in chunk)

    numbered = enumerate(undecoded(rows) if isinstance(rows, Dataset) else rows, first)
    chunks = iter(lambda: list(islice(numbered, CHUNK)), [])
    total = 0
    with progress(len(rows), 0, "Looking at the rows", shown=shown, leave=False) as advance:
        for count, errors, hashes in ahead(look, chunks, THREADS):
            if errors:
                return errors[0], 0
            total += hashes
            advance(count)
    return None, total


def _row_hash(number: int, row: Row, root: str | None) -> int:
    """A number of 64 bits for what a row holds at its place; of an image file its name and size."""
    values = {key: _images(value, root) if key in ("image", "images") else value for key, value in row.items()}
    values.pop("where", None)
    text = json.dumps([number, values], sort_keys=True, default=lambda value: _images(value, root))
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest())


def _images(value: Any, root: str | None) -> Any:
    """Of images what tells them apart; of any other value that JSON does not hold its type."""
    if isinstance(value, list | tuple):
        return [_images(entry, root) for entry in value]
    source: Any = value.get("path") if isinstance(value, Mapping) and value.get("bytes") is None else value
    if isinstance(source, str) and not is_url(source):
        path, sensor = split_sensor(os.path.join(root or "", source))
        with suppress(OSError, ValueError):
            return [os.path.basename(path) + sensor, os.stat(path).st_size]
        return source
    if isinstance(source, Mapping | bytes | bytearray) or hasattr(source, "tobytes"):
        return source_key(source, {})
    return source if source is None or isinstance(source, str) else type(source).__name__


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


def check_rows(
    sets: Mapping[str, Sequence[Row]], errors_of: RowErrors, accelerator: Accelerator, root: str | None = None
) -> dict[str, str]:
    """Raises the first error of the rows of all data sets, in all processes; returns a fingerprint of each.

    `root` is the folder that relative paths of images start from.
    """
    share, count = accelerator.process_index, accelerator.num_processes
    fingerprints = {}
    for name, rows in sets.items():
        start, stop = (len(rows) * part // count for part in (share, share + 1))
        own = rows.select(range(start, stop)) if isinstance(rows, Dataset) else rows[start:stop]
        looked = gather_object([_look(own, errors_of, start, share == 0, root)])
        raise_first([error for error, _ in looked])
        fingerprints[name] = f"{len(rows)} rows, {sum(total for _, total in looked) % 2**64:016x}"
    return fingerprints
