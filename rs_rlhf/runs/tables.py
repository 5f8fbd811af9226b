"""Tables of samples with thumbnails: a Parquet file (so that they are there offline too) and a wandb table.

The wandb key holds the step, since wandb shows only the last table of a key. Only the main process writes them. Left
out: full-size images.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

THUMBNAIL = 160  # longest side, in pixels


def thumbnail(image: Any) -> dict[str, Any]:
    """Returns a PIL image as a small JPEG, in the form of an undecoded `datasets` image."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return {"bytes": buffer.getvalue(), "path": None}


def write_table(
    rows: Sequence[Mapping[str, Any]], path: Path, types: Mapping[str, str], key: str, report_to: Sequence[str]
) -> None:
    """Writes rows to a Parquet file, and to wandb where the run reports to it.

    Args:
        rows (sequence of `dict`): Not empty; each has columns of `types`, and `image` from [`thumbnail`] or `None`.
        path (`Path`): File to write; its folder is made.
        types (mapping): Column to the name of its `datasets` type.
        key (`str`): Name of the wandb table, with the step in it.
        report_to (sequence of `str`): The training argument.
    """
    import pyarrow.parquet
    from datasets import Dataset, Features, Image, Value

    path.parent.mkdir(parents=True, exist_ok=True)
    features = Features({name: Value(kind) for name, kind in types.items()} | {"image": Image(decode=False)})
    table = Dataset.from_list([{name: row.get(name) for name in features} for row in rows], features=features)
    pyarrow.parquet.write_table(table.data.table, path)  # `to_parquet` would draw a progress bar
    if "wandb" not in report_to:
        return
    import wandb
    from PIL import Image as PILImage

    if wandb.run is not None:
        shown = wandb.Table(columns=list(features))
        for row in rows:
            image = row.get("image")
            picture = None if image is None else wandb.Image(PILImage.open(io.BytesIO(image["bytes"])))
            shown.add_data(*[picture if name == "image" else row.get(name) for name in features])
        wandb.log({key: shown}, commit=False)
