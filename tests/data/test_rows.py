"""Files and rows of data."""

import pytest

from rs_rlhf.data.rows import split_paths


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
