"""The card of what `rs-rlhf curate` keeps: its head loads the rows with `datasets`, and it tells no private path."""

import contextlib
import io
import json
import re

import pytest
from helpers.image_text_layouts import COUNT, write_all
from huggingface_hub import DatasetCard

from rs_rlhf.cli.main import main

FORMATS = ("parquet", "jsonl", "json", "csv", "webdataset", "dataset")


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("private-place") / "all")


def kept(data, place, *options):
    assert main(["score", "--input", str(data), "--output", str(place / "scores"), "--scorer", "random"]) == 0
    assert main(["curate", str(place / "scores"), "--output", str(place / "kept"), *options]) == 0
    return place / "kept"


def run_code(card, folder, monkeypatch):
    """Runs the card's Python beside the folder; returns what it prints, and its variables."""
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder.parent / "cache"))
    code = re.search(r"```python\n(.*?)```", card.content, re.DOTALL)[1]
    names = {}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, names)
    return out.getvalue(), names


@pytest.mark.parametrize(
    "format", [name if name in ("csv", "dataset") else pytest.param(name, marks=pytest.mark.slow) for name in FORMATS]
)
def test_the_code_in_the_card_loads_the_kept_rows(layouts, format, tmp_path, monkeypatch):
    folder = kept(layouts[format], tmp_path, "--keep", "0.4")
    card, about = DatasetCard.load(folder / "README.md"), json.loads((folder / "curation.json").read_text())
    _, names = run_code(card, folder, monkeypatch)
    assert len(names["rows"]) == about["written"]["kept_rows"] < COUNT
    text = card.content
    assert "None" not in text and str(tmp_path) not in text and "private-place" not in text
    assert f"{about['written']['kept_rows']} of {COUNT} rows" in text and "| keep | 0.4 |" in text
    columns = re.search(r"Columns, as in the source: (.*?)\.(\s|$)", text)[1].replace("`", "").split(", ")
    expected = {"csv": ["filepath", "title", "label"], "parquet": ["image", "label", "captions"]}
    assert columns == expected.get(format, columns) and len(columns) >= 2
    assert card.data.license is None and "licence is yours to state" in text


def test_a_published_list_has_a_card_too(layouts, tmp_path, monkeypatch):
    folder = kept(layouts["jsonl"], tmp_path)
    ids = str(folder / "kept_ids.parquet")
    assert main(["curate", "--ids", ids, "--input", str(layouts["jsonl"]), "--output", str(tmp_path / "again")]) == 0
    card = DatasetCard.load(tmp_path / "again" / "README.md")
    assert "| list of rows | kept_ids.parquet |" in card.content
    assert "scored by" not in card.content and "None" not in card.content


def test_the_hash_of_the_score_model_is_told(layouts, score_model_path, tmp_path):
    from rs_rlhf.scoring.cards import model_stamp

    options = ["--output", str(tmp_path / "scores"), "--model", score_model_path]
    assert main(["score", "--input", str(layouts["jsonl"]), *options]) == 0
    assert main(["curate", str(tmp_path / "scores"), "--output", str(tmp_path / "kept"), "--keep", "0.5"]) == 0
    text = (tmp_path / "kept" / "README.md").read_text()
    assert model_stamp(score_model_path) in text and score_model_path not in text
