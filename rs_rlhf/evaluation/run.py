"""Run of one benchmark on one model: batches out, records in, resumable, on any number of processes.

A run appends the model's outputs to `samples_TASK.part-RANK.jsonl`, one line a question and one write a batch. Which
questions share a batch is decided by the data and the options alone, and a batch that is not whole is answered again,
so a run that was killed, or resumes with another number of processes, gives the answers that one process gives in one
go. When all questions are answered the parts become `samples_TASK.jsonl`, in the order of the data. Verdicts are made
from the stored answers each time: the same command, run again, judges anew and asks the model nothing.

Left out: work stealing between processes (batches are dealt out in turn), and files of several machines without a
shared folder.
"""

from __future__ import annotations

import glob
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.group import prompt_text
from ..data.questions import QuestionRow
from ..errors import DataError, OptionError
from ..runs.files import append_lines, cut_torn_line, differences, json_lines, of_another_run, read_lines, write_text
from ..runs.progress import progress
from .reader import references_of
from .results import read_results, results_of

if TYPE_CHECKING:
    from accelerate import PartialState

Raw = dict[str, Any]
Batches = Iterator[tuple[list[int], list[Raw]]]
Answer = Callable[[Sequence[QuestionRow], tuple[int, int], set[int]], Batches]


def _same(records: list[Raw]) -> list[Raw]:
    return records


def no_verdict(row: QuestionRow, record: Raw) -> Raw:
    """The verdict on an answer that is judged already."""
    return {}


@dataclass
class Protocol:
    """How a benchmark is put to a type of model.

    Args:
        answer (callable): `(rows, share, done)` -> batches of `(places in rows, the model's outputs)`: every
            `share[1]`-th batch from the `share[0]`-th on, without those whose places are all in `done`.
        judge (callable): `(row, output)` -> the fields of the record that say whether it is right.
        figures (callable): Records -> `n`, `accuracy`, `interval` and what else the task reports.
        load (callable): Loads the model; called before the first question is timed, if any is to be asked.
        finish (callable): What needs all records at once: records -> records, as many.
        settings (`dict`): What the answers depend on beside the data.
    """

    answer: Answer
    judge: Callable[[QuestionRow, Raw], Raw]
    figures: Callable[[list[Raw]], dict[str, Any]]
    load: Callable[[], object]
    finish: Callable[[list[Raw]], list[Raw]] = _same
    settings: dict[str, Any] = field(default_factory=dict)


def run_task(
    name: str,
    rows: Sequence[QuestionRow],
    protocol: Protocol,
    out: Path,
    settings: Mapping[str, Any],
    *,
    state: PartialState,
    overwrite: bool = False,
) -> tuple[list[Raw], dict[str, Any]] | None:
    """Answers a benchmark's questions, or those of them that are not answered yet, and judges all answers.

    Args:
        name (`str`): The task's name; it names the files.
        rows (sequence of [`QuestionRow`]): The questions, ids distinct.
        protocol ([`Protocol`]): How they are put to the model.
        out (`Path`): Folder of the output.
        settings (mapping): What the answers depend on: model, data, options. Answers of other settings are refused.
        state (`accelerate.PartialState`): The processes.
        overwrite (`bool`): Start again if the answers are of other settings.

    Returns:
        `tuple`: the records and the figures, on the first process; `None` on the others.

    Raises:
        OptionError: Answers of other settings are there; says which and what to do.
        DataError: A file is damaged, or of other data.
    """
    settings = json.loads(json.dumps({**settings, **protocol.settings}))
    if state.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        _prepare(name, out, settings, overwrite)
    state.wait_for_everyone()
    place = {row.id: i for i, row in enumerate(rows)}
    done = {place[record["id"]] for record in _stored(name, out, place)}
    state.wait_for_everyone()  # no process appends before all have read
    share = (state.process_index, state.num_processes)
    if len(done) < len(rows):
        part = out / f"samples_{name}.part-{share[0]}.jsonl"
        protocol.load()
        left = -(-(len(rows) - len(done)) // share[1])
        with progress(left, 0, name, shown=state.is_main_process) as advance:
            start = time.perf_counter()
            for places, outputs in protocol.answer(rows, share, done):
                seconds = (time.perf_counter() - start) / len(places)
                new = [(i, output) for i, output in zip(places, outputs, strict=True) if i not in done]
                head = [] if part.exists() else [{"settings": settings}]  # the first batch says of which settings
                append_lines(part, [*head, *(_record(rows[i], output, round(seconds, 4)) for i, output in new)])
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
    answered = {record["id"]: record for record in _stored(name, out, place)}
    missing = [row.id for row in rows if row.id not in answered]
    if missing:
        raise DataError(f"{name}: {len(missing)} questions have no answer, such as {missing[0]}; run it again.")
    records = protocol.finish([answered[row.id] for row in rows])
    records = [{**record, **protocol.judge(row, record)} for row, record in zip(rows, records, strict=True)]
    write_text(out / f"samples_{name}.jsonl", json_lines(records))
    return records, protocol.figures(records)


def drop_parts(name: str, out: Path) -> None:
    """Removes the parts of a task: to be called once its figures are on the disk too."""
    for part in _parts(name, out):
        part.unlink()


def _record(row: QuestionRow, output: Raw, seconds: float) -> Raw:
    image = next(iter(row.group.images), None)
    return {
        "id": row.id,
        "prompt": prompt_text(row.group.prompt),
        **output,
        "references": references_of(row),
        "types": list(row.columns.get("types") or []),
        "image": os.path.abspath(image) if isinstance(image, str) else None,  # inside a Parquet file it has no path
        "seconds": seconds,
    }


def _parts(name: str, out: Path) -> list[Path]:
    return sorted(out.glob(f"samples_{glob.escape(name)}.part-*.jsonl"))


def _prepare(name: str, out: Path, settings: Mapping[str, Any], overwrite: bool) -> None:
    """Cuts off half-written lines, and refuses or removes answers of other settings."""
    whole = out / f"samples_{name}.jsonl"
    stored = read_results(out, missing_ok=True)["tasks"].get(name, {})
    begun = [(whole, stored.get("settings"))] if whole.exists() and stored else []
    for part in _parts(name, out):
        cut_torn_line(part)
        if part.stat().st_size:
            begun.append((part, _first_line(part).get("settings")))
        else:
            part.unlink()  # killed before the first batch was whole
    for path, old in begun:
        told = differences(old, settings) if old else {"": "it does not say of which"}
        if not told:
            continue
        if not overwrite:
            ways = ("choose another --out", "set that back", "pass --overwrite")
            raise OptionError(of_another_run("answers", told, *ways), "overwrite", str(path))
        path.unlink()
        if path == whole:
            with results_of(out) as results:
                results["tasks"].pop(name)
    if whole.exists() and not stored:
        if not (_parts(name, out) or overwrite):
            raise DataError(
                f"{whole} is there, but results.json does not say of which run; choose another --out, or pass "
                "--overwrite to answer anew."
            )
        whole.unlink()  # killed before the figures were written: the parts are still there


def _first_line(path: Path) -> Raw:
    try:
        with path.open(encoding="utf-8") as lines:
            return dict(json.loads(next(lines)))
    except (ValueError, TypeError):
        detail = "not the settings of a run; delete the file and run again."
        raise DataError(detail, where=f"{path}, line 1") from None


def _stored(name: str, out: Path, place: Mapping[str, int]) -> Iterator[Raw]:
    """Yields the records of a task that are on the disk."""
    whole = out / f"samples_{name}.jsonl"
    for path in [*_parts(name, out), *([whole] if whole.exists() else [])]:
        for number, record in enumerate(read_lines(path), start=1):
            if path != whole and number == 1:
                continue  # the settings
            if record.get("id") not in place:
                raise DataError(
                    f"the data has no question {record.get('id')!r}; the file is of another version of the data: "
                    "choose another --out or pass --overwrite.",
                    "id",
                    f"{path}, line {number}",
                )
            yield record
