"""GRPO's loss from one row per prompt: the values and gradients of TRL's rows, and what makes it fall back to them."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from helpers import picture

from rs_rlhf.models.tiny_vlm import save_tiny_vlm
from rs_rlhf.trainers._compat import SUMMED_LOSSES
from rs_rlhf.trainers.grpo import VisionGRPOConfig, VisionGRPOTrainer
from rs_rlhf.trainers.losses import group as group_loss
from rs_rlhf.trainers.losses.group import GroupLoss, Rows, group_layout, rows_by_prompt

LOSSES = sorted({*SUMMED_LOSSES, "bnpo"})
COUNTS = (1, 2, 0, 1)  # images of each prompt; the last one shows the first one's


def by_letters(prompts, completions, **columns):
    return [float(sum(map(ord, completion[0]["content"])) % 7) for completion in completions]


def rows_of(folder, counts=COUNTS):
    rows = []
    for i, count in enumerate(counts):
        names = [str(folder / f"{i % 3}-{k}.png") for k in range(count)]
        for k, name in enumerate(names):
            picture(7 * (i % 3) + k, 84 if i % 2 else 56).save(name)
        rows.append({"prompt": f"Is there water in {i}?" + " river" * i, "images": names})
    return rows


def trainer_of(vlm, folder, rows=None, lora=False, **options):
    """A trainer of four prompts with four completions each in a micro batch."""
    given = {"per_device_train_batch_size": 16, "num_generations": 4, "max_completion_length": 6, "seed": 1}
    given |= {"bf16": False, "use_cpu": True, "report_to": "none", "logging_steps": 1, "max_steps": 3}
    given |= {"save_strategy": "no", "disable_tqdm": True, "gradient_checkpointing": False, "logged_samples": 0}
    given |= {"temperature": 0.8, "learning_rate": 1e-3, "audit_steps": 0, "lr_scheduler_type": "constant"}
    args = VisionGRPOConfig(**given | {"output_dir": str(folder / "out")} | options)
    config = None
    if lora:
        from peft import LoraConfig

        config = LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.2 if lora == "dropout" else 0.0)
    data = Dataset.from_list(rows or rows_of(folder))
    evaluated = data if "eval_strategy" in options else None
    torch.manual_seed(0)
    return VisionGRPOTrainer(
        vlm, by_letters, args=args, train_dataset=data, eval_dataset=evaluated, peft_config=config
    )


@pytest.fixture(scope="module")
def peaked(tiny_vlm, tmp_path_factory):
    """A tiny Qwen2-VL whose next tokens depend on what stands before them: larger weights than at the start."""
    return larger(tiny_vlm, tmp_path_factory.mktemp("peaked"))


def larger(path, folder, times=5, dtype=torch.float32):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype)
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and "language_model.layers" in name:
            weight.data.mul_(times)
        elif "embed_tokens" in name:
            weight.data.mul_(3 * times)
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(path).save_pretrained(folder)
    return str(folder)


def batch_of(trainer, seed=0):
    """A micro batch of all prompts with one completion left out and a short one, some steps after its rollouts."""
    rows = [row for row in trainer.train_dataset for _ in range(4)]
    torch.manual_seed(seed)
    batch = trainer._prepare_inputs(rows)
    mask = batch["completion_mask"]
    mask[1] = 0  # as mask_truncated_completions does
    mask[2, 3:] = 0
    batch["num_items_in_batch"] = mask.sum()
    trainer.current_gradient_accumulation_steps = 1  # the trainer's loop would set it
    logps = passed(trainer, batch, False)[1]
    for name in ("old_per_token_logps", "ref_per_token_logps"):
        batch[name] = logps + 0.2 * torch.randn(logps.shape)
    return batch


def passed(trainer, batch, grouped, **settings):
    """Loss, log-probabilities, entropies and gradients of a batch, and how many calls had the group form."""
    given, kept, ran = trainer._get_per_token_logps_and_entropies, trainer.group_loss, []

    def noted(*args, **kwargs):
        ran.append(given(*args, **kwargs))
        return ran[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "_get_per_token_logps_and_entropies", noted)
        patch.setattr(trainer, "group_loss", kept if grouped else None)
        for name, value in settings.items():
            patch.setattr(trainer, name, value)
        trainer.model.train()
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
    logps, entropies, _ = ran[0]
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    return loss.item(), logps.detach(), entropies.detach(), gradients


@pytest.fixture
def layouts(monkeypatch):
    """The layouts that were run, in order."""
    ran, forward = [], GroupLoss._grouped

    def noted(self, model, bare, rows, layout, entropy):
        ran.append(layout)
        return forward(self, model, bare, rows, layout, entropy)

    monkeypatch.setattr(GroupLoss, "_grouped", noted)
    return ran


def assert_equal(found, expected):
    """Losses within 1e-5, values within 1e-4, and gradients within 1e-3 of their norm."""
    assert found[0] == pytest.approx(expected[0], abs=1e-5, rel=1e-4)
    for one, other in zip(found[1:3], expected[1:3], strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    assert found[3].keys() == expected[3].keys()
    norm = sum(grad.pow(2).sum() for grad in expected[3].values()).sqrt()
    off = sum((found[3][name] - grad).pow(2).sum() for name, grad in expected[3].items()).sqrt()
    assert norm > 1e-4 and off < 1e-3 * norm


def compare(trainer, batch, layouts, **settings):
    """Compares the group form with TRL's rows; returns what the group form gives."""
    layouts.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = passed(trainer, batch, True, **settings)
    assert len(layouts) >= 1
    assert_equal(found, passed(trainer, batch, False, **settings))
    return found


def test_every_loss_is_that_of_rows(peaked, tmp_path, layouts):
    trainer = trainer_of(peaked, tmp_path)
    batch = batch_of(trainer)
    found = [compare(trainer, batch, layouts, loss_type=name)[0] for name in LOSSES]
    assert len({round(loss, 6) for loss in found}) > len(LOSSES) // 2  # the losses differ from one another
    compare(trainer, batch, layouts, importance_sampling_level="sequence", loss_type="luspo")
    compare(trainer, batch, layouts, top_entropy_quantile=0.5, beta=0.1)
    _, logps, entropies, _ = compare(trainer, batch, layouts)
    mask = batch["completion_mask"].bool()
    assert not logps[~mask].any() and not entropies[~mask].any()
    assert logps[mask].std() > 0.5  # the policy is not flat, so that equality says something
    (layout,) = layouts
    assert layout.ids.shape[0] == 4 and len(layout.shared) == 16 - 4 - 1


@pytest.mark.parametrize("wrong", ["mask", "positions"])
def test_a_wrong_layout_falls_back_with_one_warning(peaked, tmp_path, monkeypatch, wrong):
    """Without its first batch's check, a plain causal mask and running positions would be silent."""
    if wrong == "mask":

        def causal(segments, dtype, additive):
            length = segments.shape[1]
            return torch.ones(length, length, dtype=torch.bool).tril().expand(len(segments), 1, -1, -1)

        monkeypatch.setattr(group_loss, "tree_mask", causal)
    else:

        def running(positions, segments):
            place = torch.arange(segments.shape[1]) - (segments == 0).sum(1, keepdim=True)
            after = positions.masked_fill(segments != 0, -1).amax(dim=(0, 2)) + 1
            return torch.where(segments == 0, positions, after[None, :, None] + place)

        monkeypatch.setattr(group_loss, "continue_positions", running)
    trainer = trainer_of(peaked, tmp_path)
    batch = batch_of(trainer)
    with pytest.warns(UserWarning, match="shared_prefix") as said:
        found = [passed(trainer, batch, True) for _ in range(2)]
    assert len([one for one in said if "shared_prefix" in str(one.message)]) == 1
    for each in found:
        assert_equal(each, passed(trainer, batch, False))
    # and the control itself: what the wrong form gives is far off
    trainer.group_loss = GroupLoss(trainer.accelerator, trainer.processing_class)
    trainer.group_loss._check = lambda *args: None
    assert (passed(trainer, batch, True)[1] - found[0][1]).abs().max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}, {"gradient_checkpointing": "reentrant"}])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("lora", [False, True])
def test_every_setting_is_that_of_rows(tmp_path, layouts, family, attention, options, lora):
    patch = 16 if family == "qwen3_vl" else 14
    size = {"min_pixels": 4 * (2 * patch) ** 2, "max_pixels": 12 * (2 * patch) ** 2, "patch_size": patch}
    path = larger(save_tiny_vlm(tmp_path / "tiny", family=family, **size), tmp_path / "peaked")
    if options.get("gradient_checkpointing") == "reentrant":
        options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    trainer = trainer_of(path, tmp_path, lora=lora, model_init_kwargs={"attn_implementation": attention}, **options)
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    batch, found = batch_of(trainer), []
    for loss in LOSSES:
        for level in ("token", "sequence"):
            for beta in (0.0, 0.1):
                settings = {"loss_type": loss, "importance_sampling_level": level, "beta": beta}
                found.append(compare(trainer, batch, layouts, **settings)[0])
    assert len({round(each, 6) for each in found}) > 1  # what is set reaches the loss


def test_the_check_runs_once_and_without_dropout(peaked, tmp_path, layouts):
    trainer = trainer_of(peaked, tmp_path, lora="dropout")
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    batch = batch_of(trainer)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        one, other = (passed(trainer, batch, True) for _ in range(2))
    assert len(layouts) == 3  # the first call twice, one of them for the check
    assert trainer.model.training and not torch.equal(one[1], other[1])  # dropout is back


def test_texts_alone_train_the_vision_tower_as_rows_do(peaked, tmp_path, layouts):
    trainer = trainer_of(peaked, tmp_path, rows_of(tmp_path, (0, 0, 0, 0)))
    batch = batch_of(trainer)
    assert "pixel_values" not in batch
    gradients = compare(trainer, batch, layouts)[3]
    assert any(".visual." in name for name in gradients)
    assert not any(gradients[name].any() for name in gradients if ".visual." in name)


def test_chunks_and_single_rows(peaked, tmp_path, layouts):
    """Old and reference log-probabilities come in parts; a part without a group has plain rows."""
    trainer = trainer_of(peaked, tmp_path)
    batch = batch_of(trainer)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    names = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
    images = {name: batch[name] for name in names} | {"num_tiles": None}
    given = (trainer.model, ids, mask, batch["completion_ids"].shape[1])
    with torch.no_grad():
        for size, count in ((6, 3), (16, 1), (1, 0)):
            layouts.clear()
            found = trainer._get_per_token_logps_and_entropies(*given, size, **images)
            assert found[1] is None and found[2] is None
            assert len(layouts) - bool(count and size == 6) == count  # once more for the check
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(trainer, "group_loss", None)
                expected = trainer._get_per_token_logps_and_entropies(*given, size, **images)
            torch.testing.assert_close(found[0], expected[0], atol=1e-4, rtol=0)


# --- layout ---------------------------------------------------------------------------------------------------------

IMAGE = 9


def config_of(attention="sdpa"):
    """The parts of a config that the layout reads."""
    text = SimpleNamespace(hidden_size=64, _attn_implementation=attention, layer_types=["full_attention"])
    vision = SimpleNamespace(spatial_merge_size=2)
    ids = {"image_token_id": IMAGE, "video_token_id": 8}
    return SimpleNamespace(model_type="qwen2_vl", **ids, vision_config=vision, get_text_config=lambda: text)


def hand_written(images=(0, 1, 0, 0)):
    """Four rows of two prompts, the second row of another one; the image of each has one token."""
    ids = [[0, IMAGE, 3, 5, 6, 0], [1, IMAGE, 4, 5, 0, 0], [0, IMAGE, 3, 7, 5, 6], [0, IMAGE, 3, 6, 0, 0]]
    mask = [[0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0]]
    pixels = torch.cat([torch.full((4, 2), float(i)) for i in images])
    given = {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 2, 2]] * 4), "num_images": [1] * 4}
    return Rows(torch.tensor(ids), torch.tensor(mask), 3, given)


def test_layout_of_rows_written_by_hand():
    rows = hand_written()
    assert rows.groups() == [[0, 2, 3], [1]]
    layout = group_layout(rows, config_of())
    assert layout.ids.tolist() == [[IMAGE, 3, 5, 3, 7, 5, 3], [1, IMAGE, 4, 0, 0, 0, 0]]
    assert layout.segments.tolist() == [[0, 1, 1, 2, 2, 2, 3], [0, 0, 1, -1, -1, -1, -1]]
    assert layout.labels.tolist() == [[-100, 5, 6, 7, 5, 6, 6], [-100, -100, 5, -100, -100, -100, -100]]
    assert layout.images["pixel_values"][:, 0].tolist() == [0.0] * 4 + [1.0] * 4
    assert layout.shared == [2, 3] and layout.order.tolist() == [0, 2, 3, 1]
    values = torch.arange(14.0).reshape(2, 7)
    assert layout.to_rows(values, rows).tolist() == [[1, 2, 0], [9, 0, 0], [3, 4, 5], [6, 0, 0]]


def test_rows_share_only_with_equal_images_and_known_inputs():
    config = config_of()
    assert hand_written((0, 1, 2, 3)).groups() == [[0], [1], [2], [3]]
    assert group_layout(hand_written((0, 1, 2, 3)), config) is None
    assert group_layout(hand_written(), config) is not None
    for change in ("input", "image", "left out", "prompt", "mismatch"):
        rows = hand_written()
        if change == "input":
            rows.inputs["image_sizes"] = torch.zeros(4)
        elif change == "image":
            rows.ids[0, 4] = IMAGE  # a picture of a tool
        elif change == "left out":
            rows.mask[2:, 3:] = 0  # completions that the loss leaves out
        elif change == "prompt":
            rows.ids[1, 1:3] = torch.tensor([4, IMAGE])  # which ends with its image
        else:
            rows.ids[1, 1] = 4  # an image without its token
        assert group_layout(rows, config) is None, change
    assert group_layout(hand_written().part(0, 2), config) is None
    assert group_layout(hand_written().part(2, 4), config_of(attention="flash_attention_2")) is None


def test_long_completions_have_plain_rows():
    """Where the masked part of attention costs more than the prompt."""
    for width, fits in ((30, True), (3000, False)):
        ids = torch.randint(10, 90, (4, 20 + width), generator=torch.Generator().manual_seed(0))
        ids[:, :20] = ids[:1, :20]
        layout = group_layout(Rows(ids, torch.ones_like(ids), width, {}), config_of())
        assert (layout is not None) == fits


def test_rows_of_a_batch_by_prompt():
    rows = hand_written()
    batch = {"prompt_ids": rows.ids[:, :3], "prompt_mask": rows.mask[:, :3], **rows.inputs, "advantages": None}
    assert rows_by_prompt(batch) == [0, 2, 3, 1]


# --- whole runs -----------------------------------------------------------------------------------------------------


def runs(vlm, folder, layouts, lora=False, **options):
    """The logs of a run in the group form and of one with rows, and the layouts of the first."""
    found = []
    for shared in (True, False):
        trainer = trainer_of(vlm, folder, lora=lora, shared_prefix=shared, **options)
        before = len(layouts)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*shared_prefix")
            trainer.train()
        assert (len(layouts) > before) == shared
        found.append([entry for entry in trainer.state.log_history if "grad_norm" in entry])
    return found


def assert_same_runs(found, steps):
    """Of what no micro batch changes: TRL averages entropy and KL over micro batches, and we order their rows anew."""
    assert [len(log) for log in found] == [steps, steps]
    for one, other in zip(*found, strict=True):
        for name in {"loss", "grad_norm", "reward"} & one.keys():
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-3), (one["step"], name)
    assert max(entry["grad_norm"] for entry in found[0]) > 1e-2


def test_a_run_is_that_of_rows(peaked, tmp_path, layouts):
    """Micro batches of an optimizer step hold whole groups, and each group twice in a step is in one row."""
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 4}
    found = runs(peaked, tmp_path, layouts, max_steps=4, num_iterations=2, beta=0.1, **options)
    assert_same_runs(found, 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.1},
        {"beta": 0.1, "lora": True},
        {"num_iterations": 2, "gradient_checkpointing": True},
        {"loss_type": "bnpo", "top_entropy_quantile": 0.5},
        {"loss_type": "vespo", "steps_per_generation": 4, "per_device_train_batch_size": 4},
        {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 1, "num_generations": 3},
        {"eval_strategy": "steps", "eval_steps": 10, "per_device_eval_batch_size": 4, "num_generations_eval": 2},
    ],
)
def test_twenty_steps_are_those_of_rows(tiny_vlm, tmp_path, layouts, options):
    """In float64: a rounding of float32 at the edge of two tokens' ranges samples another one, and runs part there."""
    batches = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "learning_rate": 1e-4}
    batches["model_init_kwargs"] = {"dtype": "auto"}
    exact = larger(tiny_vlm, tmp_path / "exact", dtype=torch.float64)
    found = runs(exact, tmp_path, layouts, **batches | {"max_steps": 20} | options)
    assert_same_runs(found, 20)
