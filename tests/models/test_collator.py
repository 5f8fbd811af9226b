"""The collator: segments and shared images of a batch, and rows that it refuses."""

import pytest
import torch
from helpers import picture
from transformers import AutoProcessor

from rs_rlhf.data.group import make_group
from rs_rlhf.errors import DataError, ModelError, OptionError
from rs_rlhf.models.collator import GroupCollator, without_images


@pytest.fixture(scope="module")
def processor(tiny_vlm):
    return AutoProcessor.from_pretrained(tiny_vlm)


def test_an_image_stands_once_and_every_token_has_its_segment(processor):
    shared, collator = picture(1), GroupCollator(processor)
    groups = [make_group("What?", ["a", "b c"], [shared, picture(2)]), make_group("", ["d"], shared)]
    batch = collator(groups)
    assert batch["image_index"].tolist() == [0, 1, 0] and len(batch["image_grid_thw"]) == 2
    assert batch["segment_ids"].amax(1).tolist() == [2, 1] and batch["segment_ids"].shape == batch["input_ids"].shape
    assert (batch["input_ids"][batch["segment_ids"] == -1] == processor.tokenizer.pad_token_id).all()
    prompts = collator.prompts(groups)
    tokens = prompts["image_grid_thw"].prod(1) // processor.image_processor.merge_size**2
    assert len(tokens) == 3 and int(prompts["mm_token_type_ids"].sum()) == int(tokens.sum())
    assert torch.equal(prompts["attention_mask"], prompts["attention_mask"].sort(1).values)  # padding on the left
    assert "pixel_values" not in collator([without_images(group) for group in groups])


def test_padding_to_a_multiple_changes_no_token(processor):
    groups = [make_group("What?", ["a", "b c"], picture(2)), make_group("", ["d"])]
    plain = GroupCollator(processor)(groups)
    padded = GroupCollator(processor, pad_to_multiple_of=32)(groups)
    width = plain["input_ids"].shape[1]
    assert padded["input_ids"].shape == padded["segment_ids"].shape == (2, -(-width // 32) * 32)
    assert torch.equal(padded["input_ids"][:, :width], plain["input_ids"])
    assert (padded["segment_ids"][:, width:] == -1).all()


@pytest.mark.parametrize(
    ("options", "group", "message"),
    [
        ({"max_length": 5}, ("What?", ["a"]), "tokens .image tokens included. but max_length is 5"),
        ({"prompt_form": "empty-question"}, ("What?", ["a"]), "the row has a prompt"),
        ({}, ("What?", ["an <|image_pad|>"]), "1 image tokens in the text but 0 images"),
    ],
)
def test_a_row_that_is_refused_is_named(processor, options, group, message):
    with pytest.raises(DataError, match=message) as error:
        GroupCollator(processor, **options)([make_group(*group, where="q.jsonl, line 3")])
    assert error.value.where == "q.jsonl, line 3"


def test_options_and_processors_that_are_refused(tiny_vlm, processor):
    with pytest.raises(OptionError) as error:
        GroupCollator(processor, prompt_form="question")
    assert error.value.key == "prompt_form"
    other = AutoProcessor.from_pretrained(tiny_vlm)
    other.tokenizer.pad_token = None
    with pytest.raises(ModelError, match="no pad token"):
        GroupCollator(other)
