"""Atomic files: texts, JSON and folders that are there whole or not at all, and logs of JSON lines to resume from.

A file is written beside its place under a name that ends in `.tmp`, brought to the disk, and then renamed, so that
neither a killed process nor a power cut leaves half of it. The name is the same each time, so that what a killed
process left is written over and nothing piles up. Left out: waiting for another writer of the same file.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ..errors import DataError

FILLING = ".rs-rlhf.new"  # the folder within a folder that is being filled, see [`filling_folder`]


@contextmanager
def replacing(path: Path, mode: str = "w", sync: bool = True) -> Iterator[IO[Any]]:
    """Opens a file that takes the place of `path` once it is whole and on the disk; after an error it is removed.

    Args:
        path (`Path`): The file; its folder is made.
        mode (`str`): `"w"` for UTF-8 text, in which a lone surrogate becomes a question mark, or `"wb"`.
        sync (`bool`): Wait for the disk; without, the file is safe from a kill but not from a power cut.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new, handle = _temporary(path)
    encoding, errors = (None, None) if "b" in mode else ("utf-8", "replace")
    with open(handle, mode, encoding=encoding, errors=errors) as file:
        try:
            yield file
            file.flush()
            if sync:
                os.fsync(handle)
            new.replace(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
    if sync:
        sync_folder(path.parent)


def _temporary(path: Path) -> tuple[Path, int]:
    """Opens the empty file that becomes `path`; of another name while another process writes the usual one."""
    new, flags = path.with_name(f".{path.name}.rs-rlhf.tmp"), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(new, flags, 0o666)
    try:
        if lock(handle, new, wait=False) and os.path.samestat(os.fstat(handle), os.stat(new)):
            os.ftruncate(handle, 0)
            return new, handle
    except FileNotFoundError:  # renamed before it was locked
        pass
    except DataError:  # a file system without locks, where nobody writes this one
        new.unlink(missing_ok=True)
    os.close(handle)
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    return new, os.open(new, flags | os.O_EXCL, 0o666)


def write_text(path: Path, text: str) -> None:
    """Writes a text file as [`replacing`] does."""
    with replacing(path) as file:
        file.write(text)


def write_json(path: Path, content: object, indent: int = 2) -> None:
    """Writes a JSON file as [`replacing`] does."""
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


def read_json(path: Path, key: str, kind: type, writer: str) -> dict[str, Any]:
    """Reads a JSON object whose `key` is of a kind; a [`DataError`] names a file that `writer` has not left so."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"not whole JSON ({error}); put it back, or run {writer} anew", where=str(path)) from None
    if not isinstance(content, dict) or not isinstance(content.get(key), kind):
        raise DataError(f"no `{key}`, expected what {writer} has written; put it back", key, str(path))
    return content


def sync_folder(folder: Path) -> None:
    """Brings a folder's entries to the disk: only then is a rename safe from a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Gives an empty folder that takes the place of `folder` once it is whole; after an error it is removed."""
    place = folder.resolve()
    new, old = (place.with_name(f".{place.name}.{mark}") for mark in ("new", "old"))
    try:
        shutil.rmtree(new, ignore_errors=True)  # of a process that was killed
        new.mkdir(parents=True)
        yield new
        if place.exists():
            shutil.rmtree(old, ignore_errors=True)
            place.rename(old)
        new.rename(place)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


@contextmanager
def filling_folder(folder: Path) -> Iterator[Path]:
    """Gives an empty folder whose files are then moved to `folder`; other files there stay.

    Weights that are replaced are removed first and come last, so that what a killed process leaves holds no weights,
    and nobody loads it.
    """
    new = folder / FILLING
    try:
        shutil.rmtree(new, ignore_errors=True)  # of a process that was killed
        new.mkdir(parents=True)
        yield new
        move_files(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def move_files(new: Path, folder: Path) -> None:
    """Moves the files of a folder into another on the same disk, weights last, see [`filling_folder`]."""
    files = [path.relative_to(new) for path in new.rglob("*") if not path.is_dir()]
    weights = [file for file in files if file.name.endswith((".safetensors", ".safetensors.index.json"))]
    weights.sort(key=lambda file: file.suffix == ".json")  # the list of shards after them
    for file in weights[::-1]:
        (folder / file).unlink(missing_ok=True)
    for file in [*(file for file in files if file not in weights), *weights]:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (new / file).replace(folder / file)


def lock(handle: int, path: Path, wait: bool = True, shared: bool = False) -> bool:
    """Locks an open file or folder until it is closed; returns whether it was free, always `True` with `wait`.

    A `shared` lock is free for all who share it. A file system without locks is a [`DataError`].
    """
    import fcntl

    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        raise DataError(
            f"the file system gives no lock ({error.strerror}); choose an --output on another one", where=str(path)
        ) from error
    return True


# --- JSON lines ---------------------------------------------------------------------------------------------------


def json_lines(records: Iterable[Mapping[str, Any]]) -> str:
    """Returns records as JSON, one a line."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def append_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Appends records in one write that is on the disk when this returns; a kill leaves at most one torn line.

    What a full disk lets through of them is taken back, so that later records begin a line of their own.
    """
    with path.open("ab", buffering=0) as file:
        size, content = os.fstat(file.fileno()).st_size, json_lines(records).encode("utf-8", "replace")
        try:
            while content:
                content = content[file.write(content) :]
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads a file of JSON objects, one a line; a [`DataError`] names the line that is not one."""
    return [
        _object(line, path, number) for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1)
    ]


def _object(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise DataError("not a whole JSON object; delete the line and run again.", where=f"{path}, line {number}")
    return record


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Returns in words what differs between the settings of an earlier run and those of today, by key.

    Keys of inner objects are joined by dots. A name whose files have a hash beside it (`model` and `model_hash`) may
    change if the hash does not: the same files lie elsewhere.
    """
    found: dict[str, str] = {}
    for key in {**old, **new}:
        then, now = old.get(key), new.get(key)
        hashes = [(old.get(f"{key}_{name}"), new.get(f"{key}_{name}")) for name in ("hash", "stamp")]
        if isinstance(then, Mapping) and isinstance(now, Mapping):
            found |= differences(then, now, f"{prefix}{key}.")
        elif then != now and not any(first is not None and first == last for first, last in hashes):
            found[prefix + key] = f"{prefix}{key} was {then!r:.80}, now {now!r:.80}"
    return found


def of_another_run(what: str, told: Mapping[str, str], *ways: str) -> str:
    """Returns the sentence that refuses a place which holds another run's work; `ways` are out of it.

    Example:
        >>> of_another_run("scores", {"seed": "seed was 0, now 1"}, "choose another --output", "set that back")
        'holds scores of another run: seed was 0, now 1; choose another --output, or set that back.'
    """
    return f"holds {what} of another run: {', '.join(told.values())}; {', '.join(ways[:-1])}, or {ways[-1]}."


def cut_torn_line(path: Path, begins: bytes = b'{"settings": ') -> None:
    """Cuts off the half line that a killed process may have left at the end of a log.

    A file that does not begin as such a log does is somebody else's: it stays as it is, and is a [`DataError`].
    """
    content = path.read_bytes()
    if not content.startswith(begins[: len(content)]):
        raise DataError("not the log of a run of rs-rlhf; move it away, or choose another output.", where=str(path))
    os.truncate(path, content.rfind(b"\n") + 1)
