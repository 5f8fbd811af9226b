"""Commands run in processes of their own, as a user would run them."""

import os
import subprocess

from helpers import ROOT

ENV = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    "OMP_NUM_THREADS": "1",
}


def run(*arguments, expect=0, timeout=500):
    """Runs a command as a user would; returns its output."""
    done = subprocess.run(arguments, env=ENV, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == expect, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout + done.stderr
