"""The `rs-rlhf` program: finds a command, runs it, and turns errors and signals into one sentence.

A command's module is imported when the command runs, so that `rs-rlhf --help` answers at once. An [`RSRLHFError`] ends
in one sentence on standard error and exit code 1 (`--debug` or `RS_RLHF_DEBUG=1` adds its traceback); every other
exception is a bug and keeps its traceback. Ctrl-C ends in one sentence and exit code 130, SIGTERM in one and 143,
`| head` quietly.

Left out: a command registry (the table below is all there is).
"""

from __future__ import annotations

import difflib
import os
import select
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import NamedTuple

from ..errors import RSRLHFError, disk_full
from ..options import parse
from ..version import __version__
from .signals import LAUNCHED, Stopped, exit_code, handled

RESTART = "the same command starts again from the beginning"
RESUME = "the same command resumes"
CHECKPOINT = "the same command with --resume_from_checkpoint true resumes from the last checkpoint, if there is one"
STOPPED = "the server no longer answers"


class Command(NamedTuple):
    """One line for `--help`, the `module:function` of the command's options, and what follows Ctrl-C."""

    summary: str
    target: str
    interrupted: str = RESTART


COMMANDS = {
    "reward": Command("train a score model on preference pairs", "cli.reward:training", CHECKPOINT),
    "sft": Command("fine-tune a vision-language model on image-text data", "cli.sft:training", CHECKPOINT),
    "grpo": Command(
        "improve a vision-language model with the score model as its reward", "cli.grpo:training", CHECKPOINT
    ),
    "dpo": Command("improve a vision-language model on preference pairs", "cli.dpo:training", CHECKPOINT),
    "kto": Command("improve a vision-language model on answers labelled good or bad", "cli.dpo:kto", CHECKPOINT),
    "raft": Command(
        "improve a vision-language model on its own best answers, as the score model ranks them",
        "cli.raft:main",
        RESUME,
    ),
    "clip": Command("fine-tune a CLIP on image-text data", "cli.clip:training", CHECKPOINT),
    "merge": Command("merge a LoRA adapter into its base", "cli.merge:main"),
    "serve": Command("score over HTTP: the reward server", "cli.serve:main", STOPPED),
    "score": Command("score image-text data of any size, on any number of processes", "cli.score:main", RESUME),
    "curate": Command("keep the best part of scored data, with a report", "cli.curate:main"),
    "browse": Command(
        "look through scored data and move the cut, in a browser", "curation.browser.app:browse", STOPPED
    ),
    "app": Command(
        "ask models about tiles, see answers scored, and choose between texts, in a browser",
        "app.command:main",
        STOPPED,
    ),
    "best-of-n": Command("sample N answers a question and let the score model choose", "cli.eval:best_of_n", RESUME),
    "eval run": Command(
        "evaluate a model on benchmarks (`rs-rlhf eval --model …` is the same)", "cli.eval:run", RESUME
    ),
    "eval compare": Command("compare two evaluations, question by question", "cli.eval:compare_runs"),
    "eval export": Command("write an evaluation as lm-evaluation-harness does, or log it to W&B", "cli.eval:export"),
    "eval preferences": Command("measure a score model on preference files", "cli.eval:preferences"),
    "report": Command("write one HTML page about a training run, or several, without W&B", "cli.runs:report"),
    "plot": Command("draw the learning curves of training runs, as PNG, SVG or PDF", "cli.runs:plot"),
    "dashboard": Command("lay out a W&B workspace for the runs of a project", "cli.runs:dashboard"),
    "data check": Command("list every problem of data, before a training meets it", "cli.data.check:main"),
    "data convert": Command(
        "rows of any known form in that of TRL, LLaVA or Label Studio, or our own", "cli.data.convert:main"
    ),
    "data pairs": Command("make preference pairs from captioned or labelled images", "cli.data.make:make_pairs"),
    "data sample-pairs": Command(
        "make preference pairs from a policy's wrong answers", "preferences.mistakes:sample_pairs", RESUME
    ),
    "data dpo": Command(
        "order candidate answers by a score model, for `dpo` and `kto`", "preferences.dpo:write_dpo", RESUME
    ),
    "data best": Command(
        "keep the best of several answers by a score model, as data for `rs-rlhf sft`",
        "preferences.best:write_rows",
        RESUME,
    ),
    "data damage": Command("make a noisy pool of image-text rows, the damage known", "cli.data.make:write_damaged"),
    "data scenes": Command("write made-up overhead scenes with captions and classes", "cli.data.make:write_scenes"),
    "init": Command("look at a folder of your own data, and write a recipe and the whole way", "cli.init.main:main"),
    "tiny-clip": Command("write a tiny random CLIP model", "cli.tiny_models:write_clip"),
    "tiny-vlm": Command("write a tiny random vision-language model", "cli.tiny_models:write_vlm"),
    "demo": Command("the whole path in minutes, on made-up scenes and a tiny model", "cli.demo:main"),
    "completion": Command("print the completion script of bash, zsh or tcsh", "cli.help.completion:main"),
    "env": Command("print the versions that a bug report needs", "cli.env:main"),
}
FAMILIES = ("data", "eval")  # commands of two words


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv (sequence of `str`, *optional*): Arguments; those of the process when left out.

    Returns:
        `int`: Exit code: 0, 1 after a mistake of the user, 130 after Ctrl-C, 143 after SIGTERM.
    """
    try:
        code = _main(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `| head` has seen enough
        if not _output_closed():
            raise
        return 0


def _main(argv: list[str]) -> int:
    argv, debug = take_debug(argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(help_text())
        return 0 if argv else 1
    if argv[0] in ("-V", "--version"):
        print(f"rs-rlhf {__version__}")
        return 0
    name, rest = command_name(argv)
    if rest in ([], ["-h"], ["--help"]) and name in FAMILIES:
        print(help_text(f"{name} "))
        return 0 if rest else 1
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        guess = f"; did you mean {near[0]!r}?" if near else "."
        print(f"rs-rlhf: no command {name!r}{guess} Commands: {', '.join(COMMANDS)}.", file=sys.stderr)
        return 1
    try:
        with handled(lambda: say_interrupted(name)):
            return run(name, rest)
    except SystemExit as stop:  # argparse: 0 after --help, 2 after an error that it has printed
        return 1 if stop.code else 0
    except RSRLHFError as error:
        if debug:
            traceback.print_exc()
        if tells():
            print(f"rs-rlhf {name}: {sentence(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        if debug:
            traceback.print_exc()
        if not isinstance(stop, Stopped):
            say_interrupted(name)
        elif tells():
            print(f"\nrs-rlhf {name}: {stop.sentence}", file=sys.stderr)
        return exit_code(stop)
    except Exception:
        if several() and told_mark().exists() and not debug:  # its peer is gone, and has said why
            return 1
        raise


def say_interrupted(name: str) -> None:
    """Prints what Ctrl-C leaves; of several processes one does, after `launch.launch` its own."""
    if LAUNCHED not in os.environ and os.environ.get("RANK", "0") == "0":
        print(f"\nrs-rlhf {name}: interrupted; {COMMANDS[name].interrupted}.", file=sys.stderr, flush=True)


def several() -> bool:
    """Whether a launcher has started several processes on this machine."""
    return os.environ.get("LOCAL_WORLD_SIZE", "1") != "1"


def tells() -> bool:
    """Whether this process says how the command ended: of those of one launcher the first that gets there, since a
    mistake may be met by all of them or by any one.
    """
    if not several() and LAUNCHED not in os.environ:
        return True
    try:
        told_mark().touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def told_mark() -> Path:
    """Returns the file that is there once a process of this launch has told how it ended."""
    import psutil

    if folder := os.environ.get(LAUNCHED):
        return Path(folder, "told")
    launcher = psutil.Process(os.getppid())
    return Path(tempfile.gettempdir(), f"rs-rlhf-{launcher.pid}-{launcher.create_time():.2f}")


def _output_closed() -> bool:
    """Whether nobody reads what is printed any more; what is still in the buffers then goes nowhere."""
    closed = False
    for stream in (sys.stdout, sys.stderr):
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
            closed = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return closed


def take_debug(argv: Sequence[str]) -> tuple[list[str], bool]:
    """Takes `--debug` out of the arguments; `--debug underflow_overflow`, with a value, is transformers' own flag."""
    rest = [
        argument
        for place, argument in enumerate(argv)
        if argument != "--debug" or (place > 0 and not [*argv, "-"][place + 1].startswith("-"))
    ]
    return rest, len(rest) < len(argv) or os.environ.get("RS_RLHF_DEBUG", "0") not in ("", "0")


def command_name(argv: Sequence[str]) -> tuple[str, list[str]]:
    """Splits arguments into the command's name and the rest; `eval --model …` is `eval run --model …`."""
    first, rest = argv[0], list(argv[1:])
    if first not in FAMILIES or not rest:
        return first, rest
    if first == "eval" and rest[0].startswith("-") and rest not in (["-h"], ["--help"]):
        old = any(argument.split("=")[0] == "--preferences" for argument in rest)
        return ("eval preferences" if old else "eval run"), rest
    if rest[0] in ("-h", "--help"):
        return first, rest[:1]
    return f"{first} {rest[0]}", rest[1:]


def run(name: str, argv: list[str]) -> int:
    """Imports a command's function and calls it with its options, read from these arguments; returns the exit code.

    A function of one dataclass is called with that; one of `argv` reads the arguments itself.
    """
    module, function = COMMANDS[name].target.split(":")
    command = getattr(import_module(f"rs_rlhf.{module}"), function)
    first, *_ = signature(command, eval_str=True).parameters.values()
    if first.name == "argv":
        with disk_full():
            return command(argv)
    options = parse(first.annotation, argv, f"rs-rlhf {name}")
    outputs = [getattr(options, field.name) for field in fields(options) if field.metadata.get("writes")]
    with disk_full(", ".join(str(place) for place in outputs if place is not None)):
        return command(options) or 0


def help_text(prefix: str = "") -> str:
    """Returns the help of all commands, or of those whose names begin with `prefix`."""
    lines = [f"  {name:<18} {one.summary}" for name, one in COMMANDS.items() if name.startswith(prefix)]
    usage = f"usage: rs-rlhf [--version] [--debug] {prefix}COMMAND …"
    about = "RLHF for remote-sensing vision-language models, on top of TRL."
    return "\n\n".join([usage, about, "\n".join(lines), "`rs-rlhf COMMAND --help` lists a command's options."])


def sentence(error: Exception) -> str:
    """Returns the message of an error; of one from a data-loader worker, which comes as a traceback, the last line."""
    text = str(error).strip()
    if "Original Traceback" in text:
        text = text.splitlines()[-1].partition(": ")[2]
    return text
