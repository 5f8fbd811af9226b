"""`rs-rlhf best-of-n`: how much is won by sampling N answers and letting the score model choose.

A policy answers every question of a benchmark N times, for each seed of the sampling; the score model (and CLIP, if
given) scores a question's distinct answers as one group. From that the accuracy of every way of choosing is estimated
for n up to N, see `bon_curves`. The published comparison (arXiv 2503.00743) samples at temperature 0.85, top_p 0.95
and 50 tokens, which are the defaults here.

What was sampled and scored is appended to `DIR/answers_TASK_seedK.jsonl` batch by batch, so a run that was killed goes
on; another score model is put to the same answers by the same command. Verdicts are made from the stored answers each
time. Left out: boxes and captions (no vote of theirs is defined), several processes, scoring of given candidates
(`rs-rlhf data dpo` orders those).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..cli.eval import NOT_READ, check_data_flags, read_task
from ..data.questions import QuestionRow
from ..errors import DataError, OptionError
from ..imagery.arguments import READING, ImageArguments, add_image_flags, image_options_from
from ..metrics.best_of_n import curve_figures, question_curves, sizes_up_to
from ..runs.progress import progress, versions
from ..runs.sample_log import SampleLog
from ..runs.tables import markdown_table
from ..scoring.best_of_n import score_answers
from ..scoring.cards import model_stamp
from ..scoring.load import ScorerOptions, load_scorer
from .benchmark import load_benchmark
from .reader import references_of

TASKS = ("classification", "vqa", "choice")  # what has one short right answer
METRICS = ("strict", "upstream_compat")
METHODS = {
    "score": "best score",
    "majority": "majority vote",
    "weighted": "vote weighted by exp(score)",
    "clip": "best CLIP score",
    "random": "one at random",
    "oracle": "oracle",
}


def verdicts(row: QuestionRow, outputs: Sequence[str], numbers: str | None = None) -> list[dict[str, Any]]:
    """Judges a question's answers, equal ones once; see `answer_matching.judge_answer`.

    Raises:
        DataError: The question has no right answer.
    """
    from ..metrics.closed_answers import judge_answer

    references = references_of(row)
    if not references:
        raise DataError(
            "the question has no right answer, so nothing can be judged; add a `solution`",
            "solution",
            row.group.where or row.id,
        )
    known = {text: judge_answer(text, references, choices=row.choices, numbers=numbers) for text in set(outputs)}
    return [known[text] for text in outputs]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rs-rlhf best-of-n",
        description="Sample N answers to every question of a benchmark and compare ways of choosing one of them.",
    )
    add = parser.add_argument
    add("--policy", required=True, help="folder (a LoRA adapter's too) or hub id of a causal VLM that is sampled")
    add("--score_model", "--score-model", required=True, help="name in reward_models/, folder or hub id")
    add("--clip_model", "--clip-model", help="also choose by the CLIP score of this dual encoder")
    add("--task", required=True, help="benchmark by name or YAML file; one whose answers are short")
    add("--out", "--output_dir", dest="out", type=Path, required=True, help="folder to write to")
    add(
        "--data_root",
        "--data-root",
        help="folder that the benchmarks' data lie in (default: RS_RLHF_DATA, or ./data)",
    )
    add("--data", action="append", default=[], metavar="TASK=PATH", help="where the benchmark's data lie instead")
    add("--core_only", "--core-only", action="store_true", help="only the question types that VLM papers report")
    add("--limit", type=int, help="questions at most, drawn by a fixed seed")
    add("-n", type=int, default=16, help="answers sampled for each question (default: 16)")
    add("--seeds", type=int, nargs="+", default=[0], metavar="K", help="seeds of the sampling (default: 0)")
    add("--temperature", type=float, default=0.85, help="(default: 0.85)")
    add("--top_p", "--top-p", type=float, default=0.95, help="(default: 0.95)")
    add("--max_new_tokens", "--max-new-tokens", type=int, default=50, help="longest answer (default: 50)")
    add(
        "--token_budget",
        "--token-budget",
        type=int,
        default=16384,
        help="tokens of a batch's answers with their prompts at most (default: 16384)",
    )
    add("--metric", choices=METRICS, default="strict", help="what a right answer is (default: strict)")
    add("--overwrite", action="store_true", help="begin anew where the folder holds answers of other settings")
    add("--dtype", help="such as bfloat16 (default: the checkpoint's)")
    for name in ("min_pixels", "max_pixels"):
        text = ImageArguments.__dataclass_fields__[name].metadata["help"]
        add(f"--{name}", f"--{name.replace('_', '-')}", type=int, help=f"of the policy: {text}")
    add_image_flags(parser, without=NOT_READ)
    parser.set_defaults(seed=0)  # of --limit
    return parser


def _sampled(
    rows: Sequence[QuestionRow], settings: dict[str, Any], files: dict[int, Path], args: argparse.Namespace
) -> None:
    """Samples what the files do not hold yet, with one loading of the policy."""
    from ..models.policies.load import load_policy
    from ..models.policies.sampling import SamplingOptions

    policy = None
    for seed, path in files.items():
        log = SampleLog(path, {**settings, "seed": seed}, anew=args.overwrite)
        if len(log.answers) == len(rows):
            continue
        if policy is None:
            policy = load_policy(
                args.policy,
                image_options=image_options_from(args),
                min_pixels=args.min_pixels,
                max_pixels=args.max_pixels,
                dtype=args.dtype,
            )
        sampling = SamplingOptions.from_command(args, seed=seed)
        batches = policy.sample_batches([row.group for row in rows], sampling, done=set(log.answers))
        with progress(len(rows), len(log.answers), f"Sampling, seed {seed}") as advance:
            for batch, texts in batches:
                log.add_answers(batch, texts)
                advance(len(batch))


def _scored(
    rows: Sequence[QuestionRow],
    settings: dict[str, Any],
    files: dict[int, Path],
    model: str,
    clip: bool,
    args: argparse.Namespace,
) -> tuple[list[list[list[str]]], list[list[list[float]]]]:
    """Returns the answers and the scores of every question, for each seed; scores what has no scores yet."""
    scorer: Any = None
    groups = [row.group for row in rows]
    by = json.dumps(["clip" if clip else "score", model, model_stamp(model)])
    answers, scores = [], []
    for seed, path in files.items():
        log = SampleLog(path, {**settings, "seed": seed}, by)
        if scorer is None and len(log.scores) < len(rows):
            options = ScorerOptions(scorer="clip" if clip else "model", model=model, dtype=args.dtype)
            scorer = load_scorer(options, image_options_from(args))
        scores.append(score_answers(log, groups, scorer, f"{'CLIP scores' if clip else 'Scoring'}, seed {seed}"))
        answers.append([log.answers[i] for i in range(len(rows))])
    return answers, scores


def _run(args: argparse.Namespace) -> dict[str, Any]:
    from accelerate import PartialState

    if PartialState().num_processes > 1:
        raise OptionError("rs-rlhf best-of-n runs in one process; start it without accelerate launch.")
    sizes = sizes_up_to(args.n)
    seeds = list(dict.fromkeys(args.seeds))
    if min(seeds) < 0:
        raise OptionError(f"--seeds holds {min(seeds)}; a seed may not be negative.")
    declared = load_benchmark(args.task)
    check_data_flags(args, [declared.name])
    kind = declared.task
    if kind not in TASKS:
        raise OptionError(
            f"{args.task} is a {kind} task, whose answers are not voted on; give one of {', '.join(TASKS)}."
        )
    benchmark, rows, data_hash = read_task(args.task, args)
    args.out.mkdir(parents=True, exist_ok=True)
    files = {seed: args.out / f"answers_{benchmark.name}_seed{seed}.jsonl" for seed in seeds}
    names = (
        "policy",
        "limit",
        "n",
        "temperature",
        "top_p",
        "max_new_tokens",
        "token_budget",
        "dtype",
        "min_pixels",
        "max_pixels",
        "core_only",
        *(name for name in READING if name not in NOT_READ),
    )
    settings = {name: getattr(args, name) for name in names}
    settings |= {"policy_hash": model_stamp(args.policy), "task": benchmark.name, "dataset_hash": data_hash}
    _sampled(rows, settings, files, args)
    answers, scores = _scored(rows, settings, files, args.score_model, False, args)
    clip = _scored(rows, settings, files, args.clip_model, True, args)[1] if args.clip_model else None
    judged = [[verdicts(row, own, benchmark.numbers) for row, own in zip(rows, run, strict=True)] for run in answers]
    runs = [
        [
            question_curves(
                [one["answer"] for one in own],
                [float(one[args.metric]) for one in own],
                scores[r][q],
                clip[r][q] if clip else None,
                sizes,
                seed=[seed, q],
            )
            for q, own in enumerate(judged[r])
        ]
        for r, seed in enumerate(seeds)
    ]
    flat = [one for run in judged for own in run for one in own]
    return {
        "task": benchmark.name,
        "title": benchmark.title,
        "policy": args.policy,
        "score_model": args.score_model,
        "clip_model": args.clip_model,
        "metric": args.metric,
        "metric_version": benchmark.metric_version,
        "questions": len(rows),
        "n": args.n,
        "sizes": sizes,
        "seeds": seeds,
        "dataset_hash": data_hash,
        "malformed": sum(one["answer"] is None for one in flat) / len(flat),
        "distinct": sum(len(set(own)) for run in answers for own in run) / (len(rows) * len(seeds)),
        "settings": settings | {"score_model_hash": model_stamp(args.score_model)},
        "pooled": curve_figures(runs, sizes),
        "by_seed": {str(seed): curve_figures([run], sizes) for seed, run in zip(seeds, runs, strict=True)},
        "versions": versions("torch", "transformers"),
    }


def markdown(results: dict[str, Any]) -> str:
    """Returns what `best_of_n.json` holds as Markdown: accuracy against n, and the paired differences."""
    several = len(results["seeds"]) > 1
    sizes = [f"n = {n}" for n in results["sizes"]]
    lines = [
        f"Best of n on {results['task']}: {results['questions']} questions, {results['n']} answers each, "
        f"{'seeds' if several else 'seed'} {', '.join(map(str, results['seeds']))}; {results['metric']} accuracy "
        "with 95% intervals" + (", ± sd of the seeds" if several else "") + ".",
        "",
    ]
    rows = []
    for name, entries in results["pooled"]["methods"].items():
        cells = [
            f"{one['accuracy']:.1%} ({one['interval'][0]:.1%} – {one['interval'][1]:.1%})"
            + (f" ± {one['sd']:.1%}" if several else "")
            for one in entries
        ]
        rows.append([METHODS[name], *cells])
    lines += [markdown_table(["chosen by", *sizes], rows, "l"), ""]
    rows = []
    for name, entries in results["pooled"]["differences"].items():
        cells = [
            f"{one['difference']:+.1%} ({one['interval'][0]:+.1%} to {one['interval'][1]:+.1%})" for one in entries
        ]
        rows.append([name, *cells])
    lines += [
        markdown_table(["difference", *sizes], rows, "l"),
        "",
        f"Answers that could not be parsed: {results['malformed']:.1%}. Distinct answers of a question: "
        f"{results['distinct']:.1f} of {results['n']}.",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `rs-rlhf best-of-n`: writes `best_of_n.json`, `.md` and `.png`, prints the table.

    Args:
        argv (sequence of `str`, *optional*): Command-line arguments; those of the process when left out.

    Returns:
        `int`: 0.

    Raises:
        ValueError, OSError: A mistake in the input, told in one sentence.
    """
    from ..runs.files import write_json, write_text
    from ..runs.plots import plot_best_of_n

    args = _parser().parse_args(argv)
    results = _run(args)
    write_json(args.out / "best_of_n.json", results)
    write_text(args.out / "best_of_n.md", markdown(results) + "\n")
    plot_best_of_n(results["pooled"], args.out / "best_of_n.png")
    print(markdown(results))
    print(f"\nBest of n -> {args.out / 'best_of_n.json'}, .md, .png")
    return 0
