"""Arguments of the training commands before anything heavy is imported: recipe, own flags, flags of the launcher.

Left out: the launch itself (see `launch`).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .. import declarations
from ..errors import DeclarationError, OptionError
from ..options import nearest_flag
from .help.table import live_launch_options, stored

DATA = "$RS_RLHF_DATA"  # in the values of recipes: the folder of the data


def split_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[str | None, list[str], list[str]]:
    """Splits a training command's arguments into the recipe's path (or `None`), its own flags, and those of the
    launcher. `parser` is TRL's, or the one that [`training_parser`] makes of the stored options.

    The recipe's values become the parser's defaults. A flag or key that neither the training nor `accelerate launch`
    knows is an [`OptionError`] or [`DeclarationError`].
    """
    config, flags = take_option(list(argv), "--config")
    name, flags = take_option(flags, "--accelerate_config")
    recipe: dict[str, Any] = {}
    if config is not None:
        config = str(declarations.find("recipes", config))
        recipe = read_recipe(config)
    trained = {action.dest for action in parser._actions}
    set_defaults = getattr(parser, "set_defaults_with_config", parser.set_defaults)  # TRL's, which requires them less
    set_defaults(**{key: value for key, value in recipe.items() if key in trained})
    name = name or recipe.pop("accelerate_config", None)
    from_recipe = {key: value for key, value in recipe.items() if key not in trained and key != "accelerate_config"}
    _, rest = parser.parse_known_args(flags)
    flags = _without(flags, rest)
    if from_recipe or rest:
        known = launch_options()
        for key in from_recipe:
            if key not in known:
                nearest = nearest_flag(f"--{key}", flags_of(trained | known)).replace("--", "", 1)
                raise DeclarationError(f"{config}: unknown key {key!r}{nearest}")
        _check_rest(rest, trained, known)
    launch_flags = [] if name is None else ["--config_file", str(declarations.find("accelerate_configs", str(name)))]
    for key, value in from_recipe.items():
        if value is not False:
            launch_flags += [f"--{key}"] if value is True else [f"--{key}", str(value)]
    return config, flags, launch_flags + rest


def read_recipe(path: str) -> dict[str, Any]:
    """Reads a recipe (a YAML mapping), sets the environment variables of its `env`, and fills in `$RS_RLHF_DATA`."""
    recipe = declarations.read_yaml(Path(path))
    env = recipe.pop("env", {})
    if not isinstance(env, dict):
        raise DeclarationError(f"{path}: env must hold names and values, got {type(env).__name__}.")
    os.environ.update({name: str(value) for name, value in env.items()})
    root = str(declarations.data_root())
    return {key: value.replace(DATA, root) if isinstance(value, str) else value for key, value in recipe.items()}


def take_option(argv: list[str], option: str) -> tuple[str | None, list[str]]:
    """Takes `option VALUE` or `option=VALUE` out of the arguments; the last one counts."""
    value, rest = None, []
    arguments = iter(argv)
    for argument in arguments:
        if not argument.startswith("--") or _key(argument) != _key(option):
            rest.append(argument)
        elif "=" in argument:
            value = argument.partition("=")[2]
        elif (value := next(arguments, None)) is None:
            raise OptionError(f"{option} needs a value.", option)
    return value, rest


def _without(arguments: Sequence[str], rest: Sequence[str]) -> list[str]:
    """Returns the arguments without `rest`, an ordered part of them."""
    kept, place = [], 0
    for argument in arguments:
        if place < len(rest) and argument == rest[place]:
            place += 1
        else:
            kept.append(argument)
    return kept


def _check_rest(rest: Sequence[str], trained: set[str], known: set[str]) -> None:
    """Refuses what is neither a flag of `accelerate launch` nor the value of one."""
    for place, argument in enumerate(rest):
        if argument.startswith("-"):
            if _key(argument) not in known:
                raise OptionError(f"unknown flag {argument}{nearest_flag(argument, flags_of(trained | known))}")
        elif place == 0 or not rest[place - 1].startswith("--") or "=" in rest[place - 1]:
            raise OptionError(f"{argument!r:.80} follows no flag; flags are written --name value.")


def flags_of(names: Iterable[str]) -> list[str]:
    """Returns the flags of options."""
    return [f"--{name}" for name in names]


def launch_options() -> set[str]:
    """Returns the names of the flags of `accelerate launch`, but for those that choose what is launched."""
    if known := stored():
        return {*known["launcher"]}
    return live_launch_options()


def _key(flag: str) -> str:
    return flag.partition("=")[0].lstrip("-").replace("-", "_")
