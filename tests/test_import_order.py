"""Imports run downward, as the table in CONTRIBUTING.md says."""

import ast
import re

from helpers import ROOT

TABLE = re.findall(r"^\| (\d) \| (.*) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
FLOORS = {name: int(floor) for floor, names in TABLE for name in re.findall(r"`(\w+)`", names)}
MODULES = {path.stem: path for path in (ROOT / "rs_rlhf").glob("*.py") if not path.stem.startswith("__")}


def imported(path):
    """Modules of the package that a file imports, at the top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            yield from [node.module] if node.module else [alias.name for alias in node.names if alias.name in MODULES]


def test_every_module_has_its_floor():
    assert set(FLOORS) == set(MODULES)


def test_imports_run_downward():
    upward = [
        f"{name} -> {other}"
        for name, path in MODULES.items()
        for other in imported(path)
        if FLOORS[other] > FLOORS[name]
    ]
    assert upward == []
