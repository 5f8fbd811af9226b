"""Images of several sensors, each read its own way, chosen by the path."""

import json

import numpy as np
import pytest
from PIL import Image

from rs_rlhf import ImageOptions
from rs_rlhf.errors import ImageError
from rs_rlhf.imagery.arguments import READING, ImageArguments, ReadingOptions
from rs_rlhf.imagery.identity import pixel_hash
from rs_rlhf.imagery.options import read_sensors, split_sensor, with_sensor
from rs_rlhf.imagery.raster import read_image
from rs_rlhf.options import parse, to_flags

YAML = """
sentinel-2:
  path: [s2/*, "*_S2_*"]
  bands: [3, 2, 1]
  stretch: fixed
  stretch_range: [0, 2550]
sentinel-1:
  path: "*_vv.*"
  stretch: fixed
  stretch_range: [-25, 0.5]
  nodata: -99
rgb:
  path: rgb/*
"""
OPTICAL = np.random.default_rng(0).integers(0, 256, (8, 6, 4)).astype(np.uint16) * 10
RADAR = np.linspace(-25, 0.5, 48, dtype=np.float32).reshape(8, 6)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "image_options.yaml"
    path.write_text(YAML)
    return str(path)


def read(path, options, array):
    """Reads an array as the file of that name would be."""
    return np.asarray(read_image(array, options.of_image(str(path))))


@pytest.mark.parametrize("path", ["s2/a.tif", "/data/S2/part/a.TIF", "x_S2_1.jp2", "tiles\\s2\\a.tif"])
def test_a_sensor_is_told_by_the_path(file, path):
    options = ImageOptions(sensors=file)
    assert np.array_equal(read(path, options, OPTICAL), OPTICAL[..., [2, 1, 0]] // 10)
    named = {"bytes": b"", "path": path}
    assert (
        options.of_image(path)
        == options.of_image(named)
        == ImageOptions(bands=(3, 2, 1), stretch="fixed", stretch_range=(0, 2550))
    )


def test_each_image_of_a_row_is_read_by_its_own_sensor(file):
    options = ImageOptions(sensors=file)
    radar = read("r/a_VV.tif", options, RADAR)
    assert (radar[0, 0, 0], radar[-1, -1, 0]) == (0, 255) and (np.diff(radar[..., 0].ravel().astype(int)) >= 0).all()
    assert options.of_image("r/a_vv.tif").nodata == -99
    with pytest.raises(ImageError, match="4 band"):  # no sensor's: the default
        read("other/a.tif", options, OPTICAL)
    rest = ImageOptions(bands=(4, 3, 2), stretch="percentile", sensors=file)
    assert rest.of_image("xs2/a.tif") == ImageOptions(bands=(4, 3, 2), stretch="percentile") == rest.of_image(RADAR)
    # a sensor inherits nothing
    assert rest.of_image("rgb/a.tif") == ImageOptions() == rest.of_image("/d/RGB/sub/a.png")


def test_the_reader_chooses_by_path_bytes_and_opened_pictures(tmp_path, file):
    (tmp_path / "s2").mkdir()
    values = np.arange(48, dtype=np.uint16).reshape(8, 6) * 50
    path = tmp_path / "s2" / "a.png"
    Image.fromarray(values).save(path)
    options = ImageOptions(sensors={"s2": {"path": "s2/*", "stretch": "fixed", "stretch_range": [0, 2550]}})
    expected = np.rint(values / 10).astype(np.uint8)
    rooted = ImageOptions(sensors=options.sensors, image_root=str(tmp_path))
    with Image.open(path) as opened:
        sources = [(path, options), (str(path), options), ("s2/a.png", rooted), (opened, options)]
        sources.append(({"bytes": path.read_bytes(), "path": "s2/a.png"}, options))
        for source, how in sources:
            assert np.array_equal(np.asarray(read_image(source, how))[..., 0], expected)
    assert pixel_hash(path, options) != pixel_hash(path, ImageOptions(stretch="percentile"))
    with pytest.raises(ImageError, match="stretch: percentile"):
        read_image(path.read_bytes(), options)


def test_a_path_may_name_its_sensor(tmp_path):
    options = ImageOptions(sensors={"all": {"path": "*.png", "bands": [1]}, "S2/L2A": {"bands": [3, 2, 1]}, "b": {}})
    named = with_sensor("x/a.png", "S2/L2A")
    assert options.of_image(named).bands == options.of_image({"bytes": b"", "path": named}).bands == (3, 2, 1)
    assert options.of_image(with_sensor("x/a.png", "other")).bands == options.of_image("x/a.png").bands == (1,)
    assert options.of_image("b").bands is options.of_image("x/a.png#b").bands is None
    rgb = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    for name in ("a.png", "a.png#b"):  # a file may be called so
        Image.fromarray(rgb).save(tmp_path / name, "PNG")
    for root in (None, str(tmp_path)):
        path = with_sensor("a.png" if root else str(tmp_path / "a.png"), "S2/L2A")
        rooted = ImageOptions(sensors=options.sensors, image_root=root)
        assert np.array_equal(read_image(path, rooted), rgb[..., ::-1])
        assert split_sensor(path, root or "") == (path.rpartition("#")[0], "#S2-L2A")
    assert split_sensor("a.png#b", str(tmp_path)) == ("a.png#b", "")
    with pytest.raises(ImageError, match="leaves image_root"):
        read_image("../a.png#b", ImageOptions(image_root=str(tmp_path)))


def test_the_first_sensor_that_matches_holds():
    first, second = {"path": "*.tif", "bands": [1]}, {"path": "a/*", "bands": [2]}
    assert ImageOptions(sensors={"x": first, "y": second}).of_image("a/b.tif").bands == (1,)
    assert ImageOptions(sensors={"y": second, "x": first}).of_image("a/b.tif").bands == (2,)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("s2: {path: a, band: [1]}", "band"),
        ("s2: {path: a, image_root: /}", "image_root"),
        ("s2: {path: 3}", "path"),
        ("s2: {path: [a, 3]}", "path"),
        ("s2: 3", "s2"),
        ("s2: {path: a, stretch: fixed}", ""),
        ("s2: {path: a, bands: [1, 2]}", ""),
        ("", ""),
        ("- s2", ""),
        ("s2: {path: [", "image_options"),
    ],
)
def test_what_the_file_must_not_say(tmp_path, text, key):
    file = tmp_path / "o.yaml"
    file.write_text(text)
    with pytest.raises(ImageError) as caught:
        ReadingOptions(image_options=str(file)).reader_options()
    assert (caught.value.key, caught.value.where) == (key, str(file))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ImageError) as caught:
        ImageOptions(sensors=tmp_path / "none.yaml")
    assert caught.value.key == "image_options" and caught.value.where.endswith("none.yaml")


def test_the_flag_reaches_the_reader_and_a_record_gives_it_back(file):
    options = parse(ReadingOptions, ["--image_options", file, "--nodata", "7"], "x")
    reader = options.reader_options()
    assert reader == ImageOptions(nodata=7.0, sensors=read_sensors(file)) and len(reader.sensors) == 3
    assert parse(ReadingOptions, to_flags(options), "x") == options
    record = json.loads(json.dumps(options.recorded(READING)))
    assert [sensor["name"] for sensor in record["image_options"]] == ["sentinel-2", "sentinel-1", "rgb"]
    assert ImageArguments(**record).reader_options() == reader
    assert ImageOptions(**json.loads(json.dumps(reader.recorded()))) == ImageOptions(
        nodata=7.0, sensors=reader.sensors
    )
    assert "image_options" not in ReadingOptions().recorded(READING)


@pytest.mark.parametrize("change", [("2550", "2551"), ("*_vv.*", "*_vh.*"), ("rgb/*", "x/*")])
def test_a_change_of_the_file_changes_the_record(file, change):
    before = ReadingOptions(image_options=file).recorded(READING)
    with open(file, "w") as again:
        again.write(YAML.replace(*change))
    assert ReadingOptions(image_options=file).recorded(READING) != before


def test_the_order_of_sensors_is_recorded():
    sensors = {"x": {"path": "*.tif"}, "y": {"path": "a/*", "bands": [2]}}
    other = dict(reversed(sensors.items()))
    assert ImageOptions(sensors=sensors).recorded() != ImageOptions(sensors=other).recorded()
