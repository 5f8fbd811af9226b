"""The schema of preference rows: the group that a row becomes, and the key and place of what is wrong with it."""

from __future__ import annotations

import pickle

import pytest
from helpers.messages import assistant, text, user

from rs_rlhf.data.group import completion_text
from rs_rlhf.errors import DataError
from rs_rlhf.preferences.schema import group_from_row


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
        ({"chosen": " ", "rejected": "x"}, "chosen", "`chosen` has an empty text"),
        ({"chosen": "x", "rejected": []}, "rejected", r"`rejected` is \[\] \(list\), expected one completion"),
        ({"chosen": "x", "rejected": ["y", ""]}, "rejected[1]", r"`rejected\[1\]` has an empty text"),
        ({"chosen": "x", "rejected": ["y", [assistant("z")]]}, "rejected", "`rejected` is"),
        (
            {"chosen": "x", "rejected": "y", "margin": "high"},
            "margin",
            "`margin` is 'high' .str., expected a finite number",
        ),
        ({"chosen": "x", "rejected": "y", "margin": float("nan")}, "margin", "`margin` is nan"),
        ({"chosen": "x", "rejected": "y", "kind": ["a"]}, "kind", "`kind` is .*list"),
        ({"chosen": "x", "rejected": "y", "image": 3}, "image", "`image` holds 3"),
        ({"chosen": "x", "rejected": "y", "image": "a", "images": ["a"]}, "images", "both `image` and `images`"),
        ({"chosen": "x", "rejected": "<image> y"}, "rejected", "`rejected` has an image placeholder"),
        ([1], "", "the row is"),
    ],
)
def test_bad_rows_name_row_and_key(row, key, message):
    with pytest.raises(DataError, match=f"^train.jsonl, line 3: .*{message}") as caught:
        group_from_row(row, 3, "train.jsonl, line 3")
    assert caught.value.key == key
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value), "must survive a worker process"
