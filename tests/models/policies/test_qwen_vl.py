"""A policy answers as `generate` does, whatever the batch, and its answers can be had again."""

import shutil
import warnings

import pytest
import torch
from helpers import picture
from safetensors.torch import load_file, save_file

from rs_rlhf.data.group import make_group
from rs_rlhf.errors import ImageError, ModelError, OptionError
from rs_rlhf.models.policies.policy import Policy
from rs_rlhf.models.policies.qwen_vl import QwenVLPolicy
from rs_rlhf.models.policies.sampling import SamplingOptions, as_groups
from rs_rlhf.models.tiny_vlm import save_tiny_vlm


@pytest.fixture(scope="module")
def policy(tiny_vlm):
    return Policy.from_pretrained(tiny_vlm)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_greedy_is_that_of_generate(family, tiny_vlm, items, tmp_path):
    path = tiny_vlm
    if family != "qwen2_vl":
        path = save_tiny_vlm(tmp_path / family, family=family, min_pixels=56 * 56, max_pixels=12 * 28 * 28)
    policy = Policy.from_pretrained(path)
    expected = []
    for prompt, image in items:
        inputs = policy._inputs([make_group(prompt, [], image)])
        if image is None:  # generate takes text positions then
            inputs.pop("mm_token_type_ids")
        out = policy.model.generate(**inputs, do_sample=False, max_new_tokens=10, suppress_tokens=policy.never)
        start = inputs["input_ids"].shape[1]
        expected.append(policy.tokenizer.batch_decode(out[:, start:], skip_special_tokens=True))
    assert policy.sample(items, temperature=0, max_new_tokens=10) == expected
    assert policy.sample(items, 3, temperature=0, max_new_tokens=10) == [own * 3 for own in expected]


def test_sampling_asks_transformers_by_its_present_names(policy, items):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        assert policy.sample(items[:1], 2, max_new_tokens=3)


def test_draws_do_not_depend_on_the_batch(policy, items):
    torch.manual_seed(1)
    together = policy.sample(items, 4, max_new_tokens=6)
    torch.manual_seed(2)
    assert policy.sample(items, 4, max_new_tokens=6, batch_size=1) == together
    assert policy.sample(items, 4, max_new_tokens=6, token_budget=400) == together
    assert policy.sample(items, 4, max_new_tokens=6, seed=1) != together
    assert len({*together[0]}) > 1 and together[0] != together[4]  # the same question has its own draws
    assert torch.initial_seed() == 2  # nobody else's random numbers are touched
    groups = [make_group(prompt, ["ignored"], image) for prompt, image in items]
    assert policy.sample(groups, 4, max_new_tokens=6) == together
    assert policy.sample([], 4) == []


def test_what_is_done_is_left_out(policy, items):
    whole = dict(enumerate(policy.sample(items, 2, max_new_tokens=4, batch_size=2)))
    groups, sampling = as_groups(items), SamplingOptions(2, max_new_tokens=4, batch_size=2)
    first = next(policy.sample_batches(groups, sampling))[0]
    rest = policy.sample_batches(groups, sampling, done=first)
    again = {i: own for batch, texts in rest for i, own in zip(batch, texts, strict=True)}
    assert again == {i: own for i, own in whole.items() if i not in first}


def test_processes_share_the_batches_of_one(policy, items):
    groups, sampling = as_groups(items), SamplingOptions(2, max_new_tokens=4, token_budget=120)
    whole = list(policy.sample_batches(groups, sampling))
    shares = [list(policy.sample_batches(groups, sampling, share=(rank, 2))) for rank in (0, 1)]
    assert len(whole) > 2 and shares == [whole[0::2], whole[1::2]]
    first = whole[0][0]
    assert list(policy.sample_batches(groups, sampling, share=(0, 2), done=first)) == whole[2::2]
    assert list(policy.sample_batches(groups[:1], SamplingOptions(), share=(1, 2))) == []
    with pytest.raises(OptionError) as error:
        next(policy.sample_batches(groups, sampling, share=(2, 2)))
    assert error.value.key == "share"


def test_pixels_are_those_the_model_sees(policy):
    group = make_group("two", [], [picture(1, 900, 300), picture(2, 30, 40)])
    sizes = policy.pixels(group)
    grids = policy._inputs([group])["image_grid_thw"]
    assert [(1, height // 14, width // 14) for width, height in sizes] == [tuple(grid) for grid in grids.tolist()]
    assert sizes[0][0] > sizes[0][1] and sizes[0] != (900, 300) and policy.pixels(make_group("none", [])) == []
    with pytest.raises(ImageError, match="q.jsonl, line 3: image 'nowhere.png'"):
        policy.pixels(make_group("a", [], "nowhere.png", where="q.jsonl, line 3"))


def test_vision_tokens_are_never_sampled_and_end_tokens_end(policy):
    assert policy.tokenizer.convert_tokens_to_ids("<|image_pad|>") in policy.never
    assert policy.tokenizer.convert_tokens_to_ids("<|im_end|>") in policy.end_ids


def test_adapter_is_merged(tiny_vlm, policy, items, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(tiny_vlm)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(model, lora)
    model.save_pretrained(tmp_path / "adapter")
    adapted = Policy.from_pretrained(tmp_path / "adapter")
    answers = adapted.sample(items, temperature=0, max_new_tokens=8)
    assert answers != policy.sample(items, temperature=0, max_new_tokens=8)
    # A PEFT model as it stands in training answers alike.
    assert QwenVLPolicy(model, adapted.processor).sample(items, temperature=0, max_new_tokens=8) == answers


def test_pickled_weights_are_refused(tiny_vlm, tmp_path):
    from rs_rlhf.trainers.grpo import VisionGRPOConfig, VisionGRPOTrainer

    pickled = tmp_path / "pickled"
    shutil.copytree(tiny_vlm, pickled)
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"\.bin files only|no file named model\.safetensors"):
        Policy.from_pretrained(pickled)
    args = VisionGRPOConfig(str(tmp_path / "out"), use_cpu=True, bf16=False, report_to="none")
    with pytest.raises((OSError, ModelError), match=r"\.bin files only|no file named model\.safetensors"):
        VisionGRPOTrainer(str(pickled), lambda completions, **_: [0.0] * len(completions), args)


def test_mistakes_are_told(policy, tiny_vlm, score_model_path, tmp_path):
    with pytest.raises(ModelError, match="is no policy: its architectures are .*ScoreModel"):
        Policy.from_pretrained(score_model_path)
    with pytest.raises(ModelError, match="cannot be loaded as a policy"):
        Policy.from_pretrained(tmp_path / "nothing")
    missing = make_group("a", [], "nowhere.png", where="q.jsonl, line 3")
    with pytest.raises(ImageError, match="q.jsonl, line 3: image 'nowhere.png'"):
        policy.sample([missing])
    cut = tmp_path / "cut"
    shutil.copytree(tiny_vlm, cut)
    weights = load_file(cut / "model.safetensors")
    weights.pop(next(name for name in weights if "layers.1" in name))
    save_file(weights, cut / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="1 weights are missing, such as .*layers.1"):
        Policy.from_pretrained(cut)
