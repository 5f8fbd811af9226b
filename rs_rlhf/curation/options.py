"""Options of `rs-rlhf curate` and `rs-rlhf browse`, and their checks; light to import, so that `--help` is fast."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..data.columns import ColumnOptions
from ..errors import OptionError
from ..options import option

AGGREGATES = ("mean", "min")
KEEP = 0.3
SETTINGS = (
    "rank",
    "max_std",
    "by",
    "best_of_every_image",
    "per",
    "aggregate",
    "dedup",
    "near_distance",
    "exclude_images_of",
    "exclude_near",
    "allow_partial",
)
FARTHEST = 10  # bits; beyond, most pairs of unlike pictures would be compared, and some would count as alike


@dataclass(kw_only=True)
class SampleOptions:
    """How texts become samples, which are kept or dropped as a whole."""

    per: Literal["text", "row"] = option(
        "text", "text: conversations as a whole, other rows' texts one by one; row: all rows as a whole"
    )
    aggregate: Literal["mean", "min"] = option(
        "mean", "the score of what is kept as a whole, from the scores of its texts"
    )
    allow_partial: bool = option(False, "use the scores of a run that is not finished")


@dataclass(kw_only=True)
class CurateOptions(SampleOptions, ColumnOptions):
    """Keep the best part of image-text data that `rs-rlhf score` has scored, in its own format.

    Dropped in this order: texts without a score, those on which several models disagree, images of evaluation sets,
    copies and near-duplicates, and samples below the cut. So a fraction is of what the others have left.
    """

    scores: str | None = option(None, "folder that `rs-rlhf score` has written", positional=True, metavar="SCORES")
    output: Path = option(
        help="folder to write; with several cuts, the folder of their folders (keep-0.3, …)",
        flags=["--output_dir"],
        metavar="DIR",
        writes="folder",
    )
    keep: list[float] | None = option(
        None,
        "fractions to keep, more than 0 and at most 1; rounded, halves up; of equal scores those first in the data "
        f"(default: {KEEP})",
        metavar="F",
    )
    threshold: list[float] | None = option(None, "keep scores of X and higher, instead of --keep", metavar="X")
    rank: Literal["score", "mean-std"] = option(
        "score", "cut by the score, or by the mean of several models' scores less their standard deviation"
    )
    max_std: float | None = option(
        None, "drop texts for which the standard deviation of several models' scores is larger", metavar="X"
    )
    by: Literal["source", "label", "none"] = option(
        "none", "keep the fraction of every source, or of every class, by itself"
    )
    best_of_every_image: bool = option(
        False,
        "with --keep: the best of every image comes before the second best of any, so that no image is lost before "
        "its last text",
    )
    dedup: Literal["none", "exact", "near"] = option(
        "none",
        "exact: of samples with the same image bytes, question and text keep the best; an image with other texts "
        "stays. near: also, of images that look alike, keep only the one with the best mean score of its texts",
    )
    near_distance: int = option(
        4, "images look alike if their perceptual hashes differ in at most so many of 64 bits", metavar="BITS"
    )
    exclude_images_of: list[str] = option(
        [],
        "drop rows whose picture is in these evaluation sets (Parquet, JSONL, CSV, folder of classes)",
        action="extend",
        metavar="PATH[:SPLIT]",
    )
    exclude_near: bool = option(False, "also drop rows whose picture looks like one of them")
    compare: str | None = option(
        None, "other scores of the same input, such as CLIP's, to compare with", metavar="SCORES"
    )
    max_images_in_report: int = option(60, "images in report.html", metavar="N")
    overwrite: bool = option(False, "replace folders that an earlier `rs-rlhf curate` has written")
    ids: str | None = option(
        None, "keep exactly what this kept_ids.parquet lists, of --input; needs no SCORES", metavar="FILE"
    )
    input: str | None = option(None, "with --ids: the data, as for `rs-rlhf score`", metavar="DATA")
    split: str | None = option(None, "with --ids: split of the data")
    image_root: str | None = option(None, "with --ids: folder that image paths start from")

    def cuts(self) -> list[tuple[Path, dict[str, float]]]:
        """Returns the folder of each cut, and the cut: `{"keep": 0.3}` or `{"threshold": 1.5}`."""
        way = "keep" if self.threshold is None else "threshold"
        values = self.keep or self.threshold or [KEEP]
        if len(values) == 1:
            return [(self.output, {way: values[0]})]
        return [(self.output / f"{way}-{value:g}", {way: value}) for value in values]

    def settings(self) -> dict[str, object]:
        """Returns what `curation.json` says of the options, beside the cut."""
        return {name: getattr(self, name) for name in SETTINGS}

    def check(self) -> None:
        """Refuses contradictions before anything is read; the [`OptionError`] names the option."""
        for wrong, key, sentence in self._problems_with_ids() if self.ids is not None else self._problems():
            if wrong:
                raise OptionError(sentence, key)

    def _problems(self) -> Iterator[tuple[bool, str, str]]:
        """Yields what may be wrong: whether it is, the option, and the sentence."""
        yield (
            self.scores is None,
            "scores",
            "no SCORES; give a folder that `rs-rlhf score` has written, or --ids with --input.",
        )
        for name in ("input", "split", "image_root", "columns", "image_column", "text_column", "text_only"):
            sentence = f"--{name} is for --ids; SCORES say themselves what was scored: leave it out."
            yield getattr(self, name) not in (None, False), name, sentence
        both = self.keep is not None and self.threshold is not None
        yield both, "threshold", "--keep and --threshold are both given; give one of them."
        for value in self.keep or ():
            sentence = f"--keep is {value:g}, expected a fraction of more than 0 and at most 1, such as 0.3."
            yield not 0 < value <= 1, "keep", sentence
        yield (
            self.best_of_every_image and self.threshold is not None,
            "best_of_every_image",
            "--best_of_every_image goes with --keep; a threshold is of the score alone.",
        )
        for value in self.threshold or ():
            yield not math.isfinite(value), "threshold", f"--threshold is {value}, expected a number."
        way = "threshold" if self.threshold else "keep"
        folders = [folder for folder, _ in self.cuts()]
        yield len(set(folders)) < len(folders), way, f"--{way} names a value twice; name each once."
        sentence = f"--max_std is {self.max_std}, expected 0 or more."
        yield self.max_std is not None and not self.max_std >= 0, "max_std", sentence
        sentence = f"--near_distance is {self.near_distance}, expected 0 to {FARTHEST} bits."
        yield not 0 <= self.near_distance <= FARTHEST, "near_distance", sentence
        sentence = "--exclude_near is given without --exclude_images_of; name the evaluation sets."
        yield self.exclude_near and not self.exclude_images_of, "exclude_near", sentence
        sentence = f"--max_images_in_report is {self.max_images_in_report}, expected 0 or more."
        yield self.max_images_in_report < 0, "max_images_in_report", sentence

    def _problems_with_ids(self) -> Iterator[tuple[bool, str, str]]:
        yield self.input is None, "input", "--ids needs --input, the data that its ids are of."
        defaults = CurateOptions(output=self.output)
        for name in ("scores", "keep", "threshold", "compare", "max_images_in_report", *SETTINGS):
            what = "SCORES are" if name == "scores" else f"--{name} is"
            sentence = f"{what} given with --ids, which already says what is kept; leave one of them out."
            yield getattr(self, name) != getattr(defaults, name), name, sentence
