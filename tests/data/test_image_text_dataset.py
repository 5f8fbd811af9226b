"""Image-text files: every row is in one unit, ids do not depend on the cut, and nothing is read that is not needed."""

import json
import os
import re
import subprocess
import sys
import tracemalloc

import datasets
import pytest
from helpers import picture
from helpers.image_text_layouts import COUNT, LABELS, add, png, rows, write_all, write_images, write_parquet, write_tar

from rs_rlhf.data.image_text_dataset import Unit, open_image_texts
from rs_rlhf.errors import DataError
from rs_rlhf.imagery.raster import read_image
from rs_rlhf.imagery.trust import seal

FORMATS = ("parquet", "jsonl", "json", "csv", "webdataset", "dataset")


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("layouts") / "all")


def plain(row):
    assert row.error is None, row.error
    return row.row_id, row.texts, row.label, row.source, row.whole, row.groups, row.images, row.raw


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_gives_the_same_rows(layouts, format):
    data = open_image_texts(layouts[format])
    found, expected = list(data), rows()
    assert data.format == format and data.name == str(layouts[format])
    assert len({row.row_id for row in found}) == COUNT and not any(row.error for row in found)
    texts = [row["captions"][:1] if format == "csv" else row["captions"] for row in expected]
    assert [[text.split("\n")[0] for text in row.texts] for row in found] == texts
    assert [row.label for row in found] == [row["label"] for row in expected]
    assert all(len(row.groups) == 1 and row.groups[0].images == row.images and not row.whole for row in found)
    for i in (0, COUNT - 1):
        assert read_image(found[i].images[0]).tobytes() == picture(i, 16, 16).tobytes()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", [1, 2, 5, 7, COUNT, 1000])
def test_units_hold_every_row_once_and_do_not_change_it(layouts, format, size):
    data = open_image_texts(layouts[format])
    whole = [plain(row) for row in data]
    units = data.units(size)
    parts = [[plain(row) for row in data.read(unit)] for unit in units]
    assert [row for part in parts for row in part] == whole
    for unit, part in zip(units, parts, strict=True):
        assert unit.rows in (len(part), -1) and (unit.rows == -1) == (format == "webdataset") and unit.rows <= size
        assert [row[0] for row in part] == [f"{unit.file}:{unit.first + i}" for i in range(len(part))]
    # A unit says by itself where it is: opened anew, from its JSON form, it gives the same.
    again = open_image_texts(layouts[format])
    unit = Unit(**json.loads(json.dumps(units[-1].__dict__)))
    assert [plain(row) for row in again.read(unit)] == parts[-1]


def test_ids_and_stamp(layouts):
    data = open_image_texts(layouts["parquet"])
    assert [row.row_id for row in data][12:15] == [
        "train-00000-of-00002.parquet:12",
        "train-00001-of-00002.parquet:0",
        "train-00001-of-00002.parquet:1",
    ]
    assert {row.source for row in data} == {"train"}
    sizes = [os.path.getsize(layouts["parquet"] / name) for name, _ in data.stamp]
    assert data.stamp == [[f"train-0000{i}-of-00002.parquet", sizes[i]] for i in range(2)]
    units = data.units(4)
    assert [(unit.start, unit.stop) for unit in units[:4]] == [(0, 1), (0, 2), (1, 3), (2, 3)]  # row groups of 5
    one = open_image_texts(layouts["jsonl"] / "b.jsonl")
    assert [row.row_id for row in one][0] == "b.jsonl:0" and one.root == str(layouts["jsonl"])
    saved = open_image_texts(layouts["dataset"])
    assert [row.row_id for row in saved][-1] == f"dataset:{COUNT - 1}" and saved.stamp[0][1] == COUNT


def test_split_is_the_start_of_the_name_and_data_may_be_below(tmp_path):
    (tmp_path / "data").mkdir()
    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", rows(0, 2))
    write_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", rows(2, 3))
    data = open_image_texts(tmp_path, "train")
    assert [row.row_id for row in data] == [f"data/train-00000-of-00001.parquet:{i}" for i in range(2)]
    assert data.root == str(tmp_path / "data") and len(list(open_image_texts(tmp_path))) == 5
    with pytest.raises(DataError, match=r"no data file that begins with 'test' in the folder \(it has data\)"):
        open_image_texts(tmp_path, "test")


# --- reading starts at the unit, and memory does not grow with the file ---------------------------------------------


@pytest.mark.parametrize("format", ["jsonl", "json", "csv", "parquet"])
def test_the_last_unit_is_read_without_the_rest(tmp_path, format):
    filler = "x" * 2000
    made = [{"caption": f"{i} {filler}", "label": "Port"} for i in range(4000)]
    path = tmp_path / f"big.{format}"
    if format == "jsonl":
        path.write_text("\n".join(map(json.dumps, made)))
    elif format == "json":
        path.write_text(json.dumps(made))
    elif format == "csv":
        path.write_text("caption,label\n" + "".join(f'"{row["caption"]}\n",Port\n' for row in made))
    else:
        import random

        for row in made:
            row["caption"] = row["caption"][:10] + random.Random(row["caption"]).randbytes(1000).hex()
        datasets.Dataset.from_list(made).to_parquet(str(path), batch_size=50)
    data = open_image_texts(path)
    units = data.units(50)
    code = (
        "import sys, json; from rs_rlhf.data.image_text_dataset import Unit, open_image_texts\n"
        "data = open_image_texts(sys.argv[1]); first, unit = (Unit(**one) for one in json.loads(sys.argv[2]))\n"
        "list(data.read(first))  # whatever is imported on the way is read now\n"
        "read = lambda: int(open('/proc/self/io').readline().split()[1])\n"
        "before = read(); rows = list(data.read(unit)); print(read() - before, len(rows), rows[-1].texts[0][:4])"
    )
    if not os.path.exists("/proc/self/io"):
        pytest.skip("needs /proc/self/io to count what is read")
    told = subprocess.run(
        [sys.executable, "-c", code, str(path), json.dumps([units[0].__dict__, units[-1].__dict__])],
        check=True,
        capture_output=True,
        text=True,
        cwd=os.getcwd(),
    )
    taken, count, last = told.stdout.split()
    assert (count, last) == ("50", "3999") and len(units) == 80
    assert int(taken) < 0.15 * path.stat().st_size


@pytest.mark.parametrize(
    "format",
    ["json", "parquet", *(pytest.param(format, marks=pytest.mark.slow) for format in ("jsonl", "csv", "webdataset"))],
)
def test_memory_does_not_grow_with_the_file(tmp_path, format):
    def peak(count):
        path = tmp_path / f"{count}.{'tar' if format == 'webdataset' else format}"
        made = [{"caption": f"{i} " + "x" * 20_000} for i in range(count)]
        if format == "jsonl":
            path.write_text("\n".join(map(json.dumps, made)))
        elif format == "json":
            path.write_text(json.dumps(made))
        elif format == "csv":
            path.write_text("caption\n" + "".join(f"{row['caption']}\n" for row in made))
        elif format == "parquet":
            datasets.Dataset.from_list(made).to_parquet(str(path), batch_size=100)
        else:
            import tarfile

            with tarfile.open(path, "w") as tar:
                for i, row in enumerate(made):
                    add(tar, f"{i}.json", json.dumps(row).encode())
        del made
        data = open_image_texts(path)
        tracemalloc.start()
        units = data.units(100)
        assert sum(1 for unit in units for _ in data.read(unit)) == count
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    few, many = peak(300), peak(1200)  # 6 MB and 24 MB
    assert many < few + 2**21 and many < 16 * 2**20


def test_a_row_group_is_not_read_whole(tmp_path):
    """A process that may not have the memory for the file's only row group reads it."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(0)
    images = [random.bytes(2**19) for _ in range(200)]
    table = pa.table({"image": images, "caption": [str(i) for i in range(200)]})
    pq.write_table(table, tmp_path / "big.parquet", row_group_size=200, compression="none", use_dictionary=False)
    del table, images
    code = (
        "import sys, resource, pyarrow.parquet; from rs_rlhf.data.image_text_dataset import open_image_texts\n"
        "data = open_image_texts(sys.argv[1]); units = data.units(100); list(data.read(units[0].__class__("
        "**{**units[0].__dict__, 'rows': 1})))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(sum(1 for unit in units for row in data.read(unit)), "
        "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "big.parquet")],
        check=True,
        capture_output=True,
        text=True,
        cwd=os.getcwd(),
    )
    count, kilobytes = map(int, told.stdout.split())
    assert count == 200 and kilobytes < 50 * 1024


def test_opening_loads_no_torch(layouts):
    code = (
        "import sys; from rs_rlhf.data.image_text_dataset import open_image_texts\n"
        "assert sum(1 for row in open_image_texts(sys.argv[1])) == 23\n"
        "print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, str(layouts["parquet"])],
        check=True,
        capture_output=True,
        text=True,
        cwd=os.getcwd(),
    )
    assert told.stdout.strip() == "[]"


# --- WebDataset -----------------------------------------------------------------------------------------------------


def tar_of(path, members):
    import tarfile

    with tarfile.open(path, "w") as tar:
        for name, content in members:
            add(tar, name, content)
    return open_image_texts(path)


def test_shard_members(tmp_path):
    turns = [{"from": "human", "value": "<image>\nand <image>?"}, {"from": "gpt", "value": "A."}]
    data = tar_of(
        tmp_path / "x.tar",
        [
            ("./d.v1/0.JPG", png(0)),
            ("./d.v1/0.txt", b"from txt\n"),
            ("./d.v1/0.json", b'{"caption": "from json"}'),
            ("1.caption", b"from caption"),
            ("1.png", png(1)),
            ("._1.png", b"junk of a file system"),
            ("2.0.png", png(2)),
            ("2.1.png", png(3)),
            ("2.json", json.dumps({"conversations": turns}).encode()),
            ("3.json", b'{"question": "Q", "answer": "A"}'),
            ("3.bin", b"not read"),
            ("4.png", png(4)),
            ("4.txt", b"\xff\xfe"),
            ("5.txt", b"no image"),
            ("6.png", png(6)),
            ("6.json", b"{"),
            ("7.png", png(7)),
        ],
    )
    found = list(data)
    assert [row.row_id for row in found] == [f"x.tar:{i}" for i in range(8)]
    assert [row.texts for row in found[:4]] == [["from txt"], ["from caption"], ["A."], ["A"]]
    assert found[0].images == [{"bytes": png(0), "path": "./d.v1/0.JPG"}] and found[3].images == []
    assert [image["path"] for image in found[2].images] == ["2.0.png", "2.1.png"] and found[2].whole
    messages = [str(row.error) for row in found[4:]]
    assert messages[0].startswith(f"{tmp_path}/x.tar, row 4: `txt` has characters that are no text")
    assert "the sample 5 has a text but no image; add the image or remove it" in messages[1]
    assert "6.json is not JSON" in messages[2] and "no text column; the columns are __key__, image" in messages[3]
    twice = tar_of(tmp_path / "y.tar", [("0.png", png(0)), ("0.png", png(1)), ("0.txt", b"x")])
    assert "the sample 0 has two files .png; give each sample a name" in str(next(iter(twice)).error)


def test_named_members(tmp_path):
    members = [("0.left.png", png(0)), ("0.right.png", png(1)), ("0.long.md", b"long text"), ("0.txt", b"short")]
    tar_of(tmp_path / "x.tar", members)
    row = next(iter(open_image_texts(tmp_path / "x.tar", columns={"image": "right.png", "text": "long.md"})))
    assert row.texts == ["long text"] and row.images == [{"bytes": png(1), "path": "0.right.png"}]


@pytest.mark.parametrize("cut", [100, 600, 1024, 3000, -600, -10_500])
def test_shard_cut_short(tmp_path, cut):
    write_tar(tmp_path / "x.tar", rows(0, 9))
    content = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(content.rstrip(b"\0")[:cut])
    with pytest.raises(DataError, match=f"{tmp_path}/x.tar: cannot be read as a tar file .*write it again"):
        list(open_image_texts(tmp_path / "x.tar"))


def test_shard_cut_at_the_end_of_a_member(tmp_path):
    write_tar(tmp_path / "x.tar", rows(0, 3))
    content = (tmp_path / "x.tar").read_bytes().rstrip(b"\0")
    (tmp_path / "x.tar").write_bytes(content + bytes(-len(content) % 512))
    with pytest.raises(DataError, match="no end mark at byte"):
        list(open_image_texts(tmp_path / "x.tar"))


def test_what_is_no_shard(tmp_path):
    import gzip

    (tmp_path / "x.tar").write_bytes(gzip.compress(b"x" * 2000))
    with pytest.raises(DataError, match="x.tar: cannot be read as a tar file .*compressed.*; write it again"):
        open_image_texts(tmp_path / "x.tar")


# --- data sets ------------------------------------------------------------------------------------------------------


def some_rows(parts):
    for part in parts:
        for i in range(3):
            yield {"image": picture(part, 8, 8), "caption": f"{part}.{i}", "label": part % 2}


def test_streaming_dataset():
    features = datasets.Features(
        image=datasets.Image(), caption=datasets.Value("string"), label=datasets.ClassLabel(names=LABELS)
    )
    stream = datasets.IterableDataset.from_generator(
        some_rows, gen_kwargs={"parts": list(range(4))}, features=features
    )
    data = open_image_texts(stream)
    units = data.units(1)
    assert [unit.rows for unit in units] == [-1] * 4 and data.stamp[1] == ["part-00001-of-00004", -1]
    found = [row for unit in units for row in data.read(unit)]
    ids = [row.row_id for row in found]
    assert ids[:4] == [*(f"part-00000-of-00004:{i}" for i in range(3)), "part-00001-of-00004:0"]
    assert [row.texts for row in data.read(units[2])] == [["2.0"], ["2.1"], ["2.2"]]
    assert [row.label for row in found][2:4] == ["Port", "River"]
    assert read_image(found[3].images[0]).tobytes() == picture(1, 8, 8).tobytes()
    unknown = open_image_texts(datasets.IterableDataset.from_generator(some_rows, gen_kwargs={"parts": [5]}))
    assert [row.texts for row in unknown] == [["5.0"], ["5.1"], ["5.2"]]


def test_streaming_parquet(layouts):
    files = sorted(map(str, layouts["parquet"].glob("*.parquet")))
    data = open_image_texts(datasets.load_dataset("parquet", data_files=files, split="train", streaming=True))
    assert len(data.units(5)) == 2
    found, expected = list(data), list(open_image_texts(layouts["parquet"]))
    assert [(r.texts, r.label, r.images) for r in found] == [(r.texts, r.label, r.images) for r in expected]


def test_dataset_in_memory_and_splits(layouts, tmp_path):
    saved = datasets.load_from_disk(str(layouts["dataset"]))
    data = open_image_texts(saved.select(range(20, 3, -3)))
    assert [row.texts for row in data] == [rows()[i]["captions"] for i in range(20, 3, -3)]
    assert {row.source for row in data} == {"dataset"} and data.stamp[0][0].startswith("dataset ")
    splits = datasets.DatasetDict(train=saved.select(range(2)), test=saved.select(range(5)))
    splits.save_to_disk(str(tmp_path / "saved"))
    assert len(list(open_image_texts(tmp_path / "saved"))) == 2
    assert len(list(open_image_texts(splits, "test"))) == 5
    with pytest.raises(DataError, match="saved: no split 'val', it has train, test; name one of them"):
        open_image_texts(tmp_path / "saved", "val")
    with pytest.raises(DataError, match="dataset: no text column; the columns are image, label; expected conv"):
        open_image_texts(saved.remove_columns("captions"))
    with pytest.raises(DataError, match="dataset: is a list, expected a path, the id of a data set on the Hub"):
        open_image_texts([{"caption": "x"}])
    with pytest.raises(DataError, match="someone/no_such_data: cannot be read as a file, a folder, or a data set on"):
        open_image_texts("someone/no_such_data")


# --- columns, folders and what is refused ---------------------------------------------------------------------------


def test_parquet_with_paths_and_bytes(tmp_path):
    write_images(tmp_path, 2)
    datasets.Dataset.from_dict({"img": ["0.png", "1.png"], "say": ["x", "y"]}).to_parquet(str(tmp_path / "p.parquet"))
    found = list(open_image_texts(tmp_path / "p.parquet", columns={"image": "img", "text": "say"}))
    assert [row.images for row in found] == [[str(tmp_path / "0.png")], [str(tmp_path / "1.png")]]
    with pytest.raises(DataError, match="p.parquet: no text column; the columns are img, say; expected conv"):
        open_image_texts(tmp_path / "p.parquet", columns={"image": "img"})
    found = list(open_image_texts(tmp_path / "p.parquet", columns={"text": "say"}))
    assert [row.images for row in found] == [[str(tmp_path / "0.png")], [str(tmp_path / "1.png")]]
    datasets.Dataset.from_dict({"png": [png(0)], "text": ["x"]}).to_parquet(str(tmp_path / "b.parquet"))
    assert next(iter(open_image_texts(tmp_path / "b.parquet"))).images == [{"bytes": png(0), "path": None}]


def test_openclip_csv(tmp_path):
    write_images(tmp_path, 1)
    (tmp_path / "t.csv").write_text("filepath\ttitle\n0.png\ta port, seen from above\nno.png\tx\n0.png\n")
    found = list(open_image_texts(tmp_path / "t.csv"))
    assert found[0].texts == ["a port, seen from above"] and found[0].images == [str(tmp_path / "0.png")]
    where = f"{tmp_path}/t.csv, row "
    assert str(found[1].error).startswith(f"{where}1: image 'no.png': no such file under image_root")
    assert str(found[2].error).startswith(f"{where}2: 1 fields, expected the 2 of the header (filepath, title); put")
    with pytest.raises(DataError, match="t.csv: no column `cap`, which is named for `text`; the columns are file"):
        open_image_texts(tmp_path / "t.csv", columns={"text": "cap"})


def test_image_root(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "kept").mkdir()
    write_images(tmp_path / "pictures", 1)
    for folder in (tmp_path, tmp_path / "kept"):
        lines = '{"image": "0.png", "caption": "x"}\n{"image": "../t.jsonl", "caption": "x"}\n'
        (folder / "t.jsonl").write_text(lines)
    image = [str(tmp_path / "pictures" / "0.png")]
    first, second = open_image_texts(tmp_path / "t.jsonl", image_root=tmp_path / "pictures")
    assert first.images == image and "the path leaves image_root" in str(second.error)
    pictures = str(tmp_path / "pictures")
    about = {"image_root": pictures, "image_root_seal": seal(pictures)}
    (tmp_path / "kept" / "curation.json").write_text(json.dumps(about))
    write_parquet(tmp_path / "kept" / "kept_ids.parquet", rows(0, 1))  # what `curate` writes is no data
    for kept in (tmp_path / "kept", tmp_path / "kept" / "t.jsonl"):
        data = open_image_texts(kept)
        assert next(iter(data)).images == image and data.root == str(tmp_path / "pictures")
    assert open_image_texts(tmp_path / "kept", image_root=tmp_path).root == str(tmp_path)
    (tmp_path / "named").mkdir()
    (tmp_path / "named" / "t.jsonl").write_text('{"image": "0.png", "said": "a river"}\n')
    about |= {"columns": {"text": "said"}}
    (tmp_path / "named" / "curation.json").write_text(json.dumps(about))
    assert [row.texts for row in open_image_texts(tmp_path / "named")] == [["a river"]]
    with pytest.raises(DataError, match="nowhere: no such folder; correct image_root"):
        open_image_texts(tmp_path / "t.jsonl", image_root="nowhere")
    (tmp_path / "kept" / "curation.json").write_text("{}")
    with pytest.raises(DataError, match="curation.json: has no `image_root`; curate again, or give image_root"):
        open_image_texts(tmp_path / "kept")
    (tmp_path / "kept" / "curation.json").write_text('{"image_root": 3}')
    with pytest.raises(DataError, match="curation.json: `image_root` is 3, expected a folder; give image_root"):
        open_image_texts(tmp_path / "kept")


@pytest.mark.parametrize("root", ["/", "..", "../pictures", "{0}", "{0}/pictures"])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"image_root_seal": ""},
        {"image_root_seal": "0" * 64},
        {"image_root_seal": 3},
        {"image_root_seal": "\u00e9"},
    ],
)
def test_a_root_that_data_claim_is_not_followed_out_of_them(tmp_path, root, given):
    root = root.format(tmp_path)
    for name in ("pictures", "kept", "kept/own", "packed"):
        (tmp_path / name).mkdir()
    for name in ("pictures", "kept/own"):
        write_images(tmp_path / name, 1)
    kept = tmp_path / "kept"
    (kept / "t.jsonl").write_text(json.dumps({"image": str(tmp_path / "pictures" / "0.png"), "caption": "x"}) + "\n")
    (kept / "curation.json").write_text(json.dumps({"image_root": root, **given}))
    for path in (kept, kept / "t.jsonl"):
        with pytest.raises(DataError) as refused:
            open_image_texts(path)
        assert (refused.value.key, refused.value.where) == ("image_root", str(kept / "curation.json"))
        assert "--image_root" in refused.value.detail
    (row,) = open_image_texts(kept, image_root=tmp_path)
    assert row.images == [str(tmp_path / "pictures" / "0.png")]
    (kept / "t.jsonl").write_text('{"image": "0.png", "caption": "x"}\n')
    for own in ("own", str(kept / "own"), "./own/../own"):
        (kept / "curation.json").write_text(json.dumps({"image_root": own, **given}))
        (row,) = open_image_texts(kept)
        assert row.images == [str(kept / "own" / "0.png")]
    write_parquet(tmp_path / "packed" / "t.parquet", rows(0, 1))  # whose images are in it
    (tmp_path / "packed" / "curation.json").write_text(json.dumps({"image_root": root, **given}))
    data = open_image_texts(tmp_path / "packed")
    assert next(iter(data)).error is None and data.root == str(tmp_path / "packed")


def test_damaged_line_is_a_row(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"caption": "x"}\n\n{"caption": \n[1]\n{"caption": "y"}\n')
    found = list(open_image_texts(tmp_path / "t.jsonl"))
    assert [row.row_id for row in found] == [f"t.jsonl:{i}" for i in range(4)] and found[3].texts == ["y"]
    assert str(found[1].error).startswith(f"{tmp_path}/t.jsonl, row 1: not JSON (") and found[1].texts == []
    assert "row 2: the row is [1] (list), expected an object" in str(found[2].error)


def half(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_damaged_files(tmp_path, layouts):
    (tmp_path / "x.parquet").write_bytes((layouts["parquet"] / "train-00000-of-00002.parquet").read_bytes())
    half(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="x.parquet: cannot be read as Parquet .*: damaged, or cut short; write"):
        open_image_texts(tmp_path / "x.parquet")
    content = (layouts["parquet"] / "train-00000-of-00002.parquet").read_bytes()
    (tmp_path / "y.parquet").write_bytes(content[:50] + b"\xff" * 300 + content[350:])
    with pytest.raises(DataError, match="y.parquet: cannot be read as Parquet"):
        list(open_image_texts(tmp_path / "y.parquet"))
    (tmp_path / "x.json").write_text(json.dumps(rows()))
    half(tmp_path / "x.json")
    for read in (lambda data: data.units(5), list):
        with pytest.raises(DataError, match="x.json: not JSON in the row at byte .*; the file is damaged or was"):
            read(open_image_texts(tmp_path / "x.json"))
    (tmp_path / "x.csv").write_text('caption\n"x\n')
    with pytest.raises(DataError, match="x.csv: ends inside the quoted field of the record at byte 8"):
        open_image_texts(tmp_path / "x.csv").units(5)
    for name in ("e.parquet", "e.jsonl", "e.json", "e.csv", "e.tsv", "e.tar"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(DataError, match=f"{name}: is empty; write the file again or remove it"):
            open_image_texts(tmp_path / name)


def test_no_rows(tmp_path):
    (tmp_path / "x.json").write_text("[]")
    (tmp_path / "x.csv").write_text("image,caption\n")
    for name in ("x.json", "x.csv"):
        with pytest.raises(DataError, match=f"{name}: no rows; give data that has some"):
            open_image_texts(tmp_path / name).units(5)
        assert list(open_image_texts(tmp_path / name)) == []
    with pytest.raises(ValueError, match="rows of a unit is 0; it must be at least 1"):
        open_image_texts(tmp_path / "x.json").units(0)


def test_refused_folders(tmp_path):
    with pytest.raises(DataError, match="nowhere/x.jsonl: no such file or folder; correct the path"):
        open_image_texts("nowhere/x.jsonl")
    with pytest.raises(DataError, match=r"\(it has nothing\), expected .parquet, .jsonl, .json, .csv, .tsv, .tar, or"):
        open_image_texts(tmp_path)
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(DataError, match="x.txt: the suffix is '.txt', expected .parquet, .jsonl"):
        open_image_texts(tmp_path / "x.txt")
    (tmp_path / "a.jsonl").write_text('{"caption": "x"}\n')
    (tmp_path / "a.csv").write_text("caption\nx\n")
    with pytest.raises(DataError, match=re.escape("files of several formats (a.jsonl, a.csv); give one of them, or")):
        open_image_texts(tmp_path)
    (tmp_path / "a.csv").unlink()
    (tmp_path / "info.json").write_text("{}")
    (tmp_path / ".hidden.csv").write_text("x")
    data = open_image_texts(tmp_path)
    assert list(data.files) == ["a.jsonl"]
    with pytest.raises(DataError, match="no file 'b.jsonl' here; the data has changed since it was cut"):
        list(data.read(Unit("b.jsonl", 0, 1, 0, 1)))
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "scores-00000-of-00001.parquet").write_bytes(b"x")
    with pytest.raises(DataError, match="a folder of scores, expected the data; curate it, or give what was scored"):
        open_image_texts(tmp_path)
