"""Forms of boxes: what strangers' models write, with spaces, fences, labels, polygons, and cut off."""

import pytest

from rs_rlhf.metrics.box_forms import Written, written_boxes

QWEN = """```json
[
\t{"bbox_2d": [1, 2, 3, 4], "label": "ship"},
\t{"point_2d": [9, 9], "bbox_2d": [5, 6, 7, 8]}
]
```"""


def corners(text, form):
    return [None if box is None else box.corners for box in written_boxes(text, [form])]


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("<|box_start|>(1,2),(3,4)<|box_end|>", [(1, 2, 3, 4)]),
        ("ship( 1.5 , 2 ),\n( 3 , 4 )", [(1.5, 2, 3, 4)]),
        ("(1,2),(3,4)(5,6),(7,8)", [(1, 2, 3, 4), (5, 6, 7, 8)]),  # the tokens around boxes are not decoded
        ("(1,2),(3,4) and (5,6),(7,8)", [(1, 2, 3, 4), (5, 6, 7, 8)]),
        ("(1,2),(3,4),\n(5,6),(7,8)", [(1, 2, 3, 4), (5, 6, 7, 8)]),
        ("[(1,2),(3,4)]", [(1, 2, 3, 4)]),
        ("（１，２），（３，４）", [(1, 2, 3, 4)]),
        ("at (9, 9) the box (1,2),(3,4)", [(1, 2, 3, 4)]),
        ("(1,2),(3,2),(3,4),(1,4)", [None]),
        ("(1,2),\n(3,2),\n(3,4),\n(1,4)", [None]),
        ("(1,2),(3,2),(3,4)", [None]),
        ("(1,2)", []),
        ("[1,2,3,4]", []),
    ],
)
def test_pairs(text, boxes):
    assert corners(text, "pairs") == boxes


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        (QWEN, [(1, 2, 3, 4), (5, 6, 7, 8)]),
        ('{"bbox_2d":[1.5,2,3,4.0]}', [(1.5, 2, 3, 4)]),
        ("{'bbox_2d' : [1, 2,\n 3, 4]}", [(1, 2, 3, 4)]),
        ('{"bbox_2d": ["1", "2", "3", "4"]}', [(1, 2, 3, 4)]),
        ('{"bbox_2d": [[1, 2, 3, 4], [5, 6, 7, 8]]}', [(1, 2, 3, 4), (5, 6, 7, 8)]),
        ('{"label": "a [9, 9, 9, 9]", "bbox_2d": [1, 2, 3, 4]}', [(1, 2, 3, 4)]),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "sh', [(1, 2, 3, 4)]),  # cut off behind the box
        ('[{"bbox_2d": [1, 2, 3, 4]}, {"bbox_2d": [5, 6', [(1, 2, 3, 4), None]),
        ('[{"bbox_2d": [1, 2, 3', [None]),
        ('{"bbox_2d": [1, 2, 3]}', [None]),
        ('{"bbox_2d": [1, 2, 3, 2, 3, 4, 1, 4]}', [None]),
        ('{"bbox_2d": [[1, 2], [3, 2], [3, 4], [1, 4]]}', [None]),
        ('{"bbox_2d": []}', []),
        ('{"bbox_2d": null}', []),
        ('{"point_2d": [1, 2]}', []),
        ("[1, 2, 3, 4]", []),
    ],
)
def test_json(text, boxes):
    assert corners(text, "json") == boxes


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("{<1><2><3><4>|<0>}", [Written((1, 2, 3, 4))]),
        ("{<1><2><3><4>}", [Written((1, 2, 3, 4))]),
        ("{ <1> <2.5> <3> <4> | <-30> }", [Written((1, 2.5, 3, 4), angle=-30)]),
        (
            "<p>ships</p>{<1><2><3><4>|<9>}<delim>{<5><6><7><8>|<0>}",
            [Written((1, 2, 3, 4), angle=9), Written((5, 6, 7, 8))],
        ),
        ("{<1><2><3><4>|", [None]),
        ("{<1><2><3><4>|<1e999>}", [None]),
        ("{<1><2><3>", [None]),
        ("{<1><2><3><2><3><4><1><4>}", [None]),
        ("{<1><2>", []),
        ("[1, 2, 3, 4]", []),
    ],
)
def test_geochat(text, boxes):
    assert written_boxes(text, ["geochat"]) == boxes


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("<ref>ship</ref><box>[[1, 2, 3, 4]]</box>", [(1, 2, 3, 4)]),
        ("ship[[1, 2, 3, 4], [5, 6, 7, 8]]", [(1, 2, 3, 4), (5, 6, 7, 8)]),
        ("[ 1,2 ,3, 4 ]", [(1, 2, 3, 4)]),
        ("[1 2 3 4]", [(1, 2, 3, 4)]),
        ("(1, 2, 3, 4)", [(1, 2, 3, 4)]),
        (r"\boxed{[1, 2, 3, 4]}", [(1, 2, 3, 4)]),
        ("[1e-05, .5, 1., \u22124]", [(1e-05, 0.5, 1, -4)]),
        ('{"bbox": [1, 2, 3, 4], "center": [2, 3]}', [(1, 2, 3, 4)]),
        ("[1, 2, 3, 2, 3, 4, 1, 4]", [None]),
        ("[1, 2, 3]", []),
        ("[a, b, c, d]", []),
        ("[[1, 2], [3, 2], [3, 4], [1, 4]]", []),
    ],
)
def test_brackets(text, boxes):
    assert corners(text, "brackets") == boxes


@pytest.mark.parametrize(
    "text",
    ["[1, 2, 5, 2, 5, 8, 1, 8]", "[[1, 2], [5, 2], [5, 8], [1, 8]]", "(5,8), (1,8), (1,2)", "[[1, 2, 5, 8, 3, 3]]"],
)
def test_a_polygon_becomes_the_box_around_it(text):
    assert corners(text, "polygon") == [(1, 2, 5, 8)]


def test_a_box_is_no_polygon():
    assert corners("[1, 2, 3, 4] (1,2),(3,4)", "polygon") == []


def test_the_first_form_that_finds_something_is_read():
    text = '{"bbox_2d": [1, 2, 3, 4]} or [5, 6, 7, 8]'
    assert [box.corners for box in written_boxes(text, ["json", "brackets"])] == [(1, 2, 3, 4)]
    assert [box.corners for box in written_boxes("[5, 6, 7, 8]", ["json", "brackets"])] == [(5, 6, 7, 8)]
