"""The published layouts of benchmarks, one function each: the files of a declared benchmark in, [`QuestionRow`]s out.

Every layout is that of the files as their authors publish them, so that nothing has to be converted. All functions
take the declaration and where its data lie, read everything, and stop at the first thing that cannot be used, naming
file and row. `benchmark_data.read_benchmark` calls them, and keeps the types and checks the ids.

Left out: downloads, and archives (unpack them first).
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.group import make_group, short
from ..data.placed_images import stored_image
from ..data.questions import QuestionRow
from ..errors import DataError, OptionError
from ..metrics.boxes import Box, parse_boxes
from .benchmark import Benchmark

_TOKENS = re.compile(r"<(\d+(?:\.\d+)?)>")


def words(label: str, benchmark: Benchmark) -> str:
    """Returns the words for a class folder, label or type: those declared in `class_names`, else its own."""
    from ..data.captioned_images import class_name

    return benchmark.class_names.get(label) or class_name(label)


def ask(benchmark: Benchmark, question: str, choices: Sequence[str] = ()) -> str:
    """Fills a benchmark's `prompt` in.

    Args:
        benchmark ([`Benchmark`]): Its `prompt` may hold `{question}`, `{object}` (the same text) and `{choices}`.
        question (`str`): The question, or the expression that names an object.
        choices (sequence of `str`): Listed with letters where a letter is the answer (task `choice`), else by commas.

    Raises:
        ValueError: The prompt is to list choices, and there are none.
    """
    if "{choices}" in benchmark.prompt and not choices:
        raise OptionError(
            f"{benchmark.name}: the prompt lists {{choices}}, but {question!r:.60} has none; declare them."
        )
    listed = ", ".join(choices)
    if benchmark.task == "choice":
        listed = "\n".join(f"{chr(65 + i)}. {choice}" for i, choice in enumerate(choices))
    # Not `format`: a question may hold braces of its own, and so comes last.
    text = benchmark.prompt.replace("{choices}", listed)
    return text.replace("{question}", question).replace("{object}", question)


def make_row(
    benchmark: Benchmark, name: str, prompt: Any, image: Any, image_name: str, where: str, **known: Any
) -> QuestionRow:
    """Builds a question about one image.

    Args:
        benchmark ([`Benchmark`]): The declaration; its name is the source.
        name (`str`): The row's id.
        prompt (`str`): What is asked.
        image (path or `dict`): The image; a path becomes absolute.
        image_name (`str`): A name for it that is the same on every machine.
        where (`str`): File and row, for messages.
        **known: `reference`, `captions`, `choices`, `columns` of the [`QuestionRow`].
    """
    image = os.path.abspath(image) if isinstance(image, str) else image
    return QuestionRow(
        make_group(prompt, [], [image], where=where, source=benchmark.name), prompt, name, [image_name], **known
    )


def read_json(file: Path, key: str = "") -> list[Mapping[str, Any]]:
    """Reads a JSON file that is a list of objects, or an object that has one under `key`.

    Raises:
        DataError: No such file, not JSON (says the line, as of a truncated download), or something else in it.
    """
    held = _json(file)
    rows = held.get(key) if key and isinstance(held, Mapping) else held
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        what = f'{{"{key}": [objects]}}' if key else "a list of objects"
        raise DataError(f"the file holds {short(held)}, expected {what}; is it the right file?", key, str(file))
    return rows


def _json(file: Path) -> Any:
    if not file.is_file():
        raise DataError("no such file; put the benchmark's file there, or correct the declaration", "", str(file))
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}"
        raise DataError(
            f"not JSON at {at} ({error.msg}); the file may be cut off, get it again", "", str(file)
        ) from None


def _get(row: Mapping[str, Any], key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """A key of a row that must be there and of a kind; texts are stripped and may not be empty."""
    value = row.get(key)
    if not isinstance(value, kind) or (isinstance(value, str) and not value.strip()):
        names = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        has = (
            f"`{key}` is {short(value)}" if key in row else f"no `{key}` (it has {', '.join(map(str, row)) or 'none'})"
        )
        raise DataError(f"{has}, expected {names}; correct the row", key, where)
    return value.strip() if isinstance(value, str) else value


def _folder(benchmark: Benchmark, path: Path, usual: str) -> Path:
    """The folder of the images; where it is missing one message says so, not one for its first image."""
    folder = path / (benchmark.images or usual)
    if not folder.is_dir():
        raise DataError(
            f"no folder {folder.name} of images; unpack them there, or declare `images`", "images", str(path)
        )
    return folder


@functools.lru_cache(maxsize=1)
def image_size(path: str) -> tuple[int, int]:
    """Width and height in pixels as the model sees them, from the header; questions about one image follow on."""
    from ..imagery import raster as imagery

    # However large: only the header is read, and the run has a limit of its own.
    height, width = imagery.image_size(path, imagery.ImageOptions(max_image_pixels=sys.maxsize))
    return width, height


def _boxed(boxes: Sequence[Box], image: str, types: Sequence[str] = ()) -> dict[str, Any]:
    """The columns of a grounding question; a box without area is kept (VRSBench has some: nothing can hit them)."""
    return {"boxes": [list(box) for box in boxes], "size": list(image_size(image)), "types": list(types)}


def lettered(text: str, by_line: bool = False) -> list[str]:
    """Splits `"A. one; B. two."` into the texts of the choices; none unless they begin with A and B.

    Args:
        text (`str`): The choices, or (`by_line`) a question that lists one on every line.
        by_line (`bool`): A choice begins its line and ends with it.

    Example:
        >>> lettered("A. one; B. two, or three.")
        ['one', 'two, or three']
    """
    start = r"^" if by_line else r"(?:^|(?<=[\s,;]))"
    marks: list[re.Match[str]] = []
    for mark in re.finditer(start + r"\(?([A-P])[.):]\s*", text, re.MULTILINE):
        if mark[1] == chr(65 + len(marks)):
            marks.append(mark)
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    parts = [text[mark.end() : end] for mark, end in zip(marks, ends, strict=False)]
    if len(parts) < 2:
        return []
    return [(part.split("\n")[0] if by_line else part).strip(" \t\n,;").removesuffix(".") for part in parts]


def rsvqa(benchmark: Benchmark, path: Path) -> list[QuestionRow]:
    """The official RSVQA files (Lobry et al. 2020; github.com/syvlo/RSVQA, `Splits.py` and `VQALoader.py`).

    `{LR|USGS}_split_{split}_{questions|answers|images}.json` and numbered `{img_id}.tif` in `images`. Every file lists
    the ids of all splits; those of others are `{"id", "active": false}` and are left out. Types are as in the files:
    `presence`, `comp`, `count`, and `rural_urban` (LR) or `area` (HR).
    """
    found = sorted(path.glob(f"*_split_{benchmark.split}_questions.json")) if path.is_dir() else []
    if len(found) != 1:
        raise DataError(
            f"{len(found)} files *_split_{benchmark.split}_questions.json, expected one; put the official "
            "files of one resolution there",
            "split",
            str(path),
        )
    file = found[0]
    start = file.name.removesuffix("questions.json")
    answers = _active(path / f"{start}answers.json", "answers")
    images = _active(path / f"{start}images.json", "images")
    folder, paths, rows = _folder(benchmark, path, "Data"), {}, []
    for number, row in enumerate(read_json(file, "questions")):
        if not row.get("active"):
            continue
        where = f"{file}, question {row.get('id', number)}"
        question, image = _get(row, "question", str, where), _get(row, "img_id", int, where)
        own = [answers.get(one) for one in _get(row, "answers_ids", list, where)]
        if not own or None in own:
            raise DataError(
                f"its answers {row['answers_ids']} are not all in {start}answers.json, or not active; "
                "get both files again",
                "answers_ids",
                where,
            )
        if image not in images:
            raise DataError(
                f"its image {image} is not in {start}images.json, or not active; get both files again", "img_id", where
            )
        if image not in paths:
            paths[image] = stored_image(f"{image}.tif", where, str(folder))
        texts = [_get(one, "answer", str, f"{path / start}answers.json, answer {one['id']}") for one in own if one]
        columns = {"types": [_get(row, "type", str, where).lower()], "references": texts[1:]}
        known: dict[str, Any] = {"reference": texts[0], "choices": list(benchmark.choices), "columns": columns}
        asked = ask(benchmark, question, benchmark.choices)
        rows.append(
            make_row(benchmark, str(_get(row, "id", int, where)), asked, paths[image], f"{image}.tif", where, **known)
        )
    return rows


def _active(file: Path, key: str) -> dict[int, Mapping[str, Any]]:
    return {
        _get(row, "id", int, f"{file}, entry {i}"): row
        for i, row in enumerate(read_json(file, key))
        if row.get("active")
    }


def authors(benchmark: Benchmark, path: Path) -> list[QuestionRow]:
    """The JSON files of the ScoreRS evaluation (arXiv 2503.00743).

    Lists of `{image, conversations: [{value: question}, {value: answer}], type?, image_path?}`; images lie in a folder
    named like the file, or in `image_path`. `annotations` may be a pattern; where it finds several files, a question
    without `type` has the name of its file for one (put into words by `class_names`). Boxes are in pixels.
    """
    files = [path] if path.is_file() else sorted(path.glob(benchmark.annotations or "*.json"))
    if not files:
        raise DataError(
            f"no file {benchmark.annotations or '*.json'}; put the authors' JSON there", "annotations", str(path)
        )
    rows = []
    for file in files:
        for number, row in enumerate(read_json(file)):
            where = f"{file}, row {number}"
            given = row.get("type") if row.get("type") is not None else file.stem if len(files) > 1 else []
            types = [
                benchmark.class_names.get(str(one), str(one))
                for one in (given if isinstance(given, list) else [given])
            ]
            rows.append(_conversation(benchmark, file, f"{file.stem}-{number}", row, types, where))
    return rows


def _conversation(
    benchmark: Benchmark, file: Path, name: str, row: Mapping[str, Any], types: list[str], where: str
) -> QuestionRow:
    turns = _get(row, "conversations", list, where)
    if len(turns) < 2 or not all(isinstance(turn, Mapping) for turn in turns):
        raise DataError(
            f"`conversations` is {short(turns)}, expected a question and its answer", "conversations", where
        )
    question = re.sub(r"\n?<image>\n?", "", _get(turns[0], "value", str, where)).strip()
    held = turns[1].get("value")
    answer = str(held).strip() if isinstance(held, (str, int, float, list)) else ""
    if not answer:
        raise DataError(f"the answer is {short(held)}, expected a text", "conversations", where)
    image_name = f"{row.get('image_path') or file.stem}/{_get(row, 'image', str, where)}"
    image = stored_image(image_name, where, str(file.parent))
    known: dict[str, Any] = {"reference": answer, "choices": list(benchmark.choices), "columns": {"types": types}}
    if benchmark.task == "grounding":
        boxes = parse_boxes(answer)
        if not boxes:
            raise DataError(f"the answer {short(answer)} holds no box [x1, y1, x2, y2]", "conversations", where)
        known |= {"reference": "", "columns": _boxed(boxes, str(image), types)}
    elif benchmark.task == "choice" and not known["choices"]:
        known["choices"] = lettered(question, by_line=True)
    elif benchmark.task == "classification":
        known["reference"] = words(answer, benchmark)
    elif benchmark.task in ("captions", "retrieval"):
        known |= {"reference": "", "captions": [answer]}
    return make_row(benchmark, name, ask(benchmark, question, known["choices"]), image, image_name, where, **known)


def lhrs_bench(benchmark: Benchmark, path: Path) -> list[QuestionRow]:
    """LHRS-Bench (Muhtar et al. 2024; github.com/NJU-LHRS/LHRS-Bot, `main_bench_gen.py`).

    `{"qtype": {"ID name": …}, "data": [{"filename", "qa_pairs": [{"question", "choices", "answer", "type": [ID]}]}]}`,
    choices in one text with letters, the answer a letter; a question may have several types.
    """
    file = path if path.is_file() else path / (benchmark.annotations or "qa.json")
    held = _json(file)
    data = read_json(file, "data")
    named = held["qtype"] if isinstance(held, Mapping) and isinstance(held.get("qtype"), Mapping) else {}
    names = dict(key.split(" ", 1) for key in named if " " in key)
    folder, rows = _folder(benchmark, file.parent, "images"), []
    for number, entry in enumerate(data):
        where = f"{file}, row {number}"
        name = _get(entry, "filename", str, where)
        image = stored_image(name, where, str(folder))
        for k, pair in enumerate(_get(entry, "qa_pairs", list, where)):
            at = f"{where}, question {k}"
            if not isinstance(pair, Mapping):
                raise DataError(f"the question is {short(pair)}, expected an object", "qa_pairs", at)
            given = _get(pair, "choices", (str, list), at)
            choices = lettered(given) if isinstance(given, str) else [str(one) for one in given]
            answer = _get(pair, "answer", str, at)
            if not choices or not re.fullmatch(f"[A-{chr(64 + len(choices))}][.)]?", answer):
                raise DataError(f"the answer {short(answer)} is no letter of the choices {short(given)}", "answer", at)
            types = [str(one) for one in _get(pair, "type", list, at)]
            if unknown := [one for one in types if one not in names]:
                raise DataError(f"`type` {unknown[0]} is not in the file's `qtype` ({', '.join(names)})", "type", at)
            columns = {"types": [names[one].strip().lower() for one in types]}
            prompt = ask(benchmark, _get(pair, "question", str, at), choices)
            rows.append(
                make_row(
                    benchmark,
                    f"{number}-{k}",
                    prompt,
                    image,
                    name,
                    at,
                    reference=answer[0],
                    choices=choices,
                    columns=columns,
                )
            )
    return rows


def dior_rsvg(benchmark: Benchmark, path: Path) -> list[QuestionRow]:
    """DIOR-RSVG (Zhan et al. 2023; github.com/ZhanYang-nwpu/RSVG-pytorch, `data_loader.py`).

    VOC files in `Annotations` whose `<object>` have a `<description>`; `{split}.txt` lists places in the running count
    of the objects of all files. The authors take the files in the order their file system gives; here it is by name.
    """
    import xml.etree.ElementTree as ElementTree

    listed = path / f"{benchmark.split}.txt"
    files = sorted((path / (benchmark.annotations or "Annotations")).glob("*.xml"))
    if not listed.is_file() or not files:
        raise DataError(
            f"expected {benchmark.annotations or 'Annotations'}/*.xml and {listed.name}; put the official files there",
            "annotations",
            str(path),
        )
    wanted = _places(listed)
    folder, rows, count = _folder(benchmark, path, "JPEGImages"), [], 0
    for file in files:
        try:
            tree = ElementTree.parse(file).getroot()
        except ElementTree.ParseError as error:
            raise DataError(f"not XML ({error}); get the file again", "", str(file)) from None
        for k, thing in enumerate(tree.findall("object")):
            count += 1
            if count - 1 not in wanted:
                continue
            where, name = f"{file}, object {k}", tree.findtext("filename") or ""
            image, text = stored_image(name, where, str(folder)), (thing.findtext("description") or "").strip()
            corners = [thing.findtext(f"bndbox/{key}") or "" for key in ("xmin", "ymin", "xmax", "ymax")]
            if not text or not all(re.fullmatch(r"\s*\d+(\.\d+)?\s*", one) for one in corners):
                raise DataError(
                    f"<description> is {short(text)}, <bndbox> {short(corners)}, expected a text and four numbers",
                    "description",
                    where,
                )
            box: Box = tuple(map(float, corners))  # type: ignore[assignment]
            rows.append(
                make_row(
                    benchmark,
                    str(count - 1),
                    ask(benchmark, text),
                    image,
                    name,
                    where,
                    columns=_boxed([box], str(image)),
                )
            )
    if wanted and max(wanted) >= count:
        raise DataError(
            f"place {max(wanted)} is listed, but the annotations have {count} objects; get them again", "", str(listed)
        )
    return rows


def _places(file: Path) -> set[int]:
    lines = file.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.strip().isdigit():
            raise DataError(f"{short(line)}, expected a whole number a line", "", f"{file}, line {number}")
    return {int(line) for line in lines if line.strip()}


def vrsbench(benchmark: Benchmark, path: Path) -> list[QuestionRow]:
    """VRSBench's referring expressions (arXiv 2406.12384).

    A list of `{"image_id", "question", "ground_truth": "{<x1><y1><x2><y2>}" in 0-100, "question_id", "unique"}`; the
    types are `unique` and `non_unique`, as the paper reports them.
    """
    file = path if path.is_file() else path / (benchmark.annotations or "VRSBench_EVAL_referring.json")
    folder, rows = _folder(benchmark, file.parent, "Images_val"), []
    for number, row in enumerate(read_json(file)):
        where = f"{file}, row {number}"
        name = _get(row, "image_id", str, where)
        image = str(stored_image(name, where, str(folder)))
        spots = [float(one) for one in _TOKENS.findall(_get(row, "ground_truth", str, where))]
        if not spots or len(spots) % 4 or max(spots) > 100:
            raise DataError(
                f"`ground_truth` is {short(row['ground_truth'])}, expected {{<x1><y1><x2><y2>}} in 0-100",
                "ground_truth",
                where,
            )
        pixels = [one * image_size(image)[i % 2] / 100 for i, one in enumerate(spots)]
        boxes: list[Any] = [pixels[i : i + 4] for i in range(0, len(pixels), 4)]
        types = [] if row.get("unique") is None else ["unique" if row["unique"] else "non_unique"]
        own, prompt = str(row.get("question_id", number)), ask(benchmark, _get(row, "question", str, where))
        rows.append(make_row(benchmark, own, prompt, image, name, where, columns=_boxed(boxes, image, types)))
    return rows


def karpathy(benchmark: Benchmark, path: Path) -> list[QuestionRow]:
    """Captions as RSICD and RSITMD publish them: `{"images": [{"filename", "split", "sentences": [{"raw"}]}]}`."""
    from ..data.captioned_images import CAPTION_REQUEST

    file = path if path.is_file() else path / (benchmark.annotations or "dataset.json")
    folder, rows = _folder(benchmark, file.parent, "images"), []
    for number, row in enumerate(read_json(file, "images")):
        where = f"{file}, image {number}"
        if benchmark.split is not None and _get(row, "split", str, where) != benchmark.split:
            continue
        name = _get(row, "filename", str, where)
        said = _get(row, "sentences", list, where)
        captions = [_get(one, "raw", str, where) for one in said if isinstance(one, Mapping)]
        if not captions:
            raise DataError(f"`sentences` is {short(said)}, expected [{{raw}}]", "sentences", where)
        image = stored_image(name, where, str(folder))
        rows.append(make_row(benchmark, name, ask(benchmark, CAPTION_REQUEST), image, name, where, captions=captions))
    return rows
