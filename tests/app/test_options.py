"""`rs-rlhf app`: what is refused before anything is loaded, and what its help loads."""

import subprocess
import sys

import pytest
from helpers import ROOT, picture

from rs_rlhf.app import options as module
from rs_rlhf.app.options import AppOptions
from rs_rlhf.cli import main as cli
from rs_rlhf.errors import DeclarationError, OptionError
from rs_rlhf.options import parse


def refused(*argv):
    with pytest.raises((OptionError, DeclarationError)) as caught:
        parse(AppOptions, [*map(str, argv)], "rs-rlhf app").check()
    return caught.value


@pytest.mark.parametrize(
    "argv, key",
    [
        (["--score_model", "none"], "policy"),
        (["--policy_b", "b", "--score_model", "none"], "policy"),
        (["--policy", "p", "--score_model", "none", "--label_order", "random"], "label_order"),
        (["--policy", "p", "--score_model", "none", "--label_split", "train"], "label_split"),
        (["--score_model", "none", "--label", "x", "--label_order", "disagreement"], "label_order"),
        (["--policy", "p", "--score_model", "none", "--image_hosts", "example.org"], "image_hosts"),
        (["--score_model", "a,b"], "score_calibration"),
        (["--policy", "p", "--score_model", "none", "--score_combine", "min"], "score_combine"),
        (["--policy", "p", "--score_model", "none", "--max_bytes", "0"], ""),
        (["--policy", "p", "--score_model", "none", "--tiles", "no/such/folder"], "tiles"),
    ],
)
def test_options_that_do_not_go_together(argv, key):
    assert refused(*argv).key == key


def test_a_score_model_that_is_not_there_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["app", "--score_model", "scorers-8b"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("rs-rlhf app: 'scorers-8b' is neither") and told.count("\n") == 1
    assert isinstance(refused("--score_model", "scorers-8b"), DeclarationError)


def test_without_gradio_the_sentence_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert cli.main(["app", "--score_model", "none"]) == 1
    assert 'pip install "rs-rlhf[app]"' in capsys.readouterr().err


def test_what_is_kept_lies_beside_the_texts(tmp_path):
    picture(0).save(tmp_path / "0.png")
    (tmp_path / "pairs.jsonl").write_text("{}")
    (tmp_path / "folder").mkdir()
    for label, expected in (
        (tmp_path / "pairs.jsonl", tmp_path / "pairs.choices.jsonl"),
        (tmp_path / "folder", tmp_path / "folder.choices.jsonl"),  # not in it: its files are the data
        (f"rsrm:{tmp_path}/pairs.jsonl", tmp_path / "pairs.choices.jsonl"),
    ):
        assert AppOptions(label=str(label)).log == expected
    assert str(AppOptions(label="owner/name").log) == "name.choices.jsonl"


def test_the_order_is_by_disagreement_if_there_is_something_to_disagree():
    assert (
        AppOptions(label="x").order == "disagreement" and AppOptions(label="x", score_model="none").order == "random"
    )
    assert AppOptions(label="x", label_order="random").order == "random"


def test_help_loads_neither_gradio_nor_torch():
    code = (
        "import sys\nfrom rs_rlhf.cli.main import main\nassert main(['app', '--help']) == 0\n"
        "print({'torch', 'gradio', 'transformers', 'fastapi', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "--label_order" in done.stdout and done.stdout.splitlines()[-1] == "set()"


def test_files_of_others_are_not_written_over(tmp_path):
    pairs, mine = tmp_path / "pairs.jsonl", tmp_path / "mine.jsonl"
    for path in (pairs, mine):
        path.write_text("{}")
    given = ("--score_model", "none", "--label", pairs)
    assert refused(*given, "--label_output", mine).key == "label_output"
    assert refused(*given, "--label_output", pairs).key == "label_output"
    assert refused(*given, "--label_log", pairs).key == "label_log"
    assert refused(*given, "--label_log", tmp_path / "mine.jsonl" / "x").key == "label_log"
    parse(AppOptions, [*map(str, given)], "rs-rlhf app").check()
    (tmp_path / "pairs.choices.jsonl").write_text("")  # a run of before has begun it
    parse(AppOptions, [*map(str, given), "--label_output", str(mine)], "rs-rlhf app").check()
