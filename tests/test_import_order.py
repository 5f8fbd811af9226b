"""Imports run one way through the rooms, and no package imports `cli`."""

import ast

from helpers import ROOT

PACKAGE = ROOT / "rs_rlhf"
ORDER = [
    {"imagery", "metrics", "runs"},
    {"data"},
    {"models"},
    {"scoring"},
    {"preferences", "rewards", "curation"},
    {"evaluation"},
    {"trainers", "app"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}


def imported_rooms(path):
    """Rooms that a module imports, at the top or inside a function."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("rs_rlhf")):
            base = package[: len(package) - node.level + 1] if node.level else ()
            names = [*base, *(node.module or "").split(".")] if node.module else [*base]
            yield from [names[1]] if len(names) > 1 else [alias.name for alias in node.names]


def test_every_room_has_its_level():
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} == set(LEVEL)


def test_imports_run_one_way():
    upward = [
        f"{path.relative_to(PACKAGE)} -> {other}"
        for room, level in LEVEL.items()
        for path in (PACKAGE / room).rglob("*.py")
        for other in imported_rooms(path)
        if LEVEL.get(other, -1) > level or (other != room and LEVEL.get(other, -1) == level)
    ]
    assert upward == []
