"""Lists of one right text against many wrong ones."""

import json
from collections import Counter

import pytest
from helpers.captioned_rows import rows

from rs_rlhf.cli import main as cli
from rs_rlhf.data.captioned_images import class_name
from rs_rlhf.errors import OptionError
from rs_rlhf.preferences.lists import LIST_KINDS, build_lists


def test_the_chosen_text_is_the_images_own_and_no_rejected_one_is():
    given = {row["id"]: row for row in rows()}
    stats: dict[str, Counter] = {}
    made = list(build_lists(rows(), rejected=6, lists_per_image=3, stats=stats))
    assert Counter(row["kind"] for row in made) == {"captions": 80, "labels": 40}
    for row in made:
        image = given[row["id"].split("#")[0]]
        own = image["captions"] if row["kind"] == "captions" else [class_name(image["label"])]
        assert row["chosen"] in own and not set(row["rejected"]) & set(own)
        assert len(set(row["rejected"])) == len(row["rejected"]) == (6 if row["kind"] == "captions" else 3)
    assert set(stats["made"]) == set(LIST_KINDS)
    assert stats["made"].total() == sum(len(row["rejected"]) for row in made)


def test_the_seed_decides():
    first, again, other = (list(build_lists(rows(), seed=seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_an_image_without_a_class_has_lists_of_what_needs_none():
    one = [{**rows(1)[0], "label": None}]
    made = list(build_lists(one, rejected=4))
    assert [row["kind"] for row in made] == ["captions", "captions"]
    assert all(row["rejected"] for row in made)


def test_nothing_to_make_is_refused():
    with pytest.raises(OptionError, match="must be at least 1"):
        list(build_lists(rows(), rejected=0))


def test_the_command_writes_lists_that_the_data_check_passes(tmp_path, capsys):
    folder = tmp_path / "scenes"
    assert cli.main(["data", "scenes", str(folder), "--n_train", "24", "--n_validation", "8"]) == 0
    output = tmp_path / "lists.jsonl"
    command = [
        "data",
        "pairs",
        "--input",
        str(folder),
        "--split",
        "train",
        "--form",
        "list",
        "--rejected",
        "5",
        "--output",
        str(output),
    ]
    assert cli.main([*command, "--kinds", "attribute"]) == 1
    assert "--kinds is for pairs" in capsys.readouterr().err
    assert cli.main(command) == 0 and "lists ->" in capsys.readouterr().out
    made = [json.loads(line) for line in output.read_text().splitlines()]
    assert {len(row["rejected"]) for row in made} <= {1, 2, 3, 4, 5}
    assert cli.main(["data", "check", str(output)]) == 0
