"""Figures of a cut: counts by source and class, distributions of score and length, and agreement with other scores.

Left out: figures that need the texts or images themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from .cut import COPY, DROPPED, ERROR, EXCLUDED, KEPT, NEAR, UNSURE, Cut, Samples, cut, histogram

BINS = 24
CHARTS = 13  # histograms: of all samples, and of the largest sources
FATES = {
    ERROR: "error",
    UNSURE: "unsure",
    EXCLUDED: "excluded",
    COPY: "copy",
    NEAR: "near_duplicate",
    DROPPED: "dropped",
    KEPT: "kept",
}


def figures_of(samples: Samples, cuts: Sequence[Cut], by: str) -> dict[str, Any]:
    """Counts what a cut kept.

    Args:
        samples ([`Samples`]): With their final `status`.
        cuts (sequence of [`Cut`]): What the cut did in each stratum.
        by (`str`): What the strata are: `"source"`, `"label"` or `"none"`.

    Returns:
        `dict`: `samples`, `texts` and `rows` (`all`, and by fate, see `FATES`, `unsure` of several models' scores; a
        row counts wherever it has a sample), `strata` (of [`Cut`], with `name`), `sources` and `labels` (`name`,
        `samples`, `candidates`, `kept`, `share`, `mean`, `mean_kept`), `scores` and `lengths` (of `kept` and
        `dropped`: `n`, `mean`, `min`, `p10`, `median`, `p90`, `max`), `length_spearman`, `agreement` (or `None`) and
        `histograms`.
    """
    names = samples.strata(by)[1]
    several = samples.std is not None and bool(np.isfinite(samples.std).any())
    fates = {name: samples.status == fate for fate, name in FATES.items() if fate != UNSURE or several}
    parts = {name: fates[name] for name in ("kept", "dropped")}
    candidates = samples.candidates()
    return {
        "samples": {"all": len(samples.status)} | {name: int(which.sum()) for name, which in fates.items()},
        "texts": {"all": int(samples.texts.sum())} | {n: int(samples.texts[own].sum()) for n, own in fates.items()},
        "rows": {"all": _distinct(samples.row)} | {n: _distinct(samples.row[which]) for n, which in fates.items()},
        "strata": [{"name": names[made.stratum], **asdict(made)} for made in cuts],
        "sources": _by(samples, samples.source, samples.sources),
        "labels": _by(samples, samples.label, samples.labels) if any(samples.labels) else [],
        "scores": {name: _spread(samples.score[which]) for name, which in parts.items()},
        "lengths": {name: _spread(samples.tokens[which]) for name, which in parts.items()},
        "length_spearman": spearman(samples.score[candidates], samples.tokens[candidates]),
        "agreement": None if samples.other is None else _agreement(samples, samples.other, by),
        "histograms": _histograms(samples, cuts, by),
    }


def _distinct(rows: np.ndarray) -> int:
    """Counts distinct numbers in ascending order."""
    return int(np.count_nonzero(np.diff(rows, prepend=-1)))


def _by(samples: Samples, codes: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """Counts by source or class, the largest first."""
    candidates, kept = samples.candidates(), samples.status == KEPT

    def counted(which: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(codes[which], None if weights is None else weights[which], len(names))

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
    names = ("min", "p10", "median", "p90", "max")
    if not len(values):
        return {"n": 0, "mean": None} | dict.fromkeys(names)
    quantiles = np.quantile(values, [0, 0.1, 0.5, 0.9, 1]).tolist()
    mean = float(values.mean(dtype=np.float64))
    return {"n": len(values), "mean": mean} | dict(zip(names, quantiles, strict=True))


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Returns Spearman's rank correlation; `None` if one side is constant or there are fewer than three values."""
    from scipy.stats import spearmanr

    if len(a) < 3 or (a == a[0]).all() or (b == b[0]).all():
        return None
    return float(spearmanr(a, b).statistic)


def _agreement(samples: Samples, other: np.ndarray, by: str) -> dict[str, Any]:
    """Compares with what other scores of the same samples would keep, keeping as many of each stratum.

    Returns `n` samples that both have scored, `spearman`, `kept` of them, `both` (kept by both), `overlap`
    (`both` / `kept`), and `chance`: the overlap to expect of unrelated scores.
    """
    strata = samples.strata(by)[0]
    common = samples.candidates() & np.isfinite(other)
    kept = common & (samples.status == KEPT)
    counts, sizes = (np.bincount(strata[which], minlength=int(strata.max(initial=0)) + 1) for which in (kept, common))
    theirs, _ = cut(np.where(common, other, np.float32(np.nan)), strata, counts=counts)
    n, both = int(kept.sum()), int((kept & theirs).sum())
    return {
        "n": int(common.sum()),
        "spearman": spearman(samples.score[common], other[common]),
        "kept": n,
        "both": both,
        "overlap": both / n if n else None,
        "chance": float((counts**2 / np.maximum(sizes, 1)).sum() / n) if n else None,
    }


def _histograms(samples: Samples, cuts: Sequence[Cut], by: str) -> list[dict[str, Any]]:
    """Counts of scores, of all samples and of the largest sources, in the same bins."""
    candidates = samples.candidates()
    if not candidates.any():
        return []
    scores = samples.score[candidates]
    # The outermost bins also hold what lies beyond: an outlier must not squeeze all other scores into one bar.
    low = float(np.quantile(scores, 0.001, method="lower"))
    high = float(np.quantile(scores, 0.999, method="higher"))
    low, high = (low - 0.5, high + 0.5) if low == high else (low, high)
    lowest_kept = {made.stratum: made.score for made in cuts}
    sizes = np.bincount(samples.source[candidates], minlength=len(samples.sources))
    largest = [int(i) for i in np.argsort(-sizes, kind="stable")[: CHARTS - 1] if sizes[i]]
    histograms = []
    for source in [None, *(largest if len(largest) > 1 else [])]:
        which = candidates if source is None else candidates & (samples.source == source)
        counts = {
            name: histogram(samples.score[which & (samples.status == fate)], low, high, BINS).tolist()
            for name, fate in (("kept", KEPT), ("dropped", DROPPED))
        }
        stratum = 0 if by == "none" else source if by == "source" else None
        cut_at = None if stratum is None else lowest_kept.get(stratum)
        name = "all" if source is None else samples.sources[source]
        histograms.append({"name": name, "low": low, "high": high, **counts, "cut": cut_at})
    return histograms
