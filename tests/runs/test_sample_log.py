"""The log of sampled answers: what a killed run resumes from."""

import pytest

from rs_rlhf.errors import OptionError
from rs_rlhf.runs.sample_log import SampleLog


def test_a_killed_run_resumes_and_other_settings_are_refused(tmp_path, capsys):
    output = tmp_path / "out.jsonl"
    log = SampleLog.beside(output, {"n": 2}, by="a")
    log.add_answers([0, 2], [["x", "y"], ["z", "ö"]])
    log.add_scores([0], [[1.0, None]])
    with log.path.open("ab") as file:
        file.write(b'{"rows": [1], "ans')
    again = SampleLog.beside(output, {"n": 2}, by="a")
    assert again.answers == {0: ["x", "y"], 2: ["z", "ö"]} and again.scores == {0: [1.0, None]}
    assert "already: answers to 2 rows, scores of 1" in capsys.readouterr().out
    assert SampleLog.beside(output, {"n": 2}, by="another judge").scores == {}
    with pytest.raises(OptionError, match="holds answers of another run: n was 2, now 3;") as error:
        SampleLog.beside(output, {"n": 3})
    assert error.value.key == "n"
    assert SampleLog.beside(output, {"n": 3}, anew=True).answers == {}


def test_a_run_that_failed_before_its_first_answer_blocks_nothing(tmp_path):
    output = tmp_path / "out.jsonl"
    SampleLog.beside(output, {"n": 2})
    SampleLog.beside(output, {"n": 3}).add_answers([0], [["x"]])
    with pytest.raises(OptionError):
        SampleLog.beside(output, {"n": 2})


def test_the_log_goes_once_the_output_is_whole(tmp_path):
    output = tmp_path / "out.jsonl"
    log = SampleLog.beside(output, {})
    with pytest.raises(KeyError), log.replacing(output) as file:
        file.write("half")
        raise KeyError
    assert log.path.exists() and not output.exists()
    with log.replacing(output) as file:
        file.write("whole")
    assert output.read_text() == "whole" and [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]
