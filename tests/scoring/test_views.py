"""`show` and `table`: the scores of `score`, ranked, with thumbnails, for a notebook and a terminal."""

import subprocess
import sys

import pytest
from helpers import picture

from rs_rlhf import make_group
from rs_rlhf.data.group import completion_text
from rs_rlhf.errors import DataError, OptionError
from rs_rlhf.scoring.base import ScoreTexts
from rs_rlhf.scoring.best_of_n import BestAnswer
from rs_rlhf.scoring.views import ROWS, Thumbnail


class Length(ScoreTexts):
    """Scores a text by its length."""

    def score_groups(self, groups, **_):
        return [[float(len(completion_text(messages))) for messages in group.completions] for group in groups]


GIVEN = {
    "images": [picture(0), None],
    "prompts": ["What <i>is</i> it?", None],
    "completions": [["a", "a river", "port"], ["<b>town</b>"]],
}


def test_show_has_the_scores_of_score_and_ranks_its_texts():
    shown = Length().show(**GIVEN)
    assert shown.scores == Length().score(**GIVEN) == [[1.0, 7.0, 4.0], [11.0]]
    lines = repr(shown).splitlines()
    assert [line.split()[-1] for line in lines[1:4]] == ["river", "port", "a"]
    html = shown._repr_html_()
    assert html.index("a river") < html.index("port") and html.count("data:image/jpeg") == 1
    assert "<b>town" not in html and "&lt;b&gt;town" in html
    few = Length().show(**GIVEN, most=1)
    assert "1 more group(s) not shown" in few._repr_html_() and repr(few).endswith("1 more group(s) not shown")
    assert few.scores == shown.scores, "all are scored"


def test_a_table_has_a_row_for_each_text_and_shows_thumbnails():
    table = Length().table(**GIVEN)
    assert list(table.columns) == ["group", "image", "prompt", "completion", "score", "rank"]
    assert table["score"].tolist() == [1.0, 7.0, 4.0, 11.0] and table["rank"].tolist() == [3, 1, 2, 1]
    best = table[table["rank"] == 1].sort_values("score", ascending=False)
    html = best._repr_html_()
    assert html.index("town") < html.index("a river"), "a table made of it shows thumbnails too"
    assert html.count("<img src=") == 1 and "&lt;b&gt;town" in html and "<b>town" not in html and "<i>is" not in html
    assert isinstance(table["image"][0], Thumbnail) and table["image"][3] is None


def test_a_table_says_what_it_does_not_show():
    many = {"images": [picture(i) for i in range(3)], "completions": [["a"] * ROWS] * 3}
    html = Length().table(**many, most=1)._repr_html_()
    assert "400 more rows are not shown." in html and "2 more groups have no thumbnail here." in html
    assert html.count("<img") == ROWS


def test_columns_and_names_that_a_user_adds_are_text():
    table = Length().table(completions=[["a"]])
    table["<u>mine</u>"] = ["<u>x</u>"]
    html = table.set_index("<u>mine</u>")._repr_html_()
    assert "<u>" not in html and "&lt;u&gt;x" in html


@pytest.mark.parametrize("call", ["show", "table"])
def test_errors_are_those_of_score(call):
    with pytest.raises(OptionError):
        getattr(Length(), call)(images=["a.png"], completions=[["a"], ["b"]])
    with pytest.raises(DataError):
        getattr(Length(), call)(completions=[[3]])
    with pytest.raises(OptionError) as error:
        getattr(Length(), call)(completions=[["a"]], most=-1)
    assert error.value.key == "most"


def test_the_best_of_n_shows_each_answer_once_with_its_count():
    best = BestAnswer("port", 2.0, ["port", "a <b>", "port"], [2.0, -1.0, 2.0], 3, 0)
    html = best._repr_html_()
    assert html.count("port") == 1 and "2 of 3" in html and "1 of 3" in html and "&lt;b&gt;" in html


def test_pandas_is_not_imported_before_it_is_needed():
    code = "import sys, rs_rlhf.scoring.base, rs_rlhf.scoring.views; print('pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_group_shows_itself():
    html = make_group("Rural or urban?", ["urban"], picture(1))._repr_html_()
    assert "Rural or urban?" in html and "data:image/jpeg" in html
