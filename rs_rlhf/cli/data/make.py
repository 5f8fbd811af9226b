"""Data that is made: `rs-rlhf data scenes` (images), `data pairs` (preferences) and `data damage` (a noisy pool)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from ...data.captioned_images import InputOptions
from ...data.placed_images import OutputOptions, check_output, numbered
from ...errors import DataError, OptionError
from ...options import option
from ...preferences.damage import KINDS, NEEDS, build_pairs
from ...preferences.lists import LIST_KINDS, build_lists
from ...preferences.noisy_pool import CAPTION_DAMAGE, damaged_rows


@dataclass(kw_only=True)
class ScenesOptions:
    """Write made-up overhead scenes with captions and classes."""

    path: str = option(
        help="folder to write to: images, train.jsonl, validation.jsonl",
        positional=True,
        metavar="FOLDER",
        writes="folder",
    )
    n_train: int = option(1000, "training scenes")
    n_validation: int = option(200, "validation scenes")
    seed: int = option(0, "seed of the data", least=0)
    size: int = option(112, "edge of an image in pixels")


def write_scenes(options: ScenesOptions) -> None:
    """Writes the scenes; see [`rs_rlhf.data.scenes.make`]."""
    from ...data.scenes import make

    make.write_scenes(options.path, options.n_train, options.n_validation, options.seed, options.size)
    print(f"{options.n_train} training and {options.n_validation} validation scenes -> {options.path}")


@dataclass(kw_only=True)
class PairsOptions(InputOptions, OutputOptions):
    """Make preference pairs, each with a known kind of damage, from captioned or labelled images."""

    kinds: str = option(",".join(KINDS), "comma-separated kinds of damage")
    pairs_per_image: int = option(5, "attempts (lists: lists) per image, the kinds taking turns")
    form: Literal["pairs", "list"] = option(
        "pairs",
        "pairs, or lists of one right text against many wrong ones (for --ranked_rejected false): of the class, and "
        "of captions against those of other classes, with a wrong attribute, and cut short",
    )
    rejected: int = option(8, "rejected texts of a list")
    limit: int | None = option(None, "use at most this many images, drawn by the seed")


PairsOptions.__doc__ = (
    f"{PairsOptions.__doc__} Kinds: {'; '.join(f'{kind} needs {needs}' for kind, needs in NEEDS.items())}."
)


def make_pairs(options: PairsOptions) -> None:
    """Writes pairs or lists as JSON lines, and prints how many of each kind were made."""
    check_output(options.output, options.overwrite)
    if options.limit is not None and options.limit < 1:
        raise OptionError(f"--limit is {options.limit}; it must be at least 1.", "limit")
    rows, checked = options.read(options.limit)
    # All pairs first: a wrong kind or row must not leave images behind. They share the rows' image objects.
    stats: dict[str, Counter[str]] = {}
    kinds = [kind.strip() for kind in options.kinds.split(",") if kind.strip()]
    given, count, seed = numbered(rows), options.pairs_per_image, options.seed
    if options.form == "list":
        if options.kinds != ",".join(KINDS):
            raise OptionError("--kinds is for pairs; a list has all kinds that it can: leave it out.", "kinds")
        kinds = list(LIST_KINDS)
        made = list(build_lists(given, rejected=options.rejected, lists_per_image=count, seed=seed, stats=stats))
    else:
        made = list(build_pairs(given, kinds=kinds, pairs_per_image=count, seed=seed, stats=stats))
    what = "pairs" if options.form == "pairs" else "lists"
    options.write(made, rows, checked, f"images/{options.split or 'all'}", what)
    print(f"{'kind':<16}{'pairs':>8}{'skipped':>9}  needs")
    for kind in kinds:
        print(f"{kind:<16}{stats['made'][kind]:>8}{stats['skipped'][kind]:>9}  {NEEDS[kind]}")


@dataclass(kw_only=True)
class DamageOptions(InputOptions, OutputOptions):
    """Make image-text rows from captioned images, with a known share of damaged texts."""

    rate: float = option(0.5, "chance of a text to be damaged")
    kinds: str = option(",".join(CAPTION_DAMAGE), "comma-separated kinds of damage of captions")
    questions: bool = option(False, "also ask for the scene class of each image")


def write_damaged(options: DamageOptions) -> None:
    """Writes the rows and prints how many of each kind there are."""
    check_output(options.output, options.overwrite)
    rows, checked = options.read()
    kinds = [kind.strip() for kind in options.kinds.split(",") if kind.strip()]
    made = list(
        damaged_rows(numbered(rows), options.rate, seed=options.seed, kinds=kinds, questions=options.questions)
    )
    if not made:
        advice = "give captions, or --questions to ask for the class"
        raise DataError(f"no image has a caption; {advice}", "captions", options.input)
    options.write(made, rows, checked, "images", "rows")
    counts = Counter((row["source"], row["damage"] or "clean") for row in made)
    totals = Counter(row["source"] for row in made)
    for (source, damage), count in sorted(counts.items()):
        print(f"{source:<10}{damage:<16}{count:>8}{count / totals[source]:>8.1%}")
