"""Charts of counts: every bar and cell is there, with its number."""

import re

from rs_rlhf.runs.charts.counts import heat, matrix, stacked
from rs_rlhf.runs.charts.style import svg


def labels(drawn):
    return set(re.findall(r'aria-label="([^"]*)" role="graphics-symbol" aria-roledescription="(?:bar|rect)', drawn))


def texts(drawn):
    return re.findall(r"<text[^>]*>([^<]*)</text>", drawn)


def test_a_stacked_histogram():
    edges = [0.0, 1.0, 2.0, 3.0]
    counts = {"kept": [0, 2, 1500], "dropped": [4, 1, 0]}
    drawn = svg(stacked("Scores", edges, counts, "score", "samples", mark=(1.5, "lowest kept 1.5")))
    assert labels(drawn) == {"1 to 2: 2 kept", "2 to 3: 1,500 kept", "0 to 1: 4 dropped", "1 to 2: 1 dropped"}
    assert {"score", "samples", "kept", "dropped", "1,500", "lowest kept 1.5"} <= set(texts(drawn))


def test_the_mark_stays_inside_the_chart():
    drawn = svg(stacked("t", [0.0, 1.0], {"kept": [1]}, "x", "y", mark=(9.0, "beyond"), size=(200, 100)))
    assert float(re.search(r"translate\(([\d.]+),[^>]*>beyond", drawn)[1]) <= 200


def test_a_confusion_matrix():
    cells = [("port", "port", 3), ("port", "river", 1), ("river", "port", 0), ("river", "(blank)", 2)]
    drawn = svg(matrix("Confusion", cells, "answered", "right answer"))
    assert labels(drawn) == {
        "port, answered port: 3 of 4",
        "port, answered river: 1 of 4",
        "river, answered (blank): 2 of 2",
    }
    assert {"answered", "right answer", "(blank)"} <= set(texts(drawn))


def test_histograms_over_steps():
    drawn = svg(heat("score", [10, 20], [0.0, 1.0, 2.0], [[1, 3], [0, 2]], "score"))
    assert {label.replace("&#xA;", " ") for label in labels(drawn)} == {
        "step 10 score 0 to 1: 1 of 4",
        "step 10 score 1 to 2: 3 of 4",
        "step 20 score 1 to 2: 2 of 2",
    }
