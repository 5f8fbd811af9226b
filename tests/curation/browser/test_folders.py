"""Classes by folder: only where rows name none, and where folders can be classes; the same in Spotlight's table."""

import io
import json

import pytest
from helpers import picture
from PIL import Image

from rs_rlhf.cli import main as cli
from rs_rlhf.curation.browser.folders import name_folders
from rs_rlhf.curation.browser.spotlight import SIDE, table_of
from rs_rlhf.curation.browser.view import Ranked
from rs_rlhf.curation.samples import read_scored


def scored_rows(folder, rows):
    for row in rows:
        if row.get("image"):
            (folder / row["image"]).parent.mkdir(parents=True, exist_ok=True)
            picture(len(row["image"]), 400, 200).save(folder / row["image"])
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["--input", str(folder / "in.jsonl"), "--output", str(folder / "scores"), "--scorer", "length"]
    assert cli.run("score", [*command, "--max_error_fraction", "1"]) == 0
    return read_scored(folder / "scores")


def rows_of(folders, **more):
    return [{"image": f"{name}/{i}.png", "captions": ["a b", f"a {i}"], **more} for i, name in enumerate(folders)]


def test_the_folder_of_an_image_is_its_class(tmp_path):
    scored = scored_rows(tmp_path, [*rows_of(["tiles/port", "tiles/river"] * 2), {"image": None, "text": "no image"}])
    said = name_folders(scored)
    labels = [scored.samples.labels[code] for code in scored.samples.label]
    assert labels == ["port", "port", "river", "river"] * 2 + [""]
    ranked = Ranked(scored, folders=said)
    assert dict(ranked.facts())["Classes"] == "2, by the folder of the image"
    columns = table_of(scored)
    assert columns["class"] == labels and columns["text"][:2] == ["a b", "a 0"] and columns["score"][0] == 2
    with Image.open(io.BytesIO(columns["image"][0])) as image:
        assert max(image.size) == SIDE
    assert columns["image"][-1] is None and len({len(column) for column in columns.values()}) == 1


@pytest.mark.parametrize(
    "rows",
    [
        rows_of(["one"] * 4),  # all in one folder
        rows_of([f"scene {i}" for i in range(4)]),  # a folder for each
        rows_of(["port", "river"] * 2, label="named"),  # named already
    ],
)
def test_folders_that_are_no_classes(tmp_path, rows):
    scored = scored_rows(tmp_path, rows)
    before = [*scored.samples.labels]
    assert name_folders(scored) == "" and scored.samples.labels == before
