"""How answers are drawn: which prompts share a batch, the random numbers of each answer, the choice of a token.

Whatever answers prompts here (`policy`, `answerers`) uses the same plan and the same draws, so that answers depend on
the items and options alone: not on the number of processes, nor on what was answered before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch

from ...data.group import Group, make_group
from ...errors import OptionError


def as_groups(items: Sequence[Any]) -> list[Group]:
    """Returns items of [`Policy.sample`], each a [`Group`] or `(prompt, image)`, as groups."""
    return [item if isinstance(item, Group) else make_group(item[0], [], item[1]) for item in items]


def check_sampling(
    n: int, temperature: float, top_p: float, top_k: int, max_new_tokens: int, share: tuple[int, int]
) -> None:
    """Refuses options of [`Policy.sample_batches`] that are out of range.

    Raises:
        ValueError: Says which one, and what was expected.
    """
    if n < 1 or max_new_tokens < 1:
        raise OptionError(f"n ({n}) and max_new_tokens ({max_new_tokens}) must be at least 1.")
    if temperature < 0 or not 0 < top_p <= 1 or top_k < 0:
        raise OptionError(
            f"temperature ({temperature}) and top_k ({top_k}) may not be negative, and top_p ({top_p}) lies in "
            "(0, 1]; correct the one that is out of range."
        )
    if not 0 <= share[0] < share[1]:
        raise OptionError(f"share is {share}, expected (rank, world) with 0 <= rank < world.")


def planned_batches(
    lengths: Sequence[int],
    n: int,
    token_budget: int,
    batch_size: int | None,
    share: tuple[int, int] = (0, 1),
    done: Collection[int] = (),
) -> Iterator[list[int]]:
    """Yields the batches, as places, that one process of several runs: the longest items first.

    Args:
        lengths (sequence of `int`): Tokens of each item's prompt and one answer.
        n, token_budget, batch_size, share, done: As in [`Policy.sample_batches`].
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])  # stable; memory trouble shows at once
    batches: list[list[int]] = []
    for i in order:
        full = not batches or lengths[batches[-1][0]] * n * (len(batches[-1]) + 1) > token_budget
        if full or len(batches[-1]) == batch_size:
            batches.append([])
        batches[-1].append(i)
    yield from (batch for batch in batches[share[0] :: share[1]] if any(i not in done for i in batch))


def consecutive_batches(
    count: int, size: int, share: tuple[int, int] = (0, 1), done: Collection[int] = ()
) -> Iterator[list[int]]:
    """Yields the batches of one process as [`planned_batches`] does, for items whose lengths do not matter."""
    return planned_batches([0] * count, 1, 0, size, share, done)


def answer_draws(seed: int, place: int, n: int, count: int) -> torch.Tensor:
    """Returns numbers in [0, 1) of shape (n, count) for the n answers of the item at a place."""
    key = int.from_bytes(hashlib.sha256(f"{seed} {place}".encode()).digest()[:8], "big") >> 1
    return torch.rand(n, count, generator=torch.Generator().manual_seed(key))


def choose_tokens(
    logits: torch.Tensor,
    draws: torch.Tensor,
    temperature: float,
    top_p: float,
    top_k: int,
    never: Sequence[int],
    vocabulary: int,
) -> torch.Tensor:
    """Picks a token for each row of logits.

    Args:
        logits (`torch.Tensor` of shape (R, V)): Is changed.
        draws (`torch.Tensor` of shape (R,)): Numbers in [0, 1); not used at temperature 0.
        temperature, top_p, top_k: As in [`Policy.sample`].
        never (sequence of `int`): Tokens that are not to be said.
        vocabulary (`int`): Tokens there are; further columns only fill the embedding up.

    Returns:
        `torch.Tensor` of shape (R,): the most likely tokens, or those which the draws fall on.
    """
    logits = logits.float()
    logits[:, never] = -torch.inf
    logits[:, vocabulary:] = -torch.inf
    if temperature == 0:
        return logits.argmax(dim=-1)
    shares, order = (logits / temperature).softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    total = shares.cumsum(dim=-1)
    kept = total - shares < top_p
    if top_k:
        kept[:, top_k:] = False
    kept[:, 0] = True
    last = kept.sum(dim=-1, keepdim=True) - 1
    place = (total <= draws[:, None] * total.gather(1, last)).sum(dim=-1, keepdim=True)
    return order.gather(1, torch.minimum(place, last)).squeeze(1)


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Returns the tokens that end an answer: those of the model's `generation_config`, and the tokenizer's."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    ends = set(ends if isinstance(ends, (list, tuple)) else [ends])
    return sorted({*ends, tokenizer.eos_token_id, tokenizer.pad_token_id} - {None})


def until_end(rows: Sequence[list[int]], ends: Collection[int]) -> list[list[int]]:
    """Returns rows of tokens, each cut off before its first end token."""
    return [row[: next((k for k, token in enumerate(row) if token in ends), len(row))] for row in rows]


__all__ = [
    "answer_draws",
    "as_groups",
    "check_sampling",
    "choose_tokens",
    "consecutive_batches",
    "end_tokens",
    "planned_batches",
    "until_end",
]
