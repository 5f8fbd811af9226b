"""Commands that are killed at random moments, or at random operations on files, and started again.

A killed command is a real process: it sends SIGKILL to its own process group at a drawn moment, or at its n-th
operation on a file of its folder, or a little later. What it leaves is read as the next command would read it.
"""

import fnmatch
import json
import random
import re
import shutil
import signal
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from safetensors.numpy import load_file

from helpers import warm

# Kills itself at an operation on a file (place > 0), or at once (0), after a delay; -1: not at all.
CODE = """
import os, signal, sys, threading, time
place, delay, number = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
folder, count, start = os.getcwd(), 0, time.monotonic()

def kill():
    os.killpg(0, number)

def later():
    threading.Thread(target=lambda: (time.sleep(delay), kill()), daemon=True).start() if delay else kill()

def watch(event, given):
    global count
    if event == "open":
        if not (isinstance(given[0], (str, bytes)) and (given[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            return
    elif event not in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"):
        return
    path = os.fsdecode(given[0]) if isinstance(given[0], (str, bytes)) else folder
    if os.path.abspath(path).startswith(folder):
        count += 1
        if count == place:
            later()

import datasets
from pathlib import Path
datasets.config.HF_DATASETS_CACHE = Path(folder, "rows_cache")
sys.addaudithook(watch)
if place == 0:
    later()
from rs_rlhf.cli.main import main
code = main(sys.argv[4:])
sys.stdout.flush()
os.write(1, f"\\noperations {count} seconds {time.monotonic() - start:.3f}".encode())
sys.exit(code)
"""
TEMPORARY = ("*.tmp", ".*.new", ".*.old", "checkpoint-*", "*.partial", "*.part-*", "answers_*", "rows_cache", ".locks")
VOLATILE = re.compile(  # times, and what counts from 0 or gets another id when a training resumes
    r".*seconds|texts_per_second|.*runtime|.*_per_second|start|stop|took|total_flos|.*step_time.*|profiling/.*|run_id|"
    r"(eval_)?num_tokens|train_loss|rs_rlhf_run"
)


@dataclass
class Case:
    """A command, and what it does when it is started again.

    Args:
        argv: Its arguments; paths are relative to the folder of a try.
        again: Arguments that are added to resume.
        before: Commands that run once, before the first try.
        training: It leaves states between; only its last files are those of an undisturbed run. Which checkpoints are
            left depends on when it was killed.
        varies: Names of files that two undisturbed runs write differently.
    """

    argv: list
    again: list = field(default_factory=list)
    before: list = field(default_factory=list)
    training: bool = False
    varies: tuple = ()


def run(argv, folder, place=-1, delay=0.0, number=signal.SIGKILL, timeout=240):
    code = ["-c", CODE, str(place), str(delay), str(int(number)), *map(str, argv)]
    return warm.run(code, cwd=folder, timeout=timeout)


def _steady(value):
    """A JSON value without times."""
    if isinstance(value, dict):
        return {key: _steady(part) for key, part in value.items() if not VOLATILE.fullmatch(key)}
    return [_steady(part) for part in value] if isinstance(value, list) else value


def content(path):
    """What a reader finds in a file; a half-written file raises."""
    data = path.read_bytes()
    if path.name == "rs_rlhf_run.json":  # a run that is begun anew has another id, one that is resumed more parts
        return json.loads(data)["settings"]
    if path.suffix == ".json":
        return _steady(json.loads(data))
    if path.suffix == ".jsonl":
        assert data.endswith(b"\n") or not data, "half a line"
        return [_steady(json.loads(line)) for line in data.splitlines()]
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix in (".png", ".jpg"):
        return np.asarray(Image.open(path))
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix in (".bin", ".pt", ".pth"):
        return b""
    return data


def is_temporary(path):
    return any(fnmatch.fnmatch(part, pattern) for part in path.parts for pattern in TEMPORARY)


def contents(folder, temporary=False, varies=()):
    """The files of a folder: relative path -> what a reader finds; that there is something in those of `varies`."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_dir() or (is_temporary(name) and not temporary) or "rows_cache" in name.parts:
            continue
        try:
            read = None if is_temporary(name) else content(path)
            found[str(name)] = bool(read) if name.name in varies else read
        except Exception as error:
            raise AssertionError(f"{name} is not whole: {type(error).__name__} {error}") from error
    return found


def difference(one, other, place=""):
    """Where two contents differ, "" if nowhere; numbers count to 6 places."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return next((told for key in one if (told := difference(one[key], other[key], f"{place}.{key}"))), "")
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return next((told for i, (a, b) in pairs if (told := difference(a, b, f"{place}[{i}]"))), "")
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and one.shape == other.shape:
        most = np.abs(one.astype(float) - other.astype(float)).max(initial=0)
        return "" if most <= 1e-6 else f"{place}: differs by {most:.3g}"
    if isinstance(one, float) and isinstance(other, int | float):
        equal = np.isclose(one, other, atol=1e-6, equal_nan=True)
    else:
        equal = type(one) is type(other) and not isinstance(one, np.ndarray) and one == other
    return "" if equal else f"{place}: {str(one)[:300]} != {str(other)[:300]}"


def compare(found, expected):
    """Asserts that a folder holds what an undisturbed run leaves."""
    assert not (lost := expected.keys() - found.keys()), f"missing: {sorted(lost)}"
    assert not (more := found.keys() - expected.keys()), f"left over: {sorted(more)}"
    assert not (told := difference(found, expected)), f"differs in {told}"


class Killed:
    """The tries of one case: `undisturbed` is what it writes alone."""

    def __init__(self, case, base, folder):
        self.case, self.folder, self.start = case, folder / "work", folder / "start"
        shutil.copytree(base, self.folder)
        for argv in case.before:
            done = run(argv, self.folder)
            assert done.returncode == 0, done.stdout + done.stderr
        shutil.copytree(self.folder, self.start)
        self.inputs = self._contents()
        done = run(case.argv, self.folder)
        assert done.returncode == 0, done.stdout + done.stderr
        told = done.stdout.split()
        self.operations, self.seconds = int(told[-3]), float(told[-1])
        self.undisturbed = self._contents(temporary=True)

    def attempt(self, seed, number=signal.SIGKILL):
        """Kills the command one to three times, looks at what is left each time, and lets it end; returns how often it
        was killed.
        """
        draw, codes = random.Random(seed), []
        shutil.rmtree(self.folder)
        shutil.copytree(self.start, self.folder)
        for turn in range(draw.choice((1, 1, 2, 3))):
            if draw.random() < 0.5:
                place, delay = 0, draw.uniform(0, self.seconds)
            else:
                place, delay = draw.randint(1, max(1, self.operations)), draw.choice((0, 0, 1e-4, 1e-3, 1e-2))
            done = run(self.case.argv + (self.case.again if turn else []), self.folder, place, delay, number)
            codes.append(done.returncode)
            with _told(f"killed at operation {place}, {delay:.4f} s later", done):
                # -9 of a SIGTERM: it came before or after the command's own time, so that nobody told an exit code.
                allowed = (-9, 0, 1) if number == signal.SIGKILL else (143, -9, 0, 1)
                assert done.returncode in allowed and "Traceback" not in done.stderr
                self._look(refused=done.returncode == 1)
        done = run(self.case.argv + self.case.again, self.folder)
        with _told(f"the last time, after {codes}", done):
            assert done.returncode in (0, 1) and "Traceback" not in done.stderr
            self._look(refused=done.returncode == 1)
            left = self._contents(temporary=True)
            if done.returncode:  # killed when all was written but its log was not removed yet
                left = {name: value for name, value in left.items() if not name.endswith(".partial")}
            compare(left, self.undisturbed)
            assert not [path for path in self.folder.rglob("*.incomplete*") if path.is_dir()]
        return sum(code not in (0, 1) for code in codes)

    def _contents(self, temporary=False):
        found = contents(self.folder, temporary, self.case.varies)
        if self.case.training:
            return {name: value for name, value in found.items() if "checkpoint-" not in name}
        return found

    def _look(self, refused):
        """Nothing is half-written, nothing of others is changed, and a command refuses only what is done."""
        left = self._contents()
        for name, value in self.inputs.items():
            assert name in left and not difference(left[name], value), f"{name} was there before, and is changed"
        final = {name: value for name, value in self.undisturbed.items() if not is_temporary(Path(name))}
        if not self.case.training:
            compare(
                {name: left[name] for name in left if name in final}, {n: v for n, v in final.items() if n in left}
            )
        if refused:
            compare({name: left[name] for name in left if name in final}, final)


@contextmanager
def _told(what, done):
    try:
        yield
    except AssertionError as error:
        said = f"{done.stdout[-500:]}\n{done.stderr[-2000:]}"
        raise AssertionError(f"{error}\n{what}: exit code {done.returncode}\n{said}") from None
