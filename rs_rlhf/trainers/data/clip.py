"""Training data of `rs-rlhf clip`: image-text data of any form as pairs of an image and one of its texts.

The data are what `rs-rlhf score` and `rs-rlhf curate` read and write. The rows are written once to the `datasets`
cache, from where pairs are drawn at random, whatever the size of the data.

Left out: mixtures of data sets with weights, streaming, and rows with several images.
"""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from torch.utils.data import Dataset

from ... import __version__
from ...data.columns import parse_columns
from ...data.image_text import ImageTextRow
from ...data.image_text_dataset import ImageTexts, open_image_texts
from ...data.questions import QuestionRow
from ...data.row_cache import bytes_and_path, stored_rows
from ...data.rows import HELD_OUT, draw_rows
from ...errors import DataError
from ...evaluation.benchmark import Benchmark, load_benchmark, model_type_of
from ...evaluation.reader import read_task
from ...models.clip import ClipModel

CUT_SAMPLE = 2000  # texts that are tokenized to estimate how many are too long


class ImageTextPairs(Dataset):
    """Pairs of an image and one of its texts.

    Args:
        rows (sequence of `dict`): `image` (unread source), `texts` (list of `str`) and `where`; a
            `datasets.Dataset` stays on the disk.

    Returns (of an index):
        `dict`: `image`, `text`, `where`, and `pair`, the index.
    """

    def __init__(self, rows: list[dict[str, Any]] | datasets.Dataset) -> None:
        self.rows = rows
        self.starts = np.cumsum([0, *map(len, self.texts)])

    @property
    def texts(self) -> Sequence[list[str]]:
        """The texts of each row, without loading the images."""
        return self.rows["texts"] if isinstance(self.rows, datasets.Dataset) else [row["texts"] for row in self.rows]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def row_of(self, pair: int) -> int:
        """Returns the number of a pair's row."""
        return int(np.searchsorted(self.starts, pair, side="right")) - 1

    def __getitem__(self, pair: int) -> dict[str, Any]:
        number = self.row_of(pair)
        row = self.rows[number]
        text = row["texts"][pair - int(self.starts[number])]
        return {"image": row["image"], "text": text, "where": row["where"], "pair": int(pair)}


def read_tasks(names: Sequence[str], root: str | None = None) -> list[tuple[Benchmark, list[QuestionRow]]]:
    """Reads benchmarks (names in `eval/`, or YAML files) and their questions, as `rs-rlhf eval` does.

    A [`DeclarationError`] or [`DataError`] says which does not exist, is not for a dual encoder, or has no data.
    """
    tasks = []
    for benchmark in map(load_benchmark, names):
        model_type_of(benchmark, "clip")
        tasks.append((benchmark, read_task(benchmark, root).rows))
    return tasks


def load_pairs(
    path: str,
    split: str | None = None,
    *,
    image_root: str | None = None,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> ImageTextPairs:
    """Reads image-text data as pairs, as `open_image_texts` does, and draws `limit` of them by the seed.

    The rows are written once to the `datasets` cache. A [`DataError`] names the file and row that cannot be used or
    has not one image, or the splits of a folder if none is named.
    """
    reading: dict[str, Any] = {"image_root": image_root, "columns": parse_columns(columns)}
    if split is None:
        _refuse_mixed_splits(open_image_texts(path, **reading))
    text = datasets.Value("string")
    image = {"bytes": datasets.Value("large_binary"), "path": text}
    features = datasets.Features({"image": image, "texts": datasets.List(text), "where": text})
    rows = stored_rows(_rows, features, path, split, reading, __version__)
    if limit is not None and limit < len(rows):
        rows = rows.select(draw_rows(len(rows), limit, seed))
    return ImageTextPairs(rows)


def _rows(data: ImageTexts) -> Iterator[dict[str, Any]]:
    empty = True
    for row in data:
        yield pair_row(row)
        empty = False
    if empty:
        raise DataError("no rows; give data that has some", "", data.name)


def pair_row(row: ImageTextRow) -> dict[str, Any]:
    """Returns an image-text row as one of the pairs' rows; [`DataError`] if it has not one image."""
    if row.error is not None:
        raise row.error
    where = row.groups[0].where or row.row_id
    if len(row.images) != 1:
        reason = "a dual encoder compares one image with texts; leave the row out"
        raise DataError(f"{len(row.images)} images, expected one: {reason}", "images", where)
    return {"image": bytes_and_path(row.images[0]), "texts": row.texts, "where": where}


def _refuse_mixed_splits(texts: ImageTexts) -> None:
    """Refuses to train on a folder's held-out files because no split was named."""
    starts = {name: re.split(r"\W", Path(name).name)[0].lower() for name in texts.files}
    held_out = sorted(name for name, start in starts.items() if start in HELD_OUT)
    trained = sorted(name for name, start in starts.items() if start == "train")
    if held_out and trained:
        raise DataError(
            f"holds files to train on ({trained[0]}) and held-out ones ({held_out[0]}); give "
            "--dataset_train_split train",
            "dataset_train_split",
            texts.name,
        )


def warn_cut(pairs: ImageTextPairs, clip: ClipModel) -> None:
    """Warns if some of the texts, of which a sample is looked at, are too long for the model and lose their end."""
    drawn = random.Random(0).sample(range(len(pairs)), min(CUT_SAMPLE, len(pairs)))
    column = pairs.texts
    texts = [text for i in sorted({pairs.row_of(i) for i in drawn}) for text in column[i]]
    cut = sum(len(ids) > clip.max_text_tokens for ids in clip.processor.tokenizer(texts, verbose=False)["input_ids"])
    if cut:
        warnings.warn(
            f"{cut / len(texts):.1%} of the texts (of {len(texts)} looked at) are longer than the model's "
            f"{clip.max_text_tokens} tokens: their ends are cut off.",
            stacklevel=2,
        )
