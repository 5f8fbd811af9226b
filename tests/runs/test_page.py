"""Pages: values are escaped, embedded data cannot end its script, and every template is found."""

import json
from importlib.resources import files

import pytest

from rs_rlhf.runs.page import render

HOSTILE = "</script><script>window.hacked = 1</script> & '\" \u2028 {{ title }} @@DATA@@ \\1"


def test_values_are_escaped_and_data_stays_data():
    page = render("evaluation/gallery.html", title=HOSTILE, data={"text": HOSTILE})
    head, rest = page.split('id="data">')
    assert "<script>window" not in page and "{{ title }}" in head.split("</title>")[0]
    assert json.loads(rest.split("</script>")[0]) == {"text": HOSTILE}


def test_numbers_that_json_has_not_are_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        render("evaluation/gallery.html", title="t", data=float("nan"))


def test_a_page_has_style_and_script_inside_and_no_mark_left():
    page = render("runs/report.html", title="t", data={})
    for path in ("runs/base.css", "runs/report.js"):
        assert files("rs_rlhf").joinpath(path).read_text(encoding="utf-8").strip() in page
    assert "{%" not in page and "default-src 'none'" in page
