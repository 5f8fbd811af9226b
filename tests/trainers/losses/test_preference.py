"""Losses of preference lists: the anchor that makes scores comparable between images."""

import json

import pytest
import torch

from rs_rlhf.trainers.losses.preference import anchor_loss


def test_the_anchor_is_the_cross_entropy_of_right_and_wrong():
    scores = torch.tensor([[2.0, -1.0, 0.5], [0.3, 0.7, 9.0]])
    sizes = torch.tensor([3, 2])
    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    right = [entropy(scores[i, 0], torch.tensor(1.0)) for i in (0, 1)]
    wrong = [entropy(scores[0, 1:], torch.zeros(2)), entropy(scores[1, 1:2], torch.zeros(1))]
    assert anchor_loss(scores, sizes) == pytest.approx(float(sum(right) + sum(wrong)) / 4)
    assert anchor_loss(scores + 3, sizes) > anchor_loss(scores, sizes)  # a ranking loss would not see the shift


def test_padding_that_is_no_number_gives_the_anchor_no_gradient():
    """The layout pads lists with NaN; what hangs on all places, as an unused vision tower does, became NaN."""
    scores = torch.tensor([[2.0, -1.0, 0.5], [0.3, 0.7, float("nan")]], requires_grad=True)
    anchor_loss(scores, torch.tensor([3, 2])).backward()
    assert torch.isfinite(scores.grad).all() and scores.grad[1, 2] == 0 and (scores.grad != 0).sum() == 5


def test_the_anchor_needs_scores_of_either_sign_and_then_moves_them(tmp_path, tiny_vlm):
    from rs_rlhf import VisionRewardConfig, VisionRewardTrainer, load_preferences

    lines = [{"prompt": "", "chosen": "a river .", "rejected": ["a forest .", "a port ."]}] * 5
    lines += [{"prompt": "", "chosen": "a river .", "rejected": ["a port ."]}] * 3  # no images: the tower is unused
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = {
        "bf16": False,
        "max_steps": 12,
        "report_to": "none",
        "use_cpu": True,
        "learning_rate": 5e-3,
        "ranked_rejected": False,
        "anchor_coefficient": 1.0,
        "logging_steps": 1,
    }
    data = load_preferences(path)
    refused = VisionRewardConfig(str(tmp_path / "refused"), **options)
    with pytest.raises(ValueError, match="set output_activation to 'identity'"):
        VisionRewardTrainer(model=str(tiny_vlm), args=refused, train_dataset=data)
    args = VisionRewardConfig(str(tmp_path / "out"), output_activation="identity", **options)
    trainer = VisionRewardTrainer(model=str(tiny_vlm), args=args, train_dataset=data)
    trainer.train()
    batch = trainer.data_collator([trainer.train_dataset[0]])
    with torch.no_grad():
        scores = trainer._score(trainer.model.eval(), batch)[0][0]
    assert scores[0] > 0 > scores[1:].max()
