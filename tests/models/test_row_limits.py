"""What a model's processor refuses of a row, told from texts and images' headers."""

import pytest
from helpers import picture
from transformers import AutoProcessor

from rs_rlhf.data.group import make_group
from rs_rlhf.errors import DataError, ImageError
from rs_rlhf.imagery.sources import ImageOptions
from rs_rlhf.models.collator import GroupCollator
from rs_rlhf.models.row_limits import SPECIAL_TOKENS, RowLimits, special_tokens


@pytest.fixture
def folder(tmp_path):
    picture(0).save(tmp_path / "good.png")
    picture(0, 400, 2).save(tmp_path / "thin.png")
    picture(0, 402, 2).save(tmp_path / "thinner.png")
    content = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    return tmp_path


def errors(limits, *completions, prompt="", images=()):
    group = make_group(prompt, completions, list(images), where="a.jsonl, line 3")
    return list(limits.errors(group, ["chosen", "rejected"][: len(completions)]))


@pytest.mark.parametrize(
    ("image", "fits"), [("good.png", True), ("thin.png", True), ("thinner.png", False), ("gone.png", False)]
)
def test_images_by_their_headers(folder, image, fits):
    limits = RowLimits(ImageOptions(image_root=str(folder)))
    for source in (image, str(folder / image)):
        found = errors(limits, "a river", images=[source])
        assert len(found) == (not fits)
        assert all(isinstance(error, ImageError) and error.key == "image" for error in found)
        assert all(str(error).startswith(f"a.jsonl, line 3: image {image!r}") for error in found)


def test_a_cut_file_is_found_by_decoding_alone(folder):
    options = ImageOptions(image_root=str(folder))
    assert errors(RowLimits(options), "a", images=["cut.png"]) == []
    assert "cannot be decoded" in str(errors(RowLimits(options, decode=True), "a", images=["cut.png"])[0])


def test_the_budget_is_the_processors(folder, tiny_vlm):
    collator = GroupCollator(AutoProcessor.from_pretrained(tiny_vlm))  # of 12 tokens at most
    long = str(folder / "thin.png")
    assert errors(RowLimits(), "a", images=[long]) == []
    (error,) = errors(RowLimits.of(collator), "a", images=[long])
    assert "max_pixels=9408" in str(error)
    with pytest.raises(ImageError) as refused:
        collator([make_group("", ["a"], long, where="a.jsonl, line 3")])
    assert str(refused.value) == str(error)


@pytest.mark.parametrize("token", sorted(SPECIAL_TOKENS))
def test_special_tokens_in_any_text(token, tiny_vlm):
    tokenizer = AutoProcessor.from_pretrained(tiny_vlm).tokenizer
    for limits in (RowLimits(), RowLimits(special_tokens=special_tokens(tokenizer))):
        for texts, key in ((["a", f"b{token}"], "rejected"), ([f"{token}", "b"], "chosen")):
            assert [(error.key, error.where) for error in errors(limits, *texts)] == [(key, "a.jsonl, line 3")]
        assert [error.key for error in errors(limits, "a", "b", prompt=f"{token}?")] == ["prompt"]


@pytest.mark.parametrize(
    "text", ["<|box_start|>(1,2),(3,4)<|box_end|>", "<|nothing|>", "a < b | c", "image_pad", "<think>a</think>"]
)
def test_what_a_model_answers_is_text(text, tiny_vlm):
    tokenizer = AutoProcessor.from_pretrained(tiny_vlm).tokenizer
    assert errors(RowLimits(special_tokens=special_tokens(tokenizer)), text, prompt=text) == []


@pytest.mark.parametrize("text", ["half \ud83d", "<image>"])
def test_texts_that_cannot_be_meant(text):
    assert [error.key for error in errors(RowLimits(), "a", text)] == ["rejected"]


def test_the_length_is_the_collators(folder, tiny_vlm):
    processor = AutoProcessor.from_pretrained(tiny_vlm)
    group = make_group("what?", ["a river near a road"], str(folder / "good.png"), where="a.jsonl, line 3")
    length = GroupCollator(processor)([group])["input_ids"].shape[1]
    assert list(RowLimits.of(GroupCollator(processor, max_length=length)).errors(group)) == []
    collator = GroupCollator(processor, max_length=length - 1)
    (error,) = RowLimits.of(collator).errors(group)
    with pytest.raises(DataError) as refused:
        collator([group])
    assert str(error) == str(refused.value)
