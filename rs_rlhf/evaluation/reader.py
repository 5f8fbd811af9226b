"""Reader of declared benchmarks: the questions as [`QuestionRow`]s with unique ids, whatever the layout of the data.

Here are the layouts that the package reads for training too (images, rows, preferences); those that only benchmarks
have are in `layouts`. A benchmark that is wrong anywhere is refused as a whole: a figure on the rows that happened to
be readable would be a figure on another benchmark. Only boxes outside of their image are left out, and counted.

Left out: downloads; decoding images (they are only looked for; what cannot be decoded fails in the run, by name).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from ..data.captioned_images import CAPTION_REQUEST, LABEL_QUESTION, class_name, load_images
from ..data.forms import known_rows
from ..data.group import Row, completion_text, make_group, prompt_text, short, string_column
from ..data.placed_images import stored_image
from ..data.questions import QuestionRow, limited, read_questions
from ..data.rows import image_folder, open_rows
from ..data.survey import announce
from ..errors import DataError, RSRLHFError
from ..imagery.identity import source_key
from ..metrics.boxes import grounding_verdict
from ..metrics.closed_answers import judge_answer
from ..preferences.damage import build_pairs
from ..preferences.schema import group_from_row
from . import layouts
from .benchmark import Benchmark, locate_data
from .layouts import ask, make_row, words

_ROUNDING = 2  # pixels by which the boxes of a benchmark may reach beyond the image
PAIR_SEED = 0  # of the layout `pairs`: another seed is another benchmark


@dataclass
class Task:
    """A benchmark with the questions that are asked, and the hash of all its questions before any limit."""

    benchmark: Benchmark
    rows: list[QuestionRow]
    data_hash: str
    error_rows: int = 0  # questions left out, since their boxes do not lie in their images


def read_task(
    benchmark: Benchmark,
    data_root: str | None = None,
    paths: Mapping[str, Path] | None = None,
    *,
    core_only: bool = False,
    limit: int | None = None,
    seed: int = 0,
) -> Task:
    """Finds a benchmark's questions (see [`locate_data`]), reads them (see [`read_benchmark`]) and draws `limit` by
    the seed.
    """
    path = locate_data(benchmark, data_root, paths)
    if core_only and not benchmark.core_types:
        print(f"{benchmark.name} declares no core types: --core_only leaves nothing out of it")
    rows, left_out = _read(benchmark, path, core_only)
    return Task(benchmark, limited(rows, limit, seed), dataset_hash(rows), left_out)


def read_benchmark(benchmark: Benchmark, path: Path, *, core_only: bool = False) -> list[QuestionRow]:
    """Reads the questions of a declared benchmark.

    Args:
        benchmark ([`Benchmark`]): The declaration.
        path (`Path`): Where its data lie, see [`locate_data`].
        core_only (`bool`): Keep the declared `core_types` only, if there are any.

    Returns:
        `list[QuestionRow]`: One row a question, ids unique. `reference` is the right answer (`""` for captions and
        grounding), `captions` the reference captions, `choices` the well-formed answers; `columns` has `types`
        (`list[str]`), and where known `references` (further right answers), `boxes` (`[[x1, y1, x2, y2]]` in pixels
        of the image) and `size` (`[width, height]`). Preferences keep their completions, best first. Questions whose
        boxes do not lie in their images are left out, which is printed.

    Raises:
        DataError: Anything that cannot be used, with file and row; types that no question has; no questions left; a
            question whose answers could not be judged.
    """
    return _read(benchmark, path, core_only)[0]


def _read(benchmark: Benchmark, path: Path, core_only: bool) -> tuple[list[QuestionRow], int]:
    """The questions, and how many were left out."""
    try:
        rows = READERS[benchmark.layout](benchmark, path)
    except DataError:
        raise
    except (RSRLHFError, OSError) as error:
        raise DataError(str(error)) from error
    if not rows:
        detail = f"no questions left: the data have none of split {benchmark.split!r}; "
        raise DataError(f"{detail}check the data and the declaration", "split", f"{benchmark.name}, {path}")
    for row in rows:
        row.columns.setdefault("types", [])
    if benchmark.task == "classification":
        _fill_choices(rows, benchmark)
    rows = _of_types(rows, benchmark.types, "types", benchmark.name)
    rows = _of_types(rows, benchmark.core_types if core_only else [], "core_types", benchmark.name)
    rows, left_out = _with_boxes_inside(rows, benchmark) if benchmark.task == "grounding" else (rows, 0)
    _check_judged(rows, benchmark)
    seen: dict[str, str] = {}
    for row in rows:
        if row.id in seen:
            raise row.error(f"the id {row.id!r} is that of {seen[row.id]} too; ids must be unique, rename one", "id")
        seen[row.id] = row.group.where or "another row"
    return rows, left_out


def _with_boxes_inside(rows: list[QuestionRow], benchmark: Benchmark) -> tuple[list[QuestionRow], int]:
    """The questions whose boxes lie in their images but for rounding, and how many others there are, which is printed.

    No answer could hit the others, and single ones are no reason to refuse a published benchmark.
    """
    outside = []
    for row in rows:
        size = row.columns.get("size") or (math.inf, math.inf)
        for box in row.columns.get("boxes") or []:
            if min(box) < -_ROUNDING or any(box[i] > size[i % 2] + _ROUNDING for i in range(4)):
                detail = f"the box {short(box)} does not lie in the image of {size[0]}x{size[1]} pixels; correct it"
                outside.append((row, row.error(detail, "boxes")))
                break
    if not outside:
        return rows, 0
    if len(outside) == len(rows):
        raise outside[0][1]
    left = {id(row) for row, _ in outside}
    print(f"{benchmark.name}: {len(left)} of {len(rows)} questions left out, such as {outside[0][1]}")
    return [row for row in rows if id(row) not in left], len(left)


def references_of(row: QuestionRow) -> list[str]:
    """Returns the right answers of a question, any of which will do: its own and those of the column `references`, or
    the captions if there is no right answer. A column that holds no list of texts is a [`DataError`].
    """
    if not row.reference and row.captions:
        return list(row.captions)
    more = row.columns.get("references")
    if more is not None and not (isinstance(more, list) and all(isinstance(text, str) for text in more)):
        detail = f"`references` is {short(more)}, expected a list of texts; write further right answers as one"
        raise row.error(detail, "references")
    return [row.reference] * bool(row.reference) + (more or [])


def _check_judged(rows: Sequence[QuestionRow], benchmark: Benchmark) -> None:
    """Refuses questions whose answers could not be judged, before a model has spent hours on them."""
    known: set[tuple[str | None, ...]] = set()
    for row in rows:
        if benchmark.task in ("captions", "retrieval"):
            if not row.captions or not all(isinstance(text, str) and text.strip() for text in row.captions):
                raise row.error(f"no `captions`, which {benchmark.task} needs, or an empty one", "captions")
        elif benchmark.task == "grounding":
            boxes, size = row.columns.get("boxes") or [], row.columns.get("size", [1, 1])
            with _naming(row, "boxes"):
                grounding_verdict("", boxes, size, "pixel")
        elif benchmark.task == "preference":
            if len(row.group.completions) < 2:
                raise row.error("no texts to choose between; use the layout `preferences` or `pairs`", "chosen")
        elif not row.reference:
            raise row.error(f"no `solution`, the right answer that {benchmark.task} needs", "solution")
        elif (key := (*references_of(row), None, *row.choices)) not in known:
            known.add(key)  # a benchmark asks a million questions, but has few answers
            with _naming(row, "solution"):
                judge_answer("", references_of(row), choices=row.choices, numbers=benchmark.numbers)


@contextmanager
def _naming(row: QuestionRow, key: str) -> Iterator[None]:
    """Adds the row to an error of judging it."""
    try:
        yield
    except RSRLHFError as error:
        raise row.error(error.detail, key) from None


def dataset_hash(rows: Sequence[QuestionRow]) -> str:
    """Returns a SHA-256 of what is asked and of the right answers; it is the same wherever the data lie.

    Over ids, prompts, completions, right answers, captions, choices, types, boxes, and of every image its name and
    size in bytes (of stored bytes: their own hash). How answers are parsed and compared (`numbers`,
    `metric_version`) is not in it. Files are not read, so an image that was replaced by one of exactly as many bytes
    goes unnoticed.

    Args:
        rows (sequence of [`QuestionRow`]): The questions, in the order of the data.
    """
    digest = hashlib.sha256()
    sizes: dict[str, int] = {}
    for row in rows:
        images: list[Any] = []
        for image in row.group.images:
            if isinstance(image, dict) and image.get("bytes") is not None:
                images.append(source_key(image))
            else:
                path = str(image["path"] if isinstance(image, dict) else image)
                if path not in sizes:
                    sizes[path] = os.stat(path).st_size
                images.append(sizes[path])
        texts = [completion_text(completion) for completion in row.group.completions]
        known = {key: row.columns.get(key) for key in ("types", "references", "boxes", "size")}
        parts = [row.id, prompt_text(row.group.prompt), texts, row.reference, row.captions, row.choices]
        digest.update(json.dumps([*parts, known, row.image_names, images], sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _of_types(rows: list[QuestionRow], types: Sequence[str], key: str, name: str) -> list[QuestionRow]:
    """The rows that have one of the types; all of them if none is asked for."""
    if not types:
        return rows
    known = sorted({name for row in rows for name in row.columns["types"]})
    if missing := [name for name in types if name not in known]:
        has = f"the questions' types are {', '.join(known) or 'none'}"
        raise DataError(f"`{key}` asks for {missing[0]!r}, but {has}; correct the declaration", key, name)
    return [row for row in rows if set(row.columns["types"]) & set(types)]


def _classes(benchmark: Benchmark, found: Iterable[str]) -> list[str]:
    return list(benchmark.choices) or sorted(set(found))


def _fill_choices(rows: Sequence[QuestionRow], benchmark: Benchmark) -> None:
    """Gives all questions the classes to choose from, by default those of the data, and holds the answers to them."""
    choices = _classes(benchmark, (row.reference for row in rows))
    for row in rows:
        row.choices = row.choices or choices
        if row.reference not in row.choices:  # perhaps it is written in another case
            same = [choice for choice in row.choices if class_name(choice) == class_name(row.reference)]
            row.reference = same[0] if len(same) == 1 else row.reference
        if row.reference not in row.choices:
            detail = f"the class {row.reference!r} is none of the declared choices ({', '.join(row.choices)}); "
            raise row.error(f"{detail}correct `choices` or `class_names`", "choices")


def _meter_ml(benchmark: Benchmark, path: Path) -> list[QuestionRow]:
    """The official layout, or a folder a class if there are no official annotations."""
    if any(path.glob("*.geojson")):
        return layouts.meter_ml(benchmark, path)
    return _images(replace(benchmark, split=None), path)


def _images(benchmark: Benchmark, path: Path) -> list[QuestionRow]:
    """Labelled or captioned images, see [`load_images`]."""
    if benchmark.task not in ("classification", "captions", "retrieval"):
        detail = f"the layout `images` has no questions of the task {benchmark.task}; use `rows`"
        raise DataError(detail, "layout", benchmark.name)
    labelled = benchmark.task == "classification"
    key, question = ("label", LABEL_QUESTION) if labelled else ("captions", CAPTION_REQUEST)
    raw, root = load_images(path, benchmark.split, columns=benchmark.columns), _root(path)
    choices = _classes(benchmark, (words(row["label"], benchmark) for row in raw if labelled and row.get("label")))
    rows = []
    for row in raw:
        name, where = row["id"], row.get("where") or f"{path}, image {row['id']}"
        if os.path.isabs(name):
            name = os.path.relpath(row["image"], root) if isinstance(row["image"], str) else PurePath(name).name
        if not row.get(key):
            detail = f"no {key}, which {benchmark.task} needs; add what is missing or remove the row"
            raise DataError(detail, key, where)
        known: dict[str, Any] = {"captions": list(row["captions"])}
        if labelled:
            known = {"reference": words(row["label"], benchmark), "choices": choices}
        rows.append(make_row(benchmark, name, question, row["image"], name, where, **known))
    return rows


def _root(path: Path) -> str:
    return os.path.realpath(path if path.is_dir() else path.parent)


def _rows(benchmark: Benchmark, path: Path) -> list[QuestionRow]:
    """Rows with a `prompt`, see [`read_questions`]; `type` or `types` is what the questions are of.

    What counts as the answer is the task's: a class beside the captions, or captions beside a class, are left aside.
    """
    file = path / benchmark.annotations if benchmark.annotations else path
    root = str(path / benchmark.images) if benchmark.images else None
    rows = read_questions(str(file), benchmark.split, image_root=root, keep_apart=False, columns=benchmark.columns)
    if not any(row.group.images for row in rows) and benchmark.columns.get("image") != "":
        advice = (
            'name their column, as in `columns: {image: tile}`, or declare `columns: {image: ""}` if there are none'
        )
        raise DataError(f"no row has an image; {advice}", "columns", str(file))
    for row in rows:
        given = row.columns.pop("type", None)
        types = row.columns.get("types") or given or []
        row.columns["types"] = [*map(str, types if isinstance(types, list) else [types])]
        row.choices = row.choices or list(benchmark.choices)
        if benchmark.task in ("captions", "retrieval"):
            row.reference = ""
        else:
            row.captions = []
        if benchmark.task == "grounding":
            _check_boxes(row)
    if benchmark.task == "classification":
        _fill_choices(rows, benchmark)
    for row in rows if benchmark.prompt != "{question}" else ():
        _ask_within(row, benchmark)
    return rows


def _ask_within(row: QuestionRow, benchmark: Benchmark) -> None:
    """Puts the declared prompt around the row's own."""
    group = row.group
    if not isinstance(row.prompt, str):
        detail = f"`prompt` is a conversation, around which {benchmark.name}'s `prompt` does not go; "
        raise row.error(f"{detail}write it as a text, or declare none", "prompt")
    row.prompt = ask(benchmark, row.prompt, row.choices)
    row.group = make_group(row.prompt, [], group.images, row=group.row, where=group.where, source=group.source)


def _check_boxes(row: QuestionRow) -> None:
    boxes, size = row.columns.get("boxes"), row.columns.get("size")
    if not (isinstance(boxes, list) and boxes and all(_numbers(box, 4) for box in boxes)):
        raise row.error(f"no `boxes`, expected [[x1, y1, x2, y2], …] in pixels, not {short(boxes)}", "boxes")
    if size is None and isinstance(image := next(iter(row.group.images), None), str):
        size = list(layouts.image_size(image))
    if not (isinstance(size, list) and _numbers(size, 2) and min(size) > 0):
        raise row.error(f"no `size`, expected the image's [width, height] in pixels, not {short(size)}", "size")
    row.columns["size"], row.reference = size, ""


def _numbers(value: object, count: int) -> bool:
    known = isinstance(value, list) and len(value) == count
    return known and all(type(number) in (int, float) and math.isfinite(number) for number in value)  # type: ignore


def _preferences(benchmark: Benchmark, path: Path) -> list[QuestionRow]:
    """Preference files, see `preferences.schema`."""
    file = path / benchmark.annotations if benchmark.annotations else path
    root = str(path / benchmark.images) if benchmark.images else image_folder(str(file))
    rows, last, count = [], "", 0  # several pairs of one row are numbered
    reading: dict[str, Any] = {"columns": benchmark.columns, "image_root": root}
    stored = [*open_rows(file, benchmark.split, known_rows, **reading)]
    for where, row in stored:  # a damaged row is told before a missing image
        last, count = where, count + 1 if last == where else 0
        name = string_column(row, "id") or f"{PurePath(where.file).stem}-{where.number}"
        rows.append(_preference(f"{name}.{count}" if count else name, row, where.number, where, root))
    announce(file, len(rows), sum(bool(row.group.images) for row in rows), benchmark.split, **reading)
    return rows


def _preference(name: str, row: Row, number: int, where: str, root: str) -> QuestionRow:
    group = group_from_row(row, number, where)
    images = [stored_image(image, where, root) for image in group.images]
    group.images = [*images]
    names = [
        os.path.relpath(image, os.path.realpath(root)) if isinstance(image, str) else str(image.get("path") or name)
        for image in images
    ]
    columns = {"types": [group.kind] if group.kind else [], "source": group.source}
    return QuestionRow(group, group.prompt, name, names, columns=columns)


def _pairs(benchmark: Benchmark, path: Path) -> list[QuestionRow]:
    """Pairs made of captioned or labelled images, as `rs-rlhf data pairs` makes them with the seed [`PAIR_SEED`]."""
    images = load_images(path, benchmark.split, columns=benchmark.columns)
    return [
        _preference(pair["id"], pair, number, f"{path}, pair {pair['id']}", _root(path))
        for number, pair in enumerate(build_pairs(images, seed=PAIR_SEED))
    ]


READERS: dict[str, Callable[[Benchmark, Path], list[QuestionRow]]] = {
    "images": _images,
    "rows": _rows,
    "preferences": _preferences,
    "pairs": _pairs,
    "authors": layouts.authors,
    "rsvqa": layouts.rsvqa,
    "lhrs_bench": layouts.lhrs_bench,
    "dior_rsvg": layouts.dior_rsvg,
    "vrsbench": layouts.vrsbench,
    "karpathy": layouts.karpathy,
    "meter_ml": _meter_ml,
}
