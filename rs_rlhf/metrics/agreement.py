"""Agreement of people who choose between two texts: with one another, and with a score model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from .intervals import proportion


def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Returns Cohen's kappa of two people's choices (Cohen 1960): agreement beyond that of chance, 1 if they agree.

    Args:
        first, second (sequences of `str`): What each chose, in the same order.

    Returns:
        `float`, or `None` where it is not defined: without choices, and where both always chose the same one thing.

    Example:
        >>> cohen_kappa(["a", "a", "b", "tie"], ["a", "b", "b", "tie"])
        0.6363636363636364
    """
    n = len(first)
    mine, theirs = Counter(first), Counter(second)
    by_chance = sum(mine[choice] * theirs[choice] for choice in mine)  # of n * n
    if by_chance == n * n:
        return None
    agreed = sum(a == b for a, b in zip(first, second, strict=True))
    return (agreed * n - by_chance) / (n * n - by_chance)


def annotator_agreement(choices: Mapping[str, Mapping[str, str]]) -> list[dict[str, Any]]:
    """Compares the choices of every two annotators on what both have seen.

    Args:
        choices (`dict`): By annotator, the choice by item.

    Returns:
        `list[dict]`: `annotators` (two names), `n` (shared items), `agree` (share, `None` of none), `kappa`.
    """
    found = []
    for one, other in combinations(choices, 2):
        shared = [item for item in choices[one] if item in choices[other]]
        first, second = ([choices[name][item] for item in shared] for name in (one, other))
        agreed = sum(a == b for a, b in zip(first, second, strict=True))
        share = agreed / len(shared) if shared else None
        found.append(
            {"annotators": [one, other], "n": len(shared), "agree": share, "kappa": cohen_kappa(first, second)}
        )
    return found


def score_agreement(choices: Mapping[str, str], margins: Mapping[str, float]) -> dict[str, Any]:
    """Returns how often a score model prefers the text that a person does: `n`, `accuracy` and its 95% `interval`.

    Args:
        choices (`dict`): By item, `"a"` or `"b"`; ties and other choices are not counted.
        margins (`dict`): By item, the score of `a` less that of `b`. Equal scores prefer neither, and are wrong.
    """
    decided = [(choice, margins[item]) for item, choice in choices.items() if choice in ("a", "b") and item in margins]
    return proportion(sum((margin > 0) == (choice == "a") and margin != 0 for choice, margin in decided), len(decided))
