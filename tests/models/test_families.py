"""What the families of `models/families.py` do: scores, padding, images, saving, and both forms of a group."""

import copy
import json
import math

import pytest
import torch
from helpers import picture, warm
from helpers.serving import Served
from helpers.tiny_families import BUILDERS, save_family
from transformers import AutoProcessor, Florence2Config, MllamaConfig

from rs_rlhf import GroupCollator, ScoreModel, Scorer, make_group
from rs_rlhf.errors import DataError, ModelError, OptionError
from rs_rlhf.models.collator import in_placement_order
from rs_rlhf.models.families import KNOWN
from rs_rlhf.models.pixel_budget import has_budget, set_pixel_budget
from rs_rlhf.models.row_limits import RowLimits
from rs_rlhf.models.vision_sharing import same_towers
from rs_rlhf.scoring.remote import RemoteScorer

TEXTS = ["a river runs through a forest.", "two planes.", "many buildings beside a long straight road", "yes"]
assert set(BUILDERS) == {*KNOWN, "llava"}  # one that is not known
FAST = "internvl"  # what the default tier runs; Qwen's families have tests of their own there
EACH = [pytest.param(name, marks=[pytest.mark.slow] * (name != FAST)) for name in BUILDERS]


@pytest.fixture(scope="module", params=EACH)
def family(request, tmp_path_factory):
    """Its name, and the path of a score model of it whose scores differ well."""
    folder = tmp_path_factory.mktemp(request.param)
    save_family(folder / "vlm", request.param)
    torch.manual_seed(0)
    model = ScoreModel.from_pretrained(folder / "vlm", output_activation="identity")
    model.reward_head.weight.data.mul_(100)
    model.save_pretrained(folder / "score")
    AutoProcessor.from_pretrained(folder / "vlm").save_pretrained(folder / "score")
    return request.param, folder


@pytest.fixture(scope="module")
def loaded(family):
    path = family[1] / "score"
    return ScoreModel.from_pretrained(path).eval(), GroupCollator(AutoProcessor.from_pretrained(path))


def groups_of_all_kinds():
    shared = picture(1)
    return [
        make_group("What is there?", TEXTS, shared),
        make_group("", TEXTS[:2], picture(2, 56, 112)),
        make_group("Compare.", TEXTS[1:], [shared, picture(3)]),
        make_group("Is Paris in France?", ["yes", "no, it is a river"]),
        make_group("Rural?", ["yes"], shared),
    ]


def plain_rows(model, collator, group):
    """Scores of a group's texts, each as its own plain row as the family's processor makes it, read by hand."""
    scores = []
    for completion in group.completions:
        text = collator.processor.apply_chat_template(group.prompt + completion, tokenize=False)
        if group.images and collator.fits:  # our own resize
            batch = collator([make_group(group.prompt, [completion], group.images)])
            ids, index = batch["input_ids"], batch["image_index"].tolist()
            images = {k: v for k, v in batch.items() if k not in ("input_ids", "segment_ids", "image_index")}
            inputs = {"input_ids": ids, **in_placement_order(images, index)}
            inputs["mm_token_type_ids"] = (ids == model.config.image_token_id).int()
        else:
            images = [list(group.images)] if group.images else None
            inputs = collator.processor(text=[text], images=images, return_tensors="pt", add_special_tokens=False)
        hidden = model.model(**inputs, use_cache=False).last_hidden_state
        scores.append(model.reward_head(hidden[:, -1])[0, 0])
    return torch.stack(scores)


def test_models_of_one_tower_can_share_its_features(loaded):
    model, collator = loaded
    other, blind = copy.deepcopy(model), copy.deepcopy(model)
    for weight in other.part("language"):
        weight.data.add_(0.1 * torch.randn_like(weight))
    blind.part("vision")[-1].data.add_(0.1)
    assert same_towers([model, other, blind]) == [0, 0, 2]
    batch = collator(groups_of_all_kinds())
    with torch.no_grad():
        features = model.see(batch)
        for each in (model, other, model):  # features are left as they are
            alone, shared = each(**batch).scores, each(**batch, features=features).scores
            torch.testing.assert_close(shared, alone, rtol=0, atol=0, equal_nan=True)
        assert not torch.allclose(model(**batch).scores, other(**batch).scores, equal_nan=True)
        assert model.see(collator([make_group("Is Paris in France?", ["yes"])])) is None


def test_groups_equal_rows_as_the_processor_makes_them(loaded):
    model, collator = loaded
    groups = groups_of_all_kinds()
    with torch.no_grad():
        scores = model(**collator(groups)).scores
        for group, row in zip(groups, scores, strict=True):
            expected = plain_rows(model, collator, group)
            torch.testing.assert_close(row[: len(expected)], expected, atol=1e-4, rtol=0)
            assert row[len(expected) :].isnan().all()
    assert scores[~scores.isnan()].std() > 0.1


def test_the_tree_form_runs_where_it_is_known_to_be_right(loaded, monkeypatch):
    model, collator = loaded
    monkeypatch.setattr("rs_rlhf.models.score_model.tree_is_cheaper", lambda *_: True)
    ran = []
    original = ScoreModel._score_tree
    monkeypatch.setattr(ScoreModel, "_score_tree", lambda *args: ran.append(1) or original(*args))
    groups = groups_of_all_kinds()
    with torch.no_grad():
        forced = model(**collator(groups)).scores
        assert bool(ran) == getattr(KNOWN.get(model.config.model_type), "tree", False)
        monkeypatch.setattr("rs_rlhf.models.score_model.tree_is_cheaper", lambda *_: False)
        ran.clear()
        torch.testing.assert_close(model(**collator(groups)).scores, forced, atol=1e-4, rtol=0, equal_nan=True)
    assert not ran


def test_left_right_and_no_padding_agree(loaded):
    model, collator = loaded
    batch = collator([make_group("What is there?", TEXTS[:1], picture(1))])
    ids, lengths = batch["input_ids"], {"image_lengths": batch.pop("image_lengths", None)}
    images = {k: v for k, v in batch.items() if k not in ("input_ids", "segment_ids")} | lengths
    pad, zero = torch.full((1, 7), collator.tokenizer.pad_token_id), torch.zeros(1, 7, dtype=torch.long)
    ones = torch.ones_like(ids)
    with torch.no_grad():
        alone = model(ids, ones, **images).scores
        right = model(torch.cat([ids, pad], 1), torch.cat([ones, zero], 1), **images).scores
        left = model(torch.cat([pad, ids], 1), torch.cat([zero, ones], 1), **images).scores
    torch.testing.assert_close(right, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(left, alone, atol=1e-5, rtol=0)


def test_another_image_moves_the_scores(loaded):
    model, collator = loaded
    batch = collator([make_group("", TEXTS[:3], picture(1)), make_group("", TEXTS[:3], picture(2))])
    with torch.no_grad():
        scores = model(**batch).scores
        swapped = model(**{**batch, "image_index": batch["image_index"].flip(0)}).scores
    assert (scores[0] - scores[1]).abs().max() > 1e-3
    torch.testing.assert_close(scores, swapped.flip(0), atol=1e-5, rtol=0)


def test_each_image_runs_once(loaded):
    model, collator = loaded
    image, other = picture(1), picture(2)
    batch = collator([make_group(f"question {i}?", TEXTS, image) for i in range(3)] + [make_group("", TEXTS, other)])
    seen = []
    hook = model.model.get_encoder("image").register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs["pixel_values"] if "pixel_values" in kwargs else args[0])),
        with_kwargs=True,
    )
    with torch.no_grad():
        model(**batch)
        model(**collator([make_group("", TEXTS, image)]))
    hook.remove()
    assert seen[0] == 2 * seen[1]


def test_a_pixel_budget_is_set_or_refused(loaded):
    model, collator = loaded
    budget = getattr(KNOWN.get(model.config.model_type), "pixels", False)
    assert collator.fits == has_budget(collator.processor) == budget
    processor = copy.deepcopy(collator.processor)
    set_pixel_budget(processor)
    if budget:
        return set_pixel_budget(processor, max_pixels=4096)
    with pytest.raises(OptionError, match="has no pixel budget") as error:
        set_pixel_budget(processor, max_pixels=4096)
    assert error.value.key == "max_pixels"


def test_a_row_that_is_refused_is_named(loaded):
    _, collator = loaded
    mark = next(mark for mark in collator.marks.values() if "image" in mark.lower() or "IMG" in mark)
    for prompt, text in ((f"a {mark}?", "yes"), ("a?", f"yes {mark}")):
        with pytest.raises(DataError) as error:
            collator([make_group(prompt, [text], picture(1), where="q.jsonl, line 3")])
        assert error.value.where == "q.jsonl, line 3"
    row = make_group("what?", ["a river"], picture(1), where="q.jsonl, line 3")
    length = collator([row])["input_ids"].shape[1]
    for most, count in ((length, 0), (length - 1, 1)):
        limits = RowLimits.of(GroupCollator(collator.processor, max_length=most))
        assert [error.where for error in limits.errors(row)] == ["q.jsonl, line 3"] * count


def test_save_and_load_is_bit_equal(loaded, family, tmp_path):
    model, collator = loaded
    model.save_pretrained(tmp_path)
    again = ScoreModel.from_pretrained(tmp_path).eval()
    batch = collator(groups_of_all_kinds())
    with torch.no_grad():
        assert torch.equal(model(**batch).scores.nan_to_num(), again(**batch).scores.nan_to_num())


def test_texts_alone_give_every_weight_a_gradient_of_zero(family):
    model = ScoreModel.from_pretrained(family[1] / "score").train()
    collator = GroupCollator(AutoProcessor.from_pretrained(family[1] / "score"))

    def reached(*groups):
        model.zero_grad()
        scores = model(**collator(groups)).scores
        scores[~scores.isnan()].sum().backward()
        return {name for name, weight in model.named_parameters() if weight.grad is not None}

    seen, texts = reached(make_group("what?", TEXTS, picture(1))), reached(make_group("Is water wet?", ["yes", "no"]))
    assert seen == texts
    vision = {id(weight) for weight in model.part("vision")}
    assert 0 < len(vision) and len(vision) + len(model.part("language")) + 1 == len(list(model.parameters()))
    assert all(w.grad is None or w.grad.abs().max() == 0 for w in model.parameters() if id(w) in vision)


def test_families_that_cannot_score_are_refused():
    for config, reason in ((MllamaConfig(), "mllama: it takes none"), (Florence2Config(), "florence2: it is an enc")):
        with pytest.raises(ModelError, match=f"ScoreModel cannot use a {reason}"):
            ScoreModel(config)


# What the commands print or write when they have worked, after two steps or two answers.
COMMON = "--max_steps 2 --use_cpu true --report_to none --per_device_train_batch_size 2 --logging_steps 1"
COMMON += " --dtype float32 --bf16 false --dataloader_num_workers 0 --save_strategy no --eval_strategy no"
COMMANDS = {
    "reward --model_name_or_path vlm --dataset_name pairs.jsonl --output_dir score": "score/model.safetensors",
    "sft --model_name_or_path vlm --dataset_name sft.jsonl --output_dir sft": "sft/model.safetensors",
    "dpo --model_name_or_path vlm --dataset_name pairs.jsonl --output_dir dpo": "dpo/model.safetensors",
    "kto --model_name_or_path vlm --dataset_name pairs.jsonl --output_dir kto": "kto/model.safetensors",
    "grpo --model_name_or_path vlm --score_model score --dataset_name questions.jsonl --output_dir grpo"
    " --num_generations 2 --max_completion_length 4": "grpo/model.safetensors",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_every_command_takes_the_family(name, tmp_path):
    save_family(tmp_path / "vlm", name)
    files = {"pairs": [], "sft": [], "questions": []}
    for i in range(6):
        picture(i).save(tmp_path / f"{i}.png")
        images = [f"{i}.png"] * (i > 0) + ["0.png"] * (i > 3)  # none, one, and two
        files["pairs"].append({"prompt": "what?", "chosen": "a river.", "rejected": "many trees.", "images": images})
        files["sft"].append({"prompt": "what?", "completion": "a river.", "images": images})
        files["questions"].append({"prompt": "what is it?", "solution": "river", "images": [f"{i}.png"]})
    for file, rows in files.items():
        (tmp_path / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for command, written in COMMANDS.items():
        warm.run([*command.split(), *COMMON.split()], cwd=tmp_path, timeout=600, check=0)
        assert (tmp_path / written).is_file()
    groups = [make_group("q", ["a", "b c"], str(tmp_path / "1.png")), make_group("q", ["a"])]
    scorer = Scorer.from_pretrained(tmp_path / "score")
    scores = scorer.score_groups(groups)
    assert all(map(math.isfinite, sum(scores, [])))
    with Served(str(tmp_path / "score")) as served:
        assert RemoteScorer(served.url).score_groups(groups) == [pytest.approx(row, abs=1e-5) for row in scores]
    (tmp_path / "asked.yaml").write_text("title: T\nsource: s\nlayout: rows\npath: questions.jsonl\ntask: vqa\n")
    asked = "--task asked.yaml --data_root . --max_new_tokens 4"
    for command, written in {
        f"eval --model vlm {asked} --out eval": "eval/results.json",
        f"best-of-n --policy vlm --score_model score --n 2 {asked} --out best": "best",
    }.items():
        warm.run(command.split(), cwd=tmp_path, timeout=600, check=0)
        assert (tmp_path / written).exists()
