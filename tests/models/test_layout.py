"""Mask, positions and rows of the group layout, on a case written by hand."""

import torch

from rs_rlhf.models.layout import continue_positions, split_rows, tree_mask


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
