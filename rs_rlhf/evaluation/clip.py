"""Vectors of dual encoders for zero-shot classification and retrieval; the figures are those of `metrics.retrieval`.

A class is the mean of its templates' unit vectors, scaled to length 1 (CLIP: Radford et al. 2021, arXiv 2103.00020).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..data.group import Group, ImageSource
from ..errors import DataError, OptionError
from ..metrics.retrieval import packed

if TYPE_CHECKING:
    import torch

    from ..data.questions import QuestionRow
    from ..models.clip import ClipModel


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


def retrieval_raw(model: ClipModel, rows: Sequence[QuestionRow]) -> list[dict[str, Any]]:
    """Encodes rows of one image and its captions each, for [`rs_rlhf.metrics.retrieval.rank_retrieval`].

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
                "image_features": packed(image.numpy()),
                "text_features": [packed(text.numpy()) for text in texts[start:stop]],
                "captions": list(row.captions),
                "truncated": sum(cut[start:stop]),
            }
        )
        start = stop
    return records
