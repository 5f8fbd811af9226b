"""Layout of groups for the backbone: tree mask, positions, last tokens, plain rows, and when a group is cheaper.

The layout of a group is one row `[prompt][completion 1]…[completion N]`. A *segment id* on every token says what it
belongs to (0 the prompt, k the k-th completion, -1 padding); mask and positions follow from it, so that every
completion sees the prompt and itself and nothing else. A plain row is a group whose whole text is segment 0.

Left out: packing several groups into one row (measured slower: the dense mask is quadratic).

Notation: B groups, L tokens of the longest row, N completions of the largest group.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

CPU_TOKENS = 512  # of a part of a batch on a CPU, see `benchmarks/group_speed.py`

TokenGroup = tuple[Sequence[int], Sequence[Sequence[int]]]  # ids of a prompt, and of each of its completions


def lay_out(groups: Sequence[TokenGroup], pad_token_id: int, multiple: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns `input_ids` and `segment_ids` (B, L) of groups of token ids, padded on the right to a multiple."""
    rows, segments = [], []
    for prompt, completions in groups:
        rows.append([*prompt, *(token for completion in completions for token in completion)])
        segments.append([0] * len(prompt) + [k for k, ids in enumerate(completions, 1) for _ in ids])
    return pad_rows(rows, pad_token_id, multiple), pad_rows(segments, -1, multiple)


def pad_rows(rows: Sequence[Sequence[int]], value: int, multiple: int = 1) -> torch.Tensor:
    """Returns rows of integers as a tensor (rows, L), padded on the right to a multiple."""
    width = -(-max(len(row) for row in rows) // multiple) * multiple
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def tree_mask(segment_ids: torch.Tensor, dtype: torch.dtype, additive: bool) -> torch.Tensor:
    """Returns the attention mask (B, 1, L, L): causal, and a completion sees only the prompt and itself.

    Padding sees itself, so that no softmax runs over nothing.

    Args:
        segment_ids (`torch.Tensor` of shape (B, L)): The layout.
        dtype (`torch.dtype`): Type of an additive mask.
        additive (`bool`): `True` for eager attention (0 / lowest value), `False` for sdpa (bool, True = may attend).
    """
    length = segment_ids.shape[1]
    query, key = segment_ids[:, :, None], segment_ids[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment_ids.device).tril()
    allowed = causal & (key >= 0) & ((key == 0) | (key == query))
    allowed = (allowed | torch.eye(length, dtype=torch.bool, device=segment_ids.device))[:, None]
    if not additive:
        return allowed
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)


def continue_positions(prompt_positions: torch.Tensor, segment_ids: torch.Tensor) -> torch.Tensor:
    """Returns the positions (3, B, L): each completion continues from the end of the prompt, on all three axes.

    Args:
        prompt_positions (`torch.Tensor` of shape (3, B, L)): Right on prompt tokens, anything elsewhere.
        segment_ids (`torch.Tensor` of shape (B, L)): The layout.
    """
    in_prompt = segment_ids == 0
    after = prompt_positions.masked_fill(~in_prompt, -1).amax(dim=(0, 2)) + 1
    place = torch.arange(segment_ids.shape[1], device=segment_ids.device).expand_as(segment_ids)
    starts = torch.ones_like(in_prompt)
    starts[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    offset = place - (place * starts).cummax(dim=1).values
    return torch.where(in_prompt, prompt_positions, after[None, :, None] + offset)


def last_tokens(segment_ids: torch.Tensor, rows: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Finds the last token of every completion: indices (B, N), and a bool mask (B, N) of the completions that exist.

    Of plain `rows`, the one "completion" of each is its segment 0.
    """
    segments = segment_ids + 1 if rows else segment_ids
    count = int(segments.max())
    place = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    last = torch.full((segments.shape[0], count + 1), -1, device=segments.device)
    last = last.scatter_reduce(1, segments.clamp(min=0), place, "amax")[:, 1:]
    return last.clamp(min=0), last >= 0


def of_groups(flat: torch.Tensor, exists: torch.Tensor) -> torch.Tensor:
    """Returns the values of the completions that exist, flat and in order, as (B, N), NaN elsewhere."""
    values = torch.full(exists.shape, float("nan"), dtype=flat.dtype, device=flat.device)
    return values.masked_scatter(exists, flat)


def split_rows(
    input_ids: torch.Tensor, segment_ids: torch.Tensor, images_per_group: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Turns groups into plain rows `prompt + completion`, padded on the right.

    Args:
        input_ids, segment_ids (`torch.Tensor` of shape (B, L)): The layout.
        images_per_group (sequence of `int`): Image placements of each group.

    Returns:
        `tuple`: row ids (R, L'), attention mask (R, L'), and the placement that each row's placements come from (a
        flat list), where R is the number of completions of all groups in order.
    """
    rows: list[torch.Tensor] = []
    placements: list[int] = []
    start = 0
    for ids, segments, count in zip(input_ids, segment_ids, images_per_group, strict=True):
        for k in range(1, int(segments.max()) + 1):
            rows.append(ids[(segments == 0) | (segments == k)])
            placements.extend(range(start, start + count))
        start += count
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=input_ids.device)
    mask = torch.arange(padded.shape[1], device=input_ids.device)[None] < lengths[:, None]
    return padded, mask.long(), placements


def parts_of(segment_ids: torch.Tensor) -> list[tuple[slice, int]]:
    """Returns the parts in which groups are run: rows, and the columns that these need.

    A CPU runs short rows faster a few at a time: what lies between two matrix products then stays in its cache, and no
    row is padded to the longest. A GPU runs all at once, and so do processes that run the model together, whose counts
    of parts could differ.

    Args:
        segment_ids (`torch.Tensor` of shape (B, L)): The layout.
    """
    count, length = segment_ids.shape
    if segment_ids.device.type != "cpu" or (dist.is_available() and dist.is_initialized()):
        return [(slice(0, count), length)]
    parts, start = [], 0
    lengths = (segment_ids >= 0).sum(1).tolist()
    for stop in range(1, count + 1):
        if stop == count or (stop + 1 - start) * max(lengths[start : stop + 1]) > CPU_TOKENS:
            parts.append((slice(start, stop), max(lengths[start:stop])))
            start = stop
    return parts


def tree_is_cheaper(segment_ids: torch.Tensor, hidden_size: int) -> bool:
    """Estimates whether one tree row per group costs less than plain rows with shared vision features.

    Counts the multiply-adds of a transformer layer: about 12·h² per token for the projections and 2·h per token and
    key for attention, over the padded shapes that would be run.

    Args:
        segment_ids (`torch.Tensor` of shape (B, L)): The layout.
        hidden_size (`int`): Width h of the language model.
    """

    def cost(rows: int, length: int) -> int:
        return rows * length * (12 * hidden_size + 2 * length)

    lengths = torch.zeros(segment_ids.shape[0], int(segment_ids.max()) + 2, device=segment_ids.device)
    lengths = lengths.scatter_add(1, segment_ids + 1, torch.ones_like(segment_ids, dtype=lengths.dtype))
    completions = lengths[:, 2:]
    longest_row = int((lengths[:, 1:2] + completions).max())
    return cost(segment_ids.shape[0], segment_ids.shape[1]) <= cost(int((completions > 0).sum()), longest_row)
