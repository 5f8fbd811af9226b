"""Lists of one right text against many wrong ones, and the loss that makes scores comparable between images."""

import json
from collections import Counter

import pytest
import torch
from helpers.captioned_rows import rows

from rs_rlhf.cli import main as cli
from rs_rlhf.data.captioned_images import class_name
from rs_rlhf.preferences.lists import LIST_KINDS, build_lists
from rs_rlhf.trainers.preference_loss import anchor_loss


def test_the_chosen_text_is_the_images_own_and_no_rejected_one_is():
    given = {row["id"]: row for row in rows()}
    stats: dict[str, Counter] = {}
    made = list(build_lists(rows(), rejected=6, lists_per_image=3, stats=stats))
    assert Counter(row["kind"] for row in made) == {"captions": 80, "labels": 40}
    for row in made:
        image = given[row["id"].split("#")[0]]
        own = image["captions"] if row["kind"] == "captions" else [class_name(image["label"])]
        assert row["chosen"] in own and not set(row["rejected"]) & set(own)
        assert len(set(row["rejected"])) == len(row["rejected"]) == (6 if row["kind"] == "captions" else 3)
    assert set(stats["made"]) == set(LIST_KINDS)
    assert stats["made"].total() == sum(len(row["rejected"]) for row in made)


def test_the_seed_decides():
    first, again, other = (list(build_lists(rows(), seed=seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_an_image_without_a_class_has_lists_of_what_needs_none():
    one = [{**rows(1)[0], "label": None}]
    made = list(build_lists(one, rejected=4))
    assert [row["kind"] for row in made] == ["captions", "captions"]
    assert all(row["rejected"] for row in made)


def test_nothing_to_make_is_refused():
    with pytest.raises(ValueError, match="must be at least 1"):
        list(build_lists(rows(), rejected=0))


def test_the_command_writes_lists_that_the_data_check_passes(tmp_path, capsys):
    folder = tmp_path / "scenes"
    assert cli.main(["data", "scenes", str(folder), "--n_train", "24", "--n_validation", "8"]) == 0
    output = tmp_path / "lists.jsonl"
    command = [
        "data",
        "pairs",
        "--input",
        str(folder),
        "--split",
        "train",
        "--form",
        "list",
        "--rejected",
        "5",
        "--output",
        str(output),
    ]
    assert cli.main([*command, "--kinds", "attribute"]) == 1
    assert "--kinds is for pairs" in capsys.readouterr().err
    assert cli.main(command) == 0 and "lists ->" in capsys.readouterr().out
    made = [json.loads(line) for line in output.read_text().splitlines()]
    assert {len(row["rejected"]) for row in made} <= {1, 2, 3, 4, 5}
    assert cli.main(["data", "check", str(output)]) == 0


def test_the_anchor_is_the_cross_entropy_of_right_and_wrong():
    scores = torch.tensor([[2.0, -1.0, 0.5], [0.3, 0.7, 9.0]])
    sizes = torch.tensor([3, 2])
    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    right = [entropy(scores[i, 0], torch.tensor(1.0)) for i in (0, 1)]
    wrong = [entropy(scores[0, 1:], torch.zeros(2)), entropy(scores[1, 1:2], torch.zeros(1))]
    assert anchor_loss(scores, sizes) == pytest.approx(float(sum(right) + sum(wrong)) / 4)
    assert anchor_loss(scores + 3, sizes) > anchor_loss(scores, sizes)  # a ranking loss would not see the shift


def test_the_anchor_needs_scores_of_either_sign_and_then_moves_them(tmp_path, tiny_vlm):
    from rs_rlhf import VisionRewardConfig, VisionRewardTrainer, load_preferences

    lines = [{"prompt": "", "chosen": "a river .", "rejected": ["a forest .", "a port ."]}] * 8
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
