"""Conversion: what is read after it equals what was read before it, for every form that is read."""

import csv
import io
import json
import tarfile

import pytest
from helpers import picture
from helpers.image_text_layouts import LABELS, add, png, write_parquet
from helpers.messages import IMAGE, assistant, text, user
from hypothesis import given, settings
from hypothesis import strategies as st

from rs_rlhf.data.columns import Columns
from rs_rlhf.data.forms import known_rows
from rs_rlhf.data.group import Group, completion_text, make_group
from rs_rlhf.data.image_text import image_text_row
from rs_rlhf.data.image_text_dataset import open_image_texts
from rs_rlhf.data.questions import read_questions
from rs_rlhf.data.rows import Where, open_rows
from rs_rlhf.errors import DataError
from rs_rlhf.preferences.convert import Sample, as_texts, documented_rows, llava_rows, read_samples, trl_rows
from rs_rlhf.preferences.converted_files import convert
from rs_rlhf.preferences.reader import read_groups

ASK = "<image>\nHow many planes?"
SPOKEN = [{"from": "human", "value": ASK}]
LONG = [
    *SPOKEN,
    {"from": "gpt", "value": "two"},
    {"from": "human", "value": "And ships?"},
    {"from": "gpt", "value": "0"},
]

PREFERENCES = {
    "TRL, texts": [{"prompt": "How many?", "chosen": "two", "rejected": "six", "image": "0.png", "margin": 0.5}],
    "TRL, turns": [
        {
            "prompt": [{"role": "system", "content": "Be short."}, user(text("First"), IMAGE, text("or"), IMAGE)],
            "chosen": [assistant("two")],
            "rejected": [assistant("six")],
            "images": ["0.png", "1.png"],
            "kind": "count",
        }
    ],
    "TRL, no prompt": [
        {
            "chosen": [user(text("Hi")), assistant("a")],
            "rejected": [user(text("Hi")), assistant("b")],
            "image": "0.png",
        }
    ],
    "RSRM": [{"question": "Which?", "chosen": "a", "rejected": ["b", "c"], "image_name": "0.png"}],
    "LLaMA-Factory": [
        {
            "conversations": SPOKEN,
            "chosen": {"from": "gpt", "value": "two"},
            "rejected": {"from": "gpt", "value": "six"},
            "images": ["0.png"],
            "system": "Count.",
        }
    ],
    "LLaMA-Factory, old": [
        {"instruction": "<image>Count", "input": "the planes.", "output": ["two", "six"], "images": ["0.png"]}
    ],
    "ms-swift": [
        {
            "messages": [{"role": "user", "content": ASK}, {"role": "assistant", "content": "two"}],
            "rejected_response": "six",
            "images": ["0.png"],
        }
    ],
    "ranked responses, two": [{"query": "Which?", "response": ["a", "b"], "human_ranking": [2, 1], "image": "0.png"}],
    "two outputs": [
        {"question": "Which?", "output_1": "a", "output_2": "b", "preference": 2, "image": "0.png", "n": 7}
    ],
}
TEXTS = {
    "captions": [{"image": "0.png", "captions": ["a river .", "a road ."], "label": "River"}],
    "caption": [{"filepath": "1.png", "title": "a river ."}],
    "text": [{"tile": "1.png", "text": "a river .", "id": 17}],
    "question and answer": [{"image": "0.png", "question": "How many?", "answer": 3}],
    "instruction": [
        {"image": "0.png", "instruction": "Count", "input": "planes", "output": "two", "history": [["a", "b"]]}
    ],
    "LLaVA": [{"id": "x", "image": "0.png", "conversations": LONG}, {"id": "y", "conversations": LONG[2:]}],
    "messages": [
        {
            "images": ["0.png", "1.png"],
            "messages": [
                user(text("See"), IMAGE),
                assistant("yes"),
                user(IMAGE, text("\nAnd this?\n")),
                assistant("no"),
            ],
        }
    ],
    "TRL": [{"prompt": [user(IMAGE, text("Q"))], "completion": [assistant("A")], "images": ["0.png"]}],
}
QUESTIONS = {
    "prompts": [{"prompt": "How many?", "solution": "3", "image": "0.png"}, {"prompt": "Hi", "solution": "4"}],
    "choices": [{"question": "Which?", "choices": ["a", "b"], "solution": "a", "images": ["0.png", "1.png"]}],
    "for a judge": [
        {"prompt": "Describe it.", "captions": ["a river ."], "image": "0.png", "reward_type": "open_ended"}
    ],
    "ms-swift": [{"messages": [{"role": "user", "content": ASK}], "solution": "two", "images": ["0.png"]}],
    "LLaVA": [{"conversations": SPOKEN, "image": "0.png", "solution": "two"}],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for i in range(2):
        picture(i, 16, 16).save(tmp_path / f"{i}.png")
    return tmp_path


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def content(image):
    """The bytes of an image, however it is given."""
    if isinstance(image, dict):
        return image["bytes"] or open(image["path"], "rb").read()
    return open(image, "rb").read()


def known(groups):
    """What must not change, adjacent texts of a turn as one."""
    return [
        (
            [(turn["role"], [*_merged(turn["content"])]) for turn in group.prompt],
            [[(turn["role"], completion_text([turn])) for turn in texts] for texts in group.completions],
            [content(image) for image in group.images],
            (group.margin, group.source, group.kind),
        )
        for group in groups
    ]


def _merged(parts):
    before = ""
    for part in parts:
        if part["type"] == "image":
            yield from [before] * bool(before)
            before = ""
            yield part["type"], None
        else:
            before += part["text"]
    yield from [before] * bool(before)


def preferences(path):
    found = [inspection for _, _, inspection in read_groups(str(path), folder=str(path.parent))]
    assert [error for inspection in found for error in inspection.errors] == []
    return [inspection.group for inspection in found]


def texts(path, **reading):
    rows = list(open_image_texts(path, **reading))
    assert [row.error for row in rows if row.error] == []
    return [group for row in rows for group in row.groups]


def one_by_one(groups):
    """A group for every completion, as TRL's form has them."""
    return [Group(g.prompt, [text], g.images, source=g.source) for g in groups for text in g.completions]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("to", ["trl", ""])
@pytest.mark.parametrize("name", PREFERENCES)
def test_preferences_stay_what_they_are(folder, name, to, suffix, capsys):
    path = write(folder / "in.jsonl", PREFERENCES[name])
    out = folder / f"out.{suffix}"
    convert(str(path), out, to or suffix)
    assert known(preferences(out)) == known(preferences(path))
    assert "with images" in capsys.readouterr().out
    rows = [row for _, row in open_rows(out)]
    kept = set(PREFERENCES[name][0]) & {"n", "id", "kind", "margin"}
    assert all(row[key] == PREFERENCES[name][0][key] for row in rows for key in kept)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("to", ["trl", ""])
@pytest.mark.parametrize("name", TEXTS)
def test_texts_stay_what_they_are(folder, name, to, suffix):
    path = write(folder / "in.jsonl", TEXTS[name])
    out = folder / f"out.{suffix}"
    convert(str(path), out, to or suffix)
    before = texts(path)
    assert known(texts(out)) == known(one_by_one(before) if to == "trl" else before)


@pytest.mark.parametrize("name", [name for name in TEXTS if name != "instruction"])
def test_texts_as_llava_writes_them(folder, name):
    path, out = write(folder / "in.jsonl", TEXTS[name]), folder / "out.json"
    convert(str(path), out, "llava")
    before = texts(path)
    whole = name in ("LLaVA", "messages")
    assert known(texts(out)) == known(before if whole else one_by_one(before))
    rows = json.loads(out.read_text())
    assert len(rows) == (len(TEXTS[name]) if whole else sum(len(group.completions) for group in before))


@pytest.mark.parametrize(
    ("to", "suffix"), [("trl", "jsonl"), ("trl", "parquet"), ("llava", "json"), ("jsonl", "jsonl")]
)
@pytest.mark.parametrize("name", QUESTIONS)
def test_questions_stay_what_they_are(folder, name, to, suffix):
    path, out = write(folder / "in.jsonl", QUESTIONS[name]), folder / f"out.{suffix}"
    convert(str(path), out, to)
    before, after = read_questions(str(path)), read_questions(str(out))
    assert known([row.group for row in after]) == known([row.group for row in before])
    for one, other in zip(before, after, strict=True):
        assert (one.reference, one.captions, one.choices) == (other.reference, other.captions, other.choices)


def test_answers_become_solutions_again(folder):
    path, out = write(folder / "in.jsonl", TEXTS["question and answer"]), folder / "out.jsonl"
    convert(str(path), out, "trl")
    assert [row.reference for row in read_questions(str(out))] == ["3"]


def test_packed_and_labelled_inputs(folder):
    rows = [{"image": f"{i}.png", "captions": ["a", "b"], "label": LABELS[i]} for i in range(2)]
    write_parquet(folder / "a.parquet", rows)
    with tarfile.open(folder / "b.tar", "w") as tar:
        for i in range(2):
            add(tar, f"tile.{i}.png", png(i))
            add(tar, f"tile.{i}.txt", b"a river")
    (folder / "c").mkdir()
    with (folder / "c" / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file_name", "text"], ["0.png", "a"], ["1.png", "b"]])
    for i in range(2):
        (folder / "c" / f"{i}.png").write_bytes(png(i))
    for name in ("a.parquet", "b.tar", "c"):
        before = one_by_one(texts(folder / name))
        for suffix in ("jsonl", "parquet"):
            out = folder / f"out_{name[0]}" / f"{suffix}.{suffix}"
            convert(str(folder / name), out, "trl")
            assert known(texts(out)) == known(before)
    made = [row for _, row in open_rows(folder / "out_a" / "jsonl.jsonl")]
    assert [row["label"] for row in made] == [LABELS[0], LABELS[0], LABELS[1], LABELS[1]]


@pytest.mark.parametrize("to", ["trl", "llava", "jsonl"])
def test_images_by_class_become_questions_for_the_class(folder, to):
    data = folder / "scenes"
    for i, name in enumerate(("BareLand", "Port")):
        (data / name).mkdir(parents=True)
        picture(i, 16, 16).save(data / name / "a.png")
    (data / "notes.csv").write_text("city,visited\nRome,2020\n")
    before = read_questions(str(data), keep_apart=False)
    convert(str(data), folder / "out.jsonl", to)
    after = read_questions(str(folder / "out.jsonl"), keep_apart=False)
    assert [row.reference for row in after] == [row.reference for row in before] == ["bare land", "port"]
    assert [completion_text(r.group.prompt) for r in after] == [completion_text(r.group.prompt) for r in before]
    assert [content(r.group.images[0]) for r in after] == [content(r.group.images[0]) for r in before]


RANKED = {"query": "Which?", "response": ["c", "a", "b"], "human_ranking": [3, 1, 2], "image": "0.png"}
LISTED = {"prompt": "Which?", "chosen": "a", "rejected": ["b", "c"], "image": "0.png"}


@pytest.mark.parametrize(
    ("row", "pairs", "made"),
    [
        (RANKED, None, [("a", "b"), ("a", "c"), ("b", "c")]),
        (RANKED, "chosen", [("a", "b"), ("a", "c")]),
        (LISTED, "all", [("a", "b"), ("a", "c"), ("b", "c")]),
        (LISTED, "chosen", [("a", "b"), ("a", "c")]),
    ],
)
def test_lists_become_pairs_in_trls_form_and_stay_lists_in_ours(folder, row, pairs, made):
    path = write(folder / "in.jsonl", [row])
    convert(str(path), folder / "trl.jsonl", "trl", pairs=pairs)
    found = [[completion_text(text) for text in g.completions] for g in preferences(folder / "trl.jsonl")]
    assert [tuple(texts) for texts in found] == made
    convert(str(path), folder / "own.jsonl", "jsonl")
    assert json.loads((folder / "own.jsonl").read_text())["rejected"] == ["b", "c"]


@pytest.mark.parametrize(
    ("row", "to", "key"),
    [
        (LISTED, "trl", "rejected"),
        (LISTED, "llava", "rejected"),
        ({**TEXTS["instruction"][0]}, "llava", "prompt"),
        ({"caption": "see <image>", "image": "0.png"}, "llava", "completion"),
        ({"caption": "see <image>", "image": "0.png"}, "trl", "completion"),
        ({"prompt": "a", "chosen": "b", "image": "0.png"}, "trl", "rejected"),
        ({"prompt": "a", "chosen": "b", "rejected": "", "image": "0.png"}, "trl", "rejected"),
        ({"image": "0.png", "n": 3}, "trl", ""),
        ({"image": "9.png", "caption": "a"}, "trl", ""),
        ({"image": "http://example.org/a.png", "caption": "a"}, "trl", "image"),
        ({"image": "0.png", "messages": []}, "trl", "messages"),
    ],
)
def test_what_cannot_be_kept_or_read_is_an_error_with_its_row(folder, row, to, key):
    path = write(folder / "in.jsonl", [row])
    with pytest.raises(ValueError) as error:
        convert(str(path), folder / "out.jsonl", to)
    assert error.value.key == key and "line 1" in str(error.value)
    assert not (folder / "out.jsonl").exists() and not (folder / "images").exists()


def test_captions_with_a_literal_placeholder_stay_captions(folder):
    path = write(folder / "in.jsonl", [{"caption": "see <image>", "image": "0.png"}])
    convert(str(path), folder / "out.jsonl", "jsonl")
    assert known(texts(folder / "out.jsonl")) == known(texts(path))


def test_rows_of_two_kinds_are_an_error_that_names_the_row(folder):
    path = write(folder / "in.jsonl", [TEXTS["caption"][0], LISTED])
    with pytest.raises(DataError) as error:
        convert(str(path), folder / "out.jsonl", "jsonl")
    assert "line 2" in error.value.where


WORDS = st.text("ab \n<>", min_size=1, max_size=6).filter(lambda text: "<image>" not in text)
PARTS = st.lists(st.just(IMAGE) | WORDS.map(text), max_size=5)
ANSWER = WORDS.filter(str.strip)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    parts=PARTS,
    answer=ANSWER,
    more=st.lists(st.tuples(PARTS, ANSWER), max_size=2),
    system=st.sampled_from(["", "Be short."]),
)
def test_any_conversation_reads_back_as_it_was(parts, answer, more, system, tmp_path_factory):
    root = tmp_path_factory.getbasetemp()
    if not (root / "a.png").exists():
        picture(0, 8, 8).save(root / "a.png")
    turns = [{"role": "system", "content": [text(system)]}] * bool(system) + [user(*parts), assistant(answer)]
    turns += [turn for asked, said in more for turn in (user(*asked), assistant(said))]
    count = sum(part["type"] == "image" for turn in turns for part in turn["content"])
    row = {"messages": turns, "images": ["a.png"] * count}
    where = Where("a.jsonl", 1)
    before = image_text_row(row, "a.jsonl:1", root=str(root), source="a").groups
    (sample,) = read_samples(row, where, str(root), Columns(), {})
    for rows_of in (trl_rows, llava_rows, documented_rows):
        made = [{**made, "source": "a"} for made in rows_of(sample)]
        after = [image_text_row(json.loads(json.dumps(m)), "a.jsonl:1", root=str(root)) for m in made]
        assert [row.error for row in after if row.error] == []
        assert known([group for row in after for group in row.groups]) == known(before)


def test_plain_samples_are_texts():
    group = make_group("How many?", ["two", "six"], ["a.png"])
    sample = Sample("preferences", [group], Where("a", 0))
    assert sample.plain
    (row,) = documented_rows(sample)
    assert as_texts(row) == {"prompt": "How many?", "chosen": "two", "rejected": ["six"], "images": ["a.png"]}
    asked = make_group("See <image> here", ["two", "six"], ["a.png"])
    assert not Sample("preferences", [asked], Where("a", 0)).plain
    assert list(known_rows(row, Where("a", 0)))[0]["prompt"] == group.prompt


def test_images_stay_in_their_order_when_one_row_has_several(folder):
    row = {"prompt": "Same?", "chosen": "no", "rejected": "yes", "images": ["1.png", "0.png", "1.png"]}
    convert(str(write(folder / "in.jsonl", [row])), folder / "out.parquet", "parquet")
    (group,) = preferences(folder / "out.parquet")
    assert [content(image) for image in group.images] == [(folder / n).read_bytes() for n in row["images"]]
    assert io.BytesIO(content(group.images[0])).read(4) == b"\x89PNG"
