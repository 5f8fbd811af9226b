"""Data sets for DPO and KTO from candidate answers ordered by a score model: `rs-rlhf data dpo`.

The candidates for one prompt and its images are scored in one pass; the best becomes chosen and the worst rejected if
their scores lie far enough apart. The candidates are given (`completions`), or sampled on the spot.

Rows are in TRL's conversational form: `prompt`, `chosen`, `rejected` (messages of parts) and `images` (a list, empty
for text alone), with the two scores. With `--form kto` there are two rows in place of one, each with a `completion`,
its `label` and its score. `rs-rlhf dpo` trains on the first form, `rs-rlhf kto` on both. JSON lines hold paths that
start from the file, for [`load_dpo`]; Parquet holds the images, so that `trl dpo --dataset_name FOLDER` reads it as it
is. TRL opens images with Pillow: options such as bands and stretch are for the score model (and the policy) only.

Scores are kept in `OUTPUT.partial` as they come, as in `rs-rlhf data sample-pairs`. Left out: other pairs of a group
than best against worst.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from ..data.group import Group, ImageSource, make_group
from ..data.placed_images import check_output
from ..data.questions import QuestionRow, limited
from ..errors import OptionError
from ..imagery.options import split_sensor
from ..options import option
from ..runs.sample_log import SampleLog
from ..scoring.comparison import CheckOptions
from ..scoring.several import SeveralOptions
from .candidates import (
    CandidateOptions,
    candidate_scorer,
    candidates_of,
    compare_first,
    given_answers,
    open_log,
    print_counts,
    sampled_answers,
    score_candidates,
)

if TYPE_CHECKING:
    from datasets import Dataset, Features


@dataclass(kw_only=True)
class DPOOptions(CheckOptions, SeveralOptions, CandidateOptions):
    """Order candidate answers by a score model, as data for `rs-rlhf dpo` and `rs-rlhf kto`, or TRL's."""

    output: Path = option(
        help="JSONL file to write, whose image paths are relative to its folder; or Parquet, which holds the images",
        writes="file",
    )
    model: str = option(
        help="name in reward_models/, folder, or hub id of a score model; several (a,b,c) are combined"
    )
    margin: float = option(
        0.0, "the best and the worst answer make a row only if their scores differ by at least this"
    )
    form: Literal["dpo", "kto"] = option(
        "dpo", "dpo: rows with chosen and rejected; kto: a row for each of the two, with completion and label"
    )


def dpo_row(
    group: Group, scores: Sequence[float], images: Sequence[Any], margin: float = 0.0
) -> tuple[dict[str, Any] | None, str]:
    """Makes a DPO row of the best and the worst completion; or returns `None` and why there is none.

    Equal scores never make a row, nor do those that differ by less than `margin`.
    """
    if len(scores) < 2:
        return None, "fewer than two candidates"
    best, worst = max(range(len(scores)), key=scores.__getitem__), min(range(len(scores)), key=scores.__getitem__)
    gap = scores[best] - scores[worst]
    if gap <= 0 or gap < margin:
        return None, "below the margin"
    row = {
        "prompt": group.prompt,
        "chosen": group.completions[best],
        "rejected": group.completions[worst],
        "images": list(images),
        "chosen_score": scores[best],
        "rejected_score": scores[worst],
        "source": group.source,
    }
    return row, ""


def labelled_rows(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns a DPO row as two rows of KTO: the chosen answer, which is good, and the rejected one."""
    names = ("chosen", "rejected", "chosen_score", "rejected_score")
    rest = {name: value for name, value in row.items() if name not in names}
    return [
        rest | {"completion": row[name], "label": name == "chosen", "score": row[f"{name}_score"]}
        for name in ("chosen", "rejected")
    ]


def load_dpo(path: str | os.PathLike[str]) -> Dataset:
    """Loads what `rs-rlhf data dpo` wrote, for TRL's trainers: images are decoded when a row is read.

    Args:
        path (`str`): The `.jsonl` or `.parquet` file.

    Example:
        >>> DPOTrainer(model, train_dataset=load_dpo("dpo.jsonl"), processing_class=processor)  # doctest: +SKIP
    """
    from datasets import Dataset

    path = Path(path)
    if path.suffix == ".parquet":
        return Dataset.from_parquet(str(path))  # type: ignore[return-value]
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    for row in rows:
        row["images"] = [str(path.parent.absolute() / image) for image in row["images"]]
    return Dataset.from_list(rows, features=_features("label" in rows[0] if rows else False))


def _features(labelled: bool) -> Features:
    from datasets import Features, Image, List, Value

    text = Value("string")
    messages = List({"role": text, "content": List({"type": text, "text": text})})
    columns = {"prompt": messages, "images": List(Image()), "source": text, "id": text}
    if labelled:
        return Features(columns | {"completion": messages, "label": Value("bool"), "score": Value("float64")})
    columns |= dict.fromkeys(("chosen", "rejected"), messages)
    return Features(columns | dict.fromkeys(("chosen_score", "rejected_score"), Value("float64")))


def write_dpo(options: DPOOptions) -> None:
    """Reads or samples candidates, scores them, writes the rows and prints what was counted."""
    output = options.output
    check_output(output, options.overwrite, (".jsonl", ".parquet"))
    options.check_several(options.model, "model")
    if options.margin < 0:
        raise OptionError(f"--margin is {options.margin}; it must not be negative.", "margin")
    rows = limited(options.questions(), options.limit, options.seed)
    images: Sequence[Sequence[str | dict[str, Any]]]
    if output.suffix == ".parquet":
        images, placed = [[_embedded(image) for image in row.group.images] for row in rows], ""
    else:
        images, placed = options.place(rows)
    log = open_log(options, rows)
    folder = output.with_name(f"{output.stem}_best_of_n")
    compare_first(options, options.model, rows, options.check_best_of_n, folder)
    counts: Counter[str] = Counter(rows=len(rows))
    made = _dpo_rows(options, rows, images, counts, log)
    if output.suffix == ".parquet":
        from datasets import Dataset

        with log.replacing(output, "wb") as file:
            Dataset.from_list(list(made), features=_features(options.form == "kto")).to_parquet(file)
    else:
        with log.replacing(output) as lines:
            for row in made:
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    print_counts(counts, output, placed)


def _embedded(image: ImageSource) -> str | dict[str, Any]:
    """The image itself for one that is a file: rows of questions hold existing paths, or bytes."""
    if isinstance(image, dict):
        return image
    file, sensor = split_sensor(str(image))
    return {"bytes": Path(file).read_bytes(), "path": Path(file).name + sensor}


def _dpo_rows(
    options: DPOOptions,
    rows: Sequence[QuestionRow],
    images: Sequence[Sequence[str | dict[str, Any]]],
    counts: Counter[str],
    log: SampleLog,
) -> Iterator[dict[str, Any]]:
    """Scores the candidates of all rows, then yields the DPO rows; what makes none is counted."""
    answers = sampled_answers(options, rows, log) if options.policy is not None else map(given_answers, rows)
    groups = []
    for row, texts in zip(rows, answers, strict=True):
        candidates, group = list(candidates_of(texts)), row.group
        counts["candidates"] += len(texts)
        counts["empty or repeated"] += len(texts) - len(candidates)
        groups.append(make_group(group.prompt, candidates, group.images, where=group.where, source=group.source))
    score_candidates(partial(candidate_scorer, options, options.model), groups, log, counts, least=2)
    for i, (row, group) in enumerate(zip(rows, groups, strict=True)):
        if len(group.completions) > 1 and i not in log.scores:
            continue  # failed, and counted there
        pair, reason = dpo_row(group, cast("list[float]", log.scores.get(i, [])), images[i], options.margin)
        made = [] if pair is None else [pair] if options.form == "dpo" else labelled_rows(pair)
        counts[reason or "rows written"] += len(made) or 1
        yield from (one | {"id": row.id} for one in made)
