"""Cases of TRL's trainer beside ours, and the tables of docs/trl_conformance.md that are made of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from . import ROOT

DOCUMENT = ROOT / "docs" / "trl_conformance.md"


@dataclass(frozen=True)
class Case:
    """A feature, and what TRL's trainer and ours do with it, in the words of the table.

    Args:
        feature (`str`): What a script uses.
        stock (`str`): `"works"`, or `"fails: "` and why.
        ours (`str`): `"the same losses"`, `"works"`, or `"refuses: "` and why.
    """

    feature: str
    stock: str = "works"
    ours: str = "the same losses"


def table(cases: Iterable[Case]) -> str:
    """Returns the table of the cases."""
    rows = [f"| {case.feature} | {case.stock} | {case.ours} |" for case in cases]
    return "\n".join(["| feature | TRL's | ours |", "|---|---|---|", *rows])


def documented(heading: str) -> str:
    """Returns the table below a heading of the document."""
    section = DOCUMENT.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return "\n".join(line for line in section.splitlines() if line.startswith("|"))
