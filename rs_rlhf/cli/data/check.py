"""`rs-rlhf data check`: lists every problem of data, before a training meets the first."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ...data.columns import ColumnOptions
from ...imagery.arguments import PixelOptions, ReadingOptions
from ...options import option


@dataclass(kw_only=True)
class CheckOptions(ColumnOptions, PixelOptions, ReadingOptions):
    """Lists every problem of preference files, or of the data of another command."""

    files: list[str] = option(help="training files, folders or Hub ids", positional=True, metavar="FILE", nargs="+")
    eval: list[str] = option([], "evaluation files; of preferences, compared with FILE", metavar="FILE")
    use: str = option(
        "reward",
        "the command that reads the data: reward or dpo (preferences), kto, grpo (prompts), sft, score or clip",
        flags=["--for"],
        choices=["reward", "dpo", "kto", "grpo", "sft", "score", "clip"],
    )
    split: str | None = option(None, "split of a folder or Hub id, but for reward and dpo")
    model: str | None = option(None, "model whose limits hold (default: those of Qwen2-VL)", metavar="MODEL")
    max_length: int | None = option(None, "most tokens of a row, as in the training; needs --model", metavar="N")
    max_problems: int | None = option(None, "print at most N kinds of problems (default: all)", metavar="N")


def main(options: CheckOptions) -> int:
    """Prints the report; returns 1 if there are problems, else 0."""
    from ...data.rows import common_folder
    from ...data.survey import require_images
    from ...errors import DataError
    from ...imagery.options import ImageOptions
    from ...models.row_limits import RowLimits, limits_for
    from ...preferences.check import check_files, format_report

    def limits(images: ImageOptions) -> RowLimits:
        budget = (options.min_pixels, options.max_pixels)
        return limits_for(use, images, options.model, options.max_length, *budget)

    use = "reward" if options.use == "dpo" else options.use  # the same rows
    images, columns, files = options.reader_options(), options.named_columns(), [*options.files, *options.eval]
    if use == "reward":
        more: dict[str, Any] = {"columns": columns, "limits": limits, "max_problems": options.max_problems}
        report = check_files(options.files, options=images, eval_files=options.eval, **more)
    else:  # through the trainers' readers, which load TRL
        from ...trainers.data.check import Source, check_data

        reading = {"image_root": images.image_root, "columns": columns}
        root = (images.image_root or common_folder(files)) if use == "grpo" else None  # others resolve paths
        sources = [Source(file, options.split, reading) for file in files]
        found = limits(replace(images, image_root=root))
        report = check_data(use, sources, found, options.max_problems)
    if report.rows:
        try:
            require_images(report.images, ", ".join(files), columns, images.image_root)
        except DataError as error:
            report.problem(error.detail, error.key, error.where)
    print(format_report(report))
    return 1 if report.total_problems else 0
