"""Mask, positions and rows of the group layout, on a case written by hand."""

import torch

from rs_rlhf.models.layout import CPU_TOKENS, continue_positions, parts_of, split_rows, tree_mask


def test_layout_helpers_on_a_hand_written_case():
    segments = torch.tensor([[0, 0, 1, 1, 2, -1]])
    prompt = torch.tensor([[[0, 1, 0, 0, 0, 0]], [[0, 4, 0, 0, 0, 0]], [[0, 2, 0, 0, 0, 0]]])
    assert continue_positions(prompt, segments)[:, 0].tolist()[1][:5] == [0, 4, 5, 6, 5]
    allowed = tree_mask(segments, torch.float32, additive=False)[0, 0].int().tolist()
    assert allowed == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 1],
    ]
    additive = tree_mask(segments, torch.float32, additive=True)
    assert torch.equal(additive == 0, tree_mask(segments, torch.float32, additive=False))
    ids, mask, placements = split_rows(torch.tensor([[5, 6, 7, 8, 9, 0]]), segments, [1])
    assert ids.tolist() == [[5, 6, 7, 8], [5, 6, 9, 0]] and mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert placements == [0, 0]


def test_parts_of_a_batch_on_a_cpu_hold_few_tokens_and_every_row_once():
    lengths = [CPU_TOKENS // 4, CPU_TOKENS // 4, CPU_TOKENS // 2, CPU_TOKENS * 2, 3, 5]
    segments = torch.full((6, CPU_TOKENS * 2), -1)
    for row, length in enumerate(lengths):
        segments[row, :length] = 0
    found = [(part.start, part.stop, width) for part, width in parts_of(segments)]
    assert found == [(0, 2, lengths[0]), (2, 3, lengths[2]), (3, 4, lengths[3]), (4, 6, 5)]
    assert parts_of(segments.to("meta")) == [(slice(0, 6), CPU_TOKENS * 2)]  # as on a GPU
