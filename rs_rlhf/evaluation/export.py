"""Export of an evaluation: to files of lm-evaluation-harness's or lmms-eval's format, or to W&B.

`rs-rlhf eval export DIR --format lm-eval` writes a results file and one file of samples per task in the shape that
EleutherAI's lm-evaluation-harness (0.4) writes, so that what reads its logs reads ours; `--format lmms-eval` as
lmms-eval (0.4 and later) does, whose tasks `lmms.tasks` writes. `--format wandb` logs the figures and a table of
samples with thumbnails per task as one run.

Left out of the lm-eval files: intervals (the format has standard errors), what only that harness knows (few-shot
examples, its version, the date: the same run gives the same bytes), and figures per type as tasks of their own.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..runs.files import write_text
from ..runs.report_tables import spread
from .results import (
    MEASURES,
    Figures,
    Record,
    Results,
    measured,
    models_of,
    read_results,
    read_samples,
    thumbnail_of,
)

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
    limits = {task: figures.get("settings", {}).get("limit") for task, figures in results["tasks"].items()}
    types = {task: figures.get("model_type", results.get("model_type")) for task, figures in results["tasks"].items()}
    names = ("results", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples")
    parts: dict[str, dict[str, Any]] = {name: {} for name in names}
    for task, figures in results["tasks"].items():
        entry = _lm_eval_task(task, figures, types[task])
        for name in names:
            parts[name][task] = entry[name]
    return {
        **parts,
        "config": {
            "model": ", ".join(dict.fromkeys(map(str, types.values()))),
            "model_args": f"pretrained={model}",
            "limit": limits if len(set(limits.values())) > 1 else next(iter(limits.values()), None),
        },
        "model_source": "rs-rlhf",
        "model_name": model,
        "model_name_sanitized": re.sub(r"[^\w.-]+", "__", model).strip(".") or "model",
        "transformers_version": (results.get("versions") or {}).get("transformers"),
    }


def _lm_eval_task(task: str, figures: Figures, model_type: str | None) -> dict[str, Any]:
    """What each part of the results file holds about one task."""
    shown = _lm_eval_figures(figures)
    metrics = [key.partition(",")[0] for key in shown if "_stderr," not in key]
    n, version = figures.get("rows", figures.get("n")), figures.get("metric_version")
    metadata = {key: figures.get(key) for key in ("dataset_hash", "seed", "pixel_budget", "settings")}
    return {
        "results": {"alias": task, **shown},
        "group_subtasks": [],
        "configs": {
            "task": task,
            "num_fewshot": 0,
            "repeats": 1,
            "metadata": {"version": version, **metadata},
            "output_type": "generate_until" if model_type == "vlm" else "multiple_choice",
        },
        "versions": version,
        "n-shot": 0,
        "higher_is_better": {name: name != "parse_failures" for name in metrics},
        "n-samples": {"original": n, "effective": n},
    }


def _lm_eval_figures(figures: Figures) -> dict[str, Any]:
    shown: dict[str, Any] = {}

    def rate(metric: str, key: str, value: object, n: int | None) -> None:
        if _is_number(value):
            shown[f"{metric},{key}"] = value
            deviation = math.sqrt(value * (1 - value) / (n - 1)) if n and n > 1 else "N/A"  # type: ignore[operator]
            shown[f"{metric}_stderr,{key}"] = deviation

    n = figures.get("n")
    rate("acc", "none", figures.get("accuracy"), n)
    rate("exact_match", "strict-match", figures.get("accuracy"), n)
    for name in ("upstream_compat", "parse_failures"):
        rate(name, "none", figures.get(name), n)
    for name, part in figures.get("types", figures.get("by_kind", {})).items():
        if name:  # pairs whose file gives no kind are counted as a whole
            rate(f"acc_{name}".replace(",", ";"), "none", part.get("accuracy"), part.get("n"))
    for name, value in (figures.get("metrics") or {}).items():
        if _is_number(value):
            shown[f"{name.replace(',', ';')},none"] = value
    return shown


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def lm_eval_samples(records: Sequence[Record], task: str) -> list[dict[str, Any]]:
    """Returns sample records in the shape of the lines of lm-evaluation-harness's samples files.

    Args:
        records (sequence of mappings): Lines of `samples_TASK.jsonl`.
        task (`str`): Name of the task.

    Returns:
        `list[dict]`: `doc_id` (place in the data), `doc`, `target`, `arguments`, `resps`, `filtered_resps` (the parsed
        answer, `[invalid]` if there is none, as that harness has it), `filter`, `metrics`, the hashes, and a value
        per metric, `acc` among them. What has no generated text has its scores or ranks in `resps`, as JSON.
    """
    return [_lm_eval_sample(number, record, task) for number, record in enumerate(records)]


def _lm_eval_sample(number: int, record: Record, task: str) -> dict[str, Any]:
    values = measured(record, f"{task}, id {record.get('id')!r}")
    metrics = {"acc" if name == "accuracy" else name: value for name, value in values.items()}
    if "acc" in metrics:
        metrics["exact_match"] = metrics["acc"]
    output, answer = record.get("output"), record.get("answer")
    if output is None:
        kept = {"scores", "rank", "image_to_text_rank", "text_to_image_ranks"}
        kept |= {f"{key}_distinct" for key in kept}
        output = json.dumps({key: value for key, value in record.items() if key in kept}, ensure_ascii=False)
    prompt = str(record.get("prompt") or "")
    references = [str(reference) for reference in record.get("references") or []]
    target = references[0] if len(references) == 1 else json.dumps(references, ensure_ascii=False)
    doc = {key: record.get(key) for key in ("id", "prompt", "references", "types")}
    return {
        "doc_id": number,
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


def lmms_eval_sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a sample of [`lm_eval_samples`] as a line of lmms-eval's samples files: without `doc` and `arguments`, a
    response that is the judged one once, and the figures by their own names.
    """
    dropped = ("doc", "arguments", "filter", "metrics", "prompt_hash", "target_hash", "resps", "filtered_resps")
    kept = {key: value for key, value in sample.items() if key not in dropped}
    (response,), (judged,) = sample["resps"][0], sample["filtered_resps"]
    return {**kept, "filtered_resps": judged, **({} if response == judged else {"resps": [response]})}


def write_lm_eval(out: str | Path, directory: str | Path, lmms: bool = False) -> list[Path]:
    """Writes `MODEL/results_TIME.json` and `MODEL/samples_TASK_TIME.jsonl` below `directory`, as lm-evaluation-harness
    names them, from the output folder `out` of `rs-rlhf eval`; returns the files. With `lmms` they are those of
    lmms-eval, `MODEL/TIME_results.json` and `MODEL/TIME_samples_TASK.jsonl`.

    `TIME` is that of `results.json`, in UTC, so a run exported twice gives the same files. A [`DataError`] says which
    file of the run is missing or cannot be used.
    """
    results = read_results(out)
    written = datetime.fromtimestamp((Path(out) / "results.json").stat().st_mtime, UTC)
    stamp = written.strftime("%Y-%m-%dT%H-%M-%S.%f")
    texts: dict[Path, str] = {}
    for model in models_of(results):
        tasks = {task: part for task, part in results["tasks"].items() if models_of(results, [task]) == [model]}
        exported = lm_eval_results({**results, "tasks": tasks})
        folder = Path(directory) / exported["model_name_sanitized"]
        path = folder / (f"{stamp}_results.json" if lmms else f"results_{stamp}.json")
        if path in texts:
            raise DataError(
                f"{model} and another model would both be written to {folder}; evaluate them into separate folders",
                "model",
                str(out),
            )
        for task, figures in tasks.items():
            samples = lm_eval_samples(read_samples(out, task, figures), task)
            hashes = "".join(sample[f"{what}_hash"] for sample in samples for what in ("doc", "prompt", "target"))
            exported.setdefault("task_hashes", {})[task] = _hash(hashes)
            samples = [*map(lmms_eval_sample, samples)] if lmms else samples
            lines = (json.dumps(sample, ensure_ascii=False, allow_nan=False) + "\n" for sample in samples)
            name = f"{stamp}_samples_{task}.jsonl" if lmms else f"samples_{task}_{stamp}.jsonl"
            texts[folder / name] = "".join(lines)
        texts[path] = json.dumps(exported, indent=2, ensure_ascii=False, allow_nan=False)
    for path, text in texts.items():
        write_text(path, text)
    return list(texts)


# W&B


def wandb_figures(results: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of `results.json` by W&B key: `eval/TASK/accuracy`, `eval/TASK/types/TYPE/accuracy`, …"""
    numbers: dict[str, float] = {}

    def collect(start: str, figures: Figures) -> None:
        for key, value in figures.items():
            if isinstance(value, Mapping) and key not in ("settings", ""):
                collect(f"{start}/{key}", value)
            elif isinstance(value, list) and (key.endswith("interval") or start.endswith("/intervals")):
                numbers[f"{start}/{key}_low"], numbers[f"{start}/{key}_high"] = value
            elif _is_number(value) and key not in ("seed", "metric_version"):
                numbers[f"{start}/{key}"] = value

    for task, figures in results["tasks"].items():
        collect(f"eval/{task}", figures)
    return numbers


def log_to_wandb(
    results: Results,
    samples: Mapping[str, Sequence[Record]],
    project: str,
    run_name: str | None = None,
    limit: int = 64,
) -> None:
    """Logs an evaluation as one W&B run: the figures, and per task a table `eval/TASK/samples` with thumbnails.

    What the figures depend on becomes the run's config. `limit` is the most samples of a table, spread evenly over the
    data (0: no tables); the run is named like the model unless `run_name` says otherwise.
    """
    import wandb
    from PIL import Image

    kept = ("model", "model_type", "dataset_hash", "metric_version", "seed", "pixel_budget", "settings")
    tasks = {task: {k: part[k] for k in kept if k in part} for task, part in results["tasks"].items()}
    config = {"model": ", ".join(models_of(results)), "versions": results.get("versions"), "tasks": tasks}
    name = run_name or ", ".join(Path(model).name for model in models_of(results))
    columns: list[Any] = ["id", "image", "prompt", "output", "answer", "references", "types", *MEASURES, "note"]
    with wandb.init(project=project, name=name, job_type="eval", config=config) as run:
        logged: dict[str, Any] = dict(wandb_figures(results))
        for task, records in samples.items() if limit > 0 else ():
            table = wandb.Table(columns=columns)
            for record in spread(records, limit) if limit > 1 else records[:limit]:
                picture, why = thumbnail_of(record, results["tasks"][task])
                shown: dict[str, Any] = {key: _cell(record.get(key)) for key in columns} | measured(record)
                shown |= {"image": picture and wandb.Image(Image.open(io.BytesIO(picture["bytes"]))), "note": why}
                table.add_data(*map(shown.__getitem__, columns))
            logged[f"eval/{task}/samples"] = table
        run.log(logged)


def _cell(value: object) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
