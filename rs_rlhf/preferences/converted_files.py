"""Files of converted rows: JSON lines, JSON and Parquet, with the images that they name or hold.

The input is read twice, never held: once to find every mistake, and what all rows have in common, before anything is
written, and once to write. Left out: splitting into several files, checking pixels (`rs-rlhf data check`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..data import label_studio
from ..data.captioned_images import load_images, split_files
from ..data.columns import Columns, is_image, parse_columns
from ..data.group import check_encodable
from ..data.image_text_dataset import curated
from ..data.packed_records import dataset_labels, parquet_labels
from ..data.placed_images import (
    StoredImage,
    check_folder,
    check_target,
    image_bytes,
    image_name,
    placed,
    write_image,
)
from ..data.rows import RSRM, Part, Where, data_files, format_of, image_folder, is_saved, open_rows, parts_of
from ..data.survey import announce, require_images
from ..errors import DataError, OptionError
from ..imagery.options import split_sensor
from ..runs.files import replacing
from ..runs.progress import progress
from .convert import ROWS, Form, Kind, Pairs, Sample, as_texts, read_samples, with_texts

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES: dict[Form, tuple[str, ...]] = {
    "trl": (".jsonl", ".parquet"),
    "llava": (".json", ".jsonl"),
    "label-studio": (".json",),
    "jsonl": (".jsonl",),
    "parquet": (".parquet",),
}
_BATCH_ROWS = 1000
_BATCH_BYTES = 2**24
_MESSAGES = ("prompt", "chosen", "rejected", "completion")


class Converted(NamedTuple):
    """How many rows were read and written, and how many image files were written."""

    read: int
    rows: int
    images: int


@dataclass
class _Common:
    """What all rows have in common, found in the first reading."""

    kind: Kind | None = None
    rows: int = 0
    made: int = 0
    pictured: int = 0
    plain: bool = True
    one_image: bool = True
    one_rejected: bool = True
    margins: bool = False

    def add(self, sample: Sample) -> None:
        """Adds a row; [`DataError`] if it is of another kind."""
        if self.kind not in (None, sample.kind):
            reason = f"the row holds {sample.kind}, the rows before it hold {self.kind}"
            raise DataError(f"{reason}; convert them from files of their own", "", sample.where)
        count = len(sample.images)
        self.kind, self.rows, self.pictured = sample.kind, self.rows + 1, self.pictured + bool(count)
        self.plain, self.one_image = self.plain and sample.plain, self.one_image and count <= 1
        self.one_rejected = self.one_rejected and all(len(group.completions) <= 2 for group in sample.groups)
        self.margins = self.margins or sample.rest.get("margin") is not None


@dataclass
class _Conversion:
    """One conversion: rows by [`rows`][_Conversion.rows], as often as they are asked for, and the look of each."""

    input: str
    split: str | None
    root: str
    columns: Columns
    form: Form
    pairs: Pairs | None
    drop: Sequence[str]
    common: _Common = field(default_factory=_Common)

    def samples(self) -> Iterator[Sample]:
        """Reads the rows; raises at the first that cannot be read."""
        folder, labels = Path(self.input), dict[str, dict[str, list[str]]]()
        asked = folder.is_dir() and not is_saved(folder) and not self.columns.text_only
        if asked and not split_files(folder, self.split, self.root, self.columns.given):
            rows: Iterable[tuple[Where, Any]] = _classes(self.input, self.split)
        else:
            labels = {part.name: _labels(part) for part in parts_of(self.input.removeprefix(RSRM), self.split)}
            rows = open_rows(self.input, self.split, columns=self.columns.given, image_root=self.root)
        for where, row in rows:
            for sample in read_samples(row, where, self.root, self.columns, labels.get(where.file, {})):
                sample.rest = {key: value for key, value in sample.rest.items() if key not in self.drop}
                yield sample

    def rows(self, sample: Sample) -> Iterator[dict[str, Any]]:
        """Yields the rows of the target form, `images` still as they are stored."""
        common = self.common
        for made in ROWS[self.form](sample, self.pairs):
            if self.form in ("jsonl", "parquet"):
                made = as_texts(made) if common.plain else made
                if "rejected" in made and common.one_rejected:
                    made["rejected"] = made["rejected"][0]
            if self.columns.text_only:
                del made["images"]
                made |= {key: with_texts(made[key]) for key in _MESSAGES if key in made}
            if self.form == "label-studio":
                yield made
                continue
            if common.margins:
                made["margin"] = sample.groups[0].margin
            yield made | {key: value for key, value in sample.rest.items() if key not in made}

    def with_images(self, made: dict[str, Any], images: list[Any]) -> dict[str, Any]:
        """A row with its images in the column of the target form."""
        if "images" not in made:
            return made
        if self.form == "trl" or not self.common.one_image:
            return {**made, "images": images}
        rest = {key: value for key, value in made.items() if key != "images"}
        if self.form == "label-studio":
            return label_studio.with_image(rest, images[0]) if images else rest
        if self.form == "llava" and not images:  # LLaVA's loader asks whether there is the key
            return rest
        return {"image": images[0] if images else None, **rest}


def convert(
    input: str,
    output: Path,
    form: Form,
    *,
    split: str | None = None,
    image_root: str | None = None,
    columns: Mapping[str, str] | None = None,
    images_dir: Path | None = None,
    pairs: Pairs | None = None,
    drop: Sequence[str] = (),
    overwrite: bool = False,
) -> Converted:
    """Converts rows of any known form into a file of another.

    Args:
        input (`str`): File, folder (also of images by class), saved data set or Hub id, as for [`open_rows`].
        output (`Path`): File to write, with one of the [`SUFFIXES`] of the form.
        form (`str`): `"trl"`, `"llava"`, `"label-studio"`, or the documented form as `"jsonl"` or `"parquet"`.
        split, image_root, columns: As for [`open_rows`].
        images_dir (`Path`, *optional*): Where images that are not below the output's folder are written (default:
            `images` beside it). Parquet holds the bytes of all images instead.
        pairs (`str`, *optional*): What becomes of several rejected texts in TRL's form, as for [`trl_rows`].
        drop (sequence of `str`): Columns that are not carried over.
        overwrite (`bool`): Whether files may be replaced.

    Raises:
        DataError, ImageError: A row cannot be read, or the form cannot hold it; nothing is written then.
        OptionError: The output cannot be written as asked.
    """
    check_converted(input, output, form, split, overwrite)
    job = _conversion(input, split, image_root, columns, form, pairs, drop)
    folder, common = images_dir or output.parent / "images", job.common
    packed = output.suffix == ".parquet"
    if not packed:
        check_folder(folder, output.parent)
    place = _placing(job.root, output.parent, folder)
    _read_once(job, None if packed else place, overwrite)
    if not common.rows:
        raise DataError("no rows; give a file that has some", "", input)
    announce(input, common.rows, common.pictured, split, columns=job.columns.given, image_root=image_root)
    require_images(common.pictured, input, job.columns.given, image_root)
    with progress(common.rows, 0, "writing") as advance:
        written = 0 if packed else _write_json(job, output, place, advance)
        if packed:
            _write_parquet(job, output, advance)
    return Converted(common.rows, common.made, written)


def _conversion(
    input: str,
    split: str | None,
    root: str | None,
    columns: Mapping[str, str] | None,
    form: Form,
    pairs: Pairs | None,
    drop: Sequence[str],
) -> _Conversion:
    """A conversion with the columns and the image root that the input says itself, unless they are given."""
    given = parse_columns(columns)
    if root is None and (path := Path(input)).exists():
        about = curated(path, split)
        root, given = about["image_root"], parse_columns(about.get("columns")) | given
    root = image_folder(input) if root is None else root
    return _Conversion(input, split, root, Columns(given), form, pairs, drop)


def _read_once(job: _Conversion, place: _Place | None, overwrite: bool) -> None:
    """Finds every mistake, and what all rows have in common; with `place`, also what JSON cannot hold."""
    targets = dict[Path, None]()
    with progress(None, 0, "reading") as advance:
        for sample in job.samples():
            job.common.add(sample)
            for made in job.rows(sample):
                job.common.made += 1
                if place is not None:
                    _json({key: value for key, value in made.items() if key != "images"}, sample.where)
            if place is not None:
                _look(sample, targets, place, overwrite)
            advance(1)


def check_converted(input: str, output: Path, form: Form, split: str | None, overwrite: bool) -> None:
    """Refuses an output of another suffix, one that exists and may not be replaced, and one that is read."""
    if output.suffix not in SUFFIXES[form]:
        raise OptionError(f"{output} must end in {' or '.join(SUFFIXES[form])} for --to {form}; name it so.", "output")
    if output.exists() and not overwrite:
        raise OptionError(f"{output} exists; choose another place or pass --overwrite.", "output")
    path = Path(input.removeprefix(RSRM))
    read = [path] if path.is_file() else [file for files in data_files(path, split).values() for file in files]
    if output.exists() and any(file.exists() and file.samefile(output) for file in (read if path.exists() else [])):
        raise OptionError(f"{output} is one of the files that are read; choose another place.", "output")


def _classes(folder: str, split: str | None) -> Iterator[tuple[Where, dict[str, Any]]]:
    for row in load_images(folder, split):
        image = os.path.abspath(row["image"])
        known = {"image": image, "label": row["label"], "id": row["id"], "source": row["source"]}
        yield Where(row["image"], -1), known


def _labels(part: Part) -> dict[str, list[str]]:
    if not isinstance(part.data, Path):
        return dataset_labels(part.data)
    return parquet_labels(part.data) if format_of(part.data) == "parquet" else {}


# --- JSON ---------------------------------------------------------------------------------------------------------

_Place = Callable[[StoredImage], tuple[str, Path | None]]


def _placing(root: str, folder: Path, images: Path) -> _Place:
    """Returns what places an image in `images` unless it lies below `folder`; files are remembered for a while."""
    folder, images = folder.resolve(), images.resolve()
    known = lru_cache(2**16)(lambda path: placed(path, image_name(path, root), folder, images))
    return lambda image: (
        known(image) if isinstance(image, str) else placed(image, image_name(image, root), folder, images)
    )


def _look(sample: Sample, targets: dict[Path, None], place: _Place, overwrite: bool) -> None:
    """Checks the images of a row that are to be written, each once."""
    for image in sample.images:
        _, target = place(image)
        if target is not None and target not in targets:
            targets[target] = None
            _check_bytes(image, sample.where)
            check_target(target, image, overwrite)


def _check_bytes(image: StoredImage, where: Where) -> None:
    if isinstance(image, dict) and not is_image(image["bytes"]):
        raise DataError(
            "the bytes of the image are not those of an image file; correct or remove the row", "image", where
        )


def _write_json(job: _Conversion, output: Path, place: _Place, advance: Callable[[int], None]) -> int:
    """Writes lines, or a list of rows into `.json`; returns how many images were written."""
    written: set[Path] = set()
    begin, between, end = ("[\n", ",\n", "\n]\n") if output.suffix == ".json" else ("", "\n", "\n")
    with replacing(output) as file:
        for sample in job.samples():
            names = {}
            for image in sample.images:
                name, target = place(image)
                names[id(image)] = name
                if target is not None and target not in written:
                    write_image(target, image)
                    written.add(target)
            for made in job.rows(sample):
                row = job.with_images(made, [names[id(image)] for image in made.get("images", ())])
                file.write(begin + _json(row, sample.where))
                begin = between
            advance(1)
        file.write(end)
    return len(written)


def _json(row: Mapping[str, Any], where: Where) -> str:
    """A row as one line; [`DataError`] names the column that JSON cannot hold. A number that is none is null."""
    texts = []
    for key, value in row.items():
        if isinstance(value, float) and value != value:
            value = None
        try:
            text = json.dumps({key: value}, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            advice = f"leave it out with --drop {key}, or write Parquet"
            raise DataError(f"`{key}` holds what JSON does not ({error}); {advice}", key, where) from None
        check_encodable(text, key)
        texts.append(text[1:-1])
    return f"{{{', '.join(texts)}}}"


# --- Parquet ------------------------------------------------------------------------------------------------------


def _write_parquet(job: _Conversion, output: Path, advance: Callable[[int], None]) -> None:
    """Writes rows with the bytes of their images, in a schema that `datasets` reads images by."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema(job)
    with replacing(output, "wb") as file, pq.ParquetWriter(file, schema) as writer:
        for batch in _batches(job, advance):
            try:
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
            except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
                reason = f"rows cannot be written as Parquet ({error}); use --to jsonl, or --drop the column"
                raise DataError(reason, "", job.input) from None


def _batches(job: _Conversion, advance: Callable[[int], None]) -> Iterator[list[dict[str, Any]]]:
    """Rows with their images, some megabytes at a time."""
    batch, size = list[dict[str, Any]](), 0
    for sample in job.samples():
        stored = {id(image): _embedded(image, job.root) for image in sample.images}
        for made in job.rows(sample):
            images = [stored[id(image)] for image in made.get("images", ())]
            batch.append(job.with_images(made, images))
            size += sum(len(image["bytes"]) for image in images)
            if len(batch) >= _BATCH_ROWS or size >= _BATCH_BYTES:
                yield batch
                batch, size = [], 0
        advance(1)
    if batch:
        yield batch


def _embedded(image: StoredImage, root: str) -> dict[str, Any]:
    path = image.get("path") if isinstance(image, dict) else image_name(image, root) + split_sensor(image)[1]
    return {"bytes": image_bytes(image), "path": path}


def _schema(job: _Conversion) -> pa.Schema:
    """The types of all columns over all rows, and that of images as `datasets` notes it."""
    import pyarrow as pa
    from datasets import Features, Image, List

    rows = (
        ({key: value for key, value in made.items() if key != "images"}, sample.where)
        for sample in job.samples()
        for made in job.rows(sample)
    )
    types: dict[str, pa.Schema] = {}
    while batch := list(islice(rows, _BATCH_ROWS)):
        for key in dict.fromkeys(key for row, _ in batch for key in row):
            try:
                found = pa.schema([(key, pa.array([row.get(key) for row, _ in batch]).type)])
                known = types.get(key, found)
                types[key] = pa.unify_schemas([known, found], promote_options="permissive")
            except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
                reason = f"`{key}` holds values that are not of one type ({error}), as Parquet needs them"
                raise DataError(
                    f"{reason}; leave it out with --drop {key}, or use --to jsonl", key, batch[0][1]
                ) from None
    fields = [field for schema in types.values() for field in schema]
    fields = [pa.field(field.name, pa.string()) if pa.types.is_null(field.type) else field for field in fields]
    features = Features.from_arrow_schema(pa.schema(fields))
    if not job.columns.text_only:
        several = job.form == "trl" or not job.common.one_image
        features |= {"images": List(Image())} if several else {"image": Image()}
    return Features(features).arrow_schema
