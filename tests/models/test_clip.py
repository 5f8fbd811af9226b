"""Dual encoders: parity with transformers, padding and batches, errors."""

import warnings

import numpy as np
import pytest
import torch
from helpers import picture

from rs_rlhf.errors import ModelError
from rs_rlhf.models.clip import ClipModel

TEXTS = ["a river.", "many green trees and several buildings near a river", "two storage tanks"]


def cosines(image, texts):
    return (image @ texts.T).tolist()


def test_cosines_are_those_of_the_forward_of_clip(clips, clip):
    from transformers import CLIPModel, CLIPProcessor

    model, processor = CLIPModel.from_pretrained(clips["clip"]), CLIPProcessor.from_pretrained(clips["clip"])
    pictures = [picture(1), picture(2, 40, 90)]
    with torch.no_grad():
        output = model(**processor(text=TEXTS, images=pictures, return_tensors="pt", padding=True))
    features = clip.image_features(pictures), clip.text_features(TEXTS)
    assert features[0].shape == (2, 64) and features[0].dtype == torch.float32
    torch.testing.assert_close(features[0] @ features[1].T * model.logit_scale.exp(), output.logits_per_image)


def test_cosines_are_those_of_the_forward_of_siglip(clips):
    from transformers import SiglipModel, SiglipProcessor

    model, processor = SiglipModel.from_pretrained(clips["siglip"]), SiglipProcessor.from_pretrained(clips["siglip"])
    inputs = processor(text=TEXTS, images=[picture(1)], return_tensors="pt", padding="max_length", max_length=24)
    inputs.pop("attention_mask", None)  # the released checkpoints' tokenizers give none
    with torch.no_grad():
        logits = model(**inputs).logits_per_image
    ours = ClipModel.from_pretrained(clips["siglip"], device="cpu")
    scores = ours.image_features([picture(1)]) @ ours.text_features(TEXTS).T
    torch.testing.assert_close(scores * model.logit_scale.exp() + model.logit_bias, logits)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_company_and_batch_size_do_not_matter(clips, family):
    whole = ClipModel.from_pretrained(clips[family], device="cpu")
    small = ClipModel.from_pretrained(clips[family], device="cpu", batch_size=1)
    pictures = [picture(i, 30 + 10 * i, 40) for i in range(4)]
    torch.testing.assert_close(whole.image_features(pictures), small.image_features(pictures), atol=1e-5, rtol=0)
    torch.testing.assert_close(whole.text_features(TEXTS), small.text_features(TEXTS), atol=1e-5, rtol=0)
    assert (whole.text_features(TEXTS[:1]) @ whole.text_features(TEXTS[1:2]).T).item() < 0.999


def test_images_of_every_form_and_unit_length(clip, tmp_path):
    picture(1).save(tmp_path / "a.png")
    data = {"bytes": (tmp_path / "a.png").read_bytes(), "path": "a.png"}
    features = clip.image_features([str(tmp_path / "a.png"), picture(1), np.asarray(picture(1)), data])
    torch.testing.assert_close(features, features[:1].expand(4, -1), atol=1e-5, rtol=0)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(4))


def test_texts_that_are_cut_are_counted(clip):
    fits, long = "river " * 22, "river " * 23  # with the start and end tokens 24 and 25
    features, cut = clip.encode_texts([fits, "a river.", long])
    assert cut == [False, False, True]
    torch.testing.assert_close(features[2], features[0])
    with pytest.warns(UserWarning, match="^2 of 3 texts are longer than the model's 24 tokens"):
        clip.text_features([long, long, fits])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip.text_features([fits])


def test_what_is_no_dual_encoder_is_refused(tiny_vlm, clips, tmp_path):
    with pytest.raises(ModelError, match="no dual encoder"):
        ClipModel.from_pretrained(tiny_vlm, device="cpu")
    with pytest.raises(ModelError, match="cannot be loaded as a CLIP"):
        ClipModel.from_pretrained(tmp_path / "nothing", device="cpu")
    model = ClipModel.from_pretrained(clips["clip"], device="cpu")
    with pytest.raises(ModelError, match="has no tokenizer"):
        ClipModel(model.model, model.processor.image_processor)


def test_missing_weights_are_refused(clips, tmp_path):
    from safetensors.torch import load_file, save_file

    ClipModel.from_pretrained(clips["clip"], device="cpu").processor.save_pretrained(tmp_path)
    weights = load_file(f"{clips['clip']}/model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ClipModel.from_pretrained(clips["clip"], device="cpu").model.config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="1 weights are missing, such as text_projection.weight"):
        ClipModel.from_pretrained(tmp_path, device="cpu")


def test_features_that_are_not_finite_are_refused(clips):
    model = ClipModel.from_pretrained(clips["clip"], device="cpu")
    model.model.text_projection.weight.data.fill_(torch.nan)
    with pytest.raises(ModelError, match="not finite"):
        model.text_features(TEXTS)
