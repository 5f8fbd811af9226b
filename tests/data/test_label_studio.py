"""Label Studio's pairwise comparison: read as preferences, written as tasks, and read again as what it was."""

import json

import pytest
from helpers import picture

from rs_rlhf.data.group import completion_text, prompt_text
from rs_rlhf.data.label_studio import CONFIG, FIRST, SECOND
from rs_rlhf.errors import DataError
from rs_rlhf.preferences.converted_files import convert
from rs_rlhf.preferences.reader import read_groups

DATA = {"image": "/data/local-files/?d=my%20tiles/a.png", "prompt": "Which?", "answer1": "port", "answer2": "river"}


def result(selected="left", **more):
    return {
        "id": "x",
        "from_name": "pw",
        "to_name": "answer1,answer2",
        "type": "pairwise",
        "value": {"selected": selected},
        **more,
    }


def annotated(*selected, **more):
    return {
        "id": 1,
        "data": DATA,
        "annotations": [{"completed_by": 1, "result": [result(one)], **more} for one in selected],
    }


def read(folder, *tasks):
    (folder / "tasks.json").write_text(json.dumps(tasks))
    return [inspection for _, _, inspection in read_groups(str(folder / "tasks.json"))]


def test_every_annotation_is_a_preference(tmp_path):
    groups = [inspection.group for inspection in read(tmp_path, annotated("left", "right"))]
    texts = [[completion_text(one) for one in group.completions] for group in groups]
    assert texts == [["port", "river"], ["river", "port"]]
    assert all(prompt_text(group.prompt) == "Which?" and group.images == ["my tiles/a.png"] for group in groups)


def test_other_results_and_cancelled_annotations_are_no_choice(tmp_path):
    rating = {"from_name": "r", "type": "rating", "value": {"rating": 3}}
    task = annotated("right")
    task["annotations"][0]["result"].insert(0, rating)
    task["annotations"].append({"was_cancelled": True, "result": [result("left")]})
    (inspection,) = read(tmp_path, task)
    assert completion_text(inspection.group.completions[0]) == "river"


@pytest.mark.parametrize(
    "task, key",
    [
        (annotated(), "annotations"),
        (annotated("middle"), "annotations"),
        (annotated("left", was_cancelled=True), "annotations"),
        ({"data": {"prompt": "Which?", "text": "a"}, "annotations": [{"result": [result()]}]}, "data"),
        ({"data": {**DATA, "output1": "x", "output2": "y"}, "annotations": [{"result": [result()]}]}, "output1"),
    ],
)
def test_tasks_that_say_nothing_are_named(tmp_path, task, key):
    (inspection,) = read(tmp_path, task)
    (error,) = inspection.errors
    assert isinstance(error, DataError) and error.key == key and error.where.endswith("tasks.json, row 0")


def test_there_and_back(tmp_path):
    rows = []
    for i in range(20):
        picture(i).save(tmp_path / f"a {i}.png")
        rows.append(
            {
                "image": f"a {i}.png",
                "prompt": f"Which {i}?",
                "chosen": f"good {i}",
                "rejected": f"bad {i}",
                "kind": "k",
            }
        )
    rows.append({"prompt": "No image?", "chosen": "none", "rejected": "one"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    convert(str(tmp_path / "rows.jsonl"), tmp_path / "tasks.json", "label-studio")
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert all(f"${key}" in CONFIG for key in (FIRST, SECOND, "image", "prompt"))
    first = sum(task["data"][FIRST].startswith("good") for task in tasks)
    assert len(tasks) == 21 and 4 <= first <= 16
    convert(str(tmp_path / "tasks.json"), tmp_path / "back.jsonl", "jsonl")
    back = [json.loads(line) for line in (tmp_path / "back.jsonl").read_text().splitlines()]
    kept = ("image", "prompt", "chosen", "rejected", "kind")
    assert [{key: row.get(key) for key in kept} for row in back] == [
        {key: row.get(key) for key in kept} for row in rows
    ]


@pytest.mark.parametrize(
    "row, key",
    [
        ({"images": ["0.png", "0.png"], "prompt": "Same?", "chosen": "yes", "rejected": "no"}, "prompt"),
        ({"image": "0.png", "prompt": "Which?", "chosen": "a", "rejected": ["b", "c"]}, "rejected"),
        ({"image": "0.png", "captions": ["a"]}, "chosen"),
    ],
)
def test_what_a_task_cannot_hold_is_refused(tmp_path, row, key):
    picture(0).save(tmp_path / "0.png")
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError) as caught:
        convert(str(tmp_path / "rows.jsonl"), tmp_path / "tasks.json", "label-studio")
    assert caught.value.key == key and not (tmp_path / "tasks.json").exists()
