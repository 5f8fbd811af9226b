"""Rows and groups (`rs_rlhf.data.group`): what every shape of row becomes, and what is said of a bad one."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image

from rs_rlhf.data.group import completion_text, group_from_row, make_group, prompt_text
from rs_rlhf.errors import DataError

IMAGE = {"type": "image"}


def text(value):
    return {"type": "text", "text": value}


def user(*parts):
    return {"role": "user", "content": list(parts)}


def assistant(value):
    return {"role": "assistant", "content": [text(value)]}


def test_plain_text_becomes_a_user_and_an_assistant_turn():
    group = make_group("Rural or urban?", ["urban", "rural"], "a.png", margin=0.5, kind="rsvqa")
    assert group.prompt == [user(IMAGE, text("Rural or urban?"))]
    assert group.completions == [[assistant("urban")], [assistant("rural")]]
    assert (group.images, group.margin, group.kind, group.row) == (["a.png"], 0.5, "rsvqa", -1)


@pytest.mark.parametrize("prompt", [None, "", []])
def test_a_caption_answers_an_empty_user_turn(prompt):
    assert make_group(prompt, ["A harbour."]).prompt == [user()]
    assert make_group(prompt, ["A harbour."], ["a.png"]).prompt == [user(IMAGE)]


def test_images_go_to_the_first_user_turn():
    messages = [{"role": "system", "content": "S"}, user(text("Q1")), assistant("A1"), user(text("Q2"))]
    group = make_group(messages, ["A2"], ["a.png", "b.png"])
    assert group.prompt == [
        {"role": "system", "content": [text("S")]},
        user(IMAGE, IMAGE, text("Q1")),
        assistant("A1"),
        user(text("Q2")),
    ]
    assert messages[1] == user(text("Q1")), "the caller's messages are not changed"


def test_literal_placeholders_keep_their_place_and_lose_one_line_break():
    group = make_group("First <image>\nthen\n<image> what changed?", ["x"], ["a.png", "b.png"])
    assert group.prompt == [user(text("First "), IMAGE, text("then"), IMAGE, text(" what changed?"))]


def test_parts_from_arrow_with_null_keys():
    prompt = [user({"type": "image", "text": None}, {"type": "text", "text": "Q", "image": None})]
    assert make_group(prompt, ["x"], ["a.png"]).prompt == [user(IMAGE, text("Q"))]


def test_an_image_inside_its_part_is_taken_in_order():
    prompt = [user({"type": "image", "image": "in.png"}, IMAGE, text("Q"))]
    group = make_group(prompt, ["x"], ["column.png"])
    assert group.images == ["in.png", "column.png"]
    assert group.prompt == [user(IMAGE, IMAGE, text("Q"))]


def test_the_normal_form_is_a_fixed_point():
    group = make_group("a <image> b", ["x", [assistant("y")]], ["a.png"])
    assert make_group(group.prompt, group.completions, group.images) == group


@pytest.mark.parametrize(
    ("prompt", "completions", "images", "message"),
    [
        ("<image><image> Q", ["x"], ["a.png"], "2 image placeholders in the prompt but 1 image;"),
        ("<image> Q", ["x"], None, "1 image placeholder in the prompt but 0 images;"),
        ("Q", [[{"role": "assistant", "content": [IMAGE]}]], None, r"`completions\[0\]` has an image placeholder"),
        ([{"role": "human", "content": "Q"}], ["x"], None, "unknown role 'human', expected system, user"),
        ([user({"type": "video"})], ["x"], None, "`prompt` has the part {'type': 'video'}"),
        ([user({"type": "text", "text": None})], ["x"], None, "expected .* a string"),
        ([{"role": "user"}], ["x"], None, "expected messages {role, content}"),
        ([{"role": "user", "content": 3}], ["x"], None, "the content 3 .int."),
        (5, ["x"], None, "`prompt` is 5 .int., expected a string or a list of messages"),
        ("Q", [[{**assistant("x"), "tool_calls": [{}]}]], None, "`tool_calls`, which is not read"),
        ("Q", ["x"], [None], "`images` holds null, expected a path"),
        ("Q", ["x"], [{"bytes": None, "path": None}], "`images` holds null"),
        ([user(text("Q"))], [[user(text("Q")), assistant("x")]], None, "begins with a 'user' turn"),
    ],
)
def test_what_is_wrong_is_said(prompt, completions, images, message):
    with pytest.raises(DataError, match=message):
        make_group(prompt, completions, images)


def test_a_policy_may_write_a_placeholder_but_a_preference_row_may_not():
    assert completion_text(make_group("Q", ["an <image> tag", ""]).completions[0]) == "an <image> tag"
    with pytest.raises(DataError, match="`rejected` has an image placeholder"):
        group_from_row({"prompt": "Q", "chosen": "x", "rejected": "<image> y"})


def test_sources_of_every_kind_are_kept_unread():
    picture, array = Image.new("RGB", (2, 2)), np.zeros((2, 2, 3), np.uint8)
    images = ["missing.png", {"bytes": b"x", "path": "p"}, {"bytes": None, "path": "p.png"}, picture, array]
    group = make_group("Q", ["x"], images)
    assert group.images[:3] == ["missing.png", {"bytes": b"x", "path": "p"}, "p.png"]
    assert group.images[3] is picture and group.images[4] is array


def test_texts():
    prompt = make_group([{"role": "system", "content": "S"}, user(IMAGE, text("a"), text("b"))], ["x"], "i.png").prompt
    assert prompt_text(prompt) == "S\nab"
    assert completion_text([{"role": "assistant", "content": "plain"}]) == "plain"


def test_implicit_prompt_is_the_common_prefix():
    head = [user(text("Q1")), assistant("A1"), user(text("Q2"))]
    row = {"chosen": [*head, assistant("good")], "rejected": [[*head, assistant("bad")], [*head, assistant("worse")]]}
    group = group_from_row(row)
    assert group.prompt == head
    assert [completion_text(one) for one in group.completions] == ["good", "bad", "worse"]
    assert group_from_row({**row, "prompt": "Q2"}) == group
    with pytest.raises(DataError, match="not part of the prompt turns"):
        group_from_row({**row, "prompt": "something else"})


def test_implicit_prompt_of_equal_completions_leaves_a_completion():
    talk = [user(text("Q")), assistant("same")]
    group = group_from_row({"chosen": talk, "rejected": talk})
    assert group.completions == [[assistant("same")], [assistant("same")]]


def test_captions_that_begin_alike_share_no_prompt():
    group = group_from_row({"chosen": "A view of a port", "rejected": "A view of a farm"})
    assert group.prompt == [user()] and completion_text(group.completions[1]) == "A view of a farm"


@pytest.mark.parametrize(
    ("row", "key", "message"),
    [
        ({"prompt": "Q", "good": "x"}, "chosen", "no column `chosen` and `rejected`; the columns are prompt, good"),
        ({"chosen": None, "rejected": "x"}, "chosen", "`chosen` is null, expected one text"),
        ({"chosen": " ", "rejected": "x"}, "chosen", "`chosen` is empty"),
        ({"chosen": "x", "rejected": []}, "rejected", r"`rejected` is \[\] \(list\), expected one completion"),
        ({"chosen": "x", "rejected": ["y", ""]}, "rejected[1]", r"`rejected\[1\]` is empty"),
        ({"chosen": "x", "rejected": ["y", [assistant("z")]]}, "rejected", "`rejected` is"),
        ({"chosen": "x", "rejected": "y", "margin": "1"}, "margin", "`margin` is '1' .str., expected a finite number"),
        ({"chosen": "x", "rejected": "y", "margin": float("nan")}, "margin", "`margin` is nan"),
        ({"chosen": "x", "rejected": "y", "kind": 3}, "kind", "`kind` is 3"),
        ({"chosen": "x", "rejected": "y", "image": 3}, "image", "`image` holds 3"),
        ({"chosen": "x", "rejected": "y", "image": "a", "images": ["a"]}, "images", "both `image` and `images`"),
        ({"prompt": "", "chosen": "x", "rejected": "y", "image_name": "a"}, "image_name", "rename it to `image`"),
        ([1], "", "the row is"),
    ],
)
def test_bad_rows_name_row_and_key(row, key, message):
    with pytest.raises(DataError, match=f"^train.jsonl, line 3: .*{message}") as caught:
        group_from_row(row, 3, "train.jsonl, line 3")
    assert caught.value.key == key
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value), "must survive a worker process"
