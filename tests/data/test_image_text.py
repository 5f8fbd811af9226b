"""Forms of image-text rows: what is scored, which images are seen, and every message about a bad row."""

import json

import pytest
from helpers import picture

from rs_rlhf.data.columns import Columns
from rs_rlhf.data.group import completion_text, prompt_text
from rs_rlhf.data.image_text import image_text_row, text_list, with_texts
from rs_rlhf.errors import DataError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name in ("a", "b", "c"):
        picture(ord(name)).save(folder / f"{name}.png")
    return str(folder)


def made(raw, root, **options):
    row = image_text_row(raw, "t.jsonl:3", root=root, where="t.jsonl, row 3", source="t", **options)
    if row.error is not None:
        raise row.error
    return row


def error_of(raw, root, **options):
    row = image_text_row(raw, "t.jsonl:3", root=root, where="t.jsonl, row 3", source="t", **options)
    assert row.error is not None and (row.groups, row.images, row.texts) == ([], [], [])
    assert row.raw is raw and row.row_id == "t.jsonl:3"
    assert str(row.error).startswith("t.jsonl, row 3: ") and str(row.error).count("t.jsonl, row 3") == 1
    return row.error.detail


def seen(group):
    """A group's prompt in one line: roles, `<image>` for its images, texts."""
    words = [
        f"{message['role']}: " + "|".join(part.get("text", "<image>") for part in message["content"])
        for message in group.prompt
    ]
    return words, [image.rsplit("/", 1)[-1] for image in group.images]


def test_captions_are_one_group(root):
    row = made({"image": "a.png", "captions": ["one", "two"], "label": "Port", "source": "ucm"}, root)
    assert len(row.groups) == 1 and not row.whole
    assert row.texts == ["one", "two"] and [len(c) for c in row.groups[0].completions] == [1, 1]
    assert seen(row.groups[0]) == (["user: <image>"], ["a.png"])
    assert row.images == [f"{root}/a.png"] and (row.label, row.source) == ("Port", "ucm")
    assert row.groups[0].row == 3 and row.groups[0].source == "ucm" and row.groups[0].where == "t.jsonl, row 3"


@pytest.mark.parametrize("key", ["caption", "text", "title", "txt"])
def test_one_text(root, key):
    row = made({"filepath": "a.png", key: "a port"}, root)
    assert row.texts == ["a port"] and row.source == "t" and row.label == ""


def test_named_columns(root):
    raw = {"pic": ["a.png", "b.png"], "say": ["x", "y"], "caption": "not this", "image": "nothere.png"}
    row = made(raw, root, columns=Columns({"image": "pic", "text": "say"}))
    assert row.texts == ["x", "y"] and seen(row.groups[0])[1] == ["a.png", "b.png"]
    assert made({"say": "x"}, root, columns=Columns({"text": "say"})).texts == ["x"]
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    assert made({"say": turns}, root, columns=Columns({"text": "say"})).whole
    assert made({"img": None, "caption": "x"}, root, columns=Columns({"image": "img"})).images == []


def test_question_and_answer(root):
    row = made({"image": "a.png", "question": "Rural?", "answer": "no"}, root)
    assert seen(row.groups[0]) == (["user: <image>|Rural?"], ["a.png"]) and row.texts == ["no"] and not row.whole
    row = made({"image": "a.png", "prompt": "Look <image> here", "completion": "no"}, root)
    assert seen(row.groups[0]) == (["user: Look |<image>| here"], ["a.png"])


def test_llava_conversation(root):
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A port."},
        {"from": "human", "value": "And <image> here?"},
        {"from": "gpt", "value": "A river."},
        {"from": "human", "value": "Thanks."},
    ]
    row = made({"id": 1, "image": ["b.png", "c.png"], "conversations": turns}, root)
    assert row.whole and row.texts == ["A port.", "A river."]
    first, second = row.groups
    assert seen(first) == (["system: Be brief.", "user: <image>|What is it?"], ["b.png"])
    assert seen(second)[0] == [*seen(first)[0], "assistant: A port.", "user: And |<image>| here?"]
    assert seen(second)[1] == ["b.png", "c.png"] and [len(g.completions) for g in row.groups] == [1, 1]
    assert row.images == [f"{root}/b.png", f"{root}/c.png"]


def test_images_without_placeholders_go_to_the_first_user_turn(root):
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A port."}]
    row = made({"image": "a.png", "conversations": turns}, root)
    assert seen(row.groups[0]) == (["user: <image>|What?"], ["a.png"])
    alone = made({"image": "a.png", "conversations": turns[1:]}, root)
    assert seen(alone.groups[0]) == (["user: <image>"], ["a.png"]) and alone.texts == ["A port."]
    system = [{"from": "system", "value": "S"}, *turns[1:]]
    assert seen(made({"image": "a.png", "conversations": system}, root).groups[0])[0] == ["system: S", "user: <image>"]


def test_messages_with_image_parts(root):
    turns = [
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A port."}]},
    ]
    row = made({"messages": turns, "images": ["a.png"]}, root)
    assert seen(row.groups[0]) == (["user: <image>|What?"], ["a.png"]) and row.whole
    own = [{"role": "user", "content": [{"type": "image", "image": "b.png"}]}, turns[1]]
    assert made({"messages": own}, root).images == [f"{root}/b.png"]


def test_conversational_prompt_and_completion(root):
    prompt = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "given"},
        {"role": "user", "content": "R"},
    ]
    row = made({"prompt": prompt, "completion": [{"role": "assistant", "content": "A"}], "image": "a.png"}, root)
    assert row.whole and row.texts == ["A"]  # what the prompt's assistant says is given, not scored
    assert seen(row.groups[0])[0] == ["user: <image>|Q", "assistant: given", "user: R"]
    row = made({"prompt": "Q", "completion": [{"role": "assistant", "content": "A"}]}, root)
    assert row.texts == ["A"] and prompt_text(row.groups[0].prompt) == "Q"


def test_sequence_of_turns_stored_by_column(root):
    row = made({"conversations": {"from": ["human", "gpt"], "value": ["Q", "A"]}}, root)
    assert row.texts == ["A"] and prompt_text(row.groups[0].prompt) == "Q"


def test_images_as_bytes_and_text_only(root):
    stored = {"bytes": b"png", "path": "x.png"}
    assert made({"image": stored, "caption": "x"}, root).images == [stored]
    assert made({"jpg": b"png", "caption": "x"}, root).images == [{"bytes": b"png", "path": None}]
    assert made({"image": {"bytes": None, "path": "a.png"}, "caption": "x"}, root).images == [f"{root}/a.png"]
    for raw in ({"caption": "x"}, {"caption": "x", "image": None}, {"caption": "x", "images": []}):
        row = made(raw, root)
        assert row.images == [] and row.groups[0].images == []


def test_labels(root):
    names = {"label": ["Port", "River"], "class": ["x"]}
    assert made({"caption": "x", "label": 1}, root, labels=names).label == "River"
    assert made({"caption": "x", "label": -1}, root, labels=names).label == ""
    assert made({"caption": "x", "label": 7}, root).label == "7"
    assert made({"caption": "x", "class": "Port"}, root).label == "Port"
    assert made({"caption": "x", "label": None, "class": 0}, root, labels=names).label == "x"
    assert made({"caption": "x", "label": [1]}, root).label == ""


def test_texts_equal_completion_texts(root):
    row = made({"caption": "x <image> y"}, root)  # a caption may speak of a placeholder
    assert row.texts == [completion_text(row.groups[0].completions[0])] == ["x <image> y"]


HUMAN, GPT = {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}
BAD = [
    (7, "the row is 7 (int), expected an object with an image and conversations,"),
    ({"image": "a.png"}, "no text column; the columns are image; expected conversations, messages, prompt + "),
    ({"image": "a.png", "caption": None}, "the text is missing: `caption` is null or its question is; write it"),
    ({"prompt": "x", "completion": None}, "the text is missing: `completion` is null"),
    ({"image": "no.png", "caption": "x"}, "image 'no.png': no such file under image_root"),
    ({"image": "../x.png", "caption": "x"}, "the path leaves image_root"),
    ({"image": "/etc/passwd", "caption": "x"}, "the path leaves image_root"),
    ({"image": "https://example.org/a.png", "caption": "x"}, "is a URL; download the images and give their paths"),
    ({"image": "DATA:image/png;base64,xx", "caption": "x"}, "is a URL; download"),
    ({"image": "", "caption": "x"}, "`images` holds '' (str), expected a path"),
    ({"image": 3, "caption": "x"}, "`images` holds 3 (int), expected a path"),
    ({"image": ["a.png", None], "caption": "x"}, "`images` holds null, expected a path"),
    (
        {"image": "a.png", "images": ["b.png"], "caption": "x"},
        "both `image` and `images` hold images; name one of them with",
    ),
    ({"image_path": "no", "caption": "x"}, "image 'no': no such file under image_root"),
    ({"before": "a.png", "after": "b.png", "caption": "x"}, "both `before` and `after` hold images; name one of them"),
    ({"caption": "a <video> of it"}, "`caption` has the placeholder <video>, which is not read"),
    ({"question": "<audio>Q", "answer": "x"}, "`question` has the placeholder <audio>, which is not read"),
    (
        {"prompt": "Q", "chosen": "x", "rejected": "y"},
        "preferences (TRL), of which it is not said which text is meant",
    ),
    ({"caption": 3}, "`caption` is 3 (int), expected a text; several are a list `captions`"),
    ({"caption": ["x"]}, "`caption` is ['x'] (list), expected a text; several are a list `captions`"),
    ({"captions": "x"}, "`captions` is one text, expected a list of texts; a single one is `caption`"),
    ({"captions": []}, "`captions` is an empty list, expected one or more texts"),
    ({"captions": ["x", 1]}, "`captions` is ['x', 1] (list), expected a text, a list of texts or a list of turns"),
    ({"captions": ["x", " "]}, "`captions` has an empty text; write it or remove it"),
    ({"caption": "\ud800x"}, "`caption` has characters that are no text (not UTF-8, or half a surrogate pair)"),
    ({"question": "Q", "answer": True}, "`answer` is True (bool), expected a text; write it as one"),
    ({"question": "\udcff", "answer": "x"}, "`question` has characters that are no text"),
    ({"conversations": []}, "`conversations` is [] (list), expected a list of turns {from, value} or"),
    ({"conversations": "hi"}, "`conversations` is 'hi' (str), expected a list of turns"),
    (
        {"conversations": [{"from": "bot", "value": "x"}]},
        "`conversations` has the unknown role 'bot', expected system, user, assistant, tool",
    ),
    (
        {"conversations": [{"from": ["gpt"], "value": "x"}]},
        "`conversations` holds {'from': ['gpt'], 'value': 'x'} (dict), expected turns",
    ),
    ({"conversations": [{"from": "gpt", "value": 3}]}, "`conversations` has the content 3 (int)"),
    ({"conversations": [{"value": "x"}]}, "expected turns {role, content} or {from, value}"),
    ({"conversations": [HUMAN]}, "the conversation has no assistant turn, so nothing to score"),
    ({"conversations": [HUMAN, {"from": "gpt", "value": " "}]}, "`conversations` has an empty text"),
    ({"conversations": [{"from": "human", "value": "<image>"}, GPT]}, "1 image placeholder in the prompt but 0"),
    (
        {"conversations": [HUMAN, GPT, {"from": "human", "value": "<image>"}, GPT], "image": ["a.png", "b.png"]},
        "1 image placeholder in the prompt but 2 images",
    ),
    (
        {"conversations": [HUMAN, {"from": "gpt", "value": "see <image>"}], "image": "a.png"},
        "an assistant turn has an image placeholder; images belong to the turns of the user",
    ),
    ({"messages": [{"role": "robot", "content": "x"}]}, "has the unknown role 'robot'"),
]


@pytest.mark.parametrize(("raw", "message"), BAD, ids=range(len(BAD)))
def test_messages_of_bad_rows(root, raw, message):
    assert message in error_of(raw, root)


def test_messages_with_named_columns(root):
    assert error_of({"caption": "x"}, root, columns=Columns({"image": "img"})) == (
        "no column `img`, which is named for `image`; the columns are caption; name one of them"
    )
    assert "no column `cap`, which is named for `text`" in error_of(
        {"caption": "x"}, root, columns=Columns({"text": "cap"})
    )
    assert "`cap` is null, expected a text, a list of texts" in error_of(
        {"cap": None}, root, columns=Columns({"text": "cap"})
    )
    damaged = DataError("not JSON (oops); write one object a line")
    assert error_of(damaged, root) == damaged.detail


def test_keeping_some_texts():
    row = {"id": 1, "captions": ["x", "y", "z"], "other": [1, 2, 3]}
    assert with_texts(row, {0, 2}) == {"id": 1, "captions": ["x", "z"], "other": [1, 2, 3]}
    assert list(with_texts(row, {1})) == list(row) and len(row["captions"]) == 3
    assert with_texts(row, {0, 1, 2}) is row
    assert with_texts({"say": ["x", "y"], "captions": ["k"]}, {1}, Columns({"text": "say"})) == {
        "say": ["y"],
        "captions": ["k"],
    }
    single, turns = {"caption": "x"}, {"conversations": [HUMAN, GPT, HUMAN, GPT], "captions": ["x"]}
    assert with_texts(single, {0}) is single and with_texts(turns, {0, 1}) is turns
    pair = {"prompt": [{"role": "assistant", "content": "x"}], "completion": "y"}
    assert with_texts(pair, {0}) is pair
    for bad, kept in ((turns, {0}), (single, {1}), (row, {3})):
        with pytest.raises(DataError, match="only those of a list can be kept one by one; keep or drop the row"):
            with_texts(bad, kept)
    assert text_list(row) == "captions" and text_list(turns) is None and text_list(single) is None


def test_rows_survive_json(root):
    raw = {"image": "a.png", "captions": ["ü", "\U0001f600"]}
    assert made(json.loads(json.dumps(raw)), root).texts == raw["captions"]
