"""Tiny dual encoders load, know every byte, and follow their seed."""

import pytest
import torch
from helpers import picture

from rs_rlhf.errors import OptionError
from rs_rlhf.models.clip import ClipModel
from rs_rlhf.models.tiny_clip import build_clip_tokenizer, save_tiny_clip


def test_no_text_has_an_unknown_token():
    tokenizer = build_clip_tokenizer(["a river near the harbour", "a river"], vocab_size=540)
    ids = tokenizer("A RIVER in Zürich ☃")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and ids.index(tokenizer.eos_token_id) == len(ids) - 1
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "a river in zürich ☃"
    assert tokenizer.tokenize("a river") == ["a</w>", "river</w>"] and len(tokenizer) <= 540
    with pytest.raises(OptionError, match="at least 514"):
        build_clip_tokenizer(["a"], vocab_size=300)


def test_sizes_that_do_not_go_together(tmp_path):
    with pytest.raises(OptionError, match="Unknown family 'clap'") as error:
        save_tiny_clip(tmp_path / "x", family="clap")
    assert error.value.key == "family"
    with pytest.raises(OptionError, match="multiple of patch_size"):
        save_tiny_clip(tmp_path / "x", image_size=30)


def test_the_seed_decides_the_weights(tmp_path):
    paths = [
        save_tiny_clip(tmp_path / name, seed=seed, image_size=32) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    a, b, c = (ClipModel.from_pretrained(path, device="cpu").image_features([picture(1)]) for path in paths)
    assert torch.equal(a, b) and not torch.allclose(a, c, atol=1e-2)
