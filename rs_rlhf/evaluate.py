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
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from . import __version__, declarations
from .answers import THINK_ANSWER
from .arguments import ImageArguments, add_image_flags, image_options_from
from .benchmarks import MODEL_TYPES, Benchmark, data_path, data_root, load_benchmark

SYSTEM_PROMPTS = ("none", "think-answer")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `rs-rlhf eval`, `rs-rlhf eval compare` or `rs-rlhf eval export`, and returns the exit code."""
    argv = list(argv or [])
    if argv[:1] == ["compare"]:
        from . import eval_compare

        return eval_compare.main(argv[1:])
    if argv[:1] == ["export"]:
        from . import eval_export

        return eval_export.main(argv[1:])
    if any(one.split("=")[0] == "--preferences" for one in argv):
        from . import preference_eval

        return preference_eval.main(argv)
    args = _parser().parse_args(argv)
    if args.list:
        print(benchmark_list())
        return 0
    for name in ("model", "task"):
        if getattr(args, name) is None:
            raise ValueError(f"no --{name}; give --model M --task a,b, or --list to see the tasks.")
    _run(args)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rs-rlhf eval",
        description="Evaluate a model on benchmarks. `rs-rlhf eval compare A B` compares two outputs, `rs-rlhf eval "
        "export DIR` writes lm-eval's format or to wandb, `--preferences FILE…` reports on preference files.",
    )
    add = parser.add_argument
    add("--list", action="store_true", help="list the benchmarks and stop")
    add("--model", help="folder (a LoRA adapter's too), hub id, or name in reward_models/ (score models); with "
        "--endpoint the model that it is asked for")  # fmt: skip
    add("--task", "--tasks", help="benchmarks by name or YAML file, separated by commas")
    add("--model-type", "--model_type", dest="model_type", choices=MODEL_TYPES,
        help="what the model is (default: what the task is usually put to)")  # fmt: skip
    add("--out", "--output_dir", dest="out", type=Path, default=Path("out/eval"), help="(default: out/eval)")
    add("--data_root", "--data-root", help="folder that the benchmarks' data lie in (default: RS_RLHF_DATA, or "
        "../shared/data)")  # fmt: skip
    add("--data", action="append", default=[], metavar="TASK=PATH", help="where one benchmark's data lie instead")
    add("--core_only", "--core-only", action="store_true",
        help="only the question types that VLM papers report (RSVQA: without counting and area)")  # fmt: skip
    add("--limit", type=int, help="questions of each task at most, drawn by the seed")
    add("--seed", type=int, default=0, help="seed of all draws (default: 0)")
    add("--overwrite", action="store_true", help="begin anew where the folder holds answers of other settings")
    add("--system_prompt", "--system-prompt", choices=SYSTEM_PROMPTS, default="none", help="think-answer: ask for "
        "<think>…</think><answer>…</answer>, the form that models trained with RS rewards answer in")  # fmt: skip
    add("--temperature", type=float, default=0.0, help="(default: 0, greedy)")
    add("--top_p", "--top-p", type=float, default=1.0, help="(default: 1.0)")
    add("--max_new_tokens", "--max-new-tokens", type=int, help="longest answer (default: the task's; 1024 with "
        "think-answer)")  # fmt: skip
    add("--token_budget", "--token-budget", type=int, default=16384,
        help="tokens of a batch with their answers at most (default: 16384)")  # fmt: skip
    add("--batch_size", "--batch-size", type=int, help="also at most so many questions a batch")
    add("--backend", choices=("auto", "vllm"), default="auto", help="what runs the model (default: auto, here)")
    add("--endpoint", metavar="URL", help="an OpenAI-compatible endpoint that answers, such as "
        "http://localhost:8000/v1; its key is read from RS_RLHF_EVAL_KEY or OPENAI_API_KEY")  # fmt: skip
    add("--score_model", "--score-model", help="also score every answer of a vlm with this score model")
    add("--dtype", help="such as bfloat16 (default: the checkpoint's)")
    for name in ("min_pixels", "max_pixels"):
        text = ImageArguments.__dataclass_fields__[name].metadata["help"]
        add(f"--{name}", f"--{name.replace('_', '-')}", type=int, help=text)
    add("--report_to", "--report-to", choices=("none", "wandb"), default="none", help="(default: none)")
    add("--wandb_project", "--wandb-project", default="rs-rlhf", help="(default: rs-rlhf)")
    add_image_flags(parser)
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
    from .benchmark_data import dataset_hash, read_benchmark
    from .question_rows import limited

    benchmark = load_benchmark(name)
    given = dict(one.partition("=")[::2] for one in args.data)
    path = Path(given[benchmark.name]) if benchmark.name in given else data_path(benchmark, data_root(args.data_root))
    if not path.exists():
        raise ValueError(f"--data {benchmark.name}={path}: no such file or folder.")
    rows = read_benchmark(benchmark, path, core_only=getattr(args, "core_only", False))
    return benchmark, limited(rows, args.limit, args.seed), dataset_hash(rows)


def _run(args: argparse.Namespace) -> None:
    from accelerate import PartialState

    from .eval_protocols import kind_of_model
    from .eval_run import drop_parts, run_task

    # A process may wait long for another one's last batch.
    state = PartialState(timeout=timedelta(days=2))
    tasks = [read_task(name.strip(), args) for name in args.task.split(",") if name.strip()]
    kinds = [kind_of_model(benchmark, args.model_type) for benchmark, _, _ in tasks]
    loaded: dict[str, Any] = {}
    for (benchmark, rows, data_hash), kind in zip(tasks, kinds, strict=True):
        if kind not in loaded:
            loaded = {kind: _load(kind, args)}  # one model at a time
        protocol = _protocol(kind, loaded[kind], benchmark, rows, args)
        settings = _settings(kind, benchmark, data_hash, args, loaded[kind])
        done = run_task(benchmark.name, rows, protocol, args.out, settings, state=state, overwrite=args.overwrite)
        if done is not None:
            figures = _task_results(benchmark, done[1], {**settings, **protocol.settings}, data_hash)
            results = _write(args, kind, benchmark.name, figures)
            drop_parts(benchmark.name, args.out)
            print(results_table(results, [benchmark.name]))
        state.wait_for_everyone()
    if state.is_main_process and args.report_to == "wandb":
        _report(args, [benchmark.name for benchmark, _, _ in tasks])


def _load(kind: str, args: argparse.Namespace) -> Any:
    options = replace(image_options_from(args), image_root=None)  # paths have been resolved inside their data by now
    pixels = {"min_pixels": args.min_pixels, "max_pixels": args.max_pixels}
    if kind == "vlm":
        from .answerers import load_answerer

        return load_answerer(args.model, backend=args.backend, endpoint=args.endpoint, image_options=options,
                             dtype=args.dtype, **pixels)  # fmt: skip
    own = {} if args.dtype is None else {"dtype": args.dtype}
    if kind == "clip":
        from .clip_model import ClipModel

        return ClipModel.from_pretrained(args.model, image_options=options, **own)
    from .scorer import Scorer

    return Scorer.from_pretrained(args.model, image_options=options, **pixels, **own)


def _protocol(kind: str, model: Any, benchmark: Benchmark, rows: Sequence[Any], args: argparse.Namespace) -> Any:
    from . import eval_protocols

    if kind == "clip":
        return eval_protocols.clip_protocol(benchmark, model, rows, args.batch_size or 64)
    if kind == "score":
        return eval_protocols.score_protocol(benchmark, model, args.seed)
    thinks = args.system_prompt == "think-answer"
    longest = args.max_new_tokens or (1024 if thinks else benchmark.max_new_tokens)
    options = {"temperature": args.temperature, "top_p": args.top_p, "max_new_tokens": longest, "seed": args.seed,
               "token_budget": args.token_budget, "batch_size": args.batch_size}  # fmt: skip
    scorer = None
    if args.score_model is not None:
        from .scorer import Scorer

        images = replace(image_options_from(args), image_root=None)
        scorer = Scorer.from_pretrained(args.score_model, image_options=images)
    return eval_protocols.vlm_protocol(benchmark, model, options, THINK_ANSWER if thinks else None, scorer)


def _settings(kind: str, benchmark: Benchmark, data_hash: str, args: argparse.Namespace, model: Any) -> dict[str, Any]:
    """What the answers depend on; answers of other settings are not gone on from."""
    from .arguments import READING
    from .eval_run import model_stamp

    given = {name: getattr(args, name) for name in READING if getattr(args, name) != _default(name)}
    return {
        "model": args.model, "model_hash": model_stamp(args.model), "model_type": kind, "backend": args.backend,
        "endpoint": args.endpoint, "dataset_hash": data_hash, "limit": args.limit, "seed": args.seed,
        "pixel_budget": pixel_budget_of(model), "dtype": args.dtype, "score_model": args.score_model,
        "score_model_hash": model_stamp(args.score_model) if args.score_model else None, "reading": given,
    }  # fmt: skip


def _default(name: str) -> Any:
    return ImageArguments.__dataclass_fields__[name].default


def pixel_budget_of(model: Any) -> list[int] | None:
    """The fewest and most pixels an image is resized to, where the model's processor has such a budget."""
    from .groups import pixel_budget

    try:
        return list(pixel_budget(model.processor))
    except (AttributeError, KeyError, TypeError):
        return None


def _task_results(
    benchmark: Benchmark, figures: dict[str, Any], settings: dict[str, Any], data_hash: str
) -> dict[str, Any]:
    return {
        **figures, "title": benchmark.title, "task": benchmark.task, "model_type": settings["model_type"],
        "model": settings["model"], "dataset_hash": data_hash, "metric_version": benchmark.metric_version,
        "seed": settings["seed"], "pixel_budget": settings["pixel_budget"], "settings": settings,
        "published": benchmark.published,
    }  # fmt: skip


def _write(args: argparse.Namespace, kind: str, name: str, figures: dict[str, Any]) -> dict[str, Any]:
    """Adds a task to the folder's results; returns all of them."""
    from importlib.metadata import version

    from .eval_run import replace_text

    path = args.out / "results.json"
    old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    tasks = {**old.get("tasks", {}), name: figures}
    versions = {"rs-rlhf": __version__} | {one: version(one) for one in ("torch", "transformers", "trl", "accelerate")}
    results = {"model": args.model, "model_type": kind, "tasks": dict(sorted(tasks.items())), "versions": versions}
    results = json.loads(json.dumps(results))
    replace_text(path, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    replace_text(args.out / "results.md", results_table(results) + "\n")
    return results


def results_table(results: dict[str, Any], names: Sequence[str] | None = None) -> str:
    """Returns results as a Markdown table, with the figures of question types below their task.

    Args:
        results (`dict`): What `results.json` holds.
        names (sequence of `str`, *optional*): Only these tasks.
    """
    lines = [
        "| task | model | n | accuracy | 95% interval | upstream_compat | no answer | other figures |",
        "|---|---|---:|---:|---|---:|---:|---|",
    ]
    for name, figures in results["tasks"].items():
        if names is not None and name not in names:
            continue
        lines.append(_line(name, figures["model"], figures))
        for kind, part in figures.get("types", figures.get("by_kind", {})).items():
            if kind:
                lines.append(_line(f"↳ {kind}", "", part))
        for one in figures["published"]:
            lines.append(
                f"| ↳ published: {one['model']} | {one['source']} | | {one['value']:.1f}% ({one['metric']}) | | | | |"
            )
    return "\n".join(lines)


def _line(name: str, model: str, figures: dict[str, Any]) -> str:
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
    cells = (name, model, figures["n"], percent(figures.get("accuracy")), interval,
             percent(figures.get("upstream_compat")), percent(figures.get("parse_failures")), told)  # fmt: skip
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _report(args: argparse.Namespace, names: Sequence[str]) -> None:
    from .eval_export import log_to_wandb
    from .eval_run import read_lines

    results = json.loads((args.out / "results.json").read_text(encoding="utf-8"))
    results["tasks"] = {name: results["tasks"][name] for name in names}
    samples = {name: read_lines(args.out / f"samples_{name}.jsonl") for name in names}
    log_to_wandb(results, samples, args.wandb_project, args.out.name)
