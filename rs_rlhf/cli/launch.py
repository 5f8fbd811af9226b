"""Start of the training commands: recipe and flags, in this process or through `accelerate launch`.

As in TRL's command line, `--config` names a recipe whose keys are flags, and flags override it. Flags that the
training does not know go to `accelerate launch`: `--accelerate_config NAME`, or its own such as `--num_processes 2`,
on the command line or in the recipe. Without any of them, and under `accelerate launch` or `torchrun`, the training
runs in this process. Unlike in TRL, a flag that neither side knows is an error that names the nearest.

Left out: several recipes at once, and recipes that inherit from another.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import TrainingArguments
from trl import TrlParser

from .. import declarations
from ..errors import OptionError, RSRLHFError
from ..options import Parser, check_place
from ..runs.folder import check_output_dir
from ..scoring.base import raise_first
from .arguments import split_arguments
from .signals import LAUNCHED, deferred, interruption


class TrainingParser(Parser, TrlParser):
    """TRL's parser, whose errors are one sentence, and which guesses no abbreviated flags."""

    def __init__(self, dataclass_types: tuple[type, ...], prog: str) -> None:
        super().__init__(dataclass_types, prog=prog, allow_abbrev=False)  # type: ignore[arg-type]


def run(command: str, parser: TrainingParser, main: Callable[..., None], argv: Sequence[str]) -> int:
    """Trains with `main`, in this process or through `accelerate launch`; returns the exit code."""
    config, flags, launch_flags = split_arguments(parser, argv)
    if launch_flags and not is_launched():
        refuse_absent_gpus(launch_flags, parser.parse_known_args(flags)[0].use_cpu)
        return launch(launch_arguments(command, config, flags, launch_flags))
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available()
    if several and os.environ.get("ACCELERATE_USE_DEEPSPEED") != "true":  # which this would switch off
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")  # or each CPU process would train alone, unaware of others
    if is_launched():
        end_with_parent()
    # TRL 1.16 and PEFT 0.21 ask for it by its old name.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    options = parse(parser, [*flags, *float32_flags(parser, flags)])
    refuse_data_parallel(options)
    check_output(options)
    main(*options)
    return 0


def check_output(options: Sequence[Any]) -> None:
    """Refuses an `output_dir` that holds another run, before anything is loaded; the first process decides for all."""
    args, found = options[1], None
    ours = {field.name for field in fields(args)} - {field.name for field in fields(TrainingArguments)}
    values = [value for option in (options[0], options[2]) for value in vars(option).values()]
    texts = [text for value in [*values, *(getattr(args, name) for name in ours)] for text in _texts(value)]
    if args.process_index == 0:
        try:
            read = [text for text in texts if os.path.exists(text)]
            check_output_dir(args.output_dir, args.resume_from_checkpoint, args.overwrite_output_dir, read)
        except RSRLHFError as error:
            found = error
    raise_first(gather_object([found]))


def _texts(value: object) -> list[str]:
    """The texts that an option gives, also those between commas."""
    several = value if isinstance(value, list | tuple) else [value]
    texts = [text for text in several if isinstance(text, str)]
    return [*texts, *(part.strip() for text in texts for part in text.split(","))]


def end_with_parent() -> None:
    """Has Linux send this process SIGTERM when its launcher is killed: the processes of a launcher are sessions of
    their own, and would go on training in a folder that the user resumes from.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))  # PR_SET_PDEATHSIG


def float32_flags(parser: TrainingParser, flags: Sequence[str]) -> list[str]:
    """Returns the flags of a training in float32 if mixed precision, TRL's default, is asked for without a GPU.

    A note says so.
    """
    given, _ = parser.parse_known_args(list(flags))
    asked = given.fp16 or given.bf16 or given.bf16 is None or given.bf16_full_eval or given.fp16_full_eval
    if given.use_cpu or not asked or torch.accelerator.is_available():
        return []
    if os.environ.get("RANK", "0") == "0":
        print("no GPU here: training in float32; --use_cpu true trains in bf16 on the CPU.", file=sys.stderr)
    names = ("bf16", "fp16", "bf16_full_eval", "fp16_full_eval")
    return [part for name in names for part in (f"--{name}", "false")]


def refuse_absent_gpus(launch_flags: Sequence[str], use_cpu: bool) -> None:
    """Refuses an accelerate config whose processes need GPUs that are not there, or are not to be used."""
    from accelerate.commands.launch import launch_command_parser

    args, _ = launch_command_parser().parse_known_args([*launch_flags, "script"])
    if args.config_file is None:
        return
    declared = declarations.read_yaml(Path(args.config_file))
    if args.cpu or declared.get("use_cpu"):
        return
    machines = args.num_machines or declared.get("num_machines") or 1
    processes = (args.num_processes or declared.get("num_processes") or 1) // machines
    there = 0 if use_cpu else torch.accelerator.device_count()
    if processes > there:
        fewer = f"--num_processes {there} takes all, and " if there else ""
        raise OptionError(
            f"--accelerate_config {Path(args.config_file).stem} starts {processes} process(es) on GPUs, and "
            f"{'--use_cpu is true' if use_cpu else f'this machine has {there}'}; {fewer}"
            "--accelerate_config cpu_2proc --use_cpu true trains on two CPU processes.",
            "accelerate_config",
        )


def refuse_data_parallel(options: Sequence[object]) -> None:
    """Refuses to train in one process that sees several GPUs and that no launcher started: TRL does not support it."""
    count = torch.cuda.device_count()
    if count > 1 and not is_launched() and not any(getattr(option, "use_cpu", False) for option in options):
        raise OptionError(
            f"this process sees {count} GPUs but can train on one; give --accelerate_config multi_gpu to use all, or "
            "set CUDA_VISIBLE_DEVICES=0 in the environment to use one."
        )


def is_launched() -> bool:
    """Returns whether this process was started by `accelerate launch` or `torchrun`."""
    return "LOCAL_RANK" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ


def parse(parser: TrainingParser, flags: Sequence[str]) -> tuple[Any, ...]:
    """Returns the parser's dataclasses; a value that they refuse, or an `output_dir` that cannot be, is an
    [`OptionError`].
    """
    try:
        options = parser.parse_args_into_dataclasses(list(flags))
    except RSRLHFError:
        raise
    except (TypeError, ValueError) as error:  # of TRL's and transformers' own checks
        raise OptionError(" ".join(str(error).split())) from error
    check_place(str(options[1].output_dir), "folder", "output_dir")
    return options


def launch_arguments(command: str, config: str | None, flags: Sequence[str], launch_flags: Sequence[str]) -> list[str]:
    """Returns the arguments of `accelerate launch` for a training command, given those of [`split_arguments`].

    Example:
        >>> launch_arguments("reward", "a.yaml", ["--seed", "1"], ["--num_processes", "2"])
        ['--num_processes', '2', '-m', 'rs_rlhf', 'reward', '--config', 'a.yaml', '--seed', '1']
    """
    recipe = [] if config is None else ["--config", config]
    return [*launch_flags, "-m", "rs_rlhf", command, *recipe, *flags]


def launch(arguments: Sequence[str]) -> int:
    """Runs `accelerate launch` with these arguments; returns the exit code of a process that failed or was stopped,
    which has then said why.

    The first SIGINT or SIGTERM is passed on to the processes, which end in order; the second kills them.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM, after processes that have not said so have ended.
        OptionError: Flags that `accelerate launch` refuses.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # they report each signal and each exit code
    os.environ[LAUNCHED] = folder = tempfile.mkdtemp()
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGHUP"  # torch's launcher would kill a process that saves
    try:
        with deferred(_pass_on, lambda: _to_children(signal.SIGKILL)) as asked:
            launch_command(launch_command_parser().parse_args(list(arguments)))
    except (ChildFailedError, subprocess.CalledProcessError) as error:
        if asked.number and Path(folder, "told").exists():
            return 128 + asked.number
        if asked.number:
            raise interruption(asked.number) from None
        if not isinstance(error, ChildFailedError):
            return 1
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            raise RSRLHFError(
                f"process {rank} was ended by {failure.signal_name()}, as when memory is full."
            ) from None
        return failure.exitcode
    except ValueError as error:
        raise OptionError(f"accelerate launch: {' '.join(str(error).split())}") from error
    finally:
        os.environ.pop(LAUNCHED)
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _pass_on(number: int) -> None:
    """Sends the launched processes a signal; before there are any, ends the launcher."""
    if not _to_children(number):
        raise interruption(number)


def _to_children(number: int) -> int:
    """Sends the processes that this one has started a signal; returns how many there are."""
    import psutil

    children = psutil.Process().children()
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.send_signal(number)
    return len(children)
