"""`rs-rlhf score` under SIGKILL and Ctrl-C, in real processes: no row is lost, none twice, none half-written."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import psutil
import pyarrow.compute as pc
import pytest
from helpers import ROOT, picture, warm

from rs_rlhf.curation.shards import missing_units, read_manifest, read_scores

ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
ENV = {name: value for name, value in ENV.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
RUN = [sys.executable, "-m", "rs_rlhf", "score"]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "-m", "rs_rlhf", "score"]


def slow_data(folder, rows):
    """Rows whose images take long to read: 16 files of 6 MB, which are hashed again for every unit of 4 rows."""
    folder.mkdir()
    noise = np.random.default_rng(0)
    for i in range(16):
        (folder / f"{i}.tif").write_bytes(noise.bytes(6 * 2**20))
    lines = [{"image": f"{i % 16}.tif", "captions": [f"river {i}.", "many trees."]} for i in range(rows)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ["--input", str(folder), "--scorer", "random", "--rows_per_shard", "4", "--num_workers", "1"]


class Started:
    """`rs-rlhf score` in a child of the warm process, used as a `Popen`."""

    def __init__(self, argv):
        self.files = [tempfile.TemporaryFile() for _ in range(2)]
        with open(os.devnull) as nothing:
            files = (nothing.fileno(), *(file.fileno() for file in self.files))
            self.child = warm.Child(warm.address(), argv, None, ENV, files)
        self.pid, self.returncode = self.child.pid, None

    def poll(self):
        if self.returncode is None:
            try:
                self.returncode = self.child.wait(0.001)
            except TimeoutError:
                pass
        return self.returncode

    def send_signal(self, number):
        self.child.kill(number)

    def communicate(self, timeout=60):
        self.returncode = self.child.wait(timeout) if self.returncode is None else self.returncode
        for file in self.files:
            file.seek(0)
        return [file.read().decode() for file in self.files]


def start(options, out, run=None):
    if run is None:
        return Started(["score", *options, "--output", str(out)])
    return subprocess.Popen(
        [*run, *options, "--output", str(out)], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def shards(out):
    return len(list(out.glob("scores-*.parquet")))


def wait_for(out, count, *processes):
    """Waits until there are so many shards; fails if all processes end before."""
    end = time.monotonic() + 120
    while shards(out) < count:
        assert time.monotonic() < end and any(one.poll() is None for one in processes), processes[0].communicate()
        time.sleep(0.01)


def kill(process):
    """Kills a process and what it has started."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    for one in family:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            pass
    process.communicate()


def finish(process):
    stdout, stderr = process.communicate(timeout=400)
    assert process.returncode == 0, stderr[-3000:]
    return stdout + stderr


def check(out, expected):
    """The rows are those of the uninterrupted run, each once, and nothing half-written is left."""
    table = read_scores(out)
    assert table.equals(expected)
    ids = pc.binary_join_element_wise(table["row_id"], pc.cast(table["text_index"], "string"), " ")
    assert len(pc.unique(ids)) == len(table)
    assert not list(out.glob("*.tmp")) and not list(out.glob("*.new"))
    assert (out / "summary.json").is_file() and missing_units(read_manifest(out), out) == []


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Options of a run of 36 slow units, and its scores when nothing interrupts it."""
    folder = tmp_path_factory.mktemp("kills")
    options = slow_data(folder / "data", 144)
    finish(start(options, folder / "whole"))
    return options, read_scores(folder / "whole")


def test_a_killed_process_is_replaced_by_those_that_run(work, tmp_path):
    options, expected = work
    out = tmp_path / "o"
    first, second = start(options, out), start(options, out)
    wait_for(out, 8, first, second)
    kill(first)
    assert 8 <= shards(out) < 36
    told = finish(second)  # it takes over what the first had claimed, and ends the run
    assert "144 rows: 288 texts scored" in told
    check(out, expected)


def test_a_run_that_was_killed_goes_on_with_any_number_of_processes(work, tmp_path):
    options, expected = work
    out = tmp_path / "o"
    there = {}
    for ranks in (1, 2, 3):
        processes = [start(options, out) for _ in range(ranks)]
        wait_for(out, shards(out) + 6, *processes)
        for one in processes:
            kill(one)
        now = {path: path.stat().st_mtime_ns for path in out.glob("scores-*.parquet")}
        assert len(there) < len(now) < 36 and there.items() <= now.items()  # none was scored again
        there = now
    assert f"{4 * len(there)} rows done" in finish(start(options, out))
    assert there.items() <= {path: path.stat().st_mtime_ns for path in out.glob("scores-*.parquet")}.items()
    check(out, expected)


def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(work, tmp_path):
    options, expected = work
    out = tmp_path / "o"
    process = start(options, out)
    wait_for(out, 5, process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in stderr
    assert f"rs-rlhf score: stopped; {shards(out)} of 36 shards are in {out}. The same command resumes." in stderr
    assert not list(out.glob("*.tmp"))
    finish(start(options, out))
    check(out, expected)


@pytest.mark.slow  # 20 starts, and a run of 1200 slow units in all: minutes
def test_twenty_kills_at_any_moment_over_one_two_and_three_processes(tmp_path):
    options = slow_data(tmp_path / "data", 4800)
    finish(start(options, tmp_path / "whole"))
    expected = read_scores(tmp_path / "whole")
    out, draw, kills = tmp_path / "o", random.Random(0), 0
    while kills < 20:
        ranks = 1 + kills % 3
        processes = [start(options, out) for _ in range(ranks)]
        if kills % 4:  # now and then before the plan is made
            wait_for(out, shards(out) + 1, *processes)
        for one in processes:  # one after the other: those that are left take over meanwhile
            time.sleep(draw.uniform(0, 1.2 / ranks))
            assert one.poll() is None, one.communicate()
            kill(one)
            kills += 1
        assert len(read_scores(out, partial=True)) == 8 * shards(out) if (out / "manifest.json").exists() else True
    assert 0 < shards(out) < 1200
    print(f"{kills} kills, {shards(out)} of 1200 shards before the last start")
    finish(start(options, out))
    check(out, expected)


@pytest.mark.slow  # starts `accelerate launch` with a model eight times: minutes
def test_kills_of_launched_processes_with_a_model(tmp_path, score_model_path):
    rows = []
    for i in range(600):
        picture(i).save(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png", "captions": ["a river." * (1 + i % 5), "many trees."]})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--input", str(tmp_path / "rows.jsonl"), "--model", score_model_path, "--rows_per_shard", "8"]
    finish(start(options, tmp_path / "whole"))
    out, draw = tmp_path / "o", random.Random(0)
    for number in range(6):
        process = start(options, out, [*LAUNCH[:3], "--num_processes", str(1 + number % 3), *LAUNCH[3:]])
        wait_for(out, shards(out) + 1, process)
        time.sleep(draw.uniform(0, 0.5))
        kill(process)
    count = shards(out)
    assert 6 <= count < 75
    finish(start(options, out, [*LAUNCH[:3], "--num_processes", "2", *LAUNCH[3:]]))
    print(f"6 kills, {count} of 75 shards before the last start")
    whole, table = read_scores(tmp_path / "whole"), read_scores(out)
    assert table.drop_columns("score").equals(whole.drop_columns("score"))
    assert table["score"].to_pylist() == pytest.approx(whole["score"].to_pylist(), abs=1e-5)


def peak(options, out):
    """Megabytes of memory that a run takes at most, and its seconds."""
    begin, most = time.monotonic(), 0
    process = subprocess.Popen([*RUN, *options, "--output", str(out)], env=ENV, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        # The kernel's own mark; what `wait4` tells counts the memory that this process had when it forked.
        with open(f"/proc/{process.pid}/status") as lines:
            most = max([most, *(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))])
        time.sleep(0.05)
    assert process.returncode == 0
    return most / 1024, time.monotonic() - begin


@pytest.mark.slow  # 110,000 rows are scored: minutes
@pytest.mark.parametrize("scorer", ["length", "model"])
def test_memory_does_not_grow_with_the_data(tmp_path, score_model_path, scorer):
    for i in range(50):
        picture(i).save(tmp_path / f"{i}.png")
    options = ["--scorer", "length"] if scorer == "length" else ["--model", score_model_path]
    figures = []
    for count in (10_000, 100_000):
        with (tmp_path / f"{count}.jsonl").open("w") as lines:
            for i in range(count):
                lines.write(json.dumps({"image": f"{i % 50}.png", "caption": f"a river with {i} boats."}) + "\n")
        figures.append(peak([*options, "--input", str(tmp_path / f"{count}.jsonl")], tmp_path / f"o{count}"))
    print(scorer, [f"{memory:.1f} MB in {seconds:.0f} s" for memory, seconds in figures])
    assert figures[1][0] < 1.1 * figures[0][0]
