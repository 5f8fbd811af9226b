"""The two metrics of closed answers: golden cases, worked out by hand, and what they stand for."""

import json

import pytest
from helpers import CASES

from rs_rlhf.metrics.closed_answers import bucket, judge_answer, plain, upstream_compat


def golden(name):
    cases = json.loads((CASES / name).read_text())
    return [pytest.param(case, id=f"{i}-{case['output'][:25]!r}") for i, case in enumerate(cases)]


@pytest.mark.parametrize("case", golden("strict.json") + golden("choices.json") + golden("buckets.json"))
def test_golden(case):
    verdict = judge_answer(
        case["output"], case["references"], choices=case.get("choices", ()), numbers=case.get("numbers")
    )
    assert verdict == {key: case[key] for key in ("answer", "strict", "upstream_compat")}, case["why"]


def test_the_published_rule_is_lenient_and_the_strict_one_is_not():
    empty, part = judge_answer("", ["12"]), judge_answer("1", ["12"])
    assert empty["upstream_compat"] and part["upstream_compat"]
    assert not empty["strict"] and not part["strict"]
    assert empty["answer"] is None and part["answer"] == "1"
    assert upstream_compat("", "anything") and upstream_compat("Rural, I think", ["urban", "rural"])
    assert not upstream_compat("12", "1")


@pytest.mark.parametrize(
    "answer", ["urban", "Storage Tanks", "yes", "no", "12", "1,000", "0.5m", "between 0 and 10", "C"]
)
def test_every_reference_is_right_about_itself(answer):
    assert judge_answer(answer, [answer])["strict"]
    assert judge_answer(f"<think>x</think><answer>{answer}.</answer>", [answer])["strict"]


@pytest.mark.parametrize(
    ("number", "low"),
    [
        (0, "0"),
        (1, "between 0 and 10"),
        (10, "between 0 and 10"),
        (11, "between 10 and 100"),
        (100, "between 10 and 100"),
        (101, "between 100 and 1000"),
        (1000, "between 100 and 1000"),
        (1001, "more than 1000"),
        (-3, None),
    ],
)
def test_bucket_edges(number, low):
    assert bucket(str(number), "rsvqa_lr") == low
    high = low and " ".join(f"{word}m2" if word.isdigit() else word for word in low.split())
    assert bucket(f"{number}m2", "rsvqa_hr") == high
    assert bucket(str(number), "rsvqa_hr") is None and bucket(f"{number}m2", "rsvqa_lr") is None
    if low is not None:
        assert bucket(low, "rsvqa_lr") == low and bucket(high, "rsvqa_hr") == high


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("ninety-nine", "99"),
        ("nineteen thousand two hundred", "19200"),
        ("3 thousand", "3000"),
        ("one two", "1 2"),
        ("zero five", "0 5"),
        ("twenty twenty", "20 20"),
        ("salt and pepper", "salt and pepper"),
        ("007", "7"),
        (".50", "0.5"),
        ("a", "a"),
        ("the", "the"),
        ("A car's roof", "cars roof"),
        ("5 sq. m", "5m2"),
        ("5 hectares", "5ha"),
        ("1,5", "1 5"),
        ("", ""),
    ],
)
def test_plain(text, form):
    assert plain(text) == form


@pytest.mark.parametrize(
    "choices",
    [["A, B", "C, D"], ["A. A, B", "B. C, D"], ["the river", "river"], ["b", "dog"], ["B. dog", "A. cat"]],
)
def test_a_choice_in_its_own_words_is_that_choice(choices):
    for one in choices:
        own = [judge_answer(said, [one], choices=choices)["strict"] for said in (*choices, "", "none")]
        assert own == [said == one for said in choices] + [False, False]


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(ValueError, match="at least one and none empty"):
        judge_answer("urban", [])
    with pytest.raises(ValueError, match="none empty"):
        judge_answer("urban", ["urban", " "])
    with pytest.raises(ValueError, match="'forest' is none of the choices rural, urban"):
        judge_answer("urban", ["forest"], choices=["rural", "urban"])
    with pytest.raises(ValueError, match="'a river' is none of the choices the river, river, or several"):
        judge_answer("", ["a river"], choices=["the river", "river"])
    with pytest.raises(ValueError, match="numbers is 'rsvqa', expected one of rsvqa_lr, rsvqa_hr"):
        judge_answer("12", ["12"], numbers="rsvqa")
    with pytest.raises(ValueError, match="expected one of rsvqa_lr"):
        bucket("12", "lr")
