"""`rs-rlhf score`: a score for every text of image-text data, with a score model, a CLIP, or a baseline.

The same command may be started any number of times: by `accelerate launch -m rs_rlhf score …`, by hand, on several
machines that share the folder. Each process takes units of the input that nobody else has (`score_files`), reads
their rows, scores them in one go, so that texts of similar length share batches, and writes one file. Processes never
speak to each other; one that dies is replaced by the others, or by the next start.

Left out: torch.distributed, and models that need several GPUs (set `device_map` in your own script on [`Scorer`]).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..errors import DataError, OptionError
from ..imagery.arguments import ImageArguments, add_image_flags, image_options_from
from ..scoring.load import (
    READ_BY,
    READING_FLAGS,
    ScorerOptions,
    load_scorer,
    process_device,
    scorer_settings,
    token_counter,
)

NOT_READ = ("image_hosts",)  # image-text rows have no URLs


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `rs-rlhf score`; returns 0, or 130 after Ctrl-C."""
    parser = _parser()
    args = parser.parse_args(argv)
    _check(args, parser)
    try:
        _run(args)
    except KeyboardInterrupt:
        from ..curation.worker import is_first

        if is_first():
            print(f"\nrs-rlhf score: stopped; {_standing(args.output)}. The same command goes on.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rs-rlhf score",
        description="Score every text of image-text data. Start it on as many processes and machines as there are, "
        "with `accelerate launch -m rs_rlhf score …` or by hand: they share the work. Stopped, it goes on.",
    )
    add = parser.add_argument
    add("--input", required=True, help="Parquet, JSONL, JSON, CSV or WebDataset file, or a folder of them")
    add("--split", help="split of a folder (default: all of it)")
    add(
        "--output",
        "--output_dir",
        "--output-dir",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the scores",
    )
    add(
        "--scorer",
        choices=("model", "clip", "length", "random"),
        default="model",
        help="what scores: a score model (default), a CLIP, the number of words, or chance",
    )
    add("--model", help="folder, hub id, or name in reward_models/ (score models)")
    add(
        "--rows_per_shard",
        "--rows-per-shard",
        type=int,
        default=2048,
        help="rows scored together and written to one file; they are in memory at once (default: 2048)",
    )
    add(
        "--num_workers",
        "--num-workers",
        type=int,
        default=2,
        help="threads that read images and lay out batches (default: 2)",
    )
    add("--token_budget", "--token-budget", type=int, default=4096, help="tokens of a batch at most (default: 4096)")
    for name in ("min_pixels", "max_pixels"):
        text = ImageArguments.__dataclass_fields__[name].metadata["help"]
        add(f"--{name}", f"--{name.replace('_', '-')}", type=int, help=text)
    add("--prompt_form", "--prompt-form", help="question-answer, empty-question or user-turn (default: the model's)")
    add("--dtype", help="such as bfloat16 (default: the checkpoint's)")
    add("--seed", type=int, default=0, help="seed of --scorer random (default: 0)")
    add(
        "--max_error_fraction",
        "--max-error-fraction",
        type=float,
        default=0.05,
        help="stop when more than this share of the rows cannot be scored (default: 0.05)",
    )
    add("--limit", type=int, help="only the first rows")
    add("--image_column", "--image-column", help="column of the images (default: told by its name)")
    add("--text_column", "--text-column", help="column of the texts (default: told by its name)")
    add_image_flags(parser, without=NOT_READ)
    return parser


def scorer_options(args: argparse.Namespace) -> ScorerOptions:
    """Returns the part of the arguments that says what scores."""
    return ScorerOptions(**{field.name: getattr(args, field.name) for field in fields(ScorerOptions)})


def _check(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuses what cannot be run or would be ignored."""
    scorer_options(args).check()
    for name in READING_FLAGS:
        if args.scorer not in READ_BY["dtype"] and getattr(args, name) != parser.get_default(name):
            raise OptionError(f"--{name} is not read with --scorer {args.scorer}; leave it out.", name)
    for name, least in (("rows_per_shard", 1), ("limit", 1)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            raise OptionError(f"--{name} is {getattr(args, name)}, expected at least {least}.", name)
    if not 0 <= args.max_error_fraction <= 1:
        raise OptionError(f"--max_error_fraction is {args.max_error_fraction}, expected a number from 0 to 1.")
    if args.output.resolve() in (Path(args.input).resolve(), Path(args.input, "data").resolve()):
        raise OptionError(
            f"--output {args.output} is where --input {args.input} is read from: scores would be taken "
            "for data; choose another folder."
        )


def _run(args: argparse.Namespace) -> None:
    from ..curation.shards import missing_units, planned
    from ..curation.worker import Work
    from ..data.image_text_dataset import open_image_texts

    options = scorer_options(args)
    source = open_image_texts(
        args.input,
        args.split,
        image_root=args.image_root,
        image_column=args.image_column,
        text_column=args.text_column,
    )
    settings = {
        "input": os.path.abspath(args.input) if os.path.exists(args.input) else args.input,
        "split": args.split,
        "image_root": None if args.image_root is None else os.path.abspath(args.image_root),
        "image_column": args.image_column,
        "text_column": args.text_column,
        "limit": args.limit,
        "rows_per_shard": args.rows_per_shard,
        "scorer": scorer_settings(options, image_options_from(args)),
        "stamp": source.stamp,
    }

    def units() -> list[Any]:
        return limited(source.units(args.rows_per_shard), args.limit, args.input)

    if (args.output / "manifest.json").exists():  # nothing is loaded where the run is refused, or finished
        with planned(args.output, settings, units) as manifest:
            finished = not missing_units(manifest, args.output)
        if finished:
            return _conclude(args.output)
    # Without a root: paths have been resolved inside theirs by now. Nothing is written if it cannot be loaded.
    reading = replace(image_options_from(args), image_root=None)
    scorer = load_scorer(options, reading, process_device())
    with planned(args.output, settings, units) as manifest:
        Work(
            source, manifest, args.output, scorer, token_counter(scorer), args.num_workers, args.max_error_fraction
        ).run()
    _conclude(args.output)


def limited(units: Sequence[Any], limit: int | None, name: str) -> list[Any]:
    """Returns the units that hold the first `limit` rows.

    Raises:
        DataError: It is not known how many rows a unit has.
    """
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


def scorer_arguments(options: Mapping[str, Any]) -> argparse.Namespace:
    """Returns the command's arguments for options given by name, such as `{"model": "out/score-model"}`.

    Raises:
        OptionError: An option that the command does not know, or would refuse.
    """
    parser = _parser()
    columns = ("image_column", "text_column")
    known = {*(field.name for field in fields(ScorerOptions)), *READING_FLAGS, *columns}
    for name in options:
        if name not in known:
            raise OptionError(f"{name!r} is no option of a scorer; choose from {', '.join(sorted(known))}.", name)
    args = parser.parse_args(["--input", "input", "--output", "output"])
    vars(args).update(options)
    _check(args, parser)
    return args


# --- what is told ---------------------------------------------------------------------------------------------------


def _conclude(folder: Path) -> None:
    """Writes the summary of a finished run, unless another process has, and prints it."""
    from .. import __version__
    from ..curation.shards import claimed, read_manifest, summarize, write_json
    from ..curation.worker import is_first

    path = folder / "summary.json"
    with claimed(folder, "summary", wait=True):
        if not path.exists():
            write_json(path, {**summarize(folder, read_manifest(folder)), "rs_rlhf": __version__})
        summary = json.loads(path.read_text(encoding="utf-8"))
    if is_first():
        print(summary_text(summary, folder))


def summary_text(summary: Mapping[str, Any], folder: Path) -> str:
    """Returns a summary in words."""
    failed = f", {summary['failed_texts']} could not be" if summary["failed_texts"] else ""
    lines = [
        f"{summary['rows']} rows: {summary['texts']} texts scored in {summary['seconds']:.1f} s "
        f"({summary['texts_per_second']:.4g} texts/s){failed} -> {folder}"
    ]
    lines += [f"  {one['count']} as {one['rows'][0]}: {one['message']}" for one in summary["errors"].values()]
    return "\n".join(lines)


def _standing(folder: Path) -> str:
    from ..curation.shards import missing_units, read_manifest

    if not (folder / "manifest.json").is_file():
        return "nothing was scored yet"
    manifest = read_manifest(folder)
    count = len(manifest["units"])
    return f"{count - len(missing_units(manifest, folder))} of {count} shards are in {folder}"
