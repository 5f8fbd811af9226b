"""The best of several answers become training rows: which are kept and with what weight, and that no label is read."""

import functools
import json
import math
from pathlib import Path

import pytest
from helpers import WORDS, picture
from helpers.processes import kill_when

from rs_rlhf import Scorer
from rs_rlhf.cli.main import run
from rs_rlhf.errors import DataError, OptionError
from rs_rlhf.preferences.best import BestOptions, kept_places, normal_form

main = functools.partial(run, "data best")

TEXTS = ["a river.", "A river", "", "<image> a port", "two ships", "a river.", "many buildings near a lake"]


def options(**given):
    return BestOptions(**{"input": "", "output": Path("x.jsonl"), "score_model": ""} | given)


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("scores", "forms", "given", "kept"),
    [
        ([0.1, 0.9, 0.3], "abc", {}, {1: 1.0}),
        ([0.1, 0.9, 0.3], "aba", {"keep": "softmax"}, {1: 1 / (1 + math.exp(-0.6)), 2: 1 / (1 + math.exp(0.6))}),
        ([0.0, 3.0, 1.0], ["a", None, "c"], {}, {2: 1.0}),  # what is malformed is never kept, whatever its score
        ([0.0, 9.0], ["a", None], {"keep": "softmax"}, {0: 1.0}),
        ([1.0, 1.0], "ab", {}, {0: 1.0}),  # of equal scores the first
        ([1.0, 1.0], "ab", {"keep": "softmax"}, {0: 0.5, 1: 0.5}),
        (
            [2.0, 0.0],
            "ab",
            {"keep": "softmax", "softmax_temperature": 2.0},
            {0: 1 / (1 + math.exp(-1)), 1: 1 / (1 + math.e)},
        ),
        ([900.0, -900.0], "ab", {"keep": "softmax"}, {0: 1.0}),
        ([5.0, 0.2, 5.0], "abc", {"keep": "softmax"}, {0: 0.5, 2: 0.5}),  # b has a share of 0.4%
        ([0.9, 0.4], "ab", {"min_margin": 0.5}, {0: 1.0}),
        ([0.9, 0.4, 9.0], ["a", "b", None], {"min_margin": 0.6}, {}),
        ([0.9], "a", {}, {0: 1.0}),  # a policy that is certain
        ([0.9], "a", {"min_margin": 0.1}, {}),
        ([0.9], [None], {}, {}),
        ([], [], {}, {}),
    ],
)
def test_what_is_kept_of_a_question(scores, forms, given, kept):
    places, reason = kept_places(scores, list(forms), options(**given))
    assert places == pytest.approx(kept) and bool(reason) == (not kept)
    assert list(places) == sorted(places, key=lambda i: -scores[i])
    shifted, _ = kept_places([score + 100 for score in scores], list(forms), options(**given))
    assert shifted == pytest.approx(places, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "given", "form"),
    [
        ("A Sea Port.", {}, "sea port"),
        ("<think>hm</think><answer>B. urban</answer>", {"choices": ["rural", "urban"]}, "urban"),
        ("urban, I am sure", {"choices": ["rural", "urban"]}, "urban"),
        ("urb", {"choices": ["rural", "urban"]}, None),
        ("rural or urban", {"choices": ["rural", "urban"]}, None),
        ("", {}, None),
        (" \n", {}, None),
        ("an <image>", {}, None),
        ("<think>it may be", {}, None),
        ("urban", {"prompt": "Answer in <answer> </answer>."}, None),
        ("<answer>urban</answer>", {"prompt": "Answer in <answer> </answer>."}, "urban"),
        ("!!!", {}, "!!!"),
        ("a por\ufffd", {}, None),
        ("a\x02 port", {}, None),
        ("a port\nwith\tships", {}, "port with ships"),
    ],
)
def test_malformed_answers_have_no_form(text, given, form):
    assert normal_form(text, **given) == form


def test_choices_that_say_nothing_are_refused():
    with pytest.raises(DataError) as error:
        normal_form("urban", choices=["", "urban"])
    assert error.value.key == "choices"


@pytest.fixture
def candidates(tmp_path):
    for k in range(4):
        picture(k).save(tmp_path / f"{k}.png")
    return write(
        tmp_path / "candidates.jsonl",
        {"prompt": "What is it?", "image": "0.png", "completions": TEXTS, "id": "first", "solution": "two ships"},
        {"prompt": [{"role": "user", "content": "<image> or <image>?"}], "images": ["1.png", "2.png"]}
        | {"completions": [[{"role": "assistant", "content": text}] for text in TEXTS]},
        {"prompt": "", "image": "3.png", "completions": ["a road.", "a lake."]},
        {"prompt": "Alone?", "completions": ["yes", "no", "yes"], "choices": ["yes", "maybe"]},
        {"prompt": "What is it?", "image": "0.png", "completions": TEXTS[::-1]},
        {"prompt": "Which?", "image": "3.png", "completions": ["", "<image>"]},
    )


def test_the_rows_are_what_sft_reads(candidates, score_model_path, tmp_path, capsys):
    out = tmp_path / "best.jsonl"
    line = ["--score_model", score_model_path, "--input", str(candidates), "--output", str(out)]
    assert main(line) == 0
    table = dict(entry.rsplit(maxsplit=1) for entry in capsys.readouterr().out.splitlines() if entry[-1:].isdigit())
    assert {key: table[key] for key in ("rows", "asked before", "without a well-formed answer", "rows written")} == {
        "rows": "6",
        "asked before": "1",  # the same question about the same image, with the same best answer
        "without a well-formed answer": "1",
        "rows written": "4",
    }
    rows = rows_of(out)
    scorer = Scorer.from_pretrained(score_model_path)
    (scores,) = scorer.score(
        [str(tmp_path / "0.png")], ["What is it?"], [["a river.", "A river", *TEXTS[4:5], TEXTS[6]]]
    )
    assert rows[0]["score"] == pytest.approx(max(scores), abs=1e-5)
    assert (rows[0]["image"], rows[0]["weight"], rows[0]["id"]) == ("0.png", 1.0, "first")
    assert rows[1]["images"] == ["1.png", "2.png"] and rows[3]["completion"] == "yes"  # "no" is none of the choices
    assert set(rows[0]) == {"prompt", "completion", "image", "weight", "score", "source", "id"}

    from rs_rlhf.trainers.data.sft import load_rows
    from rs_rlhf.trainers.sft import turn_group

    read = load_rows(str(out), columns={"weight": "weight"})
    assert read["weight"] == [1.0] * 4
    texts = [[part.get("text") for part in message["content"]] for message in turn_group(read[2]).prompt]
    assert texts == [[None]]  # asked with the image alone, so trained with the image alone
    assert [len(turn_group(row).images) for row in read] == [1, 2, 1, 0]

    assert main([*line, "--overwrite", "--keep", "softmax"]) == 0
    by_question = {}
    for row in rows_of(out):
        by_question.setdefault((json.dumps(row["prompt"]), row.get("image")), []).append(row)
    for given in by_question.values():
        assert sum(row["weight"] for row in given) == pytest.approx(1)
        first, last = given[0], given[-1]
        assert math.log(first["weight"] / last["weight"]) == pytest.approx(first["score"] - last["score"], abs=1e-6)
        assert len(
            {row["completion"].lower().strip(".") for row in given if isinstance(row["completion"], str)}
        ) == len([row for row in given if isinstance(row["completion"], str)])


def test_the_score_model_is_shown_the_answer_alone(candidates, score_model_path, tmp_path):
    """As in GRPO: neither thoughts nor system turns; what is trained on is the whole text."""
    said = ["<think>hm</think><answer>a river.</answer>", "<think>oh</think><answer>two ships</answer>", "two ships"]
    turns = [
        {"role": "system", "content": "Put it in <answer> </answer>."},
        {"role": "user", "content": "What is it?"},
    ]
    write(candidates, {"prompt": turns, "image": "0.png", "completions": said})
    out = tmp_path / "best.jsonl"
    line = ["--score_model", score_model_path, "--input", str(candidates), "--output", str(out)]
    assert main([*line, "--keep", "softmax"]) == 0
    (scores,) = Scorer.from_pretrained(score_model_path).score(
        [str(tmp_path / "0.png")], ["What is it?"], [["a river.", "two ships"]]
    )
    kept = {row["completion"][0]["content"]: row["score"] for row in rows_of(out)}
    assert kept == pytest.approx(dict(zip(said, scores, strict=False)), abs=1e-5)


def test_the_control_shows_the_score_model_another_image(candidates, score_model_path, tmp_path):
    """It begins anew: scores with a prompt's own image are not taken for it."""
    asked = [{"prompt": "What is it?", "image": f"{k}.png", "completions": TEXTS} for k in (0, 3)]
    write(candidates, *asked)
    out = tmp_path / "best.jsonl"
    line = ["--score_model", score_model_path, "--input", str(candidates), "--output", str(out), "--keep", "softmax"]
    scores = {}
    for control in ("false", "true"):
        assert main([*line, "--overwrite", *(["--shuffle_reward_images"] if control == "true" else [])]) == 0
        for row in rows_of(out):
            scores[control, row["image"], row["completion"]] = row["score"]
    for image, other in (("0.png", "3.png"), ("3.png", "0.png")):
        theirs = {text: score for (control, name, text), score in scores.items() if (control, name) == ("true", image)}
        own = {text: score for (control, name, text), score in scores.items() if (control, name) == ("false", other)}
        assert theirs == pytest.approx({text: own[text] for text in theirs}, abs=1e-5)
        assert theirs != pytest.approx({text: scores["false", image, text] for text in theirs}, abs=1e-3)


def test_no_label_is_read(policy_path, score_model_path, tmp_path):
    """Solutions, classes and captions may be wrong or missing: the rows are the same, byte for byte."""
    for i in range(6):
        picture(i).save(tmp_path / f"{i}.png")
    asked = [{"id": f"q{i}", "prompt": "What is it?", "image": f"{i}.png"} for i in range(6)]
    known = [
        {},
        {"solution": "river"},
        {"solution": "port", "captions": ["a port."], "label": "port", "reward_type": "em", "kind": "k"},
    ]
    written = []
    for i, more in enumerate(known):
        folder = tmp_path / str(i)
        folder.mkdir()
        data = write(folder / "rows.jsonl", *({**row, **more} for row in asked))
        line = ["--policy", policy_path, "--score_model", score_model_path, "-n", "4", "--max_new_tokens", "3"]
        line += ["--input", str(data), "--image_root", str(tmp_path), "--output", str(folder / "best.jsonl")]
        assert main(line) == 0
        written.append((folder / "best.jsonl").read_bytes())
    assert written[0] == written[1] == written[2]
    assert {row["completion"] for row in rows_of(tmp_path / "0" / "best.jsonl")} & set(WORDS)


def test_killed_and_resumed(policy_path, score_model_path, tmp_path):
    for i in range(8):
        picture(i).save(tmp_path / f"{i}.png")
    data = write(tmp_path / "rows.jsonl", *({"prompt": "What is it?", "image": f"{i}.png"} for i in range(8)))
    line = ["--policy", policy_path, "--score_model", score_model_path, "-n", "4", "--max_new_tokens", "3"]
    line += ["--token_budget", "150", "--input", str(data)]
    killed, whole = tmp_path / "killed.jsonl", tmp_path / "whole.jsonl"
    partial = Path(f"{killed}.partial")
    argv = ["data", "best", *line, "--output", str(killed)]
    kill_when(lambda: partial.exists() and partial.read_bytes().count(b"\n") >= 3, argv)
    assert partial.exists() and not killed.exists()
    # Another choice among the same answers neither samples nor scores again.
    more = ["--keep", "softmax", "--min_margin", "0.001"]
    assert main([*line, *more, "--output", str(killed)]) == 0 and main([*line, *more, "--output", str(whole)]) == 0
    assert killed.read_bytes() == whole.read_bytes() and not partial.exists()


def test_mistakes(candidates, score_model_path, tmp_path):
    line = ["--score_model", score_model_path, "--input", str(candidates)]
    cases = [
        ("x.json", [], "output"),
        ("x.jsonl", ["--min_margin", "-1"], "min_margin"),
        ("x.jsonl", ["--min_margin", "nan"], "min_margin"),
        ("x.jsonl", ["--softmax_temperature", "0"], "softmax_temperature"),
    ]
    for output, more, key in cases:
        with pytest.raises(OptionError) as error:
            main([*line, "--output", str(tmp_path / output), *more])
        assert error.value.key == key
    turns = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]
    write(candidates, {"prompt": turns, "image": "0.png", "completions": ["c"]})
    with pytest.raises(DataError) as error:
        main([*line, "--output", str(tmp_path / "x.jsonl")])
    assert error.value.key == "prompt" and error.value.where.endswith("candidates.jsonl, line 1")
