"""The table of `docs/answers.md`: how often the strict metric errs on hard answers, both ways.

`PYTHONPATH=. python tests/helpers/answer_table.py` prints it for the code as it is.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from rs_rlhf.metrics.closed_answers import judge_answer

CASES = Path(__file__).parents[1] / "cases" / "hard_answers.json"
VERDICTS = ("right", "wrong", "unparseable")


def cases():
    """The hard answers: (group with `kind`, `list`, `reference`, …; output; the verdict of a careful person)."""
    groups = json.loads(CASES.read_text(encoding="utf-8"))
    return [(group, output, verdict) for group in groups for verdict in VERDICTS for output in group.get(verdict, [])]


def verdict_of(group, output):
    judged = judge_answer(output, [group["reference"]], choices=group.get("choices", ()), numbers=group.get("numbers"))
    return "right" if judged["strict"] else "unparseable" if judged["answer"] is None else "wrong"


def counted():
    """`{kind: Counter(not_right, called_right, right, not_called_right)}`, and of all."""
    table = {}
    for group, output, verdict in cases():
        right = verdict_of(group, output) == "right"
        for kind in (group["kind"], "all"):
            row = table.setdefault(kind, Counter())
            row["right" if verdict == "right" else "not right"] += 1
            if verdict == "right":
                row["missed"] += not right
            else:
                row["called right"] += right
    return {kind: table[kind] for kind in sorted(table, key=lambda kind: kind == "all")}


if __name__ == "__main__":
    for name, row in counted().items():
        print(name, row["not right"], row["called right"], row["right"], row["missed"], sep=" | ")
