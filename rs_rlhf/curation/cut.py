"""Top-k and threshold selection of scored samples, by stratum, in NumPy.

A *sample* is what is kept or dropped as a whole: one text, or a row with all its texts. Everything works on columns
(one value per text or per sample), so that a choice among millions takes seconds. A score of NaN marks a sample that
cannot be kept: it has no score, was excluded before, or is a duplicate.

Left out: cuts by several folders' scores at once, and sampling in proportion to the score.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from ..errors import OptionError
from .options import AGGREGATES

# The fates of a sample; a cut chooses among those from DROPPED on.
ERROR, UNSURE, EXCLUDED, COPY, NEAR, DROPPED, KEPT = range(7)


@dataclass
class Cut:
    """What a cut did in one stratum."""

    stratum: int
    candidates: int  # samples that could be kept
    kept: int  # samples that are kept
    score: float | None  # the lowest score kept
    equal_kept: int  # samples with exactly that score that are kept
    equal_dropped: int  # and that are dropped because they come later in the data


@dataclass
class Samples:
    """The samples of scored data, as columns of shape `(samples,)`."""

    score: np.ndarray  # float32; NaN if the sample cannot be used
    first: np.ndarray  # int64: the position of its first text among all texts
    row: np.ndarray  # int64: the number of its row
    texts: np.ndarray  # int64: its usable texts; all its texts if it cannot be used
    tokens: np.ndarray  # int64: the tokens of these texts
    source: np.ndarray  # int: index into `sources`
    label: np.ndarray  # int: index into `labels`
    sources: list[str]
    labels: list[str]
    status: np.ndarray  # int8: its fate, such as KEPT
    other: np.ndarray | None = None  # float32: scores to compare with, NaN if there is none
    std: np.ndarray | None = None  # float32: the largest of its texts' `score_std`, NaN of one model's scores

    def candidates(self) -> np.ndarray:
        """Returns which samples a cut chooses from."""
        return self.status >= DROPPED

    def candidate_scores(self) -> np.ndarray:
        """Returns the scores, NaN for samples that are no candidates."""
        return np.where(self.candidates(), self.score, np.float32(np.nan))

    def bounds(self, number: int, texts: int) -> tuple[int, int]:
        """Returns where the texts of a sample begin and end among all `texts` texts."""
        end = self.first[number + 1] if number + 1 < len(self.first) else texts
        return int(self.first[number]), int(end)

    def strata(self, by: str) -> tuple[np.ndarray, list[str]]:
        """Returns the stratum of each sample and the names of the strata: `by` is source, label or none."""
        if by == "none":
            return np.zeros(len(self.score), np.int64), ["all"]
        return (self.source, self.sources) if by == "source" else (self.label, self.labels)


def number_samples(row_starts: np.ndarray, together: np.ndarray) -> np.ndarray:
    """Numbers the samples that texts belong to: 0, …, ascending, int64 `(texts,)`.

    Args:
        row_starts (`np.ndarray`): Bool `(texts,)`, true at the first text of each row.
        together (`np.ndarray`): Bool `(texts,)`, true if all texts of the row are one sample.

    Example:
        >>> number_samples(np.array([True, False, True, False]), np.array([False, False, True, True]))
        array([0, 1, 2, 2])
    """
    starts = row_starts | ~together
    starts[:1] = True
    return np.cumsum(starts) - 1


def first_texts(samples: np.ndarray) -> np.ndarray:
    """Returns the position of each sample's first text, int64 `(samples,)`."""
    return np.flatnonzero(np.diff(samples, prepend=-1))


def sample_scores(
    samples: np.ndarray, scores: np.ndarray, complete: np.ndarray, aggregate: str = "mean"
) -> np.ndarray:
    """Returns one score per sample, float32 `(samples,)`; NaN if no text, or not every text that it needs, has one.

    `samples` are those of [`number_samples`], `scores` float32 `(texts,)`, NaN for a text without a score, `complete`
    bool `(texts,)`: whether the sample needs it. `aggregate` is `"mean"` or `"min"`, or an [`OptionError`].
    """
    if aggregate not in AGGREGATES:
        raise OptionError(f"the aggregate is {aggregate!r}, expected one of {', '.join(AGGREGATES)}", "aggregate")
    first = first_texts(samples)
    if not first.size:
        return np.zeros(0, np.float32)
    finite = np.isfinite(scores)
    count = np.add.reduceat(finite, first, dtype=np.int64)
    if aggregate == "min":
        result = np.minimum.reduceat(np.where(finite, scores, np.float32(np.inf)), first)
    else:
        total = np.add.reduceat(np.where(finite, scores, np.float32(0)), first, dtype=np.float64)
        result = (total / np.maximum(count, 1)).astype(np.float32)
    result[(count == 0) | np.logical_or.reduceat(~finite & complete, first)] = np.nan
    return result


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
        scores (`np.ndarray`): Float32 `(samples,)`; NaN for a sample that cannot be kept.
        strata (`np.ndarray`): Int `(samples,)`: the stratum of each sample, from 0.
        keep (`float`, *optional*): The fraction of each stratum to keep, in (0, 1]; see [`count_of`].
        threshold (`float`, *optional*): The lowest score to keep.
        counts (`np.ndarray`, *optional*): Int: how many to keep of each stratum.
        images (`np.ndarray`, *optional*): Int `(samples,)`: the image of each sample. The best sample of every image
            then comes before the second best of any image, and so on, whatever their scores.

    Returns:
        `tuple`: Bool `(samples,)`, and a [`Cut`] for each stratum that has samples, even if none can be kept.

    Raises:
        OptionError: The fraction is outside (0, 1].
        ValueError: Not exactly one of `keep`, `threshold` and `counts` is given.
    """
    if sum(way is not None for way in (keep, threshold, counts)) != 1:
        raise ValueError("give one of `keep`, `threshold` and `counts`")
    if keep is not None and not 0 < keep <= 1:
        raise OptionError(f"the fraction to keep is {keep}, expected more than 0 and at most 1", "keep")
    kept = np.zeros(len(scores), bool)
    finite = np.flatnonzero(np.isfinite(scores))
    rank = np.zeros(len(scores), np.int64) if images is None else ranks(scores, strata, images)
    # Ascending by stratum, descending by score; lexsort is stable, so that equal scores stay in the data's order.
    order = finite[np.lexsort((-scores[finite], rank[finite], strata[finite]))]
    numbers = np.unique(strata)
    begins, ends = (np.searchsorted(strata[order], numbers, side) for side in ("left", "right"))
    cuts = []
    for stratum, begin, end in zip(numbers.tolist(), begins.tolist(), ends.tolist(), strict=True):
        members = order[begin:end]
        if threshold is not None:
            count = int(np.count_nonzero(scores[members] >= np.float32(threshold)))  # a float32 0.7 is >= 0.7
        elif keep is not None:
            count = count_of(keep, len(members))
        else:
            count = min(int(counts[stratum]), len(members))  # type: ignore[index]  # one of the three is given
        kept[members[:count]] = True
        cuts.append(_described(stratum, scores[members], rank[members], count))
    return kept, cuts


def _described(stratum: int, ordered: np.ndarray, rank: np.ndarray, count: int) -> Cut:
    if count == 0:
        return Cut(stratum, len(ordered), 0, None, 0, 0)
    equal = (ordered == ordered[count - 1]) & (rank == rank[count - 1])
    lowest = float(ordered[:count].min())
    return Cut(stratum, len(ordered), count, lowest, int(equal[:count].sum()), int(equal[count:].sum()))


def ranks(scores: np.ndarray, strata: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Returns each sample's rank by score among its image's samples in its stratum: 0 is the best; NaN comes last.

    All arrays are `(samples,)`: float32 scores, int numbers of strata and images, int64 ranks.

    Example:
        >>> ranks(np.array([1, 3, 2], np.float32), np.zeros(3, int), np.array([7, 7, 8]))
        array([1, 0, 0])
    """
    order = np.lexsort((-scores, images, strata))
    starts = (np.diff(images[order], prepend=-1) != 0) | (np.diff(strata[order], prepend=-1) != 0)
    positions = np.arange(len(scores))
    result = np.empty(len(scores), np.int64)
    result[order] = positions - np.maximum.accumulate(np.where(starts, positions, 0))
    return result


def lower_duplicates(groups: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Marks all but the best sample of each group, bool `(samples,)`; of equal scores the first is the best.

    A sample with a score of NaN is neither the best nor marked.

    Example:
        >>> lower_duplicates(np.array([0, 0, 1, 0]), np.array([1, 3, 2, 3], np.float32))
        array([ True, False, False,  True])
    """
    finite = np.flatnonzero(np.isfinite(scores))
    order = finite[np.lexsort((-scores[finite], groups[finite]))]
    marked = np.zeros(len(scores), bool)
    marked[order[np.diff(groups[order], prepend=-1) == 0]] = True
    return marked


def group_means(groups: np.ndarray, scores: np.ndarray, count: int) -> np.ndarray:
    """Returns the mean score of each group 0 to `count` - 1, float32 `(count,)`; scores of NaN are left out.

    A group without a score has a mean of NaN.
    """
    finite = np.isfinite(scores)
    number = np.bincount(groups[finite], minlength=count)
    total = np.bincount(groups[finite], weights=scores[finite], minlength=count)
    with np.errstate(invalid="ignore"):
        return (total / number).astype(np.float32)


def histogram(scores: np.ndarray, low: float, high: float, bins: int) -> np.ndarray:
    """Counts finite scores in equal bins from `low` to `high`, int64 `(bins,)`; the outer bins hold the rest."""
    positions = ((scores.astype(np.float64) - low) / (high - low) * bins).astype(np.int64)
    return np.bincount(np.clip(positions, 0, bins - 1), minlength=bins)
