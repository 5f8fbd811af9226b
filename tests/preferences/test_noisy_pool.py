"""A pool of image-text rows whose damage is known."""

import json
import re
from collections import Counter

import pytest
from helpers.captioned_rows import CLASSES, rows

from rs_rlhf.cli import main as cli
from rs_rlhf.data.captioned_images import class_name
from rs_rlhf.errors import OptionError
from rs_rlhf.preferences.noisy_pool import CAPTION_DAMAGE, damaged_rows


def test_a_damaged_text_differs_from_all_true_captions_and_a_clean_one_is_one_of_them():
    given = {row["id"]: row for row in rows()}
    made = list(damaged_rows(rows(), 0.6, questions=True))
    assert len(made) == 40 * 3
    for row in made:
        image = given[row["id"].split("#")[0]]
        if row["source"] == "labels":
            assert (row["answer"] == class_name(image["label"])) == row["clean"]
        else:
            assert (row["caption"] in image["captions"]) == row["clean"] == (row["damage"] == "")
        assert row["label"] == image["label"]
    kinds = Counter(row["damage"] for row in made)
    assert set(kinds) == {"", "wrong_label", *CAPTION_DAMAGE}


@pytest.mark.parametrize("kind", CAPTION_DAMAGE)
def test_each_kind_damages_in_its_way(kind):
    made = [row for row in damaged_rows(rows(), 1.0, kinds=[kind]) if not row["clean"]]
    assert len(made) > 20
    for row in made:
        own = class_name(row["label"])
        named = {name for name in map(class_name, CLASSES) if re.search(rf"\b{name}", row["caption"])}
        if kind == "vague":
            assert not named and not re.search(r"\d", row["caption"])
        elif kind == "attribute":
            assert named <= {own, "forest", "beach", "airport"} and len(row["caption"].split()) > 5
        else:
            assert named and own not in named


def test_the_rate_is_the_share_of_damaged_texts_and_the_seed_decides_which():
    for rate in (0.0, 0.3, 1.0):
        made = list(damaged_rows(rows(400), rate, kinds=["vague"]))
        assert sum(not row["clean"] for row in made) / len(made) == pytest.approx(rate, abs=0.06)
    first, again, other = (list(damaged_rows(rows(), 0.5, seed=seed)) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize(("rate", "kinds", "key"), [(1.5, CAPTION_DAMAGE, "rate"), (0.5, ["x"], "kinds")])
def test_options_out_of_range_are_refused(rate, kinds, key):
    with pytest.raises(OptionError) as error:
        list(damaged_rows(rows(), rate, kinds=kinds))
    assert error.value.key == key


def test_the_command_writes_rows_beside_their_images_and_leaves_out_those_of_other_data(tmp_path, capsys):
    folder = tmp_path / "scenes"
    assert cli.main(["data", "scenes", str(folder), "--n_train", "24", "--n_validation", "8"]) == 0
    output = tmp_path / "pool" / "pool.jsonl"
    command = [
        "data",
        "damage",
        "--input",
        str(folder),
        "--split",
        "train",
        "--rate",
        "0.5",
        "--questions",
        "--output",
        str(output),
    ]
    assert cli.main(command) == 0
    made = [json.loads(line) for line in output.read_text().splitlines()]
    assert {row["source"] for row in made} == {"captions", "labels"}
    assert all((output.parent / row["image"]).is_file() for row in made)
    assert "captions  clean" in capsys.readouterr().out
    assert cli.main(command) == 1 and "--overwrite" in capsys.readouterr().err
    assert cli.main([*command, "--overwrite", "--exclude_images_of", f"{folder}:train"]) == 1
    assert "No images are left" in capsys.readouterr().err
