"""Near-duplicate images by perceptual hash, and images that are also in evaluation sets.

Two pictures are the same if their decoded pixels are (`pixel_hash`), and near-duplicates if their perceptual hashes
(64 bits) differ in few bits. Hashes that differ in at most d bits agree on one of d + 1 pieces, so that only hashes
with a piece in common are compared, never all pairs. The hashes of each picture are cached beside the scores: a run
that was stopped resumes, and the next cut decodes nothing.

Left out: near-duplicates under rotation, flips or large crops, pictures of a single colour (their hashes say
nothing), and comparing learned features.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from ..data.captioned_images import load_images
from ..data.image_text import ImageTextRow
from ..data.image_text_dataset import ImageTexts, Unit
from ..data.rows import split_of
from ..errors import DataError, ImageError, OptionError
from ..imagery.identity import encoded_hash, perceptual_hash, pixel_hash
from ..imagery.raster import read_image
from ..imagery.sources import ImageOptions, ImageSource
from ..runs.files import replacing
from ..runs.progress import progress
from ..scoring.base import ahead
from .options import FARTHEST

SCHEMA = pa.schema(
    [
        ("image_hash", pa.string()),
        ("contents", pa.list_(pa.string())),
        ("hashes", pa.list_(pa.uint64())),
        ("error", pa.string()),
    ]
)
PART = 4096  # images after which their hashes are cached
_FLAT = np.array([0, 1 << 63], np.uint64)  # the hashes of a picture of a single colour
_PAIRS = 1 << 22  # pairs compared at once: 32 MB


def near_pairs(a: np.ndarray, b: np.ndarray, distance: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields all pairs of uint64 hashes that differ in at most `distance` bits, some of them more than once.

    The pairs come as indices into `a` and into `b`, int64 `(pairs,)` each.

    Raises:
        OptionError: The distance is more than [`FARTHEST`].
    """
    if not 0 <= distance <= FARTHEST:
        raise OptionError(
            f"the distance of near-duplicates is {distance}, expected 0 to {FARTHEST} bits", "near_distance"
        )
    edges = [round(64 * i / (distance + 1)) for i in range(distance + 2)]
    for low, high in pairwise(edges):
        shift, mask = np.uint64(low), np.uint64((1 << (high - low)) - 1)
        a_piece, b_piece = ((hashes >> shift) & mask for hashes in (a, b))
        a_order, b_order = np.argsort(a_piece, kind="stable"), np.argsort(b_piece, kind="stable")
        values = np.intersect1d(a_piece, b_piece)
        ranges = (
            np.searchsorted(pieces[order], values, side)
            for pieces, order in ((a_piece, a_order), (b_piece, b_order))
            for side in ("left", "right")
        )
        for begin, end, left, right in zip(*ranges, strict=True):
            in_b = b_order[left:right]
            step = max(1, _PAIRS // len(in_b))
            for start in range(begin, end, step):
                in_a = a_order[start : min(start + step, end)]
                i, j = np.nonzero(np.bitwise_count(a[in_a][:, None] ^ b[in_b]) <= distance)
                if i.size:
                    yield in_a[i], in_b[j]


def near_groups(hashes: np.ndarray, distance: int) -> np.ndarray:
    """Returns the group of each hash: two are in one group if a chain of near-duplicates leads from one to the other.

    Near-duplicates are uint64 hashes that differ in at most `distance` bits.

    Example:
        >>> near_groups(np.array([0b1111, 0b1110, 1 << 40, 0b1100], np.uint64), 1)
        array([0, 0, 1, 0])
    """
    distinct, inverse = np.unique(hashes, return_inverse=True)
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
    groups = _joined(groups, links)[inverse]
    _, first, numbers = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[numbers]  # numbered in the order of the data


def _joined(groups: np.ndarray, links: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Merges the groups that are linked."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not links:
        return groups
    i, j = (np.concatenate(ends) for ends in zip(*links, strict=True))
    graph = coo_array((np.ones(len(i), bool), (i, j)), shape=(len(groups), len(groups)))
    return connected_components(graph, directed=False)[1][groups]


def read_rows(
    inputs: ImageTexts, units: Sequence[Unit], row_ids: pa.Array | Sequence[str]
) -> Iterator[tuple[int, ImageTextRow]]:
    """Reads single rows of an input again; yields the index in `row_ids` (in the order of the data), and the row.

    Units without them are skipped. A row that is not there any more is a [`DataError`].
    """
    i = 0
    for unit, after in zip(units, [*units[1:], None], strict=True):
        if i == len(row_ids):
            return
        if not _holds(unit, after, str(row_ids[i])):
            continue
        for row in inputs.read(unit):
            if row.row_id == str(row_ids[i]):
                yield i, row
                i += 1
                if i == len(row_ids) or not _holds(unit, after, str(row_ids[i])):
                    break
    if i < len(row_ids):
        raise DataError(
            f"has no row {row_ids[i]} any more; the scores are of what it was before: put it back or score anew",
            where=inputs.name,
        )


def _holds(unit: Unit, after: Unit | None, row_id: str) -> bool:
    """Whether a row is in a unit, which ends where the next one begins: not every unit knows its length."""
    file, _, number = row_id.rpartition(":")
    return (
        file == unit.file
        and int(number) >= unit.first
        and (after is None or after.file != file or int(number) < after.first)
    )


def look_at_rows(
    inputs: ImageTexts,
    units: Sequence[Unit],
    row_ids: pa.Array,
    image_hashes: pa.Array,
    options: ImageOptions,
    *,
    near: bool,
    folder: Path | None = None,
) -> pa.Table:
    """Decodes the images of rows and hashes their pixels; see [`read_rows`].

    Args:
        row_ids, image_hashes (`pyarrow.Array`): A row of each distinct image, and the image's `image_hash`.
        options ([`ImageOptions`]), near (`bool`): How images are read, and whether to take the perceptual hash too.
        folder (`Path`, *optional*): Cache of what is known of each image.

    Returns:
        `pyarrow.Table`: `image_hash`, `contents` ([`pixel_hash`] of each image of a row), `hashes` (null without
        `near`), `error` (null if it can be read). It may hold more images than were asked for.
    """
    if near:
        perceptual_hash(Image.new("L", (32, 32)))  # a missing package is reported at once
    known = _cached(folder, near)
    todo = pc.invert(pc.is_in(image_hashes, value_set=known["image_hash"].combine_chunks()))
    row_ids, image_hashes = row_ids.filter(todo), image_hashes.filter(todo)

    def look(found: tuple[int, ImageTextRow]) -> dict[str, Any]:
        i, row = found
        line: dict[str, Any] = {"image_hash": str(image_hashes[i])}
        try:
            if row.error is not None:
                raise row.error
            line["contents"], hashes = _hashes_of(row.images, options, row.groups[0].where, near)
        except (ImageError, DataError) as error:
            return line | {"error": str(error)}
        return line | ({"hashes": hashes} if near else {})

    tables = [known]
    lines: list[dict[str, Any]] = []
    try:
        with progress(len(row_ids), 0, "decoding images") as advance:
            for line in ahead(look, read_rows(inputs, units, row_ids), os.cpu_count() or 1):
                lines.append(line)
                advance(1)
                if len(lines) >= PART:
                    tables.append(_cache(lines, folder))
                    lines = []
    finally:  # also when stopped
        if lines:
            tables.append(_cache(lines, folder))
    return pa.concat_tables(tables)


def _hashes_of(
    sources: Sequence[ImageSource], options: ImageOptions, where: str, near: bool
) -> tuple[list[str], list[int]]:
    """The pixel hashes of images, and with `near` their perceptual hashes."""
    pictures = [read_image(source, options, where) for source in sources]
    return [pixel_hash(picture) for picture in pictures], [perceptual_hash(p) for p in pictures] if near else []


def _cached(folder: Path | None, near: bool) -> pa.Table:
    """What is known from before; with `near` only of images whose perceptual hash was taken."""
    files = sorted(folder.glob("part-*.parquet")) if folder is not None else []
    table = pa.concat_tables([SCHEMA.empty_table(), *(pq.read_table(file, schema=SCHEMA) for file in files)])
    table = table.filter(pc.is_valid(table["hashes"])) if near else table
    return table.filter(pc.is_null(table["error"]))  # what could not be read may have been mended


def _cache(lines: Sequence[dict[str, Any]], folder: Path | None) -> pa.Table:
    """Turns lines into a table, and keeps it on disk if there is a folder for it."""
    table = pa.Table.from_pylist(lines, SCHEMA)
    if folder is not None:
        name = hashlib.sha256(repr(lines).encode()).hexdigest()[:32]  # the same when a killed run starts again
        with replacing(folder / f"part-{name}.parquet", "wb") as file:
            pq.write_table(table, file)
    return table


@dataclass
class Evaluation:
    """The images of evaluation sets."""

    contents: dict[str, str] = field(default_factory=dict)  # pixel hash, and SHA-256 of the encoding -> which image
    hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))  # perceptual hashes, uint64 `(m,)`
    names: list[str] = field(default_factory=list)  # `(m,)`: the image of each perceptual hash
    images: int = 0
    unread: int = 0  # images that could not be decoded and are compared by their bytes only


def look_at_evaluation(sets: Sequence[str], options: ImageOptions, near: bool) -> Evaluation:
    """Hashes the images of evaluation sets, `PATH` or `PATH:SPLIT`; with `near` also perceptually.

    An image that cannot be read as the images to compare with is read with the defaults, and if that fails too,
    compared by its bytes.
    """

    def look(row: Mapping[str, Any]) -> tuple[str, str, list[str], list[int]]:
        where = row.get("where", row["id"])
        digest = encoded_hash(row["image"], where=where)
        for reading in (replace(options, image_root=None), ImageOptions()):
            try:
                return row["id"], digest, *_hashes_of([row["image"]], reading, where, near)
            except ImageError:
                continue
        return row["id"], digest, [], []

    evaluation = Evaluation()
    hashes: list[int] = []
    for path in sets:
        rows = load_images(*split_of(path))
        with progress(len(rows), 0, f"images of {path}") as advance:
            for row_id, digest, contents, own_hashes in ahead(look, rows, os.cpu_count() or 1):
                for content in (digest, *contents):
                    evaluation.contents.setdefault(content, f"{path} {row_id}")
                hashes += own_hashes
                evaluation.names += [f"{path} {row_id}"] * len(own_hashes)
                evaluation.unread += not contents
                advance(1)
        evaluation.images += len(rows)
    evaluation.hashes = np.array(hashes, np.uint64)
    return evaluation


def find_in_evaluation(pictures: pa.Table, evaluation: Evaluation, distance: int | None) -> dict[str, tuple[str, str]]:
    """Finds the images of [`look_at_rows`] that are in evaluation sets.

    With a `distance`, also images whose perceptual hash differs in at most so many bits. Returns `image_hash` -> the
    evaluation image, and how the two are alike.
    """
    matches: dict[str, tuple[str, str]] = {}
    names = pictures["image_hash"].to_pylist()
    for name, contents in zip(names, pictures["contents"].to_pylist(), strict=True):
        for content in (name, *(contents or ())):
            if content in evaluation.contents:
                matches.setdefault(name, (evaluation.contents[content], "same picture"))
    if distance is not None:
        hashes, owners = _perceptual_hashes(pictures)
        for i, j in near_pairs(hashes, evaluation.hashes, distance):
            bits = np.bitwise_count(hashes[i] ^ evaluation.hashes[j])
            for line, other, differ in zip(owners[i].tolist(), j.tolist(), bits.tolist(), strict=True):
                matches.setdefault(names[line], (evaluation.names[other], f"{differ} of 64 bits differ"))
    return matches


def group_near_duplicates(pictures: pa.Table, distance: int) -> np.ndarray:
    """Returns the group, see [`near_groups`], of each line of the table of [`look_at_rows`], int64 `(lines,)`.

    It is -1 for lines that are not compared: rows with several images, unreadable images, pictures of a single colour.
    """
    hashes, owners = _perceptual_hashes(pictures)
    alone = np.bincount(owners, minlength=len(pictures)) == 1
    alone &= np.array([len(contents or ()) == 1 for contents in pictures["contents"].to_pylist()], bool)
    hashes, owners = hashes[alone[owners]], owners[alone[owners]]
    groups = np.full(len(pictures), -1, np.int64)
    groups[owners] = near_groups(hashes, distance)
    return groups


def _perceptual_hashes(pictures: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """All perceptual hashes but those of a single colour, and the line of each."""
    column = pictures["hashes"].combine_chunks()
    hashes = pc.list_flatten(column).to_numpy(zero_copy_only=False).astype(np.uint64)
    owners = pc.list_parent_indices(column).to_numpy(zero_copy_only=False).astype(np.int64)
    useful = ~np.isin(hashes, _FLAT)
    return hashes[useful], owners[useful]
