"""The warm process of the tests: its children are real processes with their own folder, environment and exit code."""

import os
import signal
import subprocess
import threading

import pytest
from helpers import warm


def test_a_child_has_its_own_folder_environment_and_exit_code(tmp_path):
    code = "import os; print(os.getcwd(), os.environ['COLOUR'], os.getpid()); os.environ['COLOUR'] = 'x'; exit(7)"
    first, second = (warm.run(["-c", code], cwd=tmp_path, env=os.environ | {"COLOUR": "red"}) for _ in range(2))
    assert first.returncode == second.returncode == 7
    assert first.stdout.split()[:2] == second.stdout.split()[:2] == [str(tmp_path), "red"]
    assert first.stdout.split()[2] != second.stdout.split()[2]


def test_commands_run_and_mistakes_are_their_own(tmp_path):
    assert warm.run(["--version"], check=0).stdout.startswith("rs-rlhf ")
    assert "no command" in warm.run(["nothing"], check=1).stderr
    assert "ZeroDivisionError" in warm.run(["-c", "1 / 0"], check=1).stderr


def test_a_killed_child_and_one_that_takes_too_long_are_told_apart():
    assert warm.run(["-c", "import os; os.kill(os.getpid(), 9)"]).returncode == -9
    with pytest.raises(subprocess.TimeoutExpired):
        warm.run(["-c", "import time; time.sleep(60)"], timeout=1)


def test_shims_hand_on_files_and_signals(tmp_path):
    env = os.environ | {"PATH": f"{warm.shims(tmp_path / 'bin')}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", "rs-rlhf --version | cat; python -c 'print(1 + 1)'"], env=env, capture_output=True
    )
    assert done.stdout.decode().startswith("rs-rlhf ") and done.stdout.endswith(b"2\n")
    waiting = "import time; print('waiting', flush=True); time.sleep(60)"
    process = subprocess.Popen([tmp_path / "bin" / "python", "-c", waiting], env=env, stdout=-1, stderr=-1)
    assert process.stdout.readline() == b"waiting\n"
    threading.Timer(0.1, process.send_signal, [signal.SIGINT]).start()
    assert process.wait(20) == 1 and b"KeyboardInterrupt" in process.stderr.read()
