"""Scored data in Renumics Spotlight, which plots, groups and searches tables with pictures.

Left out: embeddings, which scores do not hold.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ...errors import DataError, ImageError, OptionError
from ...imagery.raster import read_image
from ...runs.tables import thumbnail
from ..near_duplicates import read_rows
from ..samples import Scored, read_scored
from .folders import name_folders

if TYPE_CHECKING:
    from .app import BrowseOptions

SHOWN = 5000  # samples at most: the table and its pictures are in memory
SIDE = 256


def show(options: BrowseOptions) -> None:
    """Opens Spotlight on the samples with the highest scores, at most [`SHOWN`]; returns when it is closed."""
    if find_spec("renumics") is None:
        raise OptionError(
            "Renumics Spotlight is not installed; pip install renumics-spotlight, or leave --in out for our own page.",
            "viewer",
        )
    from renumics import spotlight

    scored = read_scored(options.scores, options, options.compare)
    name_folders(scored)
    import pandas

    frame = pandas.DataFrame(table_of(scored))
    spotlight.show(frame, dtype={"image": spotlight.Image}, host=options.host, port=options.port)


def table_of(scored: Scored) -> dict[str, list[Any]]:
    """Returns the columns of the table: `image` (JPEG, `None` if it cannot be read), `text`, `score`, `tokens`,
    `source`, `class`, `row`, and of a comparison `other_score`; in the order of the data.
    """
    import numpy as np

    samples = scored.samples
    order = np.argsort(-samples.score, kind="stable")[:SHOWN]  # NaN comes last
    numbers = np.sort(order[np.isfinite(samples.score[order])])
    if not len(numbers):
        raise DataError("no sample has a score", where=str(scored.folder))
    _, first, row_of = np.unique(samples.row[numbers], return_index=True, return_inverse=True)
    columns: dict[str, list[Any]] = {"image": [], "text": [], "row": []}
    for i, row in read_rows(scored.inputs, scored.units, scored.row_ids(numbers[first])):
        try:
            image = (
                thumbnail(read_image(row.images[0], scored.options, row.row_id), SIDE)["bytes"] if row.images else None
            )
        except ImageError:
            image = None
        for number in numbers[row_of == i].tolist():
            indices = scored.lines["text_index"][scored.text_slice(number)].to_pylist()
            columns["image"].append(image)
            columns["text"].append("\n".join(row.texts[index] for index in indices if index < len(row.texts)))
            columns["row"].append(row.row_id)
    columns["score"] = samples.score[numbers].tolist()
    columns["tokens"] = samples.tokens[numbers].tolist()
    columns["source"] = [samples.sources[code] for code in samples.source[numbers]]
    columns["class"] = [samples.labels[code] for code in samples.label[numbers]]
    if samples.other is not None:
        columns["other_score"] = samples.other[numbers].tolist()
    return columns
