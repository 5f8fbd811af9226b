"""Bands by their labels and transparency by its values, with rasterio and without it where Pillow can read."""

import io
import sys

import numpy as np
import pytest
from helpers.rasters import write_tif
from PIL import Image

from rs_rlhf.errors import ImageError
from rs_rlhf.imagery.bands import band_label, opacity_of
from rs_rlhf.imagery.raster import ImageOptions, image_size, read_image

DATA = np.random.default_rng(0).integers(10, 240, (6, 32, 24), dtype=np.uint8)
RGB = np.moveaxis(DATA[:3], 0, -1)
CUT = np.zeros((32, 24), np.uint8)
CUT[:, :15] = 255
ON_WHITE = np.where(CUT[..., None] > 0, RGB, 255)


@pytest.fixture(params=["rasterio", "pillow"])
def reader(request, monkeypatch):
    """Reads a path as the installed reader does, and checks that a picture opened by Pillow gives the same."""
    if request.param == "rasterio":
        pytest.importorskip("rasterio")
    else:
        pytest.importorskip("rasterio")  # writes the files
        monkeypatch.setattr("rs_rlhf.imagery.raster._has_rasterio", lambda driver="": False)

    def read(path, options=ImageOptions()):  # noqa: B008  # frozen
        picture = read_image(path, options)
        with Image.open(path) as opened:
            assert np.array_equal(read_image(opened, options), picture)
        return np.asarray(picture)

    return read


def fails(path, *parts, options=ImageOptions()):  # noqa: B008  # frozen
    with pytest.raises(ImageError) as caught:
        read_image(path, options)
    assert not [part for part in parts if part not in str(caught.value)], caught.value


def with_alpha(alpha, dtype="uint8"):
    return np.concatenate([DATA[:3], alpha[None]]).astype(dtype)


# --- transparency -----------------------------------------------------------------------------------------------


def edge(share):
    """`CUT` with a share of its pixels between clear and opaque."""
    alpha = CUT.copy()
    alpha.flat[: int(share * alpha.size)] = 100
    return alpha


@pytest.mark.parametrize("alpha", [CUT, CUT // 255, np.full_like(CUT, 255)], ids=["cut", "0/1", "opaque"])
def test_two_valued_alpha_of_a_tiff_is_transparency(tmp_path, reader, alpha):
    path = write_tif(tmp_path / "a.tif", with_alpha(alpha))
    assert np.array_equal(reader(path), np.where(alpha[..., None] > 0, RGB, 255))
    assert np.array_equal(reader(path, ImageOptions(bands=(3, 2, 1))), RGB[..., ::-1])


def test_few_antialiased_values_are_still_transparency(tmp_path, reader):
    path = write_tif(tmp_path / "a.tif", with_alpha(edge(0.03)))
    assert reader(path)[0, 0].tolist() == pytest.approx((RGB[0, 0] * (100 / 255) + 155).tolist(), abs=1)


SATURATED = np.clip(DATA[3].astype(int) * 3, 0, 255).astype(np.uint8)
BANDS_3 = {
    "near infrared": DATA[3],
    "saturated": SATURATED,
    "nodata border": np.where(np.arange(24) < 22, 0, DATA[3]).astype(np.uint8),
    "zero": np.zeros_like(CUT),
    "flat": np.full_like(CUT, 137),
    "half soft": edge(0.5),
}


@pytest.mark.parametrize("kind", BANDS_3)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_fourth_band_that_is_not_two_valued_is_data(tmp_path, monkeypatch, kind, dtype):
    path = write_tif(tmp_path / "a.tif", with_alpha(BANDS_3[kind], dtype), photometric="RGB", alpha="YES")
    expected = (f"4 band(s) of {dtype}", "1 red, 2 green, 3 blue, 4 alpha by its flag", "`bands: [1, 2, 3]`")
    fails(path, *expected)
    if dtype == "uint8":
        with Image.open(path) as opened:
            fails(opened, *expected)
        monkeypatch.setitem(sys.modules, "rasterio", None)
        fails(path, *expected)
        assert np.array_equal(read_image(path, ImageOptions(bands=(1, 2, 3))), RGB)


@pytest.mark.parametrize("full", [1, 255, 65535])
@pytest.mark.parametrize("stretch", ["percentile", "fixed"])
def test_alpha_of_16_bits(tmp_path, full, stretch):
    data = with_alpha(CUT // 255, "uint16")
    data[:3] *= 200
    data[3] *= full
    path = write_tif(tmp_path / "a.tif", data, photometric="RGB", alpha="YES")
    options = ImageOptions(stretch=stretch, stretch_range=(0, 51000 if stretch == "fixed" else 100))
    got = np.asarray(read_image(path, options))
    assert (got[:, 15:] == 255).all()
    if stretch == "fixed":
        assert np.array_equal(got, ON_WHITE)
    else:  # the hidden pixels are not counted
        assert got[:, :15].min() == 0 and got[:, :15].max() == 255


@pytest.mark.parametrize("extra", ["UNSPECIFIED", "YES", "PREMULTIPLIED"])
def test_near_infrared_is_refused_whatever_the_fourth_sample_is_flagged_as(tmp_path, extra, monkeypatch):
    path = write_tif(tmp_path / "naip.tif", DATA[:4], photometric="RGB", alpha=extra)
    fails(path, "4 band(s) of uint8", "`bands: [1, 2, 3]`")
    monkeypatch.setitem(sys.modules, "rasterio", None)
    fails(path, "naip.tif': ")


def test_colours_multiplied_by_a_soft_alpha(tmp_path, monkeypatch):
    alpha = DATA[3]
    data = np.concatenate([np.rint(DATA[:3] * (alpha / 255)), alpha[None]]).astype(np.uint8)
    path = write_tif(tmp_path / "a.tif", data, photometric="RGB", alpha="PREMULTIPLIED")
    expected = np.moveaxis(data[:3].astype(int) + (255 - alpha), 0, -1)
    assert np.abs(np.asarray(read_image(path)).astype(int) - expected).max() <= 2
    monkeypatch.setitem(sys.modules, "rasterio", None)
    fails(path, "rs-rlhf[geo]")


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_soft_alpha_of_png_and_webp_is_alpha_by_the_format(kind, mode):
    picture = Image.fromarray(np.moveaxis(DATA[:4], 0, -1)).convert(mode)
    stream = io.BytesIO()
    picture.save(stream, kind, lossless=True)
    white = Image.new("RGB", picture.size, (255, 255, 255))
    white.paste(picture.convert("RGB"), mask=picture.getchannel("A"))
    assert np.abs(np.asarray(read_image(stream.getvalue())).astype(int) - np.asarray(white)).max() <= 1
    assert np.array_equal(read_image(picture), white)


def test_gray_with_soft_alpha_in_a_tiff(tmp_path, reader):
    Image.fromarray(np.dstack([DATA[0], CUT])).save(tmp_path / "a.tif")
    assert np.array_equal(reader(tmp_path / "a.tif")[..., 0], np.where(CUT > 0, DATA[0], 255))
    Image.fromarray(np.dstack([DATA[0], DATA[1]])).save(tmp_path / "a.tif")
    fails(tmp_path / "a.tif", "2 band(s) of uint8", "2 alpha by its flag", "`bands: [1]`")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1, 1], [0, 255, 255]),
        (np.array([0, 4095], np.uint16), [0, 255]),
        (np.array([0, 10_000], np.uint16), None),
        (np.array([-1, 255], np.int16), None),
        (np.array([0, 2**15 - 1], np.int16), [0, 255]),
        (np.array([0.0, 1.0], np.float32), [0, 255]),
        (np.array([0.0, np.nan], np.float32), None),
        ([True, False], [255, 0]),
        ([254, 254, 3, 0], [254, 254, 3, 0]),  # after lossy compression
    ],
)
def test_opacity(values, expected):
    array = values if isinstance(values, np.ndarray) else np.array(values, bool if values[0] is True else np.uint8)
    got = opacity_of(array[None])
    assert (got if got is None else got[0].tolist()) == expected


# --- labels -----------------------------------------------------------------------------------------------------

BGR = [
    {"colours": ["blue", "green", "red"]},
    {"names": ["B02", "B03", "B04"]},
    {"names": ["B2", "B3", "B4"]},
    {"names": ["b02, 490 nm", "b03", "b04"]},
    {"names": ["SR_B2", "SR_B3", "SR_B4"]},
    {"names": ["Blue", "Green", "Red (band 3)"]},
    {"names": ["B", "G", "R"]},
    {"names": ["TCI_B", "TCI_G", "TCI_R"]},
    {"tags": {"Band_1": "Blue", "Band_2": "Green", "Band_3": "Red"}},
]
IN_ORDER = [
    {"names": ["B04", "B03", "B02"]},
    {"names": ["Band 1", "Band 2", "Band 3"]},
    {"names": ["b1", "b2", "b3"]},
    {"names": ["VV", "VH", "VV/VH"]},
    {"names": ["B12", "B11", "B8A"]},
    {"names": ["red", "green", ""]},
    {"colours": ["gray", "undefined", "undefined"]},
]


@pytest.mark.parametrize("labels", BGR, ids=str)
@pytest.mark.parametrize("form", [{}, {"interleave": "band"}, {"tiled": True, "blockxsize": 16, "blockysize": 16}])
def test_blue_green_red_by_its_labels_becomes_rgb(tmp_path, reader, labels, form):
    path = write_tif(tmp_path / "a.tif", DATA[2::-1], **labels, **form)
    assert np.array_equal(reader(path), RGB)
    # an explicit choice counts the bands of the file
    assert np.array_equal(reader(path, ImageOptions(bands=(1, 2, 3))), RGB[..., ::-1])


@pytest.mark.parametrize("labels", BGR, ids=str)
def test_blue_green_red_of_16_bits(tmp_path, labels):
    photometric = "MINISBLACK" if "colours" in labels else "RGB"  # GDAL's writer: all is RGB, or each band has its own
    path = write_tif(tmp_path / "a.tif", DATA[2::-1].astype("uint16") * 10, **labels, photometric=photometric)
    options = ImageOptions(stretch="fixed", stretch_range=(0, 2550))
    assert np.array_equal(read_image(path, options), RGB)


@pytest.mark.parametrize("labels", IN_ORDER, ids=str)
def test_three_bands_without_other_colours_stay_in_the_files_order(tmp_path, reader, labels):
    path = write_tif(tmp_path / "a.tif", DATA[:3], **labels)
    assert np.array_equal(reader(path), RGB)


@pytest.mark.parametrize("names", [["nir", "red", "green"], ["B08", "B04", "B03"], ["red", "green", "NDVI"]])
def test_three_bands_that_are_not_all_of_rgb_are_refused(tmp_path, monkeypatch, names):
    path = write_tif(tmp_path / "a.tif", DATA[:3], names=names)
    fails(path, f"(1 {names[0]}, 2 {names[1]}, 3 {names[2]})", "`bands: [1, 2, 3]`")
    monkeypatch.setitem(sys.modules, "rasterio", None)
    fails(path, f"(1 {names[0]}, 2 {names[1]}, 3 {names[2]})", "`bands: [1, 2, 3]`")


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (["B02", "B03", "B04", "B08"], [3, 2, 1]),
        (["Red", "Green", "Blue", "NIR"], [1, 2, 3]),
        (["coastal blue", "blue", "green_i", "green", "yellow", "red"], [6, 4, 2]),
        (["Near Infra-Red", "Red edge", "Red", "Green", "Blue"], [3, 4, 5]),
        (["NearInfrared", "RedBand", "GreenBand", "BlueBand"], [2, 3, 4]),
        (["alpha", "nir", "red", "green", "blue"], [3, 4, 5]),
    ],
)
def test_hints_name_the_bands_of_true_colour(tmp_path, names, hint):
    path = write_tif(tmp_path / "a.tif", DATA[: len(names)], names=names, photometric="MINISBLACK")
    fails(path, f"1 {names[0]}", f"{len(names)} {names[-1]}", f"`bands: {hint}` (red, green and blue by their labels")


def test_a_description_is_believed_over_a_flag(tmp_path, reader):
    nir = write_tif(tmp_path / "nir.tif", with_alpha(CUT), names=["R", "G", "B", "NIR"])
    fails(nir, "4 NIR", "`bands: [1, 2, 3]`")
    clouds = write_tif(tmp_path / "clouds.tif", with_alpha(CUT), names=["R", "G", "B", "cloud mask"])
    fails(clouds, "4 cloud mask", "`bands: [1, 2, 3]`")
    for name in ("alpha", "Band 4", "mask", "b4", "valid data"):
        mask = write_tif(tmp_path / "mask.tif", with_alpha(CUT), names=["R", "G", "B", name])
        assert np.array_equal(reader(mask), ON_WHITE)


def test_blue_green_red_alpha(tmp_path):
    data = np.concatenate([DATA[2::-1], CUT[None]])
    path = write_tif(tmp_path / "a.tif", data, names=["B02", "B03", "B04", "alpha"])
    assert np.array_equal(read_image(path), ON_WHITE)


def test_alpha_need_not_be_the_last_band(tmp_path):
    data = np.concatenate([CUT[None], DATA[2::-1]])
    path = write_tif(tmp_path / "a.tif", data, names=["dataMask", "blue", "green", "red"], photometric="MINISBLACK")
    assert np.array_equal(read_image(path), ON_WHITE)


def test_two_bands_of_sentinel_1(tmp_path):
    path = write_tif(tmp_path / "s1.tif", DATA[:2].astype(np.float32), names=["VV", "VH"])
    fails(path, "2 band(s) of float32 (1 VV, 2 VH)", "`bands: [1]`", "`stretch: percentile`")


@pytest.mark.parametrize(
    ("text", "colour"),
    [
        *[("Red", "red"), ("red_mean", "red"), ("Band 4 - Red", "red"), ("B3 (Green)", "green"), ("R", "red")],
        *[("vegetation red edge", "other"), ("RedEdge2", "other"), ("infrared", "other"), ("NIR (B8)", "other")],
        *[("B8A", "other"), ("B10", "other"), ("pansharpened blue", "blue"), ("green/red", ""), ("", ""), ("3", "")],
        *[("hundred", ""), ("Band 2", ""), ("alpha", "alpha"), ("Blue 0.45-0.51", "blue")],
    ],
)
def test_descriptions(text, colour):
    assert band_label({}, 9, "undefined", text).colour == colour
    assert band_label({"DESCRIPTION": text}, 9, "gray").colour == colour


# --- white is zero, JPEG 2000 ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_white_is_zero(tmp_path, reader, bits):
    data = (DATA[:1].astype(int) % 2**bits).astype(np.uint8)
    path = write_tif(tmp_path / "a.tif", data, photometric="MINISWHITE", nbits=bits, nodata=int(data[0, 3, 3]))
    negative = (2**bits - 1 - data[0]) * (255 // (2**bits - 1))
    assert np.array_equal(reader(path)[..., 0], np.where(data[0] == data[0, 3, 3], 0, negative))


def test_white_is_zero_of_16_bits(tmp_path, reader):
    path = write_tif(tmp_path / "a.tif", DATA[:1].astype("uint16"), photometric="MINISWHITE")
    got = reader(path, ImageOptions(stretch="fixed", stretch_range=(0, 255)))
    assert np.array_equal(got[..., 0], 255 - DATA[0])


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_nodata_of_few_bits_is_the_files_value(tmp_path, reader, bits):
    data = (DATA[:1].astype(int) % 2**bits).astype(np.uint8)
    path = write_tif(tmp_path / "a.tif", data, photometric="MINISBLACK", nbits=bits, nodata=1)
    assert np.array_equal(reader(path)[..., 0], np.where(data[0] == 1, 0, data[0] * (255 // (2**bits - 1))))


LOSSLESS = {"driver": "JP2OpenJPEG", "QUALITY": 100, "REVERSIBLE": "YES", "YCC": "NO"}
WIDE = np.kron(DATA, np.ones((1, 4, 4), np.uint8))


@pytest.mark.parametrize("name", ["T32.jp2", "T32.JP2"])
def test_jpeg_2000(tmp_path, name):
    rgb = write_tif(tmp_path / name, WIDE[:3], **LOSSLESS)
    assert np.array_equal(read_image(rgb), np.moveaxis(WIDE[:3], 0, -1)) and image_size(rgb) == (128, 96)
    with open(rgb, "rb") as file:
        assert np.array_equal(read_image(file.read()), np.moveaxis(WIDE[:3], 0, -1))
    fails(rgb, "is 96x128 pixels", options=ImageOptions(max_image_pixels=96 * 128 - 1))


def test_jpeg_2000_of_sentinel_2(tmp_path, monkeypatch):
    wide = WIDE[:4].astype("uint16") * 16
    path = write_tif(tmp_path / "a.jp2", wide, NBITS=12, **LOSSLESS)
    fails(path, "4 band(s) of uint16", "`stretch: percentile`")
    options = ImageOptions(bands=(3, 2, 1), stretch="fixed", stretch_range=(0, 4080))
    assert np.array_equal(read_image(path, options), np.moveaxis(WIDE[2::-1], 0, -1))
    monkeypatch.setitem(sys.modules, "rasterio", None)
    fails(path, "rs-rlhf[geo]", options=options)
    assert image_size(path) == (128, 96)


@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_gray_jpeg_2000_is_read_by_both(tmp_path, reader, kind):
    data = WIDE[:1].astype(kind) * (1 if kind == "uint8" else 200)
    path = write_tif(tmp_path / "a.jp2", data, **LOSSLESS)
    options = ImageOptions() if kind == "uint8" else ImageOptions(stretch="fixed", stretch_range=(0, 51000))
    assert np.array_equal(reader(path, options)[..., 0], WIDE[0])


def test_a_jpeg_2000_cut_short(tmp_path):
    path = write_tif(tmp_path / "a.jp2", WIDE[:3], **LOSSLESS)
    with open(path, "rb") as file:
        content = file.read()
    for end in (12, 40, 200):
        fails(content[:end], "cannot be decoded")


def test_upper_case_suffixes(tmp_path):
    path = write_tif(tmp_path / "A.TIF", DATA[2::-1], names=["B02", "B03", "B04"])
    assert np.array_equal(read_image(path), RGB) and image_size(path) == (32, 24)
