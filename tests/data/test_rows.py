"""The one reader of rows: every format and place, damaged files and rows, splits, adapters, and drawing of rows."""

import json
import pickle

import pytest
from helpers.image_text_layouts import COUNT, LABELS, write_all
from helpers.image_text_layouts import rows as layout_rows

from rs_rlhf.data.forms import known_rows, rsrm_rows
from rs_rlhf.data.rows import (
    HELD_OUT,
    Where,
    common_folder,
    data_files,
    draw_rows,
    image_folder,
    open_rows,
    source_of,
    split_of,
    split_paths,
)
from rs_rlhf.errors import DataError, OptionError


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


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("layouts"))


def captions(row):
    return row.get("captions") or [row["title"].partition("\n")[0]]


@pytest.mark.parametrize("format", ["parquet", "jsonl", "json", "csv", "webdataset", "dataset"])
def test_every_format_gives_the_same_rows(layouts, format):
    found = list(open_rows(layouts[format]))
    wanted = layout_rows()
    count = 1 if format == "csv" else None  # which holds the first caption only
    assert [captions(row) for _, row in found] == [row["captions"][:count] for row in wanted]
    labels = [row["label"] for _, row in found]
    assert labels == [i % 2 for i in range(COUNT)] or labels == [LABELS[i % 2] for i in range(COUNT)]


def test_places_of_rows(layouts, tmp_path):
    wheres = [where for where, _ in open_rows(layouts["jsonl"])]
    assert wheres[0] == f"{layouts['jsonl']}/a.jsonl, line 1" and wheres[-1].endswith(
        "b.jsonl, line 27"
    )  # blank lines
    assert (wheres[0].file, wheres[0].number) == (f"{layouts['jsonl']}/a.jsonl", 1)
    assert next(open_rows(layouts["csv"] / "rows.csv"))[0].endswith("rows.csv, row 0")
    again = pickle.loads(pickle.dumps(wheres[0]))
    assert again == wheres[0] and again.number == 1
    assert Where("a.json", -1) == "a.json"


def write(path, *lines):
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return path


@pytest.mark.parametrize(
    ("name", "lines", "where", "detail"),
    [
        ("a.jsonl", ['{"x": 1}', "", "{oops"], "a.jsonl, line 3", "not JSON"),
        ("a.jsonl", ['{"x": 1}', "[1]"], "a.jsonl, line 2", "the row is [1]"),
        ("a.jsonl", ['{"x": 1}', b'{"x": "\xff"}'], "a.jsonl, line 2", "not UTF-8"),
        ("a.json", ['[{"x": 1}, 3]'], "a.json, row 1", "the row is 3"),
        ("a.json", ['[{"x": 1}, {oops'], "a.json", "not JSON"),
        ("a.json", ['{"x": 1}'], "a.json", "is not a JSON list of rows"),
        ("a.csv", ["x,y", "1,2", "3"], "a.csv, row 1", "1 fields, expected the 2 of the header"),
        ("a.csv", ["x,y", '1,"2'], "a.csv", "ends inside the quoted field"),
        ("a.csv", ["x;y".encode("utf-16")], "a.csv", "is not UTF-8 text"),
        ("a.parquet", ["PAR1"], "a.parquet", "cannot be read as Parquet"),
        ("a.tar", ["no tar"], "a.tar", "cannot be read as a tar file"),
    ],
)
def test_what_cannot_be_read_is_raised_or_returned(tmp_path, name, lines, where, detail):
    file = write(tmp_path / name, *lines)
    with pytest.raises(DataError) as error:
        list(open_rows(file))
    *_, (place, returned) = open_rows(file, on_error="return")
    for found in (error.value, returned):
        assert found.where == f"{tmp_path}/{where}" and found.detail.startswith(detail)
    assert place == f"{tmp_path}/{where}"


@pytest.mark.parametrize("name", ["gone.jsonl", "a.txt", "empty"])
def test_nothing_to_read(tmp_path, name):
    (tmp_path / "a.txt").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as error:
        list(open_rows(tmp_path / name))
    assert error.value.where == str(tmp_path / name)


def test_an_adapter_makes_any_number_of_rows_of_one(tmp_path):
    file = write(tmp_path / "a.jsonl", '{"n": 2}', '{"n": 0}', '{"n": -1}', '{"n": 1}')

    def times(row, where):
        if row["n"] < 0:
            raise DataError("`n` is negative", "n")
        return [{"at": where.number}] * row["n"]

    found = [row for _, row in open_rows(file, adapter=times, on_error="return")]
    assert found[:2] == [{"at": 1}] * 2 and found[3] == {"at": 4} and len(found) == 4
    assert (found[2].key, found[2].where) == ("n", f"{file}, line 3")


def test_rsrm_rows_are_recognised_or_named(tmp_path):
    plain = {"chosen": "a", "rejected": ["b", "c"]}
    file = write(tmp_path / "some.json", json.dumps([plain, {"question": "Q?", **plain}]))
    assert [row for _, row in open_rows(file)] == [plain, {"question": "Q?", **plain}]
    made = [row for _, row in open_rows(file, adapter=known_rows)]
    base = {"chosen": "a", "source": "some"}
    asked = [{**base, "prompt": "Q?", "rejected": text} for text in "bc"]
    assert made == [{**plain, "source": "some"}, *asked]
    assert [row for _, row in open_rows(f"rsrm:{file}")] == [{**row, "prompt": ""} for row in asked] + asked
    with pytest.raises(DataError) as error:
        list(rsrm_rows({"text": "oops"}, Where(str(tmp_path / "vqa.json"), 0)))
    assert error.value.key == "text"


def test_images_in_a_folder_named_like_the_file(tmp_path):
    file = write(tmp_path / "vqa.json", json.dumps([{"tile": "x.png", "caption": "a"}]))
    assert next(open_rows(file))[1]["image"] == "x.png"
    (tmp_path / "vqa").mkdir()
    (tmp_path / "vqa" / "x.png").write_bytes(b"")
    assert next(open_rows(file))[1]["image"] == str(tmp_path / "vqa" / "x.png")
    (tmp_path / "x.png").write_bytes(b"")
    assert next(open_rows(file))[1]["image"] == "x.png"


def test_files_of_a_split(tmp_path):
    names = ["train.jsonl", "train_pairs.jsonl", "validation-0-of-2.parquet", "validation-1-of-2.parquet"]
    for name in [*names, "kept_ids.parquet", ".hidden.jsonl", "notes.txt"]:
        (tmp_path / name).touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test.csv").touch()
    write(tmp_path / "dataset_info.json", "{}")

    def found(split=None):
        return {kind: [file.name for file in files] for kind, files in data_files(tmp_path, split).items()}

    assert found() == {"parquet": names[2:], "jsonl": names[:2], "csv": ["test.csv"]}
    assert found("train") == {"jsonl": ["train.jsonl"]}  # not what was made of it
    assert found("validation") == found("val") == {"parquet": names[2:]}
    assert found("test") == {"csv": ["test.csv"]} and found("dev") == {}
    (tmp_path / "train.jsonl").unlink()
    assert found("train") == {"jsonl": ["train_pairs.jsonl"]}


def test_a_folder_of_several_splits_needs_one_named(tmp_path):
    for name in ("train.jsonl", "val.jsonl"):
        write(tmp_path / name, json.dumps({"of": name}))
    with pytest.raises(DataError) as error:
        list(open_rows(tmp_path))
    assert error.value.where == str(tmp_path) and "train, val" in error.value.detail
    assert [row for _, row in open_rows(tmp_path, "val")] == [{"of": "val.jsonl"}]
    assert "val" in HELD_OUT and "train" not in HELD_OUT


def test_folders_of_images(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jsonl").touch()
    files = [str(tmp_path / name / "x.jsonl") for name in ("a", "b")]
    assert image_folder(files[0]) == image_folder(f"rsrm:{files[0]}") == str((tmp_path / "a").resolve())
    assert common_folder(files) == str(tmp_path.resolve())
    with pytest.raises(DataError):
        common_folder([files[0], "/etc/passwd"])


def test_drawing_rows():
    drawn = draw_rows(100, 10, seed=3)
    assert drawn == sorted(set(drawn)) == draw_rows(100, 10, seed=3) != draw_rows(100, 10, seed=4)
    assert len(drawn) == 10 and draw_rows(5, None) == draw_rows(5, 9) == [0, 1, 2, 3, 4]
    with pytest.raises(OptionError) as error:
        draw_rows(5, 0)
    assert error.value.key == "limit"
