"""GRPO's rewards from the command line: several, weighted, with options, and logged part by part."""

import json

import pyarrow.parquet
import pytest
from helpers import picture

from rs_rlhf import rewards
from rs_rlhf.cli import main as cli
from rs_rlhf.errors import OptionError
from rs_rlhf.trainers.data.grpo import load_prompts
from rs_rlhf.trainers.grpo import VisionGRPOConfig, VisionGRPOTrainer

KINDS = (("count", "3"), ("math", "river"), ("em", "river"), ("iou", "[[0, 0, 9, 9]]"))
OPTIONS = {
    "per_device_train_batch_size": 8,
    "num_generations": 2,
    "max_completion_length": 4,
    "max_steps": 1,
    "logging_steps": 1,
    "bf16": False,
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "seed": 3,
}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A row of every kind of reward that needs no score model."""
    folder = tmp_path_factory.mktemp("kinds")
    picture(0).save(folder / "0.png")
    rows = [{"prompt": "What?", "image": "0.png", "reward_type": kind, "solution": text} for kind, text in KINDS]
    (folder / "kinds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "kinds.jsonl"


def trainer(file, model, out, reward_funcs, **more):
    data, root = load_prompts(str(file))
    args = VisionGRPOConfig(str(out), image_root=root, **OPTIONS | more)
    return VisionGRPOTrainer(model, reward_funcs, args=args, train_dataset=data)


def test_every_reward_has_a_weight(file, tiny_vlm, tmp_path):
    given = [rewards.math_reward, rewards.count_reward]
    made = trainer(file, tiny_vlm, tmp_path, given, reward="rs", format_weight=0.5, reward_weights=[1, 2, 3])
    assert made.reward_weights.tolist() == [1, 2, 3] and made.reward_funcs[0].format_weight == 0.5
    with pytest.raises(OptionError, match="rs_reward, math_reward, count_reward") as error:
        trainer(file, tiny_vlm, tmp_path, given, reward="rs", reward_weights=[1, 2])
    assert error.value.key == "reward_weights"
    with pytest.raises(OptionError) as error:
        trainer(file, tiny_vlm, tmp_path, given, reward="rs", format_weight=1.5)
    assert error.value.key == "format_weight"


def test_several_rewards_are_logged_part_by_part(file, policy_path, tmp_path, capsys):
    flags = {"dataset_name": file, "model_name_or_path": policy_path, "output_dir": tmp_path / "out", "reward": "rs"}
    flags |= {"format_weight": 0.5, "pairing": "order", "profile": "brackets", "solution_unit": "pixel"}
    flags |= OPTIONS | {"log_completions": True, "num_completions_to_print": 0}
    words = ["grpo", *(str(word) for name, value in flags.items() for word in (f"--{name}", value))]
    named = ["--reward_funcs", "math_reward", "rs_rlhf.rewards.exact_match_reward"]
    assert cli.main([*words, *named, "--reward_weights", "1", "0.5", "0.25"]) == 0
    log = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    (entry,) = [entry for entry in log if "reward" in entry]
    parts = [entry[f"rewards/{name}/mean"] for name in ("rs_reward", "math_reward", "exact_match_reward")]
    (table,) = (tmp_path / "out" / "completions").glob("*.parquet")
    rows = pyarrow.parquet.read_table(table).to_pylist()
    whole = [row["rs_reward"] + 0.5 * row["math_reward"] + 0.25 * row["exact_match_reward"] for row in rows]
    assert len(rows) == 8 and entry["reward"] == pytest.approx(sum(whole) / 8, abs=1e-5)
    assert entry["rs_reward/format"] == parts[0] == 0  # the policy answers in one word, without thoughts
    assert {(row["rs_reward/format"], row["rs_reward/accuracy"]) for row in rows} == {(0.0, None)}
    capsys.readouterr()
    assert cli.main([*words, "--overwrite_output_dir", "--reward_funcs", "rs_reward", "math_reward"]) == 1
    assert "two rewards are called rs_reward" in capsys.readouterr().err
