"""Figures of dual encoders: zero-shot classification, and retrieval of texts and images.

Zero-shot classification follows CLIP (Radford et al. 2021, arXiv 2103.00020) and the ScoreRS protocol (arXiv
2503.00743): an image's class is the one of the greatest cosine. Retrieval gives R@1, R@5 and R@10 both ways, as
RemoteCLIP (arXiv 2306.11029) and ScoreRS do.

Retrieval is measured by two rules, since captions that several images share move R@1 by points. By the rule of
RemoteCLIP every caption is a query and an answer by its place: an image's right texts are all its captions, a text's
right image is its own alone, and the same caption of another image is another image's. By the rule of ScoreRS (the
authors' `eval_retrieval.py`) every distinct text counts once, and any image that has it is right; its figures end in
`_distinct`. By both, a rank is that of the best right answer. Equal cosines are ranked in the order of the data, and
equal captions are given equal cosines, so that no rounding decides.

Left out: relevance by class, nearest-neighbour indexes (all cosines are computed, in blocks).
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import DataError, OptionError
from .intervals import bootstrap_draws, proportion, wilson_interval

RECALL_AT = (1, 5, 10)
RULES = {
    "R@k": "every caption is a query, and right is its own image alone (RemoteCLIP)",
    "R@k_distinct": "every distinct text is one query, and right is any image that has it (ScoreRS)",
}
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
    """Ranks every image's captions among all texts, and every caption's images among all images.

    Args:
        raws (sequence of `dict`): All records, in the order of the data: `image_features` and `text_features` (one
            for each caption) as [`packed`] gives them, `captions`, and whatever else was stored beside. Records that
            are ranked already are returned as they are.

    Returns:
        `list[dict]`: The records without vectors and captions, with `image_to_text_rank` (that of the best caption,
        from 1), `text_to_image_ranks` (one for each caption), both again for distinct texts as
        `image_to_text_rank_distinct` and `text_to_image_ranks_distinct` (one for each text that no earlier image has),
        and `shared_captions` (how many of the captions another image has, too); see the module for rules and ties.

    Raises:
        OptionError: Some records are ranked and some not, or by one rule only, or their vectors are of different
            lengths.
    """
    ranked = sum("image_to_text_rank" in raw for raw in raws)
    if ranked and (ranked < len(raws) or any("image_to_text_rank_distinct" not in raw for raw in raws)):
        raise OptionError(
            f"{ranked} of {len(raws)} records are ranked already, or by one rule only; ranks are of one set of images "
            "and texts, so evaluate all of it anew."
        )
    if ranked:
        return [dict(raw) for raw in raws]
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
    own = np.split(np.arange(len(owner)), np.searchsorted(owner, np.arange(1, len(raws))))  # places of captions
    owners = [np.array(sorted(set(found))) for found in _grouped(text_at, owner, len(texts))]
    every = np.arange(len(texts))
    to_text = _ranks(images[image_at], texts, text_at, own)
    to_image = _ranks(texts[text_at], images, image_at, owner[:, None])
    distinct_to_text = _ranks(images[image_at], texts, every, [np.unique(text_at[places]) for places in own])
    distinct_to_image = _ranks(texts, images, image_at, owners)
    shared = np.array([len(owners[text]) > 1 for text in text_at])
    records = []
    for i, (raw, places) in enumerate(zip(raws, own, strict=True)):
        kept = {k: v for k, v in raw.items() if k not in ("image_features", "text_features", "captions")}
        new = [text for text in dict.fromkeys(text_at[places].tolist()) if owners[text][0] == i]
        records.append(
            {
                **kept,
                "image_to_text_rank": int(to_text[i]),
                "text_to_image_ranks": to_image[places].tolist(),
                "image_to_text_rank_distinct": int(distinct_to_text[i]),
                "text_to_image_ranks_distinct": distinct_to_image[new].tolist(),
                "shared_captions": int(shared[places].sum()),
            }
        )
    return records


def _grouped(keys: np.ndarray, values: np.ndarray, count: int) -> list[list[int]]:
    groups: list[list[int]] = [[] for _ in range(count)]
    for key, value in zip(keys.tolist(), values.tolist(), strict=True):
        groups[key].append(value)
    return groups


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


def _ranks(
    queries: np.ndarray, vectors: np.ndarray, at: np.ndarray, right: Sequence[np.ndarray] | np.ndarray
) -> np.ndarray:
    """Rank from 1 of the best right answer to each query (Q, D) among the answers `vectors[at]` (A, D).

    `right` are the places of each query's right answers; of equal scores the earlier place comes first.
    """
    ranks = [np.zeros(0, int)]
    for block in _blocks(len(queries), len(at)):
        scores = (queries[block] @ vectors.T)[:, at]
        best = np.array([own[row[own].argmax()] for row, own in zip(scores, right[block], strict=True)])[:, None]
        score = np.take_along_axis(scores, best, 1)
        before = np.arange(len(at)) < best
        ranks.append(1 + (scores > score).sum(1) + ((scores == score) & before).sum(1))
    return np.concatenate(ranks)


def retrieval_figures(records: Sequence[Mapping[str, Any]], seed: int = 0, rounds: int = 2000) -> dict[str, Any]:
    """Summarises retrieval by both rules.

    Args:
        records (sequence of `dict`): Of [`rank_retrieval`].
        seed, rounds (`int`): Of the bootstrap.

    Returns:
        `dict`: `n` images, `texts`, `distinct_texts`, `shared_captions` (texts that another image has, too),
        `truncated` texts; `rules`: the [`RULES`]; `metrics`: shares `image_to_text_R@1`, `@5`, `@10`,
        `text_to_image_R@…`, and `mean_recall`, the mean of the six, and all seven again with `_distinct`; `intervals`
        of each at 95%: Wilson's for images, and for the others a percentile bootstrap over images, since the captions
        of one image are no independent draws.

    Raises:
        OptionError: No records.
    """
    n = _count(records)
    figures: dict[str, Any] = {"metrics": {}, "intervals": {}}
    for suffix in ("", "_distinct"):
        for key, values in _recalls(records, suffix, bootstrap_draws(n, rounds, seed)).items():
            figures[key] |= {f"{name}{suffix}": value for name, value in values.items()}
    return {
        "n": n,
        "texts": sum(len(record["text_to_image_ranks"]) for record in records),
        "distinct_texts": sum(len(record["text_to_image_ranks_distinct"]) for record in records),
        "shared_captions": sum(record["shared_captions"] for record in records),
        "truncated": sum(record["truncated"] for record in records),
        "rules": RULES,
        **figures,
    }


def _recalls(records: Sequence[Mapping[str, Any]], suffix: str, draws: Iterable[np.ndarray]) -> dict[str, Any]:
    """The `metrics` and `intervals` of one rule, whose ranks end in the suffix."""
    n = len(records)
    ranks = np.array([record[f"image_to_text_rank{suffix}"] for record in records])
    lists = [np.array(record[f"text_to_image_ranks{suffix}"]) for record in records]
    hits = {f"image_to_text_R@{k}": ranks <= k for k in RECALL_AT}
    hits |= {f"text_to_image_R@{k}": np.array([(own <= k).sum() for own in lists]) for k in RECALL_AT}
    table = np.array(list(hits.values()), float)  # (6, n)
    counts = np.array([len(own) for own in lists])
    sizes = np.array([np.ones(n) if name.startswith("image") else counts for name in hits])
    recalls = table.sum(1) / sizes.sum(1)
    weights = (np.bincount(drawn, minlength=n) for drawn in draws)
    # Images whose texts are all those of earlier images count for none: of a draw of such alone there is no share.
    drawn = np.array([(table @ weight) / np.maximum(sizes @ weight, 1) for weight in weights])
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    mean_low, mean_high = np.quantile(drawn.mean(1), (0.025, 0.975))
    intervals = {name: [float(low[i]), float(high[i])] for i, name in enumerate(hits)}
    intervals |= {f"image_to_text_R@{k}": list(wilson_interval(int(sum(ranks <= k)), n)) for k in RECALL_AT}
    return {
        "metrics": {**dict(zip(hits, recalls.tolist(), strict=True)), "mean_recall": float(recalls.mean())},
        "intervals": {**intervals, "mean_recall": [float(mean_low), float(mean_high)]},
    }
