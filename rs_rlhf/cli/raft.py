"""`rs-rlhf raft`: a policy, prompts with images and a score model in, a better policy out, without a label.

Flags that are not raft's are those of `rs-rlhf sft`, which trains each round in this process, or through
`accelerate launch` if there are flags of it. Left out: a start under `accelerate launch`.
"""

from __future__ import annotations

import json
import signal
from argparse import ArgumentParser
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .. import declarations
from ..errors import OptionError
from ..options import check_model_name, make_parser, parse_known, to_flags
from ..trainers.raft.rounds import RaftOptions, Round, run_rounds, summary
from .arguments import launch_options, read_recipe, split_arguments, take_option
from .help.parsers import add_others, add_start, training_parser
from .help.table import known_options, stored
from .sft import training as sft
from .signals import Stopped
from .training import quietly_import_transformers

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
    everything = bool({"--help_all", "--help-all"} & {*argv})
    if everything or {"-h", "--help"} & {*argv}:
        help_parser(everything).print_help()
        return 0
    if stored():
        read_arguments(argv, training_parser(sft))
    quietly_import_transformers()
    from . import launch

    if launch.is_launched():
        raise OptionError(f"{PROG} launches its trainings itself; give it the flags of accelerate launch.")
    parser = sft.parser()
    options, flags, launch_flags = read_arguments(argv, parser)
    if launch_flags:
        launch.refuse_absent_gpus(launch_flags, parser.parse_args(flags).use_cpu)

    def fine_tune(this: Round) -> int:
        return train_round(this, flags, launch_flags)

    if code := run_rounds(options, fine_tune):
        return code
    from ..runs.tables import print_markdown

    print_markdown(summary(options))
    print(f"\nPolicy saved to {Round(options, options.rounds).policy}; look at the run with")
    print(f"  rs-rlhf report {options.output_dir}")
    return 0


def help_parser(everything: bool = True) -> ArgumentParser:
    """Returns the parser of raft's options and, as in `rs-rlhf sft`, which trains each round, of TRL's."""
    parser = make_parser(RaftOptions, PROG)
    taken = {*parser._option_string_actions, *(f"--{name}" for name in SET)}
    add_start(parser)
    add_others(parser, [entry for entry in known_options("sft") if not taken & {*entry["flags"]}], everything)
    return parser


def read_arguments(argv: Sequence[str], parser: ArgumentParser) -> tuple[RaftOptions, list[str], list[str]]:
    """Splits arguments, and the recipe that they name, into raft's options, the flags of the training, and those of
    `accelerate launch`; a flag that nobody knows is an [`OptionError`]. `parser` is that of `rs-rlhf sft`.
    """
    config, flags = take_option(list(argv), "--config")
    recipe = read_recipe(str(declarations.find("recipes", config))) if config else {}
    launched = launch_options() - {action.dest for action in parser._actions} if recipe else set()
    options, rest = parse_known(RaftOptions, plain_flags([*recipe_flags(recipe, launched), *flags]), PROG)
    resume, rest = take_option(rest, "--resume_from_checkpoint")
    if resume not in (None, "true"):
        detail = f"--resume_from_checkpoint is {resume}; {PROG} resumes with the same command, so leave it out."
        raise OptionError(detail, "resume_from_checkpoint")
    check_model_name(options.policy)
    _, train_flags, launch_flags = split_arguments(parser, rest)
    given = {flag.partition("=")[0].lstrip("-").replace("-", "_") for flag in train_flags if flag.startswith("--")}
    for name in SET:
        if name in given:
            raise OptionError(f"--{name} is set by {PROG}, which evaluates each round; leave it out.", name)
    parser.parse_args(train_flags)  # so that a wrong value is an error now, not after the sampling
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

    folder = this.policy
    own = {"model_name_or_path": this.start, "dataset_name": this.data, "image_root": this.options.output_dir}
    own |= {"weight_column": "weight", "seed": this.seed, "output_dir": folder, "eval_strategy": "no"}
    own |= {"resume_from_checkpoint" if last_whole_checkpoint(folder) else "overwrite_output_dir": "true"}
    set_flags = [text for name, value in own.items() for text in (f"--{name}", str(value))]
    every = [*flags, *to_flags(this.options, SHARED), *set_flags]
    if launch_flags:
        return launch.launch(launch.launch_arguments("sft", None, every, launch_flags))
    try:
        return launch.run("sft", sft.parser(), sft.main, every)
    except Stopped as stop:
        name = signal.Signals(stop.number).name
        raise Stopped(
            stop.number, f"stopped by {name} in the training of round {this.number}; the same command resumes."
        ) from None
