"""Atomic files: whole or not at all, nothing left behind, torn lines cut off."""

import json
import os

import pytest

from rs_rlhf.errors import DataError
from rs_rlhf.runs.files import (
    append_lines,
    cut_torn_line,
    drop_leftovers,
    read_lines,
    replacing,
    replacing_folder,
    write_json,
    write_text,
)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"ö": [1, 2.5]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ö": [1, 2.5]} and "ö" in path.read_text(encoding="utf-8")
    with pytest.raises(KeyError), replacing(path) as file:
        file.write("half")
        raise KeyError
    assert json.loads(path.read_text(encoding="utf-8")) and os.listdir(tmp_path) == ["a.json"]
    with replacing(tmp_path / "b", "wb") as file:
        file.write(b"\x00")
    assert (tmp_path / "b").read_bytes() == b"\x00"
    write_text(path, "a lone \ud800 surrogate")
    assert path.read_text(encoding="utf-8") == "a lone ? surrogate"


def test_leftovers_of_killed_processes_go(tmp_path):
    for name in ("[a].json.0a1b2c3d.tmp", "[a].json.tmp", "b.json.0a1b2c3d.tmp", "[a].json"):
        (tmp_path / name).write_text("x")
    drop_leftovers(tmp_path / "[a].json")
    assert sorted(os.listdir(tmp_path)) == ["[a].json", "[a].json.tmp", "b.json.0a1b2c3d.tmp"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "deep" / "out"
    for content in ("one", "two"):
        with replacing_folder(folder) as new:
            (new / content).write_text(content)
    with pytest.raises(KeyError), replacing_folder(folder) as new:
        (new / "three").write_text("half")
        raise KeyError
    assert os.listdir(folder) == ["two"] and os.listdir(folder.parent) == ["out"]


def test_lines_are_appended_and_a_torn_one_is_cut_off(tmp_path):
    path = tmp_path / "log.jsonl"
    append_lines(path, [{"a": 1}])
    append_lines(path, [{"b": "\u2028"}, {"c": None}])
    with path.open("ab") as file:
        file.write(b'{"torn": ')
    with pytest.raises(DataError, match="not a whole JSON object; delete the line") as error:
        read_lines(path)
    assert error.value.where == f"{path}, line 4"
    cut_torn_line(path)
    assert read_lines(path) == [{"a": 1}, {"b": "\u2028"}, {"c": None}]
    path.write_bytes(b"torn at once")
    cut_torn_line(path)
    assert read_lines(path) == []
    path.write_text("[1]\n")
    with pytest.raises(DataError):
        read_lines(path)
