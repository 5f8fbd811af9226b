"""Vectors of dual encoders for zero-shot classification and retrieval; the figures are those of `metrics.retrieval`.

A class is the mean of its templates' unit vectors, scaled to length 1 (CLIP: Radford et al. 2021, arXiv 2103.00020).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import OptionError
from ..metrics.retrieval import packed

if TYPE_CHECKING:
    import torch

    from ..data.questions import QuestionRow
    from ..models.clip import ClipModel


def image_features(model: ClipModel, rows: Sequence[QuestionRow]) -> torch.Tensor:
    """Encodes the one image of every row as unit vectors (B, D); a row with no image or several is a [`DataError`]."""
    for row in rows:
        if not row.pictured:
            detail = f"{len(row.group.images)} images, expected one: a dual encoder compares one image with texts; "
            raise row.error(f"{detail}leave the row out", "images")
    return model.image_features([row.group.images[0] for row in rows], [row.group.where or row.id for row in rows])


def class_features(model: ClipModel, names: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
    """Encodes C classes by CLIP's ensemble of templates (texts with `{c}` for the name) as unit vectors (C, D).

    No or repeated names, no templates, or one without `{c}` are an [`OptionError`].
    """
    if not names or len(set(names)) < len(names):
        twice = sorted({name for name in names if list(names).count(name) > 1})
        raise OptionError(f"{len(names)} class names, {twice} more than once; expected some, all different.")
    if not templates or not all("{c}" in template for template in templates):
        raise OptionError(f"templates are {list(templates)}; expected at least one, each with {{c}} for the class.")
    texts = [template.replace("{c}", name) for name in names for template in templates]
    means = model.text_features(texts).reshape(len(names), len(templates), -1).mean(1)
    return means / means.norm(dim=-1, keepdim=True)


def retrieval_raw(model: ClipModel, rows: Sequence[QuestionRow]) -> list[dict[str, Any]]:
    """Encodes rows of one image and its captions each, for [`rs_rlhf.metrics.retrieval.rank_retrieval`].

    Returns `image_features` and `text_features` (unit vectors, little-endian float32 in base64; one for each caption),
    `captions`, and `truncated`: how many of them the model's text limit cut.
    """
    for row in rows:
        if not row.captions:
            raise row.error("no captions; retrieval looks for them, so give some or leave the row out", "captions")
    images = image_features(model, rows)
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
