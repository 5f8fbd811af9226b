"""A column that names the sensor of a row's images, through every reader of rows to the pixels."""

import json

import numpy as np
import pytest
from PIL import Image

from rs_rlhf import ImageOptions
from rs_rlhf.cli import main as cli
from rs_rlhf.curation.shards import read_scores
from rs_rlhf.data.captioned_images import load_images
from rs_rlhf.data.columns import of_sensor
from rs_rlhf.data.image_text_dataset import open_image_texts
from rs_rlhf.data.questions import read_questions
from rs_rlhf.errors import DataError
from rs_rlhf.imagery.raster import read_image
from rs_rlhf.preferences.reader import load_preferences, load_with_images
from rs_rlhf.trainers.data.clip import load_pairs
from rs_rlhf.trainers.data.sft import load_rows

RGB = np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)
SENSORS = {"bgr": {"bands": [3, 2, 1]}, "green": {"bands": [2]}, "rest": {"path": "*", "bands": [1]}}
COLUMNS = {"sensor": "platform"}
PAIR = {"prompt": "What is it?", "chosen": "a river.", "rejected": "a road."}


@pytest.fixture
def write(tmp_path):
    """Writes rows beside two copies of the same picture; returns the file."""
    for name in ("a.png", "b.png"):
        Image.fromarray(RGB).save(tmp_path / name)

    def write(*rows):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / "rows.jsonl")

    return write


def shown(image, root=None):
    """Tells by its pixels how an image was read."""
    pixels = np.asarray(read_image(image, ImageOptions(sensors=SENSORS, image_root=root)))
    ways = {"bgr": RGB[..., ::-1], "green": RGB[..., [1]], "rest": RGB[..., [0]]}
    return next(name for name, expected in ways.items() if np.array_equal(pixels, expected + np.zeros_like(RGB)))


def test_preferences_with_images_of_two_sensors(write, tmp_path):
    rows = [
        {"images": ["a.png", "b.png"], "platform": ["bgr", "green"]},
        {"images": ["b.png", "a.png"], "platform": "green"},
        {"images": ["a.png", "b.png"], "platform": [None, "bgr"]},
        {"images": ["a.png"], "platform": "unknown"},
    ]
    file = write(*(row | PAIR for row in rows))
    expected = [["bgr", "green"], ["green", "green"], ["rest", "bgr"], ["rest"]]
    for data, root in (
        (load_preferences(file, image_root=tmp_path, columns=COLUMNS), None),
        load_with_images(file, columns=COLUMNS),
    ):
        assert [[shown(image, root) for image in row["images"]] for row in data] == expected
    without = load_preferences(file, image_root=tmp_path)  # a column that is not named is not read
    assert all(shown(image) == "rest" for row in without for image in row["images"])


def test_captions_questions_and_classes(write):
    file = write(
        {"filename": "a.png", "caption": "a river.", "label": "river", "platform": "bgr"},
        {"filename": "b.png", "caption": "a road.", "label": "road", "platform": "green"},
    )
    rows = list(open_image_texts(file, columns=COLUMNS))
    assert [shown(row.images[0]) for row in rows] == ["bgr", "green"]
    assert [row.raw["filename"] for row in rows] == ["a.png", "b.png"]
    images = load_images(file, columns=COLUMNS)
    assert [shown(row["image"]) for row in images] == ["bgr", "green"]
    assert [row["id"] for row in images] == ["a.png", "b.png"]
    questions = read_questions(file, columns=COLUMNS, keep_apart=False)
    assert [shown(row.group.images[0]) for row in questions] == ["bgr", "green"]
    for columns in (COLUMNS, COLUMNS | {"text": "caption"}):  # labels, and texts
        data = load_rows(file, columns=columns)
        assert [shown(row["image"] if "image" in row else row["images"][0]) for row in data] == ["bgr", "green"]
    pairs = load_pairs(file, columns=COLUMNS)
    assert [shown(pairs[i]["image"]) for i in range(2)] == ["bgr", "green"]


def test_rows_with_a_prompt(write):
    file = write(
        {"prompt": "What?", "image": "a.png", "platform": "bgr"}, {"prompt": "And?", "image": "b.png", "platform": 2}
    )
    rows = read_questions(file, columns=COLUMNS, keep_apart=False)
    assert [shown(row.group.images[0]) for row in rows] == ["bgr", "rest"]
    assert [row.image_names for row in rows] == [["a.png"], ["b.png"]]


def test_score_reads_each_image_by_the_column(write, score_model_path, tmp_path):
    file = write(
        *(
            {"image": name, "caption": "a river.", "platform": sensor}
            for name, sensor in (("a.png", "bgr"), ("b.png", ""))
        )
    )
    (tmp_path / "options.yaml").write_text(json.dumps(SENSORS))
    scores = {}
    line = ["score", "--input", file, "--model", score_model_path, "--output"]
    for name, flags in {
        "sensors": ["--image_options", str(tmp_path / "options.yaml"), "--columns", "sensor=platform"],
        "bgr": ["--bands", "3", "2", "1"],
        "rest": ["--bands", "1"],
    }.items():
        assert cli.main([*line, str(tmp_path / name), *flags]) == 0
        scores[name] = read_scores(tmp_path / name)["score"].to_pylist()
    assert scores["sensors"] == pytest.approx([scores["bgr"][0], scores["rest"][1]], abs=1e-5)
    assert scores["bgr"][0] != scores["rest"][0]


def test_placed_images_keep_their_sensor(write, tmp_path):
    file = write(*({"image": f"{c}.png", "label": c, "platform": "bgr"} for c in "ab"))
    Image.fromarray(RGB[::-1]).save(tmp_path / "b.png")
    out = tmp_path / "out"
    out.mkdir()
    assert (
        cli.main(["data", "pairs", "--input", file, "--columns", "sensor=platform", "--output", f"{out}/p.jsonl"]) == 0
    )
    rows = [json.loads(line) for line in (out / "p.jsonl").read_text().splitlines()]
    assert rows and all(row["image"].endswith(".png#bgr") for row in rows)
    data, root = load_with_images(f"{out}/p.jsonl")
    assert {shown(row["images"][0], root) for row in data if "a.png" in row["images"][0]["path"]} == {"bgr"}


@pytest.mark.parametrize(
    ("images", "sensor", "expected"),
    [
        ("a.tif", "s1", "a.tif#s1"),
        ("a.tif", None, "a.tif"),
        (["a.tif", "b.tif"], "s1", ["a.tif#s1", "b.tif#s1"]),
        (["a.tif", "b.tif"], ["s1", ""], ["a.tif#s1", "b.tif"]),
        ({"bytes": b"x", "path": None}, "S1/GRD", {"bytes": b"x", "path": "#S1-GRD"}),
        (b"x", 1, {"bytes": b"x", "path": "#1"}),
    ],
)
def test_images_that_name_their_sensor(images, sensor, expected):
    assert of_sensor(images, sensor) == expected


@pytest.mark.parametrize(("images", "sensor"), [(["a"], ["s", "t"]), ("a", 1.5), ("a", {"s": 1}), (RGB, "s")])
def test_sensors_that_cannot_be_read(images, sensor):
    with pytest.raises(DataError) as caught:
        of_sensor(images, sensor)
    assert caught.value.key == "sensor"
