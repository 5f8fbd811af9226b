"""The table of `docs/answers.md` is what the metric does on the hard answers."""

import re

from helpers import ROOT
from helpers.answer_table import counted


def test_the_table_is_true():
    text = (ROOT / "docs" / "answers.md").read_text(encoding="utf-8")
    text = text.partition("At first sight")[0]
    rows = re.findall(r"^\| ([a-z][\w/ ]*) \| (\d+) \| \d+ \| (\d+) \| (\d+) \| \d+ \| (\d+) \|$", text, re.M)
    stated = {name: tuple(map(int, figures)) for name, *figures in rows}
    columns = ("not right", "called right", "right", "missed")
    assert stated == {name: tuple(row[column] for column in columns) for name, row in counted().items()}
