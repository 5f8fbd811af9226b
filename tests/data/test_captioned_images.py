"""Captioned and labelled images: every layout is read, and what is wrong is told with file and row."""

import csv
import os

import pytest
from helpers.captioned_rows import write_jsonl, write_parquet
from PIL import Image

from rs_rlhf.data.captioned_images import load_images
from rs_rlhf.data.scenes.make import make_scenes
from rs_rlhf.errors import DataError, ImageError

CAPTION = "many green trees are here ."


def test_layouts(tmp_path):
    for name in ("train/Port/a.png", "train/River/b.png"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "tree" / name)
    tree = load_images(tmp_path / "tree", "train")
    assert [(row["id"], row["label"]) for row in tree] == [("Port/a.png", "Port"), ("River/b.png", "River")]
    with (tmp_path / "some.csv").open("w", newline="") as file:
        lines = [("image", "caption"), ("a.png", "one ."), ("a.png", "two ."), ("b.png", "three .")]
        csv.writer(file).writerows(lines)
    with pytest.raises(ImageError, match="some.csv, row 0: image 'a.png': no such file under image_root"):
        load_images(tmp_path / "some.csv")
    for name in "ab":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    rows = load_images(tmp_path / "some.csv")
    assert [row["captions"] for row in rows] == [["one .", "two ."], ["three ."]]
    assert rows[0]["image"] == str((tmp_path / "a.png").resolve()) and rows[0]["source"] == "some"
    with pytest.raises(DataError, match="nothing of split 'test' found; expected test\\*.parquet"):
        load_images(tmp_path / "tree", "test")
    (tmp_path / "bad.jsonl").write_text('{"image": "a.png"}\n{oops\n')
    with pytest.raises(DataError) as error:
        load_images(tmp_path / "bad.jsonl")
    assert error.value.where == f"{tmp_path / 'bad.jsonl'}, line 2"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"captions": CAPTION}, "`captions` must be a list of texts; a single one is `caption`."),
        ({"captions": [CAPTION, 3]}, "`captions` must be a list of texts, not"),
        ({"captions": {"a": CAPTION}}, "`captions` must be a list of texts, not"),
        ({"caption": [CAPTION]}, "`caption` must be a text, not"),
        ({"label": 3}, "`label` must be the class name, not 3"),
    ],
)
def test_texts_of_the_wrong_type(tmp_path, texts, message):
    import pyarrow as pa
    import pyarrow.parquet as pq

    def error_of(file):
        with pytest.raises(DataError) as error:
            load_images(file)
        return error.value

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    file = write_jsonl(tmp_path / "x.jsonl", {"image": "a.png", "label": "Port"}, {"image": "a.png", **texts})
    found = error_of(file)
    assert (found.where, [found.key]) == (f"{file}, line 2", list(texts)) and found.detail.startswith(message)
    if texts.get("captions") != [CAPTION, 3]:  # Arrow has no such list
        file = tmp_path / "x.parquet"
        pq.write_table(pa.Table.from_pylist([{"image": "a.png", **texts}]), file)
        found = error_of(file)
        assert (found.where, [found.key]) == (f"{file}, row 0", list(texts)) and found.detail.startswith(message)


def test_texts_that_cannot_be_written(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(DataError) as error:
        load_images(write_jsonl(tmp_path / "x.jsonl", {"image": "a.png", "caption": "half a pair \ud83d"}))
    assert (error.value.where, error.value.key) == (f"{tmp_path / 'x.jsonl'}, line 1", "caption")


@pytest.mark.parametrize(
    ("row", "key"),
    [({"caption": CAPTION}, "image"), ({"image": ""}, "image"), ({"images": ["a.png", "b.png"]}, "images")],
)
def test_rows_without_one_image(tmp_path, row, key):
    with pytest.raises(DataError) as error:
        load_images(write_jsonl(tmp_path / "x.jsonl", row))
    assert (error.value.where, error.value.key) == (f"{tmp_path / 'x.jsonl'}, line 1", key)


@pytest.mark.parametrize("columns", [("image", "caption"), ("filepath", "title"), ("png", "txt"), ("images", "text")])
def test_columns_are_those_of_every_reader(tmp_path, columns):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    [row] = load_images(write_jsonl(tmp_path / "x.jsonl", dict(zip(columns, ("a.png", CAPTION), strict=True))))
    assert (row["image"], row["captions"]) == (str((tmp_path / "a.png").resolve()), [CAPTION])


def test_parquet_images(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = tmp_path / "in" / "x.parquet"
    scenes = make_scenes(1, size=32)
    write_parquet(file, scenes)
    image = load_images(file)[0]["image"]
    (tmp_path / "in" / "a.png").write_bytes(image["bytes"])

    def rows(image):
        rows = [{"image": image, "caption": CAPTION}]
        pq.write_table(pa.Table.from_pylist(rows), file)
        return [row["image"] for row in load_images(file)]

    assert rows(image["bytes"]) == [{"bytes": image["bytes"], "path": None}]
    assert rows("a.png") == rows({"bytes": None, "path": "a.png"}) == [str((tmp_path / "in" / "a.png").resolve())]
    with pytest.raises(ImageError, match="x.parquet, row 0: image '../b.png': the path leaves image_root"):
        rows({"bytes": None, "path": "../b.png"})
    for bad in (3, None, {"bytes": None, "path": None}):
        with pytest.raises(DataError) as error:
            rows(bad)
        assert (error.value.where, error.value.key) == (f"{file}, row 0", "image")


def class_folders(root):
    for i, name in enumerate(("Port/a.png", "Port/b.png", "River/c.png")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, 0, 0)).save(root / name)
    return root


STRAY = {
    "labels.csv": ",ClassName,Label\n0,Port,0\n1,River,1\n",
    "classes.json": '["Port", "River"]',
    "notes.jsonl": '{"text": "by us"}\n',
}


@pytest.mark.parametrize("name", STRAY)
@pytest.mark.parametrize("split", [None, "train"])
def test_a_stray_file_does_not_hide_the_images_beside_it(tmp_path, capsys, name, split):
    class_folders(tmp_path / (split or ""))
    (tmp_path / (f"train_{name}" if split else name)).write_text(STRAY[name])
    rows = load_images(tmp_path, split)
    assert [row["label"] for row in rows] == ["Port", "Port", "River"]
    printed = capsys.readouterr().out
    assert "read the images by class folder; not read: " in printed and name in printed


def test_rows_whose_images_are_gone_are_no_reason_to_read_others(tmp_path):
    class_folders(tmp_path)
    (tmp_path / "captions.csv").write_text("filepath,caption\ngone/1.png,one .\n")
    with pytest.raises(ImageError) as error:
        load_images(tmp_path)
    assert "captions.csv, row 0" in str(error.value)


def test_rows_that_name_the_images_are_the_data(tmp_path, capsys):
    class_folders(tmp_path)
    (tmp_path / "captions.csv").write_text("image,caption\nPort/a.png,one .\nRiver/c.png,two .\n")
    assert [row["captions"] for row in load_images(tmp_path)] == [["one ."], ["two ."]]
    assert "read the rows of captions.csv; not read: 1 image that no row names" in capsys.readouterr().out
    (tmp_path / "classes.json").write_text('["Port", "River"]')
    assert len(load_images(tmp_path)) == 2
    assert "1 image that no row names and classes.json" in capsys.readouterr().out
    (tmp_path / "captions.csv").unlink()
    (tmp_path / "classes.json").write_text('[{"image": "Port/b.png", "captions": ["three ."]}]')
    assert [row["captions"] for row in load_images(tmp_path)] == [["three ."]]
    (tmp_path / "Port" / "a.png").unlink()
    (tmp_path / "River" / "c.png").unlink()
    capsys.readouterr()
    assert len(load_images(tmp_path)) == 1 and capsys.readouterr().out == ""


def test_rows_that_hold_their_images_are_the_data(tmp_path, capsys):
    class_folders(tmp_path)
    scenes = make_scenes(4, seed=1)
    write_parquet(tmp_path / "rows.parquet", scenes)
    assert [row["label"] for row in load_images(tmp_path)] == [scene.label for scene in scenes]
    assert capsys.readouterr().out == ""


def test_an_index_column_is_no_caption_and_no_class(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text(",filename,label\n0,a.png,port\n")
    (tmp_path / "t.jsonl").write_text('{"": "0", "filename": "a.png", "label": "port"}\n')
    for name in ("t.csv", "t.jsonl"):
        (row,) = load_images(tmp_path / name)
        assert (row["captions"], row["label"]) == ([], "port")


def test_hidden_files_are_no_images(tmp_path):
    (tmp_path / "port").mkdir()
    (tmp_path / ".trash").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "port" / "a.png")
    for name in ("port/._a.png", ".trash/b.png"):
        (tmp_path / name).write_bytes(b"\0")
    assert [row["id"] for row in load_images(tmp_path)] == ["port/a.png"]


def test_rows_in_the_folder_of_a_split_are_read(tmp_path):
    for i, split in enumerate(("train", "test")):
        (tmp_path / split).mkdir()
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / split / "a.png")
        (tmp_path / split / "metadata.csv").write_text(f"file_name,text\na.png,{split} text\n")
    (row,) = load_images(tmp_path, "test")
    assert (row["captions"], row["label"]) == (["test text"], None)
    assert row["image"] == str((tmp_path / "test" / "a.png").resolve())


def test_a_file_without_rows(tmp_path):
    (tmp_path / "t.csv").write_text("image,caption\n")
    with pytest.raises(DataError) as error:
        load_images(tmp_path / "t.csv")
    assert error.value.where == str(tmp_path / "t.csv")


def test_a_folder_of_images_is_left_by_no_link_and_pipes_are_not_opened(tmp_path, capsys):
    root, other = tmp_path / "data", tmp_path / "other"
    class_folders(root)
    before = [row["id"] for row in load_images(root)]
    Image.new("RGB", (8, 8)).save(other.with_suffix(".png"))
    class_folders(other)
    (root / "Port" / "out.png").symlink_to(other.with_suffix(".png"))
    (root / "Port" / "up.png").symlink_to("../../other.png")
    (root / "Port" / "nowhere.png").symlink_to("none.png")
    (root / "Linked").symlink_to(other, target_is_directory=True)
    os.mkfifo(root / "Port" / "pipe.png")
    (root / "Port" / "device.png").symlink_to("/dev/zero")
    (root / "Port" / "folder.png").mkdir()
    (root / "River" / "same.png").symlink_to(root / before[0])
    capsys.readouterr()
    rows = load_images(root)
    assert sorted(row["id"] for row in rows) == sorted([*before, "River/same.png"])
    printed = capsys.readouterr().out
    assert "left out Port/device.png and 4 more" in printed
    (root / "test").symlink_to(other, target_is_directory=True)
    with pytest.raises(DataError):
        load_images(root, "test")
