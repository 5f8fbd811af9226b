"""The shared vision tower changes neither features, loss nor gradients, and runs once per distinct image."""

import copy

import pytest
import torch
from helpers import picture
from transformers import AutoModelForImageTextToText, AutoProcessor

from rs_rlhf import ScoreModel
from rs_rlhf.models.tiny_vlm import save_tiny_vlm
from rs_rlhf.models.vision_sharing import distinct_images, same_towers, share_vision

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """A tiny model of the family and its processor; 4 to 12 image tokens."""
    patch = 16 if request.param == "qwen3_vl" else 14
    path = save_tiny_vlm(
        tmp_path_factory.mktemp("vlm") / request.param,
        family=request.param,
        patch_size=patch,
        min_pixels=4 * (2 * patch) ** 2,
        max_pixels=12 * (2 * patch) ** 2,
    )
    model = AutoModelForImageTextToText.from_pretrained(path)
    return model, AutoProcessor.from_pretrained(path)


def batch_of(processor, pictures, per_row=1):
    """One row of text per image (or per `per_row` images), as TRL hands a generation batch over."""
    rows = [pictures[i : i + per_row] for i in range(0, len(pictures), per_row)]
    texts = []
    for i, row in enumerate(rows):
        content = [{"type": "image"} for _ in row] + [{"type": "text", "text": f"river {i % 3}" * (1 + i % 2)}]
        texts.append(processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False))
    batch = processor(images=rows, text=texts, padding=True, return_tensors="pt")
    return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


def run(model, batch):
    """Loss, gradients, and the patches that reached the tower."""
    seen = []
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    hook = core.model.visual.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    hook.remove()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.item(), gradients, sum(seen)


def patches(batch, images):
    return int(batch["image_grid_thw"].prod(1)[images].sum())


BATCHES = {  # places of distinct images: sizes differ between 0 and 2; distinct ones are the first occurrences
    "repeated": ([0, 0, 0, 1, 1, 1], [0, 3]),
    "distinct": ([0, 1, 2, 3], [0, 1, 2, 3]),
    "mixed": ([2, 0, 2, 1, 0, 2], [0, 1, 3]),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_loss_and_gradients_are_equal_and_each_image_runs_once(family, kind):
    plain, processor = family
    places, first = BATCHES[kind]
    size = {2: (56, 112), 3: (84, 84)}
    batch = batch_of(processor, [picture(i, *size.get(i, (112, 56))) for i in places])
    shared = copy.deepcopy(plain)
    share_vision(shared)
    share_vision(shared)  # applying it twice is harmless
    loss, gradients, count = run(plain, batch)
    shared_loss, shared_gradients, shared_count = run(shared, batch)
    assert count == patches(batch, list(range(len(places))))
    assert shared_count == patches(batch, first)
    assert shared_loss == pytest.approx(loss, abs=1e-5)
    assert gradients.keys() == shared_gradients.keys() and any(".visual." in name for name in gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(shared_gradients[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_features_are_equal_with_several_images_in_a_row(family):
    plain, processor = family
    batch = batch_of(processor, [picture(i) for i in (0, 1, 1, 0, 0, 0)], per_row=2)
    shared = copy.deepcopy(plain)
    share_vision(shared)
    with torch.no_grad():
        one, two = (
            each.model.get_image_features(batch["pixel_values"], batch["image_grid_thw"], return_dict=True)
            for each in (plain, shared)
        )
        for a, b in zip(one.pooler_output, two.pooler_output, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
        deep = [getattr(each, "deepstack_features", None) or [] for each in (one, two)]
        assert bool(deep[0]) == (plain.config.model_type == "qwen3_vl")
        for layer, other in zip(*deep, strict=True):
            for a, b in zip(layer, other, strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
        torch.testing.assert_close(plain(**batch).logits, shared(**batch).logits, atol=1e-5, rtol=0)


def test_generation_is_the_same(family):
    plain, processor = family
    batch = batch_of(processor, [picture(i) for i in (0, 0, 1)])
    batch.pop("labels")
    shared = copy.deepcopy(plain)
    share_vision(shared)
    tokens = [each.generate(**batch, max_new_tokens=3, do_sample=False) for each in (plain, shared)]
    assert torch.equal(*tokens)


def test_a_copy_of_a_shared_model_runs_its_own_tower(family):
    plain, processor = family
    batch = batch_of(processor, [picture(0), picture(0)])
    shared = copy.deepcopy(plain)
    share_vision(shared)
    other = copy.deepcopy(shared)  # as for a reference model or an average of the weights
    assert run(other, batch)[2] == patches(batch, [0])


def test_images_of_the_same_sum_are_not_merged(family):
    plain, processor = family
    batch = batch_of(processor, [picture(0), picture(0), picture(1)])
    pixels, grids = batch["pixel_values"].clone(), batch["image_grid_thw"]
    second = int(grids[0].prod())
    pixels[[second, second + 7]] = pixels[[second + 7, second]]  # two patches swapped: the same sum
    assert distinct_images(pixels, grids) == ([0, 1, 2], [0, 1, 2])
    assert distinct_images(batch["pixel_values"], grids) == ([0, 2], [0, 0, 1])
    shared = copy.deepcopy(plain)
    share_vision(shared)
    batch["pixel_values"] = pixels
    assert run(shared, batch)[2] == patches(batch, [0, 1, 2])
    assert run(shared, batch)[0] == pytest.approx(run(plain, batch)[0], abs=1e-5)


def test_lora_policy(family):
    from peft import LoraConfig, get_peft_model

    plain, processor = family
    batch = batch_of(processor, [picture(i) for i in (0, 0, 1, 1)])
    results = []
    for share in (False, True):
        torch.manual_seed(0)
        model = get_peft_model(copy.deepcopy(plain), LoraConfig(target_modules="all-linear", r=2))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)  # zero at the start, which would hide the tower's part
        if share:
            share_vision(model)
        results.append(run(model, batch))
    (loss, gradients, count), (shared_loss, shared_gradients, shared_count) = results
    assert shared_count * 2 == count and shared_loss == pytest.approx(loss, abs=1e-5)
    assert any(".visual." in name for name in gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(shared_gradients[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_towers_are_the_same_by_their_weights_and_settings(family):
    model = ScoreModel.from_causal(copy.deepcopy(family[0]), output_activation="identity")

    def other(change, positions=None):
        made = copy.deepcopy(model)
        made.config.positions = positions or made.config.positions
        change(made)
        return made

    heads = "num_heads"
    alike = [
        other(lambda m: [weight.data.add_(1) for weight in m.part("language")], "sequential"),
        other(lambda m: m.reward_head.weight.data.add_(1)),
    ]
    unlike = [
        other(lambda m: m.part("vision")[0].data.view(-1)[0].add_(1e-3)),
        other(lambda m: m.part("vision")[-1].data.view(-1)[-1].add_(1e-3)),
        other(lambda m: setattr(m.config.vision_config, heads, getattr(m.config.vision_config, heads) // 2)),
        other(lambda m: m.bfloat16()),
    ]
    assert same_towers([model, *alike]) == [0, 0, 0]
    assert same_towers([*unlike, model, *alike]) == [0, 1, 2, 3, 4, 4, 4]
    assert same_towers([unlike[0], model, copy.deepcopy(unlike[0]), alike[0]]) == [0, 1, 0, 1]
