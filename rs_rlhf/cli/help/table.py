"""The options of TRL, transformers and accelerate that the training commands take, as a stored table.

Importing these libraries to ask them takes seconds, so `python -m rs_rlhf.cli.help.table` writes what they answer to
`options.json`, which is packaged. The table holds for exactly the versions that it was made with: with others,
[`known_options`] asks the installed libraries, and a note says so.

Left out: our own options, which are read from their dataclasses.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields
from functools import lru_cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..training import Training

FILE = Path(__file__).with_name("options.json")
LIBRARIES = ("trl", "transformers", "accelerate")
TRAININGS = {name: f"{name}:training" for name in ("reward", "sft", "grpo", "dpo", "clip")} | {"kto": "dpo:kto"}


def training_of(name: str) -> Training:
    """Returns the training command of a name."""
    module, attribute = TRAININGS[name].split(":")
    return getattr(import_module(f"rs_rlhf.cli.{module}"), attribute)


def installed() -> dict[str, str]:
    """Returns the installed versions of the libraries."""
    return {name: version(name) for name in LIBRARIES}


@lru_cache
def stored() -> dict[str, Any] | None:
    """Returns the stored table; `None` if it was made with other versions than those that are installed."""
    table = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {"made_with": None}
    try:
        return table if table["made_with"] == installed() else None
    except PackageNotFoundError:
        return None


def known_options(name: str) -> list[dict[str, Any]]:
    """Returns the options of a training command that are not ours: from the table, else from the libraries."""
    if table := stored():
        return [table["options"][key] for key in table["commands"][name]]
    versions = ", ".join(f"{library} {number}" for library, number in installed().items())
    print(f"the stored options are of other versions; asking {versions}, which takes a while", file=sys.stderr)
    return live_options(name)


def live_options(name: str) -> list[dict[str, Any]]:
    """Returns the options of a training command that are not ours, as the installed libraries declare them."""
    training = training_of(name)
    ours = {field.name for cls in (training.data, training.options) for field in fields(cls)}
    options: dict[str, dict[str, Any]] = {}
    for action in training.parser()._actions:
        if action.dest in ours or action.dest == "help":
            continue
        if action.nargs == 0 and action.dest in options:  # `--no_x` of an option that is on by default
            options[action.dest]["off"] = list(action.option_strings)
        else:
            options[action.dest] = _entry(action)
    return list(options.values())


def _entry(action: argparse.Action) -> dict[str, Any]:
    kind = getattr(action.type, "__name__", "str")
    entry: dict[str, Any] = {"name": action.dest, "flags": list(action.option_strings)}
    entry["type"] = {"string_to_bool": "bool", "int": "int", "float": "float"}.get(kind, "str")
    for key, value in (("nargs", action.nargs), ("default", action.default), ("help", action.help)):
        if value not in (None, argparse.SUPPRESS):
            entry[key] = value
    if action.choices:
        entry["choices"] = [str(choice) for choice in action.choices]
    return entry


def live_launch_options() -> set[str]:
    """Returns the names of the flags of the installed `accelerate launch`, but for those of what is launched."""
    from accelerate.commands.launch import launch_command_parser

    names = {name for action in launch_command_parser()._actions for name in action.option_strings}
    scored = {name.lstrip("-").replace("-", "_") for name in names if name.startswith("--")}
    return scored - {"module", "no_python", "help"}


def make() -> str:
    """Returns the table's file as the installed libraries would have it; an option is stored once for all commands
    for which it is the same.
    """
    options: dict[str, dict[str, Any]] = {}
    commands: dict[str, list[str]] = {}
    for name in TRAININGS:
        commands[name] = []
        for entry in json.loads(json.dumps(live_options(name), default=str)):
            key = entry["name"]
            while options.setdefault(key, entry) != entry:
                key += "'"
            commands[name].append(key)
    parts = {"made_with": installed(), "launcher": sorted(live_launch_options()), "commands": commands}
    head = [f"{json.dumps(name)}: {json.dumps(part)}" for name, part in parts.items()]
    lines = [f"{json.dumps(key)}: {json.dumps(entry, ensure_ascii=False)}" for key, entry in options.items()]
    return "{\n" + ",\n".join([*head, '"options": {\n' + ",\n".join(lines) + "\n}"]) + "\n}\n"


if __name__ == "__main__":
    FILE.write_text(make(), encoding="utf-8")
