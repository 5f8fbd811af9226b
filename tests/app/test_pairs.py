"""Pairs to choose between: read from any form, scored once, ordered, and written as preferences."""

import json
from dataclasses import replace

import pytest
from helpers import picture

from rs_rlhf.app.pairs import PairScore, ordered, read_pairs, score_pairs, write_preferred
from rs_rlhf.data.group import completion_text, prompt_text
from rs_rlhf.errors import DataError, ImageError
from rs_rlhf.imagery.raster import read_image
from rs_rlhf.preferences.reader import load_preferences, read_groups
from rs_rlhf.scoring.base import CombinedScore
from rs_rlhf.scoring.baselines import LengthScorer

TASK = {"data": {"image": "/data/local-files/?d=0.png", "prompt": "Which?", "text1": "a port", "text2": "a river"}}
RESULT = {"from_name": "pw", "to_name": "text1,text2", "type": "pairwise", "value": {"selected": "right"}}


def written(folder, rows, name="rows.jsonl", images=3):
    for i in range(images):
        picture(i).save(folder / f"{i}.png")
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


@pytest.mark.parametrize(
    "row",
    [
        {"image": "0.png", "prompt": "Which?", "chosen": "a river", "rejected": "a port"},
        {"images": ["0.png"], "question": "Which?", "completions": ["a port", "a river", "a port"]},
        {"image": "0.png", "prompt": "Which?", "response": ["a port", "a river"], "human_ranking": [2, 1]},
        {"image": "0.png", "prompt": "Which?", "answer_a": "a port", "answer_b": "a river", "preference": "B"},
        TASK,
        {**TASK, "annotations": [{"result": [RESULT]}]},
    ],
)
def test_all_forms_give_the_same_pair(tmp_path, row):
    (pair,), counts = read_pairs(written(tmp_path, [row]))
    assert pair.texts == ("a port", "a river") and prompt_text(pair.group.prompt) == "Which?"
    assert counts["rows"] == 1 and read_image(pair.group.images[0]).size == (84, 56)
    (other,), _ = read_pairs(
        written(tmp_path, [{"image": "0.png", "prompt": "Which?", "completions": pair.texts[::-1]}])
    )
    assert other.id == pair.id and other.flipped == pair.flipped


def test_every_two_distinct_texts_of_a_row_are_a_pair_once(tmp_path):
    rows = [
        {"image": "0.png", "completions": ["a", "b", "c", "b"]},
        {"image": "0.png", "completions": ["same", "same"]},
        {"image": "0.png", "completions": ["b", "a"]},
        {"image": "1.png", "completions": ["b", "a"]},
    ]
    pairs, counts = read_pairs(written(tmp_path, rows))
    assert [pair.texts for pair in pairs] == [("a", "b"), ("a", "c"), ("b", "c"), ("a", "b")]
    assert counts == {"rows": 4, "rows of equal texts": 1, "repeated pairs": 1}
    assert len({pair.id for pair in pairs}) == 4


def test_ids_and_sides_do_not_depend_on_the_place_of_a_row(tmp_path):
    rows = [{"image": f"{i % 3}.png", "completions": [f"x{i}", f"y{i}"]} for i in range(40)]
    pairs, _ = read_pairs(written(tmp_path, rows))
    moved, _ = read_pairs(written(tmp_path, rows[::-1], "other.jsonl"))
    sides = {pair.id: pair.flipped for pair in pairs}
    assert {pair.id: pair.flipped for pair in moved} == sides and 8 <= sum(sides.values()) <= 32
    again, _ = read_pairs(str(tmp_path / "rows.jsonl"), seed=1)
    assert {pair.id for pair in again} == set(sides) and {pair.id: pair.flipped for pair in again} != sides


@pytest.mark.parametrize(
    "row, kind, key",
    [
        ({"image": "0.png", "captions": ["a"]}, DataError, "completions"),
        ({"image": "0.png", "completions": ["a", 3]}, DataError, "completions"),
        ({"image": "0.png", "completions": ["a", ""]}, DataError, "completions[1]"),
        ({"image": "gone.png", "completions": ["a", "b"]}, ImageError, ""),
        ({"data": {"prompt": "Which?", "text1": "a"}}, DataError, "data"),
        ({"image": "0.png", "completions": ["a", "a"]}, DataError, ""),
    ],
)
def test_rows_that_cannot_be_chosen_between_are_named(tmp_path, row, kind, key):
    with pytest.raises(kind) as caught:
        read_pairs(written(tmp_path, [row]))
    assert caught.value.key == key and "rows.jsonl" in str(caught.value)


def test_scores_are_of_rows_and_kept(tmp_path, capsys):
    pairs, _ = read_pairs(
        written(tmp_path, [{"image": "0.png", "completions": ["a", "b b b", "c c"]}, {"completions": ["d", "e e"]}])
    )
    asked = []

    def scorer():
        asked.append(1)
        return LengthScorer()

    found, failed = score_pairs(pairs, scorer, tmp_path / "scores.jsonl", "length")
    margins = {pair.texts: found[pair.id].margin for pair in pairs}
    assert margins == {("a", "b b b"): -2, ("a", "c c"): -1, ("b b b", "c c"): 1, ("d", "e e"): -1} and not failed
    assert score_pairs(pairs, scorer, tmp_path / "scores.jsonl", "length")[0] == found and len(asked) == 1
    score_pairs(pairs, scorer, tmp_path / "scores.jsonl", "another")
    assert len(asked) == 2


class Doubtful:
    """Scores of several models: the length, and a spread of the number of letters x."""

    def score_groups(self, groups, *, on_error="raise", show_progress=None):
        texts = [[completion_text(one) for one in group.completions] for group in groups]
        return [[CombinedScore(float(len(text)), float(text.count("x"))) for text in own] for own in texts]


def test_the_most_doubtful_pair_comes_first(tmp_path):
    rows = [{"completions": pair} for pair in (["aaaa", "b"], ["cc", "d"], ["ee", "ff"], ["xxxxxxxx", "g"])]
    pairs, _ = read_pairs(written(tmp_path, [{**row, "image": "0.png"} for row in rows]))
    one, _ = score_pairs(pairs, LengthScorer, tmp_path / "one", "length")
    assert set(one.values()) == {PairScore(0.0)}
    margins = {pair.id: PairScore(len(pair.texts[0]) - len(pair.texts[1])) for pair in pairs}
    assert [pair.texts[0] for pair in ordered(pairs, "disagreement", 0, margins)] == ["ee", "cc", "aaaa", "g"]
    several, _ = score_pairs(pairs, Doubtful, tmp_path / "several", "several")
    assert several[pairs[3].id].spread == 8
    assert ordered(pairs, "disagreement", 0, several)[0] == pairs[3]
    unknown = {key: value for key, value in margins.items() if key != pairs[2].id}
    assert ordered(pairs, "disagreement", 0, unknown)[-1] == pairs[2]


def test_a_random_order_is_of_the_seed_alone(tmp_path):
    pairs, _ = read_pairs(
        written(tmp_path, [{"image": "0.png", "completions": [f"x{i}", f"y{i}"]} for i in range(20)])
    )
    orders = [
        [pair.id for pair in ordered(given, "random", seed)]
        for given, seed in ((pairs, 0), (pairs[::-1], 0), (pairs, 1))
    ]
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == sorted(orders[2])
    assert orders[0] != [pair.id for pair in pairs]


def test_what_is_written_is_what_reward_reads(tmp_path):
    rows = [
        {
            "image": "0.png",
            "prompt": "Which?",
            "chosen": "river",
            "rejected": ["port", "lake"],
            "source": "s",
            "kind": "k",
        },
        {"images": ["1.png", "2.png"], "prompt": "Same?", "completions": ["yes", "no"]},
        {
            "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Sky?"}],
            "completions": ["b", "a"],
        },
    ]
    path = written(tmp_path, rows)
    pairs, _ = read_pairs(path)
    for folder, count in ((tmp_path, 0), (tmp_path / "elsewhere", 3)):
        output = folder / "preferred.jsonl"
        assert write_preferred([(pair, i % 2) for i, pair in enumerate(pairs)], output, str(tmp_path)) == count
        read = [inspection.group for _, _, inspection in read_groups(str(output), folder=str(folder))]
        for i, (pair, group) in enumerate(zip(pairs, read, strict=True)):
            texts = [completion_text(one) for one in group.completions]
            assert texts == [pair.texts[i % 2], pair.texts[1 - i % 2]] and group.prompt == pair.group.prompt
            pixels = [[read_image(image).tobytes() for image in one.images] for one in (group, pair.group)]
            assert pixels[0] == pixels[1]
        assert len(load_preferences(output)) == len(pairs)
        first = json.loads(output.read_text().splitlines()[0])
        assert (first["source"], first["kind"], first["id"]) == ("s", "k", pairs[0].id)


def test_an_image_of_other_content_is_not_replaced(tmp_path):
    (pair,), _ = read_pairs(written(tmp_path, [{"image": "0.png", "completions": ["a", "b"]}]))
    (tmp_path / "out" / "images").mkdir(parents=True)
    (tmp_path / "out" / "images" / "0.png").write_bytes(b"mine")
    with pytest.raises(Exception, match="other content"):
        write_preferred([(pair, 0)], tmp_path / "out" / "p.jsonl", str(tmp_path))
    assert not (tmp_path / "out" / "p.jsonl").exists()
    assert replace(pair, flipped=True).sides == ("b", "a")
