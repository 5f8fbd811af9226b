"""The reward trainer: loss, metrics, stages, LoRA, resume, and what it logs, on tiny models and real files."""

import json
import math
import os
import shutil

import datasets
import pytest
import torch
from helpers import picture
from safetensors.torch import load_file
from transformers import AutoProcessor, TrainerCallback

from rs_rlhf import ScoreModel, VisionRewardConfig, VisionRewardTrainer
from rs_rlhf.runs.checkpoints import is_whole, last_whole_checkpoint
from rs_rlhf.trainers.losses.preference import plackett_luce_loss
from rs_rlhf.trainers.reward import PreferenceCollator, ShuffledImages, set_trainable


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(12):
        picture(i).save(folder / f"{i}.png")
    return folder


def rows(images, n=12, text_only=True):
    """Preference rows: mostly one image, some text-only, one with two images, one ranked list of three."""
    out = []
    for i in range(n):
        row = {"prompt": "", "chosen": f"a river number {i % 3}.", "rejected": "many trees.", "kind": "abc"[i % 3]}
        if text_only and i % 4 == 3:
            row |= {"prompt": "Is water wet?", "source": "text"}
        elif i % 5 == 4:
            row |= {"prompt": "Compare.", "images": [str(images / f"{i % 12}.png"), str(images / "0.png")]}
        else:
            row |= {"images": [str(images / f"{i % 12}.png")], "source": "vision"}
        out.append(row)
    return out


def dataset(images, n=12, text_only=True):
    from rs_rlhf.preferences.reader import load_preferences

    folder = images / f"rows_{n}_{text_only}"
    folder.mkdir(exist_ok=True)
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(images, n, text_only)))
    return load_preferences(str(file))


def config(path, **options):
    defaults = dict(
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        learning_rate=1e-3,
        logging_steps=1,
        max_steps=2,
        save_strategy="no",
        disable_tqdm=True,
        seed=3,
    )
    return VisionRewardConfig(output_dir=str(path), **(defaults | options))


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_plackett_luce_is_bradley_terry_for_pairs():
    scores = torch.tensor([[2.0, 0.5], [0.1, 3.0]])
    expected = -torch.nn.functional.logsigmoid(scores[:, 0] - scores[:, 1]).mean()
    torch.testing.assert_close(plackett_luce_loss(scores), expected)
    margin = torch.tensor([0.3, 1.0])
    expected = -torch.nn.functional.logsigmoid(scores[:, 0] - scores[:, 1] - margin).mean()
    torch.testing.assert_close(plackett_luce_loss(scores, margin), expected)


def test_plackett_luce_of_a_list_by_hand():
    a, b, c = 1.0, 0.2, -0.7
    z = math.exp(a) + math.exp(b) + math.exp(c)
    by_hand = -math.log(math.exp(a) / z) - math.log(math.exp(b) / (math.exp(b) + math.exp(c)))
    scores = torch.tensor([[a, b, c], [a, b, float("nan")]], requires_grad=True)
    pair = math.log(1 + math.exp(b - a))
    loss = plackett_luce_loss(scores, sizes=torch.tensor([3, 2]))
    assert loss.item() == pytest.approx((by_hand + pair) / 2, abs=1e-6)
    loss.backward()
    assert torch.isfinite(scores.grad).all() and scores.grad[1, 2] == 0


def test_one_place_is_the_cross_entropy_of_choosing_the_first():
    scores = torch.tensor([[1.0, 0.5, -2.0, 3.0], [0.3, 0.2, float("nan"), float("nan")]])
    sizes = torch.tensor([4, 2])
    first = torch.nn.functional.cross_entropy(scores[:1], torch.tensor([0]))
    second = torch.nn.functional.cross_entropy(scores[1:, :2], torch.tensor([0]))
    loss = plackett_luce_loss(scores, sizes=sizes, places=1)
    torch.testing.assert_close(loss, (first + second) / 2)
    # what comes after the first place is not ranked: its order does not matter, as it does in a ranked list
    swapped = scores[:, [0, 2, 1, 3]].clone()
    swapped[1] = scores[1]
    torch.testing.assert_close(plackett_luce_loss(swapped, sizes=sizes, places=1), loss)
    assert not torch.allclose(plackett_luce_loss(swapped, sizes=sizes), plackett_luce_loss(scores, sizes=sizes))


def test_plackett_luce_is_stable_in_bfloat16():
    scores = torch.tensor([[300.0, -300.0], [-300.0, 300.0]], dtype=torch.bfloat16, requires_grad=True)
    loss = plackett_luce_loss(scores)
    loss.backward()
    assert loss.item() == pytest.approx(300.0) and torch.isfinite(scores.grad).all()


def test_a_diverged_model_shows_in_the_loss():
    scores = torch.tensor([[float("nan"), 1.0], [2.0, 1.0]])
    assert plackett_luce_loss(scores, sizes=torch.tensor([2, 2])).isnan()


def test_training_on_a_mix_learns_and_reports(images, tiny_vlm, tmp_path):
    data = dataset(images)
    trainer = VisionRewardTrainer(
        tiny_vlm, config(tmp_path, max_steps=12, eval_strategy="no"), train_dataset=data, eval_dataset=data
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"] - 0.05
    assert after["eval_score/accuracy"] == 1.0 and after["eval_score/margin"] > before["eval_score/margin"]
    for name in ("ties", "mean", "std", "min", "max", "shuffle_gap", "accuracy_kind/a", "accuracy_source/text"):
        assert f"eval_score/{name}" in after
    assert after["eval_score/shuffle_gap"] == pytest.approx(0.0)  # the texts alone tell these pairs apart
    log = trainer.state.log_history[1]
    assert 0 <= log["score/accuracy"] <= 1 and log["num_tokens"] > 0
    table = datasets.load_dataset("parquet", data_files=str(tmp_path / "worst_pairs" / "eval_000012.parquet"))["train"]
    margins = [row["chosen_score"] - row["rejected_score"] for row in table]
    assert len(table) == 8 and margins == sorted(margins)
    assert any(row["image"] is not None for row in table) and any(row["image"] is None for row in table)

    trainer.save_model(str(tmp_path / "model"))
    loaded = ScoreModel.from_pretrained(tmp_path / "model").eval()
    AutoProcessor.from_pretrained(tmp_path / "model")  # the processor is saved beside it
    batch = trainer.eval_collator([data[0], data[1]])
    inputs = {k: v for k, v in batch.items() if k not in ("margin", "sizes", "records")}
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).scores, trainer.model.eval()(**inputs).scores)


def test_shuffle_gap_shows_a_model_that_looks(images, tiny_vlm, tmp_path):
    """Trained to prefer 'dark' on dark and 'light' on light images, the model fails when the images are swapped."""
    for i in range(8):
        picture(i).point(lambda v, i=i: v // 4 + (192 if i % 2 else 0)).save(images / f"shade{i}.png")
    pairs = []
    for i in range(8):
        texts = ["light scene.", "dark scene."] if i % 2 else ["dark scene.", "light scene."]
        pairs.append({"chosen": texts[0], "rejected": texts[1], "image": str(images / f"shade{i}.png")})
    data = datasets.Dataset.from_list(pairs)
    options = config(tmp_path, max_steps=60, per_device_train_batch_size=8, learning_rate=3e-3, worst_pairs=0)
    trainer = VisionRewardTrainer(tiny_vlm, options, train_dataset=data, eval_dataset=data)
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_score/accuracy"] == 1.0
    assert metrics["eval_score/shuffle_gap"] > 0.25


def test_shuffled_images_never_keep_their_own(images):
    data = dataset(images)
    shuffled = ShuffledImages(data, limit=100, seed=0)
    assert len(shuffled) > 0
    for place, (i, _) in enumerate(shuffled.pairs):
        row = shuffled[place]
        assert row["chosen"] == data[i]["chosen"]
        assert len(row["images"]) == len(data[i]["images"]) > 0 and row["images"] != data[i]["images"]


@pytest.mark.parametrize(
    ("part", "trained"),
    [
        ("head", ["reward_head"]),
        ("vision", ["visual", "reward_head"]),
        ("language", ["language_model", "reward_head"]),
    ],
)
def test_stages_train_their_part_only(images, tiny_vlm, tmp_path, part, trained):
    trainer = VisionRewardTrainer(tiny_vlm, config(tmp_path, trainable=part), train_dataset=dataset(images))
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    changed = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed and all(any(t in name for t in trained) for name in changed)
    for t in trained:
        assert any(t in name for name in changed)


def test_set_trainable_all(tiny_vlm):
    model = ScoreModel.from_pretrained(tiny_vlm)
    set_trainable(model, "head")
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["reward_head.weight"]
    set_trainable(model, "all")
    assert all(p.requires_grad for p in model.parameters())


def test_gradient_checkpointing_gives_the_same_losses(images, tiny_vlm, tmp_path):
    runs = []
    for checkpointing in (False, True):
        options = config(tmp_path, gradient_checkpointing=checkpointing, max_steps=3)
        trainer = VisionRewardTrainer(tiny_vlm, options, train_dataset=dataset(images))
        trainer.train()
        runs.append(losses(trainer))
    assert runs[0] == pytest.approx(runs[1], abs=1e-5)


def test_lora_trains_saves_the_head_and_loads(images, tiny_vlm, tmp_path):
    from peft import LoraConfig

    lora = LoraConfig(r=4, target_modules="all-linear")
    options = config(tmp_path, max_steps=4, learning_rate=1e-2, positions="sequential", output_activation="identity")
    trainer = VisionRewardTrainer(tiny_vlm, options, train_dataset=dataset(images), peft_config=lora)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert any("reward_head" in name for name in weights)
    model = ScoreModel.from_pretrained(tmp_path / "adapter").eval()
    assert (model.config.positions, model.config.output_activation) == ("sequential", "identity")
    batch = trainer.eval_collator([dataset(images)[0]])
    inputs = {k: v for k, v in batch.items() if k not in ("margin", "sizes", "records")}
    with torch.no_grad():
        expected = trainer.model.eval()(**inputs).scores
        torch.testing.assert_close(model(**inputs).scores, expected, atol=1e-4, rtol=1e-4)


class Kill(TrainerCallback):
    """Stops the run after a step, as a crash would."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_resume_gives_the_losses_of_an_unbroken_run(images, tiny_vlm, tmp_path):
    data = dataset(images)
    options = dict(max_steps=7, save_strategy="steps", save_steps=2, augment=True, per_device_train_batch_size=4)
    whole = VisionRewardTrainer(tiny_vlm, config(tmp_path / "whole", **options), train_dataset=data)
    whole.train()
    broken = VisionRewardTrainer(
        tiny_vlm, config(tmp_path / "broken", **options), train_dataset=data, callbacks=[Kill(5)]
    )
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed = VisionRewardTrainer(tiny_vlm, config(tmp_path / "broken", **options), train_dataset=data)
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed)[:4] == losses(broken)[:4]  # taken from the checkpoint
    assert losses(resumed)[4:] == pytest.approx(losses(whole)[4:], abs=1e-6) and len(losses(resumed)) == 7
    # killed after its last step's checkpoint: nothing is left to train
    again = VisionRewardTrainer(tiny_vlm, config(tmp_path / "broken", **options), train_dataset=data)
    again.train(resume_from_checkpoint=str(tmp_path / "broken" / "checkpoint-7"))
    assert again.state.global_step == 7 and losses(again) == losses(resumed)
    for one, other in zip(again.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_half_saved_checkpoint_is_passed_over(images, tiny_vlm, tmp_path):
    data = dataset(images)
    options = dict(max_steps=4, save_strategy="steps", save_steps=2)
    VisionRewardTrainer(tiny_vlm, config(tmp_path, **options), train_dataset=data).train()
    torn = tmp_path / "checkpoint-4"
    assert is_whole(torn)
    with open(torn / "model.safetensors", "r+b") as file:
        file.truncate(1000)
    with pytest.warns(UserWarning, match="checkpoint-4 was not saved to the end"):
        assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    with pytest.raises(ValueError, match="checkpoint-4 was not saved to the end"):
        VisionRewardTrainer(tiny_vlm, config(tmp_path, **options), train_dataset=data).train(str(torn))
    shutil.copytree(tmp_path / "checkpoint-2", tmp_path / "checkpoint-6")
    os.remove(tmp_path / "checkpoint-6" / "trainer_state.json")
    with pytest.warns(UserWarning):
        trainer = VisionRewardTrainer(tiny_vlm, config(tmp_path, **options), train_dataset=data)
        trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4


def test_margin_and_centering_change_the_loss(images, tiny_vlm, tmp_path):
    data = datasets.Dataset.from_list([{**row, "margin": 2.0} for row in rows(images, 4, text_only=False)])
    plain = data.remove_columns("margin")
    results = {}
    for name, train, coefficient in (("plain", plain, None), ("margin", data, None), ("center", plain, 0.1)):
        options = config(tmp_path, max_steps=1, center_rewards_coefficient=coefficient)
        trainer = VisionRewardTrainer(tiny_vlm, options, train_dataset=train)
        trainer.train()
        results[name] = losses(trainer)[0]
    assert results["margin"] > results["plain"] + 1
    assert results["center"] > results["plain"]


def test_ranked_rejected_chooses_the_loss(images, tiny_vlm, tmp_path):
    row = {"prompt": "", "chosen": "a river.", "rejected": ["trees.", "a road.", "a port."]}
    data = datasets.Dataset.from_list([row | {"image": str(images / "0.png")}] * 4)
    found = {}
    for ranked in (True, False):
        args = config(tmp_path / str(ranked), max_steps=1, ranked_rejected=ranked)
        trainer = VisionRewardTrainer(model=tiny_vlm, args=args, train_dataset=data)
        trainer.train()
        found[ranked] = losses(trainer)[0]
    assert found[False] == pytest.approx(math.log(4), abs=0.5)  # a new head: four near-equal scores
    assert found[True] == pytest.approx(math.log(4) + math.log(3) + math.log(2), abs=0.8)


def test_image_blind_ignores_the_image(images, tiny_vlm, tmp_path):
    data = dataset(images, text_only=False)
    trainer = VisionRewardTrainer(tiny_vlm, config(tmp_path, image_blind=True), train_dataset=data)
    batch = trainer.data_collator([data[0], data[4]])
    assert "pixel_values" not in batch and batch["input_ids"].ne(trainer.data_collator.groups.image_token_id).all()


def test_evaluation_counts_each_row_once_and_does_not_augment(images, tiny_vlm, tmp_path):
    data = dataset(images, 10)
    options = config(tmp_path, augment=True)
    trainer = VisionRewardTrainer(tiny_vlm, options, train_dataset=data, eval_dataset=data)
    assert trainer.get_eval_dataloader().collate_fn is trainer.eval_collator
    assert trainer.data_collator.groups.augment and not trainer.eval_collator.groups.augment
    repeated = [{"index": i % 3, "scores": [1.0, 0.0], "tokens": 1} for i in range(4)]
    trainer._records["eval"] = repeated
    assert [r["index"] for r in trainer._gather_records("eval")] == [0, 1, 2]


def test_a_users_own_index_column_is_left_alone(images, tiny_vlm, tmp_path):
    data = datasets.Dataset.from_list([{**row, "index": "same"} for row in rows(images, 4, text_only=False)])
    trainer = VisionRewardTrainer(tiny_vlm, config(tmp_path), train_dataset=data, eval_dataset=data)
    trainer.evaluate()
    table = datasets.load_dataset("parquet", data_files=str(tmp_path / "worst_pairs" / "eval_000000.parquet"))["train"]
    assert len(table) == 4 and len(set(table["where"])) == 4


def test_gradient_accumulation_gives_the_losses_of_the_whole_batch(images, tiny_vlm, tmp_path):
    logs = []
    for batch, steps in ((4, 1), (1, 4)):
        options = config(tmp_path, per_device_train_batch_size=batch, gradient_accumulation_steps=steps, max_steps=3)
        trainer = VisionRewardTrainer(tiny_vlm, options, train_dataset=dataset(images, text_only=False))
        trainer.train()
        logs.append([e[k] for e in trainer.state.log_history if "loss" in e for k in ("loss", "grad_norm")])
    assert logs[1] == pytest.approx(logs[0], rel=1e-3)


def test_bf16_autocast_trains(images, tiny_vlm, tmp_path):
    options = config(tmp_path, bf16=True, max_steps=8)
    trainer = VisionRewardTrainer(tiny_vlm, options, train_dataset=dataset(images), eval_dataset=dataset(images))
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] < before - 0.05 and metrics["eval_score/ties"] == 0  # the head works in float32


def test_shuffle_gap_with_persistent_workers(images, tiny_vlm, tmp_path):
    """transformers hands the first evaluation loader out again then; the shuffled rows need their own."""
    data = dataset(images, text_only=False)
    options = config(tmp_path, dataloader_persistent_workers=True, dataloader_num_workers=1)
    trainer = VisionRewardTrainer(tiny_vlm, options, train_dataset=data, eval_dataset=data)
    list(trainer.get_eval_dataloader())
    shuffled = ShuffledImages(trainer.eval_dataset, limit=100, seed=0)
    loader = trainer.get_test_dataloader(shuffled)
    assert loader.dataset is shuffled and loader.collate_fn is trainer.eval_collator


def test_the_best_checkpoint_is_loaded_at_the_end(images, tiny_vlm, tmp_path):
    data = dataset(images)
    options = config(
        tmp_path,
        max_steps=3,
        learning_rate=5.0,
        save_strategy="steps",
        eval_strategy="steps",
        save_steps=1,
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        warmup_steps=2,
    )
    trainer = VisionRewardTrainer(tiny_vlm, options, train_dataset=data, eval_dataset=data)
    trainer.train()
    best = min(e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e)
    last = [e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e][-1]
    assert last > best and trainer.evaluate()["eval_loss"] == pytest.approx(best, abs=1e-4)


def test_wandb_offline_logs_scores_and_tables(images, tiny_vlm, tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    logged = {}
    data = dataset(images)
    options = config(tmp_path, report_to="wandb", run_name="test", eval_strategy="steps", eval_steps=1)
    trainer = VisionRewardTrainer(tiny_vlm, options, train_dataset=data, eval_dataset=data)
    original = wandb.Table.__init__
    monkeypatch.setattr(wandb.Table, "__init__", lambda self, *a, **k: (original(self, *a, **k), logged.update(k))[0])
    trainer.train()
    summary = dict(wandb.run.summary)
    wandb.finish()
    assert "train/score/accuracy" in summary and "eval/score/shuffle_gap" in summary
    assert "score/worst_pairs_eval/step_000001" in summary and "score/worst_pairs_eval/step_000002" in summary
    assert "image" in logged["columns"]


def test_wrong_models_and_options_are_refused(images, tiny_vlm, tmp_path):
    data = dataset(images)
    with pytest.raises(ValueError, match="trainable is 'tower', expected one of head, vision, language, all"):
        config(tmp_path, trainable="tower")
    with pytest.raises(ValueError, match="remove_unused_columns must be false"):
        config(tmp_path, remove_unused_columns=True)
    with pytest.raises(ValueError, match="augment needs dataloader_persistent_workers false"):
        config(tmp_path, augment=True, dataloader_persistent_workers=True, dataloader_num_workers=1)
    trainer = VisionRewardTrainer(tiny_vlm, config(tmp_path, max_length=10), train_dataset=data)
    with pytest.raises(ValueError, match=r"pairs.jsonl.*line 1.* tokens .*max_length is 10"):
        trainer.data_collator([data[0]])


def test_ranked_lists_of_unequal_length_share_a_batch(images, tiny_vlm, tmp_path):
    data = datasets.Dataset.from_list(
        [
            {"chosen": "a.", "rejected": ["b.", "c."], "image": str(images / "0.png")},
            {"chosen": "a.", "rejected": ["b."], "image": str(images / "1.png")},
        ]
    )
    trainer = VisionRewardTrainer(tiny_vlm, config(tmp_path), train_dataset=data, eval_dataset=data)
    batch = trainer.data_collator([data[0], data[1]])
    assert batch["sizes"].tolist() == [3, 2]
    assert isinstance(trainer.data_collator, PreferenceCollator)
    trainer.train()
    assert math.isfinite(trainer.evaluate()["eval_loss"])


def test_streamed_rows_train(images, tiny_vlm, tmp_path):
    data = dataset(images).to_iterable_dataset()
    trainer = VisionRewardTrainer(tiny_vlm, config(tmp_path, max_steps=2), train_dataset=data, eval_dataset=data)
    trainer.train()
    assert len(losses(trainer)) == 2 and "eval_score/accuracy" in trainer.evaluate()


@pytest.mark.parametrize("column", ["image", "images"])
def test_undecoded_image_columns_reach_the_workers_as_bytes(images, tiny_vlm, tmp_path, column):
    """A `datasets` Image column stays undecoded until a worker reads it, and gives the pixels of the file."""
    from PIL import Image

    paths = [str(images / f"{i}.png") for i in range(2)]
    opened = [Image.open(path) for path in paths]
    values = opened if column == "image" else [[image] for image in opened]
    rows = [{"chosen": "a river.", "rejected": "trees.", column: value} for value in values]
    data = datasets.Dataset.from_list(rows)
    trainer = VisionRewardTrainer(tiny_vlm, config(tmp_path), train_dataset=data)
    row = trainer.train_dataset[0]
    stored = row[column] if column == "image" else row[column][0]
    assert set(stored) == {"bytes", "path"}  # not decoded
    by_path = trainer.data_collator([{**row, column: paths[0] if column == "image" else [paths[0]]}])["pixel_values"]
    assert torch.equal(trainer.data_collator([row])["pixel_values"], by_path)
