"""Classes of images by the folder that they lie in, for data whose rows name none, as people keep their own tiles.

Left out: folders above the last one.
"""

from __future__ import annotations

from pathlib import PurePath

import numpy as np

from ..near_duplicates import read_rows
from ..samples import Scored

ROWS = 50_000  # of more rows the images are not looked for


def name_folders(scored: Scored) -> str:
    """Gives samples without a class the name of their image's folder, if these names can be classes; returns in words
    what was done.

    They can be classes if there are several, each of several images on average.
    """
    samples = scored.samples
    if any(samples.labels) or len(samples.first) == 0:
        return ""
    _, first = np.unique(samples.row, return_index=True)
    if len(first) > ROWS:
        return f"none is named, and of more than {ROWS:,} rows the folders are not read"
    names: list[str] = []
    for _, row in read_rows(scored.inputs, scored.units, scored.row_ids(first)):
        source = row.images[0] if row.images else ""
        path = source.get("path") if isinstance(source, dict) else source if isinstance(source, str) else ""
        names.append(PurePath(path or "").parent.name)
    found = sorted(set(names))
    if not 2 <= len(set(found) - {""}) <= len(names) / 2:
        return ""
    codes = np.searchsorted(np.array(found), np.array(names)).astype(np.int32)
    samples.labels, samples.label = found, codes[samples.row]
    return "by the folder of the image"
