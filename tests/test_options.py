"""Parsers from option dataclasses: spellings, defaults, required options, and flags that read back."""

import pkgutil
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

import pytest

import rs_rlhf
from rs_rlhf.errors import OptionError
from rs_rlhf.options import make_parser, option, parse, to_flags


@dataclass(kw_only=True)
class Shared:
    """Shared options."""

    max_pixels: int | None = option(None, "Most pixels.")


@dataclass(kw_only=True)
class Options(Shared):
    """What the command does."""

    data: Path = option(help="Where 100% of the data are.", positional=True)
    output_dir: Path = option(help="Folder.", flags=["--out"])
    scorer: Literal["model", "length"] = option("model", "What scores.")
    bands: list[int] | None = option(None, "Bands.")
    keep: list[str] = option([], "More.", action="append")
    overwrite: bool = option(False, "Overwrite.")
    progress: bool = option(True, "Show progress.")


def test_both_spellings_and_types():
    options = parse(Options, ["d", "--out", "o", "--max-pixels", "9", "--bands", "3", "2", "--no-progress"], "x")
    assert (options.data, options.output_dir, options.max_pixels) == (Path("d"), Path("o"), 9)
    assert options.bands == [3, 2] and options.progress is False and options.scorer == "model"


def test_flags_read_back():
    given = ["d", "--output_dir", "o", "--keep", "a", "--keep", "b c", "--overwrite", "--scorer", "length"]
    options = parse(Options, given, "x")
    assert parse(Options, to_flags(options), "x") == options and options.keep == ["a", "b c"]


@pytest.mark.parametrize("given", [["d"], ["--out", "o"], ["d", "--out", "o", "--scorer", "none"], ["d", "--ou", "o"]])
def test_what_is_missing_unknown_or_abbreviated_is_refused(given):
    with pytest.raises(OptionError):
        parse(Options, given, "x")


def test_help_is_written_once():
    text = " ".join(make_parser(Options, "x").format_help().split())
    assert "What the command does." in text and "100% of the data" in text and "(default: model)" in text
    assert "--no_progress Show progress. On by default; this turns it off." in text


@pytest.mark.parametrize("text", ["-1", "1.5", "many", "9" * 20])
def test_a_number_that_cannot_be_is_refused(text):
    @dataclass(kw_only=True)
    class Seeded:
        seed: int = option(0, "Seed.", least=0)

    assert parse(Seeded, ["--seed", "3"], "x").seed == 3
    with pytest.raises(OptionError):
        parse(Seeded, ["--seed", text], "x")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("", "folder"),
        ("", "file"),
        ("file", "folder"),
        ("folder", "file"),
        ("file/below", "folder"),
        ("file/below/it", "file"),
        ("nowhere", "folder"),
        ("a" * 300, "folder"),
        ("/dev/null", "file"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_and_left_alone(path, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("content")
    Path("folder").mkdir()
    Path("nowhere").symlink_to("gone")

    @dataclass(kw_only=True)
    class Writes:
        out: Path = option(writes=kind)

    with pytest.raises(OptionError) as caught:
        parse(Writes, ["--out", path], "x")
    assert caught.value.key == "out" and Path("file").read_text() == "content" and not list(Path("folder").iterdir())
    assert parse(Writes, ["--out", "new/place"], "x").out == Path("new/place") and not Path("new").exists()


def test_every_output_of_a_command_is_checked():
    modules = [module.name for module in pkgutil.walk_packages(rs_rlhf.__path__, "rs_rlhf.")]
    classes = [value for name in modules for value in vars(import_module(name)).values() if is_dataclass(value)]
    unchecked = {
        f"{cls.__qualname__}.{field.name}"
        for cls in classes
        for field in fields(cls)
        if field.name in ("out", "output", "output_dir", "images_dir") and "help" in field.metadata
        if "writes" not in field.metadata and cls.__module__.startswith("rs_rlhf") and "trainers" not in cls.__module__
    }
    assert not unchecked
