"""SIGINT (Ctrl-C) and SIGTERM (a preempted job): the first ends a command in order, the second at once.

The first raises `KeyboardInterrupt`, or [`Terminated`], which is one, so that a command needs one way to end. A
training defers it to the end of its step (see `deferred`). Left out: SIGHUP, which ends a process at once.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Timer, current_thread, main_thread
from types import FrameType
from typing import Any

LAUNCHED = "RS_RLHF_LAUNCHED"  # a folder of the processes that `launch.launch` has started
NUMBERS = (signal.SIGINT, signal.SIGTERM)
SAME = 1.0  # seconds within which a launcher and a terminal may send a process the same signal
TWICE = 0.1  # seconds within which one sender may: `timeout` signals its command, and then the command's group


class Terminated(KeyboardInterrupt):
    """SIGTERM; ends a command as Ctrl-C does."""


class Stopped(KeyboardInterrupt):
    """A training that a signal has stopped in order.

    Args:
        number (`int`): The signal.
        sentence (`str`): What it left.
    """

    def __init__(self, number: int, sentence: str) -> None:
        super().__init__(sentence)
        self.number, self.sentence = number, sentence


def exit_code(stop: KeyboardInterrupt) -> int:
    """Returns the shell's exit code after a signal: 130 or 143."""
    number = stop.number if isinstance(stop, Stopped) else signal.SIGTERM if isinstance(stop, Terminated) else None
    return 128 + (number or signal.SIGINT)


def interruption(number: int) -> KeyboardInterrupt:
    """Returns what a signal raises."""
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()


class Asked:
    """The signal that this process was sent: `number`, 0 before it; `defer` is called in place of raising, and
    `at_once` before the second signal ends the process.
    """

    def __init__(self) -> None:
        self.number, self.since = 0, 0.0
        self.defer: Callable[[int], None] | None = None
        self.at_once: Callable[[], object] = lambda: None


ASKED = Asked()


@contextmanager
def handled(say: Callable[[], None]) -> Iterator[None]:
    """Handles the signals that this process does not ignore, and makes whatever error follows one a
    `KeyboardInterrupt`; `say` prints that the command is interrupted.

    Within an import the first signal ends the process as the second does: C code may swallow what is raised there.
    """
    pid, apart = os.getpid(), SAME if LAUNCHED in os.environ else TWICE
    ASKED.__init__()  # type: ignore[misc]

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != pid:
            return _in_a_child(number)
        if ASKED.number:
            if time.monotonic() - ASKED.since >= apart:
                ASKED.at_once()
                os._exit(128 + number)
            return
        ASKED.number, ASKED.since = number, time.monotonic()
        if ASKED.defer is not None:
            return ASKED.defer(number)
        while frame is not None:
            if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
                say()
                os._exit(128 + number)
            frame = frame.f_back
        raise interruption(number)

    def again(number: int) -> None:
        if sys.unraisablehook is dropped:
            os.kill(pid, number)

    def dropped(told: Any) -> None:
        """Python drops what is raised within a finalizer: the signal is sent once more, to whatever runs then."""
        if not (isinstance(told.exc_value, KeyboardInterrupt) and ASKED.number and os.getpid() == pid):
            return hook(told)
        later = Timer(0.02, again, [ASKED.number])
        later.daemon, ASKED.number = True, 0
        later.start()

    hook, sys.unraisablehook = sys.unraisablehook, dropped
    usual = (signal.default_int_handler, signal.SIG_DFL)  # a job in the background ignores SIGINT
    ours = [one for one in NUMBERS if current_thread() is main_thread() and signal.getsignal(one) in usual]
    before = {number: signal.signal(number, handle) for number in ours}
    try:
        yield
    except Exception:
        if ASKED.number:  # such as a data loader's, whose workers were interrupted too
            raise interruption(ASKED.number) from None
        raise
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_a_child(number: int) -> None:
    """What a forked process does with a signal: a worker of a training leaves the first to its parent, which needs it
    to end its step. A worker that has only just begun is here too.
    """
    signal.signal(number, signal.SIG_IGN if number == signal.SIGINT and ASKED.defer is not None else signal.SIG_DFL)
    if ASKED.defer is None:
        os.kill(os.getpid(), number)


@contextmanager
def deferred(defer: Callable[[int], None], at_once: Callable[[], object] = lambda: None) -> Iterator[Asked]:
    """Calls `defer` at the first signal in place of raising; gives what was asked."""
    before = ASKED.defer, ASKED.at_once
    ASKED.defer, ASKED.at_once = defer, at_once
    try:
        yield ASKED
    finally:
        ASKED.defer, ASKED.at_once = before


def warn(text: str) -> None:
    """Prints a line on standard error from within a handler, where `print` may not be called."""
    os.write(2, f"\n{text}\n".encode())
