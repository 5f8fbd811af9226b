"""The scorer of `rs-rlhf score` as a stage of a Ray Data pipeline, for clusters that run Ray already.

    import ray
    from rs_rlhf.curation.ray import score_dataset

    rows = ray.data.read_parquet("captions/")
    scores = score_dataset(rows, model="out/score-model", id_column="id", concurrency=8, num_gpus=1)
    scores.write_parquet("scores/")

A batch of rows in the forms of `image_text` becomes the lines that `rs-rlhf score` writes: same columns, same
numbers, errors as lines. Each actor of a pool holds the model once; Ray hands the batch of an actor or a node that
died to another. Ray knows no row numbers, so a column of the data must name its rows.

Left out: resuming a pipeline that was stopped (use `rs-rlhf score`, or write by parts), WebDataset members.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ..data.columns import Columns
from ..data.image_text import image_text_row
from ..errors import DataError
from ..scoring.load import load_scorer, process_device, token_counter
from .score import stage_options
from .shards import SCHEMA
from .worker import score_rows

if TYPE_CHECKING:
    from ray.data import Dataset


class ScoreStage:
    """An actor of the pipeline: loads the scorer once, then turns batches of rows into lines of scores.

    The arguments are those of [`score_dataset`].
    """

    def __init__(self, options: Mapping[str, Any], id_column: str, image_root: str, source: str) -> None:
        parsed = stage_options(options)
        self.scorer = load_scorer(parsed, parsed.reader_options(), process_device())
        self.count_tokens = token_counter(self.scorer)
        self.columns = Columns(parsed.named_columns())
        self.num_workers = parsed.num_workers
        self.id_column, self.image_root, self.source = id_column, image_root, source

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Scores a batch of rows; returns one line per text, with the columns of [`rs_rlhf.curation.shards.SCHEMA`].

        Raises:
            DataError: A row has no id.
        """
        rows = []
        for raw in batch.to_pylist():
            row_id = raw.pop(self.id_column, None)
            if row_id is None:
                raise DataError(
                    f"a row has no `{self.id_column}`; id_column must name a column that tells rows "
                    f"apart, the columns are {', '.join(batch.column_names)}",
                    self.id_column,
                )
            where = str(row_id)
            rows.append(
                image_text_row(raw, where, root=self.image_root, where=where, source=self.source, columns=self.columns)
            )
        lines = score_rows(rows, self.scorer, self.count_tokens, self.num_workers)
        return pa.Table.from_pylist(lines, schema=SCHEMA)


def score_dataset(
    data: Dataset,
    *,
    id_column: str = "id",
    image_root: str = ".",
    source: str = "",
    concurrency: int | tuple[int, int] = 1,
    batch_size: int = 256,
    num_gpus: float | None = None,
    num_cpus: float | None = None,
    **options: Any,
) -> Dataset:
    """Adds scoring to a Ray Data pipeline.

    Args:
        data (`ray.data.Dataset`): Rows as `rs-rlhf score` reads them, images as bytes, `{bytes, path}` or paths that
            every node can read.
        id_column (`str`): Column whose values tell the rows apart; they become `row_id`.
        image_root (`str`): Folder that image paths start from and that none may leave.
        source (`str`): Source of rows that name none.
        concurrency (`int` or `tuple`): The number of actors, each with the model once; or the fewest and the most.
        batch_size (`int`): Rows scored together.
        num_gpus, num_cpus (`float`, *optional*): What an actor reserves.
        **options: Options of `rs-rlhf score`, by name: `model`, `scorer`, `min_pixels`, `max_pixels`, `dtype`, ….

    Returns:
        `ray.data.Dataset`: One line per text, with the columns of [`rs_rlhf.curation.shards.SCHEMA`].

    Raises:
        ImportError: Ray is not installed.
        OptionError: An option that `rs-rlhf score` does not know or would refuse.
    """
    try:
        from ray.data import ActorPoolStrategy
    except ImportError as error:
        raise ImportError('Ray Data is not installed; pip install "rs-rlhf[ray]".') from error
    stage_options(options)  # a mistake is reported here, not by an actor on another machine
    fewest, most = (concurrency, concurrency) if isinstance(concurrency, int) else concurrency
    return data.map_batches(
        ScoreStage,
        fn_constructor_args=[options, id_column, image_root, source],
        batch_format="pyarrow",
        batch_size=batch_size,
        compute=ActorPoolStrategy(min_size=fewest, max_size=most),
        num_gpus=num_gpus,
        num_cpus=num_cpus,
    )
