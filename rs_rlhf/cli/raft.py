"""`rs-rlhf raft`: a policy, prompts with images and a score model in, a better policy out, without a label.

Flags that are not raft's are those of `rs-rlhf sft`, which trains each round in this process, or through
`accelerate launch` if there are flags of it. Left out: a start under `accelerate launch`.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .. import declarations
from ..errors import OptionError
from ..options import make_parser, parse_known, to_flags
from ..trainers.raft.rounds import RaftOptions, Round, run_rounds, summary
from .signals import Stopped
from .training import STARTING, check_model_name

PROG = "rs-rlhf raft"
# Options that both sampling and training read.
SHARED = (
    *("augment", "min_pixels", "max_pixels", "max_image_pixels", "image_hosts"),
    *("bands", "stretch", "stretch_range", "nodata", "image_options"),
)
# Options of `rs-rlhf sft` that a round sets itself.
SET = ("weight_column", "eval_strategy", "eval_on_start", "eval_steps", "load_best_model_at_end")


def main(argv: Sequence[str]) -> int:
    """Runs the rounds and prints what they have brought; returns the exit code."""
    if {"-h", "--help"} & {*argv}:
        parser = make_parser(RaftOptions, PROG)
        parser.epilog = (
            f"Beside these: the options of `rs-rlhf sft`, which trains each round (--learning_rate, …); {STARTING}"
        )
        parser.print_help()
        return 0
    from . import launch

    if launch.is_launched():
        raise OptionError(f"{PROG} launches its trainings itself; give it the flags of accelerate launch.")
    options, flags, launch_flags = read_arguments(argv)

    def fine_tune(this: Round) -> int:
        return train_round(this, flags, launch_flags)

    if code := run_rounds(options, fine_tune):
        return code
    from ..runs.tables import print_markdown

    print_markdown(summary(options))
    print(f"\nPolicy saved to {Round(options, options.rounds).policy}; look at the run with")
    print(f"  rs-rlhf report {options.output_dir}")
    return 0


def read_arguments(argv: Sequence[str]) -> tuple[RaftOptions, list[str], list[str]]:
    """Splits arguments, and the recipe that they name, into raft's options, the flags of the training, and those of
    `accelerate launch`; a flag that nobody knows is an [`OptionError`].
    """
    from . import launch
    from .sft import training

    config, flags = launch.take_option(list(argv), "--config")
    recipe = launch.read_recipe(str(declarations.find("recipes", config))) if config else {}
    parser = training.parser()
    launched = launch.launch_options() - {action.dest for action in parser._actions} if recipe else set()
    options, rest = parse_known(RaftOptions, plain_flags([*recipe_flags(recipe, launched), *flags]), PROG)
    resume, rest = launch.take_option(rest, "--resume_from_checkpoint")
    if resume not in (None, "true"):
        detail = f"--resume_from_checkpoint is {resume}; {PROG} resumes with the same command, so leave it out."
        raise OptionError(detail, "resume_from_checkpoint")
    check_model_name(options.policy)
    _, train_flags, launch_flags = launch.split_arguments(parser, rest)
    given = {flag.partition("=")[0].lstrip("-").replace("-", "_") for flag in train_flags if flag.startswith("--")}
    for name in SET:
        if name in given:
            raise OptionError(f"--{name} is set by {PROG}, which evaluates each round; leave it out.", name)
    values = parser.parse_args(train_flags)  # so that a wrong value is an error now, not after the sampling
    if launch_flags:
        launch.refuse_absent_gpus(launch_flags, values.use_cpu)
    return options, train_flags, launch_flags


def recipe_flags(recipe: Mapping[str, Any], launched: Iterable[str]) -> list[str]:
    """Returns the keys of a recipe as flags; those of `launched` take no value if they are on or off."""
    flags: list[str] = []
    for key, value in recipe.items():
        if value is None or (value is False and key in launched):
            continue
        if isinstance(value, bool):
            flags += [f"--{key}"] if key in launched else [f"--{key}", str(value).lower()]
        elif isinstance(value, dict):
            flags += [f"--{key}", json.dumps(value)]
        else:
            flags += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    return flags


def plain_flags(flags: Sequence[str]) -> list[str]:
    """Returns flags in which raft's own switches have no value, as those of trainings have (`--overwrite true`)."""
    switches = {
        name
        for action in make_parser(RaftOptions, PROG)._actions
        if action.const is True
        for name in action.option_strings
    }
    kept: list[str] = []
    for place, flag in enumerate(flags):
        before, after = flags[place - 1] if place else "", [*flags, ""][place + 1]
        valued = before in switches and flag.lower() in ("true", "false")
        if not (valued or (flag in switches and after.lower() == "false")):
            kept.append(flag)
    return kept


def train_round(this: Round, flags: Sequence[str], launch_flags: Sequence[str]) -> int:
    """Trains a round, from its last checkpoint if it was stopped; returns the exit code.

    Raises:
        Stopped: A signal has stopped the training.
    """
    from ..runs.checkpoints import last_whole_checkpoint
    from . import launch
    from .sft import training

    folder = this.policy
    own = {"model_name_or_path": this.start, "dataset_name": this.data, "image_root": this.options.output_dir}
    own |= {"weight_column": "weight", "seed": this.seed, "output_dir": folder, "eval_strategy": "no"}
    own |= {"resume_from_checkpoint" if last_whole_checkpoint(folder) else "overwrite_output_dir": "true"}
    set_flags = [text for name, value in own.items() for text in (f"--{name}", str(value))]
    every = [*flags, *to_flags(this.options, SHARED), *set_flags]
    if launch_flags:
        return launch.launch(launch.launch_arguments("sft", None, every, launch_flags))
    try:
        return launch.run("sft", training.parser(), training.main, every)
    except Stopped as stop:
        name = signal.Signals(stop.number).name
        raise Stopped(
            stop.number, f"stopped by {name} in the training of round {this.number}; the same command resumes."
        ) from None
