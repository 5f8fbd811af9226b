"""Pages: values are escaped, embedded data cannot end its script, and every template is found."""

import base64
import hashlib
import json
import re
from importlib.resources import files

import pytest

from rs_rlhf.runs.charts.style import css
from rs_rlhf.runs.page import render, words

BARE = dict.fromkeys(("facts", "verdicts", "notes", "columns", "rows", "charts", "tasks"), ()) | {"foot": ""}
HOSTILE = "</script><script>window.hacked = 1</script> & '\" \u2028 {{ title }} @@DATA@@ \\1"


def test_values_are_escaped_and_data_stays_data():
    page = render("evaluation/pages/answers.html", **BARE, title=HOSTILE, data={"text": HOSTILE})
    head, rest = page.split('id="data">')
    assert "<script>window" not in page and "{{ title }}" in head.split("</title>")[0]
    assert json.loads(rest.split("</script>")[0]) == {"text": HOSTILE}


def test_numbers_that_json_has_not_are_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        render("evaluation/pages/answers.html", **BARE, title="t", data=float("nan"))


def test_a_page_has_style_and_script_inside_and_no_mark_left():
    page = render("evaluation/pages/answers.html", **BARE, title="t", data={})
    for path in ("runs/base.css", "runs/base.js", "runs/charts/charts.js", "evaluation/pages/answers.js"):
        assert files("rs_rlhf").joinpath(path).read_text(encoding="utf-8").strip() in page
    assert "{%" not in page and "default-src 'none'" in page and css() in page


def test_no_other_script_than_the_page_s_own_is_run():
    page = render("evaluation/pages/answers.html", **BARE, title="t", data={})
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    allowed = re.findall(r"script-src '([^']*)'", page)
    assert allowed == [f"sha256-{base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()}"]


def test_what_would_not_be_seen_is_said_to_be_blank():
    assert [words(text) for text in ("", " \n", "a ")] == ["(blank)", "(blank)", "a "]
