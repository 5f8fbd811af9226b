"""Best-of-n on a benchmark: how much sampling N answers and letting the score model choose one gains.

A policy answers every question of a benchmark greedily, and N times for each seed of the sampling; the score model
(and CLIP, if given) scores a question's distinct answers as one group. From that the accuracy of every way of choosing
is estimated for n up to N, see `metrics.best_of_n`. The published comparison (arXiv 2503.00743), of short answers and
of boxes, samples at temperature 0.85, top_p 0.95 and 50 tokens, which are the defaults here.

What was sampled and scored is kept in `DIR/answers_TASK_seedK.jsonl` and `DIR/answers_TASK_greedy.jsonl`, see
`scoring.comparison`. Left out: captions (no vote among them is defined), several processes, scoring of given
candidates (`rs-rlhf data dpo` orders those).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..data.questions import QuestionRow
from ..errors import OptionError
from ..metrics.best_of_n import sizes_up_to
from ..models.policies.chat_client import is_endpoint
from ..models.profiles import Profile
from ..runs.progress import versions
from ..scoring.cards import model_stamp
from ..scoring.comparison import Chooser, Logs, Question, compare_choices
from ..scoring.load import ScorerOptions, load_scorer
from ..scoring.several import model_names
from .benchmark import Benchmark, data_paths, load_benchmark
from .evaluate import profile_for
from .options import BestOfNOptions
from .protocols import judge_output
from .reader import read_task

if TYPE_CHECKING:
    from ..models.policies.policy import Policy

TASKS = ("classification", "vqa", "choice", "grounding")  # what has one short right answer, or boxes
# Options that answers depend on; `compare_choices` adds those of the sampling.
SETTINGS = (
    *("policy", "limit", "max_new_tokens", "token_budget"),
    *("dtype", "min_pixels", "max_pixels", "core_only"),
    *("image_hosts", "max_image_pixels", "bands", "stretch", "stretch_range", "nodata", "image_options"),
)


def run_best_of_n(options: BestOfNOptions) -> dict[str, Any]:
    """Samples and scores what is not there yet, and estimates the accuracy of every way of choosing.

    Returns what `best_of_n.json` holds: task and models, what [`compare_choices`] returns, `settings`, `versions`.
    """
    from ..models.policies.sampling import SamplingOptions
    from .lmms.answers import answer_files

    options.check_several(options.score_model)
    if len(model_names(options.clip_model)) > 1:
        raise OptionError(f"--clip_model is {options.clip_model}; name one CLIP.", "clip_model")
    benchmark = _checked(options)
    paths = data_paths(options.data, [benchmark.name])
    written = answer_files(options.policy)
    if written and benchmark.task == "grounding":
        raise OptionError("boxes in sample files cannot be read: they do not say how large an image was.", "policy")
    profile = None if written else profile_for([benchmark], options.policy, options.profile)
    task = read_task(benchmark, options.data_root, paths, core_only=options.core_only, limit=options.limit)
    settings = options.recorded(SETTINGS)
    settings |= {"policy_hash": hash_files(written) if written else model_stamp(options.policy)}
    settings |= {"task": benchmark.name, "dataset_hash": task.data_hash}
    settings |= profile.asks(benchmark.task) if profile else {}
    options.out.mkdir(parents=True, exist_ok=True)
    seen = not is_endpoint(options.policy)
    compared = compare_choices(
        [_question(row, benchmark, profile, seen) for row in task.rows],
        partial(_policy, options),
        _chooser(options, "model", options.score_model),
        SamplingOptions.from_command(options),
        Logs(options.out, benchmark.name, settings, options.overwrite, pixels=benchmark.task == "grounding"),
        clip=_chooser(options, "clip", options.clip_model) if options.clip_model else None,
        seeds=options.seeds,
        metric=options.metric,
    )
    sampled = {name: getattr(options, name) for name in ("n", "temperature", "top_p")}
    return {
        "task": benchmark.name,
        "title": benchmark.title,
        **{name: getattr(options, name) for name in ("policy", "score_model", "clip_model", "metric")},
        "profile": profile and profile.name,
        "metric_version": benchmark.metric_version,
        "dataset_hash": task.data_hash,
        **compared,
        "settings": settings
        | sampled
        | {"score_model_hash": model_stamp(options.score_model)}
        | options.combination(options.score_model),
        "versions": versions("torch", "transformers"),
    }


def hash_files(files: Sequence[Path]) -> str:
    """Returns the SHA-256 of the content of files, in order."""
    content = hashlib.sha256()
    for file in files:
        content.update(file.read_bytes())
    return content.hexdigest()


def _checked(options: BestOfNOptions) -> Benchmark:
    """The benchmark; refuses what cannot be run."""
    from accelerate import PartialState

    if PartialState().num_processes > 1:
        raise OptionError("rs-rlhf best-of-n runs in one process; start it without accelerate launch.")
    sizes_up_to(options.n)
    benchmark = load_benchmark(options.task)
    if benchmark.task not in TASKS:
        raise OptionError(
            f"{options.task} is a {benchmark.task} task, whose answers are not voted on; "
            f"give one of {', '.join(TASKS)}.",
            "task",
        )
    if benchmark.task == "grounding" and options.metric != "strict":
        raise OptionError(f"--metric {options.metric} is of words, and {options.task} asks for boxes.", "metric")
    return benchmark


def _question(row: QuestionRow, benchmark: Benchmark, profile: Profile | None, seen: bool) -> Question:
    """A question as the models are asked it; the score model reads no prefix, which is the policy's."""

    def verdict(output: str, pixels: Any) -> dict[str, Any]:
        return judge_output(benchmark, profile, seen, row, {"output": output, "pixels": pixels})

    if profile is None:
        return Question(row.group, row.group, verdict)
    plain = replace(profile, prefixes={})
    return Question(profile.ask(row.group, benchmark.task), plain.ask(row.group, benchmark.task), verdict)


def _policy(options: BestOfNOptions) -> Policy:
    from ..models.policies.load import load_policy
    from .lmms.answers import WrittenAnswers, answer_files

    if files := answer_files(options.policy):
        return WrittenAnswers(files)
    return load_policy(
        options.policy,
        image_options=options.reader_options(),
        min_pixels=options.min_pixels,
        max_pixels=options.max_pixels,
        dtype=options.dtype,
    )


def _chooser(options: BestOfNOptions, kind: Literal["model", "clip"], model: str) -> Chooser:
    several = {} if kind == "clip" else options.several()
    chosen = ScorerOptions(scorer=kind, model=model, dtype=options.dtype, **several)
    by = ["clip" if kind == "clip" else "score", model, model_stamp(model), *chosen.combination(model).values()]
    return Chooser(by, partial(load_scorer, chosen, options.reader_options(), standards=options.out))
