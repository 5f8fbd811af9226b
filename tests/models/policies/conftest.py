"""What the tests of policies share: a random LLaVA, and prompts of all shapes."""

import pytest
import torch
from helpers import picture

LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}{% for part in message['content'] %}"
    "{{ '<image>\n' if part['type'] == 'image' else part['text'] }}{% endfor %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def save_llava(path, template=LLAVA_TEMPLATE):
    """Writes a random LLaVA: 28-pixel images of 4 tokens."""
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    from rs_rlhf.models.tiny_vlm import build_tokenizer

    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **sizes, "image_size": 28, "patch_size": 14},
        text_config={
            "model_type": "llama",
            **sizes,
            "vocab_size": len(tokenizer) + 8,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        dtype="float32",
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.repetition_penalty = 5.0  # would change every answer
    model.generation_config.do_sample = True
    model.save_pretrained(path)
    LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session")
def llava_path(tmp_path_factory):
    return save_llava(tmp_path_factory.mktemp("llava") / "llava")


@pytest.fixture(scope="session")
def items():
    return [
        ("What is it?", picture(1)),
        ("A longer question about the scene, is it rural?", picture(2, 56, 112)),
        ("no image", None),
        ("two", [picture(3), picture(4)]),
        ("What is it?", picture(1)),
    ]
