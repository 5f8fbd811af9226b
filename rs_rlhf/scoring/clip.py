"""`ClipScorer`: CLIP scores of groups, the usual baseline of best-of-N and curation.

The CLIP score is the plain cosine of image and text. CLIPScore (Hessel et al. 2021, arXiv 2104.08718) is 2.5 times
the cosine, cut off below zero; the factor changes no ranking and the cut makes ties of what SigLIP-like models, whose
cosines are often negative, can still tell apart.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import normalize

from ..data.group import Group, ImageSource, completion_text
from ..errors import DataError, ImageError
from ..imagery.identity import source_key
from ..metrics.answers import extract_answer
from ..models.clip import ClipModel
from .base import scoring_progress


@dataclass
class ClipScorer:
    """Scores a completion by the cosine of the image and the text alone.

    The question is not put before the text, since CLIP was trained on captions and the published baseline
    (arXiv 2503.00743) compares images with answers. Only the answer part of a text with `<answer>…</answer>` is
    taken. Several images count by the mean of their unit vectors, scaled to length 1.
    """

    model: ClipModel
    batch_size: int = 32  # groups

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], **kwargs: Any) -> ClipScorer:
        """Loads a dual encoder; the arguments are those of [`ClipModel.from_pretrained`]."""
        return cls(ClipModel.from_pretrained(path, **kwargs))

    def score_groups(
        self, groups: Sequence[Group], *, on_error: str = "raise", show_progress: bool | None = None
    ) -> list[Any]:
        """Scores groups, each with at least one image, see [`GroupScorer`]; warns once if texts lose their end."""
        scores: list[Any] = [[] for _ in groups]
        filled = [i for i, group in enumerate(groups) if group.completions]
        batches = [filled[k : k + self.batch_size] for k in range(0, len(filled), self.batch_size)]
        cut: list[bool] = []
        with scoring_progress(len(batches), "batch", show_progress, many=8) as advance:
            for batch in batches:
                read = self._read(batch, groups, scores, on_error)
                texts = [extract_answer(completion_text(text)) for i in read for text in groups[i].completions]
                features, too_long = self.model.encode_texts(texts)
                cut += too_long
                start = 0
                for i, image in read.items():
                    stop = start + len(groups[i].completions)
                    scores[i] = (features[start:stop] @ image).tolist()
                    start = stop
                advance(1)
        self.model.warn_cut(sum(cut), len(cut))
        return scores

    def _read(
        self, batch: Sequence[int], groups: Sequence[Group], scores: list[Any], on_error: str
    ) -> dict[int, torch.Tensor]:
        """Vector (D,) of the images of each group; if one cannot be read, the groups are tried one by one."""
        try:
            return self._image_vectors(batch, groups)
        except (DataError, ImageError) as error:
            if on_error != "return":
                raise
            if len(batch) == 1:
                scores[batch[0]] = error
                return {}
        read: dict[int, torch.Tensor] = {}
        for i in batch:
            read |= self._read([i], groups, scores, on_error)
        return read

    def _image_vectors(self, batch: Sequence[int], groups: Sequence[Group]) -> dict[int, torch.Tensor]:
        distinct: dict[Hashable, tuple[ImageSource, str]] = {}  # captions of one image often stand side by side
        for i in batch:
            where = groups[i].where or f"group {i}"
            if not groups[i].images:
                detail = "no image; a CLIP score compares an image with a text: add one or leave the row out"
                raise DataError(detail, "images", where)
            for source in groups[i].images:
                distinct.setdefault(source_key(source), (source, where))
        sources, wheres = zip(*distinct.values(), strict=True)
        vectors = dict(zip(distinct, self.model.image_features(sources, wheres), strict=True))
        return {
            i: normalize(torch.stack([vectors[source_key(source)] for source in groups[i].images]).mean(0), dim=0)
            for i in batch
        }
