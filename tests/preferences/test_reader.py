"""The reader of preference files: every file form gives the groups of its raw rows."""

from __future__ import annotations

import io
import json

import pytest
from helpers.messages import IMAGE, assistant, text, user
from PIL import Image

from rs_rlhf.data.group import completion_text
from rs_rlhf.data.rows import open_rows
from rs_rlhf.errors import DataError
from rs_rlhf.preferences.reader import load_preferences, read_groups
from rs_rlhf.preferences.schema import group_from_row


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Keeps the data sets' cache out of the home folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def png(colour="red"):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(stream, "PNG")
    return stream.getvalue()


def read_rsrm(path):
    return [row for _, row in open_rows(f"rsrm:{path}")]


def write_jsonl(path, rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


MIXED = [
    {"prompt": "Rural or urban?", "chosen": "urban", "rejected": "rural", "image": "a.png", "margin": 1.5},
    {"prompt": "Count.", "chosen": "3", "rejected": ["2", "9"], "images": ["a.png", "b.png"], "kind": "count"},
    {"chosen": "A harbour.", "rejected": "A farm.", "image": "b.png", "source": "captions", "id": 7},
    {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
    {
        "prompt": [{"role": "system", "content": "Be brief."}, user(text("A"), IMAGE, text("B"))],
        "chosen": [{"role": "assistant", "content": "yes"}],
        "rejected": [[assistant("no")], [assistant("maybe")]],
        "image": "a.png",
    },
    {
        "chosen": [{"role": "user", "content": "<image>\nWhere?"}, {"role": "assistant", "content": "Here."}],
        "rejected": [{"role": "user", "content": "<image>\nWhere?"}, {"role": "assistant", "content": "There."}],
        "images": ["a.png"],
    },
]


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_rows_of_all_shapes_load_as_the_groups_of_the_raw_rows(tmp_path, suffix):
    path = tmp_path / f"mixed.{suffix}"
    path.write_text("\n".join(map(json.dumps, MIXED)) if suffix == "jsonl" else json.dumps(MIXED))
    data = load_preferences(path)
    assert len(data) == len(MIXED)
    for raw, row in zip(MIXED, data, strict=True):
        expected = group_from_row({"source": "mixed"} | raw)
        assert group_from_row(row) == expected
        assert len(expected.completions) == (3 if isinstance(raw["rejected"][0], list) or raw.get("kind") else 2)
    first = group_from_row(data[0])
    assert first.row == (1 if suffix == "jsonl" else 0)
    assert first.where.endswith("mixed.jsonl, line 1" if suffix == "jsonl" else "mixed.json, row 0")
    assert data[2]["id"] == "7"


def test_formats_give_equal_groups(tmp_path):
    from datasets import Dataset, DatasetDict, Features, Value
    from datasets import Image as HFImage

    rows = [
        {"prompt": "Q", "chosen": f"c{i}", "rejected": "r", "image": {"bytes": png(), "path": None}, "source": "s"}
        for i in range(3)
    ]
    features = Features({key: Value("string") for key in ("prompt", "chosen", "rejected", "source")})
    data = Dataset.from_list(rows, features=Features({**features, "image": HFImage()}))
    data.to_parquet(tmp_path / "p.parquet")
    data.save_to_disk(tmp_path / "disk")
    DatasetDict({"train": data.select([0]), "test": data}).save_to_disk(tmp_path / "dict")
    (tmp_path / "folder").mkdir()
    data.to_parquet(tmp_path / "folder" / "train-00000-of-00001.parquet")
    data.select([0]).to_parquet(tmp_path / "folder" / "test-00000-of-00001.parquet")
    expected = [group_from_row(row) for row in rows]

    def groups(*args):
        return [group_from_row(row) for row in load_preferences(*args)]

    assert groups(tmp_path / "p.parquet") == expected
    assert groups(tmp_path / "disk") == expected
    assert groups(tmp_path / "dict", "test") == expected
    assert groups(tmp_path / "dict") == expected[:1]
    assert groups(tmp_path / "folder", "train") == expected
    assert groups(f"{tmp_path / 'disk'},{tmp_path / 'p.parquet'}") == expected * 2
    with pytest.raises(DataError, match="several splits .test, train.; name one"):
        load_preferences(tmp_path / "folder")
    with pytest.raises(DataError, match="no split 'dev', it has train, test"):
        load_preferences(tmp_path / "dict", "dev")


def test_loaded_data_survives_save_to_disk_and_stays_undecoded(tmp_path):
    loaded = load_preferences(write_jsonl(tmp_path / "mixed.jsonl", MIXED))
    loaded.save_to_disk(tmp_path / "saved")
    again = load_preferences(tmp_path / "saved")
    assert [group_from_row(row) for row in again] == [group_from_row(row) for row in loaded]
    assert again[0]["images"] == [{"bytes": None, "path": "a.png"}], "missing images do not matter before use"


def test_a_changed_file_is_read_again(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"chosen": "x", "rejected": "y"}])
    assert len(load_preferences(path)) == 1
    write_jsonl(path, [{"chosen": "x", "rejected": "y"}] * 2)
    assert len(load_preferences(path)) == 2


def test_image_root_makes_relative_paths_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"chosen": "x", "rejected": "y", "images": ["a.png", "/b.png", "https://example.org/c.png"]}]
    data = load_preferences(write_jsonl(tmp_path / "a.jsonl", rows), image_root="images")
    assert group_from_row(data[0]).images == [str(tmp_path / "images/a.png"), "/b.png", "https://example.org/c.png"]


def test_bad_files_name_file_and_row(tmp_path):
    good = {"chosen": "x", "rejected": "y"}
    cases = [
        ("a.jsonl", [good, "", "{oops"], "a.jsonl, line 3", "not JSON"),
        ("b.jsonl", [good, {**good, "margin": "x"}], "b.jsonl, line 2", "`margin` is 'x'"),
        ("b.jsonl", [good, [1]], "b.jsonl, line 2", "the row is [1]"),
        ("c.json", [good, good], "c.json", "is not a JSON list of rows; rename a file with one object a line"),
        ("e.jsonl", [], "e.jsonl", "no rows"),
        ("f.parquet", [good], "f.parquet", "cannot be read as Parquet"),
        ("g.txt", [good], "g.txt", "the suffix is '.txt', expected .parquet, .jsonl"),
    ]
    for name, lines, where, detail in cases:
        with pytest.raises(DataError) as error:
            load_preferences(write_jsonl(tmp_path / name, lines))
        assert error.value.where.endswith(where) and error.value.detail.startswith(detail)
    with pytest.raises(DataError) as error:
        load_preferences(tmp_path / "nowhere.jsonl")
    assert error.value.where.endswith("nowhere.jsonl")
    (tmp_path / "h").mkdir()
    with pytest.raises(DataError) as error:
        load_preferences(tmp_path / "h")
    assert error.value.where.endswith("/h") and error.value.detail.startswith("no data file in the folder")


def test_rsrm_json_with_its_folder(tmp_path):
    (tmp_path / "vqa").mkdir()
    (tmp_path / "vqa" / "a.png").write_bytes(png())
    rows = [
        {"question": "<image>\nRural?", "chosen": "no", "rejected": ["yes", "maybe"], "image_name": "a.png"},
        {"chosen": "A port.", "rejected": "A farm.", "image_path": "a.png"},
        {"question": "2+2?", "chosen": "4", "rejected": "5"},
    ]
    path = tmp_path / "vqa.json"
    path.write_text(json.dumps(rows))
    read = read_rsrm(path)
    assert [(row["rejected"], row["source"]) for row in read] == [
        ("yes", "vqa"),
        ("maybe", "vqa"),
        ("A farm.", "vqa"),
        ("5", "vqa"),
    ]
    groups = [group_from_row(row) for row in read]
    assert groups[0].images == [str(tmp_path / "vqa" / "a.png")] and groups[3].images == []
    assert groups[0].prompt == [user(IMAGE, text("Rural?"))] and groups[2].prompt == [user(IMAGE)]
    loaded = load_preferences(path)
    assert [group_from_row(row) for row in loaded] == groups
    assert list(loaded["row"]) == [0, 0, 1, 2]


def test_rsrm_text_only_and_missing_folder(tmp_path):
    path = tmp_path / "text.json"
    path.write_text(json.dumps([{"chosen": "a", "rejected": ["b", "c"]}]))
    assert [row["rejected"] for row in read_rsrm(path)] == ["b", "c"]
    assert len(load_preferences(f"rsrm:{path}")) == 2
    assert len(load_preferences(path)) == 1, "without RSRM keys a list is a ranked list"
    for name in ("a.png", "../a.png"):  # the check and the trainer refuse an image that is not there
        path.write_text(json.dumps([{"chosen": "a", "rejected": "b", "image_name": name}]))
        assert [group_from_row(row).images for row in read_rsrm(path)] == [[name]]


def test_rsrm_parquet(tmp_path):
    from datasets import Dataset

    path = tmp_path / "captions.parquet"
    picture = {"bytes": png(), "path": "a.png"}
    texts = [{"chosen": "a", "rejected": ["b", "c"]}, {"question": "Q?", "chosen": "d", "rejected": "e"}]
    Dataset.from_list([{"image": picture, "text": json.dumps(one)} for one in texts]).to_parquet(path)
    groups = [group_from_row(row) for row in load_preferences(path)]
    assert groups == [group_from_row(row) for row in read_rsrm(path)]
    assert [completion_text(group.completions[1]) for group in groups] == ["b", "c", "e"]
    assert groups[2].prompt == [user(IMAGE, text("Q?"))] and groups[0].images == [picture]
    Dataset.from_list([{"image": picture, "text": "oops"}]).to_parquet(path)
    [(where, error)] = open_rows(f"rsrm:{path}", on_error="return")
    assert where.number == 0 and isinstance(error, DataError) and "row 0: `text` is not JSON" in str(error)


def test_rsrm_folder(tmp_path):
    from datasets import Dataset

    folder = tmp_path / "rsrm"
    (folder / "vqa").mkdir(parents=True)
    (folder / "vqa" / "a.png").write_bytes(png())
    pair = {"chosen": "a", "rejected": ["b", "c"]}
    picture = {"bytes": png(), "path": "x.png"}
    Dataset.from_list([{"image": picture, "text": json.dumps(pair)}]).to_parquet(folder / "captions.parquet")
    (folder / "text.json").write_text(json.dumps([{"question": "2+2?", **pair}]))
    (folder / "vqa.json").write_text("\n" + json.dumps([{"question": "Q?", **pair, "image_name": "a.png"}], indent=1))
    for name in ("dataset_info.json", "dataset_infos.json", "config.json"):
        (folder / name).write_text('{"features": {}}')
    (folder / "notes.csv").write_text("a,b")
    data = load_preferences(folder)
    assert list(data["source"]) == ["captions"] * 2 + ["text"] * 2 + ["vqa"] * 2
    images = [group_from_row(row).images for row in data]
    assert images[::2] == [[picture], [], [str(folder / "vqa" / "a.png")]]
    assert len(load_preferences(folder, "text")) == 2
    (folder / "bad.json").write_text("[{")
    with pytest.raises(DataError, match="bad.json: not JSON"):
        load_preferences(folder)


def test_a_saved_data_set_is_no_folder_of_json_files(tmp_path):
    from datasets import Dataset

    Dataset.from_list([{"chosen": "x", "rejected": "y"}]).save_to_disk(tmp_path / "disk")
    (tmp_path / "disk" / "list.json").write_text("[]")
    assert len(load_preferences(tmp_path / "disk")) == 1


def read(row, tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(row) + "\n")
    ((_, _, inspection),) = read_groups(str(path))
    return inspection


def test_hh_conversations_are_turns(tmp_path):
    asked = "\n\nHuman: What is it?\n\nAssistant: A port.\n\nHuman: Sure?\n\nAssistant: "
    row = {"image": "a.png", "image_path": "a.png", "chosen": asked + "Yes.", "rejected": asked + "No.\nMaybe."}
    group = read(row, tmp_path).group
    assert [turn["role"] for turn in group.prompt] == ["user", "assistant", "user"]
    assert [completion_text(completion) for completion in group.completions] == ["Yes.", "No.\nMaybe."]
    assert group.images == ["a.png"] and group.prompt[0]["content"][0] == {"type": "image"}


def test_names_of_models_are_not_the_outputs(tmp_path):
    turns = [[{"role": "user", "content": "Q"}, {"role": "assistant", "content": text}] for text in "AB"]
    row = {"model_a": "x", "model_b": "y", "winner": "model_b", "conversation_a": turns[0], "conversation_b": turns[1]}
    group = read(row, tmp_path).group
    assert [completion_text(completion) for completion in group.completions] == ["B", "A"]
    texts = {"model_a": "x", "model_b": "y", "winner": "model_b", "prompt": "Q", "response_a": "A", "response_b": "B"}
    group = read(texts, tmp_path).group
    assert [completion_text(completion) for completion in group.completions] == ["B", "A"]


def test_outputs_that_cannot_be_told_apart(tmp_path):
    row = {"prompt": "Q", "left_1": "a", "left_2": "b", "right_1": "c", "right_2": "d", "preference": 1}
    (error,) = read(row, tmp_path).errors
    assert error.key == "right_1" and "line 1" in str(error.where)


def test_numbers_of_csv_files_are_numbers(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("prompt,chosen,rejected,margin\nQ,A,B,0.5\nQ,A,B,\n")
    assert [inspection.group.margin for _, _, inspection in read_groups(str(path))] == [0.5, 0.0]
    row = {"query": "Q", "response": ["A", "B", "C"], "human_ranking": ["1", "3", "2"]}
    group = read(row, tmp_path).group
    assert [completion_text(completion) for completion in group.completions] == ["A", "C", "B"]


LABELLED = {
    "TRL": {"prompt": "Which class?", "completion": "a port", "label": True},
    "TRL, messages": {
        "prompt": [user(text("Which class?"))],
        "completion": [assistant("a port")],
        "label": 1,
    },
    "LLaMA-Factory": {
        "conversations": [{"from": "human", "value": "<image>Which class?"}, {"from": "gpt", "value": "a port"}],
        "kto_tag": True,
    },
    "LLaMA-Factory, Alpaca": {"instruction": "Which class?", "input": "", "output": "a port", "kto_tag": "true"},
    "ms-swift": {
        "messages": [{"role": "user", "content": "<image>Which class?"}, {"role": "assistant", "content": "a port"}],
        "label": "true",
    },
}


@pytest.mark.parametrize("form", LABELLED)
@pytest.mark.parametrize("good", [True, False])
def test_answers_with_a_label_are_read_in_every_form(form, good, tmp_path):
    row = {**LABELLED[form], "images": ["a.png"], "id": 3}
    key = "kto_tag" if "kto_tag" in row else "label"
    row[key] = row[key] if good else {"True": False, "1": 0, "true": "false"}[str(row[key])]
    (read,) = load_preferences(write_jsonl(tmp_path / "kto.jsonl", [row]), image_root=tmp_path, form="labelled")
    assert read["prompt"] == [user({"type": "image", "text": None}, text("Which class?"))]
    assert read["completion"] == [assistant("a port")] and read["label"] is good
    assert (read["images"][0]["path"], read["id"], read["source"]) == (str(tmp_path / "a.png"), "3", "kto")
    assert read["where"].endswith("line 1")


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({"prompt": "a", "completion": "b"}, "label"),
        ({"prompt": "a", "completion": "b", "label": "maybe"}, "label"),
        ({"prompt": "a", "completion": "b", "label": 2}, "label"),
        ({"prompt": "a", "label": True}, "completion"),
        ({"prompt": "a", "completion": "", "label": True}, "completion"),
        ({"prompt": "a", "completion": ["b", "c"], "label": True}, "completion"),
        ({"messages": [], "label": True}, "messages"),
        ({"messages": [{"role": "user", "content": "a"}], "label": True}, "completion"),
    ],
)
def test_what_is_wrong_with_an_answer_with_a_label(row, key, tmp_path):
    good = {"prompt": "a", "completion": "b", "label": False}
    with pytest.raises(DataError) as error:
        load_preferences(write_jsonl(tmp_path / "kto.jsonl", [good, row]), form="labelled")
    assert error.value.key == key and error.value.where.endswith("kto.jsonl, line 2")


def test_preferences_and_answers_with_a_label_may_be_mixed(tmp_path):
    """A `label` beside `chosen` is a class, as elsewhere."""
    rows = [{"prompt": "a", "chosen": "b", "rejected": ["c", "d"], "label": "port"}, LABELLED["TRL"]]
    read = load_preferences(write_jsonl(tmp_path / "mixed.jsonl", rows), form="labelled")
    answers = [(completion_text(row["completion"]), row["label"], row["row"]) for row in read]
    assert answers == [("b", True, 1), ("c", False, 1), ("d", False, 1), ("a port", True, 2)]
    with pytest.raises(DataError) as error:
        load_preferences(tmp_path / "mixed.jsonl", form="pairs")
    assert error.value.key == "chosen"
