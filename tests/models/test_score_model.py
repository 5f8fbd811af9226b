"""The score model: golden parity, invariances, the group form, loading and saving."""

import json
import shutil

import pytest
import torch
from helpers import data_folder, picture
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, MllamaConfig

from rs_rlhf import GroupCollator, ScoreModel, make_group
from rs_rlhf.errors import DataError, ModelError, OptionError
from rs_rlhf.models import layout
from rs_rlhf.models.layout import tree_is_cheaper, tree_mask
from rs_rlhf.models.tiny_vlm import save_tiny_vlm
from rs_rlhf.trainers.losses.preference import plackett_luce_loss

COMPLETIONS = ["a river runs through a forest.", "two planes.", "many buildings beside a long straight road", "yes"]


@pytest.fixture
def model(score_model_path):
    return ScoreModel.from_pretrained(score_model_path).eval()


@pytest.fixture
def collator(score_model_path):
    return GroupCollator(AutoProcessor.from_pretrained(score_model_path))


def mixed_groups():
    shared = picture(1)
    return [
        make_group("What is there?", COMPLETIONS, shared),
        make_group("", COMPLETIONS[:2], picture(2, 56, 112)),
        make_group("Compare.", COMPLETIONS[1:], [shared, picture(3)]),
        make_group("Is Paris in France?", ["yes", "no, it is a river"]),
        make_group("Rural?", ["yes"], shared),
    ]


def one_by_one(model, collator, groups):
    """Scores every completion as its own plain, unpadded row."""
    rows = []
    for group in groups:
        for completion in group.completions:
            batch = collator([type(group)(group.prompt, [completion], group.images)])
            index = batch.pop("image_index", torch.tensor([], dtype=torch.long))
            if "pixel_values" in batch:  # placements of one image share its patches; a plain row repeats them
                patches = batch["pixel_values"].split(batch["image_grid_thw"].prod(1).tolist())
                batch["pixel_values"] = torch.cat([patches[i] for i in index.tolist()])
                batch["image_grid_thw"] = batch["image_grid_thw"][index]
            mask = (batch.pop("segment_ids") >= 0).long()
            rows.append(model(**batch, attention_mask=mask).scores)
    return torch.cat(rows)


@pytest.mark.parametrize("positions", [None, "sequential", "mrope"])
def test_published_layout_gives_the_authors_scores(positions):
    folder = data_folder("scorers_layout")
    expected = json.loads((folder / "expected.json").read_text())
    inputs = load_file(folder / "inputs.safetensors")
    model = ScoreModel.from_pretrained(str(folder), positions=positions).eval()
    mode = positions or "sequential"
    assert model.config.positions == mode
    for _ in range(2):  # the authors' code answers differently the second time
        scores = model(**inputs).scores
        torch.testing.assert_close(scores, torch.tensor(expected[f"scores_{mode}"]), atol=1e-4, rtol=0)
        loss = plackett_luce_loss(torch.stack([scores[0::2], scores[1::2]], dim=1))
        assert loss.item() == pytest.approx(expected[f"pair_loss_{mode}"], abs=1e-4)


@pytest.mark.parametrize("positions", ["mrope", "sequential"])
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_groups_equal_rows(tmp_path, family, positions, attention):
    path = save_tiny_vlm(tmp_path, family=family, max_pixels=12 * 28 * 28)
    torch.manual_seed(0)
    model = ScoreModel.from_pretrained(path, positions, output_activation="identity", attn_implementation=attention)
    model.eval()
    model.reward_head.weight.data.mul_(20)
    collator = GroupCollator(AutoProcessor.from_pretrained(path))
    groups = mixed_groups()
    batch = collator(groups)
    assert len(batch["image_grid_thw"]) == 3 and len(batch["image_index"]) == 5  # each distinct image once
    with torch.no_grad():
        scores = model(**batch).scores
        rows = one_by_one(model, collator, groups)
    assert scores.shape == (5, 4)
    exists = torch.tensor([[k < len(g.completions) for k in range(4)] for g in groups])
    assert torch.equal(scores.isnan(), ~exists)
    torch.testing.assert_close(scores[exists], rows, atol=1e-4, rtol=0)
    assert rows.std() > 0.1  # the scores differ enough for the comparison to mean something


def test_group_gradients_equal_row_gradients(model, collator):
    groups = [make_group("What is there?", COMPLETIONS[:2], picture(i)) for i in range(3)]
    plackett_luce_loss(model(**collator(groups)).scores).backward()
    grouped = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    plackett_luce_loss(one_by_one(model, collator, groups).view(3, 2)).backward()
    norm = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
    assert set(grouped) == {name for name, p in model.named_parameters() if p.grad is not None}
    difference = torch.cat([(grouped[n] - p.grad).flatten() for n, p in model.named_parameters() if n in grouped])
    assert difference.norm() / norm < 1e-3
    assert any("visual" in name and g.abs().max() > 0 for name, g in grouped.items())


def test_parts_of_a_batch_give_the_scores_and_gradients_of_all_at_once(model, collator, monkeypatch):
    """On a CPU a batch is run in parts, each with its own images."""
    batch = collator(mixed_groups())
    found = []
    for tokens in (1, 200, 10**9):
        monkeypatch.setattr(layout, "CPU_TOKENS", tokens)
        model.zero_grad()
        scores = model(**batch).scores
        scores[~scores.isnan()].sum().backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((len(layout.parts_of(batch["segment_ids"])), scores.detach(), gradients))
    assert [count for count, *_ in found][::2] == [5, 1] and 1 < found[1][0] < 5
    for _, scores, gradients in found[:2]:
        torch.testing.assert_close(scores, found[2][1], atol=1e-5, rtol=0, equal_nan=True)
        assert (gradients - found[2][2]).norm() < 1e-4 * found[2][2].norm()


def test_group_gradients_with_checkpointing(model, collator):
    batch = collator(mixed_groups()[:3])
    exists = None
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        model.zero_grad()
        scores = model(**batch).scores
        exists = ~scores.isnan()
        scores[exists].sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert (gradients[0] - gradients[1]).norm() / gradients[0].norm() < 1e-5


def test_long_completions_fall_back_to_rows_with_the_same_scores(model, collator):
    long = [" ".join(["a river and a bridge beside many trees"] * n) for n in (60, 70, 80)]
    groups = [make_group("", long, picture(1)), make_group("What?", ["yes", long[0]], [picture(1), picture(2)])]
    batch = collator(groups)
    assert not tree_is_cheaper(batch["segment_ids"], model.config.get_text_config().hidden_size)
    with torch.no_grad():
        scores = model(**batch).scores
        rows = one_by_one(model, collator, groups)
    torch.testing.assert_close(scores[~scores.isnan()], rows, atol=1e-4, rtol=0)


def test_plain_causal_mask_and_running_positions_are_wrong(model, collator, monkeypatch):
    """Negative controls: without the tree mask or the restarted positions the scores are far off."""
    batch = collator([make_group("What is there?", COMPLETIONS, picture(1))])
    right = model(**batch).scores
    import rs_rlhf.models.score_model as module

    def causal(segments, dtype, additive):
        return torch.ones(1, 1, segments.shape[1], segments.shape[1], dtype=torch.bool).tril()

    monkeypatch.setattr(module, "tree_mask", causal)
    assert (model(**batch).scores - right)[0, 1:].abs().max() > 1e-2
    monkeypatch.setattr(module, "tree_mask", tree_mask)
    monkeypatch.setattr(module, "continue_positions", lambda p, s: torch.arange(s.shape[1]).expand(3, 1, -1).clone())
    assert (model(**batch).scores - right).abs().max() > 1e-2


def test_left_right_and_no_padding_agree(model, collator):
    batch = collator([make_group("What is there?", [COMPLETIONS[0]], picture(1))])
    ids = batch["input_ids"]
    images = {k: batch[k] for k in ("pixel_values", "image_grid_thw")}
    alone = model(ids, torch.ones_like(ids), **images).scores
    pad, zero = torch.full((1, 7), model.config.get_text_config().pad_token_id), torch.zeros(1, 7, dtype=torch.long)
    right = model(torch.cat([ids, pad], 1), torch.cat([torch.ones_like(ids), zero], 1), **images).scores
    left = model(torch.cat([pad, ids], 1), torch.cat([zero, torch.ones_like(ids)], 1), **images).scores
    torch.testing.assert_close(right, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(left, alone, atol=1e-5, rtol=0)
    assert alone.shape == (1,)


def test_pooling_reads_the_answer_when_pad_is_the_end_of_turn(model, collator):
    """The authors' best-of-N script sets pad = end of turn, which also ends the user turn, and pools too early."""
    collator.tokenizer.pad_token = "<|im_end|>"
    batch = collator([make_group("Q", [COMPLETIONS[0], COMPLETIONS[1]], picture(1)), make_group("", ["yes"])])
    scores = model(**batch).scores
    assert abs(scores[0, 0] - scores[0, 1]) > 1e-3
    collator.tokenizer.pad_token = "<|endoftext|>"
    again = model(**collator([make_group("", ["yes"])])).scores
    torch.testing.assert_close(scores[1, :1], again[0], atol=1e-5, rtol=0)


def test_order_and_image_matter(model, collator):
    groups = [make_group("", COMPLETIONS[:3], picture(1)), make_group("", COMPLETIONS[:3], picture(2))]
    scores = model(**collator(groups)).scores
    swapped = model(**collator(groups[::-1])).scores
    torch.testing.assert_close(scores, swapped.flip(0), atol=1e-5, rtol=0)
    assert (scores[0] - scores[1]).abs().max() > 1e-3  # the image is seen


def test_save_and_load_is_bit_equal(model, collator, tmp_path):
    model.config.positions = "sequential"
    model.save_pretrained(tmp_path)
    assert list(tmp_path.glob("*.safetensors")) and not list(tmp_path.glob("*.bin"))
    again = ScoreModel.from_pretrained(tmp_path).eval()
    assert again.config.positions == "sequential"
    batch = collator(mixed_groups()[:2])
    assert torch.equal(model(**batch).scores.nan_to_num(), again(**batch).scores.nan_to_num())


def test_causal_checkpoint_keeps_every_weight_but_the_head(tiny_vlm):
    causal = AutoModelForImageTextToText.from_pretrained(tiny_vlm)
    model = ScoreModel.from_pretrained(tiny_vlm)
    assert model.config.positions == "mrope"
    for name, weight in causal.model.named_parameters():
        assert torch.equal(weight, dict(model.model.named_parameters())[name]), name


def edit_weights(source, target, edit):
    shutil.copytree(source, target)
    weights = load_file(target / "model.safetensors")
    edit(weights)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_missing_weight_is_an_error_that_names_it(tiny_vlm, tmp_path):
    path = edit_weights(tiny_vlm, tmp_path / "a", lambda w: w.pop("model.layers.0.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"missing \(1\): model.language_model.layers.0.mlp.up_proj.weight"):
        ScoreModel.from_pretrained(path)


def test_unexpected_weight_is_an_error_that_names_it(tiny_vlm, tmp_path):
    path = edit_weights(tiny_vlm, tmp_path / "a", lambda w: w.update({"model.layers.9.extra": torch.ones(1)}))
    with pytest.raises(ModelError, match=r"unexpected \(1\): .*layers.9.extra"):
        ScoreModel.from_pretrained(path)


def test_score_model_without_a_head_refuses_to_load(score_model_path, tmp_path):
    path = edit_weights(score_model_path, tmp_path / "a", lambda w: w.pop("reward_head.weight"))
    with pytest.raises(ModelError, match="has no reward_head.weight"):
        ScoreModel.from_pretrained(path)


def test_other_architectures_are_refused(tiny_vlm, tmp_path):
    shutil.copytree(tiny_vlm, tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    config["architectures"] = ["Qwen2VLModel"]
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="expected a causal vision-language model"):
        ScoreModel.from_pretrained(tmp_path / "a")
    with pytest.raises(OptionError, match="positions must be one of mrope, sequential, got 'xyz'"):
        ScoreModel.from_pretrained(tiny_vlm, positions="xyz")


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_loaded_causal_model_becomes_what_its_folder_gives(family, tmp_path):
    path = save_tiny_vlm(tmp_path / "vlm", family=family)
    collator = GroupCollator(AutoProcessor.from_pretrained(path))
    causal = AutoModelForImageTextToText.from_pretrained(path)
    before = causal.config.to_dict()
    made = ScoreModel.from_causal(causal, "sequential", output_activation="identity").eval()
    assert causal.config.to_dict() == before and made.model is causal.model
    loaded = ScoreModel.from_pretrained(path, "sequential", output_activation="identity").eval()
    assert {name: (p.shape, p.dtype) for name, p in made.named_parameters()} == {
        name: (p.shape, p.dtype) for name, p in loaded.named_parameters()
    }
    assert made.reward_head.weight.std() > 0.001  # initialised, with a spread
    loaded.reward_head.weight.data.copy_(made.reward_head.weight)
    batch = collator(mixed_groups()[:2])
    with torch.no_grad():
        torch.testing.assert_close(made(**batch).scores, loaded(**batch).scores, equal_nan=True)
    made.save_pretrained(tmp_path / "saved")
    saved = ScoreModel.from_pretrained(tmp_path / "saved").eval()
    assert (saved.config.positions, saved.config.output_activation) == ("sequential", "identity")
    with torch.no_grad():
        torch.testing.assert_close(saved(**batch).scores, made(**batch).scores, equal_nan=True)


def test_another_family_is_refused_before_its_weights_are_asked_for(tmp_path):
    config = MllamaConfig(architectures=["MllamaForConditionalGeneration"])
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="cannot use a mllama"):
        ScoreModel.from_pretrained(tmp_path)


def test_lora_keeps_the_head_and_merges(score_model_path, collator, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = ScoreModel.from_pretrained(score_model_path)
    lora = get_peft_model(base, LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["reward_head"]))
    for name, weight in lora.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            torch.nn.init.normal_(weight, std=0.1)
    batch = collator(mixed_groups()[:1])
    expected = lora.eval()(**batch).scores
    lora.save_pretrained(tmp_path / "adapter")
    merged = ScoreModel.from_pretrained(tmp_path / "adapter").eval()
    torch.testing.assert_close(merged(**batch).scores, expected, atol=1e-4, rtol=0)
    merged.save_pretrained(tmp_path / "merged")
    again = ScoreModel.from_pretrained(tmp_path / "merged").eval()
    assert torch.equal(again(**batch).scores, merged(**batch).scores)

    headless = get_peft_model(ScoreModel.from_pretrained(score_model_path), LoraConfig(target_modules=["q_proj"]))
    headless.save_pretrained(tmp_path / "headless")
    with pytest.raises(ModelError, match="the adapter holds no reward_head"):
        ScoreModel.from_pretrained(tmp_path / "headless")


def test_identity_activation_gives_negative_scores(tiny_vlm, collator):
    torch.manual_seed(0)
    model = ScoreModel.from_pretrained(tiny_vlm, output_activation="identity").eval()
    batch = collator([make_group("", COMPLETIONS, picture(i)) for i in range(4)])
    raw = model(**batch).scores
    model.config.output_activation = "softplus"
    torch.testing.assert_close(model(**batch).scores, torch.nn.functional.softplus(raw))
    assert raw.min() < 0


def test_unknown_arguments_and_empty_rows_are_errors(model):
    ids = torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(TypeError, match="pixel_value_videos"):
        model(ids, pixel_value_videos=ids)
    with pytest.raises(DataError, match="no attended token"):
        model(ids, torch.tensor([[1, 1, 1], [0, 0, 0]]))


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_process_without_images_still_gives_every_weight_a_gradient(tmp_path, family):
    path = save_tiny_vlm(tmp_path / "vlm", family=family)
    model, collator = ScoreModel.from_pretrained(path), GroupCollator(AutoProcessor.from_pretrained(path))
    batch = collator([make_group("Is water wet?", ["yes", "no"])])
    alone = model(**batch).scores
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        scores = model(**batch).scores
        scores.sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert torch.equal(scores, alone)
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
    assert all(weight.grad.abs().max() == 0 for name, weight in model.named_parameters() if "visual" in name)
