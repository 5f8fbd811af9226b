"""Published layouts of benchmarks, one function each: the files of a declared benchmark in, [`QuestionRow`]s out.

Every layout is that of the files as their authors publish them, so that nothing has to be converted. All functions
take the declaration and where its data lie, read everything, and stop at the first thing that cannot be used, naming
file and row. `reader.read_benchmark` calls them, selects the types and checks the ids.

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

from ..data.captioned_images import CAPTION_REQUEST, LABEL_QUESTION, class_name
from ..data.group import make_group, short
from ..data.placed_images import IMAGE_SUFFIXES, StoredImage, stored_image
from ..data.questions import QuestionRow
from ..errors import DataError, DeclarationError
from ..metrics.boxes import Box, parse_boxes
from .benchmark import Benchmark
from .lettered import letter_of, lettered, listed_choices

_TOKENS = re.compile(r"<(\d+(?:\.\d+)?)>")


def words(label: str, benchmark: Benchmark) -> str:
    """Returns the words for a class folder, label or type: those declared in `class_names`, else its own."""
    return benchmark.class_names.get(label) or class_name(label)


def ask(benchmark: Benchmark, question: str, choices: Sequence[str] = ()) -> str:
    """Fills a benchmark's `prompt`: `{question}`, `{object}` (the same text), and `{choices}`, with letters if a
    letter is the answer (task `choice`), else joined by commas. A prompt that lists choices without any is a
    [`DeclarationError`].
    """
    if "{choices}" in benchmark.prompt and not choices:
        detail = f"{benchmark.name}: the prompt lists {{choices}}, but {question!r:.60} has none; declare them."
        raise DeclarationError(detail, "choices")
    listed = ", ".join(choices)
    if benchmark.task == "choice":
        listed = "\n".join(f"{chr(65 + i)}. {choice}" for i, choice in enumerate(choices))
    # Not `format`: a question may hold braces of its own, and so comes last.
    text = benchmark.prompt.replace("{choices}", listed)
    return text.replace("{question}", question).replace("{object}", question)


def make_row(
    benchmark: Benchmark,
    name: str,
    question: str,
    image: StoredImage,
    image_name: str,
    where: str,
    **known: Any,
) -> QuestionRow:
    """Builds a question about one image, with the benchmark's prompt around it; `known` are further fields of the row.

    `name` is the row's id, `image_name` a name for the image that is the same on every machine; an image path becomes
    absolute.
    """
    image = os.path.abspath(image) if isinstance(image, str) else image
    prompt = ask(benchmark, question, known.get("choices", ()))
    group = make_group(prompt, [], [image], where=where, source=benchmark.name)
    return QuestionRow(group, prompt, name, [image_name], **known)


class Entry:
    """An object of a benchmark's file, with its place for messages."""

    def __init__(self, row: Mapping[str, Any], where: str) -> None:
        self.row, self.where = row, where

    def get(self, key: str, kind: type | tuple[type, ...] = str) -> Any:
        """Returns a value that must be there and of a type; texts are stripped and may not be empty."""
        value = self.row.get(key)
        if not isinstance(value, kind) or (isinstance(value, str) and not value.strip()):
            names = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
            keys = ", ".join(map(str, self.row)) or "none"
            has = f"`{key}` is {short(value)}" if key in self.row else f"no `{key}` (it has {keys})"
            raise self.error(f"{has}, expected {names}; correct the row", key)
        return value.strip() if isinstance(value, str) else value

    def error(self, detail: str, key: str) -> DataError:
        """Returns the error about one of its values."""
        return DataError(detail, key, self.where)


def read_json(file: Path, key: str = "", unit: str = "row") -> list[Entry]:
    """Reads a JSON file that is a list of objects, or an object that has one under `key`; a [`DataError`] names the
    line.
    """
    held = _json(file)
    rows = held.get(key) if key and isinstance(held, Mapping) else held
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        what = f'{{"{key}": [objects]}}' if key else "a list of objects"
        raise DataError(f"the file holds {short(held)}, expected {what}; is it the right file?", key, str(file))
    return [Entry(row, f"{file}, {unit} {number}") for number, row in enumerate(rows)]


def _json(file: Path) -> Any:
    if not file.is_file():
        raise DataError("no such file; put the benchmark's file there, or correct the declaration", "", str(file))
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        detail = f"not JSON at line {error.lineno}, column {error.colno} ({error.msg}); the file may be cut off, "
        raise DataError(f"{detail}get it again", "", str(file)) from None


def _file(benchmark: Benchmark, path: Path, usual: str) -> Path:
    return path if path.is_file() else path / (benchmark.annotations or usual)


def _folder(benchmark: Benchmark, path: Path, usual: str) -> str:
    """The folder of the images; if it is missing one message says so, not one for its first image."""
    folder = path / (benchmark.images or usual)
    if not folder.is_dir():
        detail = f"no folder {folder.name} of images; unpack them there, or declare `images`"
        raise DataError(detail, "images", str(path))
    return str(folder)


def _pictures(benchmark: Benchmark, path: Path, usual: Sequence[str], names: Sequence[str]) -> tuple[str, list[str]]:
    """The declared folder of images, or the usual one that has most of the names, and the names of the files in it.

    A file with the suffix of another image format will do. Says which folder is read if there are several.
    """
    found = [path / name for name in ([benchmark.images] if benchmark.images else usual) if (path / name).is_dir()]
    known = {folder: [_in_folder(folder, name) for name in names] for folder in found}
    if not found:
        return _folder(benchmark, path, usual[0]), []  # raises
    folder = max(found, key=lambda folder: sum((folder / name).is_file() for name in known[folder]))
    if len(found) > 1:
        print(f"{benchmark.name}: images of {folder}")
    return str(folder), known[folder]


def _in_folder(folder: Path, name: str) -> str:
    others = [str(Path(name).with_suffix(suffix)) for suffix in IMAGE_SUFFIXES if Path(name).suffix]
    return next((other for other in (name, *others) if (folder / other).is_file()), name)


@functools.lru_cache(maxsize=1)
def image_size(path: str) -> tuple[int, int]:
    """Width and height in pixels as the model sees them, from the header; questions about one image follow on."""
    from ..imagery import raster

    # However large: only the header is read, and the run has a limit of its own.
    height, width = raster.image_size(path, raster.ImageOptions(max_image_pixels=sys.maxsize))
    return width, height


def _boxed(boxes: Sequence[Box], image: StoredImage, types: Sequence[str] = ()) -> dict[str, Any]:
    """The columns of a grounding question; a box without area is kept (VRSBench has some: nothing can hit them)."""
    return {"boxes": [list(box) for box in boxes], "size": list(image_size(str(image))), "types": list(types)}


def rsvqa(benchmark: Benchmark, path: Path) -> list[QuestionRow]:
    """The official RSVQA files (Lobry et al. 2020; github.com/syvlo/RSVQA, `Splits.py` and `VQALoader.py`).

    `{LR|USGS}_split_{split}_{questions|answers|images}.json` and numbered `{img_id}.tif` in `images`. Every file lists
    the ids of all splits; those of others are `{"id", "active": false}` and are left out. Types are as in the files:
    `presence`, `comp`, `count`, and `rural_urban` (LR) or `area` (HR).
    """
    pattern = f"*_split_{benchmark.split}_questions.json"
    files = sorted(path.glob(pattern)) if path.is_dir() else []
    if len(files) != 1:
        detail = f"{len(files)} files {pattern}, expected one; put the official files of one resolution there"
        raise DataError(detail, "split", str(path))
    start = files[0].name.removesuffix("questions.json")
    answers = _active(path / f"{start}answers.json", "answers")
    images = _active(path / f"{start}images.json", "images")
    folder, paths, rows = _folder(benchmark, path, "Data"), {}, []
    for entry in read_json(files[0], "questions", "question"):
        if not entry.row.get("active"):
            continue
        question, image = entry.get("question"), entry.get("img_id", int)
        given = [answers.get(number) for number in entry.get("answers_ids", list)]
        if not given or None in given:
            detail = f"its answers {entry.row['answers_ids']} are not all in {start}answers.json, or not active; "
            raise entry.error(f"{detail}get both files again", "answers_ids")
        if image not in images:
            detail = f"its image {image} is not in {start}images.json, or not active; get both files again"
            raise entry.error(detail, "img_id")
        name = f"{image}.tif"
        if image not in paths:
            paths[image] = stored_image(name, entry.where, folder)
        texts = [answer.get("answer") for answer in given if answer]
        columns = {"types": [entry.get("type").lower()], "references": texts[1:]}
        known: dict[str, Any] = {"reference": texts[0], "choices": list(benchmark.choices), "columns": columns}
        own = str(entry.get("id", int))
        rows.append(make_row(benchmark, own, question, paths[image], name, entry.where, **known))
    return rows


def _active(file: Path, key: str) -> dict[int, Entry]:
    return {entry.get("id", int): entry for entry in read_json(file, key, "entry") if entry.row.get("active")}


def authors(benchmark: Benchmark, path: Path) -> list[QuestionRow]:
    """The JSON files of the ScoreRS evaluation (arXiv 2503.00743).

    Lists of `{image, conversations: [{value: question}, {value: answer}], type?, image_path?}`; images lie in a folder
    named like the file, or in `image_path`. `annotations` may be a pattern; if it finds several files, the name of its
    file (put into words by `class_names`) is the type of a question without `type`. Boxes are in pixels.
    """
    pattern = benchmark.annotations or "*.json"
    files = [path] if path.is_file() else sorted(path.glob(pattern))
    if not files:
        raise DataError(f"no file {pattern}; put the authors' JSON there", "annotations", str(path))
    rows = []
    for file in files:
        for number, entry in enumerate(read_json(file)):
            given = entry.row.get("type")
            given = given if given is not None else file.stem if len(files) > 1 else []
            given = map(str, given if isinstance(given, list) else [given])
            types = [benchmark.class_names.get(name, name) for name in given]
            rows.append(_conversation(benchmark, file, f"{file.stem}-{number}", entry, types))
    return rows


def _conversation(benchmark: Benchmark, file: Path, name: str, entry: Entry, types: list[str]) -> QuestionRow:
    turns = entry.get("conversations", list)
    if len(turns) < 2 or not all(isinstance(turn, Mapping) for turn in turns):
        detail = f"`conversations` is {short(turns)}, expected a question and its answer"
        raise entry.error(detail, "conversations")
    question = re.sub(r"\n?<image>\n?", "", Entry(turns[0], entry.where).get("value")).strip()
    held = turns[1].get("value")
    answer = str(held).strip() if isinstance(held, (str, int, float, list)) else ""
    if not answer:
        raise entry.error(f"the answer is {short(held)}, expected a text", "conversations")
    image_name = f"{entry.row.get('image_path') or file.stem}/{entry.get('image')}"
    image = stored_image(image_name, entry.where, str(file.parent))
    known: dict[str, Any] = {"reference": answer, "choices": list(benchmark.choices), "columns": {"types": types}}
    if benchmark.task == "grounding":
        boxes = parse_boxes(answer)
        if not boxes:
            raise entry.error(f"the answer {short(answer)} holds no box [x1, y1, x2, y2]", "conversations")
        known |= {"reference": "", "columns": _boxed(boxes, image, types)}
    elif benchmark.task == "choice" and not known["choices"]:
        known["choices"] = lettered(question, by_line=True)
    elif benchmark.task == "classification":
        known["reference"] = words(answer, benchmark)
    elif benchmark.task in ("captions", "retrieval"):
        known |= {"reference": "", "captions": [answer]}
    return make_row(benchmark, name, question, image, image_name, entry.where, **known)


def lhrs_bench(benchmark: Benchmark, path: Path) -> list[QuestionRow]:
    """LHRS-Bench (Muhtar et al. 2024; github.com/NJU-LHRS/LHRS-Bot, `main_bench_gen.py`).

    `{"qtype": {"ID name": …}, "data": [{"filename", "qa_pairs": [{"question", "choices", "answer", "type": [ID]}]}]}`,
    choices in one text with letters, the answer a letter; a question may have several types. The images lie in
    `images`, or as the authors pack them in `imgs_png` and `imgs_jpg`, where a name may have the other suffix.
    """
    file = _file(benchmark, path, "qa.json")
    data, held = read_json(file, "data"), _json(file)
    named = held["qtype"] if isinstance(held, Mapping) and isinstance(held.get("qtype"), Mapping) else {}
    names = dict(key.split(" ", 1) for key in named if " " in key)
    pictured = [entry.get("filename") for entry in data]
    folder, pictures = _pictures(benchmark, file.parent, ("images", "imgs_png", "imgs_jpg"), pictured)
    rows = []
    for number, (entry, name) in enumerate(zip(data, pictures, strict=True)):
        image = stored_image(name, entry.where, folder)
        for k, pair in enumerate(entry.get("qa_pairs", list)):
            asked = Entry(pair, f"{entry.where}, question {k}")
            if not isinstance(pair, Mapping):
                raise asked.error(f"the question is {short(pair)}, expected an object", "qa_pairs")
            given, answer = asked.get("choices", (str, list)), asked.get("answer")
            choices = listed_choices(given)
            if (letter := letter_of(answer, choices)) is None:
                raise asked.error(f"the answer {short(answer)} is no letter of the choices {short(given)}", "answer")
            types = [str(code) for code in asked.get("type", list)]
            if unknown := [code for code in types if code not in names]:
                detail = f"`type` {unknown[0]} is not in the file's `qtype` ({', '.join(names)})"
                raise asked.error(detail, "type")
            columns = {"types": [names[code].strip().lower() for code in types]}
            known: dict[str, Any] = {"reference": letter, "choices": choices, "columns": columns}
            question = asked.get("question")
            rows.append(make_row(benchmark, f"{number}-{k}", question, image, name, asked.where, **known))
    return rows


def dior_rsvg(benchmark: Benchmark, path: Path) -> list[QuestionRow]:
    """DIOR-RSVG (Zhan et al. 2023; github.com/ZhanYang-nwpu/RSVG-pytorch, `data_loader.py`).

    VOC files in `Annotations` whose `<object>` have a `<description>`; `{split}.txt` lists places in the running count
    of the objects of all files. The authors take the files in the order their file system gives; here it is by name.
    """
    import xml.etree.ElementTree as ElementTree

    listed, annotations = path / f"{benchmark.split}.txt", benchmark.annotations or "Annotations"
    files = sorted((path / annotations).glob("*.xml"))
    if not listed.is_file() or not files:
        detail = f"expected {annotations}/*.xml and {listed.name}; put the official files there"
        raise DataError(detail, "annotations", str(path))
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
            image, text = stored_image(name, where, folder), (thing.findtext("description") or "").strip()
            corners = [thing.findtext(f"bndbox/{key}") or "" for key in ("xmin", "ymin", "xmax", "ymax")]
            if not text or not all(re.fullmatch(r"\s*\d+(\.\d+)?\s*", corner) for corner in corners):
                detail = f"<description> is {short(text)}, <bndbox> {short(corners)}, expected a text and four numbers"
                raise DataError(detail, "description", where)
            box: Box = tuple(map(float, corners))  # type: ignore[assignment]
            rows.append(make_row(benchmark, str(count - 1), text, image, name, where, columns=_boxed([box], image)))
    if wanted and max(wanted) >= count:
        detail = f"place {max(wanted)} is listed, but the annotations have {count} objects; get them again"
        raise DataError(detail, "", str(listed))
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
    file = _file(benchmark, path, "VRSBench_EVAL_referring.json")
    folder, rows = _folder(benchmark, file.parent, "Images_val"), []
    for number, entry in enumerate(read_json(file)):
        name = entry.get("image_id")
        image = stored_image(name, entry.where, folder)
        shares = [float(token) for token in _TOKENS.findall(entry.get("ground_truth"))]
        if not shares or len(shares) % 4:
            detail = f"`ground_truth` is {short(entry.row['ground_truth'])}, expected {{<x1><y1><x2><y2>}} in 0-100"
            raise entry.error(detail, "ground_truth")
        pixels = [share * image_size(str(image))[i % 2] / 100 for i, share in enumerate(shares)]
        boxes: list[Any] = [pixels[i : i + 4] for i in range(0, len(pixels), 4)]
        types = [] if entry.row.get("unique") is None else ["unique" if entry.row["unique"] else "non_unique"]
        own, columns = str(entry.row.get("question_id", number)), _boxed(boxes, image, types)
        rows.append(make_row(benchmark, own, entry.get("question"), image, name, entry.where, columns=columns))
    return rows


def meter_ml(benchmark: Benchmark, path: Path) -> list[QuestionRow]:
    """METER-ML as published (Zhu et al. 2022; loaders of github.com/stanfordmlgroup/USat and NJU-LHRS/LHRS-Bot).

    The features of `{split}.geojson` or `{split}_dataset.geojson` have the properties `Image_Folder`, such as
    `test_images/ID`, and `Type`. The NAIP image is `naip.png` in that folder; its fourth channel is near infrared. A
    `Type` such as `CAFOs-Landfills` is of two classes: the first is the reference, the others are right too.
    """
    files = [file for file in sorted(path.glob("*.geojson")) if re.split("[._]", file.name)[0] == benchmark.split]
    if len(files) != 1:
        detail = f"{len(files)} files {benchmark.split}*.geojson, expected one; put the official files there"
        raise DataError(detail, "split", str(path))
    rows = []
    for entry in read_json(files[0], "features", "feature"):
        known = Entry(entry.get("properties", dict), entry.where)
        folder = known.get("Image_Folder")
        first, *others = dict.fromkeys(words(part.strip(), benchmark) for part in known.get("Type").split("-"))
        name, choices = f"{folder}/naip.png", list(benchmark.choices)
        image = stored_image(name, entry.where, str(path))
        columns = {"types": [], "references": others}
        more: dict[str, Any] = {"reference": first, "choices": choices, "columns": columns}
        rows.append(make_row(benchmark, folder, LABEL_QUESTION, image, name, entry.where, **more))
    return rows


def karpathy(benchmark: Benchmark, path: Path) -> list[QuestionRow]:
    """Captions as RSICD and RSITMD publish them: `{"images": [{"filename", "split", "sentences": [{"raw"}]}]}`."""
    file = _file(benchmark, path, "dataset.json")
    folder, rows = _folder(benchmark, file.parent, "images"), []
    for entry in read_json(file, "images", "image"):
        if benchmark.split is not None and entry.get("split") != benchmark.split:
            continue
        name, sentences = entry.get("filename"), entry.get("sentences", list)
        captions = [Entry(one, entry.where).get("raw") for one in sentences if isinstance(one, Mapping)]
        if not captions:
            raise entry.error(f"`sentences` is {short(sentences)}, expected [{{raw}}]", "sentences")
        image = stored_image(name, entry.where, folder)
        rows.append(make_row(benchmark, name, CAPTION_REQUEST, image, name, entry.where, captions=captions))
    return rows
