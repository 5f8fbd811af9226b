"""Class folders of the declared benchmarks, the layouts that training reads too, and the hash of a data set."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import data_folder, picture
from helpers.benchmark_files import change, declared, draw, fails, lr_files, made, prompts, write

from rs_rlhf.data.group import completion_text
from rs_rlhf.evaluation.benchmark import load_benchmark
from rs_rlhf.evaluation.reader import _check_judged, dataset_hash, read_benchmark, references_of
from rs_rlhf.imagery.raster import read_image


@pytest.fixture
def lr(tmp_path):
    return lr_files(tmp_path)


CLASSES = {
    "aid": 30,
    "nwpu-resisc45": 45,
    "meter-ml": 7,
    "siri-whu": 12,
    "whu-rs19": 19,
    "eurosat": 10,
    "ucmerced": 21,
}
FOLDERS = {
    "aid": "BareLand StorageTanks MediumResidential",
    "nwpu-resisc45": "sea_ice thermal_power_station wetland",
    "meter-ml": "CAFOs R&Ts Negative WWTPs ProcPlants Mines Landfills",
    "siri-whu": "idle_land water",
    "whu-rs19": "footballField railwayStation",
    "ucmerced": "mobilehomepark storagetanks baseballdiamond buildings",
    "eurosat": "AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop Residential SeaLake",
}


@pytest.mark.parametrize("name", CLASSES)
def test_official_class_folders_become_the_declared_words(name, tmp_path):
    for i, folder in enumerate(FOLDERS[name].split()):
        draw(tmp_path / folder / f"{i}.png", i)
    benchmark = declared(name)
    rows = read_benchmark(benchmark, tmp_path)
    assert len(rows) == len(FOLDERS[name].split()) and len(rows[0].choices) == CLASSES[name]
    assert all(row.reference in row.choices and row.reference in prompts([row])[0] for row in rows)


def test_choices_in_another_case_than_the_classes(tmp_path):
    for i, folder in enumerate(("BareLand", "port")):
        draw(tmp_path / folder / f"{i}.png", i)
    for choices in (["Bare Land", "Port"], ["BARE LAND", "port", "Sea"], ["bare_land", "Port"]):
        rows = read_benchmark(made(task="classification", layout="images", choices=choices), tmp_path)
        assert [row.reference for row in rows] == choices[:2] and rows[0].choices == choices
    for choices in (["bare", "port"], ["Bare Land", "bare land", "PORT", "Port"]):
        fails(made(task="classification", layout="images", choices=choices), tmp_path, "none of the declared choices")


# Images, rows, preferences, pairs


def test_images_need_what_the_task_is_about(tmp_path):
    draw(tmp_path / "BareLand" / "1.png")
    (row,) = read_benchmark(made(task="classification", layout="images"), tmp_path)
    assert (row.id, row.reference, row.choices) == ("BareLand/1.png", "bare land", ["bare land"])
    assert prompts([row]) == ["What is the scene class of this image?"] and Path(row.group.images[0]).is_absolute()
    fails(made(task="captions", layout="images"), tmp_path, "BareLand/1.png", "no captions")
    fails(made(task="vqa", layout="images"), tmp_path, "no questions of the task vqa")
    fails(
        made(task="classification", layout="images", choices=["port"]), tmp_path, "'bare land' is none of the declared"
    )
    fails(made(task="classification", layout="images", split="test"), tmp_path, "nothing of split 'test'")
    fails(made(task="classification", layout="images"), tmp_path / "gone", "does not exist")
    write(tmp_path / "said.jsonl", json.dumps({"image": "../out.png", "captions": ["a"]}))
    fails(made(task="captions", layout="images"), tmp_path / "said.jsonl", "line 1", "leaves image_root")


def test_rows_of_every_task(tmp_path):
    draw(tmp_path / "1.png")
    row = {"id": "q", "image": "1.png", "prompt": "Which?"}
    file = write(tmp_path / "rows.jsonl", json.dumps({**row, "boxes": [[1, 2, 3, 4]], "types": ["a", "b"]}))
    (read,) = read_benchmark(made(task="grounding", layout="rows"), file)
    assert read.columns["size"] == [84, 56] and read.columns["types"] == ["a", "b"]
    fails(made(task="vqa", layout="rows"), file, "line 1", "no `solution`")
    fails(made(task="captions", layout="rows"), file, "no `captions`")
    write(file, json.dumps({**row, "solution": "B", "choices": ["a port", "a farm"]}))
    assert read_benchmark(made(task="choice", layout="rows"), file)[0].choices == ["a port", "a farm"]
    fails(made(task="grounding", layout="rows"), file, "no `boxes`")
    write(file, json.dumps({**row, "solution": "B"}) + "\n{")
    fails(made(task="vqa", layout="rows"), file, "line 2", "not JSON")
    write(file, json.dumps({**row, "image": "2.png", "solution": "B"}))
    fails(made(task="vqa", layout="rows"), file, "line 1", "2.png", "no such file")


def asked_rows(tmp_path, *rows):
    draw(tmp_path / "1.png")
    base = {"image": "1.png", "prompt": "Which?"}
    return write(tmp_path / "rows.jsonl", "\n".join(json.dumps({**base, **row}) for row in rows))


@pytest.mark.parametrize(
    ("task", "row", "said"),
    [
        ("choice", {"solution": "C", "choices": ["a port", "a farm"]}, "the reference 'C' is none of the choices"),
        ("choice", {"solution": "A river", "choices": ["the river", "river"]}, "or several"),
        ("vqa", {"solution": "a", "references": "b"}, "`references` is 'b' (str), expected a list of texts"),
        ("vqa", {"solution": "a", "references": ["b", 3]}, "`references` is ['b', 3]"),
        ("vqa", {"solution": "a", "references": [" "]}, "none empty"),
        ("captions", {"captions": "a port"}, "`captions` is 'a port'"),
        ("captions", {"captions": ["a port", ""]}, "or an empty one"),
        ("grounding", {"boxes": [[1, 2, 3, "4"]]}, "no `boxes`"),
        ("grounding", {"boxes": [[1, 2, 3, float("nan")]]}, "no `boxes`"),
        ("grounding", {"boxes": [[1, 2, 3, 4]], "size": [0, 56]}, "no `size`"),
        ("preference", {"solution": "a"}, "no texts to choose between"),
    ],
)
def test_a_question_that_cannot_be_judged_is_refused_before_it_is_asked(tmp_path, task, row, said):
    good = {"solution": "a port", "choices": ["a port", "a farm"], "captions": ["a port"], "boxes": [[1, 2, 3, 4]]}
    fails(
        made(task=task, layout="rows"), asked_rows(tmp_path, *[good] * (task != "preference"), row), "rows.jsonl", said
    )


def test_choices_in_their_own_words_and_boxes_without_area_are_judged(tmp_path):
    for solution, choices in (("A, B", ["A, B", "C, D"]), ("river", ["the river", "river"])):
        file = asked_rows(tmp_path, {"solution": solution, "choices": choices})
        assert read_benchmark(made(task="choice", layout="rows"), file)[0].reference == solution
    file = asked_rows(tmp_path, {"boxes": [[5, 5, 5, 9]]})
    assert read_benchmark(made(task="grounding", layout="rows"), file)[0].columns["boxes"] == [[5, 5, 5, 9]]


def test_a_million_questions_of_few_answers_are_checked_in_seconds(tmp_path):
    file = asked_rows(tmp_path, {"solution": "yes", "choices": ["yes", "no"]})
    benchmark = made(task="vqa", layout="rows", numbers="rsvqa_hr")
    (row,) = read_benchmark(benchmark, file)
    start = time.perf_counter()
    _check_judged([row] * 100_000, benchmark)
    assert time.perf_counter() - start < 1


def test_references_of(tmp_path):
    rows = [{"solution": "a", "references": ["b", "c"]}, {"solution": "a", "references": None}, {"solution": "a"}]
    read = read_benchmark(made(task="vqa", layout="rows"), asked_rows(tmp_path, *rows))
    assert [references_of(row) for row in read] == [["a", "b", "c"], ["a"], ["a"]]
    row = {"solution": "port", "captions": ["a port", "ships"]}
    for task, references in (("vqa", ["port"]), ("captions", ["a port", "ships"])):
        (one,) = read_benchmark(made(task=task, layout="rows"), asked_rows(tmp_path, row))
        assert references_of(one) == references
    (one,) = read_benchmark(
        made(task="grounding", layout="rows"), asked_rows(tmp_path, {**row, "boxes": [[1, 2, 3, 4]]})
    )
    assert references_of(one) == []


def test_a_prompt_goes_around_the_prompts_of_rows(tmp_path):
    benchmark = made(task="choice", layout="rows", prompt="{question}\n{choices}\nA letter.")
    row = {"solution": "A", "choices": ["a port", "a farm"]}
    (read,) = read_benchmark(benchmark, asked_rows(tmp_path, row))
    assert prompts([read]) == ["Which?\nA. a port\nB. a farm\nA letter."] and len(read.group.images) == 1
    assert "line 1" in read.group.where and read.prompt == prompts([read])[0]
    messages = [{"role": "user", "content": "Which?"}]
    fails(benchmark, asked_rows(tmp_path, {**row, "prompt": messages}), "line 1", "`prompt` is a conversation")
    fails(benchmark, asked_rows(tmp_path, {"solution": "A"}), "the prompt lists {choices}, but 'Which?' has none")
    benchmark = made(task="classification", layout="rows", prompt="{question} One of {choices}.")
    rows = read_benchmark(benchmark, asked_rows(tmp_path, {"solution": "port"}, {"solution": "farm"}))
    assert prompts(rows) == ["Which? One of farm, port."] * 2


def test_sizes_are_those_of_the_upright_picture(tmp_path):
    image = picture(1, 84, 56)
    image.getexif()[274] = 6
    image.save(tmp_path / "turned.jpg", exif=image.getexif())
    (read,) = read_benchmark(
        made(task="grounding", layout="rows"), asked_rows(tmp_path, {"image": "turned.jpg", "boxes": [[1, 2, 3, 4]]})
    )
    assert read.columns["size"] == [56, 84] and read_image(read.group.images[0]).size == (56, 84)


def test_sizes_of_tiffs_of_many_bands(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(tmp_path / "b.tif", "w", driver="GTiff", width=40, height=30, count=7, dtype="uint16") as file:
        file.write(np.ones((7, 30, 40), "uint16"))
    row = {"image": "b.tif", "boxes": [[1, 2, 3, 4]]}
    assert read_benchmark(made(task="grounding", layout="rows"), asked_rows(tmp_path, row))[0].columns["size"] == [
        40,
        30,
    ]


def test_preferences_keep_their_completions_and_names(tmp_path):
    draw(tmp_path / "pairs" / "1.png")
    write(tmp_path / "pairs.json", [{"chosen": "a port", "rejected": ["a farm", "a river"], "image_name": "1.png"}])
    rows = read_benchmark(made(task="preference", layout="preferences"), tmp_path / "pairs.json")
    assert [row.id for row in rows] == ["pairs-0", "pairs-0.1"] and rows[0].image_names == ["pairs/1.png"]
    assert [completion_text(one) for one in rows[1].group.completions] == ["a port", "a river"]
    row = {
        "prompt": "",
        "chosen": "a port",
        "rejected": "a farm",
        "kind": "another_class",
        "source": "s",
        "image": "9.png",
    }
    file = write(tmp_path / "own.jsonl", json.dumps(row))
    fails(made(task="preference", layout="preferences"), file, "line 1", "9.png", "no such file")
    write(file, json.dumps({**row, "image": "pairs/1.png"}))
    (read,) = read_benchmark(made(task="preference", layout="preferences"), file)
    assert read.columns == {"types": ["another_class"], "source": "s"} and read.group.kind == "another_class"
    write(file, json.dumps({"chosen": "a port"}))
    fails(made(task="preference", layout="preferences"), file, "line 1", "no column `rejected`")


def test_real_aid_rsicd():
    folder = data_folder("aid_rsicd")
    rows = read_benchmark(load_benchmark("aid-rsicd"), folder)
    assert len(rows) == 1027 and len(rows[0].choices) == 30 and "bare land" in rows[0].choices
    assert rows[0].group.images[0]["bytes"] and not rows[0].captions
    rows = read_benchmark(load_benchmark("aid-rsicd-retrieval"), folder)
    assert len(rows) == 1027 and sum(len(row.captions) for row in rows) == 5135


def test_real_aid_rsicd_pairs_are_of_all_kinds():
    rows = read_benchmark(load_benchmark("aid-rsicd-preference"), data_folder("aid_rsicd"))
    assert len(rows) == 5035 and all(len(row.group.completions) == 2 for row in rows)
    kinds = {kind for row in rows for kind in row.columns["types"]}
    assert kinds == {"another_class", "same_class", "attribute", "wrong_label", "truncated"}


# The hash


def test_the_hash_moves_with_the_data_and_not_with_their_place(lr, tmp_path):
    benchmark = declared("rsvqa-lr")
    first = dataset_hash(read_benchmark(benchmark, lr))
    elsewhere = Path(shutil.copytree(lr, tmp_path / "elsewhere" / "moved"))
    assert dataset_hash(read_benchmark(benchmark, elsewhere)) == first and len(first) == 64
    draw(elsewhere / "Images_LR" / "1.tif", 1, width=65, height=64)
    assert dataset_hash(read_benchmark(benchmark, elsewhere)) != first
    change(lr / "LR_split_test_answers.json", "answers", 1, answer="urban")
    changed = dataset_hash(read_benchmark(benchmark, lr))
    assert changed != first
    change(lr / "LR_split_test_questions.json", "questions", 1, type="comp")
    assert dataset_hash(read_benchmark(declared("rsvqa-lr", types=[]), lr)) not in (first, changed)


def test_the_hash_of_stored_bytes_moves_with_one_of_them(tmp_path):
    from datasets import Dataset, Features, Image, Value

    draw(tmp_path / "a.bmp")
    content, hashes = bytearray((tmp_path / "a.bmp").read_bytes()), []
    for value in (7, 8):
        content[-1] = value
        rows = {"image": [{"bytes": bytes(content), "path": "a.bmp"}], "label": ["port"]}
        data = Dataset.from_dict(rows, features=Features({"image": Image(), "label": Value("string")}))
        data.to_parquet(tmp_path / "test.parquet")
        hashes.append(
            dataset_hash(read_benchmark(made(task="classification", layout="images"), tmp_path / "test.parquet"))
        )
    assert hashes[0] != hashes[1]


def test_rows_without_images_are_declared_so(tmp_path):
    rows = asked_rows(tmp_path, {"image": None, "tile": "1", "solution": "A"})
    fails(made(task="vqa", layout="rows"), rows, "rows.jsonl", "no row has an image", "columns")
    (read,) = read_benchmark(made(task="vqa", layout="rows", columns={"image": ""}), rows)
    assert read.group.images == [] and read.reference == "A"
    rows = asked_rows(tmp_path, {"image": None, "solution": "A"}, {"solution": "A"})
    assert [len(row.group.images) for row in read_benchmark(made(task="vqa", layout="rows"), rows)] == [0, 1]
