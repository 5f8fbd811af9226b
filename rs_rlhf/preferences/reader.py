"""Reader of preference files: rows of any file as groups, or as one data set in the normal form.

The data check, training and evaluation read through [`read_groups`], so they accept the same rows.
Left out: the formats of files (`data/rows.py`), the schema of a row (`schema`), pixels (`imagery`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ..data.columns import parse_columns
from ..data.forms import known_rows, labelled_rows
from ..data.group import Group, Row, string_column
from ..data.row_cache import bytes_and_path, cached, message_features
from ..data.rows import RSRM, Where, common_folder, image_folder, open_rows, parts_of, split_paths
from ..data.survey import announce, count_pictured, require_images
from ..errors import DataError
from .schema import Inspection, inspect_row

if TYPE_CHECKING:
    from datasets import Dataset, Features

Form = Literal["groups", "pairs", "labelled"]
FORM_VERSION = 4  # of the stored normal form: raise it when `_normal_rows` changes, so that caches go stale


def read_groups(
    path: str,
    split: str | None = None,
    folder: str | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    image_root: str | None = None,
    labelled: bool = False,
) -> Iterator[tuple[Where, Row, Inspection]]:
    """Yields every row of preferences with its place, as a group or with all its problems.

    Arguments are those of [`open_rows`]; other forms are recognised, see [`known_rows`]. Relative image paths start
    from `folder`, by default they stay as written. If there is nothing to read, a [`DataError`] is raised. With
    `labelled`, answers with a label are read too, see [`labelled_rows`].
    """
    reading: dict[str, Any] = {"image_root": image_root, "columns": columns}
    adapter = labelled_rows if labelled else known_rows
    for where, row in open_rows(path, split, adapter, on_error="return", **reading):
        if isinstance(row, DataError):
            yield where, {}, Inspection([row])
            continue
        inspection = inspect_row(row, where.number, where, labelled=labelled and "chosen" not in row)
        for i, image in enumerate(inspection.images if folder else ()):  # the list is the group's too
            if isinstance(image, str) and "://" not in image:
                inspection.images[i] = os.path.join(str(folder), image)
        yield where, row, inspection


def load_preferences(
    path_or_paths: str | os.PathLike | Sequence[str | os.PathLike],
    split: str | None = None,
    image_root: str | os.PathLike | None = None,
    columns: Mapping[str, str] | None = None,
    form: Form = "groups",
) -> Dataset:
    """Loads preference files as one data set in the normal form, so that rows of any shape and file fit together.

    Columns: `prompt`, `chosen` (messages), `rejected` (list of completions), `images` (`{bytes, path}`),
    `margin`, `source` (by default the file's stem), `kind`, `id`, `row`, `where` (the row in its file).
    `group_from_row` of such a row equals that of the raw row. The rows are written once to the `datasets` cache.
    Rows of other forms are told apart by content, see [`~rs_rlhf.data.forms`]; `rsrm:PATH` reads a text-only file
    without a `question` as RSRM.

    Args:
        path_or_paths (`str`, path or list): Files, folders or Hub ids as for [`open_rows`]; several as a list or
            separated by commas.
        split (`str`, *optional*): Split of a folder, saved `DatasetDict` or Hub id (default: the only one, or
            `"train"`). A plain file is one split.
        image_root (`str`, *optional*): Relative image paths become absolute paths below it; by default they stay
            as written, and [`ImageOptions`]'s `image_root` or the working folder applies.

        columns (`dict`, *optional*): Columns by the fields that they hold, such as `{"image": "tile", "chosen":
            "better"}`; the images' column is found by its values otherwise.

    Raises:
        DataError: At the first bad row or file; `rs-rlhf data check` lists them all.
    """
    files = tuple(split_paths(path_or_paths))
    root = None if image_root is None else os.path.abspath(image_root)  # the reader may join its own root again
    stamps = [(part.name, part.stamp) for file in files for part in parts_of(file.removeprefix(RSRM), split)]
    arguments = {"files": files, "split": split, "image_root": root, "columns": parse_columns(columns), "form": form}
    return cached(_normal_rows, _features(form), arguments, [stamps, arguments, FORM_VERSION])


def load_with_images(
    names: str | Sequence[str],
    split: str | None = None,
    image_root: str | None = None,
    columns: Mapping[str, str] | None = None,
    form: Form = "groups",
) -> tuple[Dataset, str]:
    """Loads preference files as `rs-rlhf reward` and `rs-rlhf eval preferences` do, with the root of their images.

    Relative image paths start from `image_root`, by default from the folder of their own file; the root that is
    returned is the given one, or [`common_folder`]. Files that share no folder are a [`DataError`].
    """
    from datasets import concatenate_datasets

    files = split_paths(names)
    if image_root is not None:
        folders, root = [image_root] * len(files), image_root
    else:
        folders, root = [image_folder(file) for file in files], common_folder(files)
    data = [load_preferences(file, split, folder, columns, form) for file, folder in zip(files, folders, strict=True)]
    for file, rows in zip(files, data, strict=True):
        announce(file, len(rows), count_pictured(rows), split, columns=columns, image_root=image_root)
    require_images(sum(map(count_pictured, data)), ", ".join(files), columns, image_root)
    return concatenate_datasets(data), root


def _normal_rows(
    files: Sequence[str], split: str | None, image_root: str | None, columns: Mapping[str, str], form: Form
) -> Iterator[dict[str, Any]]:
    empty = True
    reading: dict[str, Any] = {"columns": columns, "image_root": image_root, "labelled": form == "labelled"}
    for file in files:
        for where, row, inspection in read_groups(file, split, image_root, **reading):
            if inspection.group is None:
                raise inspection.errors[0]
            group, empty = inspection.group, False
            base = {
                "prompt": group.prompt,
                "images": [bytes_and_path(source) for source in group.images],
                "source": group.source,
                "kind": group.kind,
                "id": string_column(row, "id"),
                "row": where.number,
                "where": str(where),
            }
            for texts in _texts(group, row, form):
                yield base | texts
    if empty:
        raise DataError("no rows; give a file that has some", "", ", ".join(files))


def _texts(group: Group, row: Row, form: Form) -> Iterator[dict[str, Any]]:
    """What each row of a form holds of a group's completions."""
    chosen, *rejected = group.completions
    if form == "groups":
        yield {"chosen": chosen, "rejected": rejected, "margin": group.margin}
    elif form == "pairs":
        yield from ({"chosen": chosen, "rejected": worse} for worse in rejected)
    else:
        yield {"completion": chosen, "label": True if rejected else row["label"]}
        yield from ({"completion": worse, "label": False} for worse in rejected)


def _features(form: Form) -> Features:
    from datasets import Features, List, Value

    texts = {"groups": ("chosen", "rejected"), "pairs": ("chosen", "rejected"), "labelled": ("completion",)}
    columns = message_features("prompt", *texts[form]) | {"row": Value("int64")}
    if form == "groups":
        columns |= {"rejected": List(columns["chosen"]), "margin": Value("float64")}
    if form == "labelled":
        columns |= {"label": Value("bool")}
    return Features(columns | dict.fromkeys(("source", "kind", "id", "where"), Value("string")))
