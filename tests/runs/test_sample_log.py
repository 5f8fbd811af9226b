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


def test_spreads_of_several_models_scores_come_back(tmp_path):
    class Score(float):
        std = 0.25

    log = SampleLog(tmp_path / "log", {}, by="a,b")
    log.add_scores([3, 5], [[Score(1.0), Score(2.0)], [Score(3.0)]])
    for known in (log, SampleLog(tmp_path / "log", {}, by="a,b")):
        assert known.scores == {3: [1.0, 2.0], 5: [3.0]} and known.spreads == {3: [0.25, 0.25], 5: [0.25]}
    assert SampleLog(tmp_path / "log", {}, by="a").spreads == {}
    log = SampleLog(tmp_path / "plain", {}, by="a")
    log.add_scores([3], [[1.0, None]])
    assert log.spreads == SampleLog(tmp_path / "plain", {}, by="a").spreads == {}


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
