"""Stages of an experiment: commands that run once each, several at a time, and resume.

A stage is done once `stages/NAME.json` below the output folder says so, with its command, the settings of its
`--config` and its seconds. A stage with another command or other settings than noted there is an error: its folder
holds what the old one made. Each job has a core of its own and one thread, so that the seconds of a stage are core
seconds. Commands run in children of a process that has torch and TRL imported: hundreds of them would import for
hours.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from queue import Queue

import yaml

from rs_rlhf.runs.files import lock

RECORD = "rs_rlhf_run.json"  # of a training that has begun
# One thread, and blocks of memory that are kept: giving them back after each operation costs a tenth of a step.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_TOP_PAD_": "200000000",
}
IMPORTED = ["rs_rlhf.cli.main", "rs_rlhf.cli.sft", "rs_rlhf.trainers.reward", "rs_rlhf.trainers.grpo"]
IMPORTED += ["transformers.models.qwen2_vl.modeling_qwen2_vl", "transformers.models.clip.modeling_clip"]


@dataclass(frozen=True)
class Stage:
    """A step of an experiment.

    Args:
        name (`str`): Names it; `score/1/captioner`.
        command (sequence of `str`): Arguments of `rs-rlhf`; or a script of this folder and its arguments.
        after (sequence of `str`): Stages that must be done first.
    """

    name: str
    command: Sequence[str]
    after: Sequence[str] = ()


def run_stages(stages: Sequence[Stage], out: Path, jobs: int) -> None:
    """Runs the stages that are not done, in an order that their needs allow; ends with the first that fails.

    Args:
        stages (sequence of [`Stage`]): All of the experiment.
        out (`Path`): Holds `stages` (what is done) and `logs`.
        jobs (`int`): Stages at a time.
    """
    out.mkdir(parents=True, exist_ok=True)
    folder = os.open(out, os.O_RDONLY)
    try:
        if not lock(folder, out, wait=False):
            raise SystemExit(f"{out}: another process runs stages of it; wait, or give another --out.")
        run_unlocked(stages, out, jobs)
    finally:
        os.close(folder)


def run_unlocked(stages: Sequence[Stage], out: Path, jobs: int) -> None:
    """Runs the stages in a folder that no other process works in."""
    done = {stage.name for stage in stages if is_done(stage, out)}
    todo = [stage for stage in stages if stage.name not in done]
    print(f"{len(done)} of {len(stages)} stages are done: {out}", flush=True)
    cores: Queue[int] = Queue()
    usable = sorted(os.sched_getaffinity(0))
    for place in range(jobs):
        cores.put(usable[place % len(usable)])
    running: dict[Future[float], Stage] = {}
    with ThreadPoolExecutor(jobs) as pool:
        while todo or running:
            ready = [stage for stage in todo if set(stage.after) <= done][: jobs - len(running)]
            for stage in ready:
                todo.remove(stage)
                running[pool.submit(run_stage, stage, out, cores)] = stage
            if not running:
                missing = {name for stage in todo for name in stage.after} - done - {stage.name for stage in todo}
                raise SystemExit(f"stages are never done: {', '.join(sorted(missing)) or 'they need each other'}")
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                stage = running.pop(future)
                seconds = future.result()
                done.add(stage.name)
                print(f"[{len(done)}/{len(stages)}] {stage.name}: {seconds / 60:.1f} min", flush=True)


def set_up() -> None:
    """Says how the commands' processes begin; to be called before the first."""
    os.environ.update(ENVIRONMENT)
    multiprocessing.set_forkserver_preload(IMPORTED)


def note_of(stage: Stage, out: Path) -> Path:
    """The file that says that a stage is done."""
    return out / "stages" / f"{stage.name.replace('/', '-')}.json"


def is_done(stage: Stage, out: Path) -> bool:
    """Whether a stage is done; one that was done by another command ends the experiment."""
    path = note_of(stage, out)
    if not path.is_file():
        return False
    note = json.loads(path.read_text())
    if note.get("config") != config_of(stage):
        raise SystemExit(
            f"{path}: {stage.name} was done with other settings than its --config has now. "
            "Give another --out, or remove that file and what was made after it."
        )
    if (before := note["command"]) != [*stage.command]:
        raise SystemExit(
            f"{path}: {stage.name} was done by another command:\n  {' '.join(before)}\n  {' '.join(stage.command)}\n"
            "Give another --out, or remove that file and what was made after it."
        )
    return True


def config_of(stage: Stage) -> dict[str, object] | None:
    """The settings of the recipe's file that a stage's `--config` names."""
    if "--config" not in stage.command:
        return None
    name = Path(stage.command[stage.command.index("--config") + 1]).name
    settings: dict[str, object] = yaml.safe_load((Path(__file__).parent / f"{name}.yaml").read_text())
    return settings


def run_stage(stage: Stage, out: Path, cores: Queue[int]) -> float:
    """Runs one stage on a core of its own, and notes that it is done; returns its seconds."""
    config, core, start = config_of(stage), cores.get(), time.perf_counter()
    try:
        run_command(stage.command, out / "logs" / f"{stage.name.replace('/', '-')}.log", core)
    finally:
        cores.put(core)
    seconds, path = time.perf_counter() - start, note_of(stage, out)
    note = {"command": [*stage.command], "config": config, "seconds": round(seconds)}
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".tmp")
    new.write_text(json.dumps(note, indent=1) + "\n")
    new.replace(path)
    return seconds


def run_command(arguments: Sequence[str], log: Path, core: int) -> None:
    """Runs a command with one thread on a core, resuming a training; an error ends all and names the log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    resume = []
    if "--config" in arguments and arguments[0] != "raft":  # a round resumes by itself
        begun = (Path(arguments[arguments.index("--output_dir") + 1]) / RECORD).is_file()
        resume = ["--resume_from_checkpoint", "true"] if begun else []
    child = multiprocessing.get_context("forkserver").Process(target=call, args=([*arguments, *resume], log, core))
    child.start()
    child.join()
    if child.exitcode:
        last = "\n  ".join(log.read_text(errors="replace").splitlines()[-5:])
        raise SystemExit(f"{' '.join(arguments)}\nended with exit code {child.exitcode}; {log}:\n  {last}")


def call(arguments: list[str], log: Path, core: int) -> None:
    """Calls a command of `rs-rlhf`, or a script of this folder, in this process; what it prints goes to the log."""
    os.sched_setaffinity(0, {core})
    threading.Thread(target=end_with_parent, daemon=True).start()
    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    if arguments[0].endswith(".py"):
        sys.argv = [str(Path(__file__).parent / arguments[0]), *arguments[1:]]
        runpy.run_path(sys.argv[0], run_name="__main__")
        return
    from rs_rlhf.cli.main import main

    sys.argv = ["rs-rlhf", *arguments]
    sys.exit(main(arguments))


def end_with_parent() -> None:
    """Ends this process when the experiment has ended: a stage that went on would write beside a resumed one."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os._exit(1)
