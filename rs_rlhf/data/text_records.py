"""Records of JSON lines, JSON lists and CSV files, one by one, with the bytes they were read from.

A file may be larger than memory and is never read whole. Reading can start at any record whose byte offset is known,
and rows can be written back exactly as they were.

Left out: compressed files, encodings other than UTF-8, and lists nested in objects (COCO's `annotations`).
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import IO, Any, NamedTuple

from ..errors import DataError
from .group import first_line, short

CHUNK_BYTES = 2**20
_BOM = codecs.BOM_UTF8
_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")
_SEPARATOR = re.compile(r'"?sep=(.)"?\r?\n')  # a line that Excel writes and reads before the header


class Record(NamedTuple):
    """A record's byte offset in the file, its bytes, its value ([`DataError`] if unreadable), and its line (JSON
    lines).
    """

    start: int
    raw: bytes
    value: Any
    line: int = -1


def first_byte(path: Path) -> bytes:
    """Returns the first byte of a text file that is not white space, `b""` if there is none near its start."""
    with path.open("rb") as stream:
        return stream.read(4096).removeprefix(_BOM).lstrip()[:1]


def check_text(path: Path) -> None:
    """Raises [`DataError`] if a text file is not UTF-8, or a JSON file of the other layout than its suffix says."""
    with path.open("rb") as stream:
        head = stream.read(4096)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in head:
        raise DataError("is not UTF-8 text (UTF-16, or no text at all); save it as UTF-8")
    first = first_byte(path)
    if path.suffix.lower() == ".jsonl" and first == b"[":
        raise DataError("is a list, expected one object a line; rename it to .json")
    if path.suffix.lower() == ".json" and first not in (b"[", b""):
        advice = "rename a file with one object a line to .jsonl, or write the rows as a list"
        raise DataError(f"is not a JSON list of rows; {advice}")


def text_records(path: Path, start: int = 0, stop: int = -1, parse: bool = True) -> Iterator[Record]:
    """Yields the records of a text file, as the function for its suffix does.

    `start` is 0 or the byte offset of a record, `stop` the one where the last record ends, -1 for the end of the file.
    `parse` says whether the values of JSON lines are wanted.
    """
    if path.suffix.lower() == ".jsonl":
        return jsonl_records(path, start, stop, parse)
    return (json_records if path.suffix.lower() == ".json" else csv_records)(path, start, stop)


def jsonl_records(path: Path, start: int = 0, stop: int = -1, parse: bool = True) -> Iterator[Record]:
    """Yields the lines that are not blank, `raw` with its line break; arguments as for [`text_records`]."""
    with path.open("rb") as stream:
        stream.seek(start)
        offset = start
        for number in count(1):
            line = stream.readline() if stop < 0 or offset < stop else b""
            if not line:
                return
            if line.strip() and line.rstrip() != _BOM:
                yield Record(offset, line, parsed_line(line, offset) if parse else None, number)
            offset += len(line)


def parsed_line(line: bytes, offset: int) -> Any:
    """Returns the value of a line of JSON, or a [`DataError`] that says where in the file it is damaged."""
    try:
        return json.loads(line.removeprefix(_BOM).decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        return DataError(f"not JSON ({first_line(error)}), at byte {offset} of the file; write one object a line")


class _Window:
    """The part of a text file that has been read: `text[at:]` begins at byte `offset`."""

    def __init__(self, stream: IO[bytes], start: int, stop: int) -> None:
        stream.seek(start)
        self.stream, self.left = stream, stop - start if stop >= 0 else -1
        self.decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.text, self.at, self.offset, self.ended = "", 0, start, False

    def more(self) -> None:
        """Reads at least a chunk, and doubles the window, so that a long record is not parsed too often."""
        size = max(CHUNK_BYTES, len(self.text) - self.at)
        chunk = self.stream.read(size if self.left < 0 else min(size, self.left))
        self.left -= len(chunk) if self.left >= 0 else 0
        self.ended = not chunk
        self.text, self.at = self.text[self.at :] + self.decoder.decode(chunk, self.ended), 0

    def take(self, end: int) -> bytes:
        """Moves to position `end` and returns the bytes up to there."""
        raw = self.text[self.at : end].encode("utf-8", "surrogateescape")
        self.at, self.offset = end, self.offset + len(raw)
        return raw

    def peek(self) -> str:
        """Moves to the next character that is not white space and returns it, `""` at the end."""
        while True:
            end = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
            self.offset, self.at = self.offset + end - self.at, end
            if end < len(self.text) or self.ended:
                return self.text[end : end + 1]
            self.more()


def json_records(path: Path, start: int = 0, stop: int = -1) -> Iterator[Record]:
    """Yields the elements of a JSON list; arguments as for [`text_records`].

    [`DataError`] if the file is no list, or cut short or damaged; earlier elements have been yielded by then.
    """
    with path.open("rb") as stream:
        window = _Window(stream, start, stop)
        if start == 0:
            if window.peek() == "\ufeff":
                window.take(window.at + 1)
            if window.peek() != "[":
                raise DataError(f"holds {short(window.text[:40])}, expected a list of rows")
            window.take(window.at + 1)
        following = window.peek()
        while start > 0 or following != "]":
            window.peek()
            value, end = _element(window)
            yield Record(window.offset, window.take(end), value)
            following = window.peek()
            if stop >= 0 and window.offset >= stop:
                return
            if following not in (",", "]"):
                raise _damaged(window, "expected a comma or the end of the list")
            if following == "]":
                break
            window.take(window.at + 1)
        window.take(window.at + 1)
        if window.peek():
            raise _damaged(window, "text after the end of the list")


def _element(window: _Window) -> tuple[Any, int]:
    """The next value and where it ends in the window's text, which grows until the value is whole."""
    while True:
        try:
            value, end = _DECODER.raw_decode(window.text, window.at)
            # A number could continue in the next chunk, after a dot or "e+" that is not parsed as part of it.
            if window.ended or end < len(window.text) - 4 or window.text[end : end + 1] in (*",] \t\r\n",):
                return value, end
        except json.JSONDecodeError as error:
            # More text can only mend an error at the end of the window, or in an unterminated string.
            late = error.pos >= len(window.text) - 16 or error.msg.startswith("Unterminated string")
            if window.ended or not late:
                raise _damaged(window, str(error.msg)) from None
        except RecursionError:
            raise _damaged(window, "nested too deeply") from None
        window.more()


def _damaged(window: _Window, what: str) -> DataError:
    advice = "the file is damaged or was cut short, write it again"
    return DataError(f"not JSON in the row at byte {window.offset} ({what}); {advice}")


class CsvHead(NamedTuple):
    """The head of a CSV file: its columns (`""`: without a name), the delimiter, its bytes."""

    columns: list[str]
    delimiter: str
    raw: bytes


def csv_head(path: Path) -> CsvHead:
    """Reads the header; [`DataError`] if that is not possible, or two columns have one name.

    The delimiter is what a line `sep=` before the header names, else the comma, tab or semicolon that it has most of.
    A tab that a `.tsv` has comes first.
    """
    with path.open("rb") as stream:
        first = stream.readline(CHUNK_BYTES)
    line = first.removeprefix(_BOM).decode("utf-8", "surrogateescape")
    separator = _SEPARATOR.fullmatch(line)
    tabs = path.suffix.lower() == ".tsv" and "\t" in line
    delimiter = separator[1] if separator else "\t" if tabs else max(",\t;", key=line.count)
    skipped = first if separator else b""
    record = next(_csv_rows(path, len(skipped), -1, delimiter), None)
    if record is None or isinstance(record.value, DataError):
        raise DataError("the first line cannot be read as the header of a CSV file; write the names of the columns")
    columns = [column.strip() for column in record.value]
    twice = next((column for column in columns if column and columns.count(column) > 1), None)
    if twice is not None:
        raise DataError(f"two columns are named {twice!r}; rename one of them", twice)
    return CsvHead(columns, delimiter, skipped + record.raw)


def csv_records(path: Path, start: int = 0, stop: int = -1) -> Iterator[Record]:
    """Yields the records after the header, line breaks in quotes respected; `raw` with its line break.

    An empty field is null, as for `pandas` and `datasets`. A column without a name, such as the index that `pandas`
    writes, is left out of the values.

    Arguments are as for [`text_records`]. A quoted field that does not end raises [`DataError`].
    """
    head = csv_head(path)
    for record in _csv_rows(path, start or len(head.raw), stop, head.delimiter):
        value = record.value
        if isinstance(value, list) and len(value) == len(head.columns):
            named = zip(head.columns, value, strict=True)
            value = {column: text or None for column, text in named if column}
        elif isinstance(value, list):
            expected = f"expected the {len(head.columns)} of the header ({', '.join(head.columns)})"
            value = DataError(f"{len(value)} fields, {expected}; put texts with a {head.delimiter!r} in quotes")
        yield record._replace(value=value)


def _csv_rows(path: Path, start: int, stop: int, delimiter: str) -> Iterator[Record]:
    """Records as lists of fields; a record's bytes are those of the lines that `csv` asked for."""
    taken: list[bytes] = []
    ended = False
    with path.open("rb") as stream:
        stream.seek(start)
        offset = start

        def lines() -> Iterator[str]:
            nonlocal ended
            position = start
            while stop < 0 or position < stop:
                line = stream.readline()
                if not line:
                    break
                position += len(line)
                taken.append(line)
                yield (line.removeprefix(_BOM) if position == len(line) else line).decode("utf-8", "surrogateescape")
            ended = True

        reader = csv.reader(lines(), delimiter=delimiter)
        while True:
            taken.clear()
            value: Any
            try:
                value = next(reader, None)
            except csv.Error as error:
                reason = first_line(error)
                if len(taken) > 1:
                    raise DataError(f"the record at byte {offset} does not end ({reason}); close its quote") from None
                value = DataError(f"not CSV ({reason}), at byte {offset} of the file; correct the line")
            if value is None:
                return
            if ended:  # the last record asked for another line, so it is still inside a quote
                quoted = f"the quoted field of the record at byte {offset}"
                raise DataError(f"ends inside {quoted}; the file was cut short, or close the quote")
            raw = b"".join(taken)
            if value:  # blank lines are no records
                yield Record(offset, raw, value)
            offset += len(raw)
