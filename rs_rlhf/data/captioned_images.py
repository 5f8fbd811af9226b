"""`rs-rlhf data pairs`: reads captioned or labelled images, writes preference pairs made by [`build_pairs`].

The output is JSON lines with image paths relative to it. Images that are files below its folder stay where they are;
others (bytes in Parquet, files elsewhere) are written once each. Left out: Parquet output (it would hold each image
once per pair), and near-duplicate search (only images with the same decoded pixels are kept apart).
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError, ImageError, OptionError
from ..imagery.identity import encoded_hash, pixel_hash
from ..imagery.raster import ImageOptions, read_image
from ..imagery.sources import resolve_path
from ..preferences.damage import KINDS, NEEDS, PROMPTS, build_pairs, class_name
from ..preferences.lists import LIST_KINDS, build_lists
from .rows import HELD_OUT, data_files, draw_rows, split_of

__all__ = ["exclude_images", "load_images", "main", "place_images", "split_files", "stored_image"]

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
# Decodes what has many bands or more than 8 bits too.
_ANY_RASTER = ImageOptions(bands=(1,), stretch="fixed", stretch_range=(0, 1))


def _texts(entry: Mapping[str, Any], where: str) -> tuple[list[str], str | None]:
    """The captions and the class name of a row."""
    captions, caption, label = entry.get("captions"), entry.get("caption"), entry.get("label")
    if isinstance(captions, str):
        raise OptionError(f"{where}: `captions` must be a list of texts; a single one is `caption`.")
    if captions is not None and not (isinstance(captions, list) and all(isinstance(one, str) for one in captions)):
        raise OptionError(f"{where}: `captions` must be a list of texts, not {captions!r:.60}.")
    if caption is not None and not isinstance(caption, str):
        raise OptionError(f"{where}: `caption` must be a text, not {caption!r:.60}; several are a list `captions`.")
    if label is not None and not isinstance(label, str):
        raise OptionError(f"{where}: `label` must be the class name, not {label!r:.60}; map numbers to names first.")
    return list(captions or ([caption] if caption else [])), label or None


def stored_image(value: Any, where: str, root: str) -> dict[str, Any] | str:
    """Stored bytes, or the path of an existing file inside `root`."""
    if isinstance(value, bytes):
        return {"bytes": value, "path": None}
    if isinstance(value, dict) and value.get("bytes") is not None:
        return value
    path = value.get("path") if isinstance(value, dict) else value
    if path is None or path == "":
        raise OptionError(f"{where}: the image is missing; add it or remove the row.")
    if not isinstance(path, str):
        raise OptionError(f"{where}: `image` is {path!r:.60}, expected a path, bytes or {{'bytes', 'path'}}.")
    return str(resolve_path(path, ImageOptions(image_root=root), where))


def _merged(entries: Iterable[tuple[int, Mapping[str, Any]]], file: Path, root: str) -> Iterator[dict[str, Any]]:
    """Rows of a JSONL or CSV file, one per image: captions of the same image are gathered."""
    rows: dict[str, dict[str, Any]] = {}
    for number, entry in entries:
        name, where = entry.get("image"), f"{file}, row {number}"
        if not isinstance(name, str) or not name:
            raise OptionError(f"{where}: no `image` path (keys: {', '.join(map(str, entry))}); add one.")
        captions, label = _texts(entry, where)
        if name not in rows:
            image = stored_image(name, where, root)
            rows[name] = {"image": image, "id": name, "captions": [], "label": None, "where": where}
        rows[name]["captions"] += captions
        rows[name]["label"] = rows[name]["label"] or label
    yield from rows.values()


def _json_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError as error:
                    raise OptionError(f"{file}, line {number}: not JSON ({error}); write one object a line.") from None
                if not isinstance(entry, dict):
                    raise OptionError(
                        f"{file}, line {number}: expected a JSON object with `image`, not {entry!r:.40}."
                    )
                yield number, entry


def _parquet(file: Path, root: str) -> Iterator[dict[str, Any]]:
    # Read straight from the file: `load_dataset` would first copy every image into a cache.
    import datasets
    import pyarrow.parquet as pq

    table = pq.ParquetFile(file)
    features = datasets.Features.from_arrow_schema(table.schema_arrow)
    if "image" not in features:
        raise OptionError(f"{file}: no `image` column (columns: {', '.join(features)}); rename the image column.")
    label = features.get("label")
    number = 0
    for batch in table.iter_batches(batch_size=256):
        for row in batch.to_pylist():
            image, where = row["image"], f"{file}, row {number}"
            path = image.get("path") if isinstance(image, dict) else image if isinstance(image, str) else None
            name = row.get("filename") or path or f"{file.stem}-{number:06d}"
            if isinstance(label, datasets.ClassLabel) and row["label"] is not None:
                row["label"] = label.int2str(row["label"])
            row["captions"], row["label"] = _texts(row, where)
            yield {**row, "image": stored_image(image, where, root), "id": str(name), "where": where}
            number += 1


def _image_folder(folder: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in _IMAGE_SUFFIXES:
            name = file.relative_to(folder).as_posix()
            yield {"image": str(file), "label": file.parent.name, "captions": [], "id": name}


def split_files(root: Path, split: str | None) -> list[Path]:
    """The data files of a split of a folder, all of one format; none if it is a folder of images."""
    found = data_files(root, split)
    return next((found[kind] for kind in ("parquet", "jsonl", "csv") if kind in found), [])


def load_images(path: str | Path, split: str | None = None, *, image_root: str | None = None) -> list[dict[str, Any]]:
    """Reads images with their captions and classes from any of four layouts.

    - Parquet files as the `datasets` library writes them, `image` being bytes or a path and `label` a name or a
      `ClassLabel`: one file, or a folder of `{split}*.parquet` (also in its sub-folder `data`).
    - JSON lines `{"image", "captions" or "caption", "label"}`, or CSV with columns `image,caption[,label]`: one file,
      or a folder of `{split}.jsonl` / `{split}.csv`. Rows of one image are merged.
    - A folder of images `{split}/class/*.jpg` or `class/*.jpg`, which has labels only.

    Args:
        path (`str` or `Path`): File or folder.
        split (`str`, *optional*): Which split of a folder to read; all of it when left out.
        image_root (`str`, *optional*): Folder that image paths in files start from and that none may leave (default:
            the file's own).

    Returns:
        `list[dict]`: Rows for [`build_pairs`]: `image`, `captions`, `label`, `id`, `source`, and in which file and row
        they are, `where`.

    Raises:
        ImageError: A row names an image that is not there, or outside `image_root`.
        ValueError: Nothing to read, or a row that has no image or texts of the wrong type.
    """
    root = Path(path)
    if not root.exists():
        raise DataError(f"{root} does not exist; give a Parquet, JSONL or CSV file or a folder.")
    files = split_files(root, split) if root.is_dir() else [root]
    rows: list[dict[str, Any]] = []
    for file in files:
        start = str(file.parent) if image_root is None else image_root
        if file.suffix == ".parquet":
            rows += _parquet(file, start)
        elif file.suffix == ".jsonl":
            rows += _merged(_json_lines(file), file, start)
        elif file.suffix == ".csv":
            with file.open(newline="", encoding="utf-8") as lines:
                rows += _merged(enumerate(csv.DictReader(lines), start=1), file, start)
        else:
            raise OptionError(f"{file}: expected .parquet, .jsonl or .csv, or a folder of images by class.")
    if not files and (not split or (root / split).is_dir()):
        rows += _image_folder(root / split if split else root)
    if not rows:
        what = f"nothing of split {split!r}" if split else "no images"
        raise OptionError(
            f"{root}: {what} found; expected {split or '*'}*.parquet, {split or '*'}.jsonl, {split or '*'}.csv or "
            f"{split + '/' if split else ''}class/*.jpg. Check the path{', or leave the split out' if split else ''}."
        )
    return [{**row, "source": row.get("source") or root.stem} for row in rows]


def _held_out(root: Path) -> list[str]:
    """The splits of a folder that are for evaluation."""
    splits: dict[tuple[Path, ...], str] = {}
    for name in HELD_OUT if root.is_dir() else ():
        files = tuple(split_files(root, name))
        if files or any(_image_folder(root / name)):
            # "val*.parquet" are the files of "validation" too.
            splits.setdefault(files or (root / name,), name)
    return list(splits.values())


def _check_image(image: Any, where: str) -> None:
    """Decodes an image of any kind, or raises [`ImageError`]."""
    read_image(image, _ANY_RASTER, where)


def _content_key(row: Mapping[str, Any]) -> str:
    """Hash of the decoded picture; of the file, where showing it would need a choice of bands or stretch."""
    image, where = row["image"], row.get("where", "")
    try:
        return pixel_hash(image, where=where)
    except ImageError:
        _check_image(image, where)
    return encoded_hash(image, where=where)


def _without_images_of(rows: Sequence[dict[str, Any]], others: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Drops rows whose picture occurs in `others`."""
    excluded = {_content_key(other) for other in others}
    return [row for row in rows if _content_key(row) not in excluded]


def exclude_images(
    rows: list[dict[str, Any]],
    path: str,
    split: str | None,
    exclude_images_of: Sequence[str] = (),
    image_root: str | None = None,
) -> list[dict[str, Any]] | None:
    """Drops rows whose picture is also in data kept for evaluation, and prints how many.

    Args:
        rows (`list[dict]`): Rows of [`load_images`]; all of them are decoded if there is anything to compare with.
        path (`str`): The input; where it is a folder and `split` is `"train"`, its evaluation splits are left out.
        split (`str`, *optional*): Split that the rows are of.
        exclude_images_of (sequence of `str`): `PATH` or `PATH:SPLIT` of other data whose pictures are left out.
        image_root (`str`, *optional*): As for [`load_images`], of the input.

    Returns:
        `list[dict]` or `None`: The rows that are left; `None` if there was nothing to compare with.
    """
    own = [(path, name) for name in _held_out(Path(path))] if split == "train" else []
    given = [other for other in map(split_of, exclude_images_of) if other not in own]
    if not own and not given:
        return None
    others = [row for other in own for row in load_images(*other, image_root=image_root)]
    others += [row for other in given for row in load_images(*other)]
    kept = _without_images_of(rows, others)
    names = ", ".join(f"{path}:{split}" if split else path for path, split in [*own, *given])
    print(f"{len(rows) - len(kept)} of them excluded, being in {names}")
    return kept


def place_images(rows: Sequence[dict[str, Any]], root: Path, folder: Path, overwrite: bool, checked: bool) -> int:
    """Makes every image a path relative to `root`, writing those that are not below it once under `folder`.

    Returns the number of images written. Nothing is written if any file would be replaced unasked, or any is not an
    image; `checked` ones have been decoded before.
    """
    if not folder.resolve().is_relative_to(root.resolve()):
        raise OptionError(f"--images-dir {folder} is outside {root}, where image paths start; choose one in it.")
    todo: dict[Path, tuple[str, Any]] = {}
    for row in rows:
        image = row["image"]
        source = None if isinstance(image, dict) else Path(image)
        if source is not None and source.resolve().is_relative_to(root.resolve()):
            row["image"] = source.resolve().relative_to(root.resolve()).as_posix()
            continue
        # Only plain name parts: an id such as "../x.jpg" must not lead out of the folder.
        target = folder.joinpath(*[part for part in Path(row["id"]).parts if part not in ("..", "/")])
        if target.suffix.lower() not in _IMAGE_SUFFIXES:
            target = target.with_name(target.name + ".png")
        if target in todo:
            raise OptionError(f"Rows {todo[target][0]!r} and {row['id']!r} would both be {target}; rename one.")
        if not checked:
            _check_image(image, row.get("where", ""))
        todo[target] = (row["id"], source or image["bytes"])
        row["image"] = target.resolve().relative_to(root.resolve()).as_posix()
    for target, (_, content) in todo.items():
        data = content.read_bytes() if isinstance(content, Path) else content
        if target.exists() and not overwrite and target.read_bytes() != data:
            raise OptionError(f"{target} exists with other content; choose another --images-dir or --overwrite.")
    for target, (_, content) in todo.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.read_bytes() if isinstance(content, Path) else content)
    return len(todo)


def image_texts(data: str) -> list[str]:
    """Returns the captions and class names of captioned or labelled images, and the questions asked about them.

    Args:
        data (`str`): `PATH` or `PATH:SPLIT`, as for [`load_images`].
    """
    texts = sorted({prompt for prompt in PROMPTS.values() if prompt})
    for row in load_images(*split_of(data)):
        captions = row.get("captions") or [row.get("caption")]
        texts += [text for text in (*captions, class_name(row.get("label") or "")) if text]
    return texts


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rs-rlhf data pairs",
        description="Make preference pairs, each with a known kind of damage, from captioned or labelled images.",
        epilog="Kinds: " + "; ".join(f"{kind} needs {needs}" for kind, needs in NEEDS.items()) + ".",
    )
    add = parser.add_argument
    add("--input", required=True, help="Parquet, JSONL or CSV file, a folder of them, or a folder of images by class")
    add(
        "--split",
        help="split of the input folder to read, e.g. train (default: all of it); train leaves out the images that "
        "are also in the folder's validation, test or other evaluation splits",
    )
    add(
        "--image_root",
        "--image-root",
        metavar="DIR",
        help="image paths in the input start here, and images lie in it (default: their file's folder)",
    )
    add("--output", required=True, type=Path, help="JSONL file to write; image paths in it are relative to its folder")
    add(
        "--images_dir",
        "--images-dir",
        type=Path,
        help="where images that are not below the output's folder are written, once each "
        "(default: images/SPLIT beside the output)",
    )
    add(
        "--exclude_images_of",
        "--exclude-images-of",
        action="append",
        default=[],
        metavar="PATH[:SPLIT]",
        help="drop images whose decoded pixels occur in this other data too; may be repeated",
    )
    add("--kinds", default=",".join(KINDS), help="comma-separated kinds of damage (default: all)")
    add(
        "--pairs_per_image",
        "--pairs-per-image",
        type=int,
        default=5,
        help="attempts (lists: lists) per image, the kinds taking turns (default: 5)",
    )
    add(
        "--form",
        choices=("pairs", "list"),
        default="pairs",
        help="pairs, or lists of one right text against many wrong ones (for --ranked_rejected false): of the class, "
        "and of captions against those of other classes, with a wrong attribute, and cut short",
    )
    add("--rejected", type=int, default=8, help="rejected texts of a list (default: 8)")
    add("--seed", type=int, default=0, help="seed of all choices (default: 0)")
    add("--limit", type=int, help="use at most this many images, drawn by the seed")
    add("--overwrite", action="store_true", help="replace an existing output")
    return parser


def check_output(output: Path, overwrite: bool) -> None:
    """Refuses an output that is not JSON lines, or that is there and may not be replaced."""
    if output.suffix != ".jsonl":
        raise OptionError(f"--output {output}: only .jsonl is written, with each image once as a file; end it so.")
    if output.exists() and not overwrite:
        raise OptionError(f"{output} exists; choose another --output or pass --overwrite.")


def read_input(args: argparse.Namespace, limit: int | None = None) -> tuple[list[dict[str, Any]], bool]:
    """Reads the images that a command's `--input`, `--split`, `--image_root` and `--exclude_images_of` name.

    Returns:
        `tuple`: the rows of [`load_images`], at most `limit` drawn by `--seed`, and whether all were decoded.

    Raises:
        ValueError: No images are left.
    """
    rows = load_images(args.input, args.split, image_root=args.image_root)
    print(f"{len(rows)} images in {args.input}{f', split {args.split}' if args.split else ''}")
    excluded = exclude_images(rows, args.input, args.split, args.exclude_images_of, args.image_root)
    rows = rows if excluded is None else excluded
    if limit is not None and limit < len(rows):
        # Drawn, not the first ones: folders of images are sorted by class.
        rows = [rows[i] for i in draw_rows(len(rows), limit, args.seed)]
        print(f"{len(rows)} of them used (--limit)")
    if not rows:
        raise OptionError("No images are left; check --input, --split and --exclude-images-of.")
    return rows, excluded is not None


def numbered(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns rows with their number in place of the image, which [`write_output`] puts back as a path."""
    return [{**row, "image": str(number)} for number, row in enumerate(rows)]


def write_output(
    made: Sequence[Mapping[str, Any]],
    rows: Sequence[dict[str, Any]],
    args: argparse.Namespace,
    folder: Path,
    checked: bool,
    what: str,
) -> None:
    """Writes a command's `--output`, and the images of `rows` that are not below its folder; says how many.

    Args:
        made (sequence of `dict`): What is written, made of [`numbered`] rows.
        rows (sequence of `dict`): The rows, whose images become paths.
        args (`Namespace`): With `output`, `images_dir` and `overwrite`.
        folder (`Path`): Where images go unless `--images_dir` says otherwise.
        checked (`bool`): As for [`place_images`].
        what (`str`): What `made` are called.
    """
    output: Path = args.output
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = args.images_dir or folder
    written = place_images(rows, output.parent, folder, args.overwrite, checked)
    partial = output.with_name(output.name + ".partial")
    with partial.open("w", encoding="utf-8") as lines:
        for row in made:
            lines.write(json.dumps({**row, "image": rows[int(row["image"])]["image"]}, ensure_ascii=False) + "\n")
    partial.replace(output)
    print(f"{len(made)} {what} -> {output}" + (f"; {written} images -> {folder}" if written else ""))


def _run(args: argparse.Namespace) -> None:
    check_output(args.output, args.overwrite)
    if args.limit is not None and args.limit < 1:
        raise OptionError(f"--limit is {args.limit}; it must be at least 1.")
    rows, checked = read_input(args, args.limit)
    # All pairs first: a wrong kind or row must not leave images behind. They share the rows' image objects.
    stats: dict[str, Counter[str]] = {}
    kinds = [kind.strip() for kind in args.kinds.split(",") if kind.strip()]
    given = numbered(rows)
    if args.form == "list":
        if args.kinds != ",".join(KINDS):
            raise OptionError("--kinds is for pairs; a list has all kinds that it can: leave it out.")
        kinds, count = list(LIST_KINDS), args.pairs_per_image
        pairs = list(build_lists(given, rejected=args.rejected, lists_per_image=count, seed=args.seed, stats=stats))
    else:
        pairs = list(
            build_pairs(given, kinds=kinds, pairs_per_image=args.pairs_per_image, seed=args.seed, stats=stats)
        )
    folder = args.output.parent / "images" / (args.split or "all")
    write_output(pairs, rows, args, folder, checked, "pairs" if args.form == "pairs" else "lists")
    print(f"{'kind':<16}{'pairs':>8}{'skipped':>9}  needs")
    for kind in kinds:
        print(f"{kind:<16}{stats['made'][kind]:>8}{stats['skipped'][kind]:>9}  {NEEDS[kind]}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `rs-rlhf data pairs`: reads images, writes pairs as JSON lines, prints how many of each kind.

    Args:
        argv (sequence of `str`, *optional*): Command-line arguments; those of the process when left out.

    Returns:
        `int`: 0, or 1 after a mistake in the input, told in one sentence on standard error.
    """
    args = _parser().parse_args(argv)
    try:
        _run(args)
    except (ValueError, OSError) as error:
        print(f"rs-rlhf data pairs: {error}", file=sys.stderr)
        return 1
    return 0
