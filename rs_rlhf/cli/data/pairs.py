"""`rs-rlhf data pairs`: preference pairs made from captioned or labelled images, each with a known kind of damage."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from ...data.captioned_images import InputOptions
from ...data.placed_images import OutputOptions, check_output, numbered
from ...errors import OptionError
from ...options import option
from ...preferences.damage import KINDS, NEEDS, build_pairs
from ...preferences.lists import LIST_KINDS, build_lists


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
