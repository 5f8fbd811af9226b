"""Groups as HTML: the best text first, nothing of the data is markup, pictures are small and counted."""

import base64
import io
import re

import pytest
from helpers import picture
from PIL import Image

from rs_rlhf import make_group
from rs_rlhf.data.views import IMAGES, TEXTS, groups_html
from rs_rlhf.imagery.sources import ImageOptions

HOSTILE = '<script>alert("x")</script> & <b>'


def texts_of(html):
    return re.findall(r'min-width: 0">([^<]*?)<', html)


def test_the_best_text_comes_first_and_bars_span_all_scores():
    groups = [make_group("Q", ["bad", "good"]), make_group("", ["middling"])]
    html = groups_html(groups, [[-1.0, 3.0], [1.0]])
    assert [text.strip() for text in texts_of(html)] == ["good", "bad", "middling"]
    assert re.findall(r"height: 100%; width: ([\d.]+)%", html) == ["100.0", "5.0", "52.5"]
    assert [value for value in ("3.000", "-1.000", "1.000") if value in html] == ["3.000", "-1.000", "1.000"]


def test_without_scores_texts_keep_their_order():
    html = make_group("Q", ["first", "second"])._repr_html_()
    assert [text.strip() for text in texts_of(html)] == ["first", "second"] and "height: 100%" not in html


def test_nothing_of_the_data_is_markup():
    group = make_group(HOSTILE, [HOSTILE], "missing<b>.png", where=HOSTILE)
    html = groups_html([group], [[1.0]], notes=[[HOSTILE]])
    assert "<script" not in html and "<b>" not in html
    assert html.count("&lt;script&gt;") == 4, "the question, the text, the note and the place"
    assert "no picture:" in html, "an image that cannot be read is said, not raised"


def test_thumbnails_are_small_and_what_is_not_shown_is_counted():
    large = [picture(i, 1200, 900) for i in range(IMAGES + 2)]
    groups = [make_group("", [f"text {i}" for i in range(TEXTS + 4)], large), *[make_group("", ["a"])] * 5]
    html = groups_html(groups, most=2)
    images = re.findall(r"data:image/jpeg;base64,([\w+/=]+)", html)
    assert len(images) == IMAGES
    assert all(max(Image.open(io.BytesIO(base64.b64decode(one))).size) <= 160 for one in images)
    assert "2 more image(s) not shown" in html and "4 more text(s) not shown" in html
    assert "4 more group(s) not shown" in html


def test_images_are_read_as_the_scorer_reads_them(tmp_path):
    (tmp_path / "a").mkdir()
    picture(0).save(tmp_path / "a" / "x.png")
    group = make_group("", ["a"], "x.png")
    assert "data:image" in groups_html([group], options=ImageOptions(image_root=str(tmp_path / "a")))
    assert "data:image" not in groups_html([group], options=ImageOptions(image_root=str(tmp_path)))


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_has_no_bar(score):
    html = groups_html([make_group("", ["odd", "plain"])], [[score, 1.0]])
    assert [text.strip() for text in texts_of(html)][-1] == "odd" and "width: 0.0%" in html
