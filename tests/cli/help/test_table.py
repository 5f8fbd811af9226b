"""The stored options of TRL: they are those of the installed libraries, and others are asked for."""

import json

import pytest

from rs_rlhf.cli.help import table


@pytest.fixture
def fresh():
    table.stored.cache_clear()
    yield
    table.stored.cache_clear()


def test_the_stored_options_are_those_of_the_installed_libraries(fresh):
    if table.stored() is None:  # newer libraries than constraints.txt has: then they are asked, as below
        pytest.skip("the table was made with other versions; `python -m rs_rlhf.cli.help.table` writes it again")
    assert table.FILE.read_text(encoding="utf-8") == table.make(), "run `python -m rs_rlhf.cli.help.table`"


def test_with_other_versions_the_libraries_are_asked_and_it_is_said(fresh, tmp_path, monkeypatch, capsys):
    known = table.known_options("kto")
    assert not capsys.readouterr().err
    other = json.loads(table.FILE.read_text(encoding="utf-8"))
    other["made_with"]["trl"] = "0.1"
    other["options"] = {}
    monkeypatch.setattr(table, "FILE", tmp_path / "options.json")
    table.FILE.write_text(json.dumps(other))
    table.stored.cache_clear()
    asked = table.known_options("kto")
    assert [entry["name"] for entry in asked] == [entry["name"] for entry in known]
    assert f"trl {table.installed()['trl']}" in capsys.readouterr().err


def test_every_option_of_a_training_is_stored_or_ours():
    for name in table.TRAININGS:
        names = {entry["name"] for entry in table.known_options(name)}
        assert {"learning_rate", "output_dir", "model_name_or_path"} <= names
        assert not names & {"dataset_name", "image_root", "help"}
