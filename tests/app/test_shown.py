"""What the page shows of scores."""

from rs_rlhf.app.models import Scored
from rs_rlhf.app.shown import bars


def marked(*scores):
    """Which of texts with these scores are marked as the best."""
    lines = bars([Scored(f"text {i}", score) for i, score in enumerate(scores)]).split("<li")[1:]
    return [i for i, line in enumerate(lines) if "<strong>best</strong>" in line]


def test_the_best_is_marked_unless_all_read_the_same():
    assert marked(1.0, 2.0, -3.0) == [1] and marked(-1.0, -2.0) == [0]
    assert marked(1.28301, 1.28302) == [] and marked(2.00001, 2.00002, 1.0) == [0, 1]
    assert marked(2.0) == [] and marked(None, None) == [] and marked(None, 1.0, 0.5) == [1]
