"""Audit of a run's answers: what GRPO's audit says of rollouts, of those that were sampled and of those that are kept.

This alone looks at solutions, where there are any. Left out: lengths in tokens (they are counted in words).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

from ...data.group import completion_text
from ...data.other_images import with_other_images
from ...imagery.raster import ImageOptions, read_image
from ...preferences.best import BestOptions, Scored, kept_answers, scored_group
from ...runs.report_tables import spread
from ...runs.tables import thumbnail, write_table
from ...scoring.base import GroupScorer
from ...scoring.base import spread as score_spread
from ..audit.rollout_audit import TYPES, audit_metrics, judged
from ..data.grpo import prompt_row

GAP_QUESTIONS = 64  # questions of the image-shuffle gap
SHOWN = 8  # answers of each table


def judged_answers(scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """Returns every answer with its score and, where there is a solution, whether it is right; for the audit alone."""
    classes = sorted({asked.row.reference for asked in scored if asked.row.columns.get("label")})
    rows = []
    for number, asked in enumerate(scored):
        row = prompt_row(asked.row, classes, "")
        known = dict(zip(asked.texts, asked.scores or [], strict=False))
        for answer in asked.answers:
            about: dict[str, Any] = {"question": number, "length": len(answer.split())}
            score = known.get(answer.strip())
            about |= {"score": score, "score_std": score_spread(score), "solution": row["solution"]}
            about |= {"prompt": completion_text(asked.row.group.prompt)}
            rows.append({**judged(answer, row), **about, "completion": answer, "row": asked.row})
    return rows


def sampled_metrics(
    options: BestOptions, scored: Sequence[Scored], answers: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """Returns the metrics of a round's answers: of all, and of those that are kept, by their weights."""
    metrics = audit_metrics(answers)
    if scores := [row["score"] for row in answers if row["score"] is not None]:
        metrics |= {"score/mean": fmean(scores), "score/std": pstdev(scores)}
        metrics |= {"score/min": min(scores), "score/max": max(scores)}
    right = {(row["question"], row["completion"].strip()): row["correct"] for row in answers}
    kept = list(kept_answers(options, scored, Counter()))
    metrics |= {"kept/rows": len(kept), "kept/prompts": len({number for number, _, _ in kept}) / len(scored)}
    values: dict[str, list[tuple[float, float]]] = {"score/kept_mean": [], "audit/kept_accuracy": []}
    for number, i, weight in kept:
        asked = scored[number]
        values["score/kept_mean"].append((weight, (asked.scores or [])[i]))
        if (correct := right[number, asked.texts[i]]) is not None:
            values["audit/kept_accuracy"].append((weight, float(correct)))
    for name, pairs in values.items():
        if total := math.fsum(weight for weight, _ in pairs):
            metrics[name] = math.fsum(weight * value for weight, value in pairs) / total
    return metrics


def shuffle_gap(scored: Sequence[Scored], scorer: Callable[[], GroupScorer], images: ImageOptions) -> dict[str, float]:
    """Returns the mean score minus that with another question's image, of some questions; empty without images."""
    some = spread([asked for asked in scored if asked.row.group.images and asked.scores], GAP_QUESTIONS)
    groups = [scored_group(asked.row, asked.texts) for asked in some]
    others = with_other_images(groups, images)
    moved = [i for i, group in enumerate(groups) if others[i].images is not group.images]
    if not moved:
        return {}
    wrong = scorer().score_groups([others[i] for i in moved], on_error="return", show_progress=False)
    gaps = [
        a - b
        for i, scores in zip(moved, wrong, strict=True)
        if isinstance(scores, list)
        for a, b in zip(some[i].scores or [], scores, strict=True)
        if math.isfinite(a - b)
    ]
    return {"audit/shuffle_gap": fmean(gaps)} if gaps else {}


def write_answers(
    options: BestOptions, answers: Sequence[Mapping[str, Any]], step: int, folder: str, name: str
) -> None:
    """Writes some answers with thumbnails into a folder of the run, as GRPO's audit does."""
    rows = []
    for row in spread(answers, SHOWN):
        group, picture = row["row"].group, None
        if group.images:
            picture = thumbnail(read_image(group.images[0], options.resolved_image_options(), group.where))
        rows.append({**row, "step": step, "reward": None, "image": picture})
    path = options.output.parent.parent / folder / f"{name}_{step:06d}.parquet"
    write_table(rows, path, TYPES, name, [])
