"""Zero-shot classification and retrieval: figures made by hand, ties, several captions, and a CLIP that learns."""

import base64
import json

import numpy as np
import pytest
import torch
from helpers import picture
from PIL import Image

from rs_rlhf.data.group import make_group
from rs_rlhf.data.questions import QuestionRow
from rs_rlhf.errors import DataError, ImageError, OptionError
from rs_rlhf.evaluation.benchmark import Benchmark
from rs_rlhf.evaluation.clip import (
    class_features,
    image_features,
    retrieval_raw,
)
from rs_rlhf.evaluation.protocols import clip_protocol
from rs_rlhf.metrics.retrieval import rank_retrieval, retrieval_figures, zero_shot_figures
from rs_rlhf.models.clip import ClipModel
from rs_rlhf.models.tiny_clip import save_tiny_clip

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 50, 220), "yellow": (230, 220, 40)}
TEMPLATES = ["a satellite photo of {c}.", "a satellite image of {c}"]


def coloured(name, seed):
    noise = np.random.default_rng(seed).integers(-25, 26, (32, 32, 3))
    return Image.fromarray(np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8))


def question(image, captions=(), reference="", name="row"):
    return QuestionRow(make_group("", [], image, where=name), "", name, reference=reference, captions=list(captions))


@pytest.fixture(scope="module")
def clip_path(tmp_path_factory):
    texts = [template.replace("{c}", name) for name in COLOURS for template in TEMPLATES]
    return save_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny", texts, image_size=32, max_length=16)


@pytest.fixture(scope="module")
def clip(clip_path):
    return ClipModel.from_pretrained(clip_path, device="cpu")


@pytest.fixture(scope="module")
def trained(clip_path):
    """A tiny CLIP that has learnt the four colours."""
    clip = ClipModel.from_pretrained(clip_path, device="cpu")
    model, processor = clip.model.train(), clip.processor
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(40):
        pictures = [coloured(name, 100 * step + i) for i, name in enumerate(COLOURS)]
        texts = [TEMPLATES[step % 2].replace("{c}", name) for name in COLOURS]
        inputs = processor(text=texts, images=pictures, return_tensors="pt", padding=True)
        loss = model(**inputs, return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3
    model.eval()
    return clip


def test_a_class_is_the_scaled_mean_of_its_templates(clip):
    features = class_features(clip, ["river", "port"], TEMPLATES)
    for own, name in zip(features, ["river", "port"], strict=True):
        pair = clip.text_features([f"a satellite photo of {name}.", f"a satellite image of {name}"])
        torch.testing.assert_close(own, (pair[0] + pair[1]) / (pair[0] + pair[1]).norm(), atol=1e-5, rtol=0)
    assert features.shape == (2, 64)
    for names, templates, told in (
        (["a", "a"], TEMPLATES, r"\['a'\] more than once"),
        ([], TEMPLATES, "0 class names"),
        (["a"], ["a photo"], "each with {c}"),
        (["a"], [], "at least one"),
    ):
        with pytest.raises(ValueError, match=told):
            class_features(clip, names, templates)


def retrieval(clip, rows, batch_size=2):
    benchmark = Benchmark("t", "retrieval", "rows", "d", "here")
    return clip_protocol(benchmark, lambda: clip, rows, batch_size)


def test_batches_are_formed_from_the_data_alone(clip):
    rows = [question(picture(i, 32, 32), ["a"]) for i in range(7)]

    def encoded(share=(0, 1), done=frozenset()):
        """Places of each batch, and the vectors of its images as they are stored."""
        batches = retrieval(clip, rows).answer(rows, share, done)
        return [(places, [one["image_features"] for one in raws]) for places, raws in batches]

    whole = encoded()
    assert [places for places, _ in whole] == [[0, 1], [2, 3], [4, 5], [6]]
    alone = clip.image_features([picture(i, 32, 32) for i in range(7)])
    vectors = [np.frombuffer(base64.b64decode(text), "<f4") for _, part in whole for text in part]
    torch.testing.assert_close(torch.from_numpy(np.stack(vectors)), alone, atol=1e-5, rtol=0)
    shares = [encoded(share=(rank, 3)) for rank in range(3)]
    assert [[places for places, _ in share] for share in shares] == [[[0, 1], [6]], [[2, 3]], [[4, 5]]]
    again = encoded(done={0, 1, 2, 6})
    assert [places for places, _ in again] == [[2, 3], [4, 5]]
    assert again[0][1] == whole[1][1] and shares[2][0][1] == whole[2][1]
    with pytest.raises(OptionError) as error:
        retrieval(clip, rows, 0)
    assert error.value.key == "batch_size"
    with pytest.raises(OptionError) as error:
        encoded(share=(2, 2))
    assert error.value.key == "share"


def test_rows_that_cannot_be_used_are_named(clip, tmp_path):
    with pytest.raises(DataError, match="rows.jsonl, line 4: 0 images, expected one"):
        image_features(clip, [question(None, name="rows.jsonl, line 4")])
    with pytest.raises(DataError, match="line 5: 2 images"):
        retrieval_raw(clip, [question([picture(1), picture(2)], ["a"], name="line 5")])
    with pytest.raises(DataError, match="line 6: no captions"):
        retrieval_raw(clip, [question(picture(1), name="line 6")])
    with pytest.raises(ImageError, match="line 7.*gone.png"):
        retrieval_raw(clip, [question(str(tmp_path / "gone.png"), ["a"], name="line 7")])


def test_raw_vectors_are_those_of_the_model_and_cut_captions_are_counted(clip):
    rows = [question(picture(1), ["a river .", "river " * 40]), question(picture(2), ["a port ."])]
    raws = json.loads(json.dumps(retrieval_raw(clip, rows)))
    assert [one["truncated"] for one in raws] == [1, 0]
    assert [one["captions"] for one in raws] == [row.captions for row in rows]
    vector = np.frombuffer(base64.b64decode(raws[1]["text_features"][0]), "<f4")
    assert vector == pytest.approx(clip.text_features(["a port ."])[0].numpy(), abs=1e-5)
    assert retrieval_figures(rank_retrieval(raws))["truncated"] == 1


def test_a_clip_that_has_learnt_colours_is_found_to_have(trained, clip, tmp_path):
    names = list(COLOURS)
    rows = []
    for i, name in enumerate(names * 3):
        coloured(name, 9000 + i).save(tmp_path / f"{i}.png")
        rows.append(question(str(tmp_path / f"{i}.png"), reference=name))
    benchmark = Benchmark("t", "classification", "images", "d", "here", templates=TEMPLATES)
    for row in rows:
        row.choices = names
    protocol = clip_protocol(benchmark, lambda: trained, rows, 5)
    records = [record for _, records in protocol.answer(rows, (0, 1), set()) for record in records]
    assert zero_shot_figures(records)["accuracy"] == 1
    pairs = [
        question(rows[i].group.images[0], [t.replace("{c}", name) for t in TEMPLATES]) for i, name in enumerate(names)
    ]
    assert retrieval_figures(rank_retrieval(retrieval_raw(trained, pairs)))["metrics"]["text_to_image_R@1"] == 1
    assert retrieval_figures(rank_retrieval(retrieval_raw(trained, pairs)))["metrics"]["image_to_text_R@1"] == 1
    swapped = [question(rows[i].group.images[0], pairs[i - 1].captions) for i in range(4)]
    assert retrieval_figures(rank_retrieval(retrieval_raw(trained, swapped)))["metrics"]["image_to_text_R@1"] == 0
