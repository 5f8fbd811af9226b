"""Baseline scorers that a score model must beat, without a model: the length of a text, and chance."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..data.group import Group, completion_text


class LengthScorer:
    """Scores a completion by its number of words."""

    def score_groups(
        self, groups: Sequence[Group], *, on_error: str = "raise", show_progress: bool | None = None
    ) -> list[Any]:
        """Returns for each group the numbers of words of its completions; the options have no effect."""
        return [[float(len(completion_text(text).split())) for text in group.completions] for group in groups]


@dataclass
class RandomScorer:
    """Scores a completion by chance: a number in [0, 1) that depends on the seed and on the text's place."""

    seed: int = 0

    def score_groups(
        self, groups: Sequence[Group], *, on_error: str = "raise", show_progress: bool | None = None
    ) -> list[Any]:
        """Returns for each group a number per completion, drawn from the group's `where` and the completion's place.

        Completions of several groups of one `where` are counted on, as the turns of one conversation.
        """
        seen: Counter[str] = Counter()
        scores: list[list[float]] = [[] for _ in groups]
        for group, row in zip(groups, scores, strict=True):
            for _ in group.completions:
                digest = hashlib.sha256(f"{self.seed} {seen[group.where]} {group.where}".encode()).digest()
                row.append(
                    int.from_bytes(digest[:3]) / 2**24
                )  # 24 bits: all of a float32, so that none rounds up to 1
                seen[group.where] += 1
        return scores
