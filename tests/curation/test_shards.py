"""The folder of scores: its plan, its locks, its shards, what is left by the dead, and what is refused."""

import json
import multiprocessing
import os
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from helpers import ROOT

from rs_rlhf.curation.shards import (
    SCHEMA,
    claimed,
    drop_damaged,
    missing_units,
    open_scored,
    planned,
    read_manifest,
    read_scores,
    read_shard,
    reason,
    shard_facts,
    shard_path,
    summarize,
    write_shard,
)
from rs_rlhf.data.image_text_dataset import open_image_texts
from rs_rlhf.errors import DataError


@pytest.fixture
def source(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "river {i}."}}\n' for i in range(10)))
    return open_image_texts(tmp_path / "rows.jsonl")


def settings_of(source, **scorer):
    return {
        "input": source.name,
        "split": None,
        "image_root": None,
        "columns": None,
        "rows_per_shard": 4,
        "scorer": {"kind": "length", **scorer},
        "stamp": source.stamp,
    }


def lines(first, count, **other):
    own = {
        "row_id": [f"rows.jsonl:{i}" for i in range(first, first + count)],
        "text_index": [0] * count,
        "score": [i / 8 for i in range(first, first + count)],
        "tokens": [2] * count,
        "image_hash": [""] * count,
        "error": [None] * count,
        "text": [f"river {i}." for i in range(first, first + count)],
        "whole": [False] * count,
        "source": ["rows"] * count,
        "label": [""] * count,
    }
    columns = own | other
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def facts(rows, start, stop):
    return {"rows": rows, "texts": rows, "start": start, "stop": stop}


def plan(folder, settings, units):
    with planned(folder, settings, units) as manifest:
        return manifest


@pytest.fixture
def begun(source, tmp_path):
    folder = tmp_path / "scores"
    return folder, plan(folder, settings_of(source), lambda: source.units(4))


def test_a_plan_is_made_once_and_kept(source, begun):
    folder, manifest = begun
    assert [unit["rows"] for unit in manifest["units"]] == [4, 4, 2] and manifest["version"] == 1
    assert read_manifest(folder) == manifest
    again = plan(folder, settings_of(source), lambda: pytest.fail("planned twice"))
    assert again == manifest
    assert open_scored(folder).stamp == source.stamp


def test_other_settings_are_refused_by_name(source, begun, tmp_path):
    folder, manifest = begun
    write_shard(shard_path(folder, manifest, 2), lines(8, 2), facts(2, 0, 1))

    def refusal(**other):
        with pytest.raises(DataError) as error:
            plan(folder, settings_of(source) | other, lambda: [])
        told = str(error.value)
        assert told.startswith(f"{folder}: ") and told.endswith("; choose another --output, or set that back.")
        return told

    told = refusal(rows_per_shard=5, scorer={"kind": "random", "seed": 1})
    assert "rows_per_shard was 4, now 5" in told and "scorer.kind was 'length', now 'random'" in told
    assert "scorer.seed was None, now 1" in told and "input" not in told
    told = refusal(stamp=[["rows.jsonl", 1], ["more.jsonl", 5]])
    size = (tmp_path / "rows.jsonl").stat().st_size
    assert f"rows.jsonl ({size} then, 1 now), more.jsonl (not there then, 5 now)" in told


def test_the_same_model_by_another_path_is_the_same(source, tmp_path):
    known = settings_of(source, model="a/model", model_stamp="abc")
    manifest = plan(tmp_path / "o", known, lambda: source.units(4))
    assert plan(tmp_path / "o", settings_of(source, model="../a/model", model_stamp="abc"), lambda: []) == manifest
    write_shard(shard_path(tmp_path / "o", manifest, 0), lines(0, 4), facts(4, 0, 1))
    with pytest.raises(DataError, match="scorer.model_stamp was 'abc', now 'abd'"):
        plan(tmp_path / "o", settings_of(source, model="a/model", model_stamp="abd"), lambda: [])
    hub = settings_of(source, model="owner/one", model_stamp=None)
    with planned(tmp_path / "p", hub, lambda: source.units(4)):
        with pytest.raises(DataError, match="scorer.model was 'owner/one', now 'owner/two'"):
            plan(tmp_path / "p", settings_of(source, model="owner/two", model_stamp=None), lambda: [])


def test_a_plan_that_nothing_was_scored_by_and_nobody_follows_is_replaced(source, begun):
    folder, manifest = begun
    other = settings_of(source, kind="random")
    with planned(folder, settings_of(source), lambda: []), planned(folder, settings_of(source), lambda: []):
        with pytest.raises(DataError, match="scorer.kind was 'length', now 'random'"):
            plan(folder, other, lambda: source.units(4))
    assert read_manifest(folder) == manifest
    assert plan(folder, other, lambda: source.units(4))["scorer"] == {"kind": "random"}


def test_damaged_folders_are_told(source, tmp_path):
    with pytest.raises(DataError, match="no manifest.json; expected a folder that `rs-rlhf score --output`"):
        read_scores(tmp_path)
    for text, message in (
        ("{", "not whole JSON"),
        ("[]", "no `units`"),
        ('{"units": [], "version": 9}', "is of version 9"),
    ):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(DataError, match=message):
            read_manifest(tmp_path)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "scores-00000-of-00001.parquet").touch()
    with pytest.raises(DataError, match="shards of scores but no manifest.json"):
        plan(tmp_path, settings_of(source), lambda: source.units(4))
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file: cannot be written"):
        plan(tmp_path / "file", settings_of(source), lambda: source.units(4))


def test_shards_come_back_in_order_and_complete(begun):
    folder, manifest = begun
    write_shard(shard_path(folder, manifest, 2), lines(8, 2), facts(2, 10, 12))
    write_shard(shard_path(folder, manifest, 0), lines(0, 4), facts(4, 0, 5))
    assert missing_units(manifest, folder) == [1]
    with pytest.raises(DataError, match="1 of 3 shards are missing; the same `rs-rlhf score` command resumes"):
        read_scores(folder)
    part = read_scores(folder, ["row_id", "score"], partial=True)
    assert part.column_names == ["row_id", "score"] and part["score"].to_pylist() == [0, 0.125, 0.25, 0.375, 1, 1.125]
    write_shard(shard_path(folder, manifest, 1), lines(4, 4), facts(4, 4, 9))
    whole = read_scores(folder)
    assert whole.schema == SCHEMA and whole["row_id"].to_pylist() == [f"rows.jsonl:{i}" for i in range(10)]
    assert shard_facts(read_shard(shard_path(folder, manifest, 1))) == facts(4, 4, 9)
    with pytest.raises(DataError, match="no column 'scores', only row_id"):
        read_scores(folder, ["scores"])


def test_shards_of_an_earlier_version_have_no_spread(begun):
    folder, manifest = begun
    path = shard_path(folder, manifest, 0)
    write_shard(path, [line | {"score_std": 0.5} for line in lines(0, 4)], facts(4, 0, 5))
    new = read_shard(path)
    assert new["score_std"].to_pylist() == [0.5] * 4
    pq.write_table(new.drop_columns("score_std"), path)
    old = read_shard(path)
    assert old.schema.equals(new.schema) and shard_facts(old) == facts(4, 0, 5)
    assert old["score_std"].null_count == 4 and old.drop_columns("score_std").equals(new.drop_columns("score_std"))
    assert read_shard(path, ["score_std", "score"]).column_names == ["score_std", "score"]


def test_the_summary_counts_reasons_and_the_time_that_was_worked(begun):
    folder, manifest = begun
    errors = {
        "error": ["image 'a.png': no such file", None, "image 'b.png': no such file", "12 tokens"],
        "score": [None, 1.0, None, None],
    }
    write_shard(shard_path(folder, manifest, 0), lines(0, 4, **errors), facts(4, 0, 5))
    write_shard(shard_path(folder, manifest, 1), lines(4, 4), facts(4, 4, 9))
    write_shard(shard_path(folder, manifest, 2), lines(8, 2), facts(2, 20, 21))
    summary = summarize(folder, manifest)
    assert (summary["rows"], summary["texts"], summary["failed_texts"], summary["shards"]) == (10, 7, 3, 3)
    assert (summary["seconds"], summary["process_seconds"], summary["texts_per_second"]) == (10, 11, 1)
    assert list(summary["errors"]) == ["image '…': no such file", "N tokens"]
    assert summary["errors"]["image '…': no such file"] == {
        "count": 2,
        "message": "image 'a.png': no such file",
        "rows": ["rows.jsonl:0", "rows.jsonl:2"],
    }


def test_reasons_leave_out_what_differs():
    assert reason("image 'a 1.png': is 20x30 pixels") == reason('image "it\'s.png": is 4x5 pixels')
    assert reason("no text") != reason("no image")


def test_a_damaged_shard_is_named_and_can_be_made_anew(begun):
    folder, manifest = begun
    for i, (first, count) in enumerate([(0, 4), (4, 4), (8, 2)]):
        write_shard(shard_path(folder, manifest, i), lines(first, count), facts(count, 0, 1))
    shard = shard_path(folder, manifest, 1)
    shard.write_bytes(shard.read_bytes()[:-40])
    for read in (read_scores, lambda folder: summarize(folder, manifest)):
        with pytest.raises(DataError, match=r"scores-00001-of-00003.parquet: cannot be read .*; delete it"):
            read(folder)
    with claimed(folder, "00001"):
        assert drop_damaged(manifest, folder) == [], "another process may be at it"
    assert drop_damaged(manifest, folder) == [shard]
    assert missing_units(manifest, folder) == [1]
    write_shard(shard, lines(4, 3), facts(3, 0, 1))  # another unit's rows
    assert drop_damaged(manifest, folder) == [shard]


def hold(folder, ready, end):
    with claimed(folder, "00000") as free:
        ready.send(free)
        end.recv()


def test_a_lock_is_held_by_one_and_freed_by_death(begun):
    folder, _ = begun
    spawn = multiprocessing.get_context("spawn")
    (here, there), (end, their_end) = spawn.Pipe(), spawn.Pipe()
    process = spawn.Process(target=hold, args=(folder, there, their_end))
    process.start()
    assert here.recv() is True
    with claimed(folder, "00000") as free:
        assert not free
    with claimed(folder, "00001") as free:
        assert free
    process.kill()
    process.join()
    with claimed(folder, "00000") as free:
        assert free
    end.close()


FULL = """
import resource, sys
from pathlib import Path
from rs_rlhf.curation.shards import SCHEMA, write_shard, write_json
from rs_rlhf.errors import DataError
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
texts = [dict.fromkeys(SCHEMA.names) | {"text": f"{i ** 9}"} for i in range(500)]
for write in (lambda: write_shard(folder / "scores-00000-of-00001.parquet", texts, {}),
              lambda: write_json(folder / "summary.json", {"a": "b" * 5000})):
    try:
        write()
    except DataError as error:
        print(error)
"""


def test_what_cannot_be_written_whole_is_not_there_at_all(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, cwd=ROOT)
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    for line, name in zip(lines, ("scores-00000-of-00001.parquet", "summary.json"), strict=True):
        assert line == (
            f"{tmp_path / name}: cannot be written (File too large); finished shards are kept: mend that "
            "and run the same command again"
        )
    assert os.listdir(tmp_path) == []


def test_a_changed_input_does_not_open_under_its_old_scores(begun, tmp_path):
    folder, manifest = begun
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"text": "one more."}\n')
    with pytest.raises(DataError, match="files differ in bytes: rows.jsonl .* put it back or score anew"):
        open_scored(folder)
    assert json.loads((folder / "manifest.json").read_text()) == manifest
