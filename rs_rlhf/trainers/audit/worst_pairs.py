"""The evaluation rows that a score model ranks most wrongly, with thumbnails, for people to look at.

Written by the main process once per evaluation, through `runs.tables`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from ...data.group import completion_text, prompt_text
from ...imagery.raster import read_image
from ...runs.tables import thumbnail, write_table
from ..data.reward import row_group

if TYPE_CHECKING:
    from ..options import RewardOptions
    from ..reward import VisionRewardTrainer


def log_worst_pairs(
    trainer: VisionRewardTrainer, dataset: Dataset, records: Sequence[Mapping[str, Any]], prefix: str
) -> Path | None:
    """Writes and logs the rows of an evaluation where a rejected completion wins by most, and returns the file.

    A record has the `index` of its row in the data set, and its `scores`; without records there is no file.
    """
    args, options, step = trainer.args, trainer.options, trainer.state.global_step
    worst = sorted((r for r in records if r["index"] >= 0), key=lambda r: r["scores"][0] - max(r["scores"][1:]))
    rows = [_row(dataset[r["index"]], r, step, options) for r in worst[: options.worst_pairs]]
    if not rows:
        return None
    path = Path(str(args.output_dir)) / "worst_pairs" / f"{prefix}_{step:06d}.parquet"
    types = dict.fromkeys(("where", "source", "kind", "prompt", "chosen", "rejected"), "string")
    types |= {"step": "int64", "chosen_score": "float32", "rejected_score": "float32"}
    write_table(rows, path, types, f"score/worst_pairs_{prefix}/step_{step:06d}", args.report_to)  # type: ignore[arg-type]
    return path


def _row(row: Mapping[str, Any], record: Mapping[str, Any], step: int, options: RewardOptions) -> dict[str, Any]:
    group = row_group(row)
    worst = max(range(1, len(record["scores"])), key=lambda i: record["scores"][i])
    image = None
    if group.images and not options.image_blind:
        image = thumbnail(read_image(group.images[0], options.reader_options(), group.where))
    return {
        "step": step,
        "chosen_score": record["scores"][0],
        "rejected_score": record["scores"][worst],
        "where": str(row.get("where") or record["index"]),
        "source": group.source,
        "kind": group.kind,
        "prompt": prompt_text(group.prompt),
        "chosen": completion_text(group.completions[0]),
        "rejected": completion_text(group.completions[worst]),
        "image": image,
    }
