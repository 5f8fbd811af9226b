"""What an answer says: golden cases, worked out by hand."""

import pytest

from rs_rlhf.metrics.answers import (
    exact_match,
    extract_answer,
    has_answer,
    is_think_answer,
    message_text,
    normalize,
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


def test_normalize_and_exact_match():
    assert normalize(" Storage  Tanks.\n") == "storagetanks"
    assert exact_match("<answer>Rural.</answer>", "rural") and exact_match("RURAL", "<answer>rural</answer>")
    assert not exact_match("1", "12") and not exact_match("12", "1")
    assert normalize("1.5 km") == "15km" and exact_match("dense\tresidential", "Dense Residential.")
    assert exact_match("<think>rural</think><answer>urban</answer>", "urban")
    assert not exact_match("<think>urban</think><answer>rural</answer>", "urban")


@pytest.mark.parametrize("empty", ["", " . ", "<answer></answer>", "<answer> .\n</answer>"])
@pytest.mark.parametrize("solution", ["", ".", "<answer></answer>", "rural"])
def test_an_empty_answer_is_never_right(empty, solution):
    assert not exact_match(empty, solution)


def test_message_text():
    parts = [{"type": "image"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert message_text([{"role": "assistant", "content": parts}, {"role": "assistant", "content": "c"}]) == "ab\nc"
    assert message_text(None) == "" and message_text("plain") == "plain"
