r"""Answers that are formulas: the one answer rule, LaTeX solutions, and math_verify where it is installed."""

import pytest

from rs_rlhf.metrics.closed_answers import judge_solution
from rs_rlhf.metrics.math_answers import find_math_verify, formula, judge_math

verified = pytest.mark.skipif(not find_math_verify(), reason="math_verify is not installed")


@pytest.mark.parametrize(
    ("said", "solution", "right"),
    [
        ("42", "42", True),
        ("42", 42, True),
        ("42", r"\boxed{42}", True),
        ("42", "#### 42", True),
        (r"so $x = \boxed{\frac{1}{2}}$", "0.5", True),
        ("0.5", r"$\frac{1}{2}$", True),
        ("1,234", r"\boxed{1234}", True),
        ("urban", "urban", True),
        ("yes", True, True),
        (r"\boxed{41}", "42", False),
        ("maybe 42", r"\boxed{42}", False),
        ("41 or 42", "42", False),
        (r"\boxed{41}, no, \boxed{42} or so", "42", False),
        ("2 + 40", "42", False),  # an echo of the question
        (r"\sqrt{4}", "2", False),
        ("~42", "42", False),
        ("42+", "42", False),
        (r"\sqrt{3}", r"\sqrt{2}", False),
        ("", r"\sqrt{2}", False),
        ("42", None, None),
        ("42", "", None),
        ("42", [42], None),
    ],
)
def test_the_answer_rule_decides_and_reads_solutions_in_latex(said, solution, right):
    assert judge_math(said, solution) is right


def test_choices_are_read_as_elsewhere():
    assert judge_math("B", "urban", ["rural", "urban"]) and judge_solution("B", "urban", ["rural", "urban"])["strict"]


@verified
@pytest.mark.parametrize(
    ("said", "solution", "right"),
    [
        (r"The answer is $\frac{1}{\sqrt{2}}$.", r"\frac{\sqrt{2}}{2}", True),
        (r"\boxed{\frac{\sqrt{2}}{2}}", r"\boxed{\frac{1}{\sqrt{2}}}", True),
        (r"$(x+1)^2$", "$x^2+2x+1$", True),
        (r"<think>$x^2$</think><answer>$(x+1)^2$</answer>", "$x^2+2x+1$", True),
        (r"$(x+2)^2$", "$x^2+2x+1$", False),
        (r"maybe $\frac{1}{\sqrt{2}}$", r"\frac{\sqrt{2}}{2}", False),
        (r"not $\frac{1}{\sqrt{2}}$", r"\frac{\sqrt{2}}{2}", False),
        (r"$\frac{1}{\sqrt{2}}$ or $2$", r"\frac{\sqrt{2}}{2}", False),
        (r"\boxed{\frac{1}{\sqrt{2}}} \boxed{2}", r"\frac{\sqrt{2}}{2}", False),
        ("a river", r"\frac{\sqrt{2}}{2}", False),
    ],
)
def test_formulas_are_compared_as_formulas(said, solution, right):
    assert judge_math(said, solution) is right


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"The answer is $\sqrt{2}$.", r"\sqrt{2}"),
        (r"\boxed{\frac{\sqrt{2}}{2}}", r"\frac{\sqrt{2}}{2}"),
        (r"$\pi$ and again \(\pi\)", r"\pi"),
        ("x^2 + 1", "x^2 + 1"),
        (r"$1$ or $2$", None),
        ("a river", None),
        (r"maybe $\pi$", None),
        (r"the answer is not $\pi$", None),
        ("", None),
    ],
)
def test_the_one_formula_of_an_answer(text, found):
    assert formula(text) == found
