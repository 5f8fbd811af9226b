"""The data check (`rs_rlhf.preferences.check`): every problem with file and row, counts on good files, exit codes."""

from __future__ import annotations

import io
import json
from functools import partial

import numpy as np
import pytest
from PIL import Image

from rs_rlhf.cli.main import run
from rs_rlhf.imagery.raster import ImageOptions
from rs_rlhf.preferences.check import check_files, format_report

main = partial(run, "data check")


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (12, 16, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Images a.png, b.png, broken.png, and a TIFF with the content of a.png."""
    monkeypatch.chdir(tmp_path)
    picture(0).save("a.png")
    picture(1).save("b.png")
    picture(0).save("a_again.tif")
    content = (tmp_path / "b.png").read_bytes()
    (tmp_path / "broken.png").write_bytes(content[: len(content) // 2])
    return tmp_path


def write(name, rows):
    with open(name, "w") as file:
        file.write("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return name


def pair(**changes):
    return {"prompt": "Q?", "chosen": "yes", "rejected": "no", **changes}


def found(report):
    """File, row (-1 for the whole file) and key of each problem."""
    places = [problem.where.rpartition(", ") for problem in report.problems]
    rows = [(file, int(unit.split()[1])) if file else (unit, -1) for file, _, unit in places]
    return [(*row, problem.key) for row, problem in zip(rows, report.problems, strict=True)]


@pytest.mark.parametrize(
    ("row", "key", "message"),
    [
        ("{oops", "", "not JSON ("),
        ("[1]", "", "the row is [1] (list), expected an object"),
        (
            {"prompt": "Q?"},
            "chosen",
            "no column `chosen` and `rejected`; the columns are prompt, the row looks like prompts",
        ),
        (pair(chosen=""), "chosen", "`chosen` has an empty text"),
        (pair(rejected=[]), "rejected", "`rejected` is [] (list), expected one completion"),
        (pair(rejected="yes"), "rejected", "`chosen` and `rejected` are equal, expected different texts"),
        (pair(rejected=" YES\n"), "rejected", "are equal but for case and spaces"),
        (pair(rejected=["no", "never", "No "]), "rejected[2]", "`rejected[0]` and `rejected[2]` are equal but for"),
        (pair(margin="high"), "margin", "`margin` is 'high' (str), expected a finite number"),
        ('{"chosen": "a", "rejected": "b", "margin": NaN}', "margin", "`margin` is nan"),
        (pair(prompt=[{"role": "human", "content": "Q"}]), "prompt", "unknown role 'human'"),
        (pair(prompt=3), "prompt", "`prompt` is 3 (int)"),
        (pair(image="missing.png"), "image", "image 'missing.png': no such file"),
        (pair(image="broken.png"), "image", "image 'broken.png': cannot be decoded"),
        (pair(image="../outside.png"), "image", "image '../outside.png': the path leaves image_root"),
        (pair(prompt="<image><image>", image="a.png"), "images", "2 image placeholders in the prompt but 1 image;"),
        (pair(rejected="<image>"), "rejected", "`rejected` has an image placeholder"),
    ],
)
def test_each_problem_is_reported_with_its_row(folder, row, key, message):
    file = write("train.jsonl", [pair(prompt="fine"), "", row])
    report = check_files(file, image_root=folder)
    assert found(report) == [("train.jsonl", 3, key)]
    assert message in report.problems[0].detail
    assert str(report.problems[0]).startswith("train.jsonl, line 3: ")
    assert str(report.problems[0]).count("train.jsonl") == 1
    assert report.rows == 1, "only good rows are counted"


def test_all_problems_of_a_row_and_of_a_file(folder):
    rows = [
        pair(chosen=" ", rejected=["", "x"], margin="a", image="missing.png"),
        pair(image="missing.png"),
        pair(image="missing.png", prompt="other"),
    ]
    report = check_files(write("train.json", [json.dumps(rows)]))
    assert found(report) == [
        ("train.json", 0, "margin"),
        ("train.json", 0, "chosen"),
        ("train.json", 0, "rejected[0]"),
        ("train.json", 0, "image"),
        ("train.json", 1, "image"),
        ("train.json", 2, "image"),
    ]
    assert str(report.problems[-1]).startswith("train.json, row 2: image 'missing.png'")
    limited = check_files("train.json", max_problems=2)
    assert len(limited.problems) == 2 and limited.total_problems == 6
    assert "... and 4 more\n6 problems" in format_report(limited)


def test_too_large_an_image(folder):
    report = check_files(write("t.jsonl", [pair(image="a.png")]), options=ImageOptions(max_image_pixels=100))
    assert found(report) == [("t.jsonl", 1, "image")] and "16" in report.problems[0].detail


def test_duplicates_and_contradictions_by_image_content(folder):
    rows = [
        pair(image="a.png"),
        pair(image="b.png"),
        pair(image="a_again.tif"),
        pair(image="a.png", chosen="no", rejected="yes"),
        pair(chosen="no", rejected="yes"),
    ]
    report = check_files(write("t.jsonl", rows))
    assert found(report) == [("t.jsonl", 3, ""), ("t.jsonl", 4, "chosen")]
    assert "a duplicate of t.jsonl, line 1 " in report.problems[0].detail
    assert "contradicts t.jsonl, line 1, which prefers" in report.problems[1].detail


def test_a_ranked_list_can_contradict_a_pair(folder):
    report = check_files(write("t.jsonl", [pair(rejected=["no", "never"]), pair(chosen="never", rejected="no")]))
    assert found(report) == [("t.jsonl", 2, "chosen")]


def test_leaks_between_training_and_evaluation(folder):
    train = write("train.jsonl", [pair(image="b.png"), pair(image="a.png"), pair()])
    test = write("test.json", [json.dumps([pair(image="a_again.tif", prompt="other"), pair()])])
    report = check_files(train, eval_files=[test])
    assert found(report) == [("test.json", 0, "image"), ("test.json", 1, "")]
    assert "also in the training row train.jsonl, line 2 (same content)" in report.problems[0].detail
    assert "a duplicate of train.jsonl, line 3" in report.problems[1].detail
    assert check_files([train]).total_problems == 0


def test_a_training_image_may_repeat(folder):
    report = check_files(write("t.jsonl", [pair(image="a.png"), pair(image="a.png", prompt="other")]))
    assert report.total_problems == 0 and (report.images, report.different_images) == (2, 1)


def test_file_problems_do_not_stop_the_check(folder):
    write("empty.jsonl", [])
    write("bad.json", ["{}"])
    good = write("good.jsonl", [pair()])
    report = check_files(["nowhere.jsonl", "empty.jsonl", "bad.json", good])
    assert found(report) == [("nowhere.jsonl", -1, ""), ("empty.jsonl", -1, ""), ("bad.json", -1, "")]
    assert [str(problem).split(":")[0] for problem in report.problems] == ["nowhere.jsonl", "empty.jsonl", "bad.json"]
    assert report.rows == 1


def test_parquet_with_image_bytes(folder):
    from datasets import Dataset

    stream = io.BytesIO()
    picture(0).save(stream, "PNG")
    images = [{"bytes": stream.getvalue(), "path": None}, {"bytes": b"not an image", "path": "x.png"}, None]
    Dataset.from_list([pair(image=one) for one in images]).to_parquet("p.parquet")
    write("e.jsonl", [pair(image="a.png", prompt="other")])
    report = check_files("p.parquet", eval_files="e.jsonl")
    assert found(report) == [("p.parquet", 1, "image"), ("e.jsonl", 1, "image")]
    assert str(report.problems[0]).startswith("p.parquet, row 1: ")
    assert (report.rows, report.text_only) == (3, 1)


def test_rsrm_file(folder):
    (folder / "vqa").mkdir()
    picture(2).save(folder / "vqa" / "c.png")
    rows = [
        {"question": "Q", "chosen": "a", "rejected": ["b", "b"], "image_name": "c.png"},
        {"chosen": "a", "rejected": "b", "image_name": "gone.png"},
        {"chosen": "a", "image_name": "c.png"},
    ]
    report = check_files(write("vqa.json", [json.dumps(rows)]))
    assert found(report) == [("vqa.json", 0, ""), ("vqa.json", 1, "image"), ("vqa.json", 2, "rejected")]
    assert "a duplicate of vqa.json, row 0" in report.problems[0].detail
    assert report.sources == {"vqa": 1}


def test_counts_and_lengths(folder):
    rows = [
        pair(image="a.png", kind="vqa", source="one"),
        pair(kind="vqa", prompt="", chosen="a longer text here"),
        pair(images=["a.png", "b.png"], rejected=["no", "not at all"]),
    ]
    report = check_files(write("t.jsonl", rows))
    assert report.total_problems == 0
    assert (report.rows, report.images, report.different_images, report.text_only) == (3, 3, 2, 1)
    assert report.sources == {"one": 1, "t": 2} and report.kinds == {"vqa": 2, "": 1}
    assert report.lengths["rejected"]["words"] == pytest.approx(
        {"min": 1, "median": 1, "mean": 1.5, "p95": 2.7, "max": 3}
    )
    assert report.lengths["prompt"]["characters"]["min"] == 0
    assert report.lengths["chosen"]["characters"]["max"] == 18


def test_main_on_a_good_file(folder, capsys):
    file = write("t.jsonl", [pair(image="a.png", kind="vqa"), pair(kind="caption", prompt="")])
    assert main([file]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[:4] == [
        "no problems",
        "2 good rows: 1 with images (1 images, 1 different), 1 text-only",
        "rows per source: t 2",
        "rows per kind: vqa 1, caption 1",
    ]
    assert lines[4].split() == ["length", "min", "median", "mean", "p95", "max"]
    assert "chosen characters             3        3        3        3        3" in lines
    assert err == "", "no progress bar without a terminal"


def test_main_on_broken_files(folder, capsys):
    train = write("t.jsonl", [pair(image="sub/a.png"), "{", pair(image="b.png")])
    test = write("e.jsonl", [pair(image="b.png", prompt="other")])
    (folder / "images" / "sub").mkdir(parents=True)
    picture(0).save("images/sub/a.png")
    picture(1).save("images/b.png")
    assert main([train, "--eval", test, "--image-root", "images"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("t.jsonl, line 2: not JSON (")
    assert lines[1].startswith("e.jsonl, line 1: the image is also in the training row t.jsonl, line 3")
    assert lines[2] == "2 problems"
    assert main([train, "--eval", test, "--image_root", "images", "--max_problems", "1"]) == 1
    assert capsys.readouterr().out.splitlines()[1:3] == ["... and 1 more", "2 problems"]
    assert main([train, "--eval", test, "--image-root", "images", "--max-problems", "1"]) == 1
    assert capsys.readouterr().out.splitlines()[1:3] == ["... and 1 more", "2 problems"]


def test_fresh_pairs_check_clean_from_another_folder(tmp_path, monkeypatch, capsys):
    from rs_rlhf.cli.main import run
    from rs_rlhf.data.scenes.make import write_scenes

    scenes = tmp_path / "made" / "scenes"
    write_scenes(scenes, 12, 4, size=32)
    for split in ("train", "validation"):
        options = ["--input", str(scenes), "--split", split, "--output", str(scenes / f"{split}_pairs.jsonl")]
        assert run("data pairs", [*options, "--pairs_per_image", "2"]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    capsys.readouterr()
    assert main(["../made/scenes/train_pairs.jsonl", "--eval", str(scenes / "validation_pairs.jsonl")]) == 0
    assert capsys.readouterr().out.startswith("no problems\n")


def test_relative_paths_start_at_each_file(folder, monkeypatch):
    """Images of one name in two folders are two images; what lies outside both folders is refused, as in training."""
    for name, seed in (("one", 5), ("two", 6)):
        (folder / "data" / name).mkdir(parents=True)
        picture(seed).save(folder / "data" / name / "x.png")
    picture(7).save(folder / "data" / "shared.png")
    rows = [pair(image="x.png"), pair(images=["../shared.png"], prompt="other")]
    files = [write(f"data/{name}/t.jsonl", [*rows, pair(image="y.png")]) for name in ("one", "two")]
    write(files[1], [*rows[:1], pair(image="../../a.png"), pair(image="y.png"), pair(image=str(folder / "b.png"))])
    monkeypatch.chdir("data/one")
    report = check_files("t.jsonl", eval_files="../two/t.jsonl")
    assert (report.rows, report.different_images) == (3, 3)
    assert found(report) == [
        ("t.jsonl", 3, "image"),
        *(("../two/t.jsonl", line, "image") for line in (2, 3, 4)),
    ]
    messages = [problem.detail for problem in report.problems]
    assert "'one/y.png': no such file under image_root" in messages[0] and "'two/y.png': no such file" in messages[2]
    assert "leaves image_root" in messages[1] and "leaves image_root" in messages[3]
    assert [row for _, row, _ in found(check_files("t.jsonl"))] == [2, 3], "shared.png is outside `one`"


def test_files_without_a_common_folder(folder, monkeypatch):
    """As training does, the check asks for a root rather than taking the whole file system for it."""
    file = write("t.jsonl", [pair(image="a.png")])
    monkeypatch.setattr("rs_rlhf.data.rows.image_folder", lambda name: {file: "/one"}.get(name, "/two"))
    report = check_files(file, eval_files="e.jsonl")
    assert [str(problem) for problem in report.problems] == [
        "t.jsonl, e.jsonl: the data files share no folder; give --image_root, the folder that their images lie in"
    ]
    assert report.total_problems == 1 and format_report(report).endswith("rows per kind: (none)")


def test_problems_of_a_kind_are_one_line(folder):
    rows = [pair(prompt=str(i), image=f"gone_{i}.png") for i in range(297)]
    rows += [pair(image="a.png"), pair(margin="high"), pair(prompt="x", image="gone.png")]
    report = check_files(write("t.jsonl", rows))
    assert report.total_problems == 299 == len(report.problems)
    lines = format_report(report).splitlines()
    assert lines[0].startswith("t.jsonl: 298 rows, lines 1-297, 300: image 'gone_0.png': no such file")
    assert lines[0].endswith("(the first, line 1)") and lines[1].startswith("t.jsonl, line 299: `margin`")
    assert lines[2] == "299 problems"
    limited = check_files("t.jsonl", max_problems=1)
    assert format_report(limited).splitlines()[1:3] == ["... and 1 more", "299 problems"]


@pytest.mark.parametrize(
    ("row", "key", "message"),
    [
        (pair(image="thin.png"), "image", "image 'thin.png' of 603x3 pixels is too long and thin"),
        (pair(chosen="a river <|image_pad|>"), "chosen", "the special token <|image_pad|>"),
        (pair(rejected="no<|im_end|>"), "rejected", "the special token <|im_end|>"),
        (pair(prompt="half \ud83d"), "prompt", "no text (not UTF-8, or half a surrogate pair)"),
        (pair(rejected=["no", "half \ud83d"]), "rejected[1]", "half a surrogate pair"),
        (pair(id="half \ud83d"), "id", "half a surrogate pair"),
    ],
)
def test_what_a_model_could_not_take(folder, row, key, message):
    Image.new("RGB", (603, 3)).save("thin.png")
    report = check_files(write("t.jsonl", [pair(prompt="fine"), row]))
    assert found(report) == [("t.jsonl", 2, key)] and message in report.problems[0].detail
    assert report.rows == 1
