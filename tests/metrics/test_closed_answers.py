"""The two metrics of closed answers: golden cases, worked out by hand, and what they stand for."""

import json

import pytest
from helpers import CASES
from helpers.answer_table import cases, verdict_of
from hypothesis import given, settings
from hypothesis import strategies as st

from rs_rlhf.errors import OptionError
from rs_rlhf.metrics.closed_answers import (
    count_closeness,
    judge_answer,
    judge_solution,
    read_answer,
    upstream_compat,
)


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
    "choices",
    [["A, B", "C, D"], ["A. A, B", "B. C, D"], ["the river", "river"], ["b", "dog"], ["B. dog", "A. cat"]],
)
def test_a_choice_in_its_own_words_is_that_choice(choices):
    for one in choices:
        own = [judge_answer(said, [one], choices=choices)["strict"] for said in (*choices, "", "none")]
        assert own == [said == one for said in choices] + [False, False]


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(OptionError, match="at least one and none empty"):
        judge_answer("urban", [])
    with pytest.raises(OptionError, match="none empty"):
        judge_answer("urban", ["urban", " "])
    with pytest.raises(OptionError, match="'forest' is none of the choices rural, urban"):
        judge_answer("urban", ["forest"], choices=["rural", "urban"])
    with pytest.raises(OptionError, match="'a river' is none of the choices the river, river, or several"):
        judge_answer("", ["a river"], choices=["the river", "river"])
    with pytest.raises(OptionError, match="numbers is 'rsvqa', expected one of rsvqa_lr, rsvqa_hr"):
        judge_answer("12", ["12"], numbers="rsvqa")


MISSED = ["Wait, I missed one. 4.", "A: C"]  # what a person understands and the metric does not


def test_hard_answers():
    judged = [(output, verdict, verdict_of(group, output)) for group, output, verdict in cases()]
    assert len(judged) > 2000
    assert [output for output, verdict, found in judged if found == "right" != verdict] == []
    assert [output for output, verdict, found in judged if found != "right" == verdict] == MISSED


# Right answers of every kind, and a wrong one of the same kind.
KINDS = [
    (["yes"], (), "no"),
    (["no"], (), "yes"),
    (["false"], (), "true"),
    (["3"], (), "4"),
    (["0"], (), "12"),
    (["1,250"], (), "125"),
    (["2.5"], (), "25"),
    (["-7"], (), "7"),
    (["40%"], (), "4%"),
    (["250m2"], (), "25m2"),
    (["urban"], (), "rural"),
    (["storage tank"], (), "storage"),
    (["B"], (), "C"),
    (["B"], ("rural", "urban"), "rural"),
    (["sea port"], ("airport", "port", "sea port"), "port"),
    (["dense residential"], ("dense residential", "residential", "park", "parking"), "residential"),
    (["3"], ("1", "2", "3"), "2"),
]
kinds = st.sampled_from(KINDS)
WRAPS = [
    *("{}", "{}.", "{}!", "  {}\n", '"{}"', "'{}'", "`{}`", "**{}**", "“{}”", "「{}」", "({})", "[{}]", "${}$"),
    *("\\boxed{{{}}}", "<answer>{}</answer>", "<think>no, maybe 7?</think>{}", "{}<|im_end|>", "{}</s>"),
    *(
        "The answer is {}.",
        "Answer: {}",
        "Final answer: {}",
        "My answer is {}",
        '{{"answer": "{}"}}',
        "### Answer\n{}",
    ),
    *("Sure! {}", "Therefore, the answer is {}.", "{}\n\n{}", "答案：{}", "Is it so? {}", "9, no wait, {}"),
]
DENIALS = [
    *("not {}", "It is not {}.", "The answer is not {}.", "It isn't {}", "{} is wrong", "{} is not correct"),
    *("neither {} nor this", "I don't think the answer is {}", "anything but {}", "definitely not {}"),
]
DOUBTS = [
    *("maybe {}", "perhaps {}", "I am not sure, {}", "{}?", "It could be {}", "{}, or maybe {other}", "{} or {other}"),
    *("I cannot tell whether it is {}", "Probably {}", "{}, but I am not certain", "{} or {other}?", "{other} or {}"),
    *("The answer is {}. The answer is {other}.", "<answer>{}</answer><answer>{other}</answer>", "<think>{}"),
]
BOUNDS = [
    *(">{}", "> {}", ">={}", "≥ {}", "<{}", "<= {}", "{}+", "~{}", "≈ {}", "{} or more", "{} or less", "{} or fewer"),
    *("at least {}", "at most {}", "more than {}", "less than {}", "fewer than {}", "over {}", "under {}", "up to {}"),
    *("about {}", "around {}", "approximately {}", "nearly {}", "{} or so", "{}, at least", "{} (at most)", "{}-9999"),
    *("between {} and 9999", "from {} to 9999", "no more than {}", "no fewer than {}", "a minimum of {}", "{} and up"),
]


@given(kinds, st.sampled_from(WRAPS[:13]), st.sampled_from(WRAPS), st.sampled_from([str, str.upper, str.title]))
@settings(deadline=None, max_examples=600)
def test_a_plain_answer_stays_right_in_any_wrapping(kind, inner, outer, case):
    references, choices, _ = kind
    output = case(references[0]) if "m2" not in references[0] else references[0]
    for wrap in (inner, outer):
        output = wrap.format(*[output] * wrap.count("{}"))
    assert judge_answer(output, references, choices=choices)["strict"], output


@given(kinds, st.sampled_from(DENIALS + DOUBTS), st.sampled_from(WRAPS[:18]))
@settings(deadline=None, max_examples=600)
def test_a_denial_or_a_doubt_never_leaves_an_answer_right(kind, phrase, wrap):
    references, choices, other = kind
    said = phrase.format(references[0], other=other)
    output = wrap.format(*[said] * wrap.count("{}"))
    assert not judge_answer(output, references, choices=choices)["strict"], output


@given(st.sampled_from([3, 0, 17, 1250, 2.5]), st.sampled_from(BOUNDS), st.sampled_from(WRAPS[:18]), st.booleans())
@settings(deadline=None, max_examples=600)
def test_a_bound_never_leaves_a_number_right(number, bound, wrap, stated):
    said = bound.format(number)
    output = wrap.format(*[f"The answer is {said}" if stated else said] * wrap.count("{}"))
    assert not judge_answer(output, [str(number)])["strict"], output


@given(st.integers(-(10**7), 10**7), st.integers(-(10**7), 10**7))
@settings(deadline=None)
def test_numbers_are_compared_as_numbers(number, other):
    forms = [str(number), f"{number:,}", f"{number}.0", f"{number:.3e}" if abs(number) < 10**4 else f"{number}."]
    assert all(judge_answer(form, [str(number)])["strict"] for form in forms)
    assert judge_answer(str(number), [f"{float(number)}"])["strict"]
    assert judge_answer(str(other), [str(number)])["strict"] is (number == other)
    assert judge_answer(f"{number / 10}", [str(number)])["strict"] is (number == 0)


@given(st.text(max_size=60), kinds)
@settings(deadline=None, max_examples=300)
def test_no_text_stops_the_metric(text, kind):
    references, choices, _ = kind
    verdict = judge_answer(text, references, choices=choices)
    assert verdict["answer"] is not None or not verdict["strict"]


@pytest.mark.parametrize(
    ("solution", "right", "wrong"),
    [
        (3, "3", "30"),
        (3.0, "3", "30"),
        (3.5, "3.5", "35"),
        (0, "no ships", "3"),
        (True, "Yes, there is.", "no"),
        (True, "It is true.", "It is false."),
        (False, "no", "yes"),
        ("Rural", "It is a rural area.", "urban"),
    ],
)
def test_solutions_of_any_type(solution, right, wrong):
    assert judge_solution(right, solution)["strict"] and not judge_solution(wrong, solution)["strict"]
    assert not judge_solution("", solution)["strict"]


@pytest.mark.parametrize(
    "solution", [None, "", " ", float("nan"), float("inf"), [1, 2, 3, 4], [[1, 2, 3, 4]], {"count": 2}]
)
def test_what_is_no_solution_judges_nothing(solution):
    assert judge_solution("3", solution) is None


def test_choices_without_the_solution_are_not_used():
    assert judge_solution("urban", "urban", ["rural", "forest"])["strict"]
    assert judge_solution("B", "urban", ["rural", "urban"])["strict"] and not judge_solution("B", "urban")["strict"]


@pytest.mark.parametrize(
    ("said", "solution", "near"),
    [
        ("3", 4, 0.75),
        ("<think>I see 9.</think><answer>There are two ships.</answer>", "4", 0.5),
        ("4.0", "four", 1),
        ("none at all", 3, 0),
        ("no ships", 0, 1),
        ("0", 0, 1),
        ("5", 0, 0),
        ("400", 4, 0.01),
        ("-3", 3, 0),  # not below 0
        ("-2", "-4", 0.5),
        ("1 ha", "5000 m2", 0.5),
        ("2500", "5000 m2", 0.5),  # a unit left out is the right answer's
        ("3 km", "5000 m2", 0),
        ("3 planes", "There are 4 planes.", 0.75),
        *((said, 4, 0) for said in ("", "maybe 4", "about 4", "at least 4", "4-5", "4 or 5", "3, 4", "not 4", "many")),
        ("between 10 and 100", "between 10 and 100", 1),
        ("50", "between 10 and 100", 0),
        *(("3", solution, None) for solution in (None, "", "urban", True, [3], {"count": 3}, float("nan"))),
    ],
)
def test_a_count_is_rewarded_by_how_near_it_is(said, solution, near):
    assert count_closeness(said, solution) == near


@given(st.integers(-200, 200), st.integers(-200, 200))
@settings(deadline=None, max_examples=200)
def test_a_count_is_right_where_the_strict_metric_says_so(said, solution):
    near = count_closeness(f"There are {said}.", solution)
    assert (near == 1) is judge_solution(f"There are {said}.", solution)["strict"] and 0 <= near <= 1
    assert near == count_closeness(f"There are {solution}.", said)


@pytest.mark.parametrize("case", golden("strict.json"))
def test_a_count_is_judged_by_the_one_rule(case):
    for reference in case["references"] if len(case["references"]) == 1 else ():
        near = count_closeness(case["output"], reference)
        if near is not None and case["answer"] is not None:
            assert (near == 1) is case["strict"], case["why"]


@pytest.mark.parametrize(
    "outputs, answer",
    [
        (["river", "A river.", "The answer is: a River", "<think>sea?</think><answer>river</answer>"], "river"),
        (["no", "No, there are none.", "No roads are visible."], "no"),
        (["2 planes", "two planes", "Two planes."], "2 planes"),
        (["", "It may be a river.", "a port, or a river", "Answer: 2. Answer: 3."], None),
    ],
)
def test_answers_vote_together_without_a_right_one(outputs, answer):
    assert {read_answer(output) for output in outputs} == {answer}
