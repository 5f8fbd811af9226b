"""The schema of preference rows, and its check: a row in, a [`Group`] or all its problems out.

The documented schema is TRL's: columns `prompt`, `chosen`, `rejected`, plain strings or conversational, with optional
`image` or `images`, `margin`, `source`, `kind`, `id`; a `rejected` list holds several completions, best to worst.

Left out: reading files (`reader`), the form of messages (`data/group.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..data.columns import image_column
from ..data.forms import no_preference
from ..data.group import (
    Group,
    Row,
    as_number,
    build_group,
    check_completion,
    check_text,
    completion_text,
    image_sources,
    short,
    string_column,
)
from ..errors import DataError
from ..imagery.sources import ImageSource

T = TypeVar("T")
COLUMNS = "prompt, chosen, rejected, image or images, margin, source, kind, id"


@dataclass
class Inspection:
    """What [`inspect_row`] found.

    Args:
        errors (`list[DataError]`): All problems of the row, with its place.
        group ([`Group`], *optional*): The row as a group; `None` if there are problems.
        images (`list`): The sources of its images, also of a row with problems elsewhere; the group's own list.
    """

    errors: list[DataError] = field(default_factory=list)
    group: Group | None = None
    images: list[ImageSource] = field(default_factory=list)


def group_from_row(row: Row, row_number: int = -1, where: str = "", *, labelled: bool = False) -> Group:
    """Turns one preference row into a group whose completions are `[chosen, *rejected]`.

    Args:
        row (`dict`): A raw row of the documented schema, or a row of [`load_preferences`].
        row_number (`int`): Becomes [`Group`]'s `row`; by default the `row` that [`load_preferences`] has written.
        where (`str`): File and row for messages; by default the `where` that [`load_preferences`] has written.
        labelled (`bool`): The row has one `completion` in place of `chosen` and `rejected`.

    Raises:
        DataError: The first of the row's problems, with where, column, what was expected and what to do.
    """
    inspection = inspect_row(row, row_number, where, labelled=labelled)
    if inspection.group is None:
        raise inspection.errors[0]
    return inspection.group


def inspect_row(row: Row, row_number: int = -1, where: str = "", *, labelled: bool = False) -> Inspection:
    """Like [`group_from_row`], but returns *all* problems instead of raising the first."""
    if not isinstance(row, Mapping):
        return Inspection([DataError(f"the row is {short(row)}, expected an object with {COLUMNS}", "", where)])
    if row_number < 0 and isinstance(row.get("row"), int):
        row_number = row["row"]
    where = where or str(row.get("where") or "") or (f"row {row_number}" if row_number >= 0 else "")
    result = Inspection()

    def attempt(function: Callable[..., T], *arguments: object) -> T | None:
        try:
            return function(*arguments)
        except DataError as error:
            result.errors.append(DataError(error.detail, error.key, where))
            return None

    meta = {"row": row_number, "where": where, "margin": attempt(_margin, row) or 0.0}
    meta |= {key: attempt(string_column, row, key) or "" for key in ("source", "kind")}
    attempt(string_column, row, "id")
    images = attempt(_images, row)
    result.images = images or []
    keyed = attempt(_one_completion if labelled else _completions, row)
    if keyed is None or images is None:
        return result
    group = attempt(build_group, row.get("prompt"), list(keyed.values()), list(keyed), images, meta)
    if group is not None:
        attempt(check_text, completion_text(group.prompt), "prompt")
        for key, completion in zip(keyed, group.completions, strict=True):
            attempt(_check_completion, key, completion)
        result.images = group.images
    result.group = None if result.errors else group
    return result


def _completions(row: Row) -> dict[str, Any]:
    """The completions by the names that they have in messages, chosen first."""
    missing = [key for key in ("chosen", "rejected") if key not in row]
    if missing:
        raise no_preference(row)
    chosen, rejected = row["chosen"], row["rejected"]
    if not isinstance(chosen, str) and not _is_conversation(chosen):
        raise DataError(f"`chosen` is {short(chosen)}, expected one text or one list of messages", "chosen")
    if isinstance(rejected, str) or _is_conversation(rejected):
        return {"chosen": chosen, "rejected": rejected}
    several = rejected if isinstance(rejected, (list, tuple)) and rejected else [None]
    if not all(isinstance(text, str) for text in several) and not all(map(_is_conversation, several)):
        raise DataError(
            f"`rejected` is {short(rejected)}, expected one completion or a list, best to worst: texts, or "
            "lists of messages",
            "rejected",
        )
    return dict(zip(completion_keys(1 + len(several), listed=True), (chosen, *several), strict=True))


def _one_completion(row: Row) -> dict[str, Any]:
    completion = row.get("completion")
    if not isinstance(completion, str) and not _is_conversation(completion):
        raise DataError(
            f"`completion` is {short(completion)}, expected one text or one list of messages", "completion"
        )
    return {"completion": completion}


def completion_keys(count: int, listed: bool = False) -> list[str]:
    """Returns the names of a row's completions in messages; `listed` says that one rejected is in a list too."""
    several = [f"rejected[{i}]" for i in range(count - 1)]
    return ["chosen", *(several if listed or count > 2 else ["rejected"])]


def _is_conversation(value: object) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(m, Mapping) for m in value)


def _check_completion(key: str, completion: list[dict]) -> None:
    check_completion(completion, key)
    if "<image>" in completion_text(completion):
        raise DataError(f"`{key}` has an image placeholder; images belong to the prompt, move or remove it", key)


def _margin(row: Row) -> float:
    value = row.get("margin")
    if value is None:
        return 0.0
    if (number := as_number(value)) is None:
        raise DataError(f"`margin` is {short(value)}, expected a finite number; correct or remove it", "margin")
    return number


def _images(row: Row) -> list[ImageSource]:
    key = image_column(row)
    return [] if key is None else image_sources(row[key], key)
