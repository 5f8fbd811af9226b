"""Commands run in processes of their own, as a user would run them."""

import os
import signal
import subprocess
import time

from helpers import ROOT, warm

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


def kill_when(ready, argv, timeout=120):
    """Starts `rs-rlhf ARGV` in a process of its own and kills it (SIGKILL) as soon as `ready()` is true."""
    with open(os.devnull, "r+") as nothing:
        child = warm.Child(warm.address(), list(map(str, argv)), None, ENV, (nothing.fileno(),) * 3)
        end = time.monotonic() + timeout
        while not ready() and time.monotonic() < end:
            time.sleep(0.001)
        child.kill(signal.SIGKILL)
        assert child.wait(30) == -signal.SIGKILL, "it ended before it was killed"
