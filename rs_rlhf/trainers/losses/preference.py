"""Losses of preference lists: Plackett-Luce over a ranked list, and an anchor that compares images with each other.

Scores come padded, as the model gives them for groups of different sizes. Left out: losses of single texts.
"""

from __future__ import annotations

import torch
from torch import nn


def plackett_luce_loss(
    scores: torch.Tensor,
    margin: torch.Tensor | None = None,
    sizes: torch.Tensor | None = None,
    places: int | None = None,
) -> torch.Tensor:
    """Negative log-likelihood of ranked lists under Plackett-Luce; Bradley-Terry for lists of two.

    Summed over the places of a list, averaged over lists, as ScoreRS does (arXiv 2503.00743). Computed in float32
    from differences of scores, so that it is stable for large scores and in bfloat16. A NaN score gives a NaN loss.

    Args:
        scores (`torch.Tensor` of shape (B, N)): Best to worst; anything beyond a list's size.
        margin (`torch.Tensor` of shape (B,), *optional*): By how much each place should win over the later ones.
        sizes (`torch.Tensor` of shape (B,), *optional*): Length of each list; by default N.
        places (`int`, *optional*): First places that are ranked, the rest is not; by default all. With 1 the loss is
            the cross-entropy of choosing the first.
    """
    scores = scores.float()
    exists = held(scores, sizes)
    filled = scores.masked_fill(~exists, torch.finfo(scores.dtype).min)
    rival = filled if margin is None else filled + margin[:, None]
    losses = torch.zeros_like(scores[:, 0])
    for place in range(scores.shape[1] - 1)[:places]:
        behind = torch.logsumexp(rival[:, place + 1 :], dim=1) - filled[:, place]
        losses = losses + torch.where(exists[:, place + 1], nn.functional.softplus(behind), 0.0)
    return losses.mean()


def anchor_loss(scores: torch.Tensor, sizes: torch.Tensor | None = None) -> torch.Tensor:
    """Cross-entropy of calling each completion right or wrong by its score alone, as verifiers are trained.

    A ranking loss knows only differences within a group, so that all scores of one image may lie higher than those of
    another (Cobbe et al. 2021, arXiv 2110.14168, train by such a loss alone). Chosen and rejected weigh alike.

    Args:
        scores (`torch.Tensor` of shape (B, N)): The chosen completion first.
        sizes (`torch.Tensor` of shape (B,), *optional*): Length of each list; by default N.
    """
    scores = scores.float()
    others = held(scores, sizes)[:, 1:]
    real = scores[:, 1:].masked_fill(~others, 0.0)  # before the softplus: its gradient at padding that is NaN is NaN
    rejected = nn.functional.softplus(real).masked_fill(~others, 0.0).sum(dim=1) / others.sum(dim=1)
    return (nn.functional.softplus(-scores[:, 0]) + rejected).mean() / 2


def held(scores: torch.Tensor, sizes: torch.Tensor | None) -> torch.Tensor:
    """Says which places of the padded lists hold a score; NaN cannot tell, since a diverged model gives NaN too."""
    if sizes is None:
        return torch.ones_like(scores, dtype=torch.bool)
    return torch.arange(scores.shape[1], device=scores.device)[None] < sizes[:, None]
