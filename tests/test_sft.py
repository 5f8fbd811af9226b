"""Supervised fine-tuning: the labels, the exact match, resuming, and evaluation without augmentation."""

import pytest
import torch
from conftest import picture
from datasets import Dataset
from transformers import AutoModelForImageTextToText, AutoProcessor

from rs_rlhf.sft import LABEL_QUESTION, VisionSFTConfig, VisionSFTTrainer, conversation_rows


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    out = []
    for i in range(8):
        picture(i).point(lambda v, i=i: v // 4 + (192 if i % 2 else 0)).save(folder / f"{i}.png")
        label = "light" if i % 2 else "dark"
        out.append({"image": str(folder / f"{i}.png"), "label": label, "captions": [f"a {label} scene.", "a scene."]})
    return out


def trainer(tiny_vlm, path, rows, **options):
    defaults = dict(
        max_steps=2, bf16=False, use_cpu=True, gradient_checkpointing=False, report_to="none", logging_steps=1,
        save_strategy="no", disable_tqdm=True, per_device_train_batch_size=4, learning_rate=3e-3, seed=1,
    )  # fmt: skip
    args = VisionSFTConfig(output_dir=str(path), **(defaults | options))
    return VisionSFTTrainer(
        model=AutoModelForImageTextToText.from_pretrained(tiny_vlm),
        args=args,
        processing_class=AutoProcessor.from_pretrained(tiny_vlm),
        train_dataset=Dataset.from_list(conversation_rows(rows)),
        eval_dataset=Dataset.from_list(conversation_rows(rows, labels_only=True)),
    )


def test_rows_ask_for_the_class_then_for_a_caption(rows):
    made = conversation_rows(rows[:1])
    assert [len(row["completion"]) for row in made] == [3, 3] and made[0]["prompt"][0]["content"] == LABEL_QUESTION
    assert [m["content"] for m in made[1]["completion"]][0::2] == ["dark", "a scene."]
    (named,) = conversation_rows([{"image": "a.png", "label": "StorageTanks"}])
    assert named["completion"] == [{"role": "assistant", "content": "storage tanks"}]
    (told,) = conversation_rows([{"image": "a.png", "captions": ["a scene.", "a scene."]}])
    assert [told["prompt"][0]["content"], told["completion"][0]["content"]] == ["Describe the image.", "a scene."]
    (only,) = conversation_rows(rows[:1], labels_only=True)
    assert [m["content"] for m in only["completion"]] == ["dark"]


def test_labels_cover_the_completion_only(tiny_vlm, rows, tmp_path):
    made = trainer(tiny_vlm, tmp_path, rows)
    batch = made.data_collator([made.train_dataset[0], made.train_dataset[2]])
    tokenizer = made.processing_class.tokenizer
    learnt = tokenizer.decode(batch["labels"][0][batch["labels"][0] != -100])
    assert learnt.startswith("dark<|im_end|>") and learnt.endswith("a dark scene.<|im_end|>\n")
    assert batch["pixel_values"].shape[0] == batch["image_grid_thw"].prod(1).sum()


def test_exact_match_is_what_greedy_decoding_gives(tiny_vlm, rows, tmp_path):
    made = trainer(tiny_vlm, tmp_path, rows, max_steps=60, per_device_train_batch_size=8)
    assert made.evaluate()["eval_exact_match"] == 0.0
    made.train()
    metrics = made.evaluate()
    right = 0
    for row in made.eval_dataset:
        batch = made.eval_collator([row])
        start = int((batch["labels"][0] == -100).sum())
        inputs = {k: v[:, :start] if k in ("input_ids", "attention_mask", "mm_token_type_ids") else v
                  for k, v in batch.items() if k != "labels"}  # fmt: skip
        out = made.model.generate(**inputs, max_new_tokens=8, do_sample=False)
        answer = made.processing_class.tokenizer.decode(out[0, start:], skip_special_tokens=True).strip()
        right += answer == row["completion"][0]["content"]
    assert metrics["eval_exact_match"] == pytest.approx(right / len(made.eval_dataset)) and right > 0


def test_resume_gives_the_losses_of_an_unbroken_run(tiny_vlm, rows, tmp_path):
    """transformers alone resumes a Qwen2-VL from random weights, with only a warning about the key names."""
    options = dict(lr_scheduler_type="constant", save_strategy="steps", save_steps=2, augment=True)
    whole = trainer(tiny_vlm, tmp_path / "whole", rows, max_steps=5, **options)
    whole.train()
    trainer(tiny_vlm, tmp_path / "broken", rows, max_steps=3, **options).train()
    resumed = trainer(tiny_vlm, tmp_path / "broken", rows, max_steps=5, **options)
    resumed.train(resume_from_checkpoint=True)
    losses = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (whole, resumed)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-6) and len(losses[1]) == 5


def test_augmentation_changes_with_the_epoch_and_stays_out_of_evaluation(tiny_vlm, rows, tmp_path):
    made = trainer(tiny_vlm, tmp_path, rows, augment=True)
    row = made.train_dataset[0]
    layout = made.data_collator.groups
    seen = []
    for layout.epoch in range(6):
        seen.append(made.data_collator([row])["pixel_values"])
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(seen, seen[1:], strict=False))
    loader = made.get_eval_dataloader()
    assert loader.collate_fn is made.eval_collator and not made.eval_collator.groups.augment
