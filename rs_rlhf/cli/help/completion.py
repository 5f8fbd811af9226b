"""`rs-rlhf completion`: a script with which the shell completes commands, flags, choices, names and paths."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from typing import Literal

from ... import declarations
from ...errors import OptionError
from ...options import make_parser, option
from .parsers import training_parser

NAMES = {"--config": "recipes", "--accelerate_config": "accelerate_configs"}


@dataclass(kw_only=True)
class CompletionOptions:
    """Print a completion script: `eval "$(rs-rlhf completion bash)"` in ~/.bashrc, or zsh's in a file of its fpath."""

    shell: Literal["bash", "zsh", "tcsh"] = option(help="the shell", positional=True)


def main(options: CompletionOptions) -> None:
    """Prints the script."""
    try:
        import shtab
    except ImportError:
        raise OptionError('shell completion needs shtab: pip install "rs-rlhf[completion]".', "shell") from None
    print(shtab.complete(whole_parser(), shell=options.shell))


def whole_parser() -> argparse.ArgumentParser:
    """Returns one parser of all commands, whose options know what completes them."""
    from ..main import COMMANDS, FAMILIES

    parser = argparse.ArgumentParser(prog="rs-rlhf")
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers()
    families = {name: commands.add_parser(name, help=f"{name} commands").add_subparsers() for name in FAMILIES}
    for name, command in COMMANDS.items():
        family, _, rest = name.partition(" ")
        made = command_parser(name, command.target)
        target, last = (families[family], rest) if rest else (commands, name)
        target.add_parser(last, help=command.summary, description=command.summary, parents=[made], add_help=False)
        for action in made._actions:
            _complete(action)
    return parser


def command_parser(name: str, target: str) -> argparse.ArgumentParser:
    """Returns the parser of a command, given the `module:function` of it."""
    from ..training import Training

    module = import_module(f"rs_rlhf.{target.partition(':')[0]}")
    command = getattr(module, target.partition(":")[2])
    if isinstance(command, Training):
        return training_parser(command)
    if make := getattr(module, "help_parser", None):
        return make()
    first, *_ = signature(command, eval_str=True).parameters.values()
    return make_parser(first.annotation, f"rs-rlhf {name}")


def _complete(action: argparse.Action) -> None:
    """Says what completes an option's value: the names of declarations, or files."""
    if kind := NAMES.get(next(iter(action.option_strings), "")):
        action.choices = declarations.names(kind)
    elif action.nargs != 0 and not action.choices and action.type in (None, str):
        action.complete = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}  # type: ignore[attr-defined]
