"""Progress lines off a terminal, and versions."""

import numpy

from rs_rlhf import __version__
from rs_rlhf.runs import progress as module
from rs_rlhf.runs.progress import progress, versions


def test_lines_off_a_terminal_twice_a_minute(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with progress(100, 20, "Sampling") as advance:
        advance(10)
        now[0] = 40.0
        advance(10)
        now[0] = 60.0
        advance(10)
        now[0] = 80.0
        advance.reach(60, "3 texts/s")
    assert capsys.readouterr().err == (
        "Sampling: 40 of 100 rows, 2 min left\nSampling: 60 of 100 rows, 3 texts/s, 1 min left\n"
    )
    with progress(None, 0, "Reading", unit="line") as advance:
        now[0] = 120.0
        advance(7)
    with progress(9, 0, "Hidden", shown=False) as advance:
        now[0] = 200.0
        advance(7)
    assert capsys.readouterr().err == "Reading: 7 lines\n"


def test_versions():
    assert versions("numpy", "no-such-package") == {
        "rs-rlhf": __version__,
        "numpy": numpy.__version__,
        "no-such-package": "not installed",
    }
