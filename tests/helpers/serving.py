"""A reward server in a process of its own, for the tests."""

from __future__ import annotations

import os
import re
import signal
import threading
from pathlib import Path

from helpers import ROOT, warm


class Served:
    """Starts `rs-rlhf serve` in a child of the warm process, and stops it at the end of the `with` block."""

    def __init__(self, model: str, *flags: str, port: int = 0, token: str | None = None) -> None:
        env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "RS_RLHF_SERVER_TOKEN": token or ""}
        argv = ["serve", "--model", str(model), "--device", "cpu", "--port", str(port), *flags]
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        with open(os.devnull) as nothing:
            self.process = warm.Child(warm.address(), argv, ROOT, env, (nothing.fileno(), out_end, err_end))
        os.close(out_end)
        os.close(err_end)
        self.code: int | None = None
        self.errors: list[str] = []
        threading.Thread(target=lambda: self.errors.extend(open(err)), daemon=True).start()
        self.output = open(out)
        line = self.output.readline()
        address = re.search(r"on (http://\S+)$", line)
        if address is None:
            self.wait(10)
            raise AssertionError(f"the server did not start: {line}{''.join(self.errors)}")
        self.url = address[1]
        self.port = int(self.url.rpartition(":")[2])

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def wait(self, timeout: float) -> int:
        """Waits for its end and returns its exit code."""
        if self.code is None:
            self.code = self.process.wait(timeout)
        return self.code

    def kill(self) -> None:
        """Ends it as a crash would."""
        self.process.kill(signal.SIGKILL)
        self.wait(10)

    def terminate(self) -> None:
        """Asks it to end."""
        self.process.kill(signal.SIGTERM)

    def stop(self) -> int:
        """Asks it to end and returns its exit code."""
        if self.code is None:
            self.terminate()
        return self.wait(30)

    def memory(self) -> int:
        """Returns its resident memory in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024
