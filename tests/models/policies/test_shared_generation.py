"""Equal prompts of a batch are read once by `generate`, and nothing else about the answers changes."""

import copy
import inspect

import pytest
import torch
from helpers import picture
from helpers.policy_families import OTHER_FAMILIES, save_policy
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen2Config, Qwen2ForCausalLM

from rs_rlhf.models.policies import shared_generation
from rs_rlhf.models.policies.shared_generation import share_prompts
from rs_rlhf.models.tiny_vlm import save_tiny_vlm

QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
PROMPTS = [
    ("What is it?", [picture(1)]),
    ("A longer question about the scene, is it rural?", [picture(2, 56, 112)]),
    ("two", [picture(3), picture(4)]),
    ("no image", []),
    ("What is it?", [picture(5)]),
]
ORDER = [0, 0, 1, 2, 2, 2, 3, 3, 0, 4, 4]  # five distinct rows
PICTURED = [0, 0, 1, 2, 2, 2, 0, 4, 4]  # other processors refuse rows without an image beside rows with one
SINGLE = [0, 0, 1, 0, 4, 4]
CASES = [(family, ORDER, 5) for family in QWEN]
CASES += [
    ("idefics3", PICTURED, 4),
    ("internvl", PICTURED, 4),
    ("llava_next", SINGLE, 3),
    ("llava_onevision", SINGLE, 3),
]
CASES += [("gemma3", PICTURED, 9), ("llava_next", PICTURED, 9)]  # windows; two images side by side, of any size
WAYS = [{"do_sample": False}, {"do_sample": True, "temperature": 1.5}]


def strong(model):
    """Weights that let every token of the prompt matter."""
    torch.manual_seed(1)
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data = torch.randn_like(weight) * (1.5 / weight.shape[-1] ** 0.5)
    return model.eval()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Families: a model and its processor."""
    made = {}
    for family in (*QWEN, *OTHER_FAMILIES):
        folder = tmp_path_factory.mktemp(family)
        path = save_tiny_vlm(folder, family=family) if family in QWEN else save_policy(folder, family)
        model = AutoModelForImageTextToText.from_pretrained(path)
        model.generation_config = type(model.generation_config)(pad_token_id=0)
        made[family] = strong(model), AutoProcessor.from_pretrained(path, padding_side="left")
    return made


def batch(processor, order=ORDER, prompts=PROMPTS):
    rows = [prompts[i] for i in order]
    parts = [[*({"type": "image"} for _ in images), {"type": "text", "text": text}] for text, images in rows]
    chats = [[{"role": "user", "content": content}] for content in parts]
    texts = [processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
    images = [images for _, images in rows if images]
    return processor(text=texts, images=images, padding=True, return_tensors="pt")


def answers(model, inputs, **options):
    """Returns tokens, logits of every step, and the rows that the first pass of the language model had."""
    rows = []
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    name = next((name for name in ("language_model", "text_model") if hasattr(core.model, name)), None)
    hook = (getattr(core.model, name) if name else core.model).register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(
            len(kwargs["input_ids"] if kwargs.get("inputs_embeds") is None else kwargs["inputs_embeds"])
        ),
        with_kwargs=True,
    )
    torch.manual_seed(3)
    found = model.generate(**inputs, max_new_tokens=8, output_logits=True, return_dict_in_generate=True, **options)
    hook.remove()
    return found.sequences, torch.stack(found.logits), rows[0]


def shared(model):
    ours = copy.deepcopy(model)
    share_prompts(ours)
    return ours


@pytest.mark.parametrize("options", WAYS)
@pytest.mark.parametrize(("family", "order", "read"), CASES)
def test_answers_are_those_of_plain_generation(models, family, order, read, options):
    model, processor = models[family]
    inputs = batch(processor, order)
    tokens, logits, rows = answers(model, inputs, **options)
    ours, our_logits, our_rows = answers(shared(model), inputs, **options)
    assert torch.equal(tokens, ours) and (logits - our_logits).abs().max() < 1e-4 * logits.abs().max()
    assert (rows, our_rows) == (len(order), read)
    assert len({tuple(row) for row in tokens[:, inputs["input_ids"].shape[1] :].tolist()}) > 1


@pytest.mark.parametrize("family", ["qwen3_vl", "llava_next"])
def test_the_vision_tower_runs_for_distinct_rows_alone(models, family):
    model, processor = models[family]
    ours, seen = shared(model), []
    encode = ours.model.get_image_features

    def noted(pixel_values, *args, **kwargs):
        seen.append(len(pixel_values))
        return encode(pixel_values, *args, **kwargs)

    noted.__signature__ = inspect.signature(encode)
    ours.model.get_image_features = noted
    inputs = batch(processor, SINGLE)
    answers(ours, inputs)
    distinct = batch(processor, sorted(set(SINGLE)))
    assert seen == [len(distinct["pixel_values"])] and seen[0] < len(inputs["pixel_values"])


def spoiled(monkeypatch, how):
    """Makes the shared prefill wrong in one way."""
    plain = shared_generation._distinct_rows

    def distinct_rows(config, ids, inputs):
        first, index, images = plain(config, ids, inputs)
        if how == "rows":
            index = index[1:] + index[:1]
        if how == "positions":
            inputs["position_ids"] = torch.arange(ids.shape[1]).expand_as(inputs["position_ids"])
        if how == "mask":
            inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
        return first, index, images

    monkeypatch.setattr(shared_generation, "_distinct_rows", distinct_rows)


@pytest.mark.parametrize("how", ["rows", "positions", "mask"])
@pytest.mark.parametrize("family", QWEN)
def test_a_wrong_row_position_or_mask_shows(models, family, how, monkeypatch):
    model, processor = models[family]
    inputs = batch(processor)
    _, logits, _ = answers(model, inputs)
    spoiled(monkeypatch, how)
    assert (answers(shared(model), inputs)[1][0] - logits[0]).abs().max() > 1e-2 * logits.abs().max()


def test_images_of_one_colour_in_two_shapes_are_two(models):
    model, processor = models["qwen2_vl"]
    flat = [Image.new("RGB", size, "grey") for size in ((56, 112), (112, 56))]
    inputs = batch(processor, [0, 1, 0, 1], [("What?", [flat[0]]), ("What?", [flat[1]])])
    assert len(set(map(tuple, inputs["input_ids"].tolist()))) == 1
    tokens, _, _ = answers(model, inputs)
    ours, _, rows = answers(shared(model), inputs)
    assert torch.equal(tokens, ours) and rows == 2


def test_texts_alone_and_adapters(models):
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
    config.num_attention_heads = config.num_key_value_heads = 4
    model = strong(Qwen2ForCausalLM(config))
    ids = torch.randint(1, 50, (2, 9))[[0, 0, 1, 0]]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert answers(model, inputs)[2] == 4 and answers(shared(model), inputs)[2] == 2
    assert torch.equal(answers(model, inputs)[0], answers(shared(model), inputs)[0])
    model, processor = models["qwen2_vl"]
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    inputs = batch(processor)
    plain = answers(adapted, inputs)
    share_prompts(adapted)
    ours = answers(adapted, inputs)
    assert torch.equal(plain[0], ours[0]) and (plain[2], ours[2]) == (11, 5)


def with_windows(model):
    config = model.config.text_config
    config.layer_types, config.sliding_window = ["sliding_attention", "full_attention"], 4
    model.model.language_model.has_sliding_layers = True


def with_dropout(model):
    model.train()
    model.config.text_config.attention_dropout = 0.0
    model.model.language_model.layers[0].self_attn.attention_dropout = 0.1


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (with_windows, {}),
        (with_dropout, {}),
        (None, {"num_beams": 2}),
        (None, {"cache_implementation": "static"}),
        (None, {"use_cache": False}),
        (None, {"do_sample": True, "num_return_sequences": 2}),
    ],
)
def test_what_is_not_known_stays_plain(models, change, options):
    model, processor = models["qwen2_vl"]
    model = copy.deepcopy(model)
    if change:
        change(model)
    inputs = batch(processor, ORDER[:6])
    tokens, _, rows = answers(model, inputs, **options)
    ours, _, our_rows = answers(shared(model), inputs, **options)
    assert torch.equal(tokens, ours) and our_rows == rows >= 6


@pytest.mark.parametrize(
    ("ids", "units", "counts"),
    [
        ([[7, 7, 1, 7], [1, 7, 7, 1]], 3, [2, 1]),  # a run is an image
        ([[7, 7, 7, 7], [1, 1, 7, 7]], 3, [2, 1]),  # two images side by side, of two tokens each
        ([[7, 1, 7, 1], [1, 1, 7, 7]], 2, [1, 1]),  # a row of tiles
        ([[7, 7, 7, 1], [1, 1, 7, 7]], 20, [12, 8]),  # four patches a token
        ([[7, 7, 7, 1], [1, 1, 7, 7]], 4, None),
        ([[1, 1, 1, 1], [1, 1, 1, 1]], 4, None),
        ([[7, 8, 1, 1], [1, 1, 7, 7]], 2, None),  # a video
    ],
)
def test_images_are_told_by_their_tokens(ids, units, counts):
    config = type("Config", (), {"image_token_id": 7, "video_token_id": 8})
    assert shared_generation._images_of_rows(config, torch.tensor(ids), units) == counts
