"""The code blocks of a Markdown page: which run, which are parsed alone, and what they must print.

A block runs unless a comment before it says why not: `<!-- not run: needs a GPU -->`; then it is parsed, its commands
by their real parsers. `# -> TEXT` in a block is what it prints, in order; `…` there stands for anything. A block after
"`name`:" is a file of that name, which is written beside the others.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import yaml

from . import ROOT

BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<why>.+?) -->\n)?(?:.*`(?P<file>[\w./-]+)`:\n\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
EXPECTED = re.compile(r"# -> (.+)$", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]*))?\)")
# In place of programs: functions that write their arguments to file descriptor 3.
STUBS = r"""PATH=/nowhere
told() { printf '%s\x1f' "$@" >&3; printf '\x1e' >&3; }
rs-rlhf() { told rs-rlhf "$@"; }
kill() { :; }
command_not_found_handle() { told "$@"; }
"""


def script(path: Path):
    """Imports a script of docs/ by its path."""
    spec = spec_from_file_location(path.stem, path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


parser_of = script(ROOT / "docs" / "hooks.py").parser_of  # the parser whose help a command prints


@dataclass(frozen=True)
class Block:
    """A fenced block: its line, language and text, the file that it is, and why it does not run."""

    line: int
    language: str
    text: str
    file: str | None
    why: str | None

    @property
    def runs(self) -> bool:
        """Whether the block is run."""
        return self.language in ("bash", "python") and self.why is None and self.file is None

    @property
    def expected(self) -> list[str]:
        """What it prints."""
        return EXPECTED.findall(self.text)


def blocks(path: Path) -> list[Block]:
    """Returns the blocks of a page."""
    text = path.read_text(encoding="utf-8")
    return [
        Block(text.count("\n", 0, found.start("text")), *found.group("language", "text", "file", "why"))
        for found in BLOCK.finditer(text)
    ]


def missing(block: Block, printed: str) -> str | None:
    """Returns the first text that a block does not print in its place; `None` if it prints all of them."""
    place = 0
    for text in block.expected:
        parts = [re.escape(" ".join(part.split())) for part in text.split("…")]
        found = re.compile(".*?".join(parts), re.DOTALL).search(printed, place)
        if not found:
            return text
        place = found.end()
    return None


def parse(block: Block) -> list[list[str]]:
    """Parses a block that is not run; returns its commands. What is wrong raises."""
    if block.language == "python":
        ast.parse(block.text)
    if block.language in ("yaml", "json") and block.file is None:
        yaml.safe_load(block.text)
    if block.language != "bash":
        return []
    subprocess.run(["bash", "-n", "-c", block.text], check=True)
    read, write = os.pipe()
    with os.fdopen(read, encoding="utf-8") as said:
        command = ["bash", "-c", f"exec 3>&{write}\n{STUBS}\n{block.text}"]
        subprocess.run(command, pass_fds=[write], capture_output=True, timeout=60)
        os.close(write)
        told = [line.split("\x1f")[:-1] for line in said.read().split("\x1e")[:-1]]
    for argv in told:
        check_command(argv)
    return told


def check_command(argv: list[str]) -> None:
    """Parses one command of ours by its own parser; of others, `make` must have the target."""
    if argv[0] == "make":
        assert all(re.search(rf"^{name}:", (ROOT / "Makefile").read_text(), re.MULTILINE) for name in argv[1:]), argv
    if argv[0] == "rs-rlhf":
        check_arguments(argv[1:])
    elif "rs_rlhf" in argv and argv[argv.index("rs_rlhf") - 1] == "-m":
        check_arguments(argv[argv.index("rs_rlhf") + 1 :])


def check_arguments(argv: list[str]) -> None:
    """Parses the arguments of `rs-rlhf` as the command itself does; with `…` its name and flags alone."""
    from rs_rlhf.cli import launch
    from rs_rlhf.cli.main import COMMANDS, command_name

    if argv[0].startswith("-"):
        return
    name, rest = command_name(argv)
    if "…" in rest or {"--help", "--help_all"} & {*rest}:
        check_flags(argv)
        return
    module, function = COMMANDS[name].target.split(":")
    home = import_module(f"rs_rlhf.{module}")
    command = getattr(home, function)
    if hasattr(command, "parser"):
        _, flags, _ = launch.split_arguments(command.parser(), rest)
        launch.parse(command.parser(), [*flags, "--use_cpu", "true", "--bf16", "false"])
    elif hasattr(home, "read_arguments"):
        home.read_arguments(rest, home.sft.parser())
    else:
        parser_of(name).parse_args(rest)


def check_flags(argv: list[str]) -> None:
    """Checks the name and the flags of a command of which no more is there."""
    from rs_rlhf.cli.main import FAMILIES, command_name

    name, rest = command_name([word for word in argv if word.strip("…")])
    if name in FAMILIES and not rest:
        return
    unknown = {word.partition("=")[0] for word in rest if word.startswith("--")} - flags_of(name)
    assert not unknown, f"{' '.join(argv)}: no {unknown}"


@cache
def flags_of(name: str) -> frozenset[str]:
    """Every flag that a command takes, those of TRL and of `accelerate launch` among them."""
    from accelerate.commands.launch import launch_command_parser

    from rs_rlhf.cli.main import COMMANDS

    module, function = COMMANDS[name].target.split(":")
    home = import_module(f"rs_rlhf.{module}")
    command = getattr(home, function)
    if hasattr(command, "parser"):
        others = {"--config", "--accelerate_config", *launch_command_parser()._option_string_actions}
        return frozenset(command.parser()._option_string_actions) | others
    if hasattr(home, "read_arguments"):
        return frozenset(parser_of(name)._option_string_actions) | flags_of("sft")
    return frozenset(parser_of(name)._option_string_actions)


def spans(path: Path) -> list[str]:
    """Returns the code within a page's sentences."""
    text = FENCED.sub("", path.read_text(encoding="utf-8"))
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def slug(heading: str) -> str:
    """The anchor of a heading."""
    words = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", words)).strip("-")


def broken_links(path: Path) -> list[str]:
    """Returns the links of a page that lead to no file of the checkout, or to no heading of its page."""
    broken = []
    for target, anchor in LINK.findall(FENCED.sub("", path.read_text(encoding="utf-8"))):
        there = (path.parent / target).resolve() if target else path
        if not there.is_file() or not there.is_relative_to(ROOT):
            broken.append(target)
        elif anchor and there.suffix == ".md":
            text = FENCED.sub("", there.read_text(encoding="utf-8"))
            if anchor not in {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}:
                broken.append(f"{target}#{anchor}")
    return broken
