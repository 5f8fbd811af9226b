"""The evaluation rows that a score model ranks most wrongly, with thumbnails, for people to look at.

Written by the main process as a Parquet file per evaluation (so it is there offline too), and logged to wandb as a
table whose key holds the step, since wandb shows only the last table of a key.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .data import completion_text, group_from_row, prompt_text
from .imagery import read_image

THUMBNAIL = 160  # longest side, in pixels


def log_worst_pairs(trainer: Any, dataset: Any, records: Sequence[Mapping[str, Any]], prefix: str) -> Path | None:
    """Writes and logs the rows where a rejected completion wins by most.

    Args:
        trainer ([`VisionRewardTrainer`]): Gives the step, the output folder and the options.
        dataset (`Dataset`): The evaluation rows; a record's `index` is the row's place.
        records (sequence of `dict`): `index` and `scores` of each row.
        prefix (`str`): Name of the evaluation, such as `"eval"`.

    Returns:
        `Path` or `None`: The Parquet file, `None` without records.
    """
    from datasets import Dataset, Features, Image, Value

    args, step = trainer.args, trainer.state.global_step
    worst = sorted((r for r in records if r["index"] >= 0), key=lambda r: r["scores"][0] - max(r["scores"][1:]))
    rows = [_row(dataset[r["index"]], r, step, args) for r in worst[: args.worst_pairs]]
    if not rows:
        return None
    text = dict.fromkeys(("where", "source", "kind", "prompt", "chosen", "rejected"), Value("string"))
    numbers = {"step": Value("int64"), "chosen_score": Value("float32"), "rejected_score": Value("float32")}
    folder = Path(args.output_dir) / "worst_pairs"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{prefix}_{step:06d}.parquet"
    table = Dataset.from_list(rows, features=Features({**numbers, **text, "image": Image(decode=False)}))
    table.to_parquet(str(path))
    if "wandb" in args.report_to:
        import wandb
        from PIL import Image as PILImage

        if wandb.run is not None:
            shown = wandb.Table(columns=list(rows[0]))
            for row in rows:
                image = row["image"]
                picture = None if image is None else wandb.Image(PILImage.open(io.BytesIO(image["bytes"])))
                shown.add_data(*[picture if name == "image" else value for name, value in row.items()])
            wandb.log({f"score/worst_pairs_{prefix}/step_{step:06d}": shown}, commit=False)
    return path


def _row(row: Mapping[str, Any], record: Mapping[str, Any], step: int, args: Any) -> dict[str, Any]:
    group = group_from_row(row)
    worst = max(range(1, len(record["scores"])), key=lambda i: record["scores"][i])
    image = None
    if group.images and not args.image_blind:
        thumbnail = read_image(group.images[0], args.image_options(), group.where)
        thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
        buffer = io.BytesIO()
        thumbnail.save(buffer, "JPEG", quality=85)
        image = {"bytes": buffer.getvalue(), "path": None}
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
