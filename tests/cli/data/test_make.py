"""`rs-rlhf data pairs`: images are written once, no image is in two sets, mistakes are told in one sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.captioned_rows import write_jsonl, write_parquet
from PIL import Image

from rs_rlhf.cli.main import main as program
from rs_rlhf.data.captioned_images import load_images
from rs_rlhf.data.scenes.make import make_scenes, write_scenes
from rs_rlhf.errors import ImageError
from rs_rlhf.preferences.damage import KINDS

CAPTION = "many green trees are here ."


def main(argv):
    return program(["data", "pairs", *argv])


def test_command_on_jsonl(tmp_path, capsys):
    write_scenes(tmp_path, 24, 12, size=32)
    out = tmp_path / "pairs.jsonl"
    command = ["--input", str(tmp_path), "--split", "train", "--output", str(out)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "24 rows, 24 with images" in printed and all(kind in printed for kind in KINDS)
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
    write_parquet(tmp_path / "in" / "train-0.parquet", scenes)
    write_parquet(tmp_path / "other" / "validation-0.parquet", scenes[5:8])  # same pixels, other names
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
        (["--output", "x.parquet"], "must end in .jsonl"),
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


def test_a_path_cannot_lead_out_of_image_root(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "secret.txt").write_text("secret")
    out = tmp_path / "out" / "p.jsonl"
    command = ["--input", str(tmp_path / "in"), "--output", str(out), "--kinds", "truncated"]
    for name in ("../a.png", "../secret.txt", str(tmp_path / "a.png")):
        write_jsonl(tmp_path / "in" / "train.jsonl", {"image": name, "caption": CAPTION})
        assert main(command) == 1
        assert f"train.jsonl, line 1: image '{name}': the path leaves image_root" in capsys.readouterr().err
    (tmp_path / "in" / "images").mkdir()
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "a.png")
    write_jsonl(tmp_path / "in" / "train.jsonl", {"image": "link.png", "caption": CAPTION})
    with pytest.raises(ImageError, match="leaves image_root"):
        load_images(tmp_path / "in")
    # Given a root that holds it, the image is read; its id still cannot lead out of the folder of copies.
    write_jsonl(tmp_path / "in" / "train.jsonl", {"image": "in/../a.png", "caption": CAPTION})
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
        write_jsonl(source, {"image": "good.png", "caption": CAPTION}, {"image": name, "caption": CAPTION})
        assert main(command) == 1
        error = capsys.readouterr().err
        assert "train.jsonl, line 2: image" in error and message in error
        assert not list((tmp_path / "out").rglob("*.*"))
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 999).save(tmp_path / "in" / "deep.png")
    write_jsonl(source, {"image": "deep.png", "caption": CAPTION})
    assert main(command) == 0, "what needs a stretch to be shown is an image too"


def test_train_leaves_out_the_images_of_other_splits(tmp_path, capsys):
    scenes = make_scenes(24, size=32)
    deep = Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 999)
    for name, image in [*((f"{i}.png", scene.image) for i, scene in enumerate(scenes)), ("deep.png", deep)]:
        image.save(tmp_path / name)
    for i in (1, 2):
        scenes[i].image.save(tmp_path / f"again{i}.bmp")  # same pixels, other file
    (tmp_path / "deep_again.png").write_bytes((tmp_path / "deep.png").read_bytes())
    rows = [{"image": f"{i}.png", "label": s.label, "captions": s.captions} for i, s in enumerate(scenes)]
    write_jsonl(tmp_path / "train.jsonl", *rows, {"image": "deep.png", "label": "Port"})
    write_jsonl(tmp_path / "validation.jsonl", {"image": "again1.bmp", "caption": CAPTION})
    write_jsonl(tmp_path / "test.jsonl", *({"image": f"{name}.png", "label": "Port"} for name in (4, "deep_again")))
    write_jsonl(tmp_path / "extra" / "x.jsonl", {"image": "again2.bmp", "label": "Port"})
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
    write_parquet(tmp_path / "files" / "data" / "train-0.parquet", scenes)
    write_parquet(tmp_path / "files" / "data" / "validation-0.parquet", scenes[2:3])
    for name, others in (("tree", "tree:val"), ("files", "files:validation")):
        out = tmp_path / "out" / name / "train.jsonl"
        assert main(["--input", str(tmp_path / name), "--split", "train", "--output", str(out)]) == 0
        assert f"1 of them excluded, being in {tmp_path / others}\n" in capsys.readouterr().out
        assert len(list(out.parent.rglob("*.png"))) == 5


def test_damage_needs_texts(tmp_path, capsys):
    """Images by class have no captions to damage: an empty file would look like a pool."""
    (tmp_path / "in" / "port").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "in" / "port" / "a.png")
    command = ["data", "damage", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "d.jsonl")]
    assert program(command) == 1 and "no image has a caption" in capsys.readouterr().err
    assert not (tmp_path / "d.jsonl").exists() and not (tmp_path / "images").exists()
    assert program([*command, "--questions"]) == 0 and (tmp_path / "d.jsonl").read_text()
