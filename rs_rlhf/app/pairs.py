"""Pairs of texts to choose between: read from rows of preferences or of several answers, scored, ordered, written.

Every two distinct texts of a row are a pair. Its `id` depends on what is shown alone, so that choices hold when a file
grows or its rows move; the side on which a text is shown, and the random order, depend on the `id` and a seed. Left
out: who has chosen what (`labels`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, cast

from ..data.columns import image_column
from ..data.forms import candidate_rows
from ..data.group import Group, check_completion, completion_text, make_group, prompt_text, string_column
from ..data.placed_images import check_target, image_name, placed, stored_image, write_image
from ..data.rows import Where, image_folder, open_rows
from ..errors import DataError
from ..preferences.candidates import score_candidates
from ..preferences.convert import Sample, as_texts, documented_rows
from ..preferences.schema import group_from_row
from ..runs.files import replacing
from ..runs.sample_log import SampleLog
from ..scoring.base import GroupScorer

ORDERS = ("disagreement", "random")  # the first is the default, if there is a score model


@dataclass(frozen=True)
class Pair:
    """Two texts about the same prompt and images.

    Args:
        id (`str`): A hash of the prompt, the images' names and the two texts.
        group ([`Group`]): The row that they are of, its images stored ones; shared by all its pairs.
        places (two `int`): Which of its completions `a` and `b` are.
        flipped (`bool`): Whether `b` is shown on the left.
    """

    id: str
    group: Group
    places: tuple[int, int]
    flipped: bool

    @property
    def texts(self) -> tuple[str, str]:
        """The texts `a` and `b`."""
        first, second = (completion_text(self.group.completions[place]) for place in self.places)
        return first, second

    @property
    def sides(self) -> tuple[str, str]:
        """The texts as they are shown, left and right."""
        return self.texts[::-1] if self.flipped else self.texts


def read_pairs(
    path: str,
    split: str | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    image_root: str | None = None,
    seed: int = 0,
) -> tuple[list[Pair], Counter[str]]:
    """Reads all pairs of a file, and counts what makes none.

    Args:
        path, split, columns, image_root: As for [`open_rows`]. A row is one of preferences, of any form, or holds
            several answers, see [`candidate_rows`].
        seed (`int`): Decides the sides.

    Returns:
        `tuple`: the pairs in the order of the file; counts of `rows`, `rows of equal texts` and `repeated pairs`.

    Raises:
        DataError, ImageError: A row cannot be read, or its image is not there; names it.
    """
    root = image_folder(path) if image_root is None else image_root
    pairs: dict[str, Pair] = {}
    counts = Counter[str]()
    for where, row in open_rows(path, split, candidate_rows, columns=columns, image_root=image_root):
        group = _group(row, where, root)
        counts["rows"] += 1
        counts["rows of equal texts"] += len(group.completions) < 2
        for places in combinations(range(len(group.completions)), 2):
            pair = _pair(group, places, root, seed)
            counts["repeated pairs"] += pair.id in pairs
            pairs.setdefault(pair.id, pair)
    if not pairs:
        raise DataError("no two texts to choose between; give rows of preferences, or of several answers", "", path)
    return list(pairs.values()), counts


def _group(row: Mapping[str, Any], where: Where, root: str) -> Group:
    """A row's distinct texts, in the order of first mention, with its images as they are stored."""
    try:
        if "chosen" in row:
            group = group_from_row(row, where.number, where)
        else:
            meta: dict[str, Any] = {key: string_column(row, key) for key in ("source", "kind")}
            key = image_column(row, root)
            images = None if key is None else row[key]
            group = make_group(row.get("prompt"), row["completions"], images, row=where.number, where=where, **meta)
            for i, completion in enumerate(group.completions):
                check_completion(completion, f"completions[{i}]")
        images = [stored_image(image, where, root) for image in group.images]
    except DataError as error:
        raise DataError(error.detail, error.key, error.where or where) from None
    distinct = {completion_text(completion): completion for completion in group.completions}
    return replace(group, completions=list(distinct.values()), images=cast("Any", images))


def _pair(group: Group, places: tuple[int, int], root: str, seed: int) -> Pair:
    texts = [completion_text(group.completions[place]) for place in places]
    names = [image_name(cast("Any", image), root) for image in group.images]
    # `a` and `b` are in an order of their own, so that a row whose texts have changed places is the same pair.
    (first, a), (second, b) = sorted(zip(texts, places, strict=True))
    shown = json.dumps([prompt_text(group.prompt), names, first, second])
    name = hashlib.sha256(shown.encode()).hexdigest()[:16]
    return Pair(name, group, (a, b), _draw(seed, "side", name) % 2 == 1)


def _draw(seed: int, what: str, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {what} {name}".encode()).digest()[:8], "big")


# --- Scores and order ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairScore:
    """The score of `a` less that of `b`, and how far several models differ about the two, `None` of one model."""

    margin: float
    spread: float | None = None


def score_pairs(
    pairs: Sequence[Pair], scorer_of: Callable[[], GroupScorer], log: Path, by: str
) -> tuple[dict[str, PairScore], int]:
    """Scores the texts of all pairs, each row once; returns the scores by pair and how many rows have none.

    What is scored is kept in a file, from which it is read again by the same `by` and rows.
    """
    groups = list({id(pair.group): pair.group for pair in pairs}.values())
    shown = [[prompt_text(group.prompt), [completion_text(one) for one in group.completions]] for group in groups]
    settings = {"rows_sha256": hashlib.sha256(json.dumps([shown, [pair.id for pair in pairs]]).encode()).hexdigest()}
    kept, counts = SampleLog(log, settings, by, anew=True), Counter[str]()
    score_candidates(scorer_of, groups, kept, counts, least=2)
    number = {id(group): i for i, group in enumerate(groups)}
    found = {}
    for pair in pairs:
        row = number[id(pair.group)]
        values, spreads = kept.scores.get(row, []), kept.spreads.get(row, [])
        if values:
            a, b = (float(values[place] or 0.0) for place in pair.places)
            spread = math.hypot(*(spreads[place] for place in pair.places)) if spreads else None
            found[pair.id] = PairScore(a - b, spread)
    return found, counts["failed"]


def ordered(pairs: Iterable[Pair], order: str, seed: int, scores: Mapping[str, PairScore] | None = None) -> list[Pair]:
    """Returns pairs in the order in which they are shown.

    Args:
        pairs (iterable of [`Pair`]): The pairs.
        order (`str`): `"random"`, by the seed; or `"disagreement"`: where several score models differ most first, of
            one model the pairs that it sees the least difference in. Pairs without a score come last.
        seed (`int`): Draws the order, and that of equal pairs.
        scores (`dict`, *optional*): By pair.
    """

    def key(pair: Pair) -> tuple[bool, float, int]:
        score = (scores or {}).get(pair.id) if order == "disagreement" else None
        doubt = 0.0 if score is None else abs(score.margin) if score.spread is None else -score.spread
        return score is None, doubt, _draw(seed, "order", pair.id)

    return sorted(pairs, key=key)


# --- Preferences --------------------------------------------------------------------------------------------------


def write_preferred(preferred: Sequence[tuple[Pair, int]], output: Path, root: str) -> int:
    """Writes preference rows as `rs-rlhf reward` reads them; returns how many images were written beside them.

    Args:
        preferred (sequence of `tuple`): Pairs, each with the place of the text that is preferred.
        output (`Path`): JSON lines; replaced. Images that are not below its folder are written into `images` there.
        root (`str`): The folder that the pairs' images were read from.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    folder, written = output.parent.resolve(), set[Path]()
    with replacing(output) as lines:
        for pair, better in preferred:
            names = []
            for image in cast("list[Any]", pair.group.images):
                name, target = placed(image, image_name(image, root), folder, folder / "images")
                names.append(name)
                if target is not None and target not in written:
                    check_target(target, image, overwrite=False)
                    write_image(target, image)
                    written.add(target)
            lines.write(json.dumps(_row(pair, better, names), ensure_ascii=False) + "\n")
    return len(written)


def _row(pair: Pair, better: int, images: list[str]) -> dict[str, Any]:
    """A row of the documented form, with texts where they say all."""
    texts = [pair.group.completions[place] for place in (pair.places[better], pair.places[1 - better])]
    group = replace(pair.group, completions=texts, margin=0.0)
    sample = Sample("preferences", [group], Where("", -1))
    (made,) = documented_rows(sample)
    made = as_texts(made) if sample.plain else made
    del made["images"]
    rest = {"source": pair.group.source, "kind": pair.group.kind, "id": pair.id}
    pictures: dict[str, Any] = {"image": images[0]} if len(images) == 1 else {"images": images} if images else {}
    made = {**pictures, **made, "rejected": made["rejected"][0]}
    return made | {key: value for key, value in rest.items() if value}
