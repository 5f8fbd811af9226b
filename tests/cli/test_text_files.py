"""Text files as editors and spreadsheets save them are read alike by every command."""

import json

import pytest
from helpers import picture

from rs_rlhf.cli.main import main
from rs_rlhf.data.captioned_images import image_texts, load_images

ROWS = [(f"images/{i}.png", f"{word} planes are parked .", "port") for i, word in enumerate(("two", "three", "many"))]


def jsonl(end):
    rows = [{"image": image, "captions": [caption], "label": label} for image, caption, label in ROWS]
    return end.join(json.dumps(row) for row in rows)


def csv(delimiter, end):
    return end.join(delimiter.join(row) for row in (("image", "caption", "label"), *ROWS)) + end


FILES = {
    "plain.jsonl": jsonl("\n"),
    "bom.jsonl": "\ufeff" + jsonl("\n"),
    "crlf.jsonl": "\ufeff" + jsonl("\r\n") + "\r\n",
    "bom.json": f"\ufeff[{jsonl(',')}]",
    "semicolon.csv": "\ufeff" + csv(";", "\n"),
    "crlf.csv": "\ufeff" + csv(",", "\r\n"),
    "tab.tsv": "\ufeff" + csv("\t", "\n"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    (folder / "images").mkdir()
    for i in range(len(ROWS)):
        picture(i).save(folder / "images" / f"{i}.png")
    for name, content in FILES.items():
        (folder / name).write_text(content, encoding="utf-8", newline="")
    return folder


@pytest.mark.parametrize("name", FILES)
def test_the_rows_are_the_same(folder, name):
    found = [(row["id"], row["captions"], row["label"]) for row in load_images(folder / name)]
    assert found == [(image, [caption], label) for image, caption, label in ROWS]
    assert image_texts(str(folder / name)) == image_texts(str(folder / "plain.jsonl"))


@pytest.mark.parametrize("name", FILES)
def test_data_commands(folder, tmp_path, name):
    (tmp_path / "plain").mkdir()
    (tmp_path / "other").mkdir()
    for command in (["pairs", "--kinds", "attribute"], ["damage", "--kinds", "vague"]):
        made = []
        for file, out in (("plain.jsonl", tmp_path / "plain"), (name, tmp_path / "other")):
            output = out / f"{command[0]}.jsonl"
            assert main(["data", *command, "--input", str(folder / file), "--output", str(output)]) == 0
            made.append([json.loads(line) | {"source": ""} for line in output.read_text().splitlines()])
        assert made[0] == made[1] and made[0]


@pytest.mark.parametrize("name", FILES)
def test_score(folder, tmp_path, name):
    import pyarrow.parquet

    def scores(file):
        out = tmp_path / file
        assert main(["score", "--input", str(folder / file), "--scorer", "length", "--output", str(out)]) == 0
        table = pyarrow.parquet.read_table(next(out.glob("scores-*.parquet")))
        return {key: table.column(key).to_pylist() for key in ("score", "label") if key in table.column_names}

    assert scores(name) == scores("plain.jsonl")


def test_tiny_vlm_learns_its_words_from_them(folder, tmp_path):
    words = []
    for name in ("plain.jsonl", "semicolon.csv"):
        assert main(["tiny-vlm", str(tmp_path / name), "--texts", str(folder / name)]) == 0
        words.append((tmp_path / name / "tokenizer.json").read_text())
    assert words[0] == words[1] and "planes" in words[0]
