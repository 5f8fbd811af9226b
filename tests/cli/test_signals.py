"""SIGINT and SIGTERM in real processes: a training saves a checkpoint and ends in a sentence, a second signal ends at
once, and the other commands say what they leave."""

import json
import os
import select
import signal
import subprocess
import sys
import time

import psutil
import pytest
from helpers import ROOT, warm
from helpers.reward_runs import reward, write_pairs

from rs_rlhf.cli import main as cli
from rs_rlhf.runs.checkpoints import is_whole

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
ONE = [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]  # they differ in the handler alone


@pytest.fixture
def pairs(tmp_path):
    return write_pairs(tmp_path)


def signalled(argv, ready, folder, *numbers, whole_group=False):
    """Starts a command, sends it the signals once `ready()`; returns its exit code and what it has printed."""
    with open(os.devnull) as nothing, (folder / "log").open("w+") as log:
        files = (nothing.fileno(), log.fileno(), log.fileno())
        child = warm.Child(warm.address(), list(map(str, argv)), folder, warm.launching(folder), files)
        end = time.monotonic() + 120
        while not ready():
            over = select.select([child.socket], [], [], 0.02)[0] or time.monotonic() > end
            assert not over, (folder / "log").read_text()
        for number in numbers:
            os.killpg(child.pid, number) if whole_group else child.kill(number)
            time.sleep(0.3)
        code = child.wait(60)
    return code, (folder / "log").read_text()


def log_has(folder, text):
    return lambda: (folder / "log").exists() and text in (folder / "log").read_text()


@pytest.mark.parametrize(
    ("workers", "rows", "number"),
    [
        ("0", 4, signal.SIGINT),
        ("2", 4000, signal.SIGTERM),
        pytest.param("0", 4, signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("2", 4, signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("2", 4000, signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_training_saves_a_checkpoint_and_ends_in_one_sentence(workers, rows, number, pairs, tiny_vlm):
    """As in a terminal and on a cluster, where all processes of the command are sent the signal."""
    (pairs / "pairs.jsonl").write_text((pairs / "pairs.jsonl").read_text() * (rows // 4))
    flags = ["--save_strategy", "no", "--logging_steps", "1", "--dataloader_num_workers", workers]
    code, printed = signalled(reward(tiny_vlm, *flags), log_has(pairs, "'loss'"), pairs, number, whole_group=True)
    (saved,) = (pairs / "out").glob("checkpoint-*")
    assert code == CODES[number] and "Traceback" not in printed and is_whole(saved)
    last = printed.strip().splitlines()[-1]
    assert last.startswith(f"rs-rlhf reward: stopped by {number.name}, saved to out/{saved.name}; ")
    if workers == "0":
        more = ["--max_steps", str(int(saved.name.split("-")[1]) + 1), "--resume_from_checkpoint", "true"]
        done = warm.run([*reward(tiny_vlm, *flags), *more], cwd=pairs, check=0)
        assert "Score model saved" in done.stdout


@pytest.mark.slow
def test_a_signal_within_an_evaluation_leaves_it_its_workers(pairs, tiny_vlm):
    rows = [{**json.loads(line), "i": i} for i in range(100) for line in (pairs / "pairs.jsonl").open()]
    (pairs / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluated = ["--eval_dataset_name", "held_out.jsonl", "--eval_strategy", "steps", "--eval_steps", "1"]
    flags = ["--save_strategy", "no", "--logging_steps", "1", "--dataloader_num_workers", "2", *evaluated]
    argv = reward(tiny_vlm, *flags)
    code, printed = signalled(argv, log_has(pairs, "'loss'"), pairs, signal.SIGTERM, whole_group=True)
    (saved,) = (pairs / "out").glob("checkpoint-*")
    assert code == CODES[signal.SIGTERM] and "Traceback" not in printed and is_whole(saved)
    assert "'eval_loss'" in printed


@pytest.mark.parametrize(
    "numbers",
    [
        (signal.SIGINT, signal.SIGTERM),
        *(pytest.param((number,) * 2, marks=pytest.mark.slow) for number in CODES),
    ],
)
def test_a_second_signal_ends_at_once(numbers, pairs, tiny_vlm):
    (pairs / "pairs.jsonl").write_text((pairs / "pairs.jsonl").read_text() * 1000)
    argv = reward(tiny_vlm, "--gradient_accumulation_steps", "100000", "--disable_tqdm", "false")  # a long step
    code, printed = signalled(argv, log_has(pairs, "0/100000 "), pairs, *numbers)
    assert code == -signal.SIGKILL, "it ended without a word to the warm process"
    assert "stopping after this step" in printed and "stopped by" not in printed
    assert "Traceback" not in printed and not list(pairs.glob("out/checkpoint-*"))


@pytest.mark.parametrize("number", CODES)
def test_the_exit_code_of_a_second_signal_that_finds_the_command_ending(number, tmp_path):
    code = (
        "import os, signal, sys, time; from rs_rlhf.cli.signals import handled\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job begins without
        "with handled(print):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT); time.sleep(60)\n"
        "    except KeyboardInterrupt:\n"
        f"        time.sleep(0.2); os.kill(os.getpid(), {int(number)}); time.sleep(60)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=env, timeout=50).returncode == CODES[number]


@pytest.mark.parametrize("number", CODES)
def test_a_signal_that_comes_twice_at_once_is_one(number):
    """As `timeout` sends it: to the command, and then to the command's group."""
    code = (
        "import os, signal, time; from rs_rlhf.cli.signals import ASKED, deferred, handled\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with handled(print), deferred(lambda number: None):\n"
        f"    for _ in range(2): os.kill(os.getpid(), {int(number)}); time.sleep(0.01)\n"
        "    print(ASKED.number)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, timeout=50, capture_output=True)
    assert (done.returncode, int(done.stdout)) == (0, number)


@pytest.mark.parametrize("number", CODES)
def test_a_signal_within_a_finalizer_is_not_lost(number):
    """Python drops what is raised there."""
    code = (
        "import os, signal, sys, time; from rs_rlhf.cli.signals import exit_code, handled\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Last:\n"
        "    def __del__(self):\n"
        f"        os.kill(os.getpid(), {int(number)}); time.sleep(0.01)\n"
        "try:\n"
        "    with handled(print):\n"
        "        Last(); print('goes on', flush=True); time.sleep(30)\n"
        "except KeyboardInterrupt as stop:\n"
        "    sys.exit(exit_code(stop))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, timeout=25, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (CODES[number], "goes on\n", "")


@pytest.mark.parametrize("number", ONE)
def test_a_launched_training_saves_a_checkpoint_and_ends_in_one_sentence(number, pairs, tiny_vlm):
    argv = [
        *reward(tiny_vlm, "--save_strategy", "no", "--logging_steps", "1"),
        "--accelerate_config",
        "cpu_2proc",
    ]
    code, printed = signalled(argv, log_has(pairs, "'loss'"), pairs, number, whole_group=True)
    (saved,) = (pairs / "out").glob("checkpoint-*")
    assert code == CODES[number] and printed.count("stopped by") == 1 and "interrupted" not in printed, printed
    assert "Traceback" not in printed and is_whole(saved)
    assert len(list(saved.glob("rng_state_*.pth"))) == 2


@pytest.mark.slow  # processes of its own: those of the warm process have another parent
def test_processes_whose_launcher_is_killed_save_and_end(pairs, tiny_vlm):
    argv = [*reward(tiny_vlm, "--save_strategy", "no", "--logging_steps", "1"), "--accelerate_config"]
    with (pairs / "log").open("w") as log:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "rs_rlhf", *argv, "cpu_2proc"]
        launcher = subprocess.Popen(command, cwd=pairs, env=env, stdout=log, stderr=log)
        end = time.monotonic() + 300
        while not log_has(pairs, "'loss'")():
            assert launcher.poll() is None and time.monotonic() < end, (pairs / "log").read_text()
            time.sleep(0.1)
        started = psutil.Process(launcher.pid).children(recursive=True)
        launcher.kill()
        launcher.wait()
        _, alive = psutil.wait_procs(started, timeout=120)
        for process in alive:
            process.kill()
    assert len(started) >= 2 and not alive, (pairs / "log").read_text()
    (saved,) = (pairs / "out").glob("checkpoint-*")
    assert is_whole(saved) and "stopped by SIGTERM" in (pairs / "log").read_text()


@pytest.mark.parametrize("number", CODES)
def test_score_says_how_far_it_is(number, pairs, score_model_path):
    rows = [{"image": f"{i % 4}.png", "caption": f"a river {i}."} for i in range(3000)]
    (pairs / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = [
        "score",
        "--input",
        "rows.jsonl",
        "--model",
        score_model_path,
        "--output",
        "scores",
        "--rows_per_shard",
        "20",
    ]
    code, printed = signalled(argv, lambda: any((pairs / "scores").rglob("*.parquet")), pairs, number)
    last = printed.strip().splitlines()[-1]
    assert (
        code == CODES[number]
        and last.startswith("rs-rlhf score: stopped; ")
        and last.endswith("The same command resumes.")
    )
    assert "Traceback" not in printed


@pytest.mark.parametrize("number", ONE)
def test_another_command_says_what_it_leaves(number, pairs):
    argv = ["data", "scenes", "scenes", "--n_train", "3000"]
    code, printed = signalled(argv, lambda: any((pairs / "scenes").rglob("*.png")), pairs, number)
    assert code == CODES[number] and "Traceback" not in printed
    assert printed.strip() == f"rs-rlhf data scenes: interrupted; {cli.RESTART}."
