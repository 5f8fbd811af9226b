"""Every raster becomes the right RGB picture, or one clear error: real files, real pixels."""

import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import data_folder
from helpers.rasters import write_tif
from PIL import Image

from rs_rlhf.errors import ImageError
from rs_rlhf.imagery.identity import pixel_hash
from rs_rlhf.imagery.raster import ImageOptions, image_size, read_image


@pytest.fixture
def rgb():
    """An 8 x 6 (height x width) picture of random colours."""
    return np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)


def pixels(image):
    """Give the pixels after checking that the picture is RGB."""
    assert image.mode == "RGB"
    return np.asarray(image)


# --- 8-bit pictures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["png", "webp", "bmp", "tif"])
def test_lossless_formats_give_their_own_pixels(tmp_path, rgb, kind):
    path = tmp_path / f"a.{kind}"
    Image.fromarray(rgb).save(path, lossless=True)
    assert np.array_equal(pixels(read_image(path)), rgb)
    assert np.array_equal(pixels(read_image(path.read_bytes())), rgb)
    assert np.array_equal(pixels(read_image(path, ImageOptions(bands=(3, 2, 1)))), rgb[..., ::-1])
    assert np.array_equal(pixels(read_image(path, ImageOptions(bands=(2,)))), np.repeat(rgb[..., 1:2], 3, axis=2))
    with pytest.raises(ImageError, match=r"`bands: \[4, 3, 2\]` names a band that is not there; it has 3"):
        read_image(path, ImageOptions(bands=(4, 3, 2)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp"])
def test_orientation_is_applied(tmp_path, orientation, kind):
    picture = np.zeros((24, 40, 3), np.uint8)
    picture[:12, :20], picture[12:, :20], picture[:12, 20:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    exif = Image.Exif()
    exif[0x112] = orientation
    path = tmp_path / f"a.{kind}"
    Image.fromarray(picture).save(path, exif=exif, quality=95, subsampling=0)
    turns = [lambda a: a, lambda a: a[:, ::-1], lambda a: a[::-1, ::-1], lambda a: a[::-1]]
    turns += [lambda a: a.swapaxes(0, 1), lambda a: np.rot90(a, -1), lambda a: np.rot90(a.swapaxes(0, 1), 2), np.rot90]
    expected = turns[orientation - 1](picture)
    got = pixels(read_image(path))
    assert got.shape == expected.shape
    inner = (slice(4, 8), slice(4, 8))
    for corner in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        difference = got[:: corner[0], :: corner[1]][inner].astype(int) - expected[:: corner[0], :: corner[1]][inner]
        assert np.abs(difference).max() < 40
    assert image_size(path) == image_size(path.read_bytes()) == got.shape[:2]
    with Image.open(path) as opened:
        assert image_size(opened) == got.shape[:2]
        assert np.array_equal(pixels(read_image(opened)), got)


@pytest.mark.parametrize("kind", ["png", "tif"])
@pytest.mark.parametrize("geo", [True, False])
def test_modes(tmp_path, rgb, kind, geo, monkeypatch):
    if geo:
        pytest.importorskip("rasterio")
    else:
        monkeypatch.setitem(sys.modules, "rasterio", None)
    image, path = Image.fromarray(rgb), tmp_path / f"a.{kind}"
    alpha = np.arange(48, dtype=np.uint8).reshape(8, 6) * 5
    alpha = alpha if kind == "png" else np.uint8(255) * (alpha > 99)  # soft alpha of a TIFF is doubted
    on_white = Image.new("RGB", image.size, (255, 255, 255))
    on_white.paste(image, mask=Image.fromarray(alpha))  # what qwen-vl-utils does

    def saved(picture, **extra):
        picture.save(path, **extra)
        return pixels(read_image(str(path)))

    gray = np.asarray(image.convert("L"))
    assert np.array_equal(saved(image.convert("L")), np.dstack([gray] * 3))
    bits = image.convert("1")
    assert np.array_equal(saved(bits), np.asarray(bits.convert("RGB")))
    palette = image.quantize(16)
    assert np.array_equal(saved(palette), np.asarray(palette.convert("RGB")))
    assert np.array_equal(saved(Image.fromarray(np.dstack([rgb, alpha]))), np.asarray(on_white))
    gray_white = Image.new("L", image.size, 255)
    gray_white.paste(Image.fromarray(gray), mask=Image.fromarray(alpha))
    assert np.array_equal(saved(Image.fromarray(np.dstack([gray, alpha]))), np.dstack([np.asarray(gray_white)] * 3))
    if kind == "tif":
        cmyk = image.convert("CMYK")
        difference = saved(cmyk).astype(int) - np.asarray(cmyk.convert("RGB"))
        assert np.abs(difference).max() <= 1
        assert np.array_equal(saved(image.convert("L"), tiffinfo={262: 0})[..., 0], gray)  # white is zero


def test_transparency_of_palette_and_rgb_png_goes_on_white(tmp_path):
    for mode in ("P", "RGB"):
        image = Image.new("RGB", (4, 4), (10, 20, 30))
        image.paste((200, 0, 0), (0, 0, 2, 4))
        image = image.quantize(2) if mode == "P" else image
        clear = image.getpixel((3, 0))
        image.save(tmp_path / "a.png", transparency=clear)
        got = pixels(read_image(tmp_path / "a.png"))
        assert got[0, 3].tolist() == [255, 255, 255] and got[0, 0].tolist() == [200, 0, 0]


def test_jpeg_cmyk(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    red = pixels(read_image(tmp_path / "a.jpg")).astype(int)
    assert red[..., 0].min() > 240 and red[..., 1:].max() < 15


def test_fully_transparent_is_an_error():
    with pytest.raises(ImageError, match="every pixel is nodata or transparent"):
        read_image(Image.new("RGBA", (3, 3), (9, 9, 9, 0)))


def test_the_callers_image_is_not_touched(rgb):
    image = Image.fromarray(rgb)
    got = read_image(image)
    got.putpixel((0, 0), (1, 2, 3))
    assert np.array_equal(np.asarray(image), rgb)


@pytest.mark.parametrize("geo", [True, False])
def test_uncompressed_tiff_cut_short(tmp_path, geo, monkeypatch):
    data = np.random.default_rng(1).integers(0, 256, (3, 64, 64), dtype=np.uint8)
    path = Path(write_tif(tmp_path / "a.tif", data, blockysize=8))
    if not geo:
        monkeypatch.setitem(sys.modules, "rasterio", None)
    path.write_bytes(path.read_bytes()[:-3000])
    for source in (path, path.read_bytes()):
        with pytest.raises(ImageError, match="cannot be decoded"):
            read_image(source)


# --- bands, stretch, nodata -------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_bytes", [False, True])
def test_multispectral_16_bit(tmp_path, as_bytes):
    data = np.random.default_rng(2).integers(200, 4000, (13, 8, 6)).astype(np.uint16)
    path = write_tif(tmp_path / "s2.tif", data, compress="lzw")
    source = Path(path).read_bytes() if as_bytes else path
    message = r"row 12: image .*13 band\(s\) of uint16.*`bands: \[4, 3, 2\]`.*`stretch: percentile`"
    with pytest.raises(ImageError, match=message):
        read_image(source, where="row 12")
    with pytest.raises(ImageError, match=r"image options `stretch: percentile`"):
        read_image(source, ImageOptions(bands=(4, 3, 2)))
    with pytest.raises(ImageError, match=r"image options `bands"):
        read_image(source, ImageOptions(stretch="percentile"))
    with pytest.raises(ImageError, match=r"it has 13"):
        read_image(source, ImageOptions(bands=(14, 3, 2), stretch="percentile"))
    fixed = ImageOptions(bands=(4, 3, 2), stretch="fixed", stretch_range=(500, 3000))
    shown = np.moveaxis(data[[3, 2, 1]], 0, -1).astype(float)
    expected = np.rint(np.clip((shown - 500) / 2500 * 255, 0, 255))
    assert np.abs(pixels(read_image(source, fixed)) - expected).max() <= 1
    got = pixels(read_image(source, ImageOptions(bands=(4, 3, 2), stretch="percentile")))
    for i in range(3):
        low, high = np.percentile(shown[..., i], (2, 98))
        assert np.abs(got[..., i] - np.clip((shown[..., i] - low) / (high - low) * 255, 0, 255)).max() <= 1
    assert image_size(source) == (8, 6)
    # the same numbers as an array go the same way
    assert np.array_equal(pixels(read_image(np.moveaxis(data, 0, -1), fixed)), pixels(read_image(source, fixed)))


@pytest.mark.parametrize("kind", ["uint16", "int16", "int32", "float32", "float64"])
def test_single_band_of_wide_values(tmp_path, kind):
    data = np.arange(48).reshape(1, 8, 6).astype(kind)
    path = write_tif(tmp_path / "sar.tif", data)
    expected = np.clip(np.rint((data[0].astype(float) - 10) / 20 * 255), 0, 255)
    options = ImageOptions(stretch="fixed", stretch_range=(10, 30))
    for source in (path, data[0]):
        with pytest.raises(ImageError, match=rf"1 band\(s\) of {kind}, .*`stretch: percentile`"):
            read_image(source)
        got = pixels(read_image(source, options))
        assert np.abs(got[..., 0] - expected).max() <= 1 and (got[..., :1] == got).all()


def test_pil_wide_modes_follow_the_same_rule(tmp_path):
    for kind in (np.uint16, np.int32, np.float32):
        image = Image.fromarray(np.arange(48, dtype=kind).reshape(8, 6))
        with pytest.raises(ImageError, match="stretch: percentile"):
            read_image(image)
        got = pixels(read_image(image, ImageOptions(stretch="fixed", stretch_range=(0, 47))))
        assert got[0, 0, 0] == 0 and got[-1, -1, 0] == 255
    Image.fromarray(np.arange(48, dtype=np.uint16).reshape(8, 6) * 1000).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="of uint16"):
        read_image(tmp_path / "a.png")
    got = pixels(read_image(tmp_path / "a.png", ImageOptions(stretch="fixed", stretch_range=(0, 47000))))
    assert got[-1, -1].tolist() == [255] * 3


def test_16_bit_rgb_png_is_not_cut_to_its_high_bytes(tmp_path, monkeypatch):
    rasterio = pytest.importorskip("rasterio")
    data = np.random.default_rng(3).integers(0, 300, (3, 8, 6)).astype(np.uint16)
    with rasterio.open(tmp_path / "a.png", "w", driver="PNG", height=8, width=6, count=3, dtype="uint16") as file:
        file.write(data)
    with pytest.raises(ImageError, match=r"3 band\(s\) of uint16"):
        read_image(tmp_path / "a.png")
    got = pixels(read_image(tmp_path / "a.png", ImageOptions(stretch="fixed", stretch_range=(0, 255))))
    assert np.array_equal(got, np.moveaxis(np.minimum(data, 255), 0, -1))
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(ImageError, match=r"pip install rs-rlhf\[geo\]"):
        read_image(tmp_path / "a.png", ImageOptions(stretch="percentile"))


def test_8_bit_bands(tmp_path):
    data = np.random.default_rng(4).integers(0, 256, (5, 8, 6), dtype=np.uint8)
    gray = write_tif(tmp_path / "pan.tif", data[:1])
    assert np.array_equal(pixels(read_image(gray)), np.dstack([data[0]] * 3))
    five = write_tif(tmp_path / "five.tif", data, photometric="MINISBLACK")
    with pytest.raises(ImageError, match=r"5 band\(s\) of uint8.*image options `bands: \[4, 3, 2\]`"):
        read_image(five)
    assert np.array_equal(pixels(read_image(five, ImageOptions(bands=(5, 1, 2)))), np.moveaxis(data[[4, 0, 1]], 0, -1))
    two = write_tif(tmp_path / "two.tif", data[:2])
    with pytest.raises(ImageError, match=r"2 band\(s\) of uint8.*`bands: \[1\]`"):
        read_image(two)
    # near infrared that the writer flagged as alpha (GDAL's default for a fourth band): `bands` shows it as data
    four = write_tif(tmp_path / "four.tif", data[:4], photometric="RGB")
    for bands in ((1, 2, 3), (4, 1, 2)):
        expected = np.moveaxis(data[[band - 1 for band in bands]], 0, -1)
        assert np.array_equal(pixels(read_image(four, ImageOptions(bands=bands))), expected)
    # an explicit stretch stretches 8 bits too
    stretched = pixels(read_image(gray, ImageOptions(stretch="fixed", stretch_range=(0, 100))))
    assert np.abs(stretched[..., 0] - np.clip(data[0] * 2.55, 0, 255)).max() <= 1


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_gray_of_few_bits_is_not_nearly_black(tmp_path, bits):
    data = np.random.default_rng(5).integers(0, 2**bits, (1, 8, 6), dtype=np.uint8)
    path = write_tif(tmp_path / "a.tif", data, nbits=bits, photometric="MINISBLACK")
    assert np.array_equal(pixels(read_image(path))[..., 0], data[0] * (255 // (2**bits - 1)))


def test_premultiplied_alpha(tmp_path):
    """A TIFF may store colour already multiplied by alpha, which GDAL passes on without a word."""
    data = np.stack([np.full((2, 2), v, np.uint8) for v in (100, 50, 0, 128)])
    path = write_tif(tmp_path / "a.tif", data, photometric="RGB", alpha="PREMULTIPLIED")
    assert np.abs(pixels(read_image(path))[0, 0].astype(int) - (100 + 127, 50 + 127, 127)).max() <= 1


@pytest.mark.parametrize("own", [True, False])
def test_nodata_is_left_out_and_black(tmp_path, own):
    data = np.random.default_rng(6).uniform(1, 2, (1, 20, 20)).astype(np.float32)
    data[0, :10, :5], data[0, 0, 19], data[0, 1, 19] = -9999, np.nan, np.inf
    path = write_tif(tmp_path / "a.tif", data, **({"nodata": -9999} if own else {}))
    got = pixels(read_image(path, ImageOptions(stretch="percentile", nodata=None if own else -9999)))[..., 0]
    assert (got[:10, :5] == 0).all() and got[0, 19] == 0 and got[1, 19] == 0
    seen = np.isfinite(data[0]) & (data[0] != -9999)
    low, high = np.percentile(data[0][seen], (2, 98))
    assert np.abs(got[seen] - np.clip((data[0][seen] - low) / (high - low) * 255, 0, 255)).max() <= 1


def test_nodata_of_8_bit_needs_every_band(tmp_path, rgb):
    rgb[0, 0], rgb[0, 1] = 255, (255, 10, 20)  # nodata, and a saturated red that is not
    path = write_tif(tmp_path / "a.tif", np.moveaxis(rgb, -1, 0), nodata=255)
    got = pixels(read_image(path))
    assert got[0, 0].tolist() == [0, 0, 0] and got[0, 1].tolist() == [255, 10, 20]
    assert pixels(read_image(path, ImageOptions(nodata=7)))[0, 0].tolist() == [255] * 3  # over the file's own


def test_nodata_everywhere_and_flat_bands_are_errors(tmp_path):
    path = write_tif(tmp_path / "a.tif", np.zeros((3, 4, 4), np.uint8), nodata=0)
    with pytest.raises(ImageError, match="a.tif': every pixel is nodata"):
        read_image(path)
    with pytest.raises(ImageError, match="every pixel is nodata"):
        read_image(np.full((4, 4), np.nan), ImageOptions(stretch="percentile"))
    with pytest.raises(ImageError, match="percentiles 2 and 98 of a band are both 5.*`stretch: fixed`"):
        read_image(np.full((4, 4), 5.0), ImageOptions(stretch="percentile"))
    half = np.dstack([np.arange(16.0).reshape(4, 4), np.arange(16.0).reshape(4, 4), np.full((4, 4), -1.0)])
    with pytest.raises(ImageError, match="a chosen band is nodata everywhere"):
        read_image(half, ImageOptions(stretch="percentile", nodata=-1))


def test_mask_in_the_file_counts_as_nodata(tmp_path, rgb):
    rasterio = pytest.importorskip("rasterio")
    mask = np.full((8, 6), 255, np.uint8)
    mask[2, 3] = 0
    profile = {"driver": "GTiff", "height": 8, "width": 6, "count": 3, "dtype": "uint8"}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(tmp_path / "a.tif", "w", **profile) as file:
        file.write(np.moveaxis(rgb, -1, 0))
        file.write_mask(mask)
    rgb[2, 3] = 0
    assert np.array_equal(pixels(read_image(tmp_path / "a.tif")), rgb)


def test_palette_tiff_has_its_colours_and_nodata_is_an_index(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    profile = {"driver": "GTiff", "height": 1, "width": 3, "count": 1, "dtype": "uint8", "nodata": 2}
    with rasterio.open(tmp_path / "a.tif", "w", photometric="palette", **profile) as file:
        file.write(np.array([[[0, 1, 2]]], np.uint8))
        file.write_colormap(1, {0: (255, 0, 0, 255), 1: (2, 2, 2, 255), 2: (9, 8, 7, 255)})
    assert pixels(read_image(tmp_path / "a.tif")).tolist() == [[[255, 0, 0], [2, 2, 2], [0, 0, 0]]]
    got = pixels(read_image(tmp_path / "a.tif", ImageOptions(nodata=0)))
    assert got.tolist() == [[[0, 0, 0], [2, 2, 2], [9, 8, 7]]]


def test_complex_and_odd_arrays_are_refused(tmp_path):
    path = write_tif(tmp_path / "slc.tif", np.ones((1, 4, 4), np.complex64))
    for source in (path, np.ones((4, 4), complex)):
        with pytest.raises(ImageError, match="holds complex64 values.*magnitude"):
            read_image(source, ImageOptions(stretch="percentile"))
    for bad in (np.zeros(5, np.uint8), np.zeros((1, 2, 3, 4), np.uint8)):
        with pytest.raises(ImageError, match=r"expected an array \(H, W\) or \(H, W, C\)"):
            read_image(bad)
    with pytest.raises(ImageError, match="has no pixels"):
        read_image(np.zeros((0, 5, 3), np.uint8))
    with pytest.raises(ImageError, match=r"array \(3, 8, 6\) uint8.*has 6 band"):
        read_image(np.zeros((3, 8, 6), np.uint8))
    assert pixels(read_image(np.array([[True, False]]))).tolist() == [[[255] * 3, [0] * 3]]


@pytest.mark.parametrize(("endian", "big"), [("LITTLE", "YES"), ("BIG", "NO"), ("BIG", "YES")])
def test_every_tiff_header(tmp_path, rgb, endian, big):
    path = write_tif(tmp_path / "a.tif", np.moveaxis(rgb, -1, 0), endianness=endian, bigtiff=big)
    assert np.array_equal(pixels(read_image(path)), rgb) and image_size(path) == (8, 6)


def test_without_rasterio(tmp_path, rgb, monkeypatch):
    many = np.ones((4, 8, 6), np.uint16)
    paths = [
        write_tif(tmp_path / "many.tif", many),
        write_tif(tmp_path / "wide.tif", many[:3] * 3000, photometric="RGB"),  # Pillow drops its low bytes
        write_tif(tmp_path / "two.tif", many[:2].astype(np.uint8)),  # Pillow shows it as gray
        write_tif(tmp_path / "u32.tif", many[:1].astype(np.uint32)),
    ]
    plain = write_tif(tmp_path / "plain.tif", np.moveaxis(rgb, -1, 0))
    gray = write_tif(tmp_path / "gray.tif", np.arange(1, 49).reshape(1, 8, 6).astype(np.uint16), nodata=1)
    stretch = ImageOptions(stretch="fixed", stretch_range=(0, 48))
    with_rasterio = pixels(read_image(gray, stretch))
    monkeypatch.setitem(sys.modules, "rasterio", None)
    for path in paths:
        with pytest.raises(ImageError, match=rf"row 2: image .*{Path(path).name}.*pip install rs-rlhf\[geo\]"):
            read_image(path, ImageOptions(bands=(1,), stretch="percentile"), "row 2")
        assert image_size(path) == (8, 6)
    assert np.array_equal(pixels(read_image(plain)), rgb)
    assert np.array_equal(pixels(read_image(gray, stretch)), with_rasterio) and with_rasterio[0, 0, 0] == 0


def test_real_geotiffs_equal_rasterios_own_pixels(monkeypatch):
    rasterio = pytest.importorskip("rasterio")
    folder = data_folder("rsvqa_tif")
    truth = {}
    for path in sorted(folder.glob("*.tif")):
        with rasterio.open(path) as file:
            truth[path] = np.moveaxis(file.read(), 0, -1)
    assert {array.shape for array in truth.values()} == {(256, 256, 3), (512, 512, 3)}
    options = ImageOptions(image_root=str(folder))
    for path, array in truth.items():
        assert np.array_equal(pixels(read_image(path.name, options)), array)
        assert np.array_equal(pixels(read_image(path.read_bytes())), array)
        assert image_size(path) == array.shape[:2]
    assert len({pixel_hash(path) for path in truth}) == len(truth)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    for path, array in truth.items():
        assert np.array_equal(pixels(read_image(path)), array)
