"""Choices between texts: what the log keeps through kills and undoing, who is next, and what is counted."""

import errno
import json
import os
import signal
from collections import Counter

import pytest

from rs_rlhf.app.labels import BUTTONS, ChoiceLog, Labelling
from rs_rlhf.app.pairs import Pair
from rs_rlhf.data.group import make_group
from rs_rlhf.errors import DataError, OptionError, RequestError


def make_pairs(count):
    """Pairs whose `a` is `aN`; every second one is shown the other way round."""
    groups = [make_group("", [f"a{i}", f"b{i}"]) for i in range(count)]
    return [Pair(f"p{i}", group, (0, 1), i % 2 == 1) for i, group in enumerate(groups)]


def open_labels(path, count=6, margins=None):
    return Labelling(make_pairs(count), ChoiceLog(path, {"label": "x"}), margins)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_choice_is_kept_by_text_whatever_side_it_was_on(tmp_path):
    labels = open_labels(tmp_path / "log.jsonl")
    for pair, button in zip(labels.pairs, ("left", "left", "right", "right", "tie", "both_bad"), strict=True):
        assert labels.next("ann").id == pair.id
        assert pair.sides == (pair.texts[::-1] if pair.flipped else pair.texts)
        assert labels.choose("ann", pair.id, button)
    assert labels.log.of("ann") == dict(
        zip([f"p{i}" for i in range(6)], ("a", "b", "b", "a", "tie", "both_bad"), strict=True)
    )
    assert labels.next("ann") is None and labels.next("bob").id == "p0"
    assert labels.progress("ann") == {"pairs": 6, "done": 6, "a": 2, "b": 2, "tie": 1, "both_bad": 1}
    _, first, second, *_ = lines(tmp_path / "log.jsonl")
    assert (first["choice"], first["shown"], first["a"], first["b"]) == ("a", "ab", "a0", "b0")
    assert (second["choice"], second["shown"], second["annotator"]) == ("b", "ba", "ann")


def test_a_second_press_of_a_key_changes_nothing(tmp_path):
    labels = open_labels(tmp_path / "log.jsonl")
    assert labels.choose("ann", "p0", "left") and not labels.choose("ann", "p0", "right")
    assert labels.log.of("ann") == {"p0": "a"} and len(lines(tmp_path / "log.jsonl")) == 2


def test_undoing_is_a_record_of_its_own_and_shows_the_pair_again(tmp_path):
    path = tmp_path / "log.jsonl"
    labels = open_labels(path)
    labels.choose("ann", "p0", "left")
    labels.choose("ann", "p1", "tie")
    labels.choose("bob", "p0", "right")
    before = path.read_bytes()
    assert labels.undo("ann").id == "p1" and labels.next("ann").id == "p1"
    assert path.read_bytes().startswith(before) and lines(path)[-1]["choice"] == "undo"
    assert labels.undo("ann").id == "p0" and labels.undo("ann") is None and labels.log.of("bob") == {"p0": "b"}
    labels.choose("ann", "p0", "right")
    labels.log.close()
    again = open_labels(path)
    assert again.log.of("ann") == {"p0": "b"} and again.log.of("bob") == {"p0": "b"}
    assert again.undo("ann").id == "p0"


def test_the_log_is_the_same_after_reading_it_again(tmp_path):
    path = tmp_path / "log.jsonl"
    labels = open_labels(path)
    for i, name in enumerate(["ann", "bob", "ann", "ann", "bob"]):
        labels.choose(name, f"p{i}", BUTTONS[i % 4])
    labels.undo("ann")
    labels.log.close()
    assert open_labels(path).log.made == labels.log.made
    fewer = Labelling(make_pairs(1), ChoiceLog(tmp_path / "other.jsonl", {}))
    fewer.log.made = labels.log.made
    assert fewer.elsewhere() == 3 and fewer.progress("ann")["done"] == 1


def test_half_a_line_of_a_killed_process_is_cut_off(tmp_path):
    path = tmp_path / "log.jsonl"
    labels = open_labels(path)
    labels.choose("ann", "p0", "left")
    labels.log.close()
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"pair": "p1", "annot')
    again = open_labels(path)
    assert path.read_bytes() == whole and again.next("ann").id == "p1"
    again.choose("ann", "p1", "left")
    assert len(lines(path)) == 3


@pytest.mark.parametrize(
    "record",
    [
        {"pair": "p0", "annotator": "ann", "choice": "c"},
        {"pair": 3, "annotator": "ann", "choice": "a"},
        {"pair": "p0", "choice": "a"},
    ],
)
def test_damaged_logs_and_other_files_are_named(tmp_path, record):
    path = tmp_path / "log.jsonl"
    open_labels(path).log.close()
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
    with pytest.raises(DataError) as caught:
        open_labels(path)
    assert caught.value.where == f"{path}, line 2"
    other = tmp_path / "mine.jsonl"
    other.write_text('{"image": "a.png"}\n')
    with pytest.raises(DataError) as caught:
        open_labels(other)
    assert caught.value.where == str(other) and other.read_text() == '{"image": "a.png"}\n'


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    path = tmp_path / "log.jsonl"
    labels = open_labels(path)
    labels.choose("ann", "p0", "left")
    before = path.read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError):
            labels.choose("ann", "p1", "left")
    assert path.read_bytes() == before and labels.next("ann").id == "p1"
    assert labels.choose("ann", "p1", "left") and len(lines(path)) == 3


def test_two_processes_do_not_write_one_log(tmp_path):
    first = open_labels(tmp_path / "log.jsonl")
    with pytest.raises(OptionError) as caught:
        open_labels(tmp_path / "log.jsonl")
    assert caught.value.key == "label_log"
    first.log.close()
    open_labels(tmp_path / "log.jsonl")


@pytest.mark.parametrize("name", ["", "  ", "x" * 61, "\ud800"])
def test_names_that_are_none(tmp_path, name):
    labels = open_labels(tmp_path / "log.jsonl")
    with pytest.raises(RequestError) as caught:
        labels.choose(name, "p0", "left")
    assert caught.value.status == 400 and len(lines(tmp_path / "log.jsonl")) == 1


def test_what_the_page_could_not_have_sent(tmp_path):
    labels = open_labels(tmp_path / "log.jsonl")
    for pair, button, status in (("p99", "left", 404), ("p0", "middle", 400)):
        with pytest.raises(RequestError) as caught:
            labels.choose("ann", pair, button)
        assert caught.value.status == status


def test_preferences_are_what_most_annotators_prefer(tmp_path):
    labels = open_labels(tmp_path / "log.jsonl", 7)
    said = {
        "p0": "aab",  # a
        "p1": "ab",  # divided
        "p2": ["tie", "a", "a"],  # a
        "p3": ["tie", "b"],  # divided
        "p4": ["tie", "tie", "a"],
        "p5": ["both_bad"],
    }
    for pair, choices in said.items():
        for i, choice in enumerate(choices):
            labels.log.add(f"annotator {i}", labels.by_id[pair], choice, False)
    preferred, counts = labels.preferred()
    assert [(pair.id, place) for pair, place in preferred] == [("p0", 0), ("p2", 0)]
    assert counts == Counter(written=2, divided=2, tie=1, both_bad=1, open=1)


def test_agreement_is_over_the_pairs_that_are_here(tmp_path):
    labels = open_labels(tmp_path / "log.jsonl", 4, {"p0": 1.0, "p1": -1.0, "p2": 2.0})
    for pair, choices in {"p0": "aa", "p1": "ab", "p2": "bb"}.items():
        for name, choice in zip(("ann", "bob"), choices, strict=True):
            labels.log.add(name, labels.by_id[pair], choice, False)
    labels.log.made["ann"]["gone"] = "a"
    found = labels.agreement()
    assert found["people"][0]["n"] == 3 and found["people"][0]["agree"] == pytest.approx(2 / 3)
    assert [(found["model"][name]["n"], found["model"][name]["accuracy"]) for name in ("ann", "bob")] == [
        (3, pytest.approx(1 / 3)),
        (3, pytest.approx(2 / 3)),
    ]


def test_a_kill_while_choosing_loses_nothing_that_was_said_to_be_kept(tmp_path):
    """A process says each choice after it is kept, and is killed: the log holds all that was said, and goes on."""
    path, (read, write) = tmp_path / "log.jsonl", os.pipe()
    if (child := os.fork()) == 0:
        labels = open_labels(path, 5000)
        for pair in labels.pairs:
            labels.choose("ann", pair.id, "left")
            os.write(write, f"{pair.id}\n".encode())
        os._exit(0)
    os.close(write)
    with open(read) as said_by_child:
        said = [said_by_child.readline().strip() for _ in range(20)]
        os.kill(child, signal.SIGKILL)
        said += said_by_child.read().split()
    os.waitpid(child, 0)
    labels = open_labels(path, 5000)
    kept = list(labels.log.of("ann"))
    assert kept[: len(said)] == said and len(kept) <= len(said) + 1 < 5000
    assert labels.next("ann").id == f"p{len(kept)}"
