"""What a cut kept, in numbers: of each source and class, of each score and length, and against other scores.

Left out: figures that need the texts or images themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from .cut import COPY, DROPPED, ERROR, EXCLUDED, KEPT, NEAR, Cut, Samples, cut, histogram

BINS = 24
CHARTS = 13  # histograms: of all, and of the largest sources
FATES = {ERROR: "error", EXCLUDED: "excluded", COPY: "copy", NEAR: "near_duplicate", DROPPED: "dropped", KEPT: "kept"}


def figures_of(samples: Samples, cuts: Sequence[Cut], by: str) -> dict[str, Any]:
    """Counts what a cut kept.

    Args:
        samples ([`Samples`]): With their final `status`.
        cuts (sequence of [`Cut`]): What the cut did in each stratum.
        by (`str`): What the strata are: `"source"`, `"label"` or `"none"`.

    Returns:
        `dict`: `samples`, `texts` and `rows` (`all`, and by fate, see `FATES`; a row counts wherever it has a sample),
        `strata` (of [`Cut`], with `name`), `sources` and `labels` (`name`, `samples`, `candidates`, `kept`, `share`,
        `mean`, `mean_kept`), `scores` and `lengths` (of `kept` and `dropped`: `n`, `mean`, `min`, `p10`, `median`,
        `p90`, `max`), `length_spearman`, `agreement` (or `None`) and `histograms`.
    """
    names = samples.strata(by)[1]
    kept, dropped = samples.status == KEPT, samples.status == DROPPED
    fates = {name: samples.status == fate for fate, name in FATES.items()}
    candidates = samples.candidates()
    return {
        "samples": {"all": len(samples.status)} | {name: int(own.sum()) for name, own in fates.items()},
        "texts": {"all": int(samples.texts.sum())} | {n: int(samples.texts[own].sum()) for n, own in fates.items()},
        "rows": {"all": _distinct(samples.row)} | {n: _distinct(samples.row[own]) for n, own in fates.items()},
        "strata": [{"name": names[one.stratum], **asdict(one)} for one in cuts],
        "sources": _by(samples, samples.source, samples.sources),
        "labels": _by(samples, samples.label, samples.labels) if any(samples.labels) else [],
        "scores": {"kept": _spread(samples.score[kept]), "dropped": _spread(samples.score[dropped])},
        "lengths": {"kept": _spread(samples.tokens[kept]), "dropped": _spread(samples.tokens[dropped])},
        "length_spearman": spearman(samples.score[candidates], samples.tokens[candidates]),
        "agreement": None if samples.other is None else agreement(samples, by),
        "histograms": _histograms(samples, cuts, by),
    }


def _distinct(rows: np.ndarray) -> int:
    """Counts different numbers that ascend."""
    return int(np.count_nonzero(np.diff(rows, prepend=-1)))


def _by(samples: Samples, codes: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """Counts by source or class, the largest first."""
    candidates, kept = samples.candidates(), samples.status == KEPT

    def counted(which: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        own = None if weights is None else weights[which]
        return np.bincount(codes[which], weights=own, minlength=len(names))

    every, could, are = counted(np.ones(len(codes), bool)), counted(candidates), counted(kept)
    total, total_kept = counted(candidates, samples.score), counted(kept, samples.score)
    return [
        {
            "name": names[i],
            "samples": int(every[i]),
            "candidates": int(could[i]),
            "kept": int(are[i]),
            "share": are[i] / could[i] if could[i] else None,
            "mean": total[i] / could[i] if could[i] else None,
            "mean_kept": total_kept[i] / are[i] if are[i] else None,
        }
        for i in np.argsort(-every, kind="stable").tolist()
        if every[i]
    ]


def _spread(values: np.ndarray) -> dict[str, Any]:
    if not len(values):
        return {"n": 0} | dict.fromkeys(("mean", "min", "p10", "median", "p90", "max"))
    low, tenth, median, most, high = np.quantile(values, [0, 0.1, 0.5, 0.9, 1]).tolist()
    mean = float(values.mean(dtype=np.float64))
    return {"n": len(values), "mean": mean, "min": low, "p10": tenth, "median": median, "p90": most, "max": high}


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Returns Spearman's rank correlation; `None` where one side is always the same or there are fewer than three."""
    from scipy.stats import spearmanr

    if len(a) < 3 or (a == a[0]).all() or (b == b[0]).all():
        return None
    return float(spearmanr(a, b).statistic)


def agreement(samples: Samples, by: str) -> dict[str, Any]:
    """Compares with other scores of the same samples: what would they keep, were they to keep as many of each stratum?

    Returns:
        `dict`: `n` samples that both have scored, `spearman`, `kept` of them, `both` (kept by both), `overlap`
        (`both` / `kept`), and `chance`: the overlap to expect of unrelated scores.
    """
    assert samples.other is not None
    strata = samples.strata(by)[0]
    common = samples.candidates() & np.isfinite(samples.other)
    kept = common & (samples.status == KEPT)
    number = int(strata.max(initial=0)) + 1
    counts, sizes = (np.bincount(strata[which], minlength=number) for which in (kept, common))
    theirs, _ = cut(np.where(common, samples.other, np.float32(np.nan)), strata, counts=counts)
    n, both = int(kept.sum()), int((kept & theirs).sum())
    chance = float((counts**2 / np.maximum(sizes, 1)).sum() / n) if n else None
    found = {"n": int(common.sum()), "spearman": spearman(samples.score[common], samples.other[common])}
    return found | {"kept": n, "both": both, "overlap": both / n if n else None, "chance": chance}


def _histograms(samples: Samples, cuts: Sequence[Cut], by: str) -> list[dict[str, Any]]:
    """Counts of scores, of all samples and of the largest sources, in the same bins."""
    candidates = samples.candidates()
    if not candidates.any():
        return []
    scores = samples.score[candidates]
    # The outermost bins also hold what lies beyond: one odd score must not squeeze all others into one bar.
    low = float(np.quantile(scores, 0.001, method="lower"))
    high = float(np.quantile(scores, 0.999, method="higher"))
    low, high = (low - 0.5, high + 0.5) if low == high else (low, high)
    at = {one.stratum: one.score for one in cuts}
    sizes = np.bincount(samples.source[candidates], minlength=len(samples.sources))
    largest = [int(i) for i in np.argsort(-sizes, kind="stable")[: CHARTS - 1] if sizes[i]]
    made = []
    for number in [None, *(largest if len(largest) > 1 else [])]:
        own = candidates if number is None else candidates & (samples.source == number)
        stratum = 0 if by == "none" else number if by == "source" else None
        kept, dropped = (
            histogram(samples.score[own & (samples.status == fate)], low, high, BINS).tolist()
            for fate in (KEPT, DROPPED)
        )
        name = "all" if number is None else samples.sources[number]
        made.append(
            {
                "name": name,
                "low": low,
                "high": high,
                "kept": kept,
                "dropped": dropped,
                "cut": None if stratum is None else at.get(stratum),
            }
        )
    return made
