"""What `rs-rlhf eval` wrote, read back and handed on: as lm-evaluation-harness writes it, or to W&B.

`rs-rlhf eval export DIR --format lm-eval` writes a results file and one file of samples per task in the shape that
EleutherAI's lm-evaluation-harness (0.4) writes, so that what reads its logs reads ours. lmms-eval's samples have the
same fields but for `input`, which is there too. `--format wandb` logs the figures and a table of samples with
thumbnails per task as one run.

Left out of the lm-eval files: intervals (the format has standard errors), what only that harness knows (few-shot
examples, its version, the date: the same run gives the same bytes), and figures per type as tasks of their own.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean as mean
from typing import Any

from ..data.group import short
from ..errors import DataError, ImageError, OptionError
from ..runs.files import read_lines
from ..runs.report_tables import spread
from . import run as eval_run

FORMATS = ("lm-eval", "wandb")
# Measure of a single answer -> whether it is right or wrong (McNemar's).
MEASURES = {
    "accuracy": True,
    "image_to_text_R@1": True,
    "text_to_image_R@1": False,
    "iou": False,
    "score": False,
    "upstream_compat": True,
}


# Reading


def read_results(folder: str | Path) -> dict[str, Any]:
    """Reads the `results.json` of an output folder of `rs-rlhf eval`.

    Raises:
        DataError: There is none, it is cut off, or it has no tasks.
    """
    if not (Path(folder) / "results.json").is_file():
        raise DataError(f"no results.json in {folder}; give an output folder (--out) of a finished `rs-rlhf eval`")
    return eval_run.read_results(Path(folder))


def read_samples(folder: str | Path, task: str, figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Reads `samples_TASK.jsonl`: one record per question, in the order of the data.

    Args:
        folder, task (`str`): Output folder of `rs-rlhf eval`, and the task's name.
        figures (`dict`): The task's figures in `results.json`, which say how many records there must be.

    Raises:
        DataError: No such file, a record without `id`, an `id` twice, or another number of records.
        ValueError: A line that is cut off or not JSON.
    """
    path = Path(folder) / f"samples_{task}.jsonl"
    again = "run `rs-rlhf eval` again with the same --out"
    if not path.is_file():
        raise DataError(f"no {path.name} in {folder}, though its results.json has {task}; {again}")
    lines: dict[str, int] = {}
    records = read_lines(path)
    for number, record in enumerate(records, start=1):
        where, name = f"{path}, line {number}", record.get("id")
        if not isinstance(name, str):
            raise DataError(f"`id` is {short(name)}, expected a text; {again}", "id", where)
        if name in lines:
            raise DataError(f"the id {name!r} stands in line {lines[name]} too; {again}", "id", where)
        lines[name] = number
    n = figures.get("rows", figures.get("n"))  # of preferences `n` counts comparisons
    if n is not None and n != len(records):
        raise DataError(f"{len(records)} records, but results.json was made of {n}; {again}", where=str(path))
    return records


def measured(record: Mapping[str, Any], where: str = "") -> dict[str, float]:
    """Returns what is known of one answer, by the names of [`MEASURES`]: right or wrong as 1 or 0.

    `iou` is the mean over the question's boxes, `text_to_image_R@1` the share of the image's own captions for which it
    is ranked first.

    Args:
        record (`dict`): A line of `samples_TASK.jsonl`.
        where (`str`): File and line, for messages.

    Raises:
        DataError: A value of another kind.
    """
    out: dict[str, float] = {}

    def take(key: str, name: str, kinds: Any, expected: str, value: Any) -> None:
        found = record.get(key)
        if found is None:
            return
        if not isinstance(found, kinds) or (isinstance(found, bool) and kinds is not bool):
            raise DataError(f"`{key}` is {short(found)}, expected {expected}", key, where)
        out[name] = float(value(found))

    take("strict", "accuracy", bool, "true or false", float)
    take("image_to_text_rank", "image_to_text_R@1", int, "a rank from 1", lambda rank: rank == 1)
    for key, name, value in (("text_to_image_ranks", "text_to_image_R@1", lambda x: x == 1), ("ious", "iou", float)):
        if record.get(key) != []:
            take(key, name, list, "a list of numbers", lambda found, value=value: mean([value(x) for x in found]))
    take("score", "score", (int, float), "a number", float)
    take("upstream_compat", "upstream_compat", bool, "true or false", float)
    if broken := next((name for name in out if not math.isfinite(out[name])), None):
        raise DataError(f"{broken} is {out[broken]}, expected a finite number", broken, where)
    return out


def models_of(results: Mapping[str, Any], tasks: Sequence[str] | None = None) -> list[str]:
    """Returns the models that the tasks (by default all) were put to: a folder may hold tasks of several."""
    own = results["tasks"]
    return list(dict.fromkeys(str(own[task].get("model", results.get("model"))) for task in tasks or own))


def thumbnail_of(record: Mapping[str, Any], figures: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """Reads the picture of a record, with the bands and the stretch that the model saw it with.

    Args:
        record (`dict`): With `image`, what [`read_image`] reads, or `None`.
        figures (`dict`): The task's figures in `results.json`.

    Returns:
        `tuple`: A thumbnail (see [`sample_tables.thumbnail`]) or `None`, and why there is none.
    """
    from ..imagery.arguments import ImageArguments
    from ..imagery.raster import read_image
    from ..runs.tables import thumbnail

    if not record.get("image"):
        return None, "no picture: it lies inside the data's file (Parquet); eval compare shows it with --data_root"
    reading = (figures.get("settings") or {}).get("reading") or {}
    try:  # the paths of records start nowhere: they are whole
        options = ImageArguments(**{**reading, "image_root": None}).image_options()
        return thumbnail(read_image(record["image"], options)), ""
    except ImageError as error:
        return None, f"no picture: {error}"


# lm-evaluation-harness


def lm_eval_results(results: Mapping[str, Any]) -> dict[str, Any]:
    """Returns results in the shape of lm-evaluation-harness's results file.

    Args:
        results (`dict`): The content of `results.json`; [`write_lm_eval`] gives the tasks of one model.

    Returns:
        `dict`: `results` with, per task, `acc,none` and `exact_match,strict-match` (both our strict accuracy) with
        their standard errors (sample deviation over the root of n, as that harness has it), `upstream_compat,none`,
        `parse_failures,none`, every plain number of `metrics`, and `acc_TYPE,none` per type; `group_subtasks`,
        `configs`, `versions`, `n-shot`, `higher_is_better`, `n-samples`, `config`, `model_name`.
    """
    model = ", ".join(models_of(results))
    limits = {task: own.get("settings", {}).get("limit") for task, own in results["tasks"].items()}
    kinds = dict.fromkeys(str(own.get("model_type", results.get("model_type"))) for own in results["tasks"].values())
    names = ("results", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples")
    parts: dict[str, dict[str, Any]] = {name: {} for name in names}
    for task, figures in results["tasks"].items():
        shown = _lm_eval_figures(figures)
        metrics = [key.partition(",")[0] for key in shown if "_stderr," not in key]
        n, version = figures.get("rows", figures.get("n")), figures.get("metric_version")
        worded = figures.get("model_type", results.get("model_type")) == "vlm"
        metadata = {key: figures.get(key) for key in ("dataset_hash", "seed", "pixel_budget", "settings")}
        own = {
            "results": {"alias": task, **shown},
            "group_subtasks": [],
            "configs": {
                "task": task,
                "num_fewshot": 0,
                "repeats": 1,
                "metadata": {"version": version, **metadata},
                "output_type": "generate_until" if worded else "multiple_choice",
            },
            "versions": version,
            "n-shot": 0,
            "higher_is_better": {name: name != "parse_failures" for name in metrics},
            "n-samples": {"original": n, "effective": n},
        }
        for name in names:
            parts[name][task] = own[name]
    return {
        **parts,
        "config": {
            "model": ", ".join(kinds),
            "model_args": f"pretrained={model}",
            "limit": limits if len(set(limits.values())) > 1 else next(iter(limits.values()), None),
        },
        "model_source": "rs-rlhf",
        "model_name": model,
        "model_name_sanitized": re.sub(r"[^\w.-]+", "__", model).strip(".") or "model",
        "transformers_version": (results.get("versions") or {}).get("transformers"),
    }


def _lm_eval_figures(figures: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}

    def rate(metric: str, key: str, value: Any, n: Any) -> None:
        if _is_number(value):
            out[f"{metric},{key}"] = value
            out[f"{metric}_stderr,{key}"] = math.sqrt(value * (1 - value) / (n - 1)) if n and n > 1 else "N/A"

    n = figures.get("n")
    rate("acc", "none", figures.get("accuracy"), n)
    rate("exact_match", "strict-match", figures.get("accuracy"), n)
    for name in ("upstream_compat", "parse_failures"):
        rate(name, "none", figures.get(name), n)
    for name, own in figures.get("types", figures.get("by_kind", {})).items():
        if name:  # pairs whose file says no kind are counted as a whole
            rate(f"acc_{name}".replace(",", ";"), "none", own.get("accuracy"), own.get("n"))
    for name, value in (figures.get("metrics") or {}).items():
        if _is_number(value):
            out[f"{name.replace(',', ';')},none"] = value
    return out


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def lm_eval_samples(records: Sequence[Mapping[str, Any]], task: str) -> list[dict[str, Any]]:
    """Returns sample records in the shape of the lines of lm-evaluation-harness's samples files.

    Args:
        records (sequence of `dict`): Lines of `samples_TASK.jsonl`.
        task (`str`): Name of the task.

    Returns:
        `list[dict]`: `doc_id` (place in the data), `doc`, `target`, `arguments`, `resps`, `filtered_resps` (the parsed
        answer, `[invalid]` where there is none, as that harness has it), `filter`, `metrics`, the hashes, and a value
        per metric, `acc` among them. What has no generated text has its scores or ranks in `resps`, as JSON.
    """
    return [_lm_eval_sample(place, record, task) for place, record in enumerate(records)]


def _lm_eval_sample(place: int, record: Mapping[str, Any], task: str) -> dict[str, Any]:
    values = measured(record, f"{task}, id {record.get('id')!r}")
    metrics = {"acc" if name == "accuracy" else name: value for name, value in values.items()}
    if "acc" in metrics:
        metrics["exact_match"] = metrics["acc"]
    output, answer = record.get("output"), record.get("answer")
    if output is None:
        kept = {"scores", "rank", "image_to_text_rank", "text_to_image_ranks"}
        output = json.dumps({key: value for key, value in record.items() if key in kept}, ensure_ascii=False)
    prompt = str(record.get("prompt") or "")
    references = [str(reference) for reference in record.get("references") or []]
    target = references[0] if len(references) == 1 else json.dumps(references, ensure_ascii=False)
    doc = {key: record.get(key) for key in ("id", "prompt", "references", "types")}
    return {
        "doc_id": place,
        "doc": {**doc, "image": record.get("image")},
        "target": target,
        "arguments": {"gen_args_0": {"arg_0": prompt}},
        "input": prompt,
        "resps": [[output]],
        "filtered_resps": ["[invalid]" if answer is None else str(answer)],
        "filter": "none",
        "metrics": list(metrics),
        "doc_hash": _hash(json.dumps(doc, indent=2, ensure_ascii=False)),  # the same wherever the image lies
        "prompt_hash": _hash(prompt),
        "target_hash": _hash(target),
        **metrics,
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def write_lm_eval(out: str | Path, directory: str | Path) -> list[Path]:
    """Writes `MODEL/results_TIME.json` and `MODEL/samples_TASK_TIME.jsonl`, as lm-evaluation-harness names them.

    Args:
        out (`str`): Output folder of `rs-rlhf eval`.
        directory (`str`): Where a folder per model is made.

    Returns:
        `list[Path]`: The files written. `TIME` is that of `results.json`, in UTC: a run exported twice gives the same.

    Raises:
        DataError: A file of the run is missing or cannot be used.
    """
    results = read_results(out)
    written = datetime.fromtimestamp((Path(out) / "results.json").stat().st_mtime, UTC)
    stamp = written.strftime("%Y-%m-%dT%H-%M-%S.%f")
    texts: dict[Path, str] = {}
    for model in models_of(results):
        tasks = {task: own for task, own in results["tasks"].items() if models_of(results, [task]) == [model]}
        exported = lm_eval_results({**results, "tasks": tasks})
        folder = Path(directory) / exported["model_name_sanitized"]
        path = folder / f"results_{stamp}.json"
        if path in texts:
            raise DataError(
                f"{model} and another model would both be written to {folder}; evaluate them into folders "
                "of their own",
                "model",
                str(out),
            )
        for task, figures in tasks.items():
            own = lm_eval_samples(read_samples(out, task, figures), task)
            hashes = "".join(one[f"{what}_hash"] for one in own for what in ("doc", "prompt", "target"))
            exported.setdefault("task_hashes", {})[task] = _hash(hashes)
            lines = (json.dumps(one, ensure_ascii=False, allow_nan=False) + "\n" for one in own)
            texts[folder / f"samples_{task}_{stamp}.jsonl"] = "".join(lines)
        texts[path] = json.dumps(exported, indent=2, ensure_ascii=False, allow_nan=False)
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="replace")  # a lone surrogate cannot be encoded
    return list(texts)


# W&B


def wandb_figures(results: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of `results.json` by W&B key: `eval/TASK/accuracy`, `eval/TASK/types/TYPE/accuracy`, …"""
    out: dict[str, float] = {}

    def take(start: str, figures: Mapping[str, Any]) -> None:
        for key, value in figures.items():
            if isinstance(value, Mapping) and key not in ("settings", ""):
                take(f"{start}/{key}", value)
            elif isinstance(value, list) and (key.endswith("interval") or start.endswith("/intervals")):
                out[f"{start}/{key}_low"], out[f"{start}/{key}_high"] = value
            elif _is_number(value) and key not in ("seed", "metric_version"):
                out[f"{start}/{key}"] = value

    for task, figures in results["tasks"].items():
        take(f"eval/{task}", figures)
    return out


def log_to_wandb(
    results: Mapping[str, Any],
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
    project: str,
    run_name: str | None = None,
    limit: int = 64,
) -> None:
    """Logs an evaluation as one W&B run: the figures, and per task a table `eval/TASK/samples` with thumbnails.

    Args:
        results (`dict`): The content of `results.json`; what the figures depend on becomes the run's config.
        samples (mapping): Task to its records.
        project (`str`): W&B project.
        run_name (`str`, *optional*): Name of the run; by default that of the model, or of the models.
        limit (`int`): Most samples of a table, spread evenly over the data; 0: no tables.
    """
    import wandb
    from PIL import Image

    kept = ("model", "model_type", "dataset_hash", "metric_version", "seed", "pixel_budget", "settings")
    tasks = {task: {k: own[k] for k in kept if k in own} for task, own in results["tasks"].items()}
    config = {"model": ", ".join(models_of(results)), "versions": results.get("versions"), "tasks": tasks}
    name = run_name or ", ".join(Path(model).name for model in models_of(results))
    with wandb.init(project=project, name=name, job_type="eval", config=config) as run:
        logged: dict[str, Any] = dict(wandb_figures(results))
        for task, records in samples.items() if limit > 0 else ():
            columns: list[Any] = ["id", "image", "prompt", "output", "answer", "references", "types"]
            columns += [*MEASURES, "note"]
            table = wandb.Table(columns=columns)
            for record in spread(records, limit) if limit > 1 else records[:limit]:
                picture, why = thumbnail_of(record, results["tasks"][task])
                shown: dict[str, Any] = {key: _cell(record.get(key)) for key in columns} | measured(record)
                shown |= {"image": picture and wandb.Image(Image.open(io.BytesIO(picture["bytes"]))), "note": why}
                table.add_data(*map(shown.__getitem__, columns))
            logged[f"eval/{task}/samples"] = table
        run.log(logged)


def _cell(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def main(argv: Sequence[str] | None = None) -> int:
    """`rs-rlhf eval export DIR`: hands an evaluation on."""
    parser = argparse.ArgumentParser(
        prog="rs-rlhf eval export", description="Write an evaluation as lm-evaluation-harness does, or log it to W&B."
    )
    parser.add_argument("run", metavar="DIR", help="output folder of `rs-rlhf eval`")
    parser.add_argument("--format", required=True, choices=FORMATS, help="lm-eval: files; wandb: a run")
    parser.add_argument("--out", metavar="FOLDER", help="lm-eval: where to write (default: DIR/lm_eval)")
    parser.add_argument("--project", default="rs-rlhf", help="wandb: project (default: rs-rlhf)")
    parser.add_argument("--name", help="wandb: name of the run (default: the model's)")
    parser.add_argument("--limit", type=int, default=64, help="wandb: samples per table (default: 64; 0: no tables)")
    args = parser.parse_args(argv)
    if args.format == "lm-eval":
        for path in write_lm_eval(args.run, args.out or Path(args.run) / "lm_eval"):
            print(f"-> {path}")
        return 0
    if args.limit < 0:
        raise OptionError(f"--limit is {args.limit}; it must be 0 (no tables) or more.")
    results = read_results(args.run)
    samples = {task: read_samples(args.run, task, own) for task, own in results["tasks"].items()}
    log_to_wandb(results, samples, args.project, args.name, args.limit)
    print(f"{len(samples)} tasks -> W&B project {args.project}")
    return 0
