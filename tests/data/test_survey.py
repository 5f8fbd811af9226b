import json

import pytest

from rs_rlhf.data.image_text_dataset import open_image_texts
from rs_rlhf.data.survey import announce_texts
from rs_rlhf.errors import DataError


def write(folder, *rows):
    path = folder / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_image_texts(path)


def test_rows_are_counted_as_they_are_read(tmp_path, capsys):
    """A row that the reader refuses is neither pictured nor text-only."""
    rows = [
        {"file": "a.png", "caption": "x"},
        {"file": None, "caption": "x"},
        {"file": float("nan"), "caption": "x"},
        {"image": "", "caption": "x"},
        {"one": "a.png", "other": "b.png", "caption": "x"},
    ]
    data = write(tmp_path, *rows)
    announce_texts(data, None)
    line = "3 rows, 1 with images (column file), 2 text-only; captions; 2 cannot be read\n"
    assert capsys.readouterr().out == line
    (tmp_path / "a.png").touch()
    assert [len(row.images) for row in data if row.error is None] == [1, 0, 0]


@pytest.mark.parametrize("text", ["image,caption\n", "image;caption\r\n"])
def test_a_file_of_a_header_has_no_rows(tmp_path, text):
    (tmp_path / "t.csv").write_text(text)
    data = open_image_texts(tmp_path / "t.csv")
    with pytest.raises(DataError) as error:
        announce_texts(data, None)
    assert str(error.value.where) == str(tmp_path / "t.csv")
