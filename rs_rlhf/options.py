"""Command-line parsers built from option dataclasses: the help of an option is written once, in its field.

A command's options are one `@dataclass(kw_only=True)`, composed by inheritance of the options that several commands
share. The library function takes the dataclass. Each flag is accepted with underscores and with dashes. Nothing heavy
is imported here, so that `--help` answers at once; the training commands use TRL's parser on their dataclasses.

Left out: nested dataclasses, and mutually exclusive groups (a command checks what does not go together itself).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import stat
import types
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import OptionError

T = TypeVar("T")


def option(default: Any = dataclasses.MISSING, help: str = "", **settings: Any) -> Any:
    """Declares a field of an options dataclass.

    Args:
        default: The value without the flag; left out, the option is required. A list or dict is copied.
        help (`str`): The help text; the default is added to it.
        settings: `positional=True`, `flags` (further spellings, such as `["-n"]`), `choices`, `metavar`, `nargs`,
            `action="append"`, `least` (of whole numbers), and `writes="folder"` or `"file"` for a place that is
            checked before the work.
    """
    metadata = {"help": help, **settings}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class Parser(argparse.ArgumentParser):
    """argparse's parser, whose errors are an [`OptionError`] and no page of usage."""

    def error(self, message: str) -> NoReturn:
        """Raises the error."""
        raise OptionError(f"{message}.")


def make_parser(cls: type, prog: str) -> argparse.ArgumentParser:
    """Returns the parser of an options dataclass; its description is the dataclass's docstring."""
    parser = Parser(prog=prog, description=(cls.__doc__ or "").strip(), allow_abbrev=False)
    hints = get_type_hints(cls)
    for field in sorted(dataclasses.fields(cls), key=lambda field: not field.metadata.get("positional")):
        if field.init:  # a command leaves out an inherited option by `field(default=…, init=False)`
            _add(parser, field, hints[field.name])
    return parser


def parse(cls: type[T], argv: Sequence[str] | None, prog: str) -> T:
    """Parses arguments into an options dataclass.

    Args:
        cls (`type`): The dataclass.
        argv (sequence of `str`, *optional*): The arguments; those of the process if `None`.
        prog (`str`): The command's name in its help, such as `"rs-rlhf score"`.

    Raises:
        SystemExit: After `--help`.
        OptionError: An option is missing, unknown or of a wrong kind, or nothing can be written where it says.
    """
    return _made(cls, vars(make_parser(cls, prog).parse_args(argv)))


def parse_known(cls: type[T], argv: Sequence[str], prog: str) -> tuple[T, list[str]]:
    """Parses the arguments that an options dataclass knows, as [`parse`] does; returns the others too."""
    values, others = make_parser(cls, prog).parse_known_args(argv)
    return _made(cls, vars(values)), others


def _made(cls: type[T], values: dict[str, Any]) -> T:
    """Makes the dataclass of parsed values, with its outputs checked."""
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if (kind := field.metadata.get("writes")) and values[field.name] is not None:
            check_place(values[field.name], kind, field.name)
            values[field.name] = _kind(hints[field.name])[0](values[field.name])
    return cls(**values)


def check_place(path: str | Path, kind: str, key: str) -> None:
    """Refuses a path at which no `kind` (`"folder"` or `"file"`) can be written; the [`OptionError`] names `key`."""
    if not str(path).strip():
        raise OptionError(f"{key} is empty; name a {kind} to write.", key)
    for place in (Path(path), *Path(path).absolute().parents):
        try:
            mode = os.stat(place).st_mode
            break
        except (FileNotFoundError, NotADirectoryError):
            if place.is_symlink():
                raise OptionError(f"{key}: {place} is a link to nothing; name another place.", key) from None
        except OSError as error:
            raise OptionError(
                f"{key}: {path} cannot be written ({error.strerror}); name another place.", key
            ) from None
    folder = kind == "folder" or place != Path(path)
    if not (stat.S_ISDIR(mode) if folder else stat.S_ISREG(mode)):
        what = "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "device"
        raise OptionError(
            f"{key}: {place} is a {what}, expected a {'folder' if folder else 'file'}; name another place.", key
        )
    if not os.access(place if folder else place.absolute().parent, os.W_OK | os.X_OK):
        raise OptionError(f"{key}: {path} cannot be written (no permission); name another place.", key)


def to_flags(options: Any, names: Sequence[str] | None = None) -> list[str]:
    """Returns the arguments that give the options which differ from their defaults; `parse` reads them back."""
    arguments: list[str] = []
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if (names is not None and field.name not in names) or value == _default(field) or value is None:
            continue
        flag = [] if field.metadata.get("positional") else [f"--{field.name}"]
        if isinstance(value, bool):
            arguments += flag if value else [f"--no_{field.name}"]
        elif isinstance(value, list | tuple) and field.metadata.get("action") == "append":
            arguments += [text for one in value for text in (*flag, str(one))]
        else:
            arguments += [*flag, *map(str, value if isinstance(value, list | tuple) else [value])]
    return arguments


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def _add(parser: argparse.ArgumentParser, field: dataclasses.Field[Any], hint: Any) -> None:
    """Adds the flag, or the positional argument, of one field."""
    settings, default = dict(field.metadata), _default(field)
    text = settings.pop("help")
    spellings = [f"--{field.name}", *settings.pop("flags", [])]
    positional = settings.pop("positional", False)
    kind, several = _kind(hint)
    if settings.pop("writes", None):
        kind = str  # `parse` checks what was written, and makes it a path
    if get_origin(kind) is Literal:
        settings.setdefault("choices", get_args(kind))
        kind = type(get_args(kind)[0])
    least = settings.pop("least", None)
    if kind is int:
        kind = _whole(least)
    if several and settings.get("action") != "append":
        settings.setdefault("nargs", "*" if positional and default is not dataclasses.MISSING else "+")
    if default is not dataclasses.MISSING:
        settings["default"] = default
        if not isinstance(default, bool) and default not in (None, [], {}, ""):
            text += f" (default: {' '.join(map(str, default)) if isinstance(default, list | tuple) else default})"
    if positional:
        if default is not dataclasses.MISSING:
            settings.setdefault("nargs", "?")
        parser.add_argument(field.name, type=kind, help=_escaped(text), **settings)
        return
    if default is dataclasses.MISSING:
        settings["required"] = True
    if kind is bool:
        settings["action"] = "store_false" if default else "store_true"
        if default:
            spellings[0], text = f"--no_{field.name}", f"{text} On by default; this turns it off."
    else:
        settings["type"] = kind
    names = dict.fromkeys(name for flag in spellings for name in (flag, _dashed(flag)))
    parser.add_argument(*names, dest=field.name, help=_escaped(text), **settings)


def _whole(least: int | None) -> Callable[[str], int]:
    """Returns what converts a text to a whole number of 64 bits that is not less than `least`."""

    def whole(text: str) -> int:
        number = int(text)
        if not (-(2**63) if least is None else least) <= number < 2**63:
            expected = "of 64 bits" if least is None else f"from {least} on"
            raise argparse.ArgumentTypeError(f"{text:.40} is no whole number {expected}")
        return number

    whole.__name__ = "int"  # for the message of what is no number at all
    return whole


def _dashed(flag: str) -> str:
    return "--" + flag[2:].replace("_", "-") if flag.startswith("--") else flag


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _kind(hint: Any) -> tuple[Any, bool]:
    """Returns the type that converts one value and whether there may be several: `list[int] | None` is int, True."""
    if get_origin(hint) in (Union, types.UnionType):
        inner = [part for part in get_args(hint) if part is not type(None)]
        hint = Path if Path in inner else inner[0]
    if get_origin(hint) in (list, tuple):
        return get_args(hint)[0], True
    return hint, False


def imported(path: str, name: str) -> Any:
    """Imports what an option names by a dotted path, such as `rs_rlhf.rewards.score_reward`; of a class, an object."""
    module, _, attribute = path.rpartition(".")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        detail = f"--{name} {path:.80} cannot be imported ({error}); give a path such as module.function."
        raise OptionError(detail, name) from None
    return found() if isinstance(found, type) else found
