"""`rs-rlhf data damage`: a noisy pool of image-text rows with known damage."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ...data.captioned_images import InputOptions
from ...data.placed_images import OutputOptions, check_output, numbered
from ...options import option
from ...preferences.noisy_pool import CAPTION_DAMAGE, damaged_rows


@dataclass(kw_only=True)
class DamageOptions(InputOptions, OutputOptions):
    """Make image-text rows from captioned images, with a known share of damaged texts."""

    rate: float = option(0.5, "chance of a text to be damaged")
    kinds: str = option(",".join(CAPTION_DAMAGE), "comma-separated kinds of damage of captions")
    questions: bool = option(False, "also ask for the scene class of each image")


def main(options: DamageOptions) -> None:
    """Writes the rows and prints how many of each kind there are."""
    check_output(options.output, options.overwrite)
    rows, checked = options.read()
    kinds = [kind.strip() for kind in options.kinds.split(",") if kind.strip()]
    made = list(
        damaged_rows(numbered(rows), options.rate, seed=options.seed, kinds=kinds, questions=options.questions)
    )
    options.write(made, rows, checked, "images", "rows")
    counts = Counter((row["source"], row["damage"] or "clean") for row in made)
    totals = Counter(row["source"] for row in made)
    for (source, damage), count in sorted(counts.items()):
        print(f"{source:<10}{damage:<16}{count:>8}{count / totals[source]:>8.1%}")
