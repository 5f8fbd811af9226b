"""Which pictures are the same, or nearly so, whatever their files: for leaving out copies and evaluation images.

Two pictures are the same where their decoded pixels are (`pixel_hash`), and near-duplicates where their perceptual
hashes (64 bits of the `imagehash` package's `phash`) differ in few bits. Hashes that differ in at most d bits agree
on one of d + 1 pieces of them, so that only hashes with a piece in common are compared, never all pairs. What was
found about each picture is kept beside the scores: a run that was stopped goes on, and the next cut decodes nothing.

Left out: near-duplicates under rotation, flips or large crops, pictures that are one colour all over (their hashes
say nothing), and comparing learned features.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.captioned_images import load_images
from ..data.image_text import ImageTextRow
from ..data.image_text_dataset import ImageTexts, Unit
from ..data.rows import split_of
from ..errors import DataError, ImageError, OptionError
from ..imagery.identity import encoded_hash, perceptual_hash, pixel_hash
from ..imagery.raster import read_image
from ..imagery.sources import ImageOptions, locate
from ..runs.files import replacing
from ..runs.progress import progress

FARTHEST = 10  # bits: beyond it most pairs of unlike pictures would be compared, and some taken for alike
_FLAT = np.array([0, 1 << 63], np.uint64)  # the hashes of a picture in one colour
_PAIRS = 1 << 22  # pairs compared at once: 32 MB
PART = 4096  # images after which what was found is kept
AT_ONCE = 64  # rows, which hold their encoded images


def near_pairs(a: np.ndarray, b: np.ndarray, distance: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields all pairs of hashes that differ in at most `distance` bits, some of them more than once.

    Args:
        a, b (`np.ndarray`): Uint64 `(n,)` and `(m,)`.
        distance (`int`): At most [`FARTHEST`].

    Yields:
        `tuple`: Places in `a` and in `b`, int64 `(pairs,)` each.
    """
    if not 0 <= distance <= FARTHEST:
        raise OptionError(f"the distance of near-duplicates is {distance}, expected 0 to {FARTHEST} bits")
    edges = [round(64 * i / (distance + 1)) for i in range(distance + 2)]
    for low, high in zip(edges, edges[1:], strict=False):
        piece = np.uint64(low), np.uint64((1 << (high - low)) - 1)
        a_piece, b_piece = ((hashes >> piece[0]) & piece[1] for hashes in (a, b))
        a_order, b_order = np.argsort(a_piece, kind="stable"), np.argsort(b_piece, kind="stable")
        values = np.intersect1d(a_piece, b_piece)
        ranges = (
            np.searchsorted(pieces[order], values, side)
            for pieces, order in ((a_piece, a_order), (b_piece, b_order))
            for side in ("left", "right")
        )
        for begin, end, left, right in zip(*ranges, strict=True):
            other = b_order[left:right]
            step = max(1, _PAIRS // len(other))
            for start in range(begin, end, step):
                own = a_order[start : min(start + step, end)]
                i, j = np.nonzero(np.bitwise_count(a[own][:, None] ^ b[other]) <= distance)
                if i.size:
                    yield own[i], other[j]


def near_groups(hashes: np.ndarray, distance: int) -> np.ndarray:
    """Groups pictures: two are in one group where a chain of near-duplicates leads from one to the other.

    Args:
        hashes (`np.ndarray`): Uint64 `(pictures,)`.
        distance (`int`): Bits by which near-duplicates differ at most.

    Returns:
        `np.ndarray`: Int64 `(pictures,)`, the number of each one's group.

    Example:
        >>> near_groups(np.array([0b1111, 0b1110, 1 << 40, 0b1100], np.uint64), 1)
        array([0, 0, 1, 0])
    """
    distinct, own = np.unique(hashes, return_inverse=True)
    groups = np.arange(len(distinct))
    links: list[tuple[np.ndarray, np.ndarray]] = []
    held = 0
    for i, j in near_pairs(distinct, distinct, distance):
        linked = groups[i] < groups[j]
        if linked.any():
            links.append((groups[i[linked]], groups[j[linked]]))
            held += len(links[-1][0])
        if held > _PAIRS:
            groups, links, held = _joined(groups, links), [], 0
    groups = _joined(groups, links)[own]
    _, first, numbers = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[numbers]  # numbered in the order of the data


def _joined(groups: np.ndarray, links: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Makes one group of any two that are linked."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not links:
        return groups
    i, j = (np.concatenate(ends) for ends in zip(*links, strict=True))
    graph = coo_array((np.ones(len(i), bool), (i, j)), shape=(len(groups), len(groups)))
    return connected_components(graph, directed=False)[1][groups]


# --- reading rows again -------------------------------------------------------------------------------------------


def read_rows(inputs: ImageTexts, units: Sequence[Unit], row_ids: Any) -> Iterator[tuple[int, ImageTextRow]]:
    """Reads single rows of an input again, passing over the units that hold none of them.

    Args:
        inputs ([`ImageTexts`]): The input.
        units (sequence of [`Unit`]): All of it, in its order.
        row_ids (`pyarrow.Array`): Ids of the rows, in the order of the data.

    Yields:
        `tuple`: The place in `row_ids`, and the row.

    Raises:
        DataError: A row is not there any more.
    """
    at = 0
    for unit, after in zip(units, [*units[1:], None], strict=True):
        if at == len(row_ids):
            return
        if not _holds(unit, after, row_ids[at]):
            continue
        for row in inputs.read(unit):
            if row.row_id == str(row_ids[at]):
                yield at, row
                at += 1
                if at == len(row_ids) or not _holds(unit, after, row_ids[at]):
                    break
    if at < len(row_ids):
        raise DataError(
            f"has no row {row_ids[at]} any more; the scores are of what it was before: put it back or score anew",
            where=inputs.name,
        )


def _holds(unit: Unit, after: Unit | None, row_id: Any) -> bool:
    """Whether a row is in a unit, which ends where the one after it begins: not every unit says how long it is."""
    file, _, number = str(row_id).rpartition(":")
    return (
        file == unit.file
        and int(number) >= unit.first
        and (after is None or after.file != file or int(number) < after.first)
    )


# --- what pictures look like --------------------------------------------------------------------------------------


@dataclass
class Evaluation:
    """The images of evaluation sets.

    Args:
        contents (`dict`): [`pixel_hash`] of the decoded pixels, and sha256 of the encoded bytes -> which image.
        hashes (`np.ndarray`): Uint64 `(m,)`: perceptual hashes, of `places`.
        places (`list[str]`): Which image a perceptual hash is of.
        images (`int`): How many.
        unread (`int`): Of them, those that could not be decoded and are compared by their bytes only.
    """

    contents: dict[str, str] = field(default_factory=dict)
    hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    places: list[str] = field(default_factory=list)
    images: int = 0
    unread: int = 0


def look_at(sources: Sequence[Any], options: ImageOptions, where: str, near: bool) -> tuple[list[str], list[int]]:
    """Returns the content hashes of images, and with `near` their perceptual hashes.

    Raises:
        ImageError: One cannot be read.
    """
    contents, hashes = [], []
    for source in sources:
        picture = read_image(source, options, where)
        contents.append(pixel_hash(picture))
        if near:
            hashes.append(perceptual_hash(picture))
    return contents, hashes


def look_at_rows(
    inputs: ImageTexts,
    units: Sequence[Unit],
    row_ids: Any,
    image_hashes: Any,
    options: ImageOptions,
    *,
    near: bool,
    folder: Path | None = None,
) -> Any:
    """Decodes the images of rows and says what they look like.

    Args:
        inputs, units: As for [`read_rows`].
        row_ids, image_hashes (`pyarrow.Array`): A row of each distinct image, and the image's `image_hash`.
        options ([`ImageOptions`]): How images are read.
        near (`bool`): Take the perceptual hash too.
        folder (`Path`, *optional*): Where what was found is kept, and what was found before is read from.

    Returns:
        `pyarrow.Table`: `image_hash`, `contents` (of each image of a row), `hashes` (null without `near`), `error`
        (null if fine). It may hold more images than asked for.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if near:
        perceptual_hash(Image.new("L", (32, 32)))  # says at once what is not installed
    schema = pa.schema(
        [
            ("image_hash", pa.string()),
            ("contents", pa.list_(pa.string())),
            ("hashes", pa.list_(pa.uint64())),
            ("error", pa.string()),
        ]
    )
    known = _known(folder, schema, near)
    todo = pc.invert(pc.is_in(image_hashes, value_set=known["image_hash"].combine_chunks()))
    row_ids, image_hashes = row_ids.filter(todo), image_hashes.filter(todo)

    def look(found: tuple[int, ImageTextRow]) -> dict[str, Any]:
        at, row = found
        made: dict[str, Any] = {"image_hash": str(image_hashes[at])}
        try:
            if row.error is not None:
                raise row.error
            made["contents"], hashes = look_at(row.images, options, row.groups[0].where, near)
        except (ImageError, DataError) as error:
            return made | {"error": str(error)}
        return made | ({"hashes": hashes} if near else {})

    rows = read_rows(inputs, units, row_ids)
    tables = [known]
    looked: list[dict[str, Any]] = []
    try:
        with progress(len(row_ids), 0, "decoding images") as advance, ThreadPoolExecutor(os.cpu_count()) as pool:
            while chunk := list(islice(rows, AT_ONCE)):
                looked += pool.map(look, chunk)
                advance(len(chunk))
                if len(looked) >= PART:
                    tables.append(_kept(pa.Table.from_pylist(looked, schema), folder))
                    looked = []
    finally:  # also when stopped
        if looked:
            tables.append(_kept(pa.Table.from_pylist(looked, schema), folder))
    return pa.concat_tables(tables)


def _known(folder: Path | None, schema: Any, near: bool) -> Any:
    """What was found before; with `near` only of images whose perceptual hash was taken."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    files = sorted(folder.glob("part-*.parquet")) if folder is not None else []
    table = pa.concat_tables([schema.empty_table(), *(pq.read_table(file, schema=schema) for file in files)])
    table = table.filter(pc.is_valid(table["hashes"])) if near else table
    return table.filter(pc.is_null(table["error"]))  # what could not be read may have been mended


def _kept(table: Any, folder: Path | None) -> Any:
    """Keeps a part on the disk, if there is a place for it."""
    import pyarrow.parquet as pq

    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / f"part-{uuid.uuid4().hex}.parquet", "wb") as file:
            pq.write_table(table, file)
    return table


# --- evaluation sets ----------------------------------------------------------------------------------------------


def look_at_evaluation(sets: Sequence[str], options: ImageOptions, near: bool) -> Evaluation:
    """Says what the images of evaluation sets look like.

    Args:
        sets (sequence of `str`): `PATH` or `PATH:SPLIT`, as for [`load_images`].
        options ([`ImageOptions`]): How the images to compare with are read. An image that cannot be read so is read
            with the defaults, and if that fails too, compared by its bytes.
        near (`bool`): Take the perceptual hashes too.
    """

    def look(row: dict[str, Any]) -> tuple[str, list[str], list[int]]:
        where = row.get("where", row["id"])
        file: Any = locate(row["image"], ImageOptions(), where)[0]  # a file or bytes: `load_images` has no more
        content = file.read_bytes() if isinstance(file, Path) else file
        digest = encoded_hash(content)
        for reading in (replace(options, image_root=None), ImageOptions()):
            try:
                return digest, *look_at([content], reading, where, near)
            except ImageError:
                continue
        return digest, [], []

    found = Evaluation()
    hashes: list[int] = []
    for given in sets:
        rows = load_images(*split_of(given))
        with progress(len(rows), 0, f"images of {given}") as advance, ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(rows), AT_ONCE):
                some = rows[start : start + AT_ONCE]
                for row, (digest, contents, own) in zip(some, pool.map(look, some), strict=True):
                    place = f"{given} {row['id']}"
                    for content in (digest, *contents):
                        found.contents.setdefault(content, place)
                    hashes += own
                    found.places += [place] * len(own)
                    found.unread += not contents
                advance(len(some))
        found.images += len(rows)
    found.hashes = np.array(hashes, np.uint64)
    return found


def find_in_evaluation(pictures: Any, evaluation: Evaluation, distance: int | None) -> dict[str, tuple[str, str]]:
    """Finds the images that are in evaluation sets.

    Args:
        pictures (`pyarrow.Table`): Of [`look_at_rows`].
        evaluation ([`Evaluation`]): What not to keep.
        distance (`int`, *optional*): Also find images whose perceptual hash differs in at most so many bits.

    Returns:
        `dict`: `image_hash` -> the evaluation image, and how the two are alike.
    """
    found: dict[str, tuple[str, str]] = {}
    names = pictures["image_hash"].to_pylist()
    for name, contents in zip(names, pictures["contents"].to_pylist(), strict=True):
        for content in (name, *(contents or ())):
            if content in evaluation.contents:
                found.setdefault(name, (evaluation.contents[content], "same picture"))
    if distance is not None:
        hashes, owners = _hashes(pictures)
        for i, j in near_pairs(hashes, evaluation.hashes, distance):
            bits = np.bitwise_count(hashes[i] ^ evaluation.hashes[j])
            for own, other, differ in zip(owners[i].tolist(), j.tolist(), bits.tolist(), strict=True):
                found.setdefault(names[own], (evaluation.places[other], f"{differ} of 64 bits differ"))
    return found


def group_near_duplicates(pictures: Any, distance: int) -> np.ndarray:
    """Groups images by [`near_groups`].

    Args:
        pictures (`pyarrow.Table`): Of [`look_at_rows`].
        distance (`int`): Bits by which near-duplicates differ at most.

    Returns:
        `np.ndarray`: Int64, of each line of the table the number of its group; -1 of what is not compared: rows with
        several images, unreadable ones, and pictures that are one colour all over.
    """
    hashes, owners = _hashes(pictures)
    alone = np.bincount(owners, minlength=len(pictures)) == 1
    alone &= np.array([len(own or ()) == 1 for own in pictures["contents"].to_pylist()], bool)
    hashes, owners = hashes[alone[owners]], owners[alone[owners]]
    groups = np.full(len(pictures), -1, np.int64)
    groups[owners] = near_groups(hashes, distance)
    return groups


def _hashes(pictures: Any) -> tuple[np.ndarray, np.ndarray]:
    """All perceptual hashes that say something, and the line that each is of."""
    import pyarrow.compute as pc

    column = pictures["hashes"].combine_chunks()
    hashes = pc.list_flatten(column).to_numpy(zero_copy_only=False).astype(np.uint64)
    owners = pc.list_parent_indices(column).to_numpy(zero_copy_only=False).astype(np.int64)
    told = ~np.isin(hashes, _FLAT)
    return hashes[told], owners[told]
