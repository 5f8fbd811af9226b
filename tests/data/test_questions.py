"""Questions: labelled images and rows with a prompt, what is known of their answers, and their images as files."""

import csv
import json

import pytest
from helpers import picture
from helpers.captioned_rows import write_jsonl

from rs_rlhf.data.captioned_images import CAPTION_REQUEST, LABEL_QUESTION
from rs_rlhf.data.group import completion_text
from rs_rlhf.data.questions import limited, placed_images, read_questions
from rs_rlhf.errors import DataError, ImageError, OptionError


@pytest.fixture
def folder(tmp_path):
    for i in range(3):
        picture(i).save(tmp_path / f"{i}.png")
    return tmp_path


def told(question):
    return question.prompt, question.reference, question.captions


def test_labelled_images_are_asked_for_their_class_or_described(folder):
    rows = [{"image": "0.png", "label": "BareLand", "captions": ["sand ."]}, {"image": "1.png", "caption": "a road ."}]
    file = str(write_jsonl(folder / "some.jsonl", *rows))
    first, second = read_questions(file)
    assert told(first) == (LABEL_QUESTION, "bare land", ["sand ."])
    assert told(second) == (CAPTION_REQUEST, "", ["a road ."])
    assert (first.id, first.image_names, first.group.source) == ("0.png", ["0.png"], "some")
    assert told(read_questions(file, open_ended=True)[0]) == (CAPTION_REQUEST, "", ["sand ."])


def test_rows_with_a_prompt(folder):
    rows = [
        {"prompt": "Rural?", "image": "0.png", "solution": " yes ", "choices": ["yes", "no"], "size": 3},
        {"prompt": [{"role": "user", "content": "<image><image> Same?"}], "images": ["0.png", "1.png"], "answer": 2},
        {"prompt": "Describe.", "image": "1.png", "solution": "x", "reward_type": "open_ended", "id": 7},
        {"prompt": "2+2?"},
    ]
    one, two, three, four = read_questions(str(write_jsonl(folder / "asked.jsonl", *rows)))
    assert (one.id, one.reference, one.choices, one.columns["size"]) == ("asked-1", "yes", ["yes", "no"], 3)
    assert two.reference == "2" and two.prompt == two.group.prompt and two.image_names == ["0.png", "1.png"]
    assert (three.id, three.reference) == ("7", "") and four.group.images == []
    assert [row.group.row for row in (one, two, three, four)] == [0, 1, 2, 3]


@pytest.mark.parametrize("image", ["0.png", None])
def test_conversations_and_preferences_are_asked_with_their_images(folder, image):
    part = {"type": "image"} if image else {"type": "image", "image": "0.png"}
    asked = [{"role": "user", "content": [part, {"type": "text", "text": "Rural?"}]}]
    answers = [[{"role": "assistant", "content": text}] for text in ("yes", "no")]
    rows = [
        {"image": image, "messages": [*asked, *answers[0]]},
        {"image": image, "messages": asked},
        {"image": image, "chosen": [*asked, *answers[0]], "rejected": [*asked, *answers[1]]},
    ]
    found = read_questions(str(write_jsonl(folder / "some.jsonl", *rows)))
    assert [row.reference for row in found] == ["yes", "", ""]
    for row in found:
        assert row.group.images == [str(folder / "0.png")] and completion_text(row.group.prompt) == "Rural?"
        assert row.group.prompt[0]["content"][0] == {"type": "image"}


def test_a_first_row_that_cannot_be_used_does_not_decide_what_the_rows_are(folder):
    rows = [{"messages": [{"role": "robot", "content": "?"}]}, {"prompt": "Rural?", "image": "0.png"}]
    file = str(write_jsonl(folder / "some.jsonl", *rows))
    with pytest.raises(DataError) as error:
        read_questions(file)
    assert (error.value.key, error.value.where) == ("messages", f"{file}, line 1")
    errors = []
    assert len(read_questions(file, errors=errors)) == 1 and errors[0].where == f"{file}, line 1"


def test_questions_in_text_files_as_spreadsheets_save_them(folder):
    rows = [{"prompt": "Rural?", "image": f"{i}.png", "solution": "yes"} for i in range(2)]
    plain = read_questions(str(write_jsonl(folder / "plain.jsonl", *rows)))
    (folder / "bom.json").write_text("\ufeff" + json.dumps(rows), "utf-8")
    with (folder / "bom.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=";")
        writer.writeheader()
        writer.writerows(rows)
    for name in ("bom.json", "bom.csv"):
        found = read_questions(str(folder / name))
        assert [(told(row), row.image_names) for row in found] == [(told(row), row.image_names) for row in plain]


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({"image": "0.png"}, "prompt"),
        ({"prompt": "Q", "image": "0.png", "solution": ["a"]}, "solution"),
        ({"prompt": "Q", "captions": "x"}, "captions"),
        ({"prompt": "Q", "choices": [1]}, "choices"),
        ({"prompt": "<image> Q"}, "images"),
    ],
)
def test_rows_that_cannot_be_used(folder, row, key):
    file = write_jsonl(folder / "asked.jsonl", {"prompt": "Q"}, row)
    with pytest.raises(DataError) as error:
        read_questions(str(file))
    assert (error.value.where, error.value.key) == (f"{file}, line 2", key)


def test_images_must_lie_in_their_folder(folder):
    (folder / "in").mkdir()
    file = write_jsonl(folder / "in" / "asked.jsonl", {"prompt": "Q", "image": "../0.png"})
    with pytest.raises(ImageError, match="asked.jsonl, line 1: image '../0.png': the path leaves image_root"):
        read_questions(str(file))
    file = write_jsonl(folder / "in" / "asked.jsonl", {"prompt": "Q", "image": "0.png"})
    assert read_questions(str(file), image_root=str(folder))[0].image_names == ["0.png"]


def test_train_leaves_out_what_is_in_other_splits(folder, capsys):
    rows = [{"prompt": "Q", "image": f"{i}.png"} for i in range(3)]
    write_jsonl(folder / "train.jsonl", *rows, {"prompt": "text only"})
    write_jsonl(folder / "test.jsonl", rows[1])
    found = read_questions(str(folder), "train")
    assert [row.image_names for row in found] == [["0.png"], ["2.png"], []]
    assert "4 rows, 3 with images" in capsys.readouterr().out
    assert len(read_questions(str(folder), "train", keep_apart=False)) == 4


def test_limited_questions(folder, capsys):
    rows = read_questions(
        str(write_jsonl(folder / "asked.jsonl", *[{"prompt": str(i)} for i in range(9)])), columns={"image": ""}
    )
    assert limited(rows, None) == limited(rows, 9) == rows
    drawn = limited(rows, 4, seed=1)
    assert len(drawn) == 4 and drawn == [row for row in rows if row in drawn]
    assert "4 of them used" in capsys.readouterr().out
    with pytest.raises(OptionError) as error:
        limited(rows, 0)
    assert error.value.key == "limit"


def test_images_are_placed_once(folder):
    rows = [{"prompt": "Q", "image": "0.png"}, {"prompt": "R", "images": ["0.png", "1.png"]}]
    questions = read_questions(str(write_jsonl(folder / "asked.jsonl", *rows)))
    out = folder / "out"
    out.mkdir()
    paths, written = placed_images(questions, out, out / "images", overwrite=False)
    assert paths == [["images/0.png"], ["images/0.png", "images/1.png"]] and written == 2
    assert placed_images(questions, folder, folder / "images", overwrite=False) == ([["0.png"], ["0.png", "1.png"]], 0)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "<image>Rural?", "ground_truth": "no"},
        {"messages": [{"role": "user", "content": "<image>Rural?"}], "solution": "no"},
        {"messages": [{"role": "user", "content": "<image>Rural?"}, {"role": "assistant", "content": "no"}]},
        {"conversations": [{"from": "human", "value": "<image>Rural?"}, {"from": "gpt", "value": "no"}]},
    ],
)
def test_forms_of_questions_with_placeholders(folder, row):
    (question,) = read_questions(str(write_jsonl(folder / "q.jsonl", row | {"images": ["0.png"]})))
    assert question.group.prompt == [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Rural?"}]}
    ]
    assert question.reference == "no" and question.group.images == [str(folder.resolve() / "0.png")]


def test_a_first_row_that_cannot_be_read_is_said_as_it_is(folder):
    rows = [{"messages": [{"role": "user", "content": 3}], "image": "0.png"}]
    with pytest.raises(DataError) as error:
        read_questions(str(write_jsonl(folder / "q.jsonl", *rows)))
    assert error.value.key == "messages" and "line 1" in str(error.value.where)


def test_solutions_that_are_no_texts(folder):
    solutions = [3, [1, 2, 3, 4], [[1, 2, 3, 4], [5, 6, 7, 8]], {"count": 2}, None, float("nan")]
    rows = [{"prompt": "Q", "image": "0.png", "solution": solution} for solution in solutions]
    read = read_questions(str(write_jsonl(folder / "q.jsonl", *rows)))
    assert [row.reference for row in read] == [
        "3",
        "[1, 2, 3, 4]",
        "[[1, 2, 3, 4], [5, 6, 7, 8]]",
        '{"count": 2}',
        "",
        "",
    ]
