"""Which scored texts are kept: the best part of them, or those from a score on.

What is kept or dropped together is a *sample*: one text, or a whole row with all its texts. Everything here works on
columns (a value per text, or per sample), so that a choice among millions takes seconds and no memory to speak of. A
score that is not a number marks what cannot be kept: no score, left out before, or a duplicate.

Left out: cuts that look at several scorers at once, and drawing a sample at random in proportion to its score.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from ..errors import OptionError

AGGREGATES = ("mean", "min")


@dataclass
class Cut:
    """What a cut did in one stratum.

    Args:
        stratum (`int`): Its number.
        candidates (`int`): Samples that could be kept.
        kept (`int`): Samples that are.
        score (`float` or `None`): The lowest score kept; `None` where nothing is.
        equal_kept (`int`): Samples kept with exactly that score.
        equal_dropped (`int`): Samples dropped with exactly that score: the order of the data decided.
    """

    stratum: int
    candidates: int
    kept: int
    score: float | None
    equal_kept: int
    equal_dropped: int


def number_samples(row_starts: np.ndarray, together: np.ndarray) -> np.ndarray:
    """Numbers the samples that texts belong to, in the order of the data.

    Args:
        row_starts (`np.ndarray`): Bool `(texts,)`, true at the first text of each row.
        together (`np.ndarray`): Bool `(texts,)`, true where all texts of the row are one sample.

    Returns:
        `np.ndarray`: Int64 `(texts,)`: 0, …, ascending.

    Example:
        >>> number_samples(np.array([True, False, True, False]), np.array([False, False, True, True]))
        array([0, 1, 2, 2])
    """
    begins = row_starts | ~together
    if begins.size:
        begins[0] = True
    return np.cumsum(begins) - 1


def first_texts(samples: np.ndarray) -> np.ndarray:
    """Returns the place of each sample's first text, int64 `(samples,)`."""
    return np.flatnonzero(np.diff(samples, prepend=-1))


def sample_scores(
    samples: np.ndarray, scores: np.ndarray, complete: np.ndarray, aggregate: str = "mean"
) -> np.ndarray:
    """Returns one score per sample.

    Args:
        samples (`np.ndarray`): From [`number_samples`].
        scores (`np.ndarray`): Float32 `(texts,)`, NaN where a text has no score.
        complete (`np.ndarray`): Bool `(texts,)`: whether the sample is nothing without this text.
        aggregate (`str`): `"mean"` or `"min"` of the scores of a sample's texts.

    Returns:
        `np.ndarray`: Float32 `(samples,)`; NaN where no text has a score, or one of which it is nothing without.

    Raises:
        ValueError: An unknown aggregate.
    """
    if aggregate not in AGGREGATES:
        raise OptionError(f"the aggregate is {aggregate!r}, expected one of {', '.join(AGGREGATES)}")
    first = first_texts(samples)
    if not first.size:
        return np.zeros(0, np.float32)
    fine = np.isfinite(scores)
    count = np.add.reduceat(fine, first, dtype=np.int64)
    if aggregate == "min":
        out = np.minimum.reduceat(np.where(fine, scores, np.float32(np.inf)), first)
    else:
        total = np.add.reduceat(np.where(fine, scores, np.float32(0)), first, dtype=np.float64)
        out = (total / np.maximum(count, 1)).astype(np.float32)
    spoilt = np.logical_or.reduceat(~fine & complete, first)
    out[(count == 0) | spoilt] = np.nan
    return out


def count_of(fraction: float, candidates: int) -> int:
    """Returns how many samples a fraction is: rounded, halves up, and exactly as the fraction is written.

    Example:
        >>> count_of(0.3, 5), count_of(0.29, 50)  # 1.5 and 14.5
        (2, 15)
    """
    return int(Fraction(str(fraction)) * candidates + Fraction(1, 2))


def cut(
    scores: np.ndarray,
    strata: np.ndarray,
    *,
    keep: float | None = None,
    threshold: float | None = None,
    counts: np.ndarray | None = None,
    images: np.ndarray | None = None,
) -> tuple[np.ndarray, list[Cut]]:
    """Keeps the best samples of each stratum.

    Of equal scores at the cut, the samples that come first in the data are kept.

    Args:
        scores (`np.ndarray`): Float32 `(samples,)`; NaN where a sample cannot be kept.
        strata (`np.ndarray`): Int `(samples,)`: the number, from 0, of the stratum that a sample is in.
        keep (`float`, *optional*): The fraction of each stratum that is kept, in (0, 1]; see [`count_of`].
        threshold (`float`, *optional*): Samples of this score or a higher one are kept.
        counts (`np.ndarray`, *optional*): Int: how many are kept of each stratum.
        images (`np.ndarray`, *optional*): Int `(samples,)`: the number of a sample's image. The best sample of every
            image then comes before the second best of any, and so on, whatever their scores.

    Returns:
        `tuple`: Bool `(samples,)`, and a [`Cut`] for each stratum that has samples (also where none can be kept).

    Raises:
        ValueError: Not exactly one of the three ways is given, or the fraction is outside (0, 1].
    """
    if sum(way is not None for way in (keep, threshold, counts)) != 1:
        raise OptionError("give one of `keep`, `threshold` and `counts`")
    if keep is not None and not 0 < keep <= 1:
        raise OptionError(f"the fraction to keep is {keep}, expected more than 0 and at most 1")
    kept = np.zeros(len(scores), bool)
    places = np.flatnonzero(np.isfinite(scores))
    rank = np.zeros(len(scores), np.int64) if images is None else ranks(scores, strata, images)
    # Ascending by stratum, descending by score; lexsort is stable, so that equal scores stay in the data's order.
    order = places[np.lexsort((-scores[places], rank[places], strata[places]))]
    found = np.unique(strata)
    begins = np.searchsorted(strata[order], found, "left")
    ends = np.searchsorted(strata[order], found, "right")
    cuts = []
    for stratum, begin, end in zip(found.tolist(), begins.tolist(), ends.tolist(), strict=True):
        own = order[begin:end]
        if threshold is not None:
            count = int(np.count_nonzero(scores[own] >= np.float32(threshold)))  # so that a score of 0.7 is >= 0.7
        else:
            count = count_of(keep, len(own)) if counts is None else min(int(counts[stratum]), len(own))  # type: ignore
        kept[own[:count]] = True
        cuts.append(_described(stratum, scores[own], rank[own], count))
    return kept, cuts


def _described(stratum: int, ordered: np.ndarray, rank: np.ndarray, count: int) -> Cut:
    if count == 0:
        return Cut(stratum, len(ordered), 0, None, 0, 0)
    equal = (ordered == ordered[count - 1]) & (rank == rank[count - 1])
    lowest = float(ordered[:count].min())
    return Cut(stratum, len(ordered), count, lowest, int(equal[:count].sum()), int(equal[count:].sum()))


def ranks(scores: np.ndarray, strata: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Returns which of its image's samples in its stratum each sample is by score: 0 the best; NaN comes last.

    Args:
        scores (`np.ndarray`): Float32 `(samples,)`.
        strata, images (`np.ndarray`): Int `(samples,)`: their numbers.

    Returns:
        `np.ndarray`: Int64 `(samples,)`.

    Example:
        >>> ranks(np.array([1, 3, 2], np.float32), np.zeros(3, int), np.array([7, 7, 8]))
        array([1, 0, 0])
    """
    order = np.lexsort((-scores, images, strata))
    begins = (np.diff(images[order], prepend=-1) != 0) | (np.diff(strata[order], prepend=-1) != 0)
    places = np.arange(len(scores))
    found = np.empty(len(scores), np.int64)
    found[order] = places - np.maximum.accumulate(np.where(begins, places, 0))
    return found


def lower_duplicates(groups: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Finds all but the best of each group; of equal scores the first in the data counts as the best.

    Args:
        groups (`np.ndarray`): Int `(samples,)`: the number of the group that a sample is in.
        scores (`np.ndarray`): Float32 `(samples,)`; a sample of NaN neither counts as the best nor is found.

    Returns:
        `np.ndarray`: Bool `(samples,)`.

    Example:
        >>> lower_duplicates(np.array([0, 0, 1, 0]), np.array([1, 3, 2, 3], np.float32))
        array([ True, False, False,  True])
    """
    places = np.flatnonzero(np.isfinite(scores))
    order = places[np.lexsort((-scores[places], groups[places]))]
    best = np.diff(groups[order], prepend=-1) != 0
    found = np.zeros(len(scores), bool)
    found[order[~best]] = True
    return found


def group_means(groups: np.ndarray, scores: np.ndarray, count: int) -> np.ndarray:
    """Returns the mean score of each group.

    Args:
        groups (`np.ndarray`): Int `(samples,)`: 0 to `count` - 1.
        scores (`np.ndarray`): Float32 `(samples,)`; NaN is left out.
        count (`int`): How many groups there are.

    Returns:
        `np.ndarray`: Float32 `(count,)`, NaN for a group without a score.
    """
    fine = np.isfinite(scores)
    number = np.bincount(groups[fine], minlength=count)
    total = np.bincount(groups[fine], weights=scores[fine], minlength=count)
    with np.errstate(invalid="ignore"):
        return (total / number).astype(np.float32)


def histogram(scores: np.ndarray, low: float, high: float, bins: int) -> np.ndarray:
    """Counts scores in equal bins from `low` to `high`; what lies outside counts in the outermost bins.

    Args:
        scores (`np.ndarray`): Float32 `(n,)`, finite.
        low, high (`float`): The range, `low` < `high`.
        bins (`int`): How many.

    Returns:
        `np.ndarray`: Int64 `(bins,)`.
    """
    places = ((scores.astype(np.float64) - low) / (high - low) * bins).astype(np.int64)
    return np.bincount(np.clip(places, 0, bins - 1), minlength=bins)


# What becomes of a sample.
ERROR, EXCLUDED, COPY, NEAR, DROPPED, KEPT = range(6)


@dataclass
class Samples:
    """The samples of scored data, by columns of `(samples,)`.

    Args:
        score (`np.ndarray`): Float32; NaN where a sample cannot be used.
        first (`np.ndarray`): Int64: the place of its first text among all texts.
        row (`np.ndarray`): Int64: the number of the row that it is (of).
        texts (`np.ndarray`): Int64: how many texts it has that can be used; of one that cannot, how many it has.
        tokens (`np.ndarray`): Int64: how many tokens these are together.
        source, label (`np.ndarray`): Int: number of the source and of the class, of `sources` and `labels`.
        sources, labels (`list[str]`): Their names.
        status (`np.ndarray`): Int8: what becomes of it, such as [`KEPT`].
        other (`np.ndarray`, *optional*): Float32: scores to compare with, NaN where there is none.
    """

    score: np.ndarray
    first: np.ndarray
    row: np.ndarray
    texts: np.ndarray
    tokens: np.ndarray
    source: np.ndarray
    label: np.ndarray
    sources: list[str]
    labels: list[str]
    status: np.ndarray
    other: np.ndarray | None = None

    def candidates(self) -> np.ndarray:
        """Returns which samples a cut chooses from."""
        return self.status >= DROPPED

    def strata(self, by: str) -> tuple[np.ndarray, list[str]]:
        """Returns the numbers of the samples' strata, and the names of these: `by` source, label or none."""
        if by == "none":
            return np.zeros(len(self.score), np.int64), ["all"]
        return (self.source, self.sources) if by == "source" else (self.label, self.labels)
