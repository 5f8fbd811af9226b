"""Declarations: YAML files in `recipes/`, `reward_models/`, `eval/` and `accelerate_configs/`, by name or by path.

In a checkout the folders lie beside the package; a wheel carries them inside it (`rs_rlhf/declared/`). A name is the
file's path in its folder without the suffix, such as `aid-rsicd-tiny/reward`.

Left out: inheritance between files, and Python in YAML.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from .errors import DeclarationError, RSRLHFError

FOLDERS = ("recipes", "reward_models", "eval", "accelerate_configs")
KINDS = (*FOLDERS, "eval/profiles")  # a kind inside another one's folder is not of that one
T = TypeVar("T")


def folder(kind: str) -> Path:
    """Returns the folder of a kind of declaration, in the checkout or in the installed package.

    Args:
        kind (`str`): One of [`KINDS`].
    """
    package = Path(__file__).parent
    for place in (package / "declared" / kind, package.parent / kind):
        if place.is_dir():
            return place
    raise DeclarationError(f"No {kind} folder beside or inside {package}; reinstall rs-rlhf.")


def data_root() -> Path:
    """Returns the folder of the data that recipes and benchmarks name: `RS_RLHF_DATA`, else `data` in this folder."""
    return Path(os.environ.get("RS_RLHF_DATA") or "data")


def names(kind: str) -> list[str]:
    """Lists the declared names of a kind."""
    root = folder(kind)
    known = sorted(str(path.relative_to(root).with_suffix("")) for path in root.rglob("*.yaml"))
    inner = tuple(f"{other}/" for other in KINDS if other.startswith(f"{kind}/"))
    return [name for name in known if not f"{kind}/{name}".startswith(inner)]


def find(kind: str, name_or_path: str) -> Path:
    """Finds a declaration by name, or takes a path to a YAML file as it is.

    Raises:
        DeclarationError: There is no such name or file; says the nearest and lists the choices.
    """
    if Path(name_or_path).is_file():
        return Path(name_or_path)
    known = names(kind)
    if name_or_path in known:
        return folder(kind) / f"{name_or_path}.yaml"
    hint = did_you_mean(name_or_path, known)
    raise DeclarationError(f"{name_or_path!r} is neither a file nor declared in {kind}/{hint}")


def in_the_box(model: str) -> str:
    """Returns the folder of a model that comes with the package, `aid-rsicd-tiny/policy`; any other name as it is."""
    place = folder("reward_models") / model
    known = not os.path.exists(model) and ".." not in place.parts and os.path.isfile(place / "config.json")
    return str(place) if known else model


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Returns `"; did you mean …? Choices: …"` for the end of an error message."""
    choices = list(choices)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    guess = f"; did you mean {near[0]!r}?" if near else "."
    return f"{guess} Choices: {', '.join(choices) or 'none'}."


def load(kind: str, name_or_path: str, cls: type[T]) -> T:
    """Loads a declaration into a dataclass.

    Args:
        kind (`str`): Kind of declaration.
        name_or_path (`str`): Its name, or the path of a YAML file.
        cls (`type`): A dataclass whose fields are the allowed keys.

    Raises:
        DeclarationError: Unknown or missing keys; says the nearest and lists the choices.
    """
    path = find(kind, name_or_path)
    return from_mapping(read_yaml(path), cls, str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML file of keys and values; anything else is a [`DeclarationError`]."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DeclarationError(f"{path}: not valid YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(values, dict):
        raise DeclarationError(f"{path}: expected keys and values, got {type(values).__name__}.")
    return values


def check_type(key: str, declared: str, value: Any) -> None:
    """Refuses a value of another type than declared: YAML reads an unquoted `yes` as true and `1` as a number.

    Args:
        key (`str`): The key, for the message.
        declared (`str`): The field's annotation: `str`, `int` (at least 1), `list[str]`, `dict[str, str]`, with
            `| None` for a text that may be missing.
        value: Its value.

    Raises:
        DeclarationError: The value is of another type; says what was expected.
    """

    def expect(right: bool, what: str, wrong: object = value, verb: str = "is") -> None:
        if not right:
            raise DeclarationError(f"{key} {verb} {wrong!r:.80}, expected {what}", key)

    quotes = "write it in quotes."
    if declared.startswith("str"):
        expect(isinstance(value, str) or (value is None and "None" in declared), f"a text; {quotes}")
    elif declared == "int":
        expect(type(value) is int and value >= 1, "a whole number of at least 1.")
    elif declared.startswith("list"):
        expect(isinstance(value, list), "a list.")
    else:
        expect(isinstance(value, dict), "names and their words.")
    if declared in ("list[str]", "dict[str, str]"):
        for text in value if isinstance(value, list) else (item for pair in value.items() for item in pair):
            expect(isinstance(text, str), f"texts; {quotes}", text, "holds")


def from_mapping(values: Mapping[str, Any], cls: type[T], where: str) -> T:
    """Builds a dataclass from a mapping, refusing unknown and missing keys by name."""
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise DeclarationError(f"{where}: unknown key {key!r}{did_you_mean(key, fields)}")
    required = {
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - set(values)):
        raise DeclarationError(f"{where}: missing {', '.join(missing)}.")
    try:
        return cls(**values)
    except RSRLHFError as error:
        raise DeclarationError(error.detail, error.key, where) from None
