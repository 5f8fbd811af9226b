"""Files of converted rows: images, types, what `datasets` and TRL make of them, and that nothing is half done."""

import json
import os
import tracemalloc

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import picture
from helpers.image_text_layouts import png
from helpers.messages import assistant, user
from PIL import Image

from rs_rlhf.cli.main import main as program
from rs_rlhf.data.image_text_dataset import open_image_texts
from rs_rlhf.errors import DataError, OptionError
from rs_rlhf.preferences.converted_files import convert

PAIR = {"prompt": "How many?", "chosen": "two", "rejected": "six"}
FORMS = {
    "preferences": PAIR,
    "texts": {"question": "How many?", "answer": "two"},
    "questions": {"prompt": "How many?", "solution": "2"},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for i in range(2):
        (tmp_path / "in").mkdir(exist_ok=True)
        picture(i, 16, 16).save(tmp_path / "in" / f"{i}.png")
    return tmp_path


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def parquet(path, rows):
    datasets.Dataset.from_list(rows).to_parquet(str(path))
    return str(path)


def test_paths_below_the_output_stay_and_other_images_are_written_once(folder):
    path = write(folder / "in" / "a.jsonl", *[{**PAIR, "image": f"{i % 2}.png"} for i in range(5)])
    assert convert(path, folder / "beside.jsonl", "jsonl").images == 0
    assert [row["image"] for row in lines(folder / "beside.jsonl")] == [f"in/{i % 2}.png" for i in range(5)]
    assert convert(path, folder / "out" / "b.jsonl", "jsonl").images == 2
    assert [row["image"] for row in lines(folder / "out" / "b.jsonl")] == [f"images/{i % 2}.png" for i in range(5)]
    for i in range(2):
        assert (folder / "out" / "images" / f"{i}.png").read_bytes() == (folder / "in" / f"{i}.png").read_bytes()


def test_embedded_images_are_written_or_stay_embedded(folder):
    rows = [{**PAIR, "image": {"bytes": png(i % 2), "path": "../../tile.png"}} for i in range(4)]
    path = parquet(folder / "a.parquet", rows)
    assert convert(path, folder / "out" / "a.jsonl", "trl").images == 2
    names = [row["images"] for row in lines(folder / "out" / "a.jsonl")]
    assert names[0] == names[2] != names[1] == names[3]
    assert [(folder / "out" / name).read_bytes() for (name,) in names] == [png(i % 2) for i in range(4)]
    convert(path, folder / "b.parquet", "parquet")
    stored = datasets.load_dataset("parquet", data_files=str(folder / "b.parquet"), split="train")
    assert stored.cast_column("image", datasets.Image(decode=False))[1]["image"] == rows[1]["image"]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("kind", FORMS)
def test_datasets_and_trl_read_the_form(folder, kind, suffix, monkeypatch):
    from trl.data_utils import is_conversational, prepare_multimodal_messages

    made = [{**FORMS[kind], "image": "0.png", "n": i} for i in range(3)] + [FORMS[kind]]
    out = folder / f"out.{suffix}"
    convert(write(folder / "in" / "a.jsonl", *made), out, "trl")
    stored = datasets.load_dataset("json" if suffix == "jsonl" else suffix, data_files=str(out), split="train")
    monkeypatch.chdir(folder)
    assert len(stored) == 4
    for row, count in zip(stored, (1, 1, 1, 0), strict=True):
        assert is_conversational(row) and len(row["images"]) == count
        if suffix == "parquet":
            assert all(isinstance(image, Image.Image) for image in row["images"])
        (turn,) = prepare_multimodal_messages(row["prompt"], row["images"])
        assert [part["type"] for part in turn["content"]] == ["image"] * count + ["text"]
    assert {"prompt", "images", *({"chosen", "rejected"} if kind == "preferences" else ())} <= set(stored.column_names)


def test_trls_reward_trainer_takes_text_only_preferences(folder, tiny_vlm):
    from transformers import AutoTokenizer
    from trl.data_utils import apply_chat_template

    path = write(folder / "a.jsonl", PAIR)
    convert(path, folder / "out.jsonl", "trl", columns={"image": ""})
    (row,) = lines(folder / "out.jsonl")
    assert "images" not in row and row["prompt"] == [{"role": "user", "content": "How many?"}]
    made = apply_chat_template(row, AutoTokenizer.from_pretrained(tiny_vlm))
    assert "How many?" in made["prompt"] and "two" in made["chosen"] and "six" in made["rejected"]


@pytest.mark.parametrize("to", ["trl", "jsonl"])
def test_rows_without_images_need_text_only(folder, to):
    path = write(folder / "a.jsonl", PAIR)
    with pytest.raises(DataError) as error:
        convert(path, folder / "out.jsonl", to)
    assert error.value.key == "text_only" and not (folder / "out.jsonl").exists()


def test_lists_of_turns_without_images_are_texts(folder):
    row = {"prompt": [user({"type": "text", "text": "Q"}), assistant("A"), user({"type": "text", "text": "R"})]}
    row |= {"chosen": [assistant("b")], "rejected": [[assistant("c")], [assistant("d")]]}
    convert(write(folder / "a.jsonl", row), folder / "out.jsonl", "jsonl", columns={"image": ""})
    (made,) = lines(folder / "out.jsonl")
    assert [turn["content"] for turn in made["prompt"]] == ["Q", "A", "R"]
    assert made["rejected"] == [[{"role": "assistant", "content": text}] for text in "cd"]


def test_named_columns_and_dropped_ones(folder):
    row = {"better": "two", "worse": "six", "ask": "How many?", "tile": "0.png", "by": "someone"}
    path = write(folder / "in" / "a.jsonl", row)
    columns = {"image": "tile", "chosen": "better", "rejected": "worse", "prompt": "ask"}
    convert(path, folder / "out.jsonl", "jsonl", columns=columns, drop=["by"])
    assert lines(folder / "out.jsonl") == [{"image": "in/0.png", **PAIR, "source": "a"}]
    convert(path, folder / "better.jsonl", "jsonl", columns={"text": "better"}, drop=["by", "ask", "worse"])
    assert lines(folder / "better.jsonl") == [{"image": "in/0.png", "captions": ["two"], "source": "a"}]


def test_values_that_json_cannot_hold_are_named(folder):
    path = parquet(folder / "a.parquet", [{**PAIR, "image": {"bytes": png(0), "path": None}, "mask": b"\0\1", "n": 1}])
    with pytest.raises(DataError) as error:
        convert(path, folder / "out.jsonl", "trl")
    assert error.value.key == "mask" and "row 0" in error.value.where
    assert not (folder / "images").exists()
    convert(path, folder / "out.jsonl", "trl", drop=["mask"])
    convert(path, folder / "out.parquet", "trl")
    assert "mask" in datasets.load_dataset("parquet", data_files=str(folder / "out.parquet"))["train"].column_names


def test_no_number_is_null_and_no_text_an_error(folder):
    (folder / "in" / "a.jsonl").write_text('{"image": "0.png", "caption": "a", "n": NaN}\n')
    convert(str(folder / "in" / "a.jsonl"), folder / "out.jsonl", "jsonl")
    assert lines(folder / "out.jsonl")[0]["n"] is None
    (folder / "in" / "b.jsonl").write_text('{"image": "0.png", "caption": "a", "note": "\\ud800"}\n')
    for name, to in (("b.jsonl", "jsonl"), ("b.parquet", "parquet")):
        with pytest.raises(DataError) as error:
            convert(str(folder / "in" / "b.jsonl"), folder / name, to)
        assert error.value.key == "note" and not (folder / name).exists()


def test_columns_of_two_types_are_an_error_in_parquet_and_kept_in_json(folder):
    path = write(folder / "in" / "a.jsonl", *[{**PAIR, "image": "0.png", "n": n} for n in (1, "one")])
    with pytest.raises(DataError) as error:
        convert(path, folder / "out.parquet", "parquet")
    assert error.value.key == "n" and not (folder / "out.parquet").exists()
    convert(path, folder / "out.jsonl", "jsonl")
    assert [row["n"] for row in lines(folder / "out.jsonl")] == [1, "one"]


def test_types_that_show_late(folder):
    rows = [{**PAIR, "image": "0.png", "n": None, "o": {}} for _ in range(1200)]
    rows += [{**PAIR, "image": "0.png", "n": 1.5, "o": {"a": [1]}, "late": "x"}]
    convert(write(folder / "in" / "a.jsonl", *rows), folder / "out.parquet", "parquet")
    stored = datasets.load_dataset("parquet", data_files=str(folder / "out.parquet"), split="train")
    assert (stored[-1]["n"], stored[-1]["o"], stored[-1]["late"]) == (1.5, {"a": [1]}, "x") and stored[0]["n"] is None


@pytest.mark.parametrize("name", ["a.csv", "a.txt", "a.json", "a"])
def test_outputs_of_another_suffix(folder, name):
    with pytest.raises(OptionError) as error:
        convert(write(folder / "in" / "a.jsonl", {**PAIR, "image": "0.png"}), folder / name, "trl")
    assert error.value.key == "output"


def test_nothing_is_replaced_unasked(folder):
    path = write(folder / "in" / "a.jsonl", {**PAIR, "image": "0.png"})
    out = folder / "out" / "a.jsonl"
    convert(path, out, "trl")
    before = out.read_bytes()
    with pytest.raises(OptionError) as error:
        convert(path, out, "jsonl")
    assert error.value.key == "output" and out.read_bytes() == before
    convert(path, out, "jsonl", overwrite=True)
    assert out.read_bytes() != before
    (folder / "out" / "images" / "0.png").write_bytes(png(5))
    with pytest.raises(OptionError):
        convert(path, folder / "out" / "b.jsonl", "jsonl")
    assert not (folder / "out" / "b.jsonl").exists()
    convert(path, folder / "out" / "b.jsonl", "jsonl", overwrite=True)
    assert (folder / "out" / "images" / "0.png").read_bytes() == (folder / "in" / "0.png").read_bytes()
    for name in (path, str(folder / "in")):
        with pytest.raises(OptionError):
            convert(name, folder / "in" / "a.jsonl", "jsonl", overwrite=True)
    with pytest.raises(OptionError) as error:
        convert(path, folder / "out" / "c.jsonl", "jsonl", images_dir=folder / "elsewhere")
    assert error.value.key == "images_dir"


def test_bytes_that_are_no_image(folder):
    path = parquet(folder / "a.parquet", [{**PAIR, "image": {"bytes": b"<html>", "path": "a.png"}}])
    with pytest.raises(DataError) as error:
        convert(path, folder / "out.jsonl", "trl")
    assert "row 0" in error.value.where and not (folder / "images").exists()


def test_curated_data_know_their_images(folder):
    path = folder / "kept" / "a.jsonl"
    write(path, {"image": "0.png", "caption": "a"})
    (folder / "in").rename(folder / "kept" / "tiles")
    (folder / "kept" / "curation.json").write_text(json.dumps({"image_root": "tiles"}))
    convert(str(path.parent), folder / "out" / "a.jsonl", "trl")
    (row,) = open_image_texts(folder / "out" / "a.jsonl")
    assert row.error is None and len(row.images) == 1


def test_memory_does_not_grow_with_the_rows(folder):
    path, noise = folder / "big" / "a.parquet", os.urandom(2**18)
    path.parent.mkdir()
    batches = [
        [{**PAIR, "image": {"bytes": png(0) + noise}, "n": i} for i in range(k, k + 50)] for k in range(0, 400, 50)
    ]
    with pq.ParquetWriter(path, pa.Table.from_pylist(batches[0]).schema) as writer:  # 100 MB
        for batch in batches:
            writer.write_table(pa.Table.from_pylist(batch))
    del batches, batch
    for name in ("a.jsonl", "b.parquet"):
        tracemalloc.start()
        convert(str(path), path.parent / "out" / name, "trl")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 80e6


def test_command(folder, capsys):
    path = write(folder / "in" / "a.jsonl", *[{**PAIR, "tile": f"{i}.png"} for i in range(2)])
    out = folder / "out" / "a.json"
    assert program(["data", "convert", path, str(out), "--to", "llava"]) == 1
    assert "a.jsonl, line 1: `rejected`" in capsys.readouterr().err
    assert program(["data", "convert", path, str(out.with_suffix(".jsonl")), "--to", "trl"]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first == "2 rows, 2 with images (column tile), 0 text-only; preferences (TRL)"
    assert last == f"2 rows -> 2 rows in {out.with_suffix('.jsonl')}; 2 images written"
    images = ["--columns", "image=tile", "--images-dir", str(folder / "out" / "tiles")]
    assert (
        program(["data", "convert", path, str(out.with_suffix(".jsonl")), "--to", "jsonl", "--overwrite", *images])
        == 0
    )
    assert (folder / "out" / "tiles" / "1.png").is_file()
