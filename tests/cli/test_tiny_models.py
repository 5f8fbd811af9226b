"""`rs-rlhf tiny-clip` and `rs-rlhf tiny-vlm` write models that load and know the words of the data."""

import json

import pytest
from helpers import picture

from rs_rlhf.cli import main as cli


def test_tiny_clip_writes_a_model_that_loads(tmp_path, capsys):
    from rs_rlhf.models.clip import ClipModel

    (tmp_path / "images").mkdir()
    picture(1).save(tmp_path / "images" / "a.png")
    (tmp_path / "train.jsonl").write_text('{"image": "images/a.png", "captions": ["an odd quarry ."]}\n')
    arguments = [str(tmp_path / "tiny"), "--texts", f"{tmp_path}:train", "--image_size", "32", "--projection_dim", "8"]
    assert cli.main(["tiny-clip", *arguments]) == 0
    assert str(tmp_path / "tiny") in capsys.readouterr().out
    model = ClipModel.from_pretrained(tmp_path / "tiny", device="cpu")
    assert model.image_features([picture(1)]).shape == (1, 8)
    assert "quarry</w>" in model.processor.tokenizer.get_vocab()


def test_tiny_vlm_learns_its_tokens_from_the_data(tmp_path):
    from transformers import AutoProcessor

    assert cli.main(["data", "scenes", str(tmp_path), "--n_train", "12", "--n_validation", "4", "--size", "56"]) == 0
    arguments = ["tiny-vlm", str(tmp_path / "vlm"), "--hidden_size", "32", "--vocab_size", "700"]
    assert cli.main([*arguments, "--texts", f"{tmp_path}:train"]) == 0
    tokenizer = AutoProcessor.from_pretrained(tmp_path / "vlm").tokenizer
    assert "Ġimage" in tokenizer.get_vocab()
    assert json.loads((tmp_path / "vlm" / "config.json").read_text())["text_config"]["hidden_size"] == 32
    assert cli.main([*arguments, "--family", "qwen9"]) == 1


@pytest.mark.parametrize("command", ["tiny-vlm", "tiny-clip"])
def test_a_file_is_not_overwritten_by_a_model(command, tmp_path, capsys):
    (tmp_path / "file").write_text("content")
    assert cli.main([command, str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err.count("\n") == 1 and (tmp_path / "file").read_text() == "content"
