"""Which checkpoint of a run is whole: fast cases without training (`tests/trainers/test_reward.py` has a real run)."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from rs_rlhf.errors import OptionError
from rs_rlhf.runs.checkpoints import is_whole, last_whole_checkpoint, resolve_resume


def checkpoint(folder, weights="model.safetensors"):
    folder.mkdir(parents=True)
    save_file({"w": np.zeros(64, np.float32)}, folder / weights)
    (folder / "trainer_state.json").write_text("{}")
    return folder


def test_the_newest_whole_one_is_taken(tmp_path):
    whole = checkpoint(tmp_path / "checkpoint-9")
    torn = checkpoint(tmp_path / "checkpoint-10")
    (tmp_path / "checkpoint-x").mkdir()
    assert last_whole_checkpoint(tmp_path) == str(torn)
    weights = torn / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:40])
    with pytest.warns(UserWarning, match="checkpoint-10 was not saved to the end"):
        assert last_whole_checkpoint(tmp_path) == resolve_resume("true", tmp_path) == str(whole)
    assert resolve_resume(str(whole), tmp_path) == str(whole)
    assert resolve_resume(None, tmp_path) is resolve_resume("False", tmp_path) is None
    with pytest.raises(OptionError, match="checkpoint-10 was not saved to the end; pass --resume_from_checkpoint"):
        resolve_resume(str(torn), tmp_path)


def test_shards_of_deepspeed_count_as_weights_and_a_state_is_needed(tmp_path):
    folder = tmp_path / "checkpoint-1"
    (folder / "global_step1").mkdir(parents=True)
    assert not is_whole(folder)
    (folder / "trainer_state.json").write_text("{}")
    assert is_whole(folder)
    (folder / "trainer_state.json").write_text('{"global_')
    assert not is_whole(folder)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_whose_weights_are_not_finite_is_passed_over(bad, tmp_path):
    good, diverged = checkpoint(tmp_path / "checkpoint-1"), checkpoint(tmp_path / "checkpoint-2")
    weights = np.zeros((3, 8), np.float32)
    weights[1, 5] = bad
    save_file({"a": np.zeros(0, np.float32), "n": np.ones(2, np.int64), "w": weights}, diverged / "model.safetensors")
    assert is_whole(diverged)
    with pytest.warns(UserWarning, match=r"checkpoint-2 holds weights that are not finite \(w\)"):
        assert resolve_resume(True, tmp_path) == str(good)
    with pytest.raises(OptionError) as error:
        resolve_resume(str(diverged), tmp_path)
    assert error.value.key == "resume_from_checkpoint"
