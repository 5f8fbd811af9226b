"""What an answer says: golden cases, worked out by hand."""

import pytest

from rs_rlhf.metrics.answers import (
    clauses,
    conclusion,
    extract_answer,
    has_answer,
    hedged,
    is_think_answer,
    message_text,
    published_exact_match,
    published_normal_form,
    statements,
    unwrap,
)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>x</think><answer> urban\n</answer>", "urban"),
        ("no tags", "no tags"),
        ("<answer>a</answer><answer>b</answer>", "a\nb"),
        ("<answer>two\nlines</answer>", "two\nlines"),
        ("<answer>open", "open"),
        ("<answer>b</answer><answer>b</answer>", "b"),
        ("<THINK>a</THINK><Answer>b</Answer>", "b"),
        ("b</answer>", "b"),  # the opening tag was in the prompt
        ("<think>a</think><think>b", ""),
        ("<think>a <answer>b</answer>", "b"),
        ("<think>a <answer>b</answer> or not", ""),  # the answer is a thought among others
        ("<thinking>a</thinking>b", "b"),
        ("b<|im_end|>\n<|im_start|>user\nc", "b"),
        ("<|im_start|>assistant\nb</s>", "assistant\nb".partition("\n")[2]),
        ("<|box_start|>(1,2),(3,4)<|box_end|>", "<|box_start|>(1,2),(3,4)<|box_end|>"),
        ("", ""),
    ],
)
def test_extract_answer(text, answer):
    assert extract_answer(text) == answer


def test_has_answer():
    assert (
        has_answer("<answer>two\nlines</answer>") and not has_answer("<answer>open") and not has_answer("b</answer>")
    )


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("<think>a</think><answer>b</answer>", True),
        (" <think>a\nb</think>\n<answer>b</answer>\n", True),
        ("<think>a</think>b<answer>c</answer>", False),
        ("<answer>c</answer>", False),
        ("<think>a</think><answer>c</answer> and more", False),
        ("<think>a</think><answer>b</answer> or <answer>c</answer>", False),
        ("<think>a</think> so </think><answer>b</answer>", False),
        ("<think>it is <answer>a</answer></think><answer>b</answer>", False),  # the first answer would be read
        ("<think></think><answer></answer>", True),
        ("<Think>a</Think><answer>b</answer>", False),
        ("<think>a < b</think><answer><b>c</b></answer>", True),
        ("", False),
    ],
)
def test_is_think_answer(text, good):
    assert is_think_answer(text) is good


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("$\\boxed{B}$", "final answer: B"),
        ("\\boxed{\\text{B}}", "final answer: B"),
        ("**B**", "B"),
        ("「Ｂ」。", "B."),
        ("{'answer': 'B', 'confidence': 0.9}", "answer: B"),
        ('```json\n{"answer": 3}\n```', "answer: 3"),
        ("Is it rural? No, it isn't.", "No, it is not."),
        ("rural?", "rural?"),
        ("2, no wait, 3", "3"),
        ("Sure! It's B.", "It is B."),
        ("\\frac{1}{2}", "1/2"),
        ("10³", "10^3"),
        ("5 m²", "5 m2"),
        ("− 3", "-3"),
        ("there is no doubt: yes", ": yes"),
        ("<b>yes</b>", "yes"),
    ],
)
def test_unwrap(output, answer):
    assert unwrap(output) == answer


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("3", ["3"]),
        ("Answer: 3. I see 2 here", ["3."]),
        ("The answer is A. No, the answer is B.", ["A. No,", "B."]),
        ("Answer: 4. Final answer: 3", ["3"]),
        ("I don't know, but the answer is 3.", ["3."]),
        ("I do not think the answer is 3.", []),
        ("If the answer is 3, go.", []),
        ("One answer is 3.", []),
        ("Answer: 3. Or 4.", ["3. Or 4."]),
        ("Answer: B. urban. It has roofs.", ["B. urban."]),
        ("Answer:\n\n3\n\nReason: 2 and 1", ["3"]),
        ("答案是B", ["B"]),
    ],
)
def test_statements(text, found):
    assert statements(text) == found


def test_conclusions_hedges_and_clauses():
    assert conclusion("2 left, 1 right, so 3") == "3" and conclusion("1 + 2 = 3") == "3" and conclusion("3") == ""
    assert all(map(hedged, ("maybe", "I am not sure", "B?", "cannot say".replace("cannot", "can not"), "no idea")))
    assert not any(map(hedged, ("there is no road", "B", "3 or more", "a mayor")))
    assert clauses("not A but B, rather than C") == [("not A", False), ("B", True), ("rather than C", False)]
    assert clauses("1,000 or 3.5") == [("1,000 or 3.5", True)]


def test_the_published_rule():
    same = published_exact_match
    assert published_normal_form(" Storage  Tanks.\n") == "storagetanks"
    assert same("<answer>Rural.</answer>", "rural") and same("RURAL", "<answer>rural</answer>")
    assert not same("1", "12") and not same("12", "1") and same("3.5", "35") and not same("3", "3.0")
    assert published_normal_form("1.5 km") == "15km" and same("dense\tresidential", "Dense Residential.")
    assert same("<think>rural</think><answer>urban</answer>", "urban")
    assert not same("<think>urban</think><answer>rural</answer>", "urban")


@pytest.mark.parametrize("empty", ["", " . ", "<answer></answer>", "<answer> .\n</answer>"])
@pytest.mark.parametrize("solution", ["", ".", "<answer></answer>", "rural"])
def test_an_empty_answer_is_never_right(empty, solution):
    assert not published_exact_match(empty, solution)


def test_message_text():
    parts = [{"type": "image"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert message_text([{"role": "assistant", "content": parts}, {"role": "assistant", "content": "c"}]) == "ab\nc"
    assert message_text(None) == "" and message_text("plain") == "plain"
