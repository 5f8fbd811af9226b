"""Tiles of the page: any raster as the reader shows it, a folder's images, and drawn scenes."""

import numpy as np
import pytest
from helpers import picture

from rs_rlhf.app.tiles import PREVIEW, SHOWN, Tile, example_tiles, preview, read_as, side_by_side
from rs_rlhf.errors import DataError, ImageError, RequestError
from rs_rlhf.imagery.options import ImageOptions

OPTIONS = ImageOptions(max_image_pixels=10_000)


def test_a_geotiff_of_many_bands_is_read_as_the_page_says(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    bands = np.stack([np.full((8, 8), 100 * i, np.uint16) for i in range(1, 7)])
    bands[5, 4:] += 50
    bands[:, 0, 0] = 0
    path = tmp_path / "tile.tif"
    with rasterio.open(path, "w", driver="GTiff", width=8, height=8, count=6, dtype="uint16") as file:
        file.write(bands)
    with pytest.raises(ImageError, match="bands"):
        Tile(str(path), OPTIONS).read()
    shown = Tile(str(path), read_as(OPTIONS, "4, 3 2", "fixed", "0 510", "")).read()
    assert shown.getpixel((5, 5)) == (200, 150, 100) and shown.getpixel((0, 0)) == (0, 0, 0)
    gray = Tile(str(path), read_as(OPTIONS, "6", "percentile", "", "0")).read()
    assert gray.getpixel((5, 5)) == (255, 255, 255) and gray.getpixel((1, 1)) == (0, 0, 0)


def test_empty_fields_change_nothing_and_a_field_alone_keeps_the_others():
    given = ImageOptions(bands=(4, 3, 2), stretch="fixed", stretch_range=(0, 3000), nodata=0.0)
    assert read_as(given, "", "", "", "") is read_as(given, None, None, None, None) is given
    assert read_as(given, "1", "", "", "") == ImageOptions(
        bands=(1,), stretch="fixed", stretch_range=(0, 3000), nodata=0
    )
    assert read_as(given, "", "percentile", "", "").stretch_range is None
    assert read_as(given, "", "", "", "-9999").nodata == -9999


@pytest.mark.parametrize(
    "fields, kind",
    [
        (("red", "", "", ""), RequestError),
        (("1.5 2 3", "", "", ""), RequestError),
        (("1 2", "", "", ""), ImageError),
        (("", "fixed", "", ""), ImageError),
        (("", "percentile", "5", ""), ImageError),
        (("", "percentile", "1 2 3", ""), ImageError),
        (("", "", "2 98", ""), ImageError),
        (("", "", "", "none"), RequestError),
    ],
)
def test_fields_that_no_image_can_be_read_by(fields, kind):
    with pytest.raises(kind):
        read_as(OPTIONS, *fields)


def test_too_large_an_image_is_refused(tmp_path):
    picture(0, 200, 100).save(tmp_path / "large.png")
    with pytest.raises(ImageError, match="max_image_pixels"):
        Tile(str(tmp_path / "large.png"), OPTIONS).read()


def test_a_folder_shows_what_can_be_read_and_says_what_cannot(tmp_path, capsys):
    (tmp_path / "tiles" / "port").mkdir(parents=True)
    for i in range(3):
        picture(i).save(tmp_path / "tiles" / "port" / f"{i}.png")
    (tmp_path / "tiles" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "tiles" / "notes.txt").write_text("no image")
    found = example_tiles(tmp_path / "tiles", OPTIONS, tmp_path)
    assert [name for _, _, name in found] == ["port/0.png", "port/1.png", "port/2.png"] and len(found) < SHOWN
    assert "1 images" in capsys.readouterr().out and found[0][0].read().tobytes() == picture(0).tobytes()
    for name in ("gone", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(DataError) as caught:
            example_tiles(tmp_path / name, OPTIONS, tmp_path)
        assert (caught.value.key, caught.value.where) == ("tiles", str(tmp_path / name))


def test_drawn_scenes_are_read_whatever_the_options_of_files(tmp_path):
    found = example_tiles(None, ImageOptions(bands=(4, 3, 2)), tmp_path)
    assert len({name for _, _, name in found}) > 4 and all(tile.read().size == (224, 224) for tile, _, _ in found)


def test_pictures_for_the_page():
    assert preview(picture(0, 3000, 30)).size == (PREVIEW, 10) and preview(picture(0)).size == (84, 56)
    joined = side_by_side([picture(0), picture(1, 20, 112)])
    assert joined.size == (168 + 8 + 20, 112) and joined.getpixel((170, 50)) == (255, 255, 255)
    assert side_by_side([picture(0)]).size == (84, 56)
