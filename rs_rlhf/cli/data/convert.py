"""`rs-rlhf data convert`: rows of any known form in that of TRL, LLaVA or Label Studio, or the documented one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...data.columns import ColumnOptions
from ...options import option
from ...preferences.convert import Form, Pairs
from ...preferences.converted_files import convert


@dataclass(kw_only=True)
class ConvertOptions(ColumnOptions):
    """Converts rows of any form that is read into another form; what that cannot hold is an error."""

    input: str = option(
        help="file, folder (also of images by class), saved data set or Hub id", positional=True, metavar="IN"
    )
    output: Path = option(
        help="file to write: .jsonl or .parquet, for llava .json or .jsonl, for label-studio .json",
        positional=True,
        metavar="OUT",
        writes="file",
    )
    to: Form = option(
        help="trl: prompt with chosen and rejected, with a completion, or alone, as messages; llava: conversations; "
        "label-studio: tasks that compare two texts, annotated with the preference; "
        "jsonl, parquet: the documented form"
    )
    split: str | None = option(None, "split of the input to read")
    image_root: str | None = option(
        None, "image paths in the input start here, and images lie in it (default: their file's folder)", metavar="DIR"
    )
    images_dir: Path | None = option(
        None,
        "where images that are not below the output's folder are written, once each (default: images beside the "
        "output); Parquet holds the bytes of all images instead",
        writes="folder",
    )
    pairs: Pairs | None = option(
        None, "trl, of several rejected texts: the chosen one with each, or every better one with every worse one"
    )
    drop: list[str] = option([], "columns that are not carried over", metavar="COLUMN")
    overwrite: bool = option(False, "replace an existing output")


def main(options: ConvertOptions) -> None:
    """Writes the file and prints how many rows and images it has."""
    done = convert(
        options.input,
        options.output,
        options.to,
        split=options.split,
        image_root=options.image_root,
        columns=options.named_columns(),
        images_dir=options.images_dir,
        pairs=options.pairs,
        drop=options.drop,
        overwrite=options.overwrite,
    )
    images = f"; {done.images} images written" if done.images else ""
    print(f"{done.read} rows -> {done.rows} rows in {options.output}{images}")
