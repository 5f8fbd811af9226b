"""Commands that serve a page in the browser, started on a free port and ended with the `with` block."""

from __future__ import annotations

import os
import re
import signal
import threading

import httpx

from . import warm


class Served:
    """A command such as `browse` or `app` in a child of the warm process; `url` is where it serves.

    Args:
        command (`str`): The command.
        *arguments: Its arguments, without `--port`.
        env (`dict`, *optional*): Its environment, beside that of the test.
        cwd (path, *optional*): Its working folder.
    """

    def __init__(self, command, *arguments, env=None, cwd=None) -> None:
        (out, child_out), (err, child_err) = os.pipe(), os.pipe()
        argv = [command, *map(str, arguments), "--port", "0"]
        with open(os.devnull) as nothing:
            files = (nothing.fileno(), child_out, child_err)
            self.child = warm.Child(warm.address(), argv, cwd, os.environ | (env or {}), files)
        os.close(child_out)
        os.close(child_err)
        self.out, self.err = open(out), open(err)
        self.errors: list[str] = []
        threading.Thread(target=lambda: self.errors.extend(self.err), daemon=True).start()
        self.said, self.killed = "", False
        while not (found := re.search(r"on (http://\S+)$", self.said)):
            line = self.out.readline()
            self.said += line
            if not line:
                self.child.wait(10)
                raise AssertionError(f"the page did not start: {self.said}{''.join(self.errors)}")
        self.url = found[1]
        self.client = httpx.Client(base_url=self.url, timeout=30)

    def __enter__(self):
        return self

    def kill(self) -> None:
        """Ends it at once, as a power cut would."""
        self.killed = True
        self.child.kill(signal.SIGKILL)
        self.child.wait(20)

    def __exit__(self, *_) -> None:
        self.client.close()
        if self.killed:
            return
        self.child.kill(signal.SIGINT)
        assert self.child.wait(20) == 0
        assert "Traceback" not in "".join(self.errors)
