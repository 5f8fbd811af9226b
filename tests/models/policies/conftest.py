"""What the tests of policies share: a random LLaVA, and prompts of all shapes."""

import pytest
from helpers import picture
from helpers.llava import save_llava


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
