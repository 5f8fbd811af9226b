"""`score`: scores of every text of image-text data, as a folder that any number of processes fill together.

The same command may be started any number of times: by `accelerate launch -m rs_rlhf score …`, by hand, on several
machines that share the folder. Each process claims units of the input, reads their rows, scores them in one go, so
that texts of similar length share batches, and writes one file. Processes never talk to each other; the units of one
that dies are scored by the others, or at the next start.

Left out: torch.distributed, and models that need several GPUs (set `device_map` in your own script on [`Scorer`]).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..data.columns import ColumnOptions
from ..data.image_text_dataset import Unit, open_image_texts
from ..data.rows import check_there
from ..data.survey import announce_texts
from ..errors import DataError, OptionError
from ..imagery.arguments import RenderingOptions
from ..options import option
from ..scoring.load import (
    READ_BY,
    READING_FLAGS,
    ScorerOptions,
    load_scorer,
    process_device,
    scorer_settings,
    token_counter,
)
from ..version import __version__
from .shards import claimed, drop_damaged, missing_units, planned, read_manifest, summarize, write_json
from .worker import Work, is_first


@dataclass(kw_only=True)
class ScoreOptions(ScorerOptions, RenderingOptions, ColumnOptions):
    """Score every text of image-text data, on as many processes and machines as start the command.

    They share the work. With `accelerate launch -m rs_rlhf score …` or by hand; the same command resumes.
    """

    input: str = option(help="Parquet, JSONL, JSON, CSV or WebDataset file, or a folder of them", reads=check_there)
    split: str | None = option(None, "split of a folder (default: all of it)")
    output: Path = option(help="folder of the scores", flags=["--output_dir"], metavar="DIR", writes="folder")
    rows_per_shard: int = option(2048, "rows scored together and written to one file; they are in memory at once")
    num_workers: int = option(2, "threads that read images and lay out batches")
    max_error_fraction: float = option(0.05, "stop when more than this share of the rows cannot be scored")
    limit: int | None = option(None, "only the first rows")
    image_root: str | None = option(
        None, "Folder that image paths are relative to and may not leave; by default each data file's own."
    )

    def check(self) -> None:
        """Refuses what cannot be run or would be ignored. `OptionError`: names the option."""
        super().check()
        for name in ("rows_per_shard", "limit"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise OptionError(f"--{name} is {value}, expected at least 1.", name)
        if not 0 <= self.max_error_fraction <= 1:
            raise OptionError(
                f"--max_error_fraction is {self.max_error_fraction}, expected a number from 0 to 1.",
                "max_error_fraction",
            )
        if self.output.resolve() in (Path(self.input).resolve(), Path(self.input, "data").resolve()):
            raise OptionError(
                f"--output {self.output} is where --input {self.input} is read from: scores would be taken "
                "for data; choose another folder.",
                "output",
            )

    def settings(self, stamp: object) -> dict[str, Any]:
        """Returns what must not change when a run is resumed; `stamp` is that of the input."""
        names = ("input", "split", "image_root", "limit", "rows_per_shard")
        settings: dict[str, Any] = {name: getattr(self, name) for name in names}
        if os.path.exists(self.input):
            settings["input"] = os.path.abspath(self.input)
        if self.image_root is not None:
            settings["image_root"] = os.path.abspath(self.image_root)
        settings["columns"] = self.named_columns() or None
        return settings | {"scorer": scorer_settings(self, self.reader_options()), "stamp": stamp}


def stage_options(given: Mapping[str, Any]) -> ScoreOptions:
    """Returns options of a scorer that are given by name, such as `{"model": "out/score-model"}`.

    Raises:
        OptionError: An option that no scorer has, or that this scorer does not read.
    """
    columns = [field.name for field in fields(ColumnOptions)]
    known = {*(field.name for field in fields(ScorerOptions)), *READING_FLAGS, *columns}
    for name in given:
        if name not in known:
            raise OptionError(f"{name!r} is no option of a scorer; choose from {', '.join(sorted(known))}.", name)
    options = ScoreOptions(input="", output=Path("scores"), **given)
    ScorerOptions.check(options)
    return options


def score(options: ScoreOptions) -> dict[str, Any]:
    """Scores image-text data together with all other processes that write to the same folder.

    Returns:
        `dict`: The summary of the finished folder, see [`summarize`].

    Raises:
        RSRLHFError: An option is wrong, the folder holds scores of another run, the scorer does not load, too many
            rows cannot be scored, or a file cannot be written.
    """
    options.check()
    folder = options.output
    columns = options.named_columns()
    source = open_image_texts(options.input, options.split, image_root=options.image_root, columns=columns)
    settings = options.settings(source.stamp)

    def units() -> list[Unit]:
        return _limited(source.units(options.rows_per_shard), options.limit, options.input)

    announce_texts(source, options.image_root)
    if (folder / "manifest.json").exists():  # if the run is refused, or finished, nothing is loaded
        with planned(folder, settings, units) as manifest:
            if is_first():
                for path in drop_damaged(manifest, folder):
                    print(f"{path} was damaged and is scored again", file=sys.stderr)
            finished = not missing_units(manifest, folder)
        if finished:
            return _conclude(folder)
    # If it does not load, nothing is written. The reader needs no root: paths have been resolved inside theirs.
    device = process_device() if options.scorer in READ_BY["model"] else None  # the baselines do without torch
    scorer = load_scorer(options, options.reader_options(), device, standards=folder)
    with planned(folder, settings, units) as manifest:
        counter, workers = token_counter(scorer), options.num_workers
        Work(source, manifest, folder, scorer, counter, workers, options.max_error_fraction).run()
    return _conclude(folder)


def _limited(units: Sequence[Unit], limit: int | None, name: str) -> list[Unit]:
    """The units that hold the first `limit` rows."""
    if limit is None:
        return list(units)
    kept = []
    for unit in units:
        if unit.rows < 0:
            raise DataError("--limit needs data whose rows can be counted, not WebDataset; leave it out", where=name)
        if limit > 0:
            kept.append(replace(unit, rows=min(unit.rows, limit)))
            limit -= unit.rows
    return kept


def _conclude(folder: Path) -> dict[str, Any]:
    """The summary of a finished run; the first process to get here writes it."""
    path = folder / "summary.json"
    with claimed(folder, "summary", wait=True):
        if not path.exists():
            write_json(path, {**summarize(folder, read_manifest(folder)), "rs_rlhf": __version__})
        return json.loads(path.read_text(encoding="utf-8"))


def summary_text(summary: Mapping[str, Any], folder: Path) -> str:
    """Returns a summary in words."""
    failed = f", {summary['failed_texts']} could not be" if summary["failed_texts"] else ""
    lines = [
        f"{summary['rows']} rows: {summary['texts']} texts scored in {summary['seconds']:.1f} s "
        f"({summary['texts_per_second']:.4g} texts/s){failed} -> {folder}"
    ]
    lines += [f"  {kind['count']} as {kind['rows'][0]}: {kind['message']}" for kind in summary["errors"].values()]
    return "\n".join(lines)


def standing(folder: Path) -> str:
    """Returns how far a run is, for a message."""
    if not (folder / "manifest.json").is_file():
        return "nothing was scored yet"
    manifest = read_manifest(folder)
    count = len(manifest["units"])
    return f"{count - len(missing_units(manifest, folder))} of {count} shards are in {folder}"
