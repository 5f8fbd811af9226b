"""Figures of preferences worked out by hand."""

import math

import pytest

from rs_rlhf.metrics.preferences import calibration, preference_metrics


def test_metrics_of_pairs_by_hand():
    records = [{"scores": [3.0, 1.0]}, {"scores": [1.0, 2.0]}, {"scores": [1.0, 1.0]}]
    metrics = preference_metrics(records)
    assert metrics["accuracy"] == pytest.approx(1 / 3) and metrics["ties"] == pytest.approx(1 / 3)
    assert metrics["margin"] == pytest.approx(1 / 3) and (metrics["min"], metrics["max"]) == (1.0, 3.0)
    assert preference_metrics([]) == {}


def test_calibration_of_known_scores():
    exact = math.log(3)  # odds of 3: predicted with 75%
    sure = calibration([[exact, 0.0]] * 3 + [[0.0, exact]])
    assert sure["error"] == pytest.approx(0.0) and sure["bins"] == [{"n": 4, "confidence": 0.75, "accuracy": 0.75}]
    proud = calibration([[9.0, 0.0], [0.0, 9.0]])
    assert proud["error"] == pytest.approx(0.5, abs=1e-3)
    mixed = calibration([[exact, 0.0]] * 4 + [[0.0, 0.0]])  # a tie is half right: no error of its own
    assert mixed["error"] == pytest.approx(0.8 * 0.25) and [one["n"] for one in mixed["bins"]] == [1, 4]
