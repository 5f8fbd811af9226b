"""Files as strangers have them, in the commands beside those of the matrix of forms."""

from pathlib import Path

import pytest
from helpers.form_files import CAPTIONED, CAPTIONS, LABELLED, PREFERENCES, lines

from rs_rlhf.cli.main import main
from rs_rlhf.curation.shards import read_scores


def marked_lines(folder):
    """Captioned rows with classes as JSON lines that begin with a mark of UTF-8."""
    rows = [{"image": f"tile_{i}.png", "captions": [text], "label": "ab"[i % 2]} for i, text in enumerate(CAPTIONS)]
    (path,) = lines(folder, rows)
    content = Path(path).read_bytes()
    Path(path).write_bytes(b"\xef\xbb\xbf" + content)
    return path


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_marks_of_utf_8_are_no_part_of_a_name_in_any_command(tmp_path, form):
    path, *_ = LABELLED["semicolons"](tmp_path, 0)
    path = path if form == "csv" else marked_lines(tmp_path)
    assert main(["data", "pairs", "--input", path, "--output", str(tmp_path / "pairs.jsonl")]) == 0
    assert '"chosen"' in (tmp_path / "pairs.jsonl").read_text()
    assert main(["tiny-vlm", str(tmp_path / "vlm"), "--texts", path]) == 0


def test_the_index_of_a_spreadsheet_is_no_class(tmp_path):
    path, *_ = CAPTIONED["index"](tmp_path, 0)
    out = tmp_path / "scores"
    assert main(["score", "--scorer", "length", "--input", path, "--output", str(out)]) == 0
    assert read_scores(out)["label"].to_pylist() == [""] * len(CAPTIONS)


def test_two_texts_of_unknown_names_are_an_error_that_lists_them(tmp_path, capsys):
    path, *_ = PREFERENCES["named"](tmp_path, 0)
    assert main(["data", "check", path, "--columns", "image=after"]) == 1
    printed = capsys.readouterr().out
    assert "better, worse" in printed and "--columns chosen=COLUMN rejected=COLUMN" in printed
