"""The column resolver: which column holds the image, the texts and the class."""

import pytest

from rs_rlhf.data.columns import caption_column, check_columns, image_column, label_of, text_column
from rs_rlhf.errors import DataError


@pytest.mark.parametrize(
    ("row", "image", "text"),
    [
        ({"image": "a", "captions": ["x"]}, "image", "captions"),
        ({"filepath": "a", "title": "x"}, "filepath", "title"),
        ({"jpg": b"", "txt": "x", "caption": "y"}, "jpg", "txt"),
        ({"image": None, "images": ["a"], "text": "x", "title": "y"}, "images", "text"),
        ({"image": "a", "image_path": "b", "prompt": "x"}, "image", None),
        ({"question": "x", "answer": "y", "captions": ["z"]}, None, "question"),
        ({"question": "x", "captions": ["z"], "img": None}, None, "captions"),
        ({"conversations": [1], "messages": [2]}, None, "conversations"),
    ],
)
def test_precedence_of_names(row, image, text):
    assert (image_column(row), text_column(row)) == (image, text)


def test_named_columns_come_first():
    row = {"image": "a", "scene": "b", "captions": ["x"], "say": None}
    assert (image_column(row, "scene"), text_column(row, "say")) == ("scene", "say")


@pytest.mark.parametrize(
    ("row", "key"),
    [({"image": "a", "images": ["b"]}, "images"), ({"image_name": "a"}, "image_name"), ({"img": "a", "x": 1}, "img")],
)
def test_images_that_cannot_be_told(row, key):
    with pytest.raises(DataError) as error:
        image_column(row)
    assert error.value.key == key


def test_captions_and_classes():
    assert caption_column({"captions": [], "caption": "x", "title": "y"}) == "caption"
    assert caption_column({"question": "x"}) is None
    assert label_of({"label": None, "class": "Port"}) == "Port" and label_of({}) is None
    assert [label_of({"label": i}, {"label": ["Port"]}) for i in (0, -1, 1)] == ["Port", None, None]
    assert label_of({"label": 3}) == 3


def test_columns_of_a_file():
    check_columns(["image", "captions", "image_path"], None, None)
    check_columns(["caption"], None, None)
    check_columns(["img", "say"], "img", "say")
    cases = [
        (["a", "b"], None, None, ""),
        (["prompt", "image"], None, None, ""),
        (["a", "b"], None, "c", "c"),
        (["image", "caption"], "c", None, "c"),
        (["file_name", "caption"], None, None, "file_name"),
    ]
    for columns, image, text, key in cases:
        with pytest.raises(DataError) as error:
            check_columns(columns, image, text)
        assert error.value.key == key
    with pytest.raises(DataError, match="no text column; the columns are a, b, expected .*image_column"):
        check_columns(["a", "b"], None, None)
