"""Style of charts: axes of shares, colours of pages and of files, the formats that a path or an option asks for."""

import re
import subprocess
import sys

import pytest
from PIL import Image

from rs_rlhf.errors import OptionError
from rs_rlhf.runs.charts.counts import heat, matrix, stacked
from rs_rlhf.runs.charts.curves import intervals, lines
from rs_rlhf.runs.charts.style import COLOURS, FORMATS, ChartOptions, chart_paths, css, domain, save, svg

CHART = lines("t", [{"name": "a", "points": [(1, 0.25), (2, 0.5)]}], "accuracy", share=True)
HOSTILE = "</svg><script>window.hacked = 1</script>\"'& <b>"


@pytest.mark.parametrize(
    "values, share, expected",
    [
        ([0.4, 0.45], True, [0, 1]),
        ([], False, [0, 1]),
        ([0.0], True, [0, 1]),
        ([0.0, 0.0], False, [0, 1]),
        ([3.0], False, [0, 6.0]),
        ([-3.0, -3.0], False, [-6.0, 0]),
        ([0.0, 10.0], False, [0, 10.6]),
        ([-10.0, 0.0], False, [-10.6, 0]),
        ([1.0, 3.0], True, [0.88, 3.12]),  # no shares, whatever they are called
        ([-0.5, 0.5], True, [-0.56, 0.56]),
    ],
)
def test_the_range_of_an_axis(values, share, expected):
    assert domain(values, share) == pytest.approx(expected)


def test_a_page_has_the_colours_of_its_scheme_and_a_file_the_light_ones(tmp_path):
    drawn = svg(CHART)
    assert "var(--one)" in drawn and COLOURS["one"][0] not in drawn
    (file,) = save(CHART, tmp_path / "a.svg")
    assert "var(" not in file.read_text() and COLOURS["one"][0] in file.read_text()
    light, dark = css().split("@media")
    for name in set(re.findall(r"var\(--(\w+)\)", drawn)):
        assert f"--{name}: {COLOURS[name][0]};" in light and f"--{name}: {COLOURS[name][1]};" in dark


def test_every_format_is_written_and_is_what_it_says(tmp_path):
    files = save(CHART, tmp_path / "deep" / "chart.png", FORMATS)
    assert [file.name for file in files] == ["chart.png", "chart.svg", "chart.pdf"]
    with Image.open(files[0]) as image:
        assert image.format == "PNG" and image.width > 500
    assert files[1].read_text().startswith("<svg") and "100%" in files[1].read_text()
    assert files[2].read_bytes().startswith(b"%PDF") and len(files[2].read_bytes()) > 2000


def test_a_path_says_the_format(tmp_path):
    assert chart_paths("a.pdf") == [tmp_path.joinpath("a.pdf").relative_to(tmp_path)]
    assert [path.name for path in chart_paths("run.v2", ["svg"])] == ["run.v2.svg"]
    assert chart_paths("curve")[0].name == "curve.png"
    with pytest.raises(OptionError) as error:
        chart_paths("a.jpg")
    assert error.value.key == "output" and error.value.where == "a.jpg"
    assert ChartOptions(format=["png,SVG", "pdf", "png"]).formats() == ["png", "svg", "pdf"]
    with pytest.raises(OptionError) as error:
        ChartOptions(format=["pfd"]).formats()
    assert error.value.key == "format" and "pdf" in str(error.value)


def test_foreign_text_is_escaped():
    curves = [{"name": HOSTILE, "points": [(1, 1.0), (2, 2.0)]}, {"name": "b", "points": [(1, 1.0)]}]
    drawn = svg(lines(HOSTILE, curves, HOSTILE))
    assert "<script" not in drawn and "<b>" not in drawn and "window.hacked" in drawn


@pytest.mark.parametrize(
    "text", ["", "\u2028", "\ud800", "a\nb", "datum.x", "{{a}} ${b}", "\\", "'\"", "\x00", "日本 ★", "x" * 300]
)
def test_any_text_can_be_drawn(text, tmp_path):
    rows = [{"label": text, "group": text, "value": 0.5}, {"label": "z", "group": "g", "value": 0.4}]
    for spec in (
        lines(text, [{"name": text, "points": [(1, 1.0)]}, {"name": "b", "points": []}], text),
        intervals(text, rows, text),
        matrix(text, [(text, text, 3), ("q", text, 1)], text, text),
        stacked(text, [0, 1, 2], {text: [1, 2], "k": [0, 1]}, text, text, mark=(1, text)),
        heat(text, [1, 2], [0.0, 1.0], [[1], [0]], text),
    ):
        assert svg(spec).startswith("<svg")
    named = lines("var(--mine)", [{"name": text, "points": [(1, 1.0), (2, 3.0)]}], text)
    assert "var(--mine)" in save(named, tmp_path / "a.svg")[0].read_text()


def test_importing_the_charts_loads_no_renderer():
    code = "import sys, rs_rlhf.runs.plots, rs_rlhf.runs.charts.counts; sys.exit('vl_convert' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "last, label",
    [(0.0001, "1e-4"), (0.005, "0.004"), (0.9, "0.8"), (50.0, "40"), (4782.0, "4,000"), (2_000_000.0, "2M")],
)
def test_how_numbers_stand_on_an_axis(last, label):
    labels = re.findall(
        r"<text[^>]*>([^<]*)</text>", svg(lines("t", [{"name": "a", "points": [(1, 0.0), (2, last)]}], "y"))
    )
    assert label in labels and not [text for text in labels if "e+" in text and float(text)]
