"""GRPO on rows with several images, one and none: any batch trains, as the same rows do in other batches."""

import pytest
import torch
from datasets import Dataset
from helpers import picture
from PIL import Image
from PIL.Image import Transpose

from rs_rlhf.errors import DataError, ImageError
from rs_rlhf.imagery.augment import speaks_of_direction
from rs_rlhf.models.vision_sharing import always_see
from rs_rlhf.trainers import grpo
from rs_rlhf.trainers.grpo import VisionGRPOConfig, VisionGRPOTrainer
from rs_rlhf.trainers.row_check import row_texts

COUNTS = (1, 2, 0, 1, 0, 1)


def length(prompts, completions, **columns):
    return [float(sum(map(ord, completion[0]["content"])) % 7) for completion in completions]


def rows_of(folder, counts=COUNTS):
    rows = []
    for i, count in enumerate(counts):
        names = [str(folder / f"{i}-{k}.png") for k in range(count)]
        for k, name in enumerate(names):
            picture(7 * i + k, 84 if i % 2 else 56).save(name)
        rows.append({"prompt": f"Is there water in {i}?", "images": names, "where": f"rows.jsonl, line {i + 1}"})
    return rows


def trainer_of(rows, tiny_vlm, folder, reward=length, **options):
    given = {"per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 4, "seed": 1}
    given |= {"bf16": False, "use_cpu": True, "report_to": "none", "logging_steps": 1, "max_steps": 3}
    given |= {"save_strategy": "no", "disable_tqdm": True, "gradient_checkpointing": False, "logged_samples": 2}
    args = VisionGRPOConfig(**given | {"output_dir": str(folder / "out")} | options)
    evaluated = Dataset.from_list(rows) if options.get("eval_strategy") else None
    return VisionGRPOTrainer(
        tiny_vlm, reward, args=args, train_dataset=Dataset.from_list(rows), eval_dataset=evaluated
    )


def norms(trainer):
    return [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ([(12, 1), (4, 3), (2, 6)], {}),
        ([(2, 2)], {"steps_per_generation": 4}),
        ([(4, 1)], {"eval_strategy": "steps", "eval_steps": 2, "num_generations_eval": 1, "validation_prompts": 6}),
        ([(4, 1)], {"score": True, "audit_steps": 1}),
    ],
)
def test_any_batches_train_alike(tmp_path, tiny_vlm, score_model_path, sizes, options):
    rows = rows_of(tmp_path)
    if options.pop("score", False):
        options["score_model"] = score_model_path
    found = []
    for size, steps in sizes:
        batches = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        trainer = trainer_of(rows, tiny_vlm, tmp_path, **batches, **options)
        trainer.train()
        found.append(norms(trainer))
    assert len(found[0]) == 3 and max(found[0]) > 0
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-3)


def test_a_mixed_batch_has_the_log_probabilities_of_its_rows(tmp_path, tiny_vlm):
    rows = rows_of(tmp_path, (1, 0, 2))
    trainer = trainer_of(rows, tiny_vlm, tmp_path, num_generations_eval=1)
    trainer.model.eval()  # no buffering: a batch comes back as it was given
    torch.manual_seed(0)
    whole = trainer._generate_and_score_completions(rows)

    def log_probabilities(batch, start, stop):
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)[start:stop]
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)[start:stop]
        counts = [len(row["images"]) for row in rows]
        patches = batch["image_grid_thw"].prod(1).tolist()
        images = slice(sum(counts[:start]), sum(counts[:stop]))
        pixels = slice(sum(patches[: images.start]), sum(patches[: images.stop]))
        kinds = batch["mm_token_type_ids"][start:stop]
        more = {"image_grid_thw": batch["image_grid_thw"][images], "pixel_values": batch["pixel_values"][pixels]}
        labels = ids.masked_fill(mask == 0, -100)
        with torch.no_grad():
            out = trainer.model(
                input_ids=ids, attention_mask=mask, labels=labels, mm_token_type_ids=kinds, fused_lm_head=True, **more
            )
        return out.log_probs[:, -batch["completion_ids"].shape[1] :]

    together = log_probabilities(whole, 0, 3)
    for i in range(3):
        torch.testing.assert_close(log_probabilities(whole, i, i + 1), together[i : i + 1], atol=1e-5, rtol=1e-4)


def test_texts_alone_run_the_vision_tower_and_change_nothing(tiny_vlm):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, processor = AutoModelForImageTextToText.from_pretrained(tiny_vlm), AutoProcessor.from_pretrained(tiny_vlm)
    ids = torch.tensor([processor.tokenizer("a river near a road")["input_ids"]])
    labels = torch.where(torch.arange(ids.shape[1]) > 0, ids, -100)  # behind the image the first token has a place too
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    plain = model(**batch).loss.item()
    always_see(model, processor)
    seen = model(**batch).loss
    seen.backward()
    tower = [weight.grad for name, weight in model.named_parameters() if ".visual." in name]
    assert seen.item() == pytest.approx(plain, rel=1e-5)
    assert all(grad is not None for grad in tower) and not any(grad.any() for grad in tower)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"images": ["gone.png"]}, ImageError),
        ({"prompt": "what <|image_pad|> is it?"}, DataError),
        ({"prompt": "<image><image> what?"}, DataError),
        ({"images": ["thin.png"]}, ImageError),
    ],
)
def test_a_bad_row_is_refused_before_the_first_step(tmp_path, tiny_vlm, change, error):
    rows = rows_of(tmp_path)
    picture(0, 603, 2).save(tmp_path / "thin.png")
    rows[3] |= change
    trainer = trainer_of(rows, tiny_vlm, tmp_path, image_root=str(tmp_path), max_steps=1)
    with pytest.raises(error) as refused:
        trainer.train()
    assert str(refused.value).startswith("rows.jsonl, line 4: ") and trainer.state.global_step == 0


def test_an_image_that_goes_later_is_named_with_its_row(tmp_path, tiny_vlm):
    rows = rows_of(tmp_path)
    trainer = trainer_of(rows, tiny_vlm, tmp_path, max_steps=6)
    look = trainer.row_errors

    def row_errors(row):
        yield from look(row)
        if row["where"].endswith("line 6"):  # the last row that is looked at
            (tmp_path / "3-0.png").unlink()

    trainer.row_errors = row_errors
    with pytest.raises(ImageError, match="rows.jsonl, line 4: image .*3-0.png.* no such file"):
        trainer.train()


def turn(content):
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    "prompt",
    [
        "water?",
        "<image>water?",
        turn("water?"),
        turn("<image>\nwater?"),
        turn([{"type": "text", "text": "water?"}]),
        turn([{"type": "image"}, {"type": "text", "text": "water?"}]),
        turn([{"type": "image", "image": None}, {"type": "text", "text": "water?", "image": None}]),
    ],
)
def test_a_prompt_is_laid_out_alike_however_it_is_written(tmp_path, tiny_vlm, prompt):
    rows = rows_of(tmp_path, (1, 1))
    trainer = trainer_of(rows, tiny_vlm, tmp_path, num_generations_eval=1)
    read = trainer.read_images([{"prompt": prompt, "images": rows[0]["images"]}])
    trainer.model.eval()
    laid = trainer._generate_and_score_completions(read)["prompt_ids"]
    plain = trainer.read_images([{"prompt": turn("water?"), "images": rows[0]["images"]}])
    assert torch.equal(laid, trainer._generate_and_score_completions(plain)["prompt_ids"])
    assert (laid == trainer.processing_class.tokenizer.convert_tokens_to_ids("<|image_pad|>")).sum() > 0


def test_rollouts_read_a_prompt_once_and_stay_the_same(tmp_path, tiny_vlm, monkeypatch):
    rows, found = rows_of(tmp_path), []
    for plain in (False, True):
        if plain:
            monkeypatch.setattr(grpo, "share_prompts", lambda model: None)
        seen = []
        trainer = trainer_of(rows, tiny_vlm, tmp_path, per_device_train_batch_size=8, max_steps=2)
        trainer.model.model.language_model.register_forward_pre_hook(
            lambda module, args, kwargs, seen=seen: seen.append(tuple(kwargs["inputs_embeds"].shape[:2])),
            with_kwargs=True,
        )
        trainer.train()
        found.append([(entry["loss"], entry["reward"]) for entry in trainer.state.log_history if "loss" in entry])
        assert seen[0][0] == (8 if plain else 4) and seen[1] == (8, 1)  # four prompts, then eight rollouts
    assert len(found[0]) == 2 and found[0] == [pytest.approx(pair, rel=1e-5) for pair in found[1]]


def pixels(pictures):
    """Pictures of a prompt as values that can be compared."""
    return tuple((one.size, one.tobytes()) for one in pictures)


@pytest.mark.parametrize(
    ("column", "speaks"),
    [
        ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "Which side?\nleft or not"}]}]}, True),
        ({"choices": ["a road", "none\neast"]}, True),
        ({"solution": [10, 20, 30, 40]}, True),
        ({"boxes": {"car": [[0.1, 0.2, 0.3, 0.4]]}}, True),
        (
            {"solution": "3", "count": 3, "images": [Image.new("RGB", (8, 8))], "where": "left/rows.jsonl, row 1"},
            False,
        ),
        ({"prompt": [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (8, 8))}]}]}, False),
    ],
)
def test_what_a_row_says_of_directions_is_found_wherever_it_stands(column, speaks):
    texts = row_texts({"prompt": "What is it?"} | column)
    assert any(map(speaks_of_direction, texts)) is speaks
    assert "0x" not in str(texts)  # the same in every process


def test_augmented_pictures_are_the_same_for_a_prompt_s_answers_and_their_rewards(tmp_path, tiny_vlm, monkeypatch):
    rows = rows_of(tmp_path, (1, 2, 1))
    rows[2] |= {"solution": "left of the road"}
    rows[0], rows[1] = rows[0] | {"solution": "yes"}, rows[1] | {"solution": "no"}
    rewarded, answered, generate = [], [], VisionGRPOTrainer._generate

    def noted(prompts, completions, images, where, **columns):
        rewarded.append([(place, pixels(shown)) for place, shown in zip(where, images, strict=True)])
        return [float(i) for i in range(len(completions))]

    def generated(self, prompts):
        parts = [[part for turn in prompt for part in turn["content"]] for prompt in prompts]
        answered.append([pixels(part["image"] for part in of_row if part["type"] == "image") for of_row in parts])
        return generate(self, prompts)

    monkeypatch.setattr(VisionGRPOTrainer, "_generate", generated)
    options = {"per_device_train_batch_size": 6, "max_steps": 6, "eval_strategy": "steps", "eval_steps": 6}
    trainer = trainer_of(rows, tiny_vlm, tmp_path, noted, augment=True, per_device_eval_batch_size=2, **options)
    trainer.train()
    plain = {row["where"]: pixels(map(Image.open, row["images"])) for row in rows}
    *trained, first_eval, second_eval, third_eval = rewarded
    assert answered == [[shown for _, shown in batch] for batch in rewarded]
    for batch in (first_eval, second_eval, third_eval):
        assert all(shown == plain[place] for place, shown in batch)
    seen = {place: {shown for batch in trained for of, shown in batch if of == place} for place in plain}
    assert all(len(set(batch)) == 3 for batch in trained)  # the answers to a prompt are to the same pictures
    assert seen[rows[2]["where"]] == {plain[rows[2]["where"]]}
    for row in rows[:2]:
        turns = [[Image.open(name).convert("RGB").transpose(turn) for name in row["images"]] for turn in Transpose]
        turned = {plain[row["where"]], *map(pixels, turns)}
        assert len(seen[row["where"]]) > 1 and seen[row["where"]] <= turned  # the images of a prompt turn together
