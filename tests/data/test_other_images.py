"""The shuffle control's rule: another picture, the same whatever the order, repetition or names of the rows."""

import io
import random

import pytest
from PIL import Image

from rs_rlhf.data.group import make_group
from rs_rlhf.data.other_images import other_images, partners_of, picture_keys, with_other_images
from rs_rlhf.imagery.sources import ImageOptions


def shown(rows, seed=0):
    """What each row is shown, by its keys."""
    partners = other_images(rows, seed)
    return {tuple(row): None if j is None else tuple(rows[j]) for row, j in zip(rows, partners, strict=True)}


def test_no_row_sees_its_own_picture_and_every_picture_is_seen_once():
    rows = [[f"p{i}"] for i in range(9)]
    found = shown(rows)
    assert all(other is not None and other != row for row, other in found.items())
    assert sorted(found.values()) == sorted(found)
    assert found == shown(rows) and found != shown(rows, seed=1)


def test_order_and_repeated_rows_do_not_matter():
    rows = [[f"p{i}"] for i in range(9)] + [[f"p{i}", f"p{i + 1}"] for i in range(4)]
    again = rows * 3
    random.Random(0).shuffle(again)
    assert shown(again) == shown(rows)


@pytest.mark.parametrize(
    ("rows", "partners"),
    [
        ([], []),
        ([[], []], [None, None]),
        ([["a"]], [None]),
        ([["a"], ["a"]], [None, None]),
        ([["a"], ["b"], ["a"], []], [1, 0, 1, None]),
        ([["a", "b"], ["c"]], [None, None]),
        ([["a", "b"], ["b", "c"]], [None, None]),  # they share a picture
        ([["a", "b"], ["b", "a"], ["c", "d"]], [2, 2, 0]),
    ],
)
def test_who_has_a_partner(rows, partners):
    assert other_images(rows) == partners


def test_pictures_are_compared_by_their_pixels(tmp_path):
    for name, colour in (("a.png", "red"), ("copy.bmp", "red"), ("b.png", "blue")):
        Image.new("RGB", (4, 4), colour).save(tmp_path / name)
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(stream, "PNG")
    reds = ["a.png", "copy.bmp", {"bytes": stream.getvalue(), "path": None}, Image.new("RGB", (4, 4), "red")]
    groups = [make_group("", ["x"], image) for image in [*reds, "b.png"]]
    options = ImageOptions(image_root=str(tmp_path))
    assert partners_of(groups, options) == [4, 4, 4, 4, 0]
    assert [g.images for g in with_other_images(groups, options)] == [["b.png"]] * 4 + [["a.png"]]
    assert partners_of(groups[:4], options) == [None] * 4
    assert with_other_images(groups[:4], options) == groups[:4]


def test_images_that_cannot_be_read_are_told_apart_by_their_names():
    keys = picture_keys([["missing.png"], ["other.png"], ["missing.png"]])
    assert keys[0] == keys[2] != keys[1]
