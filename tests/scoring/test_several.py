"""Several score models in one option: which names it has, and what goes together."""

import hashlib

import pytest

from rs_rlhf.errors import DataError, OptionError
from rs_rlhf.scoring.several import SeveralOptions, calibration_hash, model_names

FILE = {"score_calibration": "captions.jsonl"}


def test_names_are_separated_by_commas_but_addresses_and_folders_are_one(tmp_path):
    assert model_names(None) == [] and model_names("out/a") == ["out/a"] and model_names("a, b,,c,") == ["a", "b", "c"]
    assert model_names("http://x:1,https://y:2") == ["http://x:1,https://y:2"]
    (tmp_path / "a,b").mkdir()
    assert model_names(str(tmp_path / "a,b")) == [str(tmp_path / "a,b")]


@pytest.mark.parametrize(
    ("model", "options", "key"),
    [
        ("a,b", {}, "score_calibration"),
        ("a,b", {"score_combine": "min"}, "score_calibration"),
        ("a,b", {"score_combine": "max", **FILE}, "score_combine"),
        ("a,http://x:1", FILE, "score_model"),
        ("http://x:1,b", FILE, "score_model"),
        ("http://x:1,http://y:1", FILE, "score_calibration"),
        ("a", {"score_combine": "mean"}, "score_combine"),
        ("a,", FILE, "score_calibration"),
        (None, FILE, "score_calibration"),
    ],
)
def test_what_does_not_go_together_is_refused(model, options, key):
    with pytest.raises(OptionError) as error:
        SeveralOptions(**options).check_several(model)
    assert error.value.key == key


def test_one_model_and_several_with_their_file_are_accepted(tmp_path):
    SeveralOptions().check_several("a")
    SeveralOptions().check_several("http://x:1,http://y:1")
    SeveralOptions().check_several(None)
    for rule in (None, "mean", "min", "mean-std"):
        SeveralOptions(score_combine=rule, **FILE).check_several("a,b,a")


def test_a_result_depends_on_the_rule_and_on_the_content_of_the_file(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"rows")
    options = SeveralOptions(score_calibration=str(file))
    digest = hashlib.sha256(b"rows").hexdigest()
    known = {"score_combine": "mean", "score_calibration": str(file), "score_calibration_hash": digest}
    assert options.combination("a,b") == known and options.combination("a") == options.combination(None) == {}
    file.write_bytes(b"other rows")
    assert options.combination("a,b")["score_calibration_hash"] != digest
    for wrong in (tmp_path, tmp_path / "none.jsonl"):
        with pytest.raises(DataError) as error:
            calibration_hash(str(wrong))
        assert (error.value.key, error.value.where) == ("score_calibration", str(wrong))
