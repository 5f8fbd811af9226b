"""The `output_dir` of a training: what an earlier run has left in it, whether it may be used, and how it is cleared.

What is there counts, not names alone: a table is a run's if it carries its stamp or the column `step`, and files of a
model are a run's only beside its state. Links are never followed.

Left out: what other commands and users write there (evaluations, reports, logs of trackers), which is never removed.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path

from ..errors import OptionError
from .checkpoints import checkpoints_of, is_whole, parsed_state, resume_value
from .files import of_another_run
from .record import FILE, read_run, run_of
from .tables import STEP_FOLDERS, is_step_table, step_tables

WEIGHTS = re.compile(r"(model|adapter_model|pytorch_model)\b.*\.(safetensors|bin)(\.index\.json)?")
STATE = ("trainer_state.json", FILE)  # removed last: they tell what else is of a run
OF_RUN = ("training_args.bin", "all_results.json", "train_results.json", "eval_results.json", *STATE)
OF_MODEL = (
    "config.json generation_config.json adapter_config.json tokenizer* special_tokens_map.json added_tokens.json "
    "vocab.* merges.txt chat_template.* *processor_config.json".split()
)
OF_CHECKPOINT = (
    "optimizer* scheduler* scaler* rng_state* latest zero_to_fp32.py global_step* pytorch_model_fsdp*".split()
)
CARD = re.compile(r"^(library_name: (transformers|peft)|- generated_from_trainer)$", re.MULTILINE)
NEW = "choose another --output_dir"
ANEW = "pass --overwrite_output_dir to start anew"


def check_output_dir(output_dir: str | Path, resume: str | bool | None, overwrite: bool, read: Iterable[str]) -> None:
    """Refuses an `output_dir` that holds a run, unless that run is resumed or may be overwritten; nothing is written.

    Args:
        output_dir (path): Where the training will write.
        resume (`str` or `bool`, *optional*): `resume_from_checkpoint`.
        overwrite (`bool`): `overwrite_output_dir`.
        read (iterable of `str`): Paths that the training reads; none of them may be among what is removed.

    Raises:
        OptionError: Says what is there, and what to do.
    """
    folder, resume = Path(output_dir), resume_value(resume)
    refuse_both(resume, overwrite)
    traces = list(traces_of(folder))
    if not traces or (resume and _resumes(folder, resume)):
        return
    told = {"": ", ".join(traces[:3]) + ", …" * (len(traces) > 3)}
    if resume is True:
        none = {"": f"{told['']}, but no checkpoint to resume from"}
        raise OptionError(of_another_run("files", none, NEW, ANEW), "resume_from_checkpoint", str(folder))
    if not overwrite:
        ways = (NEW, "resume with --resume_from_checkpoint true", ANEW)
        raise OptionError(of_another_run("files", told, *ways), "output_dir", str(folder))
    own = own_files(folder)
    if not own:
        detail = f"holds {told['']}, which no training has written there; {NEW}, or remove it yourself."
        raise OptionError(detail, "output_dir", str(folder))
    for path in read:
        if _overlaps(Path(path).resolve(), folder.resolve(), own):
            detail = f"--overwrite_output_dir would remove {path}, which is read; {NEW}."
            raise OptionError(detail, "overwrite_output_dir", str(folder))


def refuse_both(resume: str | bool | None, overwrite: bool) -> None:
    """Refuses to resume a run and to overwrite it."""
    if resume and overwrite:
        raise OptionError(
            "resume_from_checkpoint goes on with the run that overwrite_output_dir removes; leave one of them out.",
            "overwrite_output_dir",
        )


def _resumes(folder: Path, resume: str | bool) -> bool:
    """Whether the run of a folder is the one that is resumed.

    Without a checkpoint that was saved to the end, `True` starts anew, which must not take the place of a model.
    """
    if resume is True:
        return any(map(is_whole, checkpoints_of(folder).values())) or not any(_root_files(folder))
    checkpoint, run = Path(str(resume)), read_run(folder)
    resumed = run_of(parsed_state(checkpoint) or {})
    same = run is not None and resumed is not None and run.id == resumed.id
    return same or checkpoint.resolve().parent == folder.resolve()


def traces_of(folder: Path) -> Iterator[str]:
    """Yields what a run has left in a folder, in words; a record alone is of a run that failed at once."""
    for _, path in sorted(checkpoints_of(folder).items(), reverse=True):
        if path.is_dir() and _matching(path, (*OF_RUN, *OF_MODEL, *OF_CHECKPOINT)):
            yield path.name
    yield from _root_files(folder)
    for name in STEP_FOLDERS:
        if any(is_step_table(table.path) for table in step_tables(folder / name)):
            yield f"{name}/"


def _root_files(folder: Path) -> Iterator[str]:
    """Yields the names of a saved model's weights, and of the state of a finished training."""
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if WEIGHTS.fullmatch(path.name) or path.name == "trainer_state.json":
                yield path.name


def own_files(folder: Path) -> list[Path]:
    """Returns the files and folders that runs have written in a folder, in an order in which they may be removed; none
    if nothing there says that a training has written it.
    """
    checkpoints = list(checkpoints_of(folder).values())
    tables = [table.path for name in STEP_FOLDERS for table in step_tables(folder / name)]
    tables = [path for path in tables if not path.parent.is_symlink() and is_step_table(path)]
    trained = [folder, *checkpoints]
    if not ((folder / FILE).is_file() or tables or any(parsed_state(path) is not None for path in trained)):
        return []
    own = tables
    for checkpoint in checkpoints:
        if checkpoint.is_symlink():
            own.append(checkpoint)
        elif checkpoint.is_dir():
            own += _matching(checkpoint, (*OF_RUN, *OF_MODEL, *OF_CHECKPOINT))
    saved = any(WEIGHTS.fullmatch(path.name) for path in folder.iterdir())
    own += _matching(folder, (*OF_RUN, *OF_MODEL) if saved else OF_RUN)
    return sorted(own, key=lambda path: (path.name in STATE, path.parent == folder, path))


def _matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """The weights, the model card, and what the patterns match."""
    return [
        path
        for path in folder.iterdir()
        if WEIGHTS.fullmatch(path.name)
        or any(fnmatch(path.name, pattern) for pattern in patterns)
        or (path.name == "README.md" and path.is_file() and CARD.search(path.read_text("utf-8", "replace")))
    ]


def remove_run(output_dir: str | Path) -> None:
    """Removes what runs have written in a folder, and checkpoints' folders that are then empty; a link is removed, not
    followed.

    Empty folders of tables stay: TRL has made its own before the training begins.
    """
    folder = Path(output_dir)
    if not folder.is_dir():
        return
    for path in own_files(folder):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for path in checkpoints_of(folder).values():
        if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
            path.rmdir()


def _overlaps(path: Path, folder: Path, own: Iterable[Path]) -> bool:
    """Whether a path that is read is the folder, or among its files that are removed."""
    removed = [entry.parent.resolve() / entry.name for entry in own]
    inside = any(path == entry or path in entry.parents or entry in path.parents for entry in removed)
    return path == folder or (path.is_relative_to(folder) and inside)
