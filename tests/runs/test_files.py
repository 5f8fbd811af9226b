"""Atomic files: whole or not at all, nothing left behind, torn lines cut off."""

import errno
import fcntl
import json
import os
from pathlib import Path

import pytest

from rs_rlhf.curation.shards import claimed
from rs_rlhf.errors import DataError
from rs_rlhf.evaluation.results import results_of
from rs_rlhf.runs.files import (
    append_lines,
    cut_torn_line,
    filling_folder,
    move_files,
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


def test_what_killed_processes_left_is_written_over(tmp_path):
    left, other = tmp_path / ".a.json.rs-rlhf.tmp", tmp_path / "a.json.tmp"
    for path in (left, other):
        path.write_text("half of a much longer text")
    write_text(tmp_path / "a.json", "whole")
    assert (tmp_path / "a.json").read_text() == "whole"
    assert sorted(os.listdir(tmp_path)) == ["a.json", "a.json.tmp"], "the other file is somebody else's"


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    path = tmp_path / "a"
    with replacing(path) as first, replacing(path) as second:
        for part in ("one", "two"):
            first.write(part)
            second.write(part.upper())
            first.flush()
        assert len(os.listdir(tmp_path)) == 2
    assert path.read_text() == "onetwo" and os.listdir(tmp_path) == ["a"]


def test_a_file_is_not_written_through_a_link(tmp_path):
    (tmp_path / "theirs").write_text("x")
    (tmp_path / ".a.rs-rlhf.tmp").symlink_to(tmp_path / "theirs")
    with pytest.raises(OSError):
        write_text(tmp_path / "a", "y")
    assert (tmp_path / "theirs").read_text() == "x"


def test_a_file_system_without_locks_is_one_sentence_where_they_are_needed(tmp_path, monkeypatch):
    def none(handle, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    for begin in (lambda: claimed(tmp_path / "scores", "00000"), lambda: results_of(tmp_path / "run")):
        with pytest.raises(DataError, match=r"the file system gives no lock \(No locks available\)") as error, begin():
            pass
        assert error.value.where.startswith(str(tmp_path))
    write_text(tmp_path / "made" / "a", "whole")
    assert (tmp_path / "made" / "a").read_text() == "whole" and os.listdir(tmp_path / "made") == ["a"]


def test_a_folder_is_filled_with_its_weights_last(tmp_path):
    folder = tmp_path / "model"
    (folder / ".rs-rlhf.new").mkdir(parents=True)
    for name in ("notes.txt", "model.safetensors", "config.json", ".rs-rlhf.new/left.json"):
        (folder / name).write_text("old")
    with pytest.raises(KeyError), filling_folder(folder) as new:
        (new / "config.json").write_text("half")
        raise KeyError
    assert {path.name: path.read_text() for path in folder.iterdir()} == dict.fromkeys(
        ("notes.txt", "model.safetensors", "config.json"), "old"
    )
    order = []
    with filling_folder(folder) as new:
        (new / "part").mkdir()
        for name in ("model.safetensors", "config.json", "model.safetensors.index.json", "part/x"):
            (new / name).write_text("new")
        rename = Path.replace
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(
                Path, "replace", lambda path, to: (order.append((path.name, to.exists())), rename(path, to))
            )
            move_files(new, folder)
    assert order[-2:] == [("model.safetensors", False), ("model.safetensors.index.json", False)] and len(order) == 4
    assert (folder / "part" / "x").read_text() == "new" and (folder / "notes.txt").read_text() == "old"
    assert not (folder / ".rs-rlhf.new").exists()


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
    head = {"settings": {"a": 1}}
    append_lines(path, [head])
    append_lines(path, [{"b": "\u2028"}, {"c": None}])
    with path.open("ab") as file:
        file.write(b'{"torn": ')
    with pytest.raises(DataError, match="not a whole JSON object; delete the line") as error:
        read_lines(path)
    assert error.value.where == f"{path}, line 4"
    cut_torn_line(path)
    assert read_lines(path) == [head, {"b": "\u2028"}, {"c": None}]
    path.write_bytes(b'{"sett')
    cut_torn_line(path)
    assert read_lines(path) == []
    path.write_text("somebody else's\nunfinished")
    with pytest.raises(DataError) as error:
        cut_torn_line(path)
    assert error.value.where == str(path) and path.read_text() == "somebody else's\nunfinished"
    path.write_text("[1]\n")
    with pytest.raises(DataError):
        read_lines(path)
