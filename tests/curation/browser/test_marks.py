"""Marks by hand: the last one holds, a torn line is cut off, and a log of other data is refused."""

import json

import pyarrow.parquet as pq
import pytest

from rs_rlhf.cli import main as cli
from rs_rlhf.curation.browser.marks import LOG, Marks
from rs_rlhf.curation.browser.view import Ranked
from rs_rlhf.curation.samples import read_scored
from rs_rlhf.errors import DataError


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """Scores by length of six captions in two rows, of one shard each."""
    folder = tmp_path_factory.mktemp("marks")
    rows = [{"captions": ["a", "a b", "a b c"]}, {"captions": ["a b c d", "a b c d e", "b"]}]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["--input", str(folder / "in.jsonl"), "--output", str(folder / "scores"), "--scorer", "length"]
    assert cli.run("score", [*command, "--text_only", "--rows_per_shard", "1", "--max_error_fraction", "1"]) == 0
    return folder / "scores"


def marked(scores, folder):
    scored = read_scored(scores)
    return Ranked(scored), Marks(folder, scored)


def test_the_last_mark_holds_and_a_torn_one_is_cut_off(scores, tmp_path):
    ranked, marks = marked(scores, tmp_path)
    for number, keep in ((0, True), (4, False), (0, False), (2, True), (2, None)):
        marks.mark(ranked, number, keep)
    assert marks.by_number == {4: False, 0: False} and marks.counts() == {"kept": 0, "rejected": 2}
    with (tmp_path / LOG).open("a") as file:
        file.write('{"row_id": "in.jsonl:1", "te')
    assert marked(scores, tmp_path)[1].by_number == marks.by_number
    assert len((tmp_path / LOG).read_text().splitlines()) == 6


def test_the_list_is_the_cut_with_the_kept_and_without_the_rejected(scores, tmp_path):
    ranked, marks = marked(scores, tmp_path)
    marks.mark(ranked, 4, False)  # the best
    marks.mark(ranked, 0, True)  # the worst
    told = marks.write(ranked, 2)
    ids = pq.read_table(told["path"]).to_pylist()
    assert [(line["row_id"], line["text_index"]) for line in ids] == [("in.jsonl:0", 0), ("in.jsonl:1", 0)]
    assert (told["samples"], told["texts"]) == (2, 2)
    marks.mark(ranked, 0, False)
    with pytest.raises(DataError) as error:
        marks.write(ranked, 0)
    assert error.value.where == str(tmp_path)


def test_logs_of_other_data_and_damaged_ones_are_refused(scores, tmp_path):
    ranked, marks = marked(scores, tmp_path)
    marks.mark(ranked, 0, True)
    head, line = (tmp_path / LOG).read_text().splitlines()
    for content, key, where in (
        (head.replace("in.jsonl", "other.jsonl"), "by_hand", ""),
        (f"{head}\n{line.replace('in.jsonl:0', 'in.jsonl:7')}", "row_id", ", line 2"),
        (f"{head}\n{line.replace('true', '3')}", "row_id", ", line 2"),
        (f"{head}\n[1]", "", ", line 2"),
    ):
        (tmp_path / LOG).write_text(content + "\n")
        with pytest.raises(DataError) as error:
            marked(scores, tmp_path)
        assert (error.value.key, error.value.where) == (key, f"{tmp_path / LOG}{where}")
