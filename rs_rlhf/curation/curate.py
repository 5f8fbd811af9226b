"""`curate`: the best part of scored image-text data, in the data's own format, with a report.

Texts without a score are never kept. Then these are dropped, each counted: texts on which several score models
disagree (`--max_std`), images of evaluation sets (`--exclude_images_of`), copies and near-duplicates (`--dedup`). The
cut chooses from what is left, so that `--keep 0.3` is three tenths of that. Several cuts of the same scores cost one
reading. Each folder is complete or not there: it is written under another name first. `--ids` applies a list that
somebody has published to the same data.

Left out: cuts by scores of several folders at once, and choosing by looking (`rs-rlhf browse`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.compute as pc

from ..data.image_text_dataset import open_image_texts
from ..errors import DataError
from .cut import KEPT, Cut, cut
from .gallery import make_gallery
from .options import CurateOptions
from .report import FATES, make_report, markdown, page
from .samples import Scored, leave_out, read_scored
from .shards import read_manifest
from .writer import check_folder, read_ids, write_folder


def curate(options: CurateOptions, tell: Callable[[str], object] = print) -> None:
    """Makes all cuts of the options, or applies `options.ids`; writes a folder for each, and tells it in a sentence.

    Raises:
        RSRLHFError: An option is wrong, the scores or their input cannot be read, nothing would be kept, or a folder
            is there already or cannot be written.
    """
    options.check()
    if options.ids is not None:
        tell(_apply_ids(options, options.ids))
        return
    scores = str(options.scores)  # `check` has refused options without
    sources = [scores, read_manifest(scores)["input"], *filter(None, [options.compare])]
    for folder, _ in options.cuts():
        check_folder(folder, options.overwrite, sources)
    scored = read_scored(scores, options, options.compare, options.rank)
    left = leave_out(scored, options)
    made = [(folder, way, *_cut(scored, options, way)) for folder, way in options.cuts()]
    for folder, way, kept, cuts in made:
        samples = replace(scored.samples, status=np.where(kept, KEPT, scored.samples.status).astype(np.int8))
        report = make_report(scored, samples, cuts, left, options, way)
        gallery = make_gallery(scored, samples, cuts, options.by, left.near, options.max_images_in_report)
        texts = {"report.md": markdown(report), "report.html": page(report, gallery)}
        about = _about(scored, report, options, way)
        written = write_folder(folder, scored.inputs, scored.kept_ids(kept), about, texts)
        tell(f"{_summary(report['figures'])}: {written['kept_rows']} of {written['rows']} rows -> {folder}")


def _cut(scored: Scored, options: CurateOptions, way: Mapping[str, float]) -> tuple[np.ndarray, list[Cut]]:
    """Which samples a cut keeps, at least one of them."""
    scores = scored.samples.candidate_scores()
    images = scored.image_numbers() if options.best_of_every_image else None
    kept, cuts = cut(scores, scored.samples.strata(options.by)[0], images=images, **way)  # type: ignore[arg-type]
    if kept.any():
        return kept, cuts
    some = np.isfinite(scores).any()
    why = f"the highest score is {np.nanmax(scores):.4g}" if some else "nothing is left to choose from"
    flag = " ".join(f"--{name} {value:g}" for name, value in way.items())
    raise DataError(
        f"nothing of {len(kept)} samples would be kept with {flag}: {why}", next(iter(way)), str(scored.folder)
    )


def _summary(figures: Mapping[str, Any]) -> str:
    """What was kept, in words."""
    samples = figures["samples"]
    others = [f"{samples[name]} {text}" for name, text in FATES.items() if samples.get(name)]
    lowest = [stratum["score"] for stratum in figures["strata"] if stratum["score"] is not None]
    scores = f"scores from {min(lowest):.4g}" if len(lowest) == 1 else f"{len(lowest)} cuts"
    return f"{samples['kept']} of {samples['all']} samples kept ({scores}; {'; '.join(others) or 'all of them'})"


def _about(
    scored: Scored, report: Mapping[str, Any], options: CurateOptions, way: Mapping[str, float]
) -> dict[str, Any]:
    """What `curation.json` says of a cut."""
    manifest = scored.manifest
    return {
        "scores": str(scored.folder.resolve()),
        **{name: manifest.get(name) for name in ("split", "columns", "stamp", "scorer")},
        "settings": {**way, **options.settings(), "compare": options.compare},
        "figures": report["figures"],
        "notes": report["notes"],
        "left_out": report["lists"],
    }


def _apply_ids(options: CurateOptions, path: str) -> str:
    """Keeps what a published list of ids names; returns what was kept, in one sentence."""
    data = str(options.input)  # `check` has refused options without
    check_folder(options.output, options.overwrite, [data, path])
    columns = options.named_columns()
    inputs = open_image_texts(data, options.split, image_root=options.image_root, columns=columns)
    ids = read_ids(path, inputs)
    about = {
        "ids": path,
        "split": options.split,
        "columns": columns or None,
        "stamp": inputs.stamp,
        "settings": {},
        "figures": {"rows": {"kept": len(pc.unique(ids["row_id"]))}, "texts": {"kept": len(ids)}},
    }
    written = write_folder(options.output, inputs, ids, about, {})
    return f"{len(ids)} texts of {written['kept_rows']} of {written['rows']} rows kept -> {options.output}"
