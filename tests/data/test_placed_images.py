"""Images beside an output: what is found stays, the rest is written once, and nothing is replaced unasked."""

import json

import pytest
from helpers import picture

from rs_rlhf.data.placed_images import OutputOptions, check_output, numbered, place_images, stored_image
from rs_rlhf.errors import DataError, ImageError, OptionError


@pytest.fixture
def content(tmp_path):
    picture(0).save(tmp_path / "a.png")
    return (tmp_path / "a.png").read_bytes()


def test_stored_images(tmp_path, content):
    assert stored_image(content, "", str(tmp_path)) == {"bytes": content, "path": None}
    assert stored_image({"bytes": content, "path": "x"}, "", str(tmp_path)) == {"bytes": content, "path": "x"}
    assert stored_image("a.png", "", str(tmp_path)) == str((tmp_path / "a.png").resolve())
    for missing in (None, "", {"path": None}, 3):
        with pytest.raises(DataError) as error:
            stored_image(missing, "x.jsonl, line 1", str(tmp_path))
        assert (error.value.key, error.value.where) == ("image", "x.jsonl, line 1")
    with pytest.raises(ImageError):
        stored_image("../a.png", "", str(tmp_path / "in"))


def placed(root, rows, overwrite=False):
    written = place_images(rows, root, root / "images", overwrite, checked=False)
    return written, [row["image"] for row in rows]


def test_images_are_written_or_found(tmp_path, content):
    out = tmp_path / "out"
    out.mkdir()
    (out / "b.png").write_bytes(content)

    def rows():
        images = [{"bytes": content, "path": None}, str(tmp_path / "a.png"), str(out / "b.png")]
        return [{"image": image, "id": name} for image, name in zip(images, ("x", "../y.png", "z.png"), strict=True)]

    assert placed(out, rows()) == (2, ["images/x.png", "images/y.png", "b.png"])
    assert placed(out, rows()) == (2, ["images/x.png", "images/y.png", "b.png"])  # the same content
    (out / "images" / "x.png").write_bytes(b"other")
    with pytest.raises(OptionError):
        placed(out, rows())
    assert placed(out, rows(), overwrite=True)[0] == 2 and (out / "images" / "x.png").read_bytes() == content
    with pytest.raises(DataError) as error:
        placed(out, [{"image": {"bytes": content}, "id": "x"}, {"image": {"bytes": content}, "id": "x.png"}])
    assert error.value.key == "id"
    with pytest.raises(ImageError):
        placed(out, [{"image": {"bytes": b"no image"}, "id": "w"}])
    with pytest.raises(OptionError) as error:
        place_images([], out, tmp_path, False, False)
    assert error.value.key == "images_dir"


def test_outputs(tmp_path, content, capsys):
    options = OutputOptions(output=tmp_path / "out" / "x.jsonl")
    check_output(options.output, options.overwrite)
    rows = [{"image": {"bytes": content, "path": None}, "id": "x"}]
    made = [{"image": row["image"], "text": "é"} for row in numbered(rows) * 2]
    options.write(made, rows, False, "images/all", "rows")
    lines = options.output.read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"image": "images/all/x.png", "text": "é"}] * 2
    assert "2 rows -> " in capsys.readouterr().out
    for output in (options.output, tmp_path / "x.parquet"):
        with pytest.raises(OptionError) as error:
            check_output(output, False)
        assert error.value.key == "output"
    check_output(options.output, True)
