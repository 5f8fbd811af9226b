"""Prompts of every layout become one data set with undecoded images; mistakes name file and row."""

import io
import json

import pytest
from datasets import Dataset, Features, Image, Value
from helpers import picture

from rs_rlhf.data.captioned_images import LABEL_QUESTION
from rs_rlhf.errors import DataError, ImageError
from rs_rlhf.imagery.raster import ImageOptions, read_image
from rs_rlhf.trainers.data.grpo import load_prompts

GOOD = {"prompt": "Rural?", "image": "images/0.png"}
IMAGE = {"type": "image", "text": None}


def text(words):
    return {"type": "text", "text": words}


@pytest.fixture
def folder(tmp_path):
    """A folder with `images/0.png` to `3.png`."""
    (tmp_path / "images").mkdir()
    for i in range(4):
        picture(i).save(tmp_path / "images" / f"{i}.png")
    return tmp_path


def write(folder, rows, name="prompts.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def test_labelled_images_have_all_classes_as_choices(folder):
    labels = ["port", "StorageTanks", "river", "port"]
    data, root = load_prompts(write(folder, [{"image": f"images/{i}.png", "label": x} for i, x in enumerate(labels)]))
    assert root == str(folder)
    assert data["solution"] == ["port", "storage tanks", "river", "port"]
    assert data["choices"] == [["port", "river", "storage tanks"]] * 4
    assert data[0]["prompt"] == [{"role": "user", "content": [IMAGE, text(LABEL_QUESTION)]}]


def test_captioned_images_have_no_choices(folder):
    data, _ = load_prompts(write(folder, [{"image": "images/0.png", "captions": ["a port", "the port"]}]))
    assert data[0]["choices"] is None and data[0]["solution"] is None
    assert data[0]["prompt"][0]["content"][1]["text"] == "Describe the image."


def test_rows_with_prompts(folder):
    turns = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "image"}, text("Same place?"), {"type": "image"}]},
    ]
    rows = [
        GOOD | {"solution": "no", "reward_type": "em", "id": 7, "source": "mine"},
        {"prompt": turns, "images": ["images/1.png", "images/2.png"], "answer": "yes", "choices": ["yes", "no"]},
        {"prompt": "Is water wet?"},
    ]
    data, _ = load_prompts(write(folder, rows), system_prompt="Think.")
    system = {"role": "system", "content": [text("Think.")]}
    assert data[0]["prompt"] == [system, {"role": "user", "content": [IMAGE, text("Rural?")]}]
    assert data[1]["prompt"] == [
        {"role": "system", "content": [text("Be short.")]},  # has one of its own
        {"role": "user", "content": [IMAGE, text("Same place?"), IMAGE]},
    ]
    assert data[2]["prompt"] == [system, {"role": "user", "content": [text("Is water wet?")]}]
    assert data["solution"] == ["no", "yes", None] and data["choices"] == [None, ["yes", "no"], None]
    assert data["reward_type"] == ["em", None, None]
    assert data["id"] == ["7", "prompts-2", "prompts-3"] and data["source"] == ["mine", "prompts", "prompts"]
    # paths start at the file, not at the working folder, and stay paths
    assert [[one["path"] for one in images] for images in data["images"]] == [
        [str(folder / "images" / "0.png")],
        [str(folder / "images" / f"{i}.png") for i in (1, 2)],
        [],
    ]
    assert all(one["bytes"] is None for images in data["images"] for one in images)


@pytest.mark.parametrize("column", ["solution", "answer"])
@pytest.mark.parametrize("reward_type", [None, "em", "open_ended"])
def test_numbers_are_solutions_and_zero_is_one(folder, column, reward_type):
    rows = [{"prompt": "How many?", column: number, "reward_type": reward_type} for number in (0, 3, 1.5)]
    assert load_prompts(write(folder, rows))[0]["solution"] == ["0", "3", "1.5"]


def test_an_empty_solution_is_none(folder):
    rows = [{"prompt": "?", "solution": "", "answer": None}, {"prompt": "?", "solution": " a "}]
    assert load_prompts(write(folder, rows))[0]["solution"] == [None, "a"]


def test_the_reference_of_an_open_ended_row_is_its_solution(folder):
    rows = [{"prompt": "Describe.", "image": "images/0.png", "solution": "a port", "reward_type": "open_ended"}]
    assert load_prompts(write(folder, rows))[0]["solution"] == ["a port"]


def test_limit_draws_by_the_seed(folder):
    path = write(folder, [{"prompt": f"Question {i}?"} for i in range(20)])
    ids = [load_prompts(path, limit=5, seed=seed)[0]["id"] for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2] and len(ids[0]) == len(set(ids[0])) == 5
    assert ids[0] != load_prompts(path)[0]["id"][:5]
    assert len(load_prompts(path, limit=30)[0]) == 20
    with pytest.raises(ValueError, match="limited to 0, expected at least 1"):
        load_prompts(path, limit=0)


def test_geotiff_and_bytes_are_left_as_they_are(folder):
    rasterio = pytest.importorskip("rasterio")
    import numpy as np

    values = np.random.default_rng(0).integers(0, 3000, (4, 24, 32), dtype=np.uint16)
    size = {"height": 24, "width": 32, "count": 4, "dtype": "uint16"}
    with rasterio.open(folder / "scene.tif", "w", driver="GTiff", **size) as file:
        file.write(values)
    data, root = load_prompts(write(folder, [{"prompt": "Which class?", "image": "scene.tif"}]))
    assert data[0]["images"] == [{"bytes": None, "path": str(folder / "scene.tif")}]
    options = ImageOptions(image_root=root, bands=(3, 2, 1), stretch="percentile")
    assert read_image(data[0]["images"][0], options).size == (32, 24)

    stream = io.BytesIO()
    picture(5).save(stream, "PNG")
    table = Dataset.from_dict(
        {"prompt": ["Which class?"], "image": [{"bytes": stream.getvalue(), "path": "x.png"}], "solution": ["port"]},
        features=Features({"prompt": Value("string"), "image": Image(decode=False), "solution": Value("string")}),
    )
    table.to_parquet(folder / "rows.parquet")
    data, _ = load_prompts(str(folder / "rows.parquet"))
    assert data[0]["images"] == [{"bytes": stream.getvalue(), "path": "x.png"}] and data[0]["solution"] == "port"
    assert list(read_image(data[0]["images"][0]).getdata()) == list(picture(5).getdata())


def test_several_files_and_an_image_root(folder):
    (folder / "a").mkdir()
    picture(9).save(folder / "a" / "x.png")
    one = write(folder, [{"prompt": "One?", "image": "images/0.png"}])
    two = write(folder / "a", [{"prompt": "Two?", "image": "x.png"}])
    data, root = load_prompts(f"{one}, {two}")
    assert root == str(folder) and len(data) == 2
    assert data[1]["images"][0]["path"] == str(folder / "a" / "x.png")
    data, root = load_prompts([two], image_root=str(folder / "a"))
    assert root == str(folder / "a") and data[0]["images"][0]["path"] == str(folder / "a" / "x.png")


@pytest.mark.parametrize(
    ("row", "error", "says"),
    [
        ({"image": "images/1.png"}, DataError, "no column `prompt`"),
        (GOOD | {"solution": ["a"]}, DataError, "`solution` is .*expected a text"),
        (GOOD | {"choices": "a, b"}, DataError, "`choices` is .*expected a list of texts"),
        (GOOD | {"image": "images/none.png"}, ImageError, "images/none.png"),
        (GOOD | {"image": "../secret.png"}, ImageError, "secret.png"),
        (GOOD | {"prompt": "<image><image>?"}, DataError, "2 image placeholders in the prompt but 1 image"),
        (
            {"prompt": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]},
            DataError,
            "ends with an assistant turn",
        ),
    ],
)
def test_errors_name_file_and_row(folder, row, error, says):
    path = write(folder, [GOOD, row])
    with pytest.raises(error, match=says) as raised:
        load_prompts(path)
    where = path if "placeholders" in says else f"{path}, line 2"
    assert where in str(raised.value)


def test_no_file_and_no_rows(folder):
    with pytest.raises((DataError, FileNotFoundError), match=r"nowhere\.jsonl"):
        load_prompts(str(folder / "nowhere.jsonl"))
    with pytest.raises(ValueError, match=r"prompts\.jsonl"):
        load_prompts(write(folder, []))
