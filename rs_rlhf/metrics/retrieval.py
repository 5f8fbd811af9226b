"""Figures of dual encoders: zero-shot classification, and retrieval of texts and images.

Zero-shot classification follows CLIP (Radford et al. 2021, arXiv 2103.00020) and the ScoreRS protocol (arXiv
2503.00743): an image's class is the one of the greatest cosine. Retrieval gives R@1, R@5 and R@10 both ways, as
RemoteCLIP (arXiv 2306.11029) and ScoreRS do.

Conventions of retrieval. An image's right texts are all its captions, and its rank is that of the best of them; a
text's right image is its own alone. Texts are told apart by their place, as published: if another image has the same
caption, that counts as another image's, although no model could tell; how many captions are shared is reported. Equal
cosines are ranked in the order of the data, and equal captions are given equal cosines, so that no rounding decides.

Left out: relevance by class, deduplicated protocols, nearest-neighbour indexes (all cosines are computed, in blocks).
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import DataError, OptionError
from .intervals import bootstrap_draws, proportion, wilson_interval

RECALL_AT = (1, 5, 10)
_BLOCK = 1 << 24  # cosines held at a time: 64 MiB in float32


def zero_shot_record(
    image_features: np.ndarray, class_features: np.ndarray, names: Sequence[str], reference: str
) -> dict[str, Any]:
    """Classifies one image.

    Args:
        image_features (`np.ndarray`): Its unit vector, of shape (D,).
        class_features (`np.ndarray`): Those of the classes, of shape (C, D).
        names (sequence of `str`): The classes' names.
        reference (`str`): The right one.

    Returns:
        `dict`: `answer` (the nearest class), `scores` (up to five `[name, cosine]`, the nearest first), `rank` of the
        right class from 1 (of equal cosines the earlier class comes first), `strict` (whether that is 1) and
        `references`.

    Raises:
        DataError: The reference is no class.
    """
    if reference not in names:
        raise DataError(
            f"the class {reference!r} is none of the {len(names)} names, such as {names[0]!r}; correct "
            "the reference or the benchmark's class_names",
            "reference",
        )
    scores = (class_features @ image_features).tolist()
    order = sorted(range(len(names)), key=lambda i: -scores[i])  # stable
    rank = order.index(list(names).index(reference)) + 1
    return {
        "answer": names[order[0]],
        "scores": [[names[i], round(scores[i], 6)] for i in order[:5]],
        "rank": rank,
        "strict": rank == 1,
        "references": [reference],
    }


def zero_shot_figures(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Summarises zero-shot classification.

    Args:
        records (sequence of `dict`): Of [`zero_shot_record`], with `rank` and `references`.

    Returns:
        `dict`: `n`; `accuracy` (top-1) and its 95% Wilson `interval`; `metrics` with `top1`, `top5` and
        `mean_class_accuracy` (the mean of the classes' own accuracies, each class counting alike) and `intervals` of
        `top1` and `top5`; `classes`: for each the same of its own images, `n`, `accuracy` and `interval`.

    Raises:
        OptionError: No records.
    """
    n = _count(records)
    hits = {f"top{k}": sum(record["rank"] <= k for record in records) for k in (1, 5)}
    parts: dict[str, list[bool]] = {}
    for record in records:
        parts.setdefault(record["references"][0], []).append(record["rank"] == 1)
    classes = {name: proportion(sum(hit), len(hit)) for name, hit in sorted(parts.items())}
    mean = sum(part["accuracy"] for part in classes.values()) / len(classes)
    intervals = {name: list(wilson_interval(right, n)) for name, right in hits.items()}
    return {
        **proportion(hits["top1"], n),
        "metrics": {**{name: right / n for name, right in hits.items()}, "mean_class_accuracy": mean},
        "intervals": intervals,
        "classes": classes,
    }


def _count(records: Sequence[Mapping[str, Any]]) -> int:
    if not records:
        raise OptionError("no records to summarise; evaluate at least one image.")
    return len(records)


def packed(vector: np.ndarray) -> str:
    """Returns a vector as little-endian float32 in base64, as records store it."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def rank_retrieval(raws: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Ranks every image's captions among all texts, and every caption's image among all images.

    Args:
        raws (sequence of `dict`): All records, in the order of the data: `image_features` and `text_features` (one
            for each caption) as [`packed`] gives them, `captions`, and whatever else was stored beside. Records that
            are ranked already are returned as they are.

    Returns:
        `list[dict]`: The records without vectors and captions, with `image_to_text_rank` (that of the best caption,
        from 1), `text_to_image_ranks` (one for each caption) and `shared_captions` (how many of the captions another
        image has, too); see the module for ties.

    Raises:
        OptionError: Some records are ranked and some not, or their vectors are of different lengths.
    """
    ranked = sum("image_to_text_rank" in raw for raw in raws)
    if ranked == len(raws):
        return [dict(raw) for raw in raws]
    if ranked:
        raise OptionError(
            f"{ranked} of {len(raws)} records are ranked already; ranks are of one set of images and "
            "texts, so evaluate all of it anew."
        )
    owner = np.repeat(np.arange(len(raws)), [len(raw["captions"]) for raw in raws])
    captions = [caption for raw in raws for caption in raw["captions"]]
    # What is the same is encoded once: the last bits of a vector depend on the batch that it was encoded in.
    texts, text_at = _distinct(captions, [text for raw in raws for text in raw["text_features"]])
    pictures = [raw["image_features"] for raw in raws]
    images, image_at = _distinct(pictures, pictures)
    if images.shape[1] != texts.shape[1]:
        raise OptionError(
            f"image vectors of {images.shape[1]} and text vectors of {texts.shape[1]} numbers; the "
            "records are of different models: evaluate anew."
        )
    to_text = _image_to_text(images[image_at], texts, text_at, owner)
    blocks = _blocks(len(owner), len(image_at))
    to_image = np.concatenate([_ranks((texts[text_at][at] @ images.T)[:, image_at], owner[at]) for at in blocks])
    images_of = Counter(caption for caption, _ in set(zip(captions, owner.tolist(), strict=True)))
    shared = np.array([images_of[caption] > 1 for caption in captions])
    records = []
    for i, raw in enumerate(raws):
        kept = {k: v for k, v in raw.items() if k not in ("image_features", "text_features", "captions")}
        own = slice(*np.searchsorted(owner, (i, i + 1)))
        ranks = {"image_to_text_rank": int(to_text[i]), "text_to_image_ranks": to_image[own].tolist()}
        records.append({**kept, **ranks, "shared_captions": int(shared[own].sum())})
    return records


def _distinct(keys: Sequence[str], stored: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of the distinct keys (U, D), each that of its first place, and for each place its number among them."""
    number: dict[str, int] = {}
    vectors: list[np.ndarray] = []
    for key, text in zip(keys, stored, strict=True):
        if number.setdefault(key, len(number)) == len(vectors):
            vectors.append(np.frombuffer(base64.b64decode(text), "<f4"))
    if len({len(vector) for vector in vectors}) != 1:
        raise OptionError("the stored vectors are of different lengths; they are of different models: evaluate anew.")
    return np.stack(vectors), np.array([number[key] for key in keys])


def _blocks(count: int, width: int) -> Iterator[slice]:
    size = max(1, _BLOCK // width)
    yield from (slice(start, min(start + size, count)) for start in range(0, count, size))


def _ranks(scores: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Rank (B,) from 1 of the place of each row of scores (B, M); of equal scores the earlier comes first."""
    own = np.take_along_axis(scores, places[:, None], 1)
    before = np.arange(scores.shape[1]) < places[:, None]
    return 1 + (scores > own).sum(1) + ((scores == own) & before).sum(1)


def _image_to_text(images: np.ndarray, texts: np.ndarray, text_at: np.ndarray, owner: np.ndarray) -> np.ndarray:
    starts = np.searchsorted(owner, np.arange(len(images) + 1))
    ranks = []
    for block in _blocks(len(images), len(owner)):
        scores = (images[block] @ texts.T)[:, text_at]
        bounds = zip(starts[:-1][block], starts[1:][block], strict=True)
        best = [start + row[start:stop].argmax() for row, (start, stop) in zip(scores, bounds, strict=True)]
        ranks.append(_ranks(scores, np.array(best)))
    return np.concatenate(ranks)


def retrieval_figures(records: Sequence[Mapping[str, Any]], seed: int = 0, rounds: int = 2000) -> dict[str, Any]:
    """Summarises retrieval.

    Args:
        records (sequence of `dict`): Of [`rank_retrieval`].
        seed, rounds (`int`): Of the bootstrap.

    Returns:
        `dict`: `n` images, `texts`, `shared_captions` (texts that another image has, too), `truncated` texts;
        `metrics`: shares `image_to_text_R@1`, `@5`, `@10`, `text_to_image_R@…`, and `mean_recall`, the mean of the
        six; `intervals` of each at 95%: Wilson's for images, and for the others a percentile bootstrap over images,
        since the captions of one image are no independent draws.

    Raises:
        OptionError: No records.
    """
    n = _count(records)
    ranks = np.array([record["image_to_text_rank"] for record in records])
    counts = np.array([len(record["text_to_image_ranks"]) for record in records])
    hits = {f"image_to_text_R@{k}": ranks <= k for k in RECALL_AT}
    hits |= {
        f"text_to_image_R@{k}": np.array([sum(rank <= k for rank in one["text_to_image_ranks"]) for one in records])
        for k in RECALL_AT
    }
    table = np.array(list(hits.values()), float)  # (6, n)
    sizes = np.array([np.ones(n) if name.startswith("image") else counts for name in hits])
    recalls = table.sum(1) / sizes.sum(1)
    draws = []
    for drawn in bootstrap_draws(n, rounds, seed):
        weights = np.bincount(drawn, minlength=n)
        draws.append((table @ weights) / (sizes @ weights))
    low, high = np.quantile(draws, (0.025, 0.975), axis=0)
    mean_low, mean_high = np.quantile(np.mean(draws, 1), (0.025, 0.975))
    intervals = {name: [float(low[i]), float(high[i])] for i, name in enumerate(hits)}
    intervals |= {f"image_to_text_R@{k}": list(wilson_interval(int(sum(ranks <= k)), n)) for k in RECALL_AT}
    return {
        "n": n,
        "texts": int(counts.sum()),
        "shared_captions": sum(record["shared_captions"] for record in records),
        "truncated": sum(record["truncated"] for record in records),
        "metrics": {**dict(zip(hits, recalls.tolist(), strict=True)), "mean_recall": float(recalls.mean())},
        "intervals": {**intervals, "mean_recall": [float(mean_low), float(mean_high)]},
    }
