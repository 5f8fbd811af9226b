"""`rs-rlhf eval`: puts a model to declared benchmarks and writes samples, figures and a table.

`DIR/samples_TASK.jsonl` holds what was asked and answered, `DIR/results.json` and `DIR/results.md` the figures of all
tasks run into that folder so far. `accelerate launch -m rs_rlhf eval …` divides the questions among processes; the
files are the same. The run itself is in `eval_run`, the tasks in `eval_protocols`.

Left out: few-shot prompts (the published protocols have none).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from datetime import timedelta
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .. import declarations
from ..errors import OptionError
from ..evaluation.benchmark import MODEL_TYPES, Benchmark, data_path, data_root, load_benchmark
from ..imagery.arguments import ImageArguments, add_image_flags, image_options_from
from ..metrics.answers import THINK_ANSWER
from ..runs.tables import markdown_table

SYSTEM_PROMPTS = ("none", "think-answer")
# Options that only some kinds of model read; others refuse them.
READ_BY = dict.fromkeys(
    ("temperature", "top_p", "max_new_tokens", "token_budget", "backend", "endpoint", "system_prompt", "score_model"),
    ("vlm",),
) | {"batch_size": ("vlm", "clip"), "min_pixels": ("vlm", "score"), "max_pixels": ("vlm", "score")}
NOT_READ = ("image_root",)  # a benchmark's images lie where its data are


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `rs-rlhf eval run`, and returns the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.list:
        print(benchmark_list())
        return 0
    for name in ("model", "task"):
        if getattr(args, name) is None:
            raise OptionError(f"no --{name}; give --model M --task a,b, or --list to see the tasks.")
    _run(args, parser)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rs-rlhf eval",
        description="Evaluate a model on benchmarks. `rs-rlhf eval compare A B` compares two outputs, `rs-rlhf eval "
        "export DIR` writes lm-eval's format or to wandb, `--preferences FILE…` reports on preference files.",
    )
    add = parser.add_argument
    add("--list", action="store_true", help="list the benchmarks and stop")
    add(
        "--model",
        help="folder (a LoRA adapter's too), hub id, or name in reward_models/ (score models); with "
        "--endpoint the model that it is asked for",
    )
    add("--task", "--tasks", help="benchmarks by name or YAML file, separated by commas")
    add(
        "--model-type",
        "--model_type",
        dest="model_type",
        choices=MODEL_TYPES,
        help="what the model is (default: what the task is usually put to)",
    )
    add("--out", "--output_dir", dest="out", type=Path, default=Path("out/eval"), help="(default: out/eval)")
    add(
        "--data_root",
        "--data-root",
        help="folder that the benchmarks' data lie in (default: RS_RLHF_DATA, or ./data)",
    )
    add("--data", action="append", default=[], metavar="TASK=PATH", help="where one benchmark's data lie instead")
    add(
        "--core_only",
        "--core-only",
        action="store_true",
        help="only the question types that VLM papers report (RSVQA: without counting and area)",
    )
    add("--limit", type=int, help="questions of each task at most, drawn by the seed")
    add("--seed", type=int, default=0, help="seed of all draws (default: 0)")
    add("--overwrite", action="store_true", help="begin anew where the folder holds answers of other settings")
    add(
        "--system_prompt",
        "--system-prompt",
        choices=SYSTEM_PROMPTS,
        default="none",
        help="think-answer: ask for "
        "<think>…</think><answer>…</answer>, the form that models trained with RS rewards answer in",
    )
    add("--temperature", type=float, default=0.0, help="(default: 0, greedy)")
    add("--top_p", "--top-p", type=float, default=1.0, help="(default: 1.0)")
    add(
        "--max_new_tokens",
        "--max-new-tokens",
        type=int,
        help="longest answer (default: the task's; 1024 with think-answer)",
    )
    add(
        "--token_budget",
        "--token-budget",
        type=int,
        default=16384,
        help="tokens of a batch with their answers at most (default: 16384)",
    )
    add("--batch_size", "--batch-size", type=int, help="also at most so many questions a batch")
    add("--backend", choices=("auto", "vllm"), default="auto", help="what runs the model (default: auto, here)")
    add(
        "--endpoint",
        metavar="URL",
        help="an OpenAI-compatible endpoint that answers, such as "
        "http://localhost:8000/v1; its key is read from RS_RLHF_EVAL_KEY or OPENAI_API_KEY",
    )
    add("--score_model", "--score-model", help="also score every answer of a vlm with this score model")
    add("--dtype", help="such as bfloat16 (default: the checkpoint's)")
    for name in ("min_pixels", "max_pixels"):
        text = ImageArguments.__dataclass_fields__[name].metadata["help"]
        add(f"--{name}", f"--{name.replace('_', '-')}", type=int, help=text)
    add("--report_to", "--report-to", choices=("none", "wandb"), default="none", help="(default: none)")
    add("--wandb_project", "--wandb-project", default="rs-rlhf", help="(default: rs-rlhf)")
    add_image_flags(parser, without=NOT_READ)
    return parser


def benchmark_list() -> str:
    """Returns the table of `rs-rlhf eval --list`."""
    lines = [f"{'name':<24}{'task':<16}{'data below the root':<28}what"]
    for name in declarations.names("eval"):
        one = load_benchmark(name)
        lines.append(f"{one.name:<24}{one.task:<16}{one.path:<28}{one.title}")
    return "\n".join(lines)


def read_task(name: str, args: argparse.Namespace) -> tuple[Benchmark, list[Any], str]:
    """Reads a benchmark's questions: the declaration, the rows, and the hash of all of them before `--limit`.

    Raises:
        ValueError: The benchmark or its data are not there, or cannot be used.
    """
    from ..data.questions import limited
    from ..evaluation.reader import dataset_hash, read_benchmark

    benchmark = load_benchmark(name)
    given = dict(one.partition("=")[::2] for one in args.data)
    path = Path(given[benchmark.name]) if benchmark.name in given else data_path(benchmark, data_root(args.data_root))
    if not path.exists():
        raise OptionError(f"--data {benchmark.name}={path}: no such file or folder.")
    if args.core_only and not benchmark.core_types:
        print(f"{benchmark.name} declares no core types: --core_only leaves nothing out of it")
    rows = read_benchmark(benchmark, path, core_only=args.core_only)
    return benchmark, limited(rows, args.limit, args.seed), dataset_hash(rows)


def check_data_flags(args: argparse.Namespace, names: Sequence[str]) -> None:
    """Refuses `--data` of what is not asked for.

    Args:
        args (`argparse.Namespace`): Holds `data`.
        names (sequence of `str`): The benchmarks' names.

    Raises:
        ValueError: Says which flag, and what was expected.
    """
    for one in args.data:
        name, equals, path = one.partition("=")
        if not equals or not path or name not in names:
            raise OptionError(f"--data {one}: expected TASK=PATH with TASK one of {', '.join(names)}.")


def _check(args: argparse.Namespace, parser: argparse.ArgumentParser) -> tuple[list[str], str]:
    """Refuses what cannot be run or would be ignored; returns the tasks and the kind of model."""
    from ..evaluation.protocols import kind_of_model

    tasks = [name.strip() for name in args.task.split(",") if name.strip()]
    if not tasks:
        raise OptionError("--task names no benchmark; --list shows them.")
    benchmarks = [load_benchmark(name) for name in tasks]
    check_data_flags(args, [one.name for one in benchmarks])
    kinds = {one.name: kind_of_model(one, args.model_type) for one in benchmarks}
    if len(set(kinds.values())) > 1:
        told = ", ".join(f"{name} for a {kind}" for name, kind in kinds.items())
        raise OptionError(f"one --model cannot be put to all of these: {told}; run them one by one.")
    kind = kinds[benchmarks[0].name]
    for name, kinds_that_read in READ_BY.items():
        if kind not in kinds_that_read and getattr(args, name) != parser.get_default(name):
            raise OptionError(f"--{name} is not read when a model of type {kind} is evaluated; leave it out.")
    for name in ("batch_size", "max_new_tokens", "token_budget"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise OptionError(f"--{name} is {getattr(args, name)}, expected at least 1.")
    needed = {"wandb": "wandb"} if args.report_to == "wandb" else {}
    needed |= {"pycocoevalcap": "rs-rlhf[captions]"} if any(one.task == "captions" for one in benchmarks) else {}
    for module, package in needed.items():
        if find_spec(module) is None:
            raise OptionError(f'{module} is not installed; pip install "{package}".')
    return tasks, kind


def _run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    from accelerate import PartialState

    from ..evaluation.run import drop_parts, run_task

    names, kind = _check(args, parser)
    # A process may wait long for another one's last batch.
    state = PartialState(timeout=timedelta(days=2))
    tasks = [read_task(name, args) for name in names]
    model = cache(lambda: _load(kind, args))  # loaded when it is to be asked: after all else has been checked
    scorer = None if args.score_model is None else cache(lambda: _load_scorer(args.score_model, args))
    for benchmark, rows, data_hash in tasks:
        protocol = _protocol(kind, model, scorer, benchmark, rows, args)
        settings = _settings(kind, data_hash, args)
        done = run_task(benchmark.name, rows, protocol, args.out, settings, state=state, overwrite=args.overwrite)
        if done is not None:
            budget = pixel_budget_of(model()) if model.cache_info().currsize else None
            figures = _task_results(benchmark, done[1], {**settings, **protocol.settings}, budget)
            results = _write(args, kind, benchmark.name, figures)
            drop_parts(benchmark.name, args.out)
            print(results_table(results, [benchmark.name]))
        state.wait_for_everyone()
    if state.is_main_process and args.report_to == "wandb":
        _report(args, [benchmark.name for benchmark, _, _ in tasks])


def _load(kind: str, args: argparse.Namespace) -> Any:
    options = image_options_from(args)  # without a root: paths have been resolved inside their data by now
    if kind == "vlm":
        from ..models.policies.load import load_policy

        return load_policy(
            args.model,
            backend=args.backend,
            endpoint=args.endpoint,
            image_options=options,
            dtype=args.dtype,
            min_pixels=args.min_pixels,
            max_pixels=args.max_pixels,
        )
    if kind == "clip":
        from ..models.clip import ClipModel

        own = {} if args.dtype is None else {"dtype": args.dtype}
        return ClipModel.from_pretrained(args.model, image_options=options, **own)
    return _load_scorer(args.model, args, min_pixels=args.min_pixels, max_pixels=args.max_pixels)


def _load_scorer(path: str, args: argparse.Namespace, **pixels: Any) -> Any:
    from ..scoring.load import load_scorer

    return load_scorer(path, image_options_from(args), dtype=args.dtype, **pixels)


def _protocol(
    kind: str, model: Any, scorer: Any, benchmark: Benchmark, rows: Sequence[Any], args: argparse.Namespace
) -> Any:
    from ..evaluation import protocols as eval_protocols
    from ..models.policies.sampling import SamplingOptions

    if kind == "clip":
        return eval_protocols.clip_protocol(benchmark, model, rows, args.batch_size or 64)
    if kind == "score":
        return eval_protocols.score_protocol(benchmark, model, args.seed)
    thinks = args.system_prompt == "think-answer"
    longest = args.max_new_tokens or (1024 if thinks else benchmark.max_new_tokens)
    sampling = SamplingOptions.from_command(args, max_new_tokens=longest)
    return eval_protocols.vlm_protocol(benchmark, model, sampling, THINK_ANSWER if thinks else None, scorer)


def _settings(kind: str, data_hash: str, args: argparse.Namespace) -> dict[str, Any]:
    """What the answers depend on; answers of other settings are not gone on from."""
    from ..scoring.cards import model_stamp

    given = {name: getattr(args, name) for name in _reading() if getattr(args, name) != _default(name)}
    settings = {
        "model": args.model,
        "model_hash": model_stamp(_folder(args.model, kind)),
        "model_type": kind,
        "dataset_hash": data_hash,
        "core_only": args.core_only,
        "limit": args.limit,
        "seed": args.seed,
        "min_pixels": args.min_pixels,
        "max_pixels": args.max_pixels,
        "dtype": args.dtype,
        "reading": given,
    }
    if kind == "vlm":
        settings |= {"backend": args.backend, "endpoint": args.endpoint, "score_model": args.score_model}
        if args.score_model is not None:
            settings["score_model_hash"] = model_stamp(_folder(args.score_model, "score"))
    return settings


def _folder(name: str, kind: str) -> str:
    """The folder of a model; that of a score model may be declared in `reward_models/`."""
    if kind != "score":
        return name
    from ..scoring.cards import find_card

    return find_card(name).model


def _reading() -> list[str]:
    from ..imagery.arguments import READING

    return [name for name in READING if name not in NOT_READ]


def _default(name: str) -> Any:
    return ImageArguments.__dataclass_fields__[name].default


def pixel_budget_of(model: Any) -> list[int] | None:
    """The fewest and most pixels an image is resized to, where the model's processor has such a budget."""
    from ..models.pixel_budget import pixel_budget

    try:
        return list(pixel_budget(model.processor))
    except (AttributeError, KeyError, TypeError):
        return None


def _task_results(
    benchmark: Benchmark, figures: dict[str, Any], settings: dict[str, Any], budget: list[int] | None
) -> dict[str, Any]:
    from ..runs.progress import versions

    return {
        **figures,
        "title": benchmark.title,
        "task": benchmark.task,
        "model_type": settings["model_type"],
        "model": settings["model"],
        "dataset_hash": settings["dataset_hash"],
        "metric_version": benchmark.metric_version,
        "seed": settings["seed"],
        "pixel_budget": budget,
        "settings": settings,
        "published": benchmark.published,
        "versions": versions("torch", "transformers", "trl", "accelerate"),
    }


def _write(args: argparse.Namespace, kind: str, name: str, figures: dict[str, Any]) -> dict[str, Any]:
    """Adds a task to the folder's results; returns all of them."""
    from ..evaluation.run import results_of
    from ..runs.files import write_text

    with results_of(args.out) as results:
        old = results["tasks"].get(name)
        if old is not None and figures["pixel_budget"] is None:  # judged anew: the model was not loaded
            figures |= {"pixel_budget": old["pixel_budget"], "versions": old["versions"]}
        tasks = dict(sorted({**results["tasks"], name: figures}.items()))
        results.clear()
        last = {"model": args.model, "model_type": kind, "tasks": tasks, "versions": figures["versions"]}
        results |= json.loads(json.dumps(last))
        write_text(args.out / "results.md", results_table(results) + "\n")
    return results


def results_table(results: dict[str, Any], names: Sequence[str] | None = None) -> str:
    """Returns results as a Markdown table, with the figures of question types below their task.

    Args:
        results (`dict`): What `results.json` holds.
        names (sequence of `str`, *optional*): Only these tasks.
    """
    header = ["task", "model", "n", "accuracy", "95% interval", "upstream_compat", "no answer", "other figures"]
    rows: list[list[object]] = []
    for name, figures in results["tasks"].items():
        if names is not None and name not in names:
            continue
        rows.append(_line(name, figures["model"], figures))
        for kind, part in figures.get("types", figures.get("by_kind", {})).items():
            if kind:
                rows.append(_line(f"↳ {kind}", "", part))
        for one in figures["published"]:
            value = f"{one['value']:.1f}% ({one['metric']})"
            rows.append([f"↳ published: {one['model']}", one["source"], "", value, "", "", "", ""])
    return markdown_table(header, rows, "llrrlrrl")


def _line(name: str, model: str, figures: dict[str, Any]) -> list[object]:
    def percent(value: Any) -> str:
        return "" if value is None else f"{value:.1%}"

    low, high = figures.get("interval") or (None, None)
    interval = "" if low is None else f"{low:.1%} – {high:.1%}"
    rest = {**figures.get("metrics", {})}
    for key in ("average_accuracy", "ties", "swap_error"):
        if figures.get(key) is not None:
            rest[key] = figures[key]
    if "shuffled" in figures:
        rest["shuffle_gap"] = figures["shuffled"]["gap"]
    if "calibration" in figures:
        rest["calibration_error"] = figures["calibration"]["error"]
    told = ", ".join(f"{key} {value:.4g}" for key, value in rest.items() if isinstance(value, (int, float)))
    shares = [percent(figures.get(key)) for key in ("upstream_compat", "parse_failures")]
    return [name, model, figures["n"], percent(figures.get("accuracy")), interval, *shares, told]


def _report(args: argparse.Namespace, names: Sequence[str]) -> None:
    from ..evaluation.export import log_to_wandb
    from ..evaluation.run import read_results
    from ..runs.files import read_lines

    results = read_results(args.out)
    results["tasks"] = {name: results["tasks"][name] for name in names}
    samples = {name: read_lines(args.out / f"samples_{name}.jsonl") for name in names}
    log_to_wandb(results, samples, args.wandb_project, args.out.name)
