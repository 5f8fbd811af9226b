"""The folder of scores that `rs-rlhf score` writes: a plan, and one Parquet file of scores for each unit of the input.

`manifest.json` says what is scored, with what, and how the input is cut into units; the first process writes it once,
and a process with other settings is refused. A unit is done when its shard is there: shards are written atomically.
Who scores a unit holds a lock on `.locks/NNNNN`, which the kernel takes from a process that dies, so any number of
processes share the work and none waits in vain. The locks are `flock`s, some of them shared, which `filelock` has not:
machines that share a folder need a file system that passes them on (NFS does).

Left out: a list of who does what (the locks and shards are it), and shards of part of a unit.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..data.group import first_line
from ..data.image_text_dataset import ImageTexts, Unit, open_image_texts
from ..errors import DataError
from ..runs import files

VERSION = 1
SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("text_index", pa.int32()),
        ("score", pa.float32()),
        ("score_std", pa.float32()),  # of several models' scores; earlier versions' shards have none
        ("tokens", pa.int32()),
        ("image_hash", pa.string()),
        ("error", pa.string()),
        ("text", pa.string()),
        ("whole", pa.bool_()),
        ("source", pa.string()),
        ("label", pa.string()),
    ]
)
EXAMPLES = 3  # row ids that are named for each kind of error
_FACTS = b"rs_rlhf"  # key of a shard's facts in its Parquet metadata


@contextmanager
def planned(
    folder: Path, settings: Mapping[str, Any], units: Callable[[], Sequence[Unit]]
) -> Iterator[dict[str, Any]]:
    """Gives the folder's manifest (`version`, the settings, `units`); while it is held, no other plan replaces it.

    The first process writes it, and alone calls `units`. A plan with other settings is replaced if nothing was scored
    by it and no process holds it: it was a mistake. Otherwise a [`DataError`] names the settings; shards without a
    manifest and data without rows are one too.
    """
    settings = json.loads(json.dumps(settings))
    with ExitStack() as stack:
        with claimed(folder, "manifest", wait=True):
            manifest = _plan(folder, settings, units)
            stack.enter_context(claimed(folder, "running", wait=True, shared=True))
        yield manifest


def _plan(folder: Path, settings: Mapping[str, Any], units: Callable[[], Sequence[Unit]]) -> dict[str, Any]:
    path = folder / "manifest.json"
    started = any(folder.glob("scores-*.parquet"))
    if path.exists():
        manifest = read_manifest(folder)
        told = _differences(manifest, settings)
        if not told:
            return manifest
        with claimed(folder, "running") as free:
            if started or not free:
                ways = ("choose another --output", "set that back")
                raise DataError(files.of_another_run("scores", told, *ways), where=str(folder))
    elif started:
        raise DataError(
            "holds shards of scores but no manifest.json, which says of what; put it back or choose another --output",
            where=str(folder),
        )
    manifest = {"version": VERSION, **settings, "units": [asdict(unit) for unit in units()]}
    if not manifest["units"]:
        raise DataError("no rows; there is nothing to score", where=str(settings.get("input")))
    write_json(path, manifest)
    return manifest


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Reads what a folder's scores are of. `DataError`: no such file, a damaged one, or one of another version."""
    path = Path(folder) / "manifest.json"
    if not path.is_file():
        raise DataError(
            "no manifest.json; expected a folder that `rs-rlhf score --output` has written", where=str(folder)
        )
    manifest = files.read_json(path, "units", list, "`rs-rlhf score`")
    if manifest.get("version") != VERSION:
        raise DataError(
            f"is of version {manifest.get('version')!r}, this rs-rlhf reads {VERSION}; score anew with it",
            "version",
            str(path),
        )
    return manifest


def _differences(manifest: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, str]:
    old = {key: value for key, value in manifest.items() if key not in ("units", "version")}
    told = files.differences(old, settings)
    return told | ({"stamp": _changed_files(old.get("stamp"), settings["stamp"])} if "stamp" in told else {})


def _changed_files(old: Any, new: Any) -> str:
    then, now = dict(old or ()), dict(new)
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    sizes = [f"{name} ({then.get(name, 'not there')} then, {now.get(name, 'not there')} now)" for name in names[:3]]
    more = f" and {len(names) - 3} more" * (len(names) > 3)
    return f"the input's files differ in bytes: {', '.join(sizes)}{more}" if sizes else "the input's files differ"


def open_scored(folder: str | Path) -> ImageTexts:
    """Opens the input that a folder's scores are of; a [`DataError`] if it is gone, or has changed, so that the ids of
    its rows mean other rows.
    """
    manifest = read_manifest(folder)
    options = {name: manifest.get(name) for name in ("image_root", "columns")}
    source = open_image_texts(manifest["input"], manifest.get("split"), **options)
    stamp = json.loads(json.dumps(source.stamp))
    if stamp != manifest["stamp"]:
        raise DataError(
            f"{_changed_files(manifest['stamp'], stamp)}; the scores in {folder} are of what it was "
            "before: put it back or score anew",
            where=str(manifest["input"]),
        )
    return source


def shard_path(folder: str | Path, manifest: Mapping[str, Any], number: int) -> Path:
    """Returns the file of a unit's scores, whether it is there or not."""
    return Path(folder) / f"scores-{number:05d}-of-{len(manifest['units']):05d}.parquet"


def missing_units(manifest: Mapping[str, Any], folder: str | Path) -> list[int]:
    """Returns the numbers of the units that have no scores yet, in order."""
    names = set(os.listdir(folder))
    return [i for i in range(len(manifest["units"])) if shard_path(folder, manifest, i).name not in names]


def existing_shards(manifest: Mapping[str, Any], folder: str | Path) -> list[tuple[int, Path]]:
    """Returns the number and the file of each unit that has scores, in order."""
    missing = set(missing_units(manifest, folder))
    return [(i, shard_path(folder, manifest, i)) for i in range(len(manifest["units"])) if i not in missing]


def drop_damaged(manifest: Mapping[str, Any], folder: Path) -> list[Path]:
    """Removes shards that cannot be read or do not hold their unit, so that they are scored again; returns them."""
    dropped = []
    for number, path in existing_shards(manifest, folder):
        with claimed(folder, f"{number:05d}") as free:
            if free and not _holds(path, manifest["units"][number]["rows"]):
                path.unlink(missing_ok=True)
                dropped.append(path)
    return dropped


def _holds(shard: Path, rows: int) -> bool:
    """Whether a shard can be read and is of so many rows; -1 for a unit whose rows are not counted."""
    try:
        facts = shard_facts(read_shard(shard))
    except (DataError, ValueError):
        return False
    return "rows" in facts and rows in (-1, facts["rows"])


@contextmanager
def claimed(folder: Path, name: str, wait: bool = False, shared: bool = False) -> Iterator[bool]:
    """Holds a lock of the folder, which is made if needed; gives whether it was free.

    With `wait` it becomes free sooner or later. A `shared` lock is free for all who share it, and keeps others out.

    Raises:
        DataError: The file system has no locks, or cannot be written to.
    """
    path = folder / ".locks" / name
    with _writing(folder):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Never deleted: a process could still hold, or be about to take, the lock on the deleted file.
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield files.lock(handle, path, wait, shared)
    finally:
        os.close(handle)


def write_shard(shard: Path, lines: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> None:
    """Writes the scores of a unit, so that they are there whole or not at all, also after a power cut.

    The lines have the columns of [`SCHEMA`]. The file keeps the facts: `rows`, `texts`, `start`, `stop` (in seconds).

    Raises:
        DataError: It cannot be written, such as on a full disk; nothing of it is left.
    """
    table = pa.Table.from_pylist(lines, SCHEMA.with_metadata({_FACTS: json.dumps(facts).encode()}))
    with _writing(shard), files.replacing(shard, "wb") as file:
        pq.write_table(table, file, compression="zstd")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file whole or not at all. `DataError`: it cannot be written."""
    with _writing(path):
        files.write_json(path, content, indent=1)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot be written ({error.strerror or error}); finished shards are kept: mend that and run the same "
            "command again",
            where=str(path),
        ) from error


def read_shard(shard: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads the scores of one unit; the table's metadata hold its facts, see [`shard_facts`]. A damaged file is a
    [`DataError`].
    """
    wanted = SCHEMA.names if columns is None else list(columns)
    try:
        lacking = {"score_std"} - {*pq.read_schema(shard).names}
        table = pq.read_table(shard, columns=[name for name in wanted if name not in lacking], partitioning=None)
        for place in (place for place, name in enumerate(wanted) if name in lacking):
            table = table.add_column(place, SCHEMA.field(wanted[place]), pa.nulls(len(table), pa.float32()))
        return table
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"cannot be read ({first_line(error)}); delete it, and the same `rs-rlhf score` "
            "command scores its rows again",
            where=str(shard),
        ) from error


def shard_facts(table: pa.Table) -> dict[str, Any]:
    """Returns the facts of a shard, see [`write_shard`]."""
    return json.loads((table.schema.metadata or {}).get(_FACTS, b"{}"))


def read_scores(folder: str | Path, columns: Sequence[str] | None = None, *, partial: bool = False) -> pa.Table:
    """Reads all scores, or some columns of [`SCHEMA`], one line per text, in the order of the input.

    With `partial`, reads what is there of a run that is not finished.

    Raises:
        DataError: Scores are missing, unless `partial`; a shard is damaged; an unknown column.
    """
    manifest = read_manifest(folder)
    unknown = [name for name in columns or () if name not in SCHEMA.names]
    if unknown:
        raise DataError(f"scores have no column {unknown[0]!r}, only {', '.join(SCHEMA.names)}", unknown[0])
    shards, count = existing_shards(manifest, folder), len(manifest["units"])
    if len(shards) < count and not partial:
        missing = f"{count - len(shards)} of {count} shards are missing"
        raise DataError(f"{missing}; the same `rs-rlhf score` command resumes with them", where=str(folder))
    schema = SCHEMA if columns is None else pa.schema([SCHEMA.field(name) for name in columns])
    parts = [read_shard(path, columns) for _, path in shards]
    return pa.concat_tables([schema.empty_table(), *(part.replace_schema_metadata(None) for part in parts)])


def reason(error: str) -> str:
    """Returns an error without what differs from row to row: quoted names and numbers."""
    return re.sub(r"\d+", "N", re.sub(r"'[^']*'|\"[^\"]*\"", "'…'", error))


def summarize(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Counts what a finished folder holds, one shard at a time.

    Returns:
        `dict`: `rows`, `texts` (with a score), `failed_texts`, `errors` (by reason, the most frequent first: `count`,
        the `message` of the first, ids of the first `rows`), `seconds` in which at least one process was scoring,
        `texts_per_second` of all processes together, `process_seconds` (their sum) and `shards`.

    Raises:
        DataError: A shard is damaged.
    """
    rows = texts = failed = 0
    errors: dict[str, dict[str, Any]] = {}
    spans = []
    for i in range(len(manifest["units"])):
        table = read_shard(shard_path(folder, manifest, i), ["row_id", "error"])
        facts = shard_facts(table)
        rows += facts["rows"]
        spans.append((facts["start"], facts["stop"]))
        bad = table.filter(pc.is_valid(table["error"]))
        texts, failed = texts + len(table) - len(bad), failed + len(bad)
        for line in bad.to_pylist():
            kind = errors.setdefault(reason(line["error"]), {"count": 0, "message": line["error"], "rows": []})
            kind["count"] += 1
            kind["rows"] += [line["row_id"]] * (len(kind["rows"]) < EXAMPLES)
    seconds = _covered(spans)
    return {
        "rows": rows,
        "texts": texts,
        "failed_texts": failed,
        "errors": dict(sorted(errors.items(), key=lambda item: -item[1]["count"])),
        "seconds": round(seconds, 3),
        "texts_per_second": round((texts + failed) / max(seconds, 1e-9), 2),
        "process_seconds": round(sum(stop - start for start, stop in spans), 3),
        "shards": len(spans),
    }


def _covered(spans: Sequence[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
