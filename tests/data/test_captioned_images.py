"""Files of pairs: every layout is read, images are written once, no image is in two sets."""
# ruff: noqa: D103 - the names of the tests say it

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rs_rlhf.data.captioned_images import load_images, main
from rs_rlhf.data.rows import split_of
from rs_rlhf.data.scenes import make_scenes, write_scenes
from rs_rlhf.errors import ImageError
from rs_rlhf.preferences.damage import KINDS


def test_layouts(tmp_path):
    for name in ("train/Port/a.png", "train/River/b.png"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "tree" / name)
    tree = load_images(tmp_path / "tree", "train")
    assert [(row["id"], row["label"]) for row in tree] == [("Port/a.png", "Port"), ("River/b.png", "River")]
    with (tmp_path / "some.csv").open("w", newline="") as file:
        lines = [("image", "caption"), ("a.png", "one ."), ("a.png", "two ."), ("b.png", "three .")]
        csv.writer(file).writerows(lines)
    with pytest.raises(ImageError, match="some.csv, row 1: image 'a.png': no such file under image_root"):
        load_images(tmp_path / "some.csv")
    for name in "ab":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    rows = load_images(tmp_path / "some.csv")
    assert [row["captions"] for row in rows] == [["one .", "two ."], ["three ."]]
    assert rows[0]["image"] == str((tmp_path / "a.png").resolve()) and rows[0]["source"] == "some"
    with pytest.raises(ValueError, match="nothing of split 'test' found; expected test\\*.parquet"):
        load_images(tmp_path / "tree", "test")
    (tmp_path / "bad.jsonl").write_text('{"image": "a.png"}\n{oops\n')
    with pytest.raises(ValueError, match="bad.jsonl, line 2: not JSON"):
        load_images(tmp_path / "bad.jsonl")


def parquet(path, scenes):
    import io

    import datasets

    names = sorted({scene.label for scene in scenes})
    texts = datasets.List(datasets.Value("string"))
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names), captions=texts)
    images = []
    for i, scene in enumerate(scenes):
        buffer = io.BytesIO()
        scene.image.save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": f"{i}.png"})
    columns = {"image": images, "label": [s.label for s in scenes], "captions": [s.captions for s in scenes]}
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(path))


def test_command_on_jsonl(tmp_path, capsys):
    write_scenes(tmp_path, 24, 12, size=32)
    out = tmp_path / "pairs.jsonl"
    command = ["--input", str(tmp_path), "--split", "train", "--output", str(out)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "24 images" in printed and all(kind in printed for kind in KINDS)
    pairs = [json.loads(line) for line in out.read_text().splitlines()]
    assert all((tmp_path / pair["image"]).is_file() and not Path(pair["image"]).is_absolute() for pair in pairs)
    assert main(command) == 1
    assert "pairs.jsonl exists; choose another --output or pass --overwrite" in capsys.readouterr().err
    before = out.read_bytes()
    assert main([*command, "--overwrite"]) == 0 and out.read_bytes() == before
    assert main([*command, "--overwrite", "--limit", "6", "--kinds", "truncated"]) == 0
    assert len({json.loads(line)["image"] for line in out.read_text().splitlines()}) == 6


def test_command_writes_bytes_once_and_excludes_by_content(tmp_path, capsys):
    scenes = make_scenes(24, size=32)
    parquet(tmp_path / "in" / "train-0.parquet", scenes)
    parquet(tmp_path / "other" / "validation-0.parquet", scenes[5:8])  # same pixels, other names
    out = tmp_path / "out" / "train.jsonl"
    command = ["--input", str(tmp_path / "in"), "--split", "train", "--output", str(out)]
    assert main([*command, "--exclude-images-of", f"{tmp_path / 'other'}:validation"]) == 0
    assert "3 of them excluded" in capsys.readouterr().out
    pairs = [json.loads(line) for line in out.read_text().splitlines()]
    files = sorted((tmp_path / "out" / "images" / "train").iterdir())
    assert len(files) == 21 and {pair["image"] for pair in pairs} == {f"images/train/{file.name}" for file in files}
    assert not {"5.png", "6.png", "7.png"} & {file.name for file in files}
    assert pairs[0]["source"] == "in" and {pair["kind"] for pair in pairs} == set(KINDS)
    assert main([*command, "--overwrite", "--exclude_images_of", str(tmp_path / "in")]) == 1
    assert "No images are left" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--output", "x.parquet"], "only .jsonl is written"),
        (["--output", "new/x.jsonl", "--images-dir", "elsewhere"], "is outside new"),
        (["--output", "new/x.jsonl", "--images_dir", "elsewhere"], "is outside new"),
        (["--output", "x.jsonl", "--kinds", "trunkated"], "Did you mean 'truncated'"),
        (["--output", "x.jsonl", "--input", "nowhere"], "nowhere does not exist"),
        (["--output", "x.jsonl", "--split", "test"], "nothing of split 'test'"),
    ],
)
def test_command_messages(tmp_path, monkeypatch, capsys, extra, message):
    monkeypatch.chdir(tmp_path)
    write_scenes("in", 12, 1, size=32)
    assert main(["--input", "in", *extra]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("**/x.jsonl*"))


def jsonl(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


CAPTION = "many green trees are here ."


def test_a_path_cannot_lead_out_of_image_root(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "secret.txt").write_text("secret")
    out = tmp_path / "out" / "p.jsonl"
    command = ["--input", str(tmp_path / "in"), "--output", str(out), "--kinds", "truncated"]
    for name in ("../a.png", "../secret.txt", str(tmp_path / "a.png")):
        jsonl(tmp_path / "in" / "train.jsonl", {"image": name, "caption": CAPTION})
        assert main(command) == 1
        assert f"train.jsonl, row 1: image '{name}': the path leaves image_root" in capsys.readouterr().err
    (tmp_path / "in" / "images").mkdir()
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "a.png")
    jsonl(tmp_path / "in" / "train.jsonl", {"image": "link.png", "caption": CAPTION})
    with pytest.raises(ImageError, match="leaves image_root"):
        load_images(tmp_path / "in")
    # Given a root that holds it, the image is read; its id still cannot lead out of the folder of copies.
    jsonl(tmp_path / "in" / "train.jsonl", {"image": "in/../a.png", "caption": CAPTION})
    assert main([*command, "--image-root", str(tmp_path)]) == 0
    assert (tmp_path / "out" / "images" / "all" / "in" / "a.png").is_file()
    assert main([*command, "--overwrite", "--image_root", str(tmp_path)]) == 0


def test_only_images_are_copied(tmp_path, capsys):
    source = tmp_path / "in" / "train.jsonl"
    out = tmp_path / "out" / "p.jsonl"
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "key.png").write_text("secret")
    Image.effect_noise((64, 64), 50).save(tmp_path / "in" / "good.png")
    content = (tmp_path / "in" / "good.png").read_bytes()
    (tmp_path / "in" / "half.png").write_bytes(content[: len(content) // 2])
    command = ["--input", str(source), "--output", str(out), "--kinds", "truncated"]
    for name, message in (("key.png", "is not an image in a known format"), ("half.png", "truncated or corrupt")):
        jsonl(source, {"image": "good.png", "caption": CAPTION}, {"image": name, "caption": CAPTION})
        assert main(command) == 1
        error = capsys.readouterr().err
        assert "train.jsonl, row 2: image" in error and message in error
        assert not list((tmp_path / "out").rglob("*.*"))
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 999).save(tmp_path / "in" / "deep.png")
    jsonl(source, {"image": "deep.png", "caption": CAPTION})
    assert main(command) == 0, "what needs a stretch to be shown is an image too"


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

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    file = jsonl(tmp_path / "x.jsonl", {"image": "a.png", "label": "Port"}, {"image": "a.png", **texts})
    with pytest.raises(ValueError, match=re.escape(f"{file}, row 2: {message}")):
        load_images(file)
    if texts.get("captions") != [CAPTION, 3]:  # Arrow has no such list
        pq.write_table(pa.Table.from_pylist([{"image": "a.png", **texts}]), tmp_path / "x.parquet")
        with pytest.raises(ValueError, match=re.escape(f"x.parquet, row 0: {message}")):
            load_images(tmp_path / "x.parquet")


def test_parquet_images(tmp_path, capsys):
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = tmp_path / "in" / "x.parquet"
    scenes = make_scenes(1, size=32)
    parquet(file, scenes)
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
    with pytest.raises(ValueError, match="x.parquet, row 0: `image` is 3, expected a path"):
        rows(3)
    for missing in (None, {"bytes": None, "path": None}):
        with pytest.raises(ValueError, match="x.parquet, row 0: the image is missing; add it or remove the row."):
            rows(missing)
    assert main(["--input", str(file), "--output", str(tmp_path / "p.jsonl")]) == 1
    assert "row 0: the image is missing" in capsys.readouterr().err


def test_train_leaves_out_the_images_of_other_splits(tmp_path, capsys):
    scenes = make_scenes(24, size=32)
    deep = Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 999)
    for name, image in [*((f"{i}.png", scene.image) for i, scene in enumerate(scenes)), ("deep.png", deep)]:
        image.save(tmp_path / name)
    for i in (1, 2):
        scenes[i].image.save(tmp_path / f"again{i}.bmp")  # same pixels, other file
    (tmp_path / "deep_again.png").write_bytes((tmp_path / "deep.png").read_bytes())
    rows = [{"image": f"{i}.png", "label": s.label, "captions": s.captions} for i, s in enumerate(scenes)]
    jsonl(tmp_path / "train.jsonl", *rows, {"image": "deep.png", "label": "Port"})
    jsonl(tmp_path / "validation.jsonl", {"image": "again1.bmp", "caption": CAPTION})
    jsonl(tmp_path / "test.jsonl", *({"image": f"{name}.png", "label": "Port"} for name in (4, "deep_again")))
    jsonl(tmp_path / "extra" / "x.jsonl", {"image": "again2.bmp", "label": "Port"})
    command = ["--input", str(tmp_path), "--split", "train", "--output", str(tmp_path / "pairs.jsonl")]

    def images(*extra):
        assert main([*command, "--overwrite", *extra]) == 0
        return {json.loads(line)["image"] for line in (tmp_path / "pairs.jsonl").read_text().splitlines()}

    kept = images()
    printed = capsys.readouterr().out
    assert f"3 of them excluded, being in {tmp_path}:validation, {tmp_path}:test\n" in printed
    assert {row["image"] for row in rows} - kept == {"1.png", "4.png"} and "deep.png" not in kept
    more = ["--exclude-images-of", f"{tmp_path / 'extra' / 'x.jsonl'}", "--image-root", str(tmp_path)]
    (tmp_path / "extra" / "again2.bmp").write_bytes((tmp_path / "again2.bmp").read_bytes())
    assert kept - images(*more, "--exclude-images-of", f"{tmp_path}:test") == {"2.png"}
    assert "4 of them excluded" in capsys.readouterr().out
    (tmp_path / "test.jsonl").unlink()
    assert "deep.png" in images()
    capsys.readouterr()
    command[3] = "validation"
    assert images() == {"again1.bmp"} and "excluded" not in capsys.readouterr().out


def test_train_leaves_out_images_of_other_folders_and_parquet_files(tmp_path, capsys):
    scenes = make_scenes(6, size=32)
    for split, several in (("train", scenes), ("val", scenes[2:3])):
        for i, scene in enumerate(several):
            file = tmp_path / "tree" / split / scene.label / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            scene.image.save(file)
    (tmp_path / "tree" / "test").mkdir()
    parquet(tmp_path / "files" / "data" / "train-0.parquet", scenes)
    parquet(tmp_path / "files" / "data" / "validation-0.parquet", scenes[2:3])
    for name, others in (("tree", "tree:val"), ("files", "files:validation")):
        out = tmp_path / "out" / name / "train.jsonl"
        assert main(["--input", str(tmp_path / name), "--split", "train", "--output", str(out)]) == 0
        assert f"1 of them excluded, being in {tmp_path / others}\n" in capsys.readouterr().out
        assert len(list(out.parent.rglob("*.png"))) == 5


def test_split_of(tmp_path):
    (tmp_path / "a:b").touch()
    assert split_of("a/b:test") == ("a/b", "test")
    assert split_of("a/b") == ("a/b", None) == split_of("a/b:")
    assert split_of(f"{tmp_path}/a:b") == (f"{tmp_path}/a:b", None)
    assert split_of(f"{tmp_path}/a:b:test") == (f"{tmp_path}/a:b", "test")
