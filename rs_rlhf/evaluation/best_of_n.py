"""Best-of-n on a benchmark: how much sampling N answers and letting the score model choose one gains.

A policy answers every question of a benchmark N times, for each seed of the sampling; the score model (and CLIP, if
given) scores a question's distinct answers as one group. From that the accuracy of every way of choosing is estimated
for n up to N, see `metrics.best_of_n`. The published comparison (arXiv 2503.00743) samples at temperature 0.85, top_p
0.95 and 50 tokens, which are the defaults here.

What was sampled and scored is appended to `DIR/answers_TASK_seedK.jsonl` batch by batch, so a run that was killed
resumes, and the same command with another score model scores the same answers. Verdicts are made from the stored
answers each time. Left out: boxes and captions (no vote among them is defined), several processes, scoring of given
candidates (`rs-rlhf data dpo` orders those).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ..data.group import Group
from ..data.questions import QuestionRow
from ..errors import OptionError
from ..metrics.best_of_n import curve_figures, question_curves, sizes_up_to
from ..metrics.closed_answers import judge_answer
from ..models.profiles import model_profile
from ..runs.files import write_json, write_text
from ..runs.progress import progress, versions
from ..runs.sample_log import SampleLog
from ..runs.tables import markdown_table, markdown_text
from ..scoring.base import GroupScorer
from ..scoring.best_of_n import score_answers
from ..scoring.cards import model_stamp
from ..scoring.load import ScorerOptions, load_scorer
from ..scoring.several import model_names
from .benchmark import Benchmark, data_paths, load_benchmark
from .options import BestOfNOptions
from .reader import read_task, references_of

TASKS = ("classification", "vqa", "choice")  # what has one short right answer
# Options that answers depend on.
SETTINGS = (
    *("policy", "limit", "n", "temperature", "top_p", "max_new_tokens", "token_budget"),
    *("dtype", "min_pixels", "max_pixels", "core_only"),
    *("image_hosts", "max_image_pixels", "bands", "stretch", "stretch_range", "nodata", "image_options"),
)
METHODS = {
    "score": "best score",
    "majority": "majority vote",
    "weighted": "vote weighted by exp(score)",
    "clip": "best CLIP score",
    "random": "one at random",
    "oracle": "oracle",
}
Settings = dict[str, Any]
PerSeed = dict[int, list[list[Any]]]  # seed -> for each question, something of each of its N answers


def run_best_of_n(options: BestOfNOptions) -> dict[str, Any]:
    """Samples and scores what is not there yet, and estimates the accuracy of every way of choosing.

    Returns what `best_of_n.json` holds: the task, the models, `sizes` (the n), `pooled` and `by_seed` (see
    [`curve_figures`]), shares of `malformed` and mean count of `distinct` answers, `settings`, `versions`.
    """
    options.check_several(options.score_model)
    if len(model_names(options.clip_model)) > 1:
        raise OptionError(f"--clip_model is {options.clip_model}; name one CLIP.", "clip_model")
    sizes, benchmark = _checked(options)
    paths = data_paths(options.data, [benchmark.name])
    task = read_task(benchmark, options.data_root, paths, core_only=options.core_only, limit=options.limit)
    settings = options.recorded(SETTINGS)
    settings |= {"policy_hash": model_stamp(options.policy)}
    profile = model_profile(options.policy, options.profile)
    settings |= {"task": benchmark.name, "dataset_hash": task.data_hash}
    settings |= profile.asks(benchmark.task) if profile else {}
    options.out.mkdir(parents=True, exist_ok=True)
    seeds = dict.fromkeys(options.seeds)
    files = {seed: options.out / f"answers_{benchmark.name}_seed{seed}.jsonl" for seed in seeds}
    asked = [profile.ask(row.group, benchmark.task) if profile else row.group for row in task.rows]
    _sample(asked, settings, files, options)
    answers, scores = _scored(task.rows, settings, files, options, options.score_model)
    clip = _scored(task.rows, settings, files, options, options.clip_model, "clip")[1] if options.clip_model else None
    judged = {
        seed: [verdicts(row, texts, benchmark.numbers) for row, texts in zip(task.rows, answers[seed], strict=True)]
        for seed in seeds
    }

    def curves(seed: int, q: int) -> dict[str, list[float]]:
        parsed = [verdict["answer"] for verdict in judged[seed][q]]
        right = [float(verdict[options.metric]) for verdict in judged[seed][q]]
        return question_curves(parsed, right, scores[seed][q], clip[seed][q] if clip else None, sizes, seed=[seed, q])

    runs = [[curves(seed, q) for q in range(len(task.rows))] for seed in seeds]
    malformed = [verdict["answer"] is None for run in judged.values() for question in run for verdict in question]
    distinct = [len(set(texts)) for run in answers.values() for texts in run]
    return {
        "task": benchmark.name,
        "title": benchmark.title,
        **{name: getattr(options, name) for name in ("policy", "score_model", "clip_model", "metric")},
        "profile": profile and profile.name,
        "metric_version": benchmark.metric_version,
        "questions": len(task.rows),
        "n": options.n,
        "sizes": sizes,
        "seeds": list(seeds),
        "dataset_hash": task.data_hash,
        "malformed": sum(malformed) / len(malformed),
        "distinct": sum(distinct) / len(distinct),
        "settings": settings
        | {"score_model_hash": model_stamp(options.score_model)}
        | options.combination(options.score_model),
        "pooled": curve_figures(runs, sizes),
        "by_seed": {str(seed): curve_figures([run], sizes) for seed, run in zip(seeds, runs, strict=True)},
        "versions": versions("torch", "transformers"),
    }


def _checked(options: BestOfNOptions) -> tuple[list[int], Benchmark]:
    """The sizes and the benchmark; refuses what cannot be run."""
    from accelerate import PartialState

    if PartialState().num_processes > 1:
        raise OptionError("rs-rlhf best-of-n runs in one process; start it without accelerate launch.")
    sizes = sizes_up_to(options.n)
    benchmark = load_benchmark(options.task)
    if benchmark.task not in TASKS:
        raise OptionError(
            f"{options.task} is a {benchmark.task} task, whose answers are not voted on; "
            f"give one of {', '.join(TASKS)}.",
            "task",
        )
    return sizes, benchmark


def _sample(groups: Sequence[Group], settings: Settings, files: dict[int, Path], options: BestOfNOptions) -> None:
    """Samples what the files do not hold yet; the policy is loaded once, if it is needed."""
    from ..models.policies.load import load_policy
    from ..models.policies.sampling import SamplingOptions

    policy = None
    for seed, path in files.items():
        log = SampleLog(path, {**settings, "seed": seed}, anew=options.overwrite)
        if len(log.answers) == len(groups):
            continue
        policy = policy or load_policy(
            options.policy,
            image_options=options.reader_options(),
            min_pixels=options.min_pixels,
            max_pixels=options.max_pixels,
            dtype=options.dtype,
        )
        sampling = SamplingOptions.from_command(options, seed=seed)
        batches = policy.sample_batches(groups, sampling, done=set(log.answers))
        with progress(len(groups), len(log.answers), f"Sampling, seed {seed}") as advance:
            for batch, texts in batches:
                log.add_answers(batch, texts)
                advance(len(batch))


def _scored(
    rows: Sequence[QuestionRow],
    settings: Settings,
    files: dict[int, Path],
    options: BestOfNOptions,
    model: str,
    kind: Literal["model", "clip"] = "model",
) -> tuple[PerSeed, PerSeed]:
    """The answers and the scores of every question, for each seed; scores what has no scores yet."""
    scorer: GroupScorer | None = None
    groups = [row.group for row in rows]
    more = {} if kind == "clip" else options.several()
    judge = ScorerOptions(scorer=kind, model=model, dtype=options.dtype, **more)
    names = ["clip" if kind == "clip" else "score", model, model_stamp(model)]
    by = json.dumps([*names, *judge.combination(model).values()])
    answers, scores = {}, {}
    for seed, path in files.items():
        log = SampleLog(path, {**settings, "seed": seed}, by)
        if len(log.scores) < len(rows):
            scorer = scorer or load_scorer(judge, options.reader_options(), standards=options.out)
            what = "CLIP scores" if kind == "clip" else "Scoring"
            score_answers(log, groups, scorer, f"{what}, seed {seed}")
        scores[seed] = [log.scores[i] for i in range(len(rows))]
        answers[seed] = [log.answers[i] for i in range(len(rows))]
    return answers, scores


def verdicts(row: QuestionRow, outputs: Sequence[str], numbers: str | None = None) -> list[dict[str, Any]]:
    """Judges a question's answers, equal ones once, see [`judge_answer`]; no right answer is a [`DataError`]."""
    references = references_of(row)
    if not references:
        raise row.error("the question has no right answer, so nothing can be judged; add a `solution`", "solution")
    known = {text: judge_answer(text, references, choices=row.choices, numbers=numbers) for text in set(outputs)}
    return [known[text] for text in outputs]


def markdown(results: dict[str, Any]) -> str:
    """Returns what `best_of_n.json` holds as Markdown: accuracy against n, and the paired differences."""
    several = len(results["seeds"]) > 1

    def accuracy(entry: dict[str, Any]) -> str:
        low, high = entry["interval"]
        return f"{entry['accuracy']:.1%} ({low:.1%} – {high:.1%})" + (f" ± {entry['sd']:.1%}" if several else "")

    def difference(entry: dict[str, Any]) -> str:
        low, high = entry["interval"]
        return f"{entry['difference']:+.1%} ({low:+.1%} to {high:+.1%})"

    sizes = [f"n = {n}" for n in results["sizes"]]
    parts, align = results["pooled"], "l" * (len(sizes) + 1)
    methods = [[METHODS[name], *map(accuracy, entries)] for name, entries in parts["methods"].items()]
    differences = [[name, *map(difference, entries)] for name, entries in parts["differences"].items()]
    return "\n".join(
        [
            f"Best of n on {markdown_text(results['task'])}: {results['questions']} questions, "
            f"{results['n']} answers each, "
            f"{'seeds' if several else 'seed'} {', '.join(map(str, results['seeds']))}; {results['metric']} accuracy "
            f"with 95% intervals{', ± sd of the seeds' if several else ''}.",
            "",
            markdown_table(["chosen by", *sizes], methods, align),
            "",
            markdown_table(["difference", *sizes], differences, align),
            "",
            f"Answers that could not be parsed: {results['malformed']:.1%}. Distinct answers of a question: "
            f"{results['distinct']:.1f} of {results['n']}.",
        ]
    )


def write(results: dict[str, Any], folder: Path) -> None:
    """Writes `best_of_n.json`, `.md` and `.png`."""
    from ..runs.plots import plot_best_of_n

    write_json(folder / "best_of_n.json", results)
    write_text(folder / "best_of_n.md", markdown(results) + "\n")
    plot_best_of_n(results["pooled"], folder / "best_of_n.png")
