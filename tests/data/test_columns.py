"""The column resolver: which column holds the image, the texts and the class, by values and by names."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rs_rlhf.data.columns import (
    IMAGE_COLUMNS,
    ColumnOptions,
    Columns,
    caption_column,
    find_columns,
    image_column,
    is_image,
    label_of,
    parse_columns,
    question_and_answer,
    text_column,
)
from rs_rlhf.errors import DataError, OptionError

PNG = b"\x89PNG\r\n\x1a\n..."


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
        ({"query": "x", "response": "y", "title": "z"}, None, "query"),
        ({"text": "How many?", "ground_truth": "3"}, None, "text"),
    ],
)
def test_precedence_of_names(row, image, text):
    assert (image_column(row), text_column(row)) == (image, text)


@pytest.mark.parametrize(
    "name", ["filename", "file_name", "path", "file", "name", "image_id", "Tile No.", "id", "source"]
)
@pytest.mark.parametrize(
    "value",
    ["tile_1.png", "a/b/TILE 2.TIF", PNG, {"bytes": PNG, "path": None}, {"path": "x.jpeg"}, ["a.png", "b.jp2"]],
)
def test_any_column_whose_values_are_images_is_the_column_of_images(name, value):
    assert image_column({"caption": "a river .", "n": 3, name: value}) == name


@pytest.mark.parametrize(
    "value",
    ["a river .", "tile_1", "x.csv", "see\ntile.png", "", 3, None, True, b"abc", {"path": None}, [], ["a.png", 3], {}],
)
def test_what_looks_like_no_image(value):
    assert not is_image(value)
    assert image_column({"caption": "a", "file": value}) is None


def test_pictures_and_arrays_are_images_vectors_are_not():
    assert is_image(Image.new("RGB", (2, 2))) and is_image(np.zeros((4, 4, 3)))
    assert not is_image(np.zeros(16)) and not is_image(np.zeros((4, 4)))


def test_texts_are_never_images():
    assert image_column({"caption": "a.png", "prompt": "b.png", "chosen": "c.png", "label": "d.png"}) is None


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"image": {"bytes": PNG, "path": None}, "image_path": "source_1.jpg"}, "image"),
        ({"tile": {"bytes": PNG, "path": "a.png"}, "file": "b.png"}, "tile"),
        ({"image": 17, "file": "b.png"}, "file"),
        ({"image": "tile_17", "file": "tile_17.png"}, "file"),
        ({"id": "a.png", "file": "b.png"}, "file"),
        ({"url": "http://example.org/a.png", "file": "b.png"}, "file"),
        ({"url": "http://example.org/a.png"}, "url"),
        ({"image": "a.png", "images": ["a.png"]}, None),
        ({"images": [], "file": "a.png"}, "images"),
        ({"image": "a.png", "images": []}, "image"),
        ({"image": None, "file": "a.png"}, "file"),
        ({"image": "", "caption": "x"}, "image"),
    ],
)
def test_the_column_that_is_meant(row, column):
    if column is None:
        with pytest.raises(DataError) as error:
            image_column(row)
        assert error.value.key == "images"
    else:
        assert image_column(row) == column


@pytest.mark.parametrize(
    ("row", "keys"),
    [
        ({"image": "a", "images": ["b"]}, ("image", "images")),
        ({"before": "a.png", "after": "b.png"}, ("before", "after")),
        ({"image": "a.png", "filepath": "b.png"}, ("image", "filepath")),
    ],
)
def test_two_columns_of_images_are_an_error_that_names_both_and_the_flag(row, keys):
    with pytest.raises(DataError) as error:
        image_column(row)
    assert error.value.key == keys[1] and keys[0] in error.value.detail and "--columns image=" in error.value.detail
    assert image_column(Columns({"image": keys[0]}).of(row)) == "image"


def test_files_without_a_suffix_are_found_in_the_root(tmp_path):
    (tmp_path / "P0001").write_bytes(PNG)
    (tmp_path / "notes").write_bytes(b"text")
    (tmp_path / "harbour").mkdir()
    row = {"scene": "harbour", "tile": "P0001", "by": "notes", "n": "\0"}
    assert image_column(row) is None and image_column(row, str(tmp_path)) == "tile"


def test_the_column_found_in_the_first_rows_holds_for_all():
    rows = [{"file": None, "caption": "x"}, {"file": "a.png", "caption": "x"}]
    columns = find_columns(rows)
    assert columns.found == "file"
    assert columns.of({"file": "", "caption": "x"}) == {"image": "", "caption": "x"}  # missing, not text-only
    assert columns.of({"image": PNG, "caption": "x"})["image"] == PNG
    assert find_columns([{"image": "a.png"}, {"file": "b.png"}]).found == ""
    with pytest.raises(DataError):
        find_columns([{"file": "a.png"}, {"tile": "b.png"}])


def test_named_columns():
    row = {"filename": "a.png", "image": "b.png", "better": "x", "worse": "y", "title": "z", "n": 1}
    columns = Columns({"image": "filename", "chosen": "better", "rejected": "worse"})
    assert columns.of(row) == {"image": "a.png", "chosen": "x", "rejected": "y", "title": "z", "n": 1}
    named = Columns({"text": "better"}).of(row)
    assert named["text"] == "x" and not {"better", "title"} & set(named)
    assert Columns({"label": ""}).of({"label": "a", "n": 1}) == {"n": 1}
    with pytest.raises(DataError) as error:
        columns.of({"better": "x", "worse": "y"})
    assert error.value.key == "filename"


def test_text_only_leaves_every_image_out():
    row = {"image": "a.png", "file": "b.png", "tile": PNG, "prompt": "c.png", "n": 1}
    assert Columns({"image": ""}).of(row) == {"prompt": "c.png", "n": 1}


def test_options():
    assert ColumnOptions(columns=["image=a b", "text=x=y"]).named_columns() == {"image": "a b", "text": "x=y"}
    assert ColumnOptions(columns={"image": "a"}).named_columns() == {"image": "a"}
    assert ColumnOptions(image_column="a", text_column="b").named_columns() == {"image": "a", "text": "b"}
    assert ColumnOptions(text_only=True).named_columns() == {"image": ""}
    for wrong in (["rejekted=x"], {"image": 3}):
        with pytest.raises(OptionError) as error:
            parse_columns(wrong)
        assert error.value.key == "columns"
    with pytest.raises(OptionError):
        ColumnOptions(columns=["image=a"], text_only=True).named_columns()


def test_questions_and_answers():
    assert question_and_answer({"prompt": "x", "completion": "y"}) == ("prompt", "completion")
    assert question_and_answer({"instruction": "x", "output": "y"}) == ("instruction", "output")
    assert question_and_answer({"text": "x", "output": "y"}) is None
    assert question_and_answer({"question": "x", "answer": None}) is None


def test_captions_and_classes():
    assert caption_column({"captions": [], "caption": "x", "title": "y"}) == "caption"
    assert caption_column({"question": "x"}) is None
    assert label_of({"label": None, "class": "Port"}) == "Port" and label_of({}) is None
    assert label_of({"": 3, "caption": "x"}) is None  # the index of `to_csv`
    assert [label_of({"label": i}, {"label": ["Port"]}) for i in (0, -1, 1)] == ["Port", None, None]
    assert label_of({"label": 3}) == 3


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.sampled_from(["a.png", "b.TIF", "http://x.org/c.jpg", PNG]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["bytes", "path", "x"]), inner, max_size=2)
    ),
    max_leaves=4,
)
NAMES = st.text(max_size=6) | st.sampled_from([*IMAGE_COLUMNS, "filename", "caption", "text", "id", "label", "chosen"])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.dictionaries(NAMES, VALUES, max_size=5))
def test_any_row_has_an_image_column_or_none_or_a_data_error(row):
    try:
        column = image_column(row)
    except DataError as error:
        assert sum(is_image(value) or key in IMAGE_COLUMNS for key, value in row.items()) > 1 and error.key in row
        return
    text_column(row), label_of(row)
    if column is None:
        unread = {key for key in row if is_image(row[key])} - {"caption", "text", "label", "chosen", ""}
        assert not unread
    else:
        fields = find_columns([row]).of(row)
        assert fields.get(column, fields.get("image")) is row[column]


@pytest.mark.parametrize("value", [None, float("nan"), {"bytes": None, "path": None}])
def test_null_and_what_stands_for_it_are_no_image(value):
    assert image_column({"image": value, "caption": "x"}) is None
    assert image_column({"image": value, "file": "a.png"}) == "file"


def test_a_field_is_named_once():
    with pytest.raises(OptionError) as error:
        parse_columns(["image=a", "image=b"])
    assert error.value.key == "columns" and parse_columns(["image=a", "image=a"]) == {"image": "a"}
