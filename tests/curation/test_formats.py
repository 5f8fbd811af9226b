"""Kept rows are written as they were, in the format they came in; a run that fails leaves nothing that looks whole."""

import json
import os
import re
import shutil
import tarfile
import tracemalloc

import datasets
import pyarrow.parquet as pq
import pytest
from helpers import warm
from helpers.image_text_layouts import COUNT, add, png, rows, write_all, write_csv, write_images, write_parquet

from rs_rlhf.cli import main as cli
from rs_rlhf.curation.formats import write_kept
from rs_rlhf.data.image_text_dataset import open_image_texts
from rs_rlhf.errors import DataError
from rs_rlhf.runs.files import replacing_folder

FORMATS = ("parquet", "jsonl", "json", "csv", "webdataset", "dataset")


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("layouts") / "all")


def write(data, kept, out):
    """Writes as `rs-rlhf curate` does: the folder takes its place when it is whole."""
    with replacing_folder(out) as new:
        return write_kept(data, kept, new)


def written(data, kept, out):
    write(data, kept, out)
    return os.listdir(out)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_again(out, data):
    return list(open_image_texts(out, image_root=data.root))


@pytest.mark.parametrize("format", FORMATS)
def test_keeping_everything_gives_the_input(layouts, tmp_path, format):
    data = open_image_texts(layouts[format])
    counts = write(data, lambda row_id: True, tmp_path / "out")
    assert counts["rows"] == counts["kept_rows"] == COUNT and counts["shortened_rows"] == 0
    assert counts["files_without_rows"] == []
    assert [row.raw for row in read_again(tmp_path / "out", data)] == [row.raw for row in data]
    if format != "dataset":
        assert counts["files"] == list(data.files) and set(contents(tmp_path / "out")) == set(data.files)
    else:
        assert sorted(counts["files"]) == ["data-00000-of-00001.arrow", "dataset_info.json", "state.json"]
    assert not any(".new" in name for name in os.listdir(tmp_path / "out"))


@pytest.mark.parametrize("format", FORMATS)
def test_keeping_some_rows_and_texts(layouts, tmp_path, format):
    """A third of the rows goes, another third keeps its last text only."""
    data = open_image_texts(layouts[format])
    choices, expected = {}, []
    for i, row in enumerate(data):
        last = len(row.texts) - 1
        choices[row.row_id] = (True, None, {last})[i // 3 % 3]
        if i // 3 % 3 != 1:
            expected.append((row.texts[-1:] if i // 3 % 3 == 2 else row.texts, row.images, row.label))
    counts = write(data, choices.__getitem__, tmp_path / "out")
    found = read_again(tmp_path / "out", data)
    assert [(row.texts, row.images, row.label) for row in found] == expected and counts["kept_rows"] == len(found)
    assert counts["shortened_rows"] == (0 if format == "csv" else 4) and not any(row.error for row in found)


def test_text_files_keep_their_bytes(layouts, tmp_path):
    for format, name in (("jsonl", "a.jsonl"), ("csv", "rows.csv")):
        data = open_image_texts(layouts[format])
        write(data, lambda row_id: True, tmp_path / format)
        whole = (layouts[format] / name).read_bytes()
        assert (tmp_path / format / name).read_bytes() == whole.replace(b"\n\n", b"\n")
        write(data, lambda row_id: row_id.endswith(":1"), tmp_path / f"{format}-one")
        assert (tmp_path / f"{format}-one" / name).read_bytes() in whole or format == "csv"
    lines = (layouts["jsonl"] / "a.jsonl").read_bytes().splitlines(keepends=True)
    data = open_image_texts(layouts["jsonl"])
    write(data, {"a.jsonl:2": {0}, "a.jsonl:3": True}.get, tmp_path / "edited")
    edited, untouched = (tmp_path / "edited" / "a.jsonl").read_bytes().splitlines(keepends=True)
    assert untouched == lines[3]
    assert json.loads(edited) == json.loads(lines[2]) | {"captions": rows()[2]["captions"][:1]}
    assert list(json.loads(edited)) == list(json.loads(lines[2])) and edited.isascii() == lines[2].isascii()
    write(open_image_texts(layouts["json"]), lambda row_id: int(row_id[-1]) < 2, tmp_path / "json")
    text = (tmp_path / "json" / "rows.json").read_text("utf-8")
    kept = [row for i, row in enumerate(rows()) if i % 10 < 2]
    assert json.loads(text) == kept and text.startswith('[\n{\n  "image": "0.png",\n') and text.endswith("}\n]\n")


def test_line_ends_and_delimiters_stay(tmp_path):
    (tmp_path / "in").mkdir()
    lines = '\ufeff{"captions": ["é", "b"]}\r\n{"captions": ["c"], "x": "\\ud800"}'
    (tmp_path / "in" / "t.jsonl").write_bytes(lines.encode())
    data = open_image_texts(tmp_path / "in")
    write(data, lambda row_id: {0}, tmp_path / "out")
    assert (tmp_path / "out" / "t.jsonl").read_bytes() == (
        '{"captions": ["é"]}\r\n{"captions": ["c"], "x": "\\ud800"}'.encode()
    )
    odd = b'{"captions": ["a", "b"], "x": "\xff", "y": "\xc3\xa9 \\ud800"}\n'
    (tmp_path / "in" / "t.jsonl").write_bytes(odd + odd.replace(b"\xff", b"") + odd)
    data = open_image_texts(tmp_path / "in")
    write(data, lambda row_id: {1} if row_id != "t.jsonl:2" else True, tmp_path / "odd")
    first, second, third = (tmp_path / "odd" / "t.jsonl").read_bytes().splitlines(keepends=True)
    assert third == odd and json.loads(second) == {"captions": ["b"], "x": "", "y": "é \ud800"}
    assert json.loads(first)["captions"] == ["b"]
    (tmp_path / "tsv").mkdir()
    content = b'\xef\xbb\xbffilepath\ttitle\r\na.png\tone, two\r\n\r\nb.png\t"three\r\nfour"\r\nc.png\tfive'
    (tmp_path / "tsv" / "t.csv").write_bytes(content)
    write(open_image_texts(tmp_path / "tsv"), lambda row_id: row_id != "t.csv:0", tmp_path / "tsv-out")
    assert (tmp_path / "tsv-out" / "t.csv").read_bytes() == content.replace(b"a.png\tone, two\r\n\r\n", b"")


def test_parquet_keeps_schema_metadata_and_row_groups(layouts, tmp_path):
    data = open_image_texts(layouts["parquet"])
    write(data, lambda row_id: {0} if row_id.endswith(":2") else True, tmp_path)
    name = "train-00000-of-00002.parquet"
    old, new = pq.ParquetFile(layouts["parquet"] / name), pq.ParquetFile(tmp_path / name)
    assert new.schema_arrow.equals(old.schema_arrow, check_metadata=True)
    assert b"ClassLabel" in new.schema_arrow.metadata[b"huggingface"]
    assert new.metadata.num_row_groups == old.metadata.num_row_groups == 3
    codecs = [[file.metadata.row_group(0).column(i).compression for i in range(4)] for file in (old, new)]
    assert codecs[0] == codecs[1] and set(codecs[0]) == {"UNCOMPRESSED", "SNAPPY"}
    loaded = datasets.Dataset.from_parquet(str(tmp_path / name))
    assert loaded.features["label"].names == ["Port", "River"] and loaded[2]["captions"] == rows()[2]["captions"][:1]
    assert loaded[2]["image"].size == (16, 16)


def test_uncompressed_parquet_without_hf_metadata(tmp_path):
    import pyarrow as pa

    (tmp_path / "in").mkdir()
    table = pa.table({"say": [["a", "b"], ["c"], ["d", "e"]], "image": [png(i) for i in range(3)]})
    pq.write_table(table, tmp_path / "in" / "x.parquet", compression="none")
    data = open_image_texts(tmp_path / "in", columns={"text": "say"})
    write(data, lambda row_id: {1} if row_id != "x.parquet:1" else None, tmp_path / "out")
    kept = pq.read_table(tmp_path / "out" / "x.parquet")
    assert kept.to_pylist() == [{"say": ["b"], "image": png(0)}, {"say": ["e"], "image": png(2)}]
    assert pq.ParquetFile(tmp_path / "out" / "x.parquet").metadata.row_group(0).column(0).compression == "UNCOMPRESSED"


def test_shard_members_stay(layouts, tmp_path):
    data = open_image_texts(layouts["webdataset"])
    write(data, lambda row_id: {0} if row_id == "000.tar:2" else row_id == "000.tar:3", tmp_path)

    def members(path):
        with tarfile.open(path) as tar:
            return {info.name: (tar.extractfile(info).read(), info.mtime, info.mode) for info in tar}

    old, new = members(layouts["webdataset"] / "000.tar"), members(tmp_path / "000.tar")
    key = "long/" * 30
    assert list(new) == [f"{key}2.png", f"{key}2.json", f"{key}3.png", f"{key}3.json"]
    assert {name for name in new if new[name] != old[name]} == {f"{key}2.json"}
    assert json.loads(new[f"{key}2.json"][0]) == {"captions": rows()[2]["captions"][:1], "label": "Port"}


def test_conversations_keep_their_structure(tmp_path):
    (tmp_path / "in").mkdir()
    write_images(tmp_path / "in", 3)
    turns = [
        {"from": "human", "value": "<image>\nWhat?"},
        {"from": "gpt", "value": "A."},
        {"from": "human", "value": "And <image>?"},
        {"from": "gpt", "value": "B."},
    ]
    made = [{"id": i, "image": ["0.png", "1.png"], "conversations": turns, "extra": {"k": [i]}} for i in range(3)]
    (tmp_path / "in" / "llava.json").write_text(json.dumps(made, indent=2))
    data = open_image_texts(tmp_path / "in")
    counts = write(data, {"llava.json:0": {0, 1}, "llava.json:2": True}.get, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "llava.json").read_text()) == [made[0], made[2]]
    assert (counts["kept_rows"], counts["shortened_rows"]) == (2, 0)
    found = read_again(tmp_path / "out", data)
    assert [row.texts for row in found] == [["A.", "B."]] * 2 and len(found[0].groups[1].images) == 2
    with pytest.raises(DataError, match=r"llava.json, row 1: the texts \[1\] are to be kept of 2, but only"):
        write(data, {"llava.json:1": {1}}.get, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_streaming_dataset(layouts, tmp_path):
    files = sorted(map(str, layouts["parquet"].glob("*.parquet")))
    data = open_image_texts(datasets.load_dataset("parquet", data_files=files, split="train", streaming=True))
    kept = {f"part-0000{part}-of-00002:{i}": {0} for part in range(2) for i in (2, 3, 4)}
    counts = write(data, kept.get, tmp_path / "out")
    saved = datasets.load_from_disk(str(tmp_path / "out"))
    assert saved["captions"][:] == [rows()[i]["captions"][:1] for i in (2, 3, 4, 15, 16, 17)]
    assert saved.features["label"].names == ["Port", "River"] and saved[0]["image"].size == (16, 16)
    assert (counts["rows"], counts["kept_rows"]) == (COUNT, 6)
    nothing = write(data, lambda row_id: None, tmp_path / "nothing")
    assert nothing["files"] == [] and nothing["files_without_rows"] == ["dataset"]
    assert os.listdir(tmp_path / "nothing") == []


def test_files_without_kept_rows(layouts, tmp_path):
    data = open_image_texts(layouts["webdataset"])
    counts = write(data, lambda row_id: row_id.startswith("001"), tmp_path)
    assert counts["files"] == ["001.tar"] and counts["files_without_rows"] == ["000.tar"] and counts["rows"] == COUNT
    assert os.listdir(tmp_path) == ["001.tar"]


def test_what_an_earlier_run_kept_does_not_stay_behind(layouts, tmp_path):
    data = open_image_texts(layouts["jsonl"])
    assert set(written(data, lambda row_id: True, tmp_path / "out")) == {"a.jsonl", "b.jsonl"}
    assert set(written(data, lambda row_id: row_id.startswith("b"), tmp_path / "out")) == {"b.jsonl"}
    data = open_image_texts(layouts["dataset"])
    write(data, lambda row_id: True, tmp_path / "saved")
    write(data, lambda row_id: row_id == "dataset:3", tmp_path / "saved")
    assert len(datasets.load_from_disk(str(tmp_path / "saved"))) == 1


# --- failures ---------------------------------------------------------------------------------------------------


FULL = """
import json, os, resource, sys
from pathlib import Path
from rs_rlhf.data.image_text_dataset import open_image_texts
import pyarrow as pa
from rs_rlhf.curation.writer import IDS, write_folder
from rs_rlhf.errors import DataError

source, out, limit = sys.argv[-3], Path(sys.argv[-2]), int(sys.argv[-1])
data = open_image_texts(source)
lines = [(row.row_id, i) for row in data for i in range(len(row.texts))]
ids = pa.table({"row_id": [line[0] for line in lines], "text_index": [line[1] for line in lines]}).cast(IDS)
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)

def attempt(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, unlimited[1]))
    try:
        write_folder(out, data, ids, {"stamp": [], "figures": {}, "settings": {}}, {})
        told = ""
    except DataError as error:
        told = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    return told, {path.name: path.read_bytes().hex() for path in out.iterdir()} if out.exists() else {}

print(json.dumps([attempt(limit), attempt(unlimited[0]), attempt(limit)]))
"""


@pytest.mark.parametrize("format", ["parquet", "jsonl", "webdataset", "dataset"])
def test_a_full_disk_leaves_nothing(layouts, tmp_path, format):
    """The kernel refuses to let files grow, as on a full disk, in the middle of the largest one."""
    limit = max(path.stat().st_size for path in layouts[format].glob("*.*") if path.suffix != ".png") // 2
    told = warm.run(["-c", FULL, str(layouts[format]), str(tmp_path / "out"), str(limit)], check=0)
    full, whole, full_again = json.loads(told.stdout)
    place = re.escape(str(tmp_path / "out"))
    assert re.match(f"{place}: cannot be written \\(.*File too large.*\\); make room or choose", full[0])
    assert full[1] == {} and whole[0] == "" and os.listdir(tmp_path) == ["out"]
    # What an earlier run has written is still there, whole.
    assert "cannot be written" in full_again[0] and full_again[1] == whole[1] and len(whole[1]) > 1


def test_interruption_leaves_nothing(layouts, tmp_path):
    def kept(row_id):
        if row_id == "001.tar:5":
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        write(open_image_texts(layouts["webdataset"]), kept, tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_damaged_input_is_named(layouts, tmp_path):
    shutil.copytree(layouts["json"], tmp_path / "in")
    content = (tmp_path / "in" / "rows.json").read_bytes()
    (tmp_path / "in" / "rows.json").write_bytes(content[:-200])
    with pytest.raises(DataError, match="in/rows.json: not JSON in the row at byte"):
        write(open_image_texts(tmp_path / "in"), lambda row_id: True, tmp_path / "out")
    assert os.listdir(tmp_path) == ["in"]
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "t.jsonl").write_text('{"caption": "x"}\n{"cap\n')
    data = open_image_texts(tmp_path / "lines")
    with pytest.raises(DataError, match="t.jsonl, row 1: not JSON"):
        write(data, lambda row_id: {0}, tmp_path / "out")
    counts = write(data, {"t.jsonl:0": {0}}.get, tmp_path / "out")
    assert (counts["rows"], counts["kept_rows"]) == (2, 1)


@pytest.mark.parametrize("format", ["jsonl", "json", "csv", "webdataset", "parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path, format):
    def peak(count):
        folder = tmp_path / str(count)
        folder.mkdir()
        texts = [[f"{i} " + "x" * 10_000, "y"] for i in range(count)]
        made = [{"image": f"{i % 9}.png", "captions": text, "label": "Port"} for i, text in enumerate(texts)]
        if format == "jsonl":
            (folder / "x.jsonl").write_text("\n".join(map(json.dumps, made)))
        elif format == "json":
            (folder / "x.json").write_text(json.dumps(made))
        elif format == "csv":
            write_csv(folder / "x.csv", made)
        elif format == "parquet":
            write_parquet(folder / "x.parquet", made, per_group=100)
        else:
            with tarfile.open(folder / "x.tar", "w") as tar:
                for i, row in enumerate(made):
                    add(tar, f"{i}.json", json.dumps({"captions": row["captions"]}).encode())
        del made, texts
        data = open_image_texts(folder)
        shorter = {0} if format != "csv" else True
        tracemalloc.start()
        counts = write(data, lambda row_id: shorter if row_id.endswith("1") else True, tmp_path / f"out{count}")
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert counts["kept_rows"] == count
        return top

    few, many = peak(300), peak(1000)  # 3 MB and 10 MB
    assert many < few + 2**20 and many < 8 * 2**20


def test_shards_with_dotted_names_are_scored_and_curated_in_their_pairs(tmp_path):
    """Error rows are counted, and what is kept and read again is each text with its own image."""

    def pairs(path):
        rows = open_image_texts(path)
        return {
            row.texts[0]: [(image["path"], image["bytes"]) for image in row.images] for row in rows if not row.error
        }

    texts = {f"tile_{i // 2}.{i}_{i}.5": "river " * (i + 1) for i in range(8)}
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "a.tar", "w") as tar:
        for i, (stem, text) in enumerate(texts.items()):
            add(tar, f"{stem}.png", png(i))
            add(tar, f"{stem}.json", json.dumps({"caption": text}).encode())
        add(tar, "tile_3.8_8.png", png(8))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "tile_0.0_0.5.png"
        tar.addfile(link)
    options = ["--scorer", "length", "--output", str(tmp_path / "scores"), "--max_error_fraction", "0.5"]
    assert cli.main(["score", "--input", str(tmp_path / "in"), *options]) == 0
    given = [str(tmp_path / "scores"), "--keep", "0.5"]
    assert cli.main(["curate", *given, "--output", str(tmp_path / "kept")]) == 0
    longest = list(texts)[4:]
    assert pairs(tmp_path / "kept") == {texts[stem]: [(f"{stem}.png", png(i))] for i, stem in enumerate(longest, 4)}
    with pytest.raises(DataError) as error:
        write(open_image_texts(tmp_path / "in"), lambda row_id: True, tmp_path / "all")
    assert error.value.where.endswith("a.tar, row 8")
