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
T = TypeVar("T")


def folder(kind: str) -> Path:
    """Returns the folder of a kind of declaration, in the checkout or in the installed package.

    Args:
        kind (`str`): One of `recipes`, `reward_models`, `eval`, `accelerate_configs`.
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
    return sorted(str(path.relative_to(root).with_suffix("")) for path in root.rglob("*.yaml"))


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
    import yaml

    path = find(kind, name_or_path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise DeclarationError(f"{path}: not valid YAML ({error}).") from None
    if not isinstance(values, Mapping):
        raise DeclarationError(f"{path}: expected keys and values, got {type(values).__name__}.")
    return from_mapping(values, cls, str(path))


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
