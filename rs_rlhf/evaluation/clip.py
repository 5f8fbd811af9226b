"""What a dual encoder is measured by: zero-shot classification, and retrieval of texts and images.

Zero-shot classification follows CLIP (Radford et al. 2021, arXiv 2103.00020) and the ScoreRS protocol (arXiv
2503.00743): a class is the mean of its templates' unit vectors, scaled to length 1, and an image's class is the one of
the greatest cosine. Retrieval gives R@1, R@5 and R@10 both ways, as RemoteCLIP (arXiv 2306.11029) and ScoreRS do.

Conventions of retrieval. An image's right texts are all its captions, and its rank is that of the best of them; a
text's right image is its own alone. Texts are told apart by their place, as published: where another image has the
same caption, that counts as another image's, although no model could tell; how many captions are shared is reported.
Equal cosines are ranked in the order of the data, and equal captions are given equal cosines, so that no rounding
decides.

Left out: relevance by class, deduplicated protocols, nearest-neighbour indexes (all cosines are computed, in blocks).
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.group import Group, ImageSource
from ..errors import DataError, OptionError
from ..metrics.intervals import wilson_interval

if TYPE_CHECKING:
    import torch

    from ..data.questions import QuestionRow
    from ..models.clip import ClipModel

RECALL_AT = (1, 5, 10)
_BLOCK = 1 << 24  # cosines held at a time: 64 MiB in float32


def encode_batches(
    model: ClipModel,
    rows: Sequence[QuestionRow],
    batch_size: int = 64,
    *,
    share: tuple[int, int] = (0, 1),
    done: Collection[int] = (),
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Encodes the image of every row, batch by batch.

    Batches are consecutive rows, whoever encodes them and whatever is done, so that work which is shared or resumed
    gives what it would have given in one go.

    Args:
        model ([`ClipModel`]): The encoder.
        rows (sequence of [`QuestionRow`]): Questions with one image each.
        batch_size (`int`): Rows of a batch.
        share (`tuple[int, int]`): `(rank, world)`: of the batches, every `world`-th from the `rank`-th on.
        done (collection of `int`): Places that are there already: a batch of only these is left out, any other is
            encoded whole.

    Yields:
        `tuple`: places in `rows`, and the unit vectors of their images, of shape (places, D).

    Raises:
        DataError: A row with no image, or several.
        ImageError: An image that cannot be read; names its file and row.
        ValueError: A batch size or share that is out of range.
    """
    from ..models.policies.sampling import consecutive_batches

    rank, world = share
    if batch_size < 1 or not 0 <= rank < world:
        raise OptionError(f"batch_size is {batch_size} and share {share}; expected at least 1, and 0 <= rank < world.")
    for places in consecutive_batches(len(rows), batch_size, share, done):
        yield places, _image_features(model, [rows[i] for i in places])


def _image_features(model: ClipModel, rows: Sequence[QuestionRow]) -> torch.Tensor:
    wheres = [row.group.where or row.id for row in rows]
    return model.image_features([_image(row.group, at) for row, at in zip(rows, wheres, strict=True)], wheres)


def _image(group: Group, where: str) -> ImageSource:
    if len(group.images) != 1:
        raise DataError(
            f"{len(group.images)} images, expected one: a dual encoder compares one image with texts; "
            "leave the row out",
            "images",
            where,
        )
    return group.images[0]


def class_features(model: ClipModel, names: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
    """Encodes classes by CLIP's ensemble of templates.

    Args:
        model ([`ClipModel`]): The encoder.
        names (sequence of `str`): C class names, in words, all different.
        templates (sequence of `str`): Texts with `{c}` in the name's place, such as `"a satellite photo of {c}."`.

    Returns:
        `torch.Tensor` of shape (C, D): for each class the mean of its texts' unit vectors, scaled to length 1.

    Raises:
        ValueError: No or repeated names, no templates, or one without `{c}`.
    """
    if not names or len(set(names)) < len(names):
        twice = sorted({name for name in names if list(names).count(name) > 1})
        raise OptionError(f"{len(names)} class names, {twice} more than once; expected some, all different.")
    wrong = [one for one in templates if "{c}" not in one]
    if not templates or wrong:
        raise OptionError(f"templates are {list(templates)}; expected at least one, each with {{c}} for the class.")
    texts = [template.replace("{c}", name) for name in names for template in templates]
    means = model.text_features(texts).reshape(len(names), len(templates), -1).mean(1)
    return means / means.norm(dim=-1, keepdim=True)


def zero_shot_record(
    image_features: torch.Tensor, class_features: torch.Tensor, names: Sequence[str], reference: str
) -> dict[str, Any]:
    """Classifies one image.

    Args:
        image_features (`torch.Tensor`): Its unit vector, of shape (D,).
        class_features (`torch.Tensor`): Those of the classes, of shape (C, D).
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
        ValueError: No records.
    """
    if not records:
        raise OptionError("no records to summarise; evaluate at least one image.")
    n = len(records)
    hits = {f"top{k}": sum(record["rank"] <= k for record in records) for k in (1, 5)}
    parts: dict[str, list[bool]] = {}
    for record in records:
        parts.setdefault(record["references"][0], []).append(record["rank"] == 1)
    classes: dict[str, dict[str, Any]] = {
        name: {"n": len(own), "accuracy": sum(own) / len(own), "interval": list(wilson_interval(sum(own), len(own)))}
        for name, own in sorted(parts.items())
    }
    mean = sum(one["accuracy"] for one in classes.values()) / len(classes)
    intervals = {name: list(wilson_interval(right, n)) for name, right in hits.items()}
    return {
        "n": n,
        "accuracy": hits["top1"] / n,
        "interval": intervals["top1"],
        "metrics": {**{name: right / n for name, right in hits.items()}, "mean_class_accuracy": mean},
        "intervals": intervals,
        "classes": classes,
    }


def retrieval_raw(model: ClipModel, rows: Sequence[QuestionRow]) -> list[dict[str, Any]]:
    """Encodes rows of one image and its captions each; [`retrieval_finish`] ranks once all are there.

    Args:
        model ([`ClipModel`]): The encoder.
        rows (sequence of [`QuestionRow`]): A batch.

    Returns:
        `list[dict]`: `image_features` and `text_features` (unit vectors, little-endian float32 in base64; one for each
        caption), `captions`, and `truncated`: how many of them the model's text limit cut.

    Raises:
        DataError: A row without captions, or not of one image.
        ImageError: An image that cannot be read.
    """
    for row in rows:
        if not row.captions:
            raise DataError(
                "no captions; retrieval looks for them, so give some or leave the row out",
                "captions",
                row.group.where or row.id,
            )
    images = _image_features(model, rows)
    texts, cut = model.encode_texts([caption for row in rows for caption in row.captions])
    records, start = [], 0
    for row, image in zip(rows, images, strict=True):
        stop = start + len(row.captions)
        records.append(
            {
                "image_features": _packed(image),
                "text_features": [_packed(text) for text in texts[start:stop]],
                "captions": list(row.captions),
                "truncated": sum(cut[start:stop]),
            }
        )
        start = stop
    return records


def _packed(vector: torch.Tensor) -> str:
    return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()


def _unpacked(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4")


def retrieval_finish(raws: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Ranks every image's captions among all texts, and every caption's image among all images.

    Args:
        raws (sequence of `dict`): Of [`retrieval_raw`], all of them, in the order of the data, with whatever else was
            stored beside; records that are ranked already are given back.

    Returns:
        `list[dict]`: The records without vectors and captions, with `image_to_text_rank` (that of the best caption,
        from 1), `text_to_image_ranks` (one for each caption) and `shared_captions` (how many of the captions another
        image has, too); see the module for ties.

    Raises:
        ValueError: Some records are ranked and some not, or their vectors are of different lengths.
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
    packed = [text for raw in raws for text in raw["text_features"]]
    # What is the same is encoded once: the last bits of a vector depend on the batch that it was encoded in.
    texts, text_at = _distinct(captions, packed)
    pictures = [raw["image_features"] for raw in raws]
    images, image_at = _distinct(pictures, pictures)
    if images.shape[1] != texts.shape[1]:
        raise OptionError(
            f"image vectors of {images.shape[1]} and text vectors of {texts.shape[1]} numbers; the "
            "records are of different models: evaluate anew."
        )
    to_text = _image_to_text(images[image_at], texts, text_at, owner)
    to_image = _text_to_image(texts[text_at], images, image_at, owner)
    shared = _shared(captions, owner)
    records = []
    for i, raw in enumerate(raws):
        kept = {k: v for k, v in raw.items() if k not in ("image_features", "text_features", "captions")}
        own = slice(*np.searchsorted(owner, (i, i + 1)))
        ranks = {"image_to_text_rank": int(to_text[i]), "text_to_image_ranks": to_image[own].tolist()}
        records.append({**kept, **ranks, "shared_captions": int(shared[own].sum())})
    return records


def _distinct(keys: Sequence[str], packed: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of the distinct keys (U, D), each that of its first place, and for each place its number among them."""
    number: dict[str, int] = {}
    vectors: list[np.ndarray] = []
    for key, text in zip(keys, packed, strict=True):
        if number.setdefault(key, len(number)) == len(vectors):
            vectors.append(_unpacked(text))
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


def _text_to_image(texts: np.ndarray, images: np.ndarray, image_at: np.ndarray, owner: np.ndarray) -> np.ndarray:
    blocks = _blocks(len(texts), len(image_at))
    return np.concatenate([_ranks((texts[block] @ images.T)[:, image_at], owner[block]) for block in blocks])


def _shared(captions: Sequence[str], owner: np.ndarray) -> np.ndarray:
    """Whether another image has the same caption (M,)."""
    images: dict[str, set[int]] = {}
    for caption, image in zip(captions, owner.tolist(), strict=True):
        images.setdefault(caption, set()).add(image)
    return np.array([len(images[caption]) > 1 for caption in captions])


def retrieval_figures(records: Sequence[Mapping[str, Any]], seed: int = 0, rounds: int = 2000) -> dict[str, Any]:
    """Summarises retrieval.

    Args:
        records (sequence of `dict`): Of [`retrieval_finish`].
        seed, rounds (`int`): Of the bootstrap.

    Returns:
        `dict`: `n` images, `texts`, `shared_captions` (texts that another image has, too), `truncated` texts;
        `metrics`: shares `image_to_text_R@1`, `@5`, `@10`, `text_to_image_R@…`, and `mean_recall`, the mean of the
        six; `intervals` of each at 95%: Wilson's for images, and for the others a percentile bootstrap over images,
        since the captions of one image are no independent draws.

    Raises:
        ValueError: No records.
    """
    if not records:
        raise OptionError("no records to summarise; evaluate at least one image.")
    n = len(records)
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
    generator = np.random.default_rng(seed)
    draws = []
    for _ in range(rounds):
        weights = np.bincount(generator.integers(0, n, n), minlength=n)
        draws.append((table @ weights) / (sizes @ weights))
    low, high = np.quantile(draws, (0.025, 0.975), axis=0)
    mean_low, mean_high = np.quantile(np.mean(draws, 1), (0.025, 0.975))
    intervals = {
        name: list(wilson_interval(int(table[i].sum()), n))
        if name.startswith("image")
        else [float(low[i]), float(high[i])]
        for i, name in enumerate(hits)
    }
    return {
        "n": n,
        "texts": int(counts.sum()),
        "shared_captions": sum(record["shared_captions"] for record in records),
        "truncated": sum(record["truncated"] for record in records),
        "metrics": {**dict(zip(hits, recalls.tolist(), strict=True)), "mean_recall": float(recalls.mean())},
        "intervals": {**intervals, "mean_recall": [float(mean_low), float(mean_high)]},
    }
