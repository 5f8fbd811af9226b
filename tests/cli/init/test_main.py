"""`rs-rlhf init`: what is found and said, and a way whose every command runs as it is."""

import importlib
import json
import shlex
import shutil
from dataclasses import fields
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import warm
from helpers.own_folders import FOLDERS, captions, classes, tile

from rs_rlhf.cli.arguments import split_arguments
from rs_rlhf.cli.help.parsers import check_start, training_parser
from rs_rlhf.cli.help.table import TRAININGS, training_of
from rs_rlhf.cli.init import main as init
from rs_rlhf.cli.main import COMMANDS, command_name, run
from rs_rlhf.errors import DataError, OptionError
from rs_rlhf.options import parse


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(init, "gpus", lambda: [])
    return tmp_path


def commands(recipe):
    """The commands of a recipe's script, without the program's name."""
    lines = (Path(recipe) / "run.sh").read_text().splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("rs-rlhf ")]


def check_way(recipe):
    """Parses every command in order, each with the outputs of those before it there; returns their names."""
    names = []
    for argv in commands(recipe):
        name, rest = command_name(argv)
        names.append(name)
        if name in TRAININGS:
            training = training_of(name)
            parser = training_parser(training)
            _, flags, _ = split_arguments(parser, rest)
            check_start(training, parser, flags)
            Path(parser.parse_args(flags).output_dir).mkdir(parents=True)
            continue
        module, function = COMMANDS[name].target.split(":")
        command = getattr(importlib.import_module(f"rs_rlhf.{module}"), function)
        annotation = signature(command, eval_str=True).parameters["options"].annotation
        options = parse(annotation, rest, name)
        for field in fields(options):
            place = getattr(options, field.name)
            if place is None or not field.metadata.get("writes") or Path(place).exists():
                continue
            Path(place).parent.mkdir(parents=True, exist_ok=True)
            Path(place).mkdir() if field.metadata["writes"] == "folder" else Path(place).touch()
    return names


START, END = ["data check", "reward", "eval preferences"], ["grpo", "eval run", "eval run", "eval compare", "report"]
CURATED = ["score", "curate", "sft"]
WAYS = {
    "classes": ["tiny-vlm", "data pairs", "data pairs", *START, *CURATED, *END],
    "captions": ["tiny-vlm", "data pairs", "data pairs", *START, *CURATED, "grpo", "report"],
    "questions": ["tiny-vlm", "data sample-pairs", "data sample-pairs", *START, *CURATED, *END],
    "preferences": ["tiny-vlm", *START, "dpo", "grpo", "report"],
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_every_command_of_the_way_parses_and_finds_its_inputs(kind, here, capsys):
    FOLDERS[kind](here / "mine")
    before = sorted((here / "mine").rglob("*"))
    run("init", ["mine"])
    out = capsys.readouterr().out
    forms = (
        "images by class (3 classes: Airport, Beach, Dense Forest)",
        "captions",
        "question + answer",
        "preferences (LLaMA-Factory)",
    )
    assert any(f"{form}; 30 rows, 30 images found" in out for form in forms)
    assert check_way("mine-recipe") == WAYS[kind]
    assert all(shlex.join(["rs-rlhf", *argv]) in out for argv in commands("mine-recipe"))
    assert sorted((here / "mine").rglob("*")) == before
    pictures = {}
    for split in ("train", "validation"):
        for file in Path("mine-recipe/data").glob(f"*_{split}.jsonl"):
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            names = [row["image"] for row in rows]
            assert all((file.parent / name).is_file() for name in names)
            pictures.setdefault(split, set()).update((file.parent / name).read_bytes() for name in names)
    assert len(pictures["train"]) + len(pictures["validation"]) == 30
    assert not pictures["train"] & pictures["validation"] and len(pictures["validation"]) >= 3


def test_a_recipe_inside_the_folder_is_no_data_of_the_next_one(here, capsys):
    captions(here)
    run("init", ["."])
    assert Path(f"{here.name}-recipe/run.sh").is_file()
    run("init", [".", "--output", "other"])
    first, second = (
        (Path(place) / "data/images_train.jsonl").read_text() for place in (f"{here.name}-recipe", "other")
    )
    assert first == second and len(first.splitlines()) == 26


@pytest.mark.parametrize("memory", [[11.0], [24.0], [80.0, 80.0]])
def test_on_gpus_it_is_lora_merged_before_grpo(memory, here, monkeypatch, capsys):
    monkeypatch.setattr(init, "gpus", lambda: memory)
    classes(here / "mine")
    run("init", ["mine", "--output", "way"])
    names = check_way("way")
    assert names[0] == "data pairs" and names[names.index("sft") + 1] == "merge"
    recipe = yaml.safe_load(Path("way/grpo.yaml").read_text())
    assert recipe["use_peft"] and recipe["model_name_or_path"] == "way/out/sft-merged"
    assert recipe.get("num_processes") == (2 if len(memory) == 2 else None)
    assert ("7B" in yaml.safe_load(Path("way/sft.yaml").read_text())["model_name_or_path"]) == (memory[0] > 40)
    assert f"{len(memory)} GPU" in capsys.readouterr().out


def test_splits_that_the_data_have_are_kept_and_shared_pictures_left_out(here, capsys):
    for split, start in (("train", 0), ("val", 100)):
        for number in range(start, start + 18):
            tile(here / "mine" / split / f"class {number % 3}" / f"{number}.png", number)
    shutil.copy(here / "mine/val/class 1/100.png", here / "mine/train/class 1/again.png")
    run("init", ["mine"])
    out = capsys.readouterr().out
    assert "18 rows to train on, 18 held out; 1 training rows left out, whose picture is held out" in out
    check_way("mine-recipe")


def test_16_bit_tiles_are_stretched_in_every_command_that_reads_them(here, capsys):
    rasterio = pytest.importorskip("rasterio")
    for number in range(24):
        path = here / "mine" / f"class {number % 2}" / f"{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(200, 4000, (6, 32, 32)).astype("uint16")
        with rasterio.open(path, "w", driver="GTiff", width=32, height=32, count=6, dtype="uint16") as file:
            file.write(pixels)
    run("init", ["mine"])
    assert "is read with --" in capsys.readouterr().out
    check_way("mine-recipe")
    recipe = yaml.safe_load(Path("mine-recipe/reward.yaml").read_text())
    assert recipe["stretch"] == "percentile"
    readers = [argv for argv in commands("mine-recipe") if argv[0] in ("eval", "score") and argv[1] != "compare"]
    assert readers and all("--stretch" in argv for argv in readers)


def test_missing_images_tiles_without_texts_and_used_outputs_are_refused(here, capsys):
    captions(here / "gaps")
    (here / "gaps/tiles/t7.png").unlink()
    tile(here / "bare" / "a.png", 1)
    (here / "empty").mkdir()
    for folder, key, where in (
        ("gaps", "image", here / "gaps/captions.csv"),
        ("bare", "folder", "bare"),
        ("empty", "folder", "empty"),
    ):
        with pytest.raises(DataError) as error:
            run("init", [folder])
        assert (error.value.key, error.value.where) == (key, str(where))
        assert not Path(f"{folder}-recipe").exists()
    assert "1 missing (the first: t7.png)" in capsys.readouterr().out
    for rows, key in (
        ([{"image": "0.png", "about": "a"}] * 9, "columns"),
        ([{"image": "0.png", "prompt": "a?"}] * 9, "answer"),
    ):
        tile(here / key / "0.png", 0)
        (here / key / "rows.json").write_text(json.dumps(rows))
        with pytest.raises(DataError) as error:
            run("init", [key])
        assert error.value.key == key and not Path(f"{key}-recipe").exists()
    classes(here / "mine")
    (here / "used").mkdir()
    (here / "used" / "notes").touch()
    with pytest.raises(OptionError) as refused:
        run("init", ["mine", "--output", "used"])
    assert refused.value.key == "output" and [path.name for path in Path("used").iterdir()] == ["notes"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", FOLDERS)
def test_the_whole_way_runs_as_it_is_printed(kind, here):
    FOLDERS[kind](here / "mine")
    run("init", ["mine"])
    for argv in commands("mine-recipe"):
        done = warm.run(argv)
        assert done.returncode == 0, f"{shlex.join(argv)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert "<html" in Path("mine-recipe/out/grpo/report.html").read_text()
