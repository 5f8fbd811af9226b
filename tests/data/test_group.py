"""Groups: the form that every shape of prompt, completions and images becomes, and the errors of bad ones."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.messages import IMAGE, assistant, text, user
from PIL import Image

from rs_rlhf.data.group import completion_text, make_group, prompt_text
from rs_rlhf.errors import DataError


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
        ([{"role": "user"}], ["x"], None, "expected turns {role, content}"),
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


def test_a_policy_may_write_a_placeholder():
    assert completion_text(make_group("Q", ["an <image> tag", ""]).completions[0]) == "an <image> tag"


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
