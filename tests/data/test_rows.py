"""Files and rows of data."""

import pytest

from rs_rlhf.data.rows import source_of, split_of, split_paths


@pytest.mark.parametrize(
    ("paths", "parts"),
    [
        ("", []),
        (" , ", []),
        ((), []),
        ("a.jsonl", ["a.jsonl"]),
        ("a.jsonl, b.json,", ["a.jsonl", "b.json"]),
        (["a.jsonl,b.json", "", "owner/name"], ["a.jsonl", "b.json", "owner/name"]),
    ],
)
def test_split_paths(paths, parts):
    assert split_paths(paths) == parts


def test_split_paths_keeps_an_existing_file_with_a_comma(tmp_path):
    file = tmp_path / "a,b.jsonl"
    file.touch()
    assert split_paths(file) == split_paths(str(file)) == [str(file)]


def test_split_of(tmp_path):
    (tmp_path / "a:b").touch()
    assert split_of("a/b:test") == ("a/b", "test")
    assert split_of("a/b") == ("a/b", None) == split_of("a/b:")
    assert split_of(f"{tmp_path}/a:b") == (f"{tmp_path}/a:b", None)
    assert split_of(f"{tmp_path}/a:b:test") == (f"{tmp_path}/a:b", "test")


def test_source_names():
    assert source_of("data/train-00000-of-00002.parquet") == "train" and source_of("llava.json") == "llava"
