"""Atomic files: texts, JSON and folders that are there whole or not at all, and logs of JSON lines to resume from.

A file is written beside its place under a name that ends in `.tmp`, brought to the disk, and then renamed, so that
neither a killed process nor a power cut leaves half of it. Left out: locks (`filelock`).
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ..errors import DataError


@contextmanager
def replacing(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Opens a file that takes the place of `path` once it is whole and on the disk; after an error it is removed.

    Args:
        path (`Path`): The file; its folder is made.
        mode (`str`): `"w"` for UTF-8 text, in which a lone surrogate becomes a question mark, or `"wb"`.
    """
    new = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    encoding, errors = (None, None) if "b" in mode else ("utf-8", "replace")
    try:
        with new.open(mode, encoding=encoding, errors=errors) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    sync_folder(path.parent)


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


def drop_leftovers(path: Path) -> None:
    """Removes what killed processes left of a file; only for who alone writes it."""
    for left in path.parent.glob(f"{glob.escape(path.name)}.????????.tmp"):
        left.unlink(missing_ok=True)


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


# --- JSON lines ---------------------------------------------------------------------------------------------------


def json_lines(records: Iterable[Mapping[str, Any]]) -> str:
    """Returns records as JSON, one a line."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def append_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Appends records in one write that is on the disk when this returns; a kill leaves at most one torn line."""
    with path.open("ab") as file:
        file.write(json_lines(records).encode("utf-8", "replace"))
        file.flush()
        os.fsync(file.fileno())


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


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Returns in words what differs between the settings that a log was begun with and those of today, by key."""
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return {key: f"{key} was {old.get(key)!r:.60}, now {new.get(key)!r:.60}" for key in keys}


def cut_torn_line(path: Path) -> None:
    """Cuts off the half line that a killed process may have left at the end of a log."""
    content = path.read_bytes()
    os.truncate(path, content.rfind(b"\n") + 1)
