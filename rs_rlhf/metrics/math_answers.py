r"""Answers that are formulas: the one answer rule, and beside it equality of formulas, if `math_verify` is installed.

The answer rule of `closed_answers` decides first, and alone if the solution is a number, so that an echo of the
question ("2 + 2") is not right. A solution is read as answers are: `\boxed{\frac{1}{2}}` is 1/2, `#### 72` is 72. If
it is a formula, and the answer states one formula without a doubt, math_verify (an optional package) is asked whether
they are equal.

Left out: units and words within formulas, and proofs.
"""

from __future__ import annotations

import re
import threading
from functools import cache
from importlib.util import find_spec
from typing import Any

from .answers import clauses, extract_answer, hedged, statements, unwrap
from .closed_answers import judge_solution
from .quantities import only_quantity

LONGEST = 200  # characters of a formula; longer ones take seconds to parse
SECONDS = 2  # for each of parsing and comparing: 9^{9^9} has no end
_BOXED = re.compile(r"\\f?boxed\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")  # a word that is no command of LaTeX


def judge_math(output: str, solution: Any, choices: Any = None) -> bool | None:
    r"""Returns whether an answer is right; `None` if there is nothing to judge it by, see [`judge_solution`].

    Example:
        >>> judge_math(r"So it is \boxed{\frac{1}{2}}.", "0.5"), judge_math("0.5", r"\boxed{\frac{1}{2}}")
        (True, True)
    """
    verdict = judge_solution(output, solution, choices)
    if verdict is None or verdict["strict"] or not isinstance(solution, str):
        return None if verdict is None else verdict["strict"]
    stated = statements(unwrap(solution))
    read = (stated[0] if len(stated) == 1 else solution).strip().rstrip(".")
    again = judge_solution(output, read, choices)
    if (again and again["strict"]) or only_quantity(read):
        return bool(again and again["strict"])
    one, other = formula(output), formula(solution)
    return one is not None and other is not None and find_math_verify() and _equal(one, other)


def formula(text: str) -> str | None:
    r"""Returns the one formula that a text states, in LaTeX; `None` if there is none, several, or it is in doubt.

    Example:
        >>> formula(r"The answer is $\sqrt{2}$."), formula(r"$1$ or $2$"), formula("two")
        ('\\sqrt{2}', None, None)
    """
    answer, said = extract_answer(text), unwrap(text)
    pieces = statements(said)
    if hedged(said) or len(pieces) != 1 or not all(affirmed for _, affirmed in clauses(pieces[0])):
        return None
    marked = _BOXED.findall(answer) or ["".join(parts) for parts in _FORMULA.findall(answer)]
    found = {one.strip() for one in marked or [answer.strip().rstrip(".")]}
    one = found.pop() if len(found) == 1 else ""
    return None if not one or len(one) > LONGEST or "\n" in one or _PROSE.search(one) else one


@cache
def find_math_verify() -> bool:
    """Whether `math_verify` is installed."""
    return find_spec("math_verify") is not None


def _equal(one: str, other: str) -> bool:
    from math_verify import parse, verify

    # Its time limits are alarms, which only the main thread can set.
    seconds = SECONDS if threading.current_thread() is threading.main_thread() else None
    parsed = [parse(f"${text}$", parsing_timeout=seconds) for text in (other, one)]
    return bool(all(parsed)) and bool(verify(*parsed, timeout_seconds=seconds))
