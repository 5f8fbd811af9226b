"""What an answer says: golden cases, worked out by hand."""

import pytest

from rs_rlhf.metrics.answers import (
    exact_match,
    extract_answer,
    has_answer,
    iou,
    is_think_answer,
    message_text,
    normalize,
    paired_ious,
    parse_boxes,
    to_unit,
)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>x</think><answer> urban\n</answer>", "urban"),
        ("no tags", "no tags"),
        ("<answer>a</answer><answer>b</answer>", "a"),
        ("<answer>two\nlines</answer>", "two\nlines"),
        ("<answer>open", "<answer>open"),
        ("", ""),
    ],
)
def test_extract_answer(text, answer):
    assert extract_answer(text) == answer
    assert has_answer(text) == ("</answer>" in text)


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


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("<|box_start|>(10,20),(30,40)<|box_end|>", [(10, 20, 30, 40)]),
        ("( 1.5 , 2 ), (3,4) and (5,6),(7,8)", [(1.5, 2, 3, 4), (5, 6, 7, 8)]),
        ("[1, 2, 3, -4.5] then [5,6,7,8]", [(1, 2, 3, -4.5), (5, 6, 7, 8)]),
        ("[1, 2, 3]", []),
        ("[1, 2, 3, 4, 5]", []),
        ("[.5, 0.25, 1., 1]", [(0.5, 0.25, 1, 1)]),
        ("(-1,2),(3,4)", [(-1, 2, 3, 4)]),
        ("[[1,2,3,4],\n [5,6,7,8]]", [(1, 2, 3, 4), (5, 6, 7, 8)]),
        ('{"bbox_2d": [1, 2, 3, 4], "label": "ship"}', [(1, 2, 3, 4)]),
        ("(1,2),(3,4) [5,6,7,8]", [(1, 2, 3, 4)]),  # Qwen2-VL's own form goes first
        ("[a, b, c, d] (1,2)", []),
        ("", []),
    ],
)
def test_parse_boxes(text, boxes):
    assert parse_boxes(text) == boxes


def test_units():
    assert to_unit((100, 200, 500, 1000), "0-1000") == (0.1, 0.2, 0.5, 1.0)
    assert to_unit((10, 10, 20, 40), "pixel", (100, 40)) == (0.1, 0.25, 0.2, 1.0)
    assert to_unit((10, 25, 50, 100), "0-100") == (0.1, 0.25, 0.5, 1.0)
    assert to_unit((0.1, 0.2, 0.3, 1), "0-1", (100, 40)) == (0.1, 0.2, 0.3, 1)
    with pytest.raises(ValueError, match="width, height"):
        to_unit((1, 2, 3, 4), "pixel")


def test_iou():
    assert iou((0, 0, 10, 10), (0, 0, 10, 10)) == 1
    assert iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)  # 50 / (100 + 100 - 50)
    assert iou((0, 0, 10, 10), (2, 2, 7, 6)) == iou((2, 2, 7, 6), (0, 0, 10, 10)) == pytest.approx(0.2)
    assert iou((-10, -10, 0, 0), (-5, -5, 5, 5)) == pytest.approx(25 / 175)
    assert iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0 and iou((0, 0, 0, 10), (0, 0, 10, 10)) == 0
    assert iou((10, 10, 0, 0), (0, 0, 10, 10)) == 0  # corners the wrong way round


def test_boxes_are_paired_for_the_greatest_total():
    first, second = (0, 0, 10, 10), (20, 0, 30, 10)
    assert paired_ious([second, first], [first, second]) == [1, 1]
    assert paired_ious([second, first], [first, second], by_order=True) == [0, 0]
    # taking the best pair first (8 / 10) would leave nothing for the second solution; 5 / 9 twice is more
    answers, solutions = [(0, 1, 10, 10), (0, 0, 10, 5)], [(0, 0, 10, 9), (0, 5, 10, 10)]
    assert paired_ious(answers, solutions, by_order=True) == pytest.approx([0.8, 0])
    assert paired_ious(answers, solutions) == pytest.approx([5 / 9, 5 / 9])
    assert paired_ious(answers[::-1], solutions) == paired_ious(answers, solutions)
    assert paired_ious([], []) == []
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_ious([first], [first, second])
