"""A folder of scores as samples to choose from, and what is left out before any cut.

Only columns of the scores are in memory, never images: texts and pictures are read again from the input, one piece at
a time, where they are needed. What is left out, in this order: samples without a score, images that are in an
evaluation set, copies (the same image bytes, question and texts), and all but the best of near-duplicate images.

Left out: near-duplicates of texts, and copies across several inputs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..data.image_text import ImageTextRow
from ..data.image_text_dataset import ImageTexts, Unit
from ..errors import DataError
from ..imagery.arguments import READING
from ..imagery.sources import ImageOptions
from . import near_duplicates
from .cut import (
    COPY,
    DROPPED,
    ERROR,
    EXCLUDED,
    NEAR,
    Samples,
    first_texts,
    group_means,
    lower_duplicates,
    number_samples,
    sample_scores,
)
from .shards import missing_units, open_scored, read_manifest, read_scores, read_shard, shard_path

COLUMNS = ("row_id", "text_index", "score", "tokens", "image_hash", "error", "whole", "source", "label")
SAME_ROWS = ("stamp", "split", "image_column", "text_column")  # where these differ, a row id means another row
LISTED = 10_000  # rows that are listed as left out
MANY = 1 << 16  # rows whose ids become Python objects at once


@dataclass
class Scored:
    """What a folder of scores holds, line by line (one a text), and its samples.

    Args:
        folder (`Path`): The folder.
        manifest (`dict`): Its manifest.
        inputs ([`ImageTexts`]): What was scored.
        units (`list[Unit]`): All of it, as it was scored.
        options ([`ImageOptions`]): How images were read.
        missing (`int`): How many shards there are no scores of.
        lines (`pyarrow.Table`): `row_id`, `text_index` and `error`, `(texts,)`.
        scores (`np.ndarray`): Float32 `(texts,)`, NaN where a text has no score.
        complete (`np.ndarray`): Bool `(texts,)`, true for the turns of a conversation.
        sample (`np.ndarray`): Int64 `(texts,)`: the number of the sample that a text is of.
        images (`np.ndarray`): Int32 `(samples,)`: the number of a sample's image, in `image_names`.
        image_names (`pyarrow.Array`): `image_hash` of every distinct image, `""` for none.
        samples ([`Samples`]): The samples; those without a score are marked, all others could be kept.
    """

    folder: Path
    manifest: dict[str, Any]
    inputs: ImageTexts
    units: list[Unit]
    options: ImageOptions
    missing: int
    lines: pa.Table
    scores: np.ndarray
    complete: np.ndarray
    sample: np.ndarray
    images: np.ndarray
    image_names: pa.Array
    samples: Samples

    def image_numbers(self) -> np.ndarray:
        """Returns a number per sample, int64 `(samples,)`, the same for those of one image; others have their own."""
        alone = pc.equal(self.image_names, "").to_numpy(zero_copy_only=False)[self.images]
        return np.where(alone, len(self.image_names) + np.arange(len(self.images)), self.images)

    def row_ids(self, numbers: np.ndarray) -> pa.Array:
        """Returns the row that each of some samples is of."""
        return _one(self.lines["row_id"].take(pa.array(self.samples.first[numbers])))

    def kept_ids(self, kept: np.ndarray) -> pa.Table:
        """Returns `row_id` and `text_index` of the texts that are kept with some samples: of theirs, all with a score.

        Args:
            kept (`np.ndarray`): Bool `(samples,)`.
        """
        places = np.flatnonzero(kept[self.sample] & np.isfinite(self.scores))
        return self.lines.select(["row_id", "text_index"]).take(pa.array(places)).combine_chunks()


def read_scored(folder: str | Path, *, per: str = "text", aggregate: str = "mean", partial: bool = False) -> Scored:
    """Reads a folder of scores.

    Args:
        folder (`str` or `Path`): Written by `rs-rlhf score`.
        per (`str`): `"text"`: conversations are one sample, other rows' texts are one sample each. `"row"`: every row
            is one.
        aggregate (`str`): How the scores of a sample's texts become one: `"mean"` or `"min"`.
        partial (`bool`): Take what is there of a run that is not finished.

    Raises:
        DataError: No folder of scores, an unfinished one, or the input has changed since.
    """
    manifest = read_manifest(folder)
    table = read_scores(folder, COLUMNS, partial=partial)
    inputs = open_scored(folder)
    if not len(table):
        raise DataError("holds no scores yet; go on with `rs-rlhf score`", where=str(folder))
    ids = table["row_id"]
    starts = np.append(True, pc.not_equal(ids.slice(1), ids.slice(0, len(ids) - 1)).to_numpy())
    whole = table["whole"].to_numpy().astype(bool)
    sample = number_samples(starts, whole | (per == "row"))
    first = first_texts(sample)
    lines = pc.fill_null(table["score"], float("nan")).to_numpy()
    scores = sample_scores(sample, lines, whole, aggregate)
    fine = np.isfinite(scores)
    usable = np.isfinite(lines) | ~fine[sample]  # of a sample that cannot be used all texts count
    tokens = pc.fill_null(table["tokens"], 0).to_numpy()
    (images, image_names), (sources, source_names), (labels, label_names) = (
        _coded(table[name]) for name in ("image_hash", "source", "label")
    )
    samples = Samples(
        score=scores,
        first=first,
        row=np.cumsum(starts)[first] - 1,
        texts=np.add.reduceat(usable, first, dtype=np.int64),
        tokens=np.add.reduceat(np.where(usable, tokens, 0), first, dtype=np.int64),
        source=sources[first],
        sources=source_names.to_pylist(),
        label=labels[first],
        labels=label_names.to_pylist(),
        status=np.where(fine, DROPPED, ERROR).astype(np.int8),
    )
    own = manifest["scorer"]
    options = {name: own.get(name) for name in READING if name not in ("image_root", "image_hosts")}
    return Scored(
        Path(folder),
        manifest,
        inputs,
        [Unit(**unit) for unit in manifest["units"]],
        ImageOptions(**{name: value for name, value in options.items() if value is not None}),
        len(missing_units(manifest, folder)),
        table.select(["row_id", "text_index", "error"]),
        lines,
        whole,
        sample,
        images[first],
        image_names,
        samples,
    )


def _one(column: Any) -> pa.Array:
    """A column in one piece."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    return pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column


def _coded(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """Numbers of a column's values, and these in the order in which they come first."""
    coded = _one(pc.fill_null(column, "").dictionary_encode())
    return coded.indices.to_numpy().astype(np.int32), coded.dictionary


def compare_with(scored: Scored, folder: str | Path, aggregate: str = "mean", partial: bool = False) -> str:
    """Puts other scores of the same input beside a folder's own; returns what gave them.

    Raises:
        DataError: They are of another input.
    """
    manifest = read_manifest(folder)
    for key in SAME_ROWS:
        if manifest.get(key) != scored.manifest.get(key):
            raise DataError(
                f"its scores are of another input than those of {scored.folder}: {key} differs; give "
                "scores of the same data",
                key,
                str(folder),
            )
    other = read_scores(folder, ("row_id", "text_index", "score"), partial=partial)
    own = scored.lines.select(["row_id", "text_index"])
    if not own.equals(other.select(["row_id", "text_index"])):
        own = own.append_column("place", pa.array(np.arange(len(own))))
        other = own.join(other, ["row_id", "text_index"]).sort_by("place")
    lines = pc.fill_null(other["score"], float("nan")).to_numpy().astype(np.float32)
    scored.samples.other = sample_scores(scored.sample, lines, scored.complete, aggregate)
    return scorer_name(manifest)


def scorer_name(manifest: Mapping[str, Any]) -> str:
    """Returns what gave a folder's scores, such as `"clip (models/remoteclip)"`."""
    own = manifest["scorer"]
    return f"{own['kind']} ({own['model']})" if own.get("model") else str(own["kind"])


# --- copies -------------------------------------------------------------------------------------------------------


def leave_out_copies(scored: Scored) -> None:
    """Marks all but the best of the samples that are the same in image bytes, question and texts.

    Columns tell which samples could be copies; of these the rows are read again, since scores hold no questions.
    """
    keys = _rough_keys(scored)
    could = scored.samples.candidates()
    _, numbers, counts = np.unique(keys[could], return_inverse=True, return_counts=True)
    places = np.flatnonzero(could)[counts[numbers] > 1]
    if not len(places):
        return
    groups = np.full(len(keys), -1, np.int64)
    known: dict[bytes, int] = {}
    for place, row in _rows_of(scored, places):
        groups[place] = known.setdefault(_content(scored, place, row), len(known))
    alone = groups < 0
    groups[alone] = len(known) + np.arange(np.count_nonzero(alone))
    scores = np.where(could, scored.samples.score, np.float32(np.nan))
    scored.samples.status[lower_duplicates(groups, scores)] = COPY


def _rough_keys(scored: Scored) -> np.ndarray:
    """Uint64 `(samples,)`, the same for samples of the same image and texts; hardly ever for others."""
    missing = set(missing_units(scored.manifest, scored.folder))
    parts = [np.zeros(0, np.int64)]
    for i in range(len(scored.units)):
        if i not in missing:
            texts = read_shard(shard_path(scored.folder, scored.manifest, i), ["text"])["text"].to_pylist()
            parts.append(np.fromiter(map(hash, texts), np.int64, len(texts)))
    first = scored.samples.first
    place = np.arange(len(scored.sample)) - first[scored.sample]
    odd = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9], np.uint64)  # of splitmix64
    mixed = np.concatenate(parts).astype(np.uint64) * (2 * place.astype(np.uint64) + odd[0])
    return np.add.reduceat(mixed, first) + scored.images.astype(np.uint64) * odd[1]


def _rows_of(scored: Scored, places: np.ndarray) -> Any:
    """Yields each of some samples, ascending, with its row."""
    for start in range(0, len(places), MANY):
        own = places[start : start + MANY]
        ids = scored.row_ids(own)
        begins = np.flatnonzero(np.append(True, pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)))
        ends = np.append(begins[1:], len(own))
        for at, row in near_duplicates.read_rows(scored.inputs, scored.units, ids.take(pa.array(begins))):
            for place in own[begins[at] : ends[at]].tolist():
                yield place, row


def _content(scored: Scored, place: int, row: ImageTextRow) -> bytes:
    """What a sample says of which image, as a hash."""
    asked = [(group.prompt, completion) for group in row.groups for completion in group.completions]
    first = int(scored.samples.first[place])
    after = scored.samples.first[place + 1] if place + 1 < len(scored.samples.first) else len(scored.sample)
    own = scored.lines["text_index"].slice(first, int(after) - first).to_pylist()
    image = scored.image_names[int(scored.images[place])].as_py()
    return sha256(json.dumps([image, [asked[i] for i in own if i < len(asked)]]).encode()).digest()


# --- pictures -----------------------------------------------------------------------------------------------------


@dataclass
class LeftOut:
    """What was left out because of its picture (of each at most [`LISTED`]), and notes for the report."""

    excluded: list[tuple[str, str, str]] = field(default_factory=list)  # row, evaluation image, how they are alike
    near: list[tuple[int, int]] = field(default_factory=list)  # sample left out, sample that stays
    near_images: int = 0  # how many images were left out as near-duplicates
    notes: list[str] = field(default_factory=list)


def leave_out(
    scored: Scored, excluded: Sequence[str], *, exclude_near: bool, dedup: str, distance: int, keep: Path | None
) -> LeftOut:
    """Marks samples whose image is in an evaluation set, then copies, then all but the best of near-duplicate images.

    Args:
        scored ([`Scored`]): The samples; their `status` is changed.
        excluded (sequence of `str`): Evaluation sets, `PATH` or `PATH:SPLIT`.
        exclude_near (`bool`): Leave out near-duplicates of their images too.
        dedup (`str`): `"none"`, `"exact"` for copies, `"near"` for copies and near-duplicate images.
        distance (`int`): Bits of the perceptual hash by which near-duplicates differ at most.
        keep (`Path`, *optional*): Folder where what was found of each picture is kept for the next time.
    """
    left = LeftOut()
    evaluation = near_duplicates.look_at_evaluation(excluded, scored.options, exclude_near)
    if excluded or dedup == "near":
        pictures = _pictures(scored, dedup == "near" or exclude_near, keep, left)
    if excluded:
        if evaluation.unread:
            left.notes.append(
                "Evaluation images that could not be decoded and were compared by their bytes only: "
                f"{evaluation.unread} of {evaluation.images}."
            )
        found = near_duplicates.find_in_evaluation(pictures, evaluation, distance if exclude_near else None)
        _leave_out_excluded(scored, found, left)
    if dedup != "none":
        leave_out_copies(scored)
    if dedup == "near":
        groups = near_duplicates.group_near_duplicates(pictures, distance)
        _leave_out_near(scored, _codes_of(scored, pictures["image_hash"]), groups, left)
    return left


def _pictures(scored: Scored, near: bool, keep: Path | None, left: LeftOut) -> pa.Table:
    """What the images of all samples that could be kept look like."""
    could = np.flatnonzero(scored.samples.candidates())
    _, first = np.unique(scored.images[could], return_index=True)
    first = could[np.sort(first)]  # the first sample of every image, in the order of the data
    names = scored.image_names.take(pa.array(scored.images[first]))
    seen = pc.not_equal(names, "")
    pictures = near_duplicates.look_at_rows(
        scored.inputs,
        scored.units,
        scored.row_ids(first).filter(seen),
        names.filter(seen),
        scored.options,
        near=near,
        folder=keep,
    )
    pictures = pictures.filter(pc.is_in(pictures["image_hash"], value_set=names))
    if failed := pictures.filter(pc.is_valid(pictures["error"]))["error"].to_pylist():
        left.notes.append(
            "Images that could not be decoded and were compared by their bytes only: "
            f"{len(failed)}, such as {failed[0]}."
        )
    return pictures


def _codes_of(scored: Scored, names: Any) -> np.ndarray:
    return pc.index_in(names, value_set=scored.image_names).to_numpy()


def _leave_out_excluded(scored: Scored, found: Mapping[str, tuple[str, str]], left: LeftOut) -> None:
    leaked = np.zeros(len(scored.image_names), bool)
    leaked[_codes_of(scored, pa.array(list(found), pa.string()))] = True
    which = np.flatnonzero(scored.samples.candidates() & leaked[scored.images])
    scored.samples.status[which] = EXCLUDED
    images = scored.image_names.take(pa.array(scored.images[which[:LISTED]])).to_pylist()
    rows = scored.row_ids(which[:LISTED]).to_pylist()
    listed = [(row, *found[image]) for row, image in zip(rows, images, strict=True)]
    left.excluded = list(dict.fromkeys(listed))  # a row with five captions is one row


def _leave_out_near(scored: Scored, codes: np.ndarray, groups: np.ndarray, left: LeftOut) -> None:
    """Marks the samples of all images but the best of each group; an image in no group is alone."""
    could = scored.samples.candidates()
    count = len(scored.image_names)
    means = group_means(scored.images, np.where(could, scored.samples.score, np.float32(np.nan)), count)
    of_image = np.arange(count) + len(groups)
    of_image[codes[groups >= 0]] = groups[groups >= 0]
    lower = lower_duplicates(of_image, means)
    which = could & lower[scored.images]
    scored.samples.status[which] = NEAR
    stays = np.full(of_image.max() + 1, -1)
    best = could & ~lower[scored.images]
    stays[of_image[scored.images[best]][::-1]] = np.flatnonzero(best)[::-1]
    dropped = np.flatnonzero(which)
    _, first = np.unique(scored.images[dropped], return_index=True)  # one sample of each image
    left.near_images = len(first)
    for number in dropped[np.sort(first)][:LISTED].tolist():
        left.near.append((number, int(stays[of_image[scored.images[number]]])))
