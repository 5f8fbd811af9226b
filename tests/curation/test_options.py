"""Whose mistake an error is: the user's has a class, a key and one sentence; a bug keeps its traceback."""

from pathlib import Path

import numpy as np
import pytest

from rs_rlhf.cli import main as cli
from rs_rlhf.curation import cut as cuts
from rs_rlhf.curation.near_duplicates import near_groups, near_pairs
from rs_rlhf.curation.options import CurateOptions
from rs_rlhf.curation.score import ScoreOptions, stage_options
from rs_rlhf.errors import OptionError, RSRLHFError
from rs_rlhf.options import parse, to_flags

BITS = np.zeros(3, np.uint64)
SCORES, STRATA = np.zeros(3, np.float32), np.zeros(3, int)


@pytest.mark.parametrize(
    "bug",
    [
        lambda: cuts.number_samples(np.zeros(3, bool), np.zeros(2, bool)),
        lambda: cuts.sample_scores(np.arange(3), SCORES, np.zeros(2, bool)),
        lambda: cuts.cut(SCORES, STRATA[:2], keep=0.5),
        lambda: cuts.cut(SCORES, STRATA),
        lambda: cuts.ranks(SCORES, STRATA[:2], STRATA),
        lambda: cuts.lower_duplicates(STRATA[:1], SCORES),
        lambda: cuts.group_means(STRATA[:2], SCORES, 1),
        lambda: cuts.histogram(SCORES, 0.0, 1.0, 0),
        lambda: near_groups(np.array(["a", "b"]), 1),
    ],
)
def test_a_bug_is_no_mistake_of_the_user(bug):
    with pytest.raises((ValueError, IndexError, TypeError)) as error:
        bug()
    assert not isinstance(error.value, RSRLHFError)


@pytest.mark.parametrize(
    ("mistake", "key"),
    [
        (lambda: cuts.sample_scores(np.arange(3), SCORES, np.zeros(3, bool), "max"), "aggregate"),
        (lambda: cuts.cut(SCORES, STRATA, keep=30), "keep"),
        (lambda: next(near_pairs(BITS, BITS, 11)), "near_distance"),
        (lambda: curate_options(keep=[0.3, 2]).check(), "keep"),
        (lambda: curate_options(keep=[0.3], threshold=[1.0]).check(), "threshold"),
        (lambda: curate_options(exclude_near=True).check(), "exclude_near"),
        (lambda: CurateOptions(output=Path("o")).check(), "scores"),
        (lambda: CurateOptions(output=Path("o"), ids="x").check(), "input"),
        (lambda: CurateOptions(output=Path("o"), ids="x", input="d", per="row").check(), "per"),
        (lambda: ScoreOptions(input="d", output=Path("o"), scorer="length", limit=0).check(), "limit"),
        (lambda: ScoreOptions(input="d", output=Path("d"), scorer="length").check(), "output"),
        (lambda: ScoreOptions(input="d", output=Path("o")).check(), "model"),
        (lambda: ScoreOptions(input="d", output=Path("o"), scorer="length", bands=[1]).check(), "bands"),
        (lambda: stage_options({"scorer": "length", "sed": 1}), "sed"),
    ],
)
def test_a_mistake_of_the_user_has_a_class_and_a_key(mistake, key):
    with pytest.raises(OptionError) as error:
        mistake()
    assert error.value.key == key


def curate_options(**options):
    return CurateOptions(scores="s", output=Path("o"), **options)


def test_a_bug_under_the_command_keeps_its_traceback(tmp_path, monkeypatch, capsys):
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"text": "one two"}\n')
    scores = str(tmp_path / "scores")
    line = ["score", "--input", f"{tmp_path}/rows.jsonl", "--output", scores, "--scorer", "length", "--text_only"]
    assert cli.main(line) == 0
    assert cli.main(["curate", scores, "--output", f"{tmp_path}/out", "--keep", "2"]) == 1
    assert "--keep is 2" in capsys.readouterr().err
    real = cuts.number_samples
    monkeypatch.setattr(cuts, "number_samples", lambda starts, together: real(starts, together[:-2]))
    with pytest.raises(ValueError, match="broadcast") as error:
        cli.main(["curate", scores, "--output", f"{tmp_path}/out"])
    assert not isinstance(error.value, RSRLHFError)


def test_options_become_flags_and_come_back():
    options = curate_options(keep=[0.3, 0.5], dedup="near", exclude_images_of=["a:test", "b"], allow_partial=True)
    assert parse(CurateOptions, to_flags(options), "curate") == options
    assert [str(folder) for folder, _ in options.cuts()] == ["o/keep-0.3", "o/keep-0.5"]
