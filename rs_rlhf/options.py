"""Command-line parsers built from option dataclasses: the help of an option is written once, in its field.

A command's options are one `@dataclass(kw_only=True)`, composed by inheritance of the options that several commands
share. The library function takes the dataclass. Each flag is accepted with underscores and with dashes. Nothing heavy
is imported here, so that `--help` answers at once; the training commands use TRL's parser on their dataclasses.

Left out: nested dataclasses, and mutually exclusive groups (a command checks what does not go together itself).
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import re
import stat
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import OptionError

T = TypeVar("T")
_MODEL_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_WORDS = {int: "N", float: "X", Path: "PATH", bool: "true|false"}  # what help calls a value of the type


# What must be there to be read, by field: not in its metadata, which transformers' parser hands to argparse.
_READS: dict[dataclasses.Field[Any], str | Callable[[str, str], None]] = {}


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    reads: str | Callable[[str, str], None] | None = None,
    **settings: Any,
) -> Any:
    """Declares a field of an options dataclass.

    Args:
        default: The value without the flag; left out, the option is required. A list or dict is copied.
        help (`str`): The help text; the default is added to it.
        reads (`str` or callable, *optional*): What must be there, which is checked before the work: `"folder"`,
            `"file"`, `"model"`, `"policy"` (a model that may be an endpoint's), or a function of value and name.
        settings: `positional=True`, `flags` (further spellings, such as `["-n"]`), `choices`, `metavar`, `nargs`,
            `action="append"`, `least` (of whole numbers), and `writes="folder"` or `"file"` for a place that is
            checked before the work.
    """
    metadata = {"help": help, **settings}
    if reads:
        metadata.setdefault("metavar", "MODEL" if reads in ("model", "policy") else "PATH")
    if isinstance(default, list | dict):
        made: Any = dataclasses.field(default_factory=default.copy, metadata=metadata)
    else:
        made = dataclasses.field(default=default, metadata=metadata)
    if reads:
        _READS[made] = reads
    return made


class Parser(argparse.ArgumentParser):
    """argparse's parser, whose errors are an [`OptionError`] and no page of usage, with the nearest flag."""

    def error(self, message: str) -> NoReturn:
        """Raises the error."""
        raise OptionError(f"{message}.")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses all arguments; a flag that is not known is told before one that is missing."""
        for argument in () if args is None else args:
            if argument == "--":
                break
            if argument.startswith("--") and argument.partition("=")[0] not in self._option_string_actions:
                raise OptionError(f"unknown flag {argument}{nearest_flag(argument, self._option_string_actions)}")
        return super().parse_args(args, namespace)


class Help(argparse.HelpFormatter):
    """Help with one spelling of a flag and a short word for its value."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return str(action.metavar or action.dest)
        value = "" if action.nargs == 0 else self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(spellings(action))} {value}".rstrip()

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        named = getattr(action.type, "__name__", "")
        return next((word for kind, word in _WORDS.items() if kind is action.type or kind.__name__ == named), "TEXT")


def spellings(action: argparse.Action) -> list[str]:
    """Returns the flags of an option without those that differ from another one by dashes only."""
    return [
        flag for flag in action.option_strings if "-" not in flag[2:] or _scored(flag) not in action.option_strings
    ]


def nearest_flag(flag: str, flags: Iterable[str]) -> str:
    """Returns the end of the sentence about an unknown flag: the nearest one, or where they are listed."""
    known = {_scored(name) for name in flags if name.startswith("--")}
    near = difflib.get_close_matches(_scored(flag.partition("=")[0]), sorted(known), n=1)
    return f"; did you mean {near[0]}?" if near else "; --help lists the flags."


def make_parser(cls: type, prog: str) -> argparse.ArgumentParser:
    """Returns the parser of an options dataclass; its description is the dataclass's docstring."""
    parser = Parser(prog=prog, description=(cls.__doc__ or "").strip(), allow_abbrev=False, formatter_class=Help)
    add_options(parser, cls)
    parser.usage = usage(parser)
    return parser


def add_options(parser: argparse.ArgumentParser, cls: type, *, valued: bool = False, titled: bool = False) -> None:
    """Adds the options of a dataclass; inherited ones stand in a group for each class that declares them, under the
    first line of its docstring.

    Args:
        parser (`ArgumentParser`): The parser.
        cls (`type`): The dataclass.
        valued (`bool`): Whether switches take a value, true or false, as in transformers' parser.
        titled (`bool`): Whether the options of the class itself are in such a group too.
    """
    hints, groups, classes = get_type_hints(cls), dict[type, Any](), cls.__mro__

    def home(field: dataclasses.Field[Any]) -> type:
        return next(base for base in classes if field.name in vars(base).get("__annotations__", {}))

    # A command leaves out an inherited option by `field(default=…, init=False)`.
    fields = [field for field in dataclasses.fields(cls) if field.init and "help" in field.metadata]
    for field in sorted(fields, key=lambda field: (not field.metadata.get("positional"), classes.index(home(field)))):
        target: Any = parser
        declared = home(field)
        if (titled or declared is not cls) and _default(field) is not dataclasses.MISSING:
            title = (declared.__doc__ or "").strip().split("\n")[0].rstrip(".")
            target = groups[declared] = groups.get(declared) or parser.add_argument_group(title)
        _add(target, field, hints[field.name], valued)


def usage(parser: argparse.ArgumentParser) -> str:
    """Returns a line of usage that has the required options and the positional arguments only."""
    words = [
        f"{action.option_strings[0]} …" for action in parser._actions if action.option_strings and action.required
    ]
    words += [str(action.metavar or action.dest) for action in parser._actions if not action.option_strings]
    return _escaped(" ".join([parser.prog, *words, "[option …]"]))


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
    check_reads(cls, values)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if (kind := field.metadata.get("writes")) and values[field.name] is not None:
            check_place(values[field.name], kind, field.name)
            values[field.name] = _kind(hints[field.name])[0](values[field.name])
    return cls(**values)


def check_reads(cls: type, values: Mapping[str, Any]) -> None:
    """Refuses, among the values of an options dataclass, what must be there to be read and is not."""
    for field in dataclasses.fields(cls):
        check, value = _READS.get(field), values.get(field.name)
        flag = "" if field.metadata.get("positional") else f"--{field.name} "
        for text in value if isinstance(value, list | tuple) else [value]:
            if not check or text is None or text == "":
                continue
            if callable(check):
                check(str(text), field.name)
            elif check == "policy":
                # Another name may be an endpoint's; files are separated by commas.
                gone = [name for name in str(text).split(",") if name.startswith((".", "/", "~"))]
                if not os.path.exists(text) and not all(map(os.path.exists, gone)):
                    raise OptionError(f"{flag}{text}: no such folder; correct the path.", field.name)
            elif check == "model":
                check_model_name(str(text), field.name)
            elif not (os.path.isdir if check == "folder" else os.path.isfile)(text):
                raise OptionError(f"{flag}{text}: no such {check}; correct the path.", field.name)


def check_model_name(names: str, key: str = "model_name_or_path") -> None:
    """Refuses a model (of several, between commas) that is neither a folder, nor an address, nor named as a model of
    the hub or a declared one is.
    """
    for name in [names] if os.path.exists(names) else (part.strip() for part in names.split(",")):
        if not (os.path.exists(name) or "://" in name or _MODEL_ID.fullmatch(name)):
            raise OptionError(
                f"--{key} {name} is neither a folder nor named as a model of the hub is (namespace/name).", key
            )


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


def _add(parser: Any, field: dataclasses.Field[Any], hint: Any, valued: bool = False) -> None:
    """Adds the flag, or the positional argument, of one field."""
    settings, default = dict(field.metadata), _default(field)
    text = settings.pop("help")
    spellings = [f"--{field.name}", *settings.pop("flags", [])]
    positional = settings.pop("positional", False)
    kind, several = _kind(hint)
    if settings.pop("writes", None):
        kind = str  # `parse` checks what was written, and makes it a path
        settings.setdefault("metavar", "PATH")
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
    if kind is bool and valued:
        settings |= {"type": switch, "nargs": "?", "const": True}
        text += f" (default: {str(default).lower()})"
        if default:
            parser.add_argument(f"--no_{field.name}", action="store_false", dest=field.name, help=argparse.SUPPRESS)
    elif kind is bool:
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


def switch(text: str) -> bool:
    """Returns what `true` or `false` says, in the words of transformers' parser."""
    if text.lower() in ("yes", "true", "t", "y", "1", "no", "false", "f", "n", "0"):
        return text.lower() in ("yes", "true", "t", "y", "1")
    raise argparse.ArgumentTypeError(f"{text:.40} is neither true nor false")


switch.__name__ = "bool"


def _scored(flag: str) -> str:
    return "--" + flag[2:].replace("-", "_") if flag.startswith("--") else flag


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
