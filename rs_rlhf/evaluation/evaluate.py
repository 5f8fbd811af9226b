"""Evaluation of a model on declared benchmarks: `rs-rlhf eval run` as a function.

`DIR/samples_TASK.jsonl` holds what was asked and answered, `DIR/results.json` and `DIR/results.md` the figures of all
tasks run into that folder so far, `DIR/results.html` a page of these figures and of wrong answers. `accelerate launch
-m rs_rlhf eval …` divides the questions among processes; the files are the same.

Left out: few-shot prompts (the published protocols have none).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import cache
from importlib.util import find_spec
from typing import Any

from ..errors import OptionError
from ..metrics.answers import THINK_ANSWER
from ..models.policies.chat_client import is_endpoint
from ..models.profiles import Profile, model_profile, no_profile
from .benchmark import Benchmark, data_paths, load_benchmark, model_type_of
from .options import EvalOptions
from .protocols import clip_protocol, score_protocol, vlm_protocol
from .reader import Task, read_task
from .results import Results, add_task, read_results
from .run import Protocol, drop_parts, run_task

Loaded = Callable[[], Any]  # gives the model; it is loaded when it is first asked


def evaluate(options: EvalOptions) -> Iterator[tuple[str, Results]]:
    """Evaluates a model on benchmarks, one after the other.

    Yields, on the first process and after each task, its name and what `results.json` holds. What cannot be used is an
    [`RSRLHFError`], before anything is asked if that can be known.
    """
    from accelerate import PartialState

    benchmarks, model_type = _checked(options)
    # A process may wait long for another one's last batch.
    state = PartialState(timeout=timedelta(days=2))
    paths = data_paths(options.data, [benchmark.name for benchmark in benchmarks])
    tasks = [
        read_task(
            benchmark,
            options.data_root,
            paths,
            core_only=options.core_only,
            limit=options.limit,
            seed=options.seed,
        )
        for benchmark in benchmarks
    ]
    profile = (
        profile_for(benchmarks, str(options.model), options.profile, options.endpoint) if model_type == "vlm" else None
    )
    model = cache(lambda: _load(model_type, options))
    scorer = None if options.score_model is None else cache(lambda: _load_scorer(str(options.score_model), options))
    results: Results = {}
    for task in tasks:
        protocol = _protocol(model_type, model, scorer, task, options, profile)
        settings = _settings(model_type, task.data_hash, options)
        name = task.benchmark.name
        done = run_task(name, task.rows, protocol, options.out, settings, state=state, overwrite=options.overwrite)
        if done is not None:
            stored = name in read_results(options.out, missing_ok=True)["tasks"]  # else killed before the figures
            budget = _pixel_budget(model()) if model.cache_info().currsize or not stored else None
            figures = done[1] | ({"error_rows": task.error_rows} if task.error_rows else {})
            results = add_task(options.out, task.benchmark, figures, {**settings, **protocol.settings}, budget)
            drop_parts(name, options.out)
            yield name, results
        state.wait_for_everyone()
    if state.is_main_process:
        _write_page(options, tasks)
    if state.is_main_process and options.report_to == "wandb":
        _log(options, [benchmark.name for benchmark in benchmarks])


def _checked(options: EvalOptions) -> tuple[list[Benchmark], str]:
    """The benchmarks and the type of the model; refuses what cannot be run or would be ignored."""
    for name in ("model", "task"):
        if getattr(options, name) is None:
            raise OptionError(f"no --{name}; give --model M --task a,b, or --list to see the tasks.", name)
    names = [name.strip() for name in str(options.task).split(",") if name.strip()]
    if not names:
        raise OptionError("--task names no benchmark; --list shows them.", "task")
    benchmarks = [load_benchmark(name) for name in names]
    types = {benchmark.name: model_type_of(benchmark, options.model_type) for benchmark in benchmarks}
    if len(set(types.values())) > 1:
        pairs = ", ".join(f"{name} for a {model_type}" for name, model_type in types.items())
        raise OptionError(f"one --model cannot be put to all of these: {pairs}; run them one by one.", "task")
    model_type = types[benchmarks[0].name]
    options.check(model_type)
    needed = {"wandb": "wandb"} if options.report_to == "wandb" else {}
    if any(benchmark.task == "captions" for benchmark in benchmarks):
        needed["pycocoevalcap"] = "rs-rlhf[captions]"
    for module, package in needed.items():
        if find_spec(module) is None:
            raise OptionError(f'{module} is not installed; pip install "{package}".')
    return benchmarks, model_type


def profile_for(
    benchmarks: Sequence[Benchmark], model: str, given: str | None, endpoint: str | None = None
) -> Profile | None:
    """Returns how a model is asked and writes boxes: the profile that is given, else that of its type; an
    [`OptionError`] if a benchmark asks for boxes and there is none.
    """
    profile = model_profile(model, given, endpoint)
    grounding = next((benchmark.name for benchmark in benchmarks if benchmark.task == "grounding"), None)
    if profile is None and grounding is not None:
        raise OptionError(f"{grounding} asks for boxes: {no_profile(model)} (--profile).", "profile")
    return profile


def _load(model_type: str, options: EvalOptions) -> Any:
    model, image_options = str(options.model), options.reader_options()  # without a root: paths are whole by now
    pixels: dict[str, Any] = {"min_pixels": options.min_pixels, "max_pixels": options.max_pixels}
    if model_type == "vlm":
        from ..models.policies.load import load_policy

        return load_policy(
            model,
            backend=options.backend,
            endpoint=options.endpoint,
            image_options=image_options,
            dtype=options.dtype,
            **pixels,
        )
    if model_type == "clip":
        from ..models.clip import ClipModel

        dtype: dict[str, Any] = {} if options.dtype is None else {"dtype": options.dtype}
        return ClipModel.from_pretrained(model, image_options=image_options, **dtype)
    return _load_scorer(model, options, **pixels)


def _load_scorer(model: str, options: EvalOptions, **pixels: Any) -> Any:
    from ..scoring.load import load_scorer

    more = options.several() | pixels
    return load_scorer(model, options.reader_options(), dtype=options.dtype, standards=options.out, **more)


def _protocol(
    model_type: str,
    model: Loaded,
    scorer: Loaded | None,
    task: Task,
    options: EvalOptions,
    profile: Profile | None,
) -> Protocol:
    from ..models.policies.sampling import SamplingOptions

    if model_type == "clip":
        return clip_protocol(task.benchmark, model, task.rows, options.batch_size or 64)
    if model_type == "score":
        return score_protocol(task.benchmark, model, options.seed, options.reader_options())
    thinks = options.system_prompt == "think-answer"
    longest = options.max_new_tokens or (1024 if thinks else task.benchmark.max_new_tokens)
    sampling = SamplingOptions.from_command(options, max_new_tokens=longest)
    system_prompt, seen = THINK_ANSWER if thinks else None, not is_endpoint(str(options.model), options.endpoint)
    return vlm_protocol(task.benchmark, model, sampling, system_prompt, scorer, profile, seen)


def _settings(model_type: str, data_hash: str, options: EvalOptions) -> dict[str, Any]:
    """What the answers depend on; a run with other settings does not resume from them."""
    from ..scoring.cards import model_stamp

    settings = {
        "model": options.model,
        "model_hash": model_stamp(str(options.model)),
        "model_type": model_type,
        "dataset_hash": data_hash,
        **{name: getattr(options, name) for name in ("core_only", "limit", "seed")},
        **{name: getattr(options, name) for name in ("min_pixels", "max_pixels", "dtype")},
        "reading": options.reading(),
    }
    if model_type == "vlm":
        settings |= {"backend": options.backend, "endpoint": options.endpoint, "score_model": options.score_model}
        if options.score_model is not None:
            settings["score_model_hash"] = model_stamp(options.score_model)
    settings |= options.combination(options.model if model_type == "score" else options.score_model)
    return settings


def _pixel_budget(model: Any) -> list[int] | None:
    """The fewest and most pixels an image is resized to, if the model's processor has such a budget."""
    from ..models.pixel_budget import has_budget, pixel_budget

    processor: Any = getattr(model, "processor", None)
    return list(pixel_budget(processor)) if has_budget(processor) else None


def _write_page(options: EvalOptions, tasks: Sequence[Task]) -> None:
    """Writes the page of all results in the folder; the pictures inside files are known of these tasks alone."""
    from .pages.results import write_results_page

    rows = {task.benchmark.name: task.rows for task in tasks}
    pictures = {name: {row.id: row.group.images[0] for row in own if row.group.images} for name, own in rows.items()}
    write_results_page(options.out, pictures)


def _log(options: EvalOptions, names: list[str]) -> None:
    from .export import log_to_wandb
    from .results import read_samples

    results = read_results(options.out)
    results["tasks"] = {name: results["tasks"][name] for name in names}
    samples = {name: read_samples(options.out, name, figures) for name, figures in results["tasks"].items()}
    log_to_wandb(results, samples, options.wandb_project, options.out.name)
