"""The messages of `docs/troubleshooting.md` are messages of the program."""

import ast
import re

import pytest
from helpers import ROOT

TEXT = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
MESSAGES = re.findall(r"^\| `(.+?)` \|", TEXT, re.MULTILINE)


@pytest.fixture(scope="module")
def literals():
    """Every text of the package; what an f-string fills in is a zero byte."""
    found = []
    for path in (ROOT / "rs_rlhf").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


@pytest.mark.parametrize("message", MESSAGES)
def test_the_program_says_it(message, literals):
    assert re.search(".*".join(map(re.escape, message.split("…"))), literals)


def test_there_are_messages():
    assert len(MESSAGES) > 20
