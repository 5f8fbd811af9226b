"""Whether two images are the same: by source, by bytes, by pixels, by look."""

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from rs_rlhf.errors import ImageError
from rs_rlhf.imagery.identity import encoded_hash, perceptual_hash, pixel_hash, source_key
from rs_rlhf.imagery.raster import ImageOptions


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)


def png(picture):
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def test_source_keys_of_files_and_bytes(tmp_path):
    path = tmp_path / "a.png"
    assert source_key(path) == source_key(str(path)) == source_key({"bytes": None, "path": str(path)}) == str(path)
    assert source_key(b"x") == source_key({"bytes": bytearray(b"x"), "path": "b.png"}) != source_key(b"y")


def test_pictures_in_memory_are_told_apart_by_object_or_by_content(rgb):
    first, second = Image.fromarray(rgb), Image.fromarray(rgb.copy())
    assert source_key(first) == source_key(first) != source_key(second)
    pictures = {}
    assert source_key(first, pictures) == source_key(second, pictures) and len(pictures) == 2
    assert source_key(rgb, pictures) != source_key(rgb.reshape(6, 8, 3), pictures)
    palettes = [Image.new("P", (4, 4), 1), Image.new("P", (4, 4), 1)]
    palettes[1].putpalette([9, 9, 9] * 2)
    assert source_key(palettes[0], pictures) != source_key(palettes[1], pictures)
    broken = Image.open(io.BytesIO(png(Image.fromarray(rgb))[:80]))
    with pytest.raises(ImageError, match="cannot be decoded, the file is truncated or corrupt"):
        source_key(broken, pictures)


def test_encoded_hash_is_of_the_bytes(tmp_path, rgb):
    content = png(Image.fromarray(rgb))
    (tmp_path / "a.png").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    assert encoded_hash(tmp_path / "a.png") == encoded_hash(content) == encoded_hash({"bytes": content}) == digest
    assert encoded_hash("a.png", ImageOptions(image_root=str(tmp_path))) == digest
    with pytest.raises(ImageError, match="row 3: image 'gone.png': no such file"):
        encoded_hash("gone.png", where="row 3")
    with pytest.raises(ImageError, match="is decoded already, expected a file or encoded bytes"):
        encoded_hash(rgb)


def test_perceptual_hash_is_phash(rgb):
    imagehash = pytest.importorskip("imagehash", reason='imagehash is not installed (pip install "rs-rlhf[curation]")')
    image = Image.fromarray(rgb).resize((64, 64))
    assert f"{perceptual_hash(image):016x}" == str(imagehash.phash(image))


def test_pixel_hash_is_of_the_picture(tmp_path, rgb):
    image = Image.fromarray(rgb)
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.tif", compression="tiff_lzw")
    hashes = {pixel_hash(source) for source in (tmp_path / "a.png", tmp_path / "b.tif", image, rgb)}
    assert len(hashes) == 1 and len(hashes.pop()) == 64
    assert pixel_hash(rgb) != pixel_hash(rgb.reshape(6, 8, 3))  # the same bytes in another shape
    other = rgb.copy()
    other[0, 0, 0] ^= 1
    assert pixel_hash(other) != pixel_hash(rgb)
