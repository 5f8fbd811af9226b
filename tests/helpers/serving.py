"""A reward server in its own process, for the tests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

from helpers import ROOT

COMMAND = [sys.executable, "-m", "rs_rlhf", "serve"]


class Served:
    """Starts `rs-rlhf serve`, and stops it at the end of the `with` block."""

    def __init__(self, model: str, *flags: str, port: int = 0, token: str | None = None) -> None:
        env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "RS_RLHF_SERVER_TOKEN": token or ""}
        command = [*COMMAND, "--model", str(model), "--device", "cpu", "--port", str(port), *flags]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=ROOT, env=env, text=True, stdout=pipe, stderr=pipe)
        self.errors: list[str] = []
        threading.Thread(target=lambda: self.errors.extend(self.process.stderr), daemon=True).start()
        said = self.process.stdout.readline()
        found = re.search(r"on (http://\S+)$", said)
        if found is None:
            self.process.wait(10)
            raise AssertionError(f"the server did not start: {said}{''.join(self.errors)}")
        self.url = found[1]
        self.port = int(self.url.rpartition(":")[2])

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def kill(self) -> None:
        """Ends it as a crash would."""
        self.process.kill()
        self.process.wait(10)

    def terminate(self) -> None:
        """Asks it to end."""
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> int:
        """Asks it to end and returns its exit code."""
        if self.process.poll() is None:
            self.terminate()
        return self.process.wait(30)

    def memory(self) -> int:
        """Returns its resident memory in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024
