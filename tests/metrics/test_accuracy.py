"""Accuracies worked out by hand."""

import pytest

from rs_rlhf.metrics.accuracy import accuracy_figures
from rs_rlhf.metrics.intervals import wilson_interval


def record(strict, lenient=True, answer="x", types=()):
    return {"strict": strict, "upstream_compat": lenient, "answer": answer, "types": list(types)}


def test_accuracy_figures_by_hand():
    records = [
        record(True, True, "yes", ["presence"]),
        record(False, True, None, ["presence"]),
        record(True, True, "3", ["count", "area"]),
        record(False, False, "4", ["count"]),
        record(False, False, "5", ["count"]),
    ]
    figures = accuracy_figures(records)
    assert (figures["n"], figures["accuracy"], figures["upstream_compat"]) == (5, 0.4, 0.6)
    assert figures["parse_failures"] == 0.2 and figures["interval"] == list(wilson_interval(2, 5))
    assert list(figures["types"]) == ["area", "count", "presence"]
    assert [part["n"] for part in figures["types"].values()] == [1, 3, 2]
    assert figures["types"]["presence"] == {
        "n": 2,
        "accuracy": 0.5,
        "interval": list(wilson_interval(1, 2)),
        "upstream_compat": 1.0,
        "parse_failures": 0.5,
    }
    assert figures["average_accuracy"] == pytest.approx((1 + 1 / 3 + 1 / 2) / 3)


def test_accuracy_figures_without_types_or_a_lenient_verdict():
    figures = accuracy_figures([record(True, None), record(True, None)])
    assert figures["upstream_compat"] is None and figures["accuracy"] == 1.0
    assert "types" not in figures and "average_accuracy" not in figures
    with pytest.raises(ValueError, match="no sample records"):
        accuracy_figures([])
