"""One benchmark put to one model: batches out, records in, killed and gone on with, on any number of processes.

A run appends what the model said to `samples_TASK.part-RANK.jsonl`, one line a question and one write a batch. Which
questions share a batch is decided by the data and the options alone, and a batch that is not whole is answered again,
so a run that was killed, or goes on with another number of processes, gives the answers that one process gives in one
go. When all is answered the parts become `samples_TASK.jsonl`, in the order of the data. Verdicts are made from the
stored answers each time: the same command, run again, judges anew and asks the model nothing.

Left out: work stealing between processes (batches are dealt out in turn), and files of several machines without a
shared folder.
"""

from __future__ import annotations

import glob
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.group import prompt_text
from ..data.questions import QuestionRow
from ..errors import DataError, OptionError
from ..runs.files import append_lines, cut_torn_line, json_lines, read_lines, replacing, write_json
from ..runs.progress import progress

Raw = dict[str, Any]
Batches = Iterator[tuple[list[int], list[Raw]]]


def _same(records: list[Raw]) -> list[Raw]:
    return records


@dataclass
class Protocol:
    """How a benchmark is put to a kind of model.

    Args:
        answer (callable): `(rows, share, done)` -> batches of `(places, what the model said)`: every `share[1]`-th
            batch from the `share[0]`-th on, without those whose places are all in `done`.
        judge (callable): `(row, said)` -> the fields of the record that say whether it is right.
        figures (callable): Records -> `n`, `accuracy`, `interval` and what else the task reports.
        load (callable): Loads the model; called before the first question is timed, if any is to be asked.
        finish (callable): What needs all records at once: records -> records, as many.
        settings (`dict`): What the answers depend on beside the data.
    """

    answer: Callable[[Sequence[QuestionRow], tuple[int, int], set[int]], Batches]
    judge: Callable[[QuestionRow, Raw], Raw]
    figures: Callable[[list[Raw]], dict[str, Any]]
    load: Callable[[], Any]
    finish: Callable[[list[Raw]], list[Raw]] = _same
    settings: dict[str, Any] = field(default_factory=dict)


def run_task(
    name: str,
    rows: Sequence[QuestionRow],
    protocol: Protocol,
    out: Path,
    settings: Mapping[str, Any],
    *,
    state: Any,
    overwrite: bool = False,
) -> tuple[list[Raw], dict[str, Any]] | None:
    """Answers a benchmark's questions, or those of them that are not answered yet, and judges all answers.

    Args:
        name (`str`): The task's name; it names the files.
        rows (sequence of [`QuestionRow`]): The questions, ids distinct.
        protocol ([`Protocol`]): How they are put to the model.
        out (`Path`): Folder of the output.
        settings (`dict`): What the answers depend on: model, data, options. Answers of other settings are refused.
        state (`accelerate.PartialState`): The processes.
        overwrite (`bool`): Begin anew where the answers are of other settings.

    Returns:
        `tuple`: the records and the figures, on the first process; `None` on the others.

    Raises:
        ValueError: Answers of other settings are there, or a file is damaged; says which and what to do.
    """
    settings = json.loads(json.dumps({**settings, **protocol.settings}))
    if state.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        _prepare(name, rows, out, settings, overwrite)
    state.wait_for_everyone()
    place = {row.id: i for i, row in enumerate(rows)}
    done = {place[record["id"]] for record in _stored(name, out, place)}
    state.wait_for_everyone()  # no process appends before all have read
    share = (state.process_index, state.num_processes)
    if len(done) < len(rows):
        part = out / f"samples_{name}.part-{share[0]}.jsonl"
        protocol.load()
        left = -(-(len(rows) - len(done)) // share[1])
        with progress(left, 0, name) if state.is_main_process else nullcontext(lambda _: None) as advance:
            start = time.perf_counter()
            for places, said in protocol.answer(rows, share, done):
                seconds = (time.perf_counter() - start) / len(places)
                new = [(i, one) for i, one in zip(places, said, strict=True) if i not in done]
                _append(part, settings, [_record(rows[i], one, round(seconds, 4)) for i, one in new])
                advance(len(new))
                start = time.perf_counter()
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    return _conclude(name, rows, protocol, out, place)


def _conclude(
    name: str, rows: Sequence[QuestionRow], protocol: Protocol, out: Path, place: Mapping[str, int]
) -> tuple[list[Raw], dict[str, Any]]:
    """Makes one file of the parts, in the order of the data, with the verdicts; and the figures."""
    found = {record["id"]: record for record in _stored(name, out, place)}
    missing = [row.id for row in rows if row.id not in found]
    if missing:
        raise OptionError(f"{name}: {len(missing)} questions have no answer, such as {missing[0]}; run it again.")
    records = protocol.finish([found[row.id] for row in rows])
    records = [{**record, **protocol.judge(row, record)} for row, record in zip(rows, records, strict=True)]
    path = out / f"samples_{name}.jsonl"
    with replacing(path) as file:
        file.write(json_lines(records))
    return records, protocol.figures(records)


def drop_parts(name: str, out: Path) -> None:
    """Removes the parts of a task: to be called once its figures are on the disk too."""
    for part in _parts(name, out):
        part.unlink()


def _append(part: Path, settings: Mapping[str, Any], records: Sequence[Raw]) -> None:
    """Appends a batch in one write, on the disk when it returns; the first one also says of which settings it is."""
    head: list[Mapping[str, Any]] = [] if part.exists() else [{"settings": settings}]
    append_lines(part, [*head, *records])


def _record(row: QuestionRow, said: Raw, seconds: float) -> Raw:
    from .reader import references_of

    return {
        "id": row.id,
        "prompt": prompt_text(row.group.prompt),
        **said,
        "references": references_of(row),
        "types": list(row.columns.get("types") or []),
        "image": _image_path(row),
        "seconds": seconds,
    }


def _image_path(row: QuestionRow) -> str | None:
    """Where a question's (first) image lies; an image inside a Parquet file has no place of its own."""
    image = next(iter(row.group.images), None)
    return os.path.abspath(image) if isinstance(image, str) else None


def _parts(name: str, out: Path) -> list[Path]:
    return sorted(out.glob(f"samples_{glob.escape(name)}.part-*.jsonl"))


def _prepare(name: str, rows: Sequence[QuestionRow], out: Path, settings: Mapping[str, Any], overwrite: bool) -> None:
    """Cuts off half-written lines, and refuses or removes answers of other settings."""
    whole = out / f"samples_{name}.jsonl"
    stored = read_results(out)["tasks"].get(name, {})
    begun = [(whole, stored.get("settings"))] if whole.exists() and stored else []
    for part in _parts(name, out):
        cut_torn_line(part)
        if not part.stat().st_size:
            part.unlink()  # killed before the first batch was whole
            continue
        begun.append((part, _first_line(part).get("settings")))
    for path, old in begun:
        if old == settings:
            continue
        if not overwrite:
            raise OptionError(
                f"{path} holds answers of another run: {_difference(old, settings)}; choose another "
                "--out, set that back, or pass --overwrite."
            )
        path.unlink()
        if path == whole:
            with results_of(out) as results:
                results["tasks"].pop(name)
    if whole.exists() and not stored:
        if not (_parts(name, out) or overwrite):
            raise OptionError(
                f"{whole} is there, but results.json does not say of which run; choose another --out, or pass "
                "--overwrite to answer anew."
            )
        whole.unlink()  # killed before the figures were written: the parts are still there


def _first_line(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as lines:
            return dict(json.loads(next(lines)))
    except (ValueError, TypeError):
        raise OptionError(f"{path}, line 1: not the settings of a run; delete the file and run again.") from None


def _difference(old: Any, new: Mapping[str, Any]) -> str:
    if not isinstance(old, Mapping):
        return "it does not say of which"
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(f"{key} was {old.get(key)!r:.60}, now {new.get(key)!r:.60}" for key in keys)


def _stored(name: str, out: Path, place: Mapping[str, int]) -> Iterator[Raw]:
    """Yields the records of a task that are on the disk."""
    files: Iterable[Path] = _parts(name, out)
    whole = out / f"samples_{name}.jsonl"
    for path in [*files, *([whole] if whole.exists() else [])]:
        for number, record in enumerate(read_lines(path), start=1):
            if path != whole and number == 1:
                continue
            if record.get("id") not in place:
                raise OptionError(
                    f"{path}, line {number}: the data has no question {record.get('id')!r}; the file is of another "
                    "version of the data: choose another --out or pass --overwrite."
                )
            yield record


@contextmanager
def results_of(out: Path) -> Iterator[dict[str, Any]]:
    """Gives a folder's `results.json` to be changed and writes it back; other runs into the folder wait meanwhile.

    Raises:
        DataError: The file is damaged.
    """
    import fcntl

    out.mkdir(parents=True, exist_ok=True)
    path = out / "results.json"
    lock = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        results = read_results(out)
        yield results
        write_json(path, results)
    finally:
        os.close(lock)


def read_results(out: Path) -> dict[str, Any]:
    """Returns what a folder's `results.json` holds, `{"tasks": {}}` where there is none.

    Raises:
        DataError: The file is damaged.
    """
    path = out / "results.json"
    if not path.is_file():
        return {"tasks": {}}
    again = "put it back as it was, or choose another --out"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"not whole JSON ({error}); {again}", where=str(path)) from None
    if not isinstance(results, dict) or not isinstance(results.get("tasks"), dict):
        raise DataError(f"no `tasks`, expected the results of `rs-rlhf eval`; {again}", "tasks", str(path))
    return results
