"""`rs-rlhf data damage`: a noisy pool of image-text rows with known damage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...data.captioned_images import check_output, numbered, read_input, write_output
from ...options import option, parse
from ...preferences.noisy_pool import CAPTION_DAMAGE, damaged_rows


@dataclass(kw_only=True)
class DamageOptions:
    """Make image-text rows from captioned images, with a known share of damaged texts."""

    input: str = option(help="Parquet, JSONL or CSV file, or a folder of them")
    split: str | None = option(None, "split of the input folder to read (default: all of it)")
    image_root: str | None = option(
        None,
        "image paths in the input start here, and images lie in it (default: their file's folder)",
        metavar="DIR",
    )
    output: Path = option(help="JSONL file to write; image paths in it are relative to its folder")
    images_dir: Path | None = option(
        None, "where images outside the output's folder are written (default: images beside the output)"
    )
    exclude_images_of: list[str] = option(
        [],
        "drop images whose decoded pixels occur in this other data too; may be repeated",
        action="append",
        metavar="PATH[:SPLIT]",
    )
    rate: float = option(0.5, "chance of a text to be damaged")
    kinds: str = option(",".join(CAPTION_DAMAGE), "comma-separated kinds of damage of captions")
    questions: bool = option(False, "also ask for the scene class of each image")
    seed: int = option(0, "seed of all choices")
    overwrite: bool = option(False, "replace an existing output")


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the rows and prints how many of each kind there are; returns 0."""
    options = parse(DamageOptions, argv, "rs-rlhf data damage")
    check_output(options.output, options.overwrite)
    rows, checked = read_input(options)
    kinds = [kind.strip() for kind in options.kinds.split(",") if kind.strip()]
    made = list(
        damaged_rows(numbered(rows), options.rate, seed=options.seed, kinds=kinds, questions=options.questions)
    )
    write_output(made, rows, options, options.output.parent / "images", checked, "rows")
    counts = Counter((row["source"], row["damage"] or "clean") for row in made)
    totals = Counter(row["source"] for row in made)
    for (source, damage), count in sorted(counts.items()):
        print(f"{source:<10}{damage:<16}{count:>8}{count / totals[source]:>8.1%}")
    return 0
