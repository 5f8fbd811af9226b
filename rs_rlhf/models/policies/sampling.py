"""Sampling options, batch plans, random draws and the choice of tokens: what all policies share.

Answers depend on the prompts and the options alone: not on the number of processes, nor on what was answered before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from ...data.group import Group, ImageSource, make_group
from ...errors import OptionError

Item = Group | tuple[str | list[dict[str, Any]] | None, ImageSource]  # a group, or (prompt, image or images)
Batches = Iterator[tuple[list[int], list[list[str]]]]  # (places in the input, their answers)


@dataclass(frozen=True)
class SamplingOptions:
    """How a policy samples answers; one that is out of range is an [`OptionError`]."""

    n: int = 1  # answers to each prompt
    temperature: float = 1.0  # 0 takes the most likely token
    top_p: float = 1.0  # probability mass that tokens are drawn from, in (0, 1]
    top_k: int = 0  # number of most likely tokens that are drawn from; 0 is off
    max_new_tokens: int = 64  # longest answer, in tokens
    seed: int = 0  # of all draws
    token_budget: int = 16384  # most tokens of a batch: prompts and answers, padding included
    batch_size: int | None = None  # most prompts of a batch

    def __post_init__(self) -> None:
        for name in ("n", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} is {getattr(self, name)}; it must be at least 1.", name)
        for name in ("temperature", "top_k"):
            if getattr(self, name) < 0:
                raise OptionError(f"{name} is {getattr(self, name)}; it may not be negative.", name)
        if not 0 < self.top_p <= 1:
            raise OptionError(f"top_p is {self.top_p}; it lies in (0, 1].", "top_p")

    @classmethod
    def from_command(cls, options: object, **changes: int | None) -> SamplingOptions:
        """Returns the fields of a command's options that have the same names, with these changes."""
        given = {field.name: getattr(options, field.name) for field in fields(cls) if hasattr(options, field.name)}
        return cls(**{**given, **changes})


def as_groups(items: Sequence[Item]) -> list[Group]:
    """Returns prompts, each a [`Group`] or `(prompt, image)`, as groups."""
    return [item if isinstance(item, Group) else make_group(item[0], [], item[1]) for item in items]


def planned_batches(
    lengths: Sequence[int], sampling: SamplingOptions, share: tuple[int, int] = (0, 1), done: Collection[int] = ()
) -> Iterator[list[int]]:
    """Yields the batches of one process, as places in the input, the longest prompts (`lengths` in tokens) first.

    Sampling, share and done are those of [`Policy.sample_batches`].
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):  # stable; memory trouble shows at once
        row = lengths[batches[-1][0]] + sampling.max_new_tokens if batches else 0
        full = not batches or row * sampling.n * (len(batches[-1]) + 1) > sampling.token_budget
        if full or len(batches[-1]) == sampling.batch_size:
            batches.append([])
        batches[-1].append(i)
    yield from _left(batches, share, done)


def consecutive_batches(
    count: int, size: int, share: tuple[int, int] = (0, 1), done: Collection[int] = ()
) -> Iterator[list[int]]:
    """Yields batches of `size` in the order of the input; otherwise as [`planned_batches`]."""
    yield from _left([list(range(k, min(k + size, count))) for k in range(0, count, size)], share, done)


def _left(batches: Sequence[list[int]], share: tuple[int, int], done: Collection[int]) -> Iterator[list[int]]:
    """Yields the batches of a share that are not done."""
    if not 0 <= share[0] < share[1]:
        raise OptionError(f"share is {share}, expected (rank, world) with 0 <= rank < world.", "share")
    yield from (batch for batch in batches[share[0] :: share[1]] if any(i not in done for i in batch))


def request_seed(seed: int, place: int, number: int) -> int:
    """Returns a seed for one answer, of 31 bits since some servers take no more."""
    return int.from_bytes(hashlib.sha256(f"{seed} {place} {number}".encode()).digest()[:4], "big") >> 1


def answer_draws(places: Sequence[int], sampling: SamplingOptions) -> torch.Tensor:
    """Returns numbers in [0, 1) of shape (places × n, max_new_tokens); each place has a generator of its own."""
    draws = []
    for place in places:
        key = int.from_bytes(hashlib.sha256(f"{sampling.seed} {place}".encode()).digest()[:8], "big") >> 1
        generator = torch.Generator().manual_seed(key)
        draws.append(torch.rand(sampling.n, sampling.max_new_tokens, generator=generator))
    return torch.cat(draws)


def choose_tokens(
    logits: torch.Tensor, draws: torch.Tensor, sampling: SamplingOptions, never: Sequence[int], vocabulary: int
) -> torch.Tensor:
    """Picks a token for each row of logits.

    Args:
        logits (`torch.Tensor` of shape (R, V)): Is changed.
        draws (`torch.Tensor` of shape (R,)): Numbers in [0, 1); not used at temperature 0.
        sampling ([`SamplingOptions`]): `temperature`, `top_p` and `top_k` are used.
        never (sequence of `int`): Tokens that are never sampled.
        vocabulary (`int`): Number of tokens; further columns only pad the embedding.

    Returns:
        `torch.Tensor` of shape (R,): the most likely tokens, or those that the draws fall on.
    """
    logits = logits.float()
    logits[:, never] = -torch.inf
    logits[:, vocabulary:] = -torch.inf
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    shares, order = (logits / sampling.temperature).softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    total = shares.cumsum(dim=-1)
    kept = total - shares < sampling.top_p
    if sampling.top_k:
        kept[:, sampling.top_k :] = False
    kept[:, 0] = True
    last = kept.sum(dim=-1, keepdim=True) - 1
    place = (total <= draws[:, None] * total.gather(1, last)).sum(dim=-1, keepdim=True)
    return order.gather(1, torch.minimum(place, last)).squeeze(1)


def until_end(rows: Sequence[list[int]], ends: Collection[int]) -> list[list[int]]:
    """Returns rows of tokens, each cut off before its first end token."""
    return [row[: next((k for k, token in enumerate(row) if token in ends), len(row))] for row in rows]
