"""What the site has beside the files of docs/: the README, other pages of the repository, the reference of commands.

A link may lead from any page to any file of the repository, as it does in the checkout: the file becomes a page or a
download of the site, and the link is rewritten. So docs/ reads the same in an editor, on a forge and on the site.
"""

from __future__ import annotations

import argparse
import os
import posixpath
import re
from pathlib import Path
from unittest.mock import patch

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
ELSEWHERE = "repository"  # the site's folder of files that are not in docs/
LINK = re.compile(r"(\]\()(?!\w+:|#)([^)#\s]+)((?:#[^)\s]*)?\))")
FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config) -> Files:
    """Adds the README, every file of the repository that a page links to, and the reference of commands."""
    files.append(File.generated(config, "reference/commands.md", content=commands()))
    todo, known = ["README.md", *(f"docs/{file.src_uri}" for file in files.documentation_pages())], set()
    while todo:
        path = todo.pop()
        if path in known or not (ROOT / path).is_file():
            continue
        known.add(path)
        if files.get_file_from_path(site_path(path)) is None:
            files.append(File.generated(config, site_path(path), abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            todo += [resolved(path, link) for _, link, _ in LINK.findall((ROOT / path).read_text("utf-8"))]
    return files


def on_page_markdown(markdown: str, page, **_) -> str:
    """Rewrites links between files of the repository as links between pages of the site."""
    source = repository_path(page.file.src_uri)

    def rewritten(match: re.Match) -> str:
        target = site_path(resolved(source, match[2]))
        return match[1] + posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or ".") + match[3]

    parts = FENCED.split(markdown)
    parts[::2] = [LINK.sub(rewritten, part) for part in parts[::2]]
    return "".join(parts)


def resolved(source: str, link: str) -> str:
    """The path in the repository that a link of this file leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def site_path(path: str) -> str:
    """Where a file of the repository is on the site."""
    if path == "README.md":
        return "index.md"
    return path.removeprefix("docs/") if path.startswith("docs/") else f"{ELSEWHERE}/{path}"


def repository_path(uri: str) -> str:
    """The file of the repository that is at this place of the site."""
    if uri == "index.md":
        return "README.md"
    return uri.removeprefix(f"{ELSEWHERE}/") if uri.startswith(f"{ELSEWHERE}/") else f"docs/{uri}"


def commands() -> str:
    """The reference of commands and options, as `--help` prints them."""
    from rs_rlhf.cli.main import COMMANDS

    head = [
        "# Commands and options",
        "`rs-rlhf COMMAND --help` prints the same; `--help_all` of a training also lists TRL's options. Every flag "
        "may be written with dashes or with underscores. A recipe (`--config`) has the same names as keys.",
        "| command | what it does |\n|---|---|\n"
        + "\n".join(f"| [`{name}`](#{anchor(name)}) | {one.summary} |" for name, one in COMMANDS.items()),
    ]
    return "\n\n".join([*head, *(section(name) for name in COMMANDS)]) + "\n"


def anchor(name: str) -> str:
    """The anchor of a command's section."""
    return f"rs-rlhf-{name.replace(' ', '-')}"


def section(name: str) -> str:
    """One command: what it does, a table for each group of its options, and what the help says last."""
    parser = parser_of(name)
    lines = [f"## rs-rlhf {name}", text(parser.description or "")]
    for group in parser._action_groups:
        rows = [row(action) for action in group._group_actions if not isinstance(action, argparse._HelpAction)]
        if rows:
            title = [] if group.title in ("options", "positional arguments") else [f"**{text(group.title)}**"]
            lines += [*title, "\n".join(["| option | what it does |", "|---|---|", *rows])]
    return "\n\n".join([*lines, text(parser.epilog or "")]).rstrip()


def row(action: argparse.Action) -> str:
    """One option as a row of its table; the dashed spelling is left out."""
    dashed = {name.replace("_", "-") for name in action.option_strings if "_" in name}
    names = [name for name in action.option_strings if name not in dashed] or [str(action.metavar or action.dest)]
    values = "" if action.nargs == 0 or not action.option_strings else f" {metavar(action)}"
    spelled = ", ".join(f"`{name}{values}`" for name in names)
    return f"| {spelled} | {text((action.help or '').replace('%%', '%'))} |".replace("\n", " ")


def metavar(action: argparse.Action) -> str:
    """What stands for an option's value: its choices, or a name for it."""
    if action.choices:
        return "|".join(map(str, action.choices))
    kind = getattr(action.type, "__name__", "")
    name = action.metavar or {"int": "N", "float": "X"}.get(kind, "VALUE")
    return f"{name} …" if action.nargs in ("+", "*") else str(name)


def text(words: str) -> str:
    """Words of a help text as Markdown that shows them as they are."""
    parts = re.split(r"(`[^`]*`)", " ".join(words.split()))
    parts[::2] = [re.sub(r"([\\|<>*_\[\]])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser that prints a command's help."""
    from rs_rlhf.cli.main import main

    caught: list[argparse.ArgumentParser] = []
    with patch.object(argparse.ArgumentParser, "print_help", lambda parser, *_: caught.append(parser)):
        with patch.dict(os.environ, {"COLUMNS": "200"}):
            main([*name.split(), "--help"])
    return caught[0]
