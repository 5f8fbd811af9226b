"""What the tests of rewards share: three images, a tiny score model, and its scores."""

import pytest
from helpers import picture
from helpers.chats import QUESTION, TEXTS

from rs_rlhf import ImageOptions, Scorer


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(3):
        picture(i).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def scorer(score_model_path, folder):
    return Scorer.from_pretrained(score_model_path, device="cpu", image_options=ImageOptions(image_root=str(folder)))


@pytest.fixture(scope="session")
def expected(scorer):
    return scorer.score(["0.png", "1.png"], [QUESTION] * 2, [TEXTS, TEXTS])
