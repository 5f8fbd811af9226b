"""Scored data as samples to choose from, and the exclusion of evaluation images and duplicates before any cut.

Only columns of the scores are in memory, never images: texts and pictures are read again from the input, one piece at
a time, when they are needed. Dropped, in this order: samples without a score, samples on which several models
disagree, images that are in an evaluation set, copies (the same image bytes, question and texts), and all but the best
of near-duplicate images.

Left out: near-duplicates of texts, and copies across several inputs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..data.image_text import ImageTextRow
from ..data.image_text_dataset import ImageTexts, Unit
from ..errors import DataError
from ..imagery.options import RENDERING, ImageOptions
from . import cut, near_duplicates
from .options import CurateOptions, SampleOptions
from .shards import existing_shards, missing_units, open_scored, read_manifest, read_scores, read_shard

COLUMNS = ("row_id", "text_index", "score", "score_std", "tokens", "image_hash", "error", "whole", "source", "label")
SAME_ROWS = ("stamp", "split", "columns")  # if these differ, a row id means another row
LISTED = 10_000  # dropped rows that are listed
MANY = 1 << 16  # rows whose ids become Python objects at once


@dataclass
class Scored:
    """What a folder of scores holds, line by line (one per text), and its samples."""

    folder: Path
    manifest: dict[str, Any]
    inputs: ImageTexts  # what was scored
    units: list[Unit]  # all of it, as it was scored
    options: ImageOptions  # how images were read
    missing: int  # the number of shards that are not there
    lines: pa.Table  # `row_id`, `text_index` and `error`, `(texts,)`
    scores: np.ndarray  # float32 `(texts,)`, NaN for a text without a score
    complete: np.ndarray  # bool `(texts,)`, true for the turns of a conversation
    sample: np.ndarray  # int64 `(texts,)`: the sample of each text
    images: np.ndarray  # int32 `(samples,)`: the image of each sample, an index into `image_names`
    image_names: pa.Array  # `image_hash` of every distinct image, `""` for none
    samples: cut.Samples  # those without a score are marked, all others could be kept
    compared: str = ""  # the scorer of `samples.other`

    def image_numbers(self) -> np.ndarray:
        """Returns a number per sample, int64 `(samples,)`, the same for samples of one image; no image is unique."""
        none = pc.equal(self.image_names, "").to_numpy(zero_copy_only=False)[self.images]
        return np.where(none, len(self.image_names) + np.arange(len(self.images)), self.images)

    def row_ids(self, numbers: np.ndarray) -> pa.Array:
        """Returns the row id of each of some samples."""
        return _in_one_piece(self.lines["row_id"].take(pa.array(self.samples.first[numbers])))

    def text_slice(self, number: int) -> slice:
        """Returns which lines are the texts of a sample."""
        return slice(*self.samples.bounds(number, len(self.sample)))

    def kept_ids(self, kept: np.ndarray) -> pa.Table:
        """Returns `row_id` and `text_index` of the scored texts of the samples that are kept, bool `(samples,)`."""
        positions = np.flatnonzero(kept[self.sample] & np.isfinite(self.scores))
        return self.lines.select(["row_id", "text_index"]).take(pa.array(positions)).combine_chunks()


def read_scored(
    folder: str | Path,
    options: SampleOptions | None = None,
    compare: str | Path | None = None,
    rank: Literal["score", "mean-std"] = "score",
) -> Scored:
    """Reads a folder that `rs-rlhf score` has written, and beside it the folder `compare` of the same input.

    With `rank="mean-std"` scores are the mean of several models' less their standard deviation.

    Raises:
        DataError: No folder of scores, an unfinished one, or the input has changed since; `compare` is of another;
            the scores do not hold what `rank` is of.
    """
    options = options or SampleOptions()
    manifest = read_manifest(folder)
    table = read_scores(folder, COLUMNS, partial=options.allow_partial)
    inputs = open_scored(folder)
    if not len(table):
        raise DataError("holds no scores yet; resume `rs-rlhf score`", where=str(folder))
    ids = table["row_id"]
    starts = np.append(True, pc.not_equal(ids.slice(1), ids.slice(0, len(ids) - 1)).to_numpy())
    whole = table["whole"].to_numpy().astype(bool)
    sample = cut.number_samples(starts, whole | (options.per == "row"))
    scores, std = (pc.fill_null(table[name], float("nan")).to_numpy() for name in ("score", "score_std"))
    if rank == "mean-std" and _combined(manifest, folder, "rank") != rank:
        scores = scores - std
    images, image_names = _coded(table["image_hash"])
    samples = _samples(table, starts, sample, scores, std, cut.sample_scores(sample, scores, whole, options.aggregate))
    reading = {name: manifest["scorer"].get(name) for name in RENDERING}
    scored = Scored(
        Path(folder),
        manifest,
        inputs,
        [Unit(**unit) for unit in manifest["units"]],
        ImageOptions(**{name: value for name, value in reading.items() if value is not None}),
        len(missing_units(manifest, folder)),
        table.select(["row_id", "text_index", "error"]),
        scores,
        whole,
        sample,
        images[samples.first],
        image_names,
        samples,
    )
    if compare:
        _compare(scored, compare, options)
    return scored


def _samples(
    table: pa.Table,
    starts: np.ndarray,
    sample: np.ndarray,
    text_scores: np.ndarray,
    std: np.ndarray,
    scores: np.ndarray,
) -> cut.Samples:
    first = cut.first_texts(sample)
    finite = np.isfinite(scores)
    usable = np.isfinite(text_scores) | ~finite[sample]  # all texts of a sample that cannot be used count
    tokens = pc.fill_null(table["tokens"], 0).to_numpy()
    (sources, source_names), (labels, label_names) = _coded(table["source"]), _coded(table["label"])
    return cut.Samples(
        score=scores,
        first=first,
        row=np.cumsum(starts)[first] - 1,
        texts=np.add.reduceat(usable, first, dtype=np.int64),
        tokens=np.add.reduceat(np.where(usable, tokens, 0), first, dtype=np.int64),
        source=sources[first],
        sources=source_names.to_pylist(),
        label=labels[first],
        labels=label_names.to_pylist(),
        status=np.where(finite, cut.DROPPED, cut.ERROR).astype(np.int8),
        std=np.fmax.reduceat(std, first),
    )


def _combined(manifest: Mapping[str, Any], folder: str | Path, key: str) -> str:
    """How the scores of a folder were made of several models', for the option `key`, or a [`DataError`]."""
    rule = manifest["scorer"].get("score_combine")
    if rule is None or (key == "rank" and rule == "min"):
        made = "are of one model" if rule is None else "are the smallest of several models'"
        way = "score with --model a,b,c" + " --score_combine mean" * (rule is not None)
        raise DataError(f"the scores {made}, so that --{key} is not known; {way}", key, str(folder))
    return rule


def _in_one_piece(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    return pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column


def _coded(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """Codes of a column's values, and the distinct values in the order of their first occurrence."""
    coded = _in_one_piece(pc.fill_null(column, "").dictionary_encode())
    return coded.indices.to_numpy().astype(np.int32), coded.dictionary


def _compare(scored: Scored, folder: str | Path, options: SampleOptions) -> None:
    """Adds other scores of the same input as `samples.other`."""
    manifest = read_manifest(folder)
    for key in SAME_ROWS:
        if manifest.get(key) != scored.manifest.get(key):
            raise DataError(
                f"its scores are of another input than those of {scored.folder}: {key} differs; give "
                "scores of the same data",
                key,
                str(folder),
            )
    other = read_scores(folder, ("row_id", "text_index", "score"), partial=options.allow_partial)
    lines = scored.lines.select(["row_id", "text_index"])
    if not lines.equals(other.select(["row_id", "text_index"])):
        lines = lines.append_column("position", pa.array(np.arange(len(lines))))
        other = lines.join(other, ["row_id", "text_index"]).sort_by("position")
    scores = pc.fill_null(other["score"], float("nan")).to_numpy().astype(np.float32)
    scored.samples.other = cut.sample_scores(scored.sample, scores, scored.complete, options.aggregate)
    scored.compared = scorer_name(manifest)


def scorer_name(manifest: Mapping[str, Any]) -> str:
    """Returns the scorer of a folder of scores, such as `"clip (models/remoteclip)"`."""
    scorer = manifest["scorer"]
    kind = ", ".join(filter(None, [scorer["kind"], scorer.get("score_combine")]))
    return f"{kind} ({scorer['model']})" if scorer.get("model") else kind


def _leave_out_copies(scored: Scored) -> None:
    """Marks all but the best of the samples with the same image bytes, question and texts.

    Columns tell which samples could be copies; the rows of these are read again, since scores hold no questions.
    """
    keys = _rough_keys(scored)
    candidates = np.flatnonzero(scored.samples.candidates())
    _, numbers, counts = np.unique(keys[candidates], return_inverse=True, return_counts=True)
    suspects = candidates[counts[numbers] > 1]
    if not len(suspects):
        return
    groups = np.full(len(keys), -1, np.int64)
    known: dict[bytes, int] = {}
    for number, row in _rows_of(scored, suspects):
        groups[number] = known.setdefault(_content(scored, number, row), len(known))
    alone = groups < 0
    groups[alone] = len(known) + np.arange(np.count_nonzero(alone))
    scored.samples.status[cut.lower_duplicates(groups, scored.samples.candidate_scores())] = cut.COPY


def _rough_keys(scored: Scored) -> np.ndarray:
    """Uint64 `(samples,)`, the same for samples of the same image and texts; hardly ever for others."""
    parts = [np.zeros(0, np.int64)]
    for _, shard in existing_shards(scored.manifest, scored.folder):
        texts = read_shard(shard, ["text"])["text"].to_pylist()
        parts.append(np.fromiter(map(hash, texts), np.int64, len(texts)))
    first = scored.samples.first
    turn = np.arange(len(scored.sample)) - first[scored.sample]
    odd = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9], np.uint64)  # of splitmix64
    mixed = np.concatenate(parts).astype(np.uint64) * (2 * turn.astype(np.uint64) + odd[0])
    return np.add.reduceat(mixed, first) + scored.images.astype(np.uint64) * odd[1]


def _rows_of(scored: Scored, numbers: np.ndarray) -> Iterator[tuple[int, ImageTextRow]]:
    """Yields each of some samples, ascending, with its row."""
    for start in range(0, len(numbers), MANY):
        part = numbers[start : start + MANY]
        ids = scored.row_ids(part)
        begins = np.flatnonzero(np.append(True, pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)))
        ends = np.append(begins[1:], len(part))
        for i, row in near_duplicates.read_rows(scored.inputs, scored.units, ids.take(pa.array(begins))):
            for number in part[begins[i] : ends[i]].tolist():
                yield number, row


def _content(scored: Scored, number: int, row: ImageTextRow) -> bytes:
    """The SHA-256 of a sample's image, questions and texts."""
    asked = [(group.prompt, completion) for group in row.groups for completion in group.completions]
    indices = scored.lines["text_index"][scored.text_slice(number)].to_pylist()
    image = scored.image_names[int(scored.images[number])].as_py()
    return sha256(json.dumps([image, [asked[i] for i in indices if i < len(asked)]]).encode()).digest()


@dataclass
class LeftOut:
    """What was dropped because of its picture (of each at most [`LISTED`]), and notes for the report."""

    excluded: list[tuple[str, str, str]] = field(default_factory=list)  # row, evaluation image, how they are alike
    near: list[tuple[int, int]] = field(default_factory=list)  # sample that is dropped, sample that stays
    near_images: int = 0  # images that were dropped as near-duplicates
    notes: list[str] = field(default_factory=list)


def leave_out(scored: Scored, options: CurateOptions) -> LeftOut:
    """Marks samples on which models disagree, then those whose image is in an evaluation set, then copies, then all
    but the best of near-duplicate images; their `status` is changed.
    """
    if options.max_std is not None:
        _combined(scored.manifest, scored.folder, "max_std")
        unsure = scored.samples.std > np.float32(options.max_std)  # type: ignore[operator]  # `read_scored` sets it
        scored.samples.status[scored.samples.candidates() & unsure] = cut.UNSURE
    left, near, distance = LeftOut(), options.exclude_near, options.near_distance
    evaluation = near_duplicates.look_at_evaluation(options.exclude_images_of, scored.options, near)
    if options.exclude_images_of or options.dedup == "near":
        pictures = _pictures(scored, options.dedup == "near" or near, left)
    if options.exclude_images_of:
        if evaluation.unread:
            left.notes.append(
                "Evaluation images that could not be decoded and were compared by their bytes only: "
                f"{evaluation.unread} of {evaluation.images}."
            )
        matches = near_duplicates.find_in_evaluation(pictures, evaluation, distance if near else None)
        _leave_out_excluded(scored, matches, left)
    if options.dedup != "none":
        _leave_out_copies(scored)
    if options.dedup == "near":
        groups = near_duplicates.group_near_duplicates(pictures, distance)
        _leave_out_near(scored, _codes_of(scored, pictures["image_hash"]), groups, left)
    return left


def _pictures(scored: Scored, near: bool, left: LeftOut) -> pa.Table:
    """What the images of all candidates look like, see [`near_duplicates.look_at_rows`]."""
    # Nothing is cached in a folder that only others may write to.
    cache = scored.folder / "pictures" if os.access(scored.folder, os.W_OK) else None
    candidates = np.flatnonzero(scored.samples.candidates())
    _, first = np.unique(scored.images[candidates], return_index=True)
    first = candidates[np.sort(first)]  # the first sample of every image, in the order of the data
    names = scored.image_names.take(pa.array(scored.images[first]))
    has_image = pc.not_equal(names, "")
    ids, hashes = scored.row_ids(first).filter(has_image), names.filter(has_image)
    pictures = near_duplicates.look_at_rows(
        scored.inputs, scored.units, ids, hashes, scored.options, near=near, folder=cache
    )
    pictures = pictures.filter(pc.is_in(pictures["image_hash"], value_set=names))
    if failed := pictures.filter(pc.is_valid(pictures["error"]))["error"].to_pylist():
        left.notes.append(
            "Images that could not be decoded and were compared by their bytes only: "
            f"{len(failed)}, such as {failed[0]}."
        )
    return pictures


def _codes_of(scored: Scored, names: pa.Array) -> np.ndarray:
    return pc.index_in(names, value_set=scored.image_names).to_numpy()


def _leave_out_excluded(scored: Scored, matches: Mapping[str, tuple[str, str]], left: LeftOut) -> None:
    leaked = np.zeros(len(scored.image_names), bool)
    leaked[_codes_of(scored, pa.array(list(matches), pa.string()))] = True
    dropped = np.flatnonzero(scored.samples.candidates() & leaked[scored.images])
    scored.samples.status[dropped] = cut.EXCLUDED
    images = scored.image_names.take(pa.array(scored.images[dropped[:LISTED]])).to_pylist()
    rows = scored.row_ids(dropped[:LISTED]).to_pylist()
    listed = [(row, *matches[image]) for row, image in zip(rows, images, strict=True)]
    left.excluded = list(dict.fromkeys(listed))  # a row with five captions is one row


def _leave_out_near(scored: Scored, codes: np.ndarray, groups: np.ndarray, left: LeftOut) -> None:
    """Marks the samples of all images but the best of each group; an image without a group is alone."""
    candidates = scored.samples.candidates()
    count = len(scored.image_names)
    means = cut.group_means(scored.images, scored.samples.candidate_scores(), count)
    group_of = np.arange(count) + len(groups)
    group_of[codes[groups >= 0]] = groups[groups >= 0]
    lower = cut.lower_duplicates(group_of, means)
    dropped = np.flatnonzero(candidates & lower[scored.images])
    scored.samples.status[dropped] = cut.NEAR
    best = np.flatnonzero(candidates & ~lower[scored.images])
    stays = np.full(group_of.max() + 1, -1)
    stays[group_of[scored.images[best]][::-1]] = best[::-1]
    _, first = np.unique(scored.images[dropped], return_index=True)  # one sample of each image
    left.near_images = len(first)
    for number in dropped[np.sort(first)][:LISTED].tolist():
        left.near.append((number, int(stays[group_of[scored.images[number]]])))
