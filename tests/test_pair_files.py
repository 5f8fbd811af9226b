"""Files of pairs: every layout is read, images are written once, no image is in two sets."""
# ruff: noqa: D103 - the names of the tests say it

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from rs_rlhf.pair_files import load_images, main
from rs_rlhf.pairs import KINDS
from rs_rlhf.scenes import make_scenes, write_scenes


def test_layouts(tmp_path):
    for name in ("train/Port/a.png", "train/River/b.png"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "tree" / name)
    tree = load_images(tmp_path / "tree", "train")
    assert [(row["id"], row["label"]) for row in tree] == [("Port/a.png", "Port"), ("River/b.png", "River")]
    with (tmp_path / "some.csv").open("w", newline="") as file:
        lines = [("image", "caption"), ("a.png", "one ."), ("a.png", "two ."), ("b.png", "three .")]
        csv.writer(file).writerows(lines)
    rows = load_images(tmp_path / "some.csv")
    assert [row["captions"] for row in rows] == [["one .", "two ."], ["three ."]]
    assert rows[0]["image"] == str(tmp_path / "a.png") and rows[0]["source"] == "some"
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


def test_an_id_cannot_lead_out_of_the_images_folder(tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    row = {"image": "../a.png", "captions": ["many green trees are here ."]}
    (tmp_path / "in" / "train.jsonl").write_text(json.dumps(row) + "\n")
    out = tmp_path / "out" / "p.jsonl"
    assert main(["--input", str(tmp_path / "in"), "--output", str(out), "--kinds", "truncated"]) == 0
    assert (tmp_path / "out" / "images" / "all" / "a.png").is_file()
