"""The contrastive losses against transformers' own, what is no negative, and gradient caching."""

import math
from functools import partial

import pytest
import torch
from helpers import picture
from transformers import AutoModel, AutoProcessor

from rs_rlhf.models.tiny_clip import save_tiny_clip
from rs_rlhf.trainers.losses.contrastive import cached_backward, contrastive_loss, encode, same_pairs

TEXTS = ["a river .", "many trees", "two ports", "a long road near a river", "bare land", "a lake", "a plane ."]


@pytest.fixture(scope="module", params=["clip", "siglip"])
def family(request, tmp_path_factory):
    """A tiny dual encoder with a temperature (and a bias) that are no round numbers, and a batch of 7 pairs."""
    path = save_tiny_clip(
        tmp_path_factory.mktemp(request.param), TEXTS, family=request.param, image_size=32, max_length=16
    )
    processor = AutoProcessor.from_pretrained(path)
    padding = "max_length" if request.param == "siglip" else "longest"
    inputs = dict(
        processor(
            text=TEXTS,
            images=[picture(i, 40, 40) for i in range(7)],
            return_tensors="pt",
            padding=padding,
            max_length=16,
        )
    )
    return path, inputs


def load(path, dropout=0.0):
    model = AutoModel.from_pretrained(path).train()
    for part in model.modules():
        if isinstance(getattr(part, "dropout", None), float):  # the attention's
            part.dropout = dropout
    with torch.no_grad():
        model.logit_scale.fill_(1.3)
        if hasattr(model, "logit_bias"):
            model.logit_bias.fill_(-0.7)
    return model


def temperature(model):
    return {name: getattr(model, name) for name in ("logit_scale", "logit_bias") if hasattr(model, name)}


def loss_of(model, same=None):
    return partial(contrastive_loss, log_scale=model.logit_scale, bias=getattr(model, "logit_bias", None), same=same)


def grads(model):
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def assert_same(one, other, atol=1e-5):
    assert set(one) == set(other) and one
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=atol, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def cached(model, inputs, loss, chunk_size):
    return cached_backward(model, inputs, loss, temperature(model), chunk_size, backward=lambda part: part.backward())


def test_the_loss_and_its_gradient_are_those_of_transformers(family):
    path, inputs = family
    theirs, ours = load(path), load(path)
    expected = theirs(**inputs, return_loss=True).loss
    expected.backward()
    loss = loss_of(ours)(*encode(ours, inputs))
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert_same(grads(ours), grads(theirs))
    assert "logit_scale" in grads(ours)


def test_what_is_the_same_is_told_by_picture_or_text():
    keys = torch.tensor([[1, 10], [1, 11], [2, 11], [3, 12]])
    assert same_pairs(keys).tolist() == [
        [False, True, False, False],
        [True, False, True, False],
        [False, True, False, False],
        [False, False, False, False],
    ]


def test_pairs_that_are_the_same_are_no_negatives_of_each_other():
    torch.manual_seed(0)
    images, texts = torch.randn(3, 8), torch.randn(3, 8)
    same = same_pairs(torch.tensor([[1, 10], [1, 11], [2, 12]]))
    scale, bias = torch.tensor(0.4), torch.tensor(-0.2)
    unit = [torch.nn.functional.normalize(one, dim=1) for one in (images, texts)]
    logits = (unit[0] @ unit[1].T * math.exp(0.4)).tolist()
    negatives = {0: [2], 1: [2], 2: [0, 1]}

    def row(i, at):
        return math.log(sum(math.exp(at(i, j)) for j in [i, *negatives[i]])) - at(i, i)

    by_hand = sum(row(i, at) for i in range(3) for at in (lambda i, j: logits[i][j], lambda i, j: logits[j][i])) / 6
    assert contrastive_loss(images, texts, scale, same=same).item() == pytest.approx(by_hand, abs=1e-6)

    def term(i, j):
        return math.log1p(math.exp((-1 if i == j else 1) * (logits[j][i] - 0.2)))

    by_hand = sum(term(i, i) + sum(term(i, j) for j in negatives[i]) for i in range(3)) / 3
    assert contrastive_loss(images, texts, scale, bias, same).item() == pytest.approx(by_hand, abs=1e-6)


def test_a_batch_of_one_picture_teaches_clip_nothing():
    images = torch.randn(4, 8, requires_grad=True)
    same = same_pairs(torch.tensor([[1, i] for i in range(4)]))
    loss = contrastive_loss(images, torch.randn(4, 8), torch.tensor(2.0), same=same)
    loss.backward()
    assert loss.item() == 0 and images.grad.abs().max() == 0


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100])
def test_cached_gradients_are_those_of_the_whole_batch(family, chunk_size):
    path, inputs = family
    same = same_pairs(torch.tensor([[1, 10], [1, 11], [2, 11], [3, 12], [4, 13], [5, 14], [6, 15]]))
    plain, ours = load(path), load(path)
    expected = loss_of(plain, same)(*encode(plain, inputs))
    expected.backward()
    loss = cached(ours, inputs, loss_of(ours, same), chunk_size)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6) and not loss.requires_grad
    assert_same(grads(ours), grads(plain))


def test_the_second_forward_has_the_dropout_of_the_first(family):
    path, inputs = family
    plain, ours, other = (load(path, dropout=0.4) for _ in range(3))
    torch.manual_seed(3)
    chunks = [{name: one[start : start + 3] for name, one in inputs.items()} for start in (0, 3, 6)]
    images, texts = (torch.cat(own) for own in zip(*[encode(plain, chunk) for chunk in chunks], strict=True))
    expected = loss_of(plain)(images, texts)
    expected.backward()
    after = torch.rand(1)
    torch.manual_seed(3)
    loss = cached(ours, inputs, loss_of(ours), 3)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert_same(grads(ours), grads(plain))
    assert torch.equal(torch.rand(1), after)  # the state goes on as after one forward
    torch.manual_seed(4)
    assert cached(other, inputs, loss_of(other), 3).item() != pytest.approx(expected.item(), abs=1e-6)


def test_parameters_that_are_frozen_stay_without_gradient(family):
    path, inputs = family
    plain, ours = load(path), load(path)
    for model in (plain, ours):
        model.vision_model.requires_grad_(False)
        model.logit_scale.requires_grad_(False)
    loss_of(plain)(*encode(plain, inputs)).backward()
    cached(ours, inputs, loss_of(ours), 2)
    assert_same(grads(ours), grads(plain))
    assert not any(name.startswith(("vision_model", "logit_scale")) for name in grads(ours))


def test_bfloat16_features_give_a_float32_loss(family):
    path, inputs = family
    model = load(path)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model)(*encode(model, inputs))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(loss_of(model)(*encode(model, inputs)).item(), abs=0.05)
    chunked = cached_backward(
        model,
        inputs,
        loss_of(model),
        temperature(model),
        3,
        backward=lambda p: p.backward(),
        autocast=partial(torch.autocast, "cpu", torch.bfloat16),
    )
    assert chunked.item() == pytest.approx(loss.item(), abs=0.02) and model.logit_scale.grad is not None
