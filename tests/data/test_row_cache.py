"""Stored rows: read from the cache while nothing has changed, else written anew."""

import datasets
import pytest
from helpers.captioned_rows import write_jsonl

from rs_rlhf.data.row_cache import stored_rows
from rs_rlhf.errors import DataError

FEATURES = datasets.Features({"text": datasets.Value("string")})
READING = {"image_root": None, "columns": None}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Keeps the data sets' cache out of the home folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def texts_of(data):
    for row in data:
        if row.error is not None:
            raise row.error
        yield {"text": row.texts[0]}


def texts(path, version=1):
    return stored_rows(texts_of, FEATURES, str(path), None, READING, version)


def test_rows_are_stored_until_something_changes(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", {"caption": "x"}, {"caption": "y"})
    first = texts(file)
    assert first["text"][:] == ["x", "y"]
    assert texts(file)._fingerprint == first._fingerprint != texts(file, version=2)._fingerprint
    write_jsonl(file, {"caption": "z"})
    assert texts(file)["text"][:] == ["z"]


def test_a_row_that_cannot_be_used_is_raised_as_it_is(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", {"caption": "x"}, {"caption": ""})
    with pytest.raises(DataError) as error:
        texts(file)
    assert error.value.key == "caption" and "a.jsonl, row 1" in error.value.where
