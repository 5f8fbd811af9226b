"""Commands in real processes without their start-up: children forked from one warm process.

`python -m rs_rlhf …` spends most of a short test on imports. Here one process imports them once and then forks a child
for each command: its own pid, working folder, environment, files and exit code. What is read while modules are
imported (`HF_HOME`, `CUDA_VISIBLE_DEVICES`, …) is that of the warm process; a test of such a variable starts its own.

This file is also the client that `shims` puts on the PATH as `rs-rlhf` and `python`, so it imports little.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WARM = (
    "rs_rlhf.trainers.grpo rs_rlhf.trainers.reward trl.trainer.sft_trainer rs_rlhf.cli.launch "
    "rs_rlhf.scoring.serving.server deepspeed accelerate.commands.launch"
)
ACCELERATE = "import sys; from accelerate.commands.launch import main; sys.argv[0] = 'accelerate'; main()"
_server: list[tuple[subprocess.Popen, str]] = []


def run(argv, *, cwd=None, env=None, timeout=300, check=None):
    """Runs `rs-rlhf ARGV` in a child of the warm process, as `subprocess.run(capture_output=True, text=True)` would.

    Args:
        argv (list of `str`): The arguments; or `["-c", code]`, which runs Python code instead.
        cwd (path, *optional*): Working folder.
        env (`dict`, *optional*): The whole environment; that of the test by default.
        timeout (`float`): Seconds after which the child is killed and `subprocess.TimeoutExpired` is raised.
        check (`int`, *optional*): The exit code that is asserted.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, open(os.devnull) as nothing:
        child = Child(address(), list(map(str, argv)), cwd, env, (nothing.fileno(), out.fileno(), err.fileno()))
        try:
            code = child.wait(timeout)
        except TimeoutError:
            child.kill(signal.SIGKILL)
            raise subprocess.TimeoutExpired(["rs-rlhf", *argv], timeout) from None
        for file in (out, err):
            file.seek(0)
        done = subprocess.CompletedProcess(["rs-rlhf", *argv], code, out.read().decode(), err.read().decode())
    assert check is None or code == check, f"exit code {code}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done


def shims(folder: Path) -> Path:
    """Writes programs `rs-rlhf` and `python` that run in children of the warm process; returns their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("rs-rlhf", "python"):
        program = folder / name
        start = f"sys.path.insert(0, {str(HERE)!r})\nimport warm\nsys.exit(warm.client({address()!r}, {name!r}))"
        program.write_text(f"#!{sys.executable} -ES\nimport sys\n{start}\n")
        program.chmod(0o755)
    return folder


def launching(folder: Path, env=None) -> dict:
    """Returns the environment in which `accelerate launch` starts its processes as children of the warm process."""
    given = os.environ if env is None else env
    return {**given, "PYTHON_EXEC": str(shims(folder / "shims") / "python"), "OMP_NUM_THREADS": "1"}


def launched(argv, folder: Path, *, expect=0, cwd=None, env=None, timeout=500) -> str:
    """Runs a command as [`run`] does, and the processes that it launches as well; returns what all of them print."""
    done = run(argv, cwd=cwd, env=launching(folder, env), timeout=timeout, check=expect)
    return done.stdout + done.stderr


def address() -> str:
    """Returns the socket of the warm process of this test session; starts it at the first call."""
    if not _server:
        path = os.path.join(tempfile.mkdtemp(prefix="warm"), "socket")
        env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        process = subprocess.Popen([sys.executable, str(HERE / "warm.py"), path], env=env, cwd=ROOT)
        atexit.register(process.kill)
        for _ in range(6000):  # a busy machine takes minutes
            if os.path.exists(path):
                break
            assert process.poll() is None, "the warm process ended"
            time.sleep(0.1)
        _server.append((process, path))
    return _server[0][1]


class Child:
    """A command in a child of the warm process; `pid` is the child's."""

    def __init__(self, path, argv, cwd, env, files):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        asked = {"argv": argv, "cwd": os.fspath(cwd or os.getcwd()), "env": dict(os.environ if env is None else env)}
        body = json.dumps(asked).encode()
        socket.send_fds(self.socket, [len(body).to_bytes(8, "little")], list(files))
        self.socket.sendall(body)
        self.pid = int.from_bytes(_exactly(self.socket, 8), "little")

    def wait(self, timeout=None):
        """Returns the exit code, or -9 if the child was killed before it could say one."""
        self.socket.settimeout(timeout)
        told = _exactly(self.socket, 8)
        return int.from_bytes(told, "little") if told else -signal.SIGKILL

    def kill(self, number):
        """Sends the child a signal."""
        os.kill(self.pid, number)


def client(path: str, name: str) -> int:
    """What a shim runs: its arguments, files and signals are handed to a child."""
    argv = sys.argv[1:]
    if name == "python":
        argv = argv[1:] if argv[:1] == ["-u"] else argv
        if argv[:2] == ["-m", "rs_rlhf"]:
            argv = argv[2:]
        elif argv and argv[0].endswith(".py"):
            argv = ["-c", Path(argv[0]).read_text(), *argv[1:]]
        elif argv[:1] != ["-c"]:
            os.execv(sys.executable, [sys.executable, *argv])
    child = Child(path, argv, None, None, (0, 1, 2))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: child.kill(number))
    return child.wait()


def _exactly(connection, count):
    data = b""
    while len(data) < count and (part := connection.recv(count - len(data))):
        data += part
    return data


def serve(path: str) -> None:
    """Imports what commands need, then forks a child for every connection."""
    from importlib import import_module

    for module in WARM.split():
        import_module(module)
    import deepspeed

    # DeepSpeed would compile this one at its first run on a machine, for minutes; gloo does as well.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    gc.collect()
    gc.freeze()  # what modules hold is not looked through, and so copied, by every child
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system reaps the children
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path + ".new")
        listener.listen()
        os.rename(path + ".new", path)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _child(connection)
            connection.close()


def _child(connection):
    """Becomes the command: takes its files, folder and environment, runs it and says its exit code."""
    code = 1
    try:
        size, files, _, _ = socket.recv_fds(connection, 8, 3)
        asked = json.loads(_exactly(connection, int.from_bytes(size, "little")))
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setpgid(0, 0)
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        os.chdir(asked["cwd"])
        os.environ.clear()
        os.environ.update(asked["env"])
        sys.executable = os.environ.get("PYTHON_EXEC", sys.executable)  # which starts one process, PYTHON_EXEC several
        known = asked["env"].get("PYTHONPATH", "").split(os.pathsep)
        sys.path[1:1] = [folder for folder in known if folder and folder not in sys.path]
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", buffering=1), open(2, "w", buffering=1)
        connection.sendall(os.getpid().to_bytes(8, "little"))
        code = _command(asked["argv"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        connection.sendall((code & 0xFF).to_bytes(8, "little"))
        os._exit(code)


def _command(argv):
    import traceback

    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    try:
        if argv[:1] == ["-c"]:
            sys.argv = ["-c", *argv[2:]]
            sys.path[0] = ""
            exec(compile(argv[1], "<string>", "exec"), {"__name__": "__main__"})
            return 0
        from rs_rlhf.cli.main import main

        sys.argv = ["rs-rlhf", *argv]
        return main(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        import atexit

        atexit._run_exitfuncs()


if __name__ == "__main__":
    serve(sys.argv[1])
