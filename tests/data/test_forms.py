"""Forms of rows: what each project writes becomes the chosen and rejected texts that it means."""

import pytest
from helpers.messages import IMAGE, assistant, text, user
from hypothesis import given, settings
from hypothesis import strategies as st

from rs_rlhf.data.forms import form_of, is_preference, known_rows, question_rows
from rs_rlhf.data.group import completion_text, make_group
from rs_rlhf.data.image_text import image_text_row
from rs_rlhf.data.rows import Where
from rs_rlhf.errors import DataError
from rs_rlhf.preferences.schema import group_from_row, inspect_row

WHERE = Where("pairs.jsonl", 3)
HUMAN = {"from": "human", "value": "<image>How many?"}


def gpt(value):
    return {"from": "gpt", "value": value}


def said(value):
    return {"role": "assistant", "content": value}


def asked(value):
    return {"role": "user", "content": value}


def read(row):
    """The texts of the prompt's turns, and the texts of the completions, of every row that a row becomes."""
    groups = [group_from_row(made, 3, WHERE) for made in known_rows(row, WHERE)]
    return [
        ([f"{turn['role']}: {completion_text([turn])}" for turn in g.prompt], [*map(completion_text, g.completions)])
        for g in groups
    ]


ASKED = ["user: How many?"]
BRIEF = ["system: Be brief.", "user: Hi", "assistant: Hello", "user: How many?"]


@pytest.mark.parametrize(
    ("form", "row", "prompt", "texts"),
    [
        ("TRL", {"prompt": "How many?", "chosen": "two", "rejected": "six"}, ASKED, "two six"),
        ("TRL", {"prompt": "How many?", "chosen": "two", "rejected": ["six", "ten"]}, ASKED, "two six ten"),
        (
            "TRL",
            {"prompt": [asked("How many?")], "chosen": [said("two")], "rejected": [said("six")]},
            ASKED,
            "two six",
        ),
        (
            "TRL",
            {"chosen": [asked("How many?"), said("two")], "rejected": [asked("How many?"), said("six")]},
            ASKED,
            "two six",
        ),
        (
            "TRL",
            {"prompt": [asked("How many?")], "chosen": [said("two")], "rejected": [[said("six")], [said("ten")]]},
            ASKED,
            "two six ten",
        ),
        ("TRL", {"query": "How many?", "chosen": "two", "rejected": "six"}, ASKED, "two six"),
        ("TRL", {"chosen": "two", "rejected": "six"}, ["user: "], "two six"),
        ("RSRM", {"question": "How many?", "chosen": "two", "rejected": "six"}, ASKED, "two six"),
        ("RSRM", {"image": None, "text": '{"chosen": "two", "rejected": "six"}'}, ["user: "], "two six"),
        ("LLaMA-Factory", {"conversations": [HUMAN], "chosen": gpt("two"), "rejected": gpt("six")}, ASKED, "two six"),
        (
            "LLaMA-Factory",
            {"messages": [asked("How many?")], "chosen": said("two"), "rejected": said("six")},
            ASKED,
            "two six",
        ),
        (
            "LLaMA-Factory",
            {"conversations": [HUMAN], "chosen": [gpt("two")], "rejected": [gpt("six")], "system": ""},
            ASKED,
            "two six",
        ),
        (
            "LLaMA-Factory",
            {
                "conversations": [asked("Hi"), said("Hello"), HUMAN],
                "chosen": gpt("two"),
                "rejected": gpt("six"),
                "system": "Be brief.",
            },
            BRIEF,
            "two six",
        ),
        (
            "LLaMA-Factory",
            {
                "conversations": {"from": ["human"], "value": ["<image>How many?"]},
                "chosen": {"from": "gpt", "value": "two"},
                "rejected": {"from": ["gpt"], "value": ["six"]},
            },
            ASKED,
            "two six",
        ),
        (
            "LLaMA-Factory",
            {"instruction": "How many?", "chosen": "two", "rejected": "six", "input": ""},
            ASKED,
            "two six",
        ),
        (
            "LLaMA-Factory",
            {"instruction": "How", "input": "many?", "output": ["two", "six"]},
            ["user: How\nmany?"],
            "two six",
        ),
        (
            "LLaMA-Factory",
            {
                "instruction": "How many?",
                "output": ["two", "six"],
                "system": "Be brief.",
                "history": [["Hi", "Hello"]],
            },
            BRIEF,
            "two six",
        ),
        (
            "ms-swift",
            {"messages": [asked("<image>How many?"), said("two")], "rejected_response": "six"},
            ASKED,
            "two six",
        ),
        ("ms-swift", {"messages": [HUMAN, gpt("two")], "rejected_response": "six"}, ASKED, "two six"),
        (
            "ms-swift",
            {
                "messages": {"role": ["user", "assistant"], "content": ["How many?", "two"]},
                "rejected_response": ["six", "ten"],
            },
            ASKED,
            "two six ten",
        ),
        (
            "ms-swift",
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    asked("Hi"),
                    said("Hello"),
                    asked("How many?"),
                    said("two"),
                ],
                "rejected_response": "six",
            },
            BRIEF,
            "two six",
        ),
        (
            "ms-swift",
            {
                "messages": [asked("How many?"), said("two")],
                "rejected_messages": [asked("How many?"), said("six")],
            },
            ASKED,
            "two six",
        ),
        ("ms-swift", {"query": "How many?", "response": "two", "rejected_response": "six"}, ASKED, "two six"),
        (
            "ms-swift",
            {
                "query": "How many?",
                "response": "two",
                "rejected_response": "six",
                "system": "Be brief.",
                "history": [["Hi", "Hello"]],
            },
            BRIEF,
            "two six",
        ),
        (
            "ranked responses",
            {"query": "How many?", "response": ["six", "two"], "human_ranking": [1, 0]},
            ASKED,
            "two six",
        ),
        (
            "ranked responses",
            {"query": "How many?", "response": ["two", "six"], "human_ranking": [1, 2]},
            ASKED,
            "two six",
        ),
        (
            "ranked responses",
            {"prompt": "How many?", "responses": ["ten", "two", "six", "all"], "ranks": [3.0, 1.0, 2.0, 4.0]},
            ASKED,
            "two six ten all",
        ),
        (
            "two outputs",
            {"prompt": "How many?", "output_1": "two", "output_2": "six", "preference": 1},
            ASKED,
            "two six",
        ),
        (
            "two outputs",
            {"prompt": "How many?", "output_1": "six", "output_2": "two", "preference": 2.0},
            ASKED,
            "two six",
        ),
        (
            "two outputs",
            {"prompt": "How many?", "output_1": "six", "output_2": "two", "preference": "output_2"},
            ASKED,
            "two six",
        ),
        (
            "two outputs",
            {"prompt": "How many?", "response_a": "two", "response_b": "six", "winner": "A"},
            ASKED,
            "two six",
        ),
        (
            "two outputs",
            {"prompt": "How many?", "response_a": "six", "response_b": "two", "winner": "model_b"},
            ASKED,
            "two six",
        ),
        (
            "two outputs",
            {"prompt": "How many?", "responseA": "six", "responseB": "two", "choice": "b"},
            ASKED,
            "two six",
        ),
        (
            "two outputs",
            {"question": "How many?", "answer_0": "six", "answer_1": "two", "better": 1},
            ASKED,
            "two six",
        ),
        (
            "two outputs",
            {"question": "How many?", "answer_0": "two", "answer_1": "six", "better": "0"},
            ASKED,
            "two six",
        ),
        (
            "two outputs",
            {
                "conversations": [HUMAN],
                "output_1": {"from": "gpt", "value": "six"},
                "output_2": {"from": "gpt", "value": "two"},
                "preference": 2,
            },
            ASKED,
            "two six",
        ),
    ],
)
def test_the_chosen_and_the_rejected_of_each_form(form, row, prompt, texts):
    pictured = "<image>" in repr(row)
    row = {**row, "images": ["a.png"]} if pictured else row
    assert form_of(row) == f"preferences ({form})" and is_preference(row)
    assert read(row) == [(prompt, texts.split())]
    (made,) = known_rows({**row, "margin": 2, "id": 7, "n": "kept"}, WHERE)
    assert (made["margin"], made["id"], made["n"], made["source"]) == (2, 7, "kept", "pairs")


@pytest.mark.parametrize(
    ("row", "pairs"),
    [
        ({"question": "Q", "chosen": "a", "rejected": ["b", "c"]}, ["a b", "a c"]),
        ({"query": "Q", "response": ["c", "a", "b"], "human_ranking": [2, 1, 2]}, ["a c", "a b"]),  # ties are no pairs
    ],
)
def test_rows_that_become_several_pairs(row, pairs):
    assert read(row) == [(["user: Q"], pair.split()) for pair in pairs]


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({"query": "Q", "response": ["a", "b"], "human_ranking": [1, 1]}, "human_ranking"),
        ({"query": "Q", "response": ["a", "b"], "human_ranking": [1]}, "human_ranking"),
        ({"query": "Q", "response": ["a", "b"], "human_ranking": [1, None]}, "human_ranking"),
        ({"query": "Q", "response": ["a", "b"], "human_ranking": [True, False]}, "human_ranking"),
        ({"query": "Q", "response": ["a"], "human_ranking": [1]}, "human_ranking"),
        *(
            ({"prompt": "Q", "output_1": "a", "output_2": "b", "preference": value}, "preference")
            for value in (0, 3, None, "tie", "both", True, 1.5, "", [1], float("nan"))
        ),
        ({"question": "Q", "answer_0": "a", "answer_1": "b", "better": 2}, "better"),
        ({"messages": [], "rejected_response": "a"}, "messages"),
        ({"query": "Q", "rejected_response": "a"}, "response"),
        ({"messages": [said("a")], "rejected_response": "b", "rejected_images": ["x.png"]}, "rejected_images"),
        ({"instruction": "Q", "output": ["a", "b"], "history": "Hi"}, "history"),
        ({"instruction": "Q", "output": ["a", "b"], "history": [["Hi"]]}, "history"),
        ({"instruction": "Q", "output": ["a", "b"], "history": 5}, "history"),
        ({"image": None, "text": '{"chosen": "a"'}, "text"),
        ({"image": None, "text": '{"n": 1}'}, "chosen"),
        ({"prompt": "Q", "chosen": None, "rejected": "b"}, "chosen"),
        ({"prompt": "Q", "chosen": "a", "rejected": []}, "rejected"),
        ({"conversations": [HUMAN], "chosen": gpt(""), "rejected": gpt("b"), "images": ["a.png"]}, "chosen"),
        ({"conversations": [HUMAN], "chosen": gpt("a"), "rejected": gpt("b")}, "images"),
        ({"conversations": 3, "chosen": gpt("a"), "rejected": gpt("b")}, "prompt"),
    ],
)
def test_rows_that_prefer_nothing(row, key):
    with pytest.raises(DataError) as error:
        read(row)
    assert error.value.key == key


@pytest.mark.parametrize(
    ("row", "prompt", "solution"),
    [
        ({"prompt": "Q", "solution": "3"}, "Q", "3"),
        ({"prompt": "Q"}, "Q", None),
        ({"prompt": "Q", "completion": "3"}, "Q", "3"),
        ({"prompt": [asked("Q")], "completion": [said("3")]}, "Q", "3"),
        ({"prompt": "Q", "completion": "long", "solution": "3"}, "Q", "3"),
        ({"prompt": "Q", "completion": "3", "solution": None}, "Q", "3"),
        ({"question": "Q", "answer": 3}, "Q", 3),
        ({"text": "Q", "ground_truth": "3"}, "Q", "3"),
        ({"instruction": "Q", "input": "R", "output": "3"}, "Q\nR", "3"),
        ({"query": "Q", "history": [["a", "b"]], "response": "3"}, "a\nb\nQ", "3"),
        ({"prompt": "Q", "system": "S", "solution": "3"}, "S\nQ", "3"),
        ({"conversations": [HUMAN, gpt("3")], "image": "a.png"}, "How many?", "3"),
        ({"messages": [asked("<image>Q"), said("a"), asked("R"), said("3")], "images": ["a.png"]}, "Q\na\nR", "3"),
        ({"messages": [asked("Q")], "solution": "3"}, "Q", "3"),
        ({"messages": [asked("Q"), said("long")], "solution": "3", "system": "S"}, "S\nQ", "3"),
        ({"messages": {"role": ["user", "assistant"], "content": ["Q", "3"]}}, "Q", "3"),
        ({"prompt": "Q", "chosen": "a", "rejected": "b"}, "Q", None),
        ({"chosen": [HUMAN, gpt("a")], "rejected": [HUMAN, gpt("b")], "image": "a.png"}, "How many?", None),
        ({"messages": [asked("<image>Q"), said("a")], "rejected_response": "b", "images": ["a.png"]}, "Q", None),
    ],
)
def test_questions_of_each_form(row, prompt, solution):
    (made,) = question_rows(row, WHERE)
    images = made.get("images", made.get("image"))
    group = make_group(made["prompt"], [], images)
    assert completion_text(group.prompt) == prompt and made.get("solution") == solution
    assert group.images == ([] if images is None else ["a.png"])


def test_images_inside_the_turns_of_a_question_stay():
    turns = [user({"type": "image", "image": "a.png"}, text("Q")), assistant("3")]
    (made,) = question_rows({"messages": turns}, WHERE)
    assert make_group(made["prompt"], []).images == ["a.png"]


def test_the_system_text_beside_a_conversation_is_its_first_turn():
    row = {"conversations": [HUMAN, gpt("3")], "system": "S", "image": "a.png"}
    assert "image" in row and [turn["role"] for turn in _turns(row)] == ["system", "user"]
    begun = {**row, "conversations": [{"from": "system", "value": "T"}, HUMAN, gpt("3")]}
    assert [completion_text([turn]) for turn in _turns(begun)] == ["T", "How many?"]


def _turns(row):
    from rs_rlhf.data.forms import row_prompt

    return make_group(row_prompt(row)[:-1], [], row["image"]).prompt


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"conversations": [HUMAN]}, "conversations (LLaVA, ShareGPT)"),
        ({"conversations": {"from": ["human"], "value": ["Q"]}}, "conversations (LLaVA, ShareGPT)"),
        ({"messages": [asked("Q")]}, "conversations (messages)"),
        ({"question": "Q", "answer": "A"}, "question + answer"),
        ({"captions": ["a"]}, "captions"),
        ({"title": "a"}, "captions (title)"),
        ({"prompt": "Q", "solution": 3}, "prompts"),
        ({"instruction": "Q", "output": ["only one"]}, "instruction + output"),
        ({"prompt": "Q", "chosen": "a"}, "prompts"),
        ({"output_1": "a.png", "output_2": "b.png", "preference": 1}, ""),
        ({"output_1": "a", "output_2": None, "preference": 1}, ""),
        ({"label": 3, "": 1}, "labels"),
        ({}, ""),
    ],
)
def test_names_of_forms_that_are_no_preferences(row, form):
    assert form_of(row) == form and not is_preference(row)


KEYS = st.sampled_from(
    "prompt chosen rejected rejected_response rejected_messages messages conversations question query instruction "
    "input output output_1 output_2 response responses a b preference winner human_ranking ranks system history text "
    "title caption captions answer completion solution image images label margin id source kind row where".split()
) | st.text(max_size=3)
TURNS = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "system", "x", None]),
        "content": st.text(max_size=4)
        | st.lists(st.just(IMAGE) | st.just(text("a")) | st.none(), max_size=2)
        | st.none(),
        "from": st.sampled_from(["human", "gpt", 3]),
        "value": st.text(max_size=4) | st.none(),
    },
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["a.png", "<image>", "<video>", '{"chosen": 1}', "{", "\ud800", "A", "output_2"])
    | st.binary(max_size=4)
    | TURNS
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["from", "value", "role", "content", "bytes", "path", "x"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("count", [300, pytest.param(3000, marks=pytest.mark.slow)])
def test_any_row_is_read_or_a_data_error(count):
    """Nothing but [`DataError`] is raised, whatever the row."""
    seen = []

    @settings(max_examples=count, deadline=None, derandomize=True)
    @given(row=st.dictionaries(KEYS, VALUES, max_size=6))
    def check(row):
        seen.append(len(row))
        _is_read(row)

    check()
    assert len(seen) >= count and max(seen) == 6


def _is_read(row):
    form_of(row), is_preference(row)
    for adapter in (known_rows, question_rows):
        try:
            made = list(adapter(row, WHERE))
        except DataError:
            continue
        for one in made:
            inspection = inspect_row(one, 3, WHERE)
            assert (inspection.group is None) == bool(inspection.errors)
    read = image_text_row(row, "pairs.jsonl:3", root=".", where=WHERE)
    assert bool(read.groups) == (read.error is None)
