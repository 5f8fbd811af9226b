"""`rs-rlhf curate SCORES`: keeps the best part of scored image-text data, in the data's own format, with a report.

Errors are never kept. Then are left out, each counted: images of evaluation sets (`--exclude_images_of`), copies and
near-duplicates (`--dedup`). The cut chooses from what is then left, so that `--keep 0.3` is three tenths of that.
Several cuts of the same scores cost one reading. A folder is written under another name and takes its own when it is
whole, so that what is there is whole. `--ids` applies a list that somebody has published to the same data.

Left out: cutting by several scores at once, and choosing by looking (`rs-rlhf browse`).
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, OptionError

if TYPE_CHECKING:
    from .cut import Cut, Samples
    from .samples import LeftOut, Scored

KEEP = 0.3
LENGTH = 0.3  # Spearman's correlation of score and length from which the report warns
OPTIONS = (
    "by",
    "best_of_every_image",
    "per",
    "aggregate",
    "dedup",
    "near_distance",
    "exclude_images_of",
    "exclude_near",
    "allow_partial",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `rs-rlhf curate`: writes one folder for each cut and prints what was kept."""
    args = _parser().parse_args(argv)
    if args.ids is not None:
        _check_ids(args)
        apply_ids(args)
    else:
        _check(args)
        curate(args)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rs-rlhf curate",
        description="Keep the best part of image-text data that `rs-rlhf score` has scored, in its own format.",
        epilog="In this order are left out: texts without a score, images of evaluation sets, copies and "
        "near-duplicates, and what is below the cut. So a fraction is of what the first three have left.",
    )
    add = parser.add_argument
    add("scores", nargs="?", metavar="SCORES", help="folder that `rs-rlhf score` has written")
    add(
        "--output",
        "--output_dir",
        "--output-dir",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder to write; of several cuts, the folder of theirs (keep-0.3, …)",
    )
    add(
        "--keep",
        type=float,
        nargs="+",
        metavar="F",
        help="fractions to keep, more than 0 and at most 1; rounded, "
        f"halves up; of equal scores those first in the data (default: {KEEP})",
    )
    add("--threshold", type=float, nargs="+", metavar="X", help="keep scores of X and higher, instead of --keep")
    add(
        "--by",
        choices=("source", "label", "none"),
        default="none",
        help="keep the fraction of every source, or of every class, by itself (default: none)",
    )
    add(
        "--best_of_every_image",
        "--best-of-every-image",
        action="store_true",
        help="with --keep: the best of every "
        "image comes before the second best of any, so that no image is lost before its last text",
    )
    add(
        "--per",
        choices=("text", "row"),
        default="text",
        help="text: conversations as a whole, other rows' texts one by one (default); row: all rows as a whole",
    )
    add(
        "--aggregate",
        choices=("mean", "min"),
        default="mean",
        help="the score of what is kept as a whole, from those of its texts (default: mean)",
    )
    add(
        "--dedup",
        choices=("none", "exact", "near"),
        default="none",
        help="exact: of samples with the same image bytes, question and text the best; an image with other texts "
        "stays. near: also, of images that look alike, only the one whose texts' mean score is best. "
        "(default: none)",
    )
    add(
        "--near_distance",
        "--near-distance",
        type=int,
        default=4,
        metavar="BITS",
        help="images look alike if their perceptual hashes differ in at most so many of 64 bits (default: 4)",
    )
    add(
        "--exclude_images_of",
        "--exclude-images-of",
        nargs="+",
        action="extend",
        default=[],
        metavar="PATH[:SPLIT]",
        help="drop rows whose picture is in these evaluation sets (Parquet, JSONL, CSV, folder of classes)",
    )
    add("--exclude_near", "--exclude-near", action="store_true", help="drop those too that look like one of them")
    add("--compare", metavar="SCORES", help="other scores of the same input, such as CLIP's, to compare with")
    add("--allow_partial", "--allow-partial", action="store_true", help="take scores of a run that is not finished")
    add(
        "--max_images_in_report",
        "--max-images-in-report",
        type=int,
        default=60,
        metavar="N",
        help="images in report.html (default: 60)",
    )
    add("--overwrite", action="store_true", help="replace folders that an earlier `rs-rlhf curate` has written")
    add("--ids", metavar="FILE", help="keep exactly what this kept_ids.parquet lists, of --input; needs no SCORES")
    add("--input", metavar="DATA", help="with --ids: the data, as for `rs-rlhf score`")
    add("--split", help="with --ids: split of the data")
    for name, what in (
        ("image_root", "folder that image paths start from"),
        ("image_column", "column of the images"),
        ("text_column", "column of the texts"),
    ):
        add(f"--{name}", f"--{name.replace('_', '-')}", help=f"with --ids: {what}")
    return parser


# --- checks -------------------------------------------------------------------------------------------------------


def _check(args: argparse.Namespace) -> None:
    """Refuses what contradicts itself, before anything is read."""
    from .near_duplicates import FARTHEST

    if args.scores is None:
        raise OptionError("no SCORES; give a folder that `rs-rlhf score` has written, or --ids with --input.")
    for name in ("input", "split", "image_root", "image_column", "text_column"):
        if getattr(args, name) is not None:
            raise OptionError(f"--{name} is for --ids; SCORES say themselves what was scored: leave it out.")
    if args.keep is not None and args.threshold is not None:
        raise OptionError("--keep and --threshold are both given; give one of them.")
    for value in args.keep or ():
        if not 0 < value <= 1:
            raise OptionError(f"--keep is {value:g}, expected a fraction of more than 0 and at most 1, such as 0.3.")
    if args.best_of_every_image and args.threshold is not None:
        raise OptionError("--best_of_every_image goes with --keep; a threshold is of the score alone.")
    for value in args.threshold or ():
        if value != value or value in (float("inf"), float("-inf")):
            raise OptionError(f"--threshold is {value}, expected a number.")
    values = args.keep or args.threshold or [KEEP]
    if len({f"{value:g}" for value in values}) < len(values):
        raise OptionError(f"--{'threshold' if args.threshold else 'keep'} names a value twice; name each once.")
    if not 0 <= args.near_distance <= FARTHEST:
        raise OptionError(f"--near_distance is {args.near_distance}, expected 0 to {FARTHEST} bits.")
    if args.exclude_near and not args.exclude_images_of:
        raise OptionError("--exclude_near is given without --exclude_images_of; name the evaluation sets.")
    if args.max_images_in_report < 0:
        raise OptionError(f"--max_images_in_report is {args.max_images_in_report}, expected 0 or more.")


def _check_ids(args: argparse.Namespace) -> None:
    defaults = _parser().parse_args(["--output", "x"])
    if args.input is None:
        raise OptionError("--ids needs --input, the data that its ids are of.")
    for name in ("scores", "keep", "threshold", "compare", "max_images_in_report", *OPTIONS):
        if getattr(args, name) != getattr(defaults, name):
            what = "SCORES are" if name == "scores" else f"--{name} is"
            raise OptionError(f"{what} given with --ids, which already says what is kept; leave one of them out.")


def targets(args: argparse.Namespace) -> list[tuple[Path, dict[str, float]]]:
    """Returns the folder of each cut, and the cut."""
    way = "threshold" if args.threshold is not None else "keep"
    values = getattr(args, way) or [KEEP]
    if len(values) == 1:
        return [(args.output, {way: values[0]})]
    return [(args.output / f"{way}-{value:g}", {way: value}) for value in values]


# --- the cuts -----------------------------------------------------------------------------------------------------


def curate(args: argparse.Namespace) -> None:
    """Makes all cuts of the parsed options and writes their folders."""
    import numpy as np

    from .cut import KEPT, cut
    from .gallery import make_gallery
    from .report import markdown, page
    from .samples import compare_with, leave_out, read_scored
    from .shards import read_manifest
    from .writer import check_folder, write_folder

    source = read_manifest(args.scores)["input"]
    for folder, _ in targets(args):
        check_folder(folder, args.overwrite, [args.scores, source, *filter(None, [args.compare])])
    scored = read_scored(args.scores, per=args.per, aggregate=args.aggregate, partial=args.allow_partial)
    compared = "" if args.compare is None else compare_with(scored, args.compare, args.aggregate, args.allow_partial)
    # Not kept in a folder that only others may write into.
    keep = scored.folder / "pictures" if os.access(scored.folder, os.W_OK) else None
    left = leave_out(
        scored,
        args.exclude_images_of,
        exclude_near=args.exclude_near,
        dedup=args.dedup,
        distance=args.near_distance,
        keep=keep,
    )
    could = scored.samples.candidates()
    strata = scored.samples.strata(args.by)[0]
    scores = np.where(could, scored.samples.score, np.float32(np.nan))
    images = scored.image_numbers() if args.best_of_every_image else None
    made = []
    for folder, way in targets(args):
        kept, cuts = cut(scores, strata, images=images, **way)  # type: ignore[arg-type]
        if not kept.any():
            highest = (
                f"the highest score is {np.nanmax(scores):.4g}" if could.any() else "nothing is left to choose from"
            )
            raise DataError(
                f"nothing of {len(kept)} samples would be kept with {_told(way)}: {highest}", where=str(args.scores)
            )
        made.append((folder, way, kept, cuts))
    for folder, way, kept, cuts in made:
        samples = replace(scored.samples, status=np.where(kept, KEPT, scored.samples.status).astype(np.int8))
        report = make_report(scored, samples, cuts, left, args, way, compared)
        gallery = make_gallery(scored, samples, cuts, args.by, left.near, args.max_images_in_report)
        texts = {"report.md": markdown(report), "report.html": page(report, gallery)}
        ids = scored.kept_ids(kept)
        written = write_folder(folder, scored.inputs, ids, _about(scored, report, args, way), texts)
        print(_summary(report["figures"], written, folder))


def _told(way: Mapping[str, float]) -> str:
    return " ".join(f"--{name} {value:g}" for name, value in way.items())


def _summary(figures: Mapping[str, Any], written: Mapping[str, Any], folder: Path) -> str:
    """What was kept, in one sentence."""
    from .report import FATES

    samples = figures["samples"]
    others = [f"{samples[name]} {text}" for name, text in FATES.items() if samples[name]]
    lowest = [one["score"] for one in figures["strata"] if one["score"] is not None]
    scores = f"scores from {min(lowest):.4g}" if len(lowest) == 1 else f"{len(lowest)} cuts"
    return (
        f"{samples['kept']} of {samples['all']} samples kept ({scores}; {'; '.join(others) or 'all of them'}): "
        f"{written['kept_rows']} of {written['rows']} rows -> {folder}"
    )


# --- the report ---------------------------------------------------------------------------------------------------


def make_report(
    scored: Scored,
    samples: Samples,
    cuts: Sequence[Cut],
    left: LeftOut,
    args: argparse.Namespace,
    way: Mapping[str, float],
    compared: str,
) -> dict[str, Any]:
    """Returns all that the report of a cut says; see `curation_report.markdown` for its keys."""
    from .figures import figures_of

    figures = figures_of(samples, cuts, args.by)
    name = Path(scored.manifest["input"]).name
    share = figures["samples"]["kept"] / max(sum(one.candidates for one in cuts), 1)
    return {
        "title": f"Curation of {name}: {share:.1%} kept",
        "facts": _facts(scored, args, way, compared),
        "notes": [*_notes(scored, figures, args), *left.notes],
        "sample": _sample(scored, args),
        "by": args.by,
        "compared": compared,
        "figures": figures,
        "lists": _lists(scored, samples, left, figures),
    }


def _sample(scored: Scored, args: argparse.Namespace) -> str:
    how = f"by the {args.aggregate} of its texts' scores"
    if args.per == "row":
        return f"a whole row, {how}"
    if not scored.complete.any():
        return "one text"
    return f"a whole conversation, {how}" + ("" if scored.complete.all() else "; of other rows, one text")


def _facts(scored: Scored, args: argparse.Namespace, way: Mapping[str, float], compared: str) -> list[list[str]]:
    from .samples import scorer_name

    split = scored.manifest.get("split")
    of = {"none": "", "source": " of every source", "label": " of every class"}[args.by]
    cut = f"the best {100 * way['keep']:g}%{of}" if "keep" in way else f"scores of {way['threshold']:g} and higher"
    cut += ", the best of every image first" * args.best_of_every_image
    dedup = {
        "none": "kept",
        "exact": "copies are left out",
        "near": f"copies are left out, and images within {args.near_distance} of 64 bits of a better one",
    }
    found = {
        "Data": Path(scored.manifest["input"]).name + (f", split {split}" if split else ""),
        "Scorer": scorer_name(scored.manifest),
        "Kept": cut,
        "Duplicates": dedup[args.dedup],
    }
    if args.exclude_images_of:
        near = f", and images within {args.near_distance} of 64 bits of theirs" if args.exclude_near else ""
        found["Evaluation sets whose images are left out"] = ", ".join(args.exclude_images_of) + near
    return [[name, text] for name, text in (found | ({"Compared with": compared} if compared else {})).items()]


def _notes(scored: Scored, figures: Mapping[str, Any], args: argparse.Namespace) -> list[str]:
    """What a reader of the report should not miss."""
    notes = []
    if scored.missing:
        notes.append(
            f"The scores are not complete: {scored.missing} of {len(scored.units)} shards are missing, and "
            "nothing of their rows is kept."
        )
    if limit := scored.manifest.get("limit"):
        notes.append(f"Only the first {limit} rows were scored (--limit); nothing of the others is kept.")
    empty = [one["name"] or "(none)" for one in figures["strata"] if one["candidates"] and not one["kept"]]
    if empty:
        some = ", ".join(empty[:5]) + (", …" if len(empty) > 5 else "")
        notes.append(f"Nothing is kept of {len(empty)} of {len(figures['strata'])} strata: {some}.")
    equal = sum(one["equal_dropped"] for one in figures["strata"])
    if equal:
        notes.append(
            f"{equal} samples were dropped with exactly the lowest score kept, since they come later in the data."
        )
    rho = figures["length_spearman"]
    if rho is not None and abs(rho) >= LENGTH:
        longer = "longer" if rho > 0 else "shorter"
        notes.append(
            f"The score goes with the length of the text (Spearman's correlation {rho:.2f}): {longer} texts "
            "are kept more often."
        )
    if args.dedup != "none":
        notes.append("Images of the same bytes with other texts are no duplicates: they stay.")
    return notes


def _lists(scored: Scored, samples: Samples, left: LeftOut, figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Row by row what was left out before the cut: evaluation images, near-duplicates; errors by their kind."""
    import numpy as np
    import pyarrow.compute as pc

    from .shards import reason

    failed = scored.lines.filter(pc.is_valid(scored.lines["error"]))
    kinds: dict[str, list[Any]] = {}
    counts: Counter[str] = Counter()
    for row_id, error in zip(failed["row_id"].to_pylist(), failed["error"].to_pylist(), strict=True):
        kinds.setdefault(reason(error), [row_id, error])
        counts[reason(error)] += 1
    errors = [[count, *kinds[kind]] for kind, count in counts.most_common()]
    pairs = np.array(left.near, np.int64).reshape(-1, 2)
    near = zip(*(scored.row_ids(column).to_pylist() for column in pairs.T), strict=True)
    lists = [
        {
            "title": "Texts without a score",
            "columns": ["texts", "first of them", "why"],
            "rows": errors,
            "count": len(errors),
        },
        {
            "title": "Images that are in an evaluation set",
            "columns": ["row", "evaluation image", "how"],
            "rows": left.excluded,
            "count": figures["rows"]["excluded"],
        },
        {
            "title": "Near-duplicate images, row by row",
            "columns": ["left out", "stays"],
            "rows": list(map(list, near)),
            "count": left.near_images,
        },
    ]
    return [one for one in lists if one["rows"]]


def _about(
    scored: Scored, report: Mapping[str, Any], args: argparse.Namespace, way: Mapping[str, float]
) -> dict[str, Any]:
    """What `curation.json` says of a cut."""
    manifest = scored.manifest
    return {
        "scores": str(scored.folder.resolve()),
        "split": manifest.get("split"),
        "image_column": manifest.get("image_column"),
        "text_column": manifest.get("text_column"),
        "stamp": manifest["stamp"],
        "scorer": manifest["scorer"],
        "settings": {**way, **{name: getattr(args, name) for name in OPTIONS}, "compare": args.compare},
        "figures": report["figures"],
        "notes": report["notes"],
        "left_out": report["lists"],
    }


# --- a published list ---------------------------------------------------------------------------------------------


def apply_ids(args: argparse.Namespace) -> None:
    """Keeps what a list of ids names; the options are those of [`main`]."""
    import pyarrow.compute as pc

    from ..data.image_text_dataset import open_image_texts
    from .writer import check_folder, read_ids, write_folder

    check_folder(args.output, args.overwrite, [args.input, args.ids])
    inputs = open_image_texts(
        args.input,
        args.split,
        image_root=args.image_root,
        image_column=args.image_column,
        text_column=args.text_column,
    )
    ids = read_ids(args.ids, inputs)
    about = {
        "ids": args.ids,
        "split": args.split,
        "image_column": args.image_column,
        "text_column": args.text_column,
        "stamp": inputs.stamp,
        "settings": {},
        "figures": {"rows": {"kept": len(pc.unique(ids["row_id"]))}, "texts": {"kept": len(ids)}},
    }
    written = write_folder(args.output, inputs, ids, about, {})
    print(f"{len(ids)} texts of {written['kept_rows']} of {written['rows']} rows kept -> {args.output}")
