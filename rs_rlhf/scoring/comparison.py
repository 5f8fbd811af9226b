"""Comparison of the score model's choice among N answers with the greedy answer, votes, chance and an oracle.

Whoever trains on a score model's choices trains on nothing better than these choices, so every command that does makes
this comparison: `rs-rlhf best-of-n` on a whole benchmark, and before they spend hours `raft`, `grpo` and `data dpo` on
some labelled questions ([`check_best_of_n`]).

What was sampled and scored is appended to files batch by batch, so a run that was killed resumes, and the same command
with another score model scores the same answers. Verdicts are made from the stored answers each time. Left out: how a
benchmark is asked and judged (`evaluation.best_of_n`), the figures (`metrics.best_of_n`).
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..data.group import Group
from ..data.questions import QuestionRow, questions_hash
from ..errors import DataError, OptionError, ScoreError
from ..metrics.best_of_n import conclusions, curve_figures, question_curves, sizes_up_to
from ..metrics.box_forms import FORMS, written_boxes
from ..metrics.closed_answers import judge_solution
from ..options import option
from ..runs.files import write_json, write_text
from ..runs.progress import progress
from ..runs.sample_log import SampleLog
from ..runs.tables import markdown_table, markdown_text, print_markdown
from .base import GroupScorer
from .best_of_n import score_answers

if TYPE_CHECKING:
    from ..models.policies.policy import Policy
    from ..models.policies.sampling import SamplingOptions

METHODS = {
    "greedy": "greedy answer",
    "score": "best score",
    "majority": "majority vote",
    "weighted": "vote weighted by exp(score)",
    "consensus": "box most agreed on",
    "median": "median box",
    "clip": "best CLIP score",
    "random": "one at random",
    "oracle": "oracle",
}
Judge = Callable[[str, Any], Mapping[str, Any]]  # (answer, (width, height) as the policy saw the image) -> verdict
Scores = list[list[list[float]]]  # for each seed, for each question, of its N answers
CLOSED = (None, "", "em", "math", "count")  # values of `reward_type` whose solution is a text to compare with
NOT_COMPARED = (
    "The score model's choice is not compared with the greedy answer, since no question has a right answer in words; "
    "`rs-rlhf best-of-n` compares them on a benchmark, of boxes too."
)


@dataclass(frozen=True)
class Question:
    """A question as each model is asked it, and how its answers are judged.

    Args:
        policy, scorer ([`Group`]): As policy and score model are asked it; completions are not read.
        judge (callable): Gives the verdict of [`judge_answer`], or of boxes that of [`grounding_verdict`].
    """

    policy: Group
    scorer: Group
    judge: Judge


@dataclass(frozen=True)
class Chooser:
    """What chooses among answers by scores: what tells its scores from others', and how it is loaded."""

    by: Sequence[Any]
    load: Callable[[], GroupScorer]


@dataclass(frozen=True)
class Logs:
    """Where answers and scores are kept: `FOLDER/answers_NAME_seedK.jsonl`, and `…_greedy.jsonl`."""

    folder: Path
    name: str
    settings: Mapping[str, Any]  # that the answers depend on
    anew: bool = False  # start again if a file has other settings
    pixels: bool = False  # keep the sizes of images as the policy sees them, which boxes are read by

    def open(self, sampling: SamplingOptions, by: Sequence[Any] = ()) -> SampleLog:
        """Opens the log of a seed's answers, or at temperature 0 of the greedy ones."""
        greedy = sampling.temperature == 0
        own = {"n": sampling.n, "temperature": sampling.temperature, "top_p": sampling.top_p}
        own |= {} if greedy else {"seed": sampling.seed}
        path = self.folder / f"answers_{self.name}_{'greedy' if greedy else f'seed{sampling.seed}'}.jsonl"
        return SampleLog(path, {**self.settings, **own}, json.dumps([*by]), anew=self.anew)


def compare_choices(
    questions: Sequence[Question],
    policy: Callable[[], Policy],
    score: Chooser,
    sampling: SamplingOptions,
    logs: Logs,
    *,
    clip: Chooser | None = None,
    seeds: Sequence[int] = (0,),
    metric: str = "strict",
    shown: bool = True,
) -> dict[str, Any]:
    """Samples and scores what is not there yet, and estimates the accuracy of every way of choosing.

    Args:
        questions (sequence of [`Question`]): At least one.
        policy (callable): Loads the policy; called once, if there is anything to sample.
        score, clip ([`Chooser`]): The score model, and a dual encoder if it is to choose too.
        sampling ([`SamplingOptions`]): How the N answers are sampled; the greedy one is at temperature 0.
        logs ([`Logs`]): Where they are kept.
        seeds (sequence of `int`): Seeds of the sampling.
        metric (`str`): Key of the verdicts that says whether an answer is right.
        shown (`bool`): Show progress.

    Returns:
        `dict`: `questions` (their number), `n`, `sizes` (the n), `seeds`, `malformed` (share of answers that cannot be
        read), `distinct` (mean number), `pooled` and `by_seed` (see [`curve_figures`]), and `conclusions` (sentences,
        see [`conclusions`]).

    Raises:
        OptionError: The files hold answers of other settings, N is below 1, or the temperature 0.
        ScoreError: A score that is missing or not finite.
        ImageError, DataError: A question that cannot be read.
    """
    sizes_up_to(sampling.n)
    if sampling.temperature == 0:
        detail = "the temperature is 0, at which all N answers are the greedy one; give one above 0."
        raise OptionError(detail, "temperature")
    greedy = replace(sampling, n=1, temperature=0.0, top_p=1.0, top_k=0)
    ways = [replace(sampling, seed=seed) for seed in dict.fromkeys(seeds)]
    opened = [logs.open(way, score.by) for way in (greedy, *ways)]
    _sample(questions, policy, [greedy, *ways], opened, logs.pixels, shown)
    first, *answered = opened
    scores = [_scored(questions, score, "Scoring", answered, shown)]
    if clip is not None:
        scores.append(_scored(questions, clip, "CLIP scores", [logs.open(way, clip.by) for way in ways], shown))
    figures = _figures(questions, first, answered, scores, [way.seed for way in ways], sampling.n, metric)
    return figures | {"conclusions": conclusions(figures["pooled"])}


def _figures(
    questions: Sequence[Question],
    greedy: SampleLog,
    answered: Sequence[SampleLog],
    scores: Sequence[Scores],
    seeds: Sequence[int],
    n: int,
    metric: str,
) -> dict[str, Any]:
    """The figures of judged answers; `scores` are those of the score model, and of a CLIP if there is one."""
    sizes = sizes_up_to(n)
    read: list[bool] = []

    def curves(k: int, i: int) -> dict[str, list[float]]:
        texts, first, pixels = answered[k].answers[i], greedy.answers[i][0], greedy.pixels.get(i)
        known = {text: questions[i].judge(text, pixels) for text in {*texts, first}}
        read.extend(known[text]["answer"] is not None for text in texts)
        return question_curves(
            [known[text]["answer"] for text in texts],
            [float(known[text][metric]) for text in texts],
            scores[0][k][i],
            scores[1][k][i] if len(scores) > 1 else None,
            sizes,
            greedy=float(known[first][metric]),
            boxes=known[first].get("boxes"),
            seed=[seeds[k], i],
        )

    runs = [[curves(k, i) for i in range(len(questions))] for k in range(len(seeds))]
    distinct = [len(set(texts)) for log in answered for texts in log.answers.values()]
    return {
        "questions": len(questions),
        "n": n,
        "sizes": sizes,
        "seeds": list(seeds),
        "malformed": 1 - sum(read) / len(read),
        "distinct": sum(distinct) / len(distinct),
        "pooled": curve_figures(runs, sizes),
        "by_seed": {str(seed): curve_figures([run], sizes) for seed, run in zip(seeds, runs, strict=True)},
    }


def _sample(
    questions: Sequence[Question],
    load: Callable[[], Policy],
    ways: Sequence[SamplingOptions],
    logs: Sequence[SampleLog],
    sized: bool,
    shown: bool,
) -> None:
    """Samples what the logs do not hold yet; the policy is loaded once, if it is needed.

    With `sized` the sizes of images as the policy sees them are kept beside the greedy answers.
    """
    groups, policy = [question.policy for question in questions], None
    for way, log in zip(ways, logs, strict=True):
        if len(log.answers) == len(groups):
            continue
        policy = policy or load()
        batches = policy.sample_batches(groups, way, done=set(log.answers))
        what = f"Sampling, seed {way.seed}" if way.temperature else "Greedy answers"
        with progress(len(groups), len(log.answers), what, shown=shown) as advance:
            for places, texts in batches:
                kept = places if sized and not way.temperature else ()
                sizes = [next(iter(policy.pixels(groups[i])), None) for i in kept]
                log.add_answers(places, texts, sizes or None)
                advance(len(places))


def _scored(
    questions: Sequence[Question], chooser: Chooser, what: str, logs: Sequence[SampleLog], shown: bool
) -> Scores:
    """The scores of every question's answers, for each log; scores what has no scores yet."""
    groups, scorer = [question.scorer for question in questions], None
    scores: Scores = []
    for number, log in enumerate(logs, start=1):
        if len(log.scores) < len(groups):
            scorer = scorer or chooser.load()
            score_answers(log, groups, scorer, f"{what}, {number} of {len(logs)}" if len(logs) > 1 else what, shown)
        scores.append([cast("list[float]", log.scores[i]) for i in range(len(groups))])  # `score_answers` has checked
    return scores


def markdown(results: Mapping[str, Any]) -> str:
    """Returns a comparison as Markdown: accuracy against n, the paired differences, and what follows.

    Args:
        results (`dict`): What [`compare_choices`] returns, with the `task` and the `metric`.
    """
    several = len(results["seeds"]) > 1

    def accuracy(entry: Mapping[str, Any]) -> str:
        low, high = entry["interval"]
        return f"{entry['accuracy']:.1%} ({low:.1%} – {high:.1%})" + (f" ± {entry['sd']:.1%}" if several else "")

    def difference(entry: Mapping[str, Any]) -> str:
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
            f"{'seeds' if several else 'seed'} {', '.join(map(str, results['seeds']))}; {measure(results)} "
            f"with 95% intervals{', ± sd of the seeds' if several else ''}.",
            "",
            markdown_table(["chosen by", *sizes], methods, align),
            "",
            markdown_table(["difference", *sizes], differences, align),
            "",
            f"Answers that could not be parsed: {results['malformed']:.1%}. Distinct answers of a question: "
            f"{results['distinct']:.1f} of {results['n']}.",
            "",
            *(f"- {sentence}" for sentence in results["conclusions"]),
        ]
    )


def measure(results: Mapping[str, Any]) -> str:
    """Returns the name of the measure: a question about boxes is right if each of its boxes has an IoU of 0.5."""
    return "precision@0.5" if "median" in results["pooled"]["methods"] else f"{results['metric']} accuracy"


def write(results: Mapping[str, Any], folder: Path, formats: Sequence[str] = ()) -> list[Path]:
    """Writes `best_of_n.json`, `.md`, and the picture as `.png` or in those of [`runs.charts.style.FORMATS`] that are
    named; returns the files.
    """
    from ..runs.plots import plot_best_of_n

    write_json(folder / "best_of_n.json", results)
    write_text(folder / "best_of_n.md", markdown(results) + "\n")
    pictures = plot_best_of_n(results["pooled"], folder / "best_of_n.png", measure(results), formats)
    return [folder / "best_of_n.json", folder / "best_of_n.md", *pictures]


# --- Before hours are spent --------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class CheckOptions:
    """The comparison that a command makes before it spends hours on a score model's choices."""

    check_best_of_n: int = option(
        64,
        "first compare the score model's choice among N answers with the greedy answer and a majority vote on at most "
        "so many labelled questions, if there are any: N + 1 answers to each (what it took is printed); 0: do not",
    )


def is_labelled(solution: Any, reward_type: Any = None) -> bool:
    """Whether an answer can be compared with a solution: a text or a number of a question that is not open, no box."""
    if (reward_type or None) not in CLOSED or judge_solution("", solution) is None:
        return False
    return not (isinstance(solution, str) and written_boxes(solution, [*FORMS]))


def labelled_places(labels: Sequence[tuple[Any, Any]], limit: int, seed: int = 0) -> list[int]:
    """Returns the places of at most `limit` labelled questions, each given as solution and reward type, drawn by the
    seed; a negative limit is an [`OptionError`]. No more are looked at than are needed.
    """
    if limit < 0:
        raise OptionError(f"--check_best_of_n is {limit}; it must be 0 (no comparison) or more.", "check_best_of_n")
    order = random.Random(seed).sample(range(len(labels)), len(labels)) if limit else []
    return sorted(islice((i for i in order if is_labelled(*labels[i])), limit))


def check_best_of_n(
    policy: Callable[[], Policy],
    score: Chooser,
    rows: Sequence[QuestionRow],
    sampling: SamplingOptions,
    folder: Path,
    *,
    limit: int = 64,
    settings: Mapping[str, Any] | None = None,
    title: str = "labelled questions",
    shown: bool = True,
) -> dict[str, Any] | None:
    """Compares the score model's choice among N answers with the greedy answer and votes, on a few labelled questions,
    and prints what it found and what follows. It takes `limit` × (N + 1) answers.

    Args:
        policy (callable): Loads the policy; not called if the folder has all answers.
        score ([`Chooser`]): The score model.
        rows (sequence of [`QuestionRow`]): Rows with a right answer in words are used, see [`is_labelled`].
        sampling ([`SamplingOptions`]): How N answers are sampled; its seed draws the rows too.
        folder (`Path`): Where answers and scores are kept, from which a killed run resumes; and `best_of_n.json`,
            `.md` and `.png`.
        limit (`int`): Questions at most; 0: no comparison.
        settings (mapping, *optional*): What the answers depend on beside rows and sampling, such as the policy.
        title (`str`): What the rows are.
        shown (`bool`): Print; of several processes the first does.

    Returns:
        `dict` or `None`: As [`compare_choices`]; `None` if no row is labelled, or if an answer has
            no score, which is printed.
    """
    labels = [(row.reference, row.columns.get("reward_type")) for row in rows]
    drawn = [rows[i] for i in labelled_places(labels, limit, sampling.seed)]
    if not drawn:
        if limit and shown:
            print(NOT_COMPARED)
        return None
    if shown:
        cost = f"{len(drawn) * (sampling.n + 1)} answers (--check_best_of_n 0 leaves it out)"
        print(f"Before the work: best of {sampling.n} on {len(drawn)} {title}, {cost}", flush=True)
    start = time.monotonic()
    settings = {**(settings or {}), "rows_sha256": questions_hash(drawn), "max_new_tokens": sampling.max_new_tokens}
    classes = sorted({row.reference for row in rows if row.columns.get("label")})
    questions = [_question(row, classes) for row in drawn]
    folder.mkdir(parents=True, exist_ok=True)
    logs = Logs(folder, "check", settings, anew=True)
    try:
        compared = compare_choices(questions, policy, score, sampling, logs, shown=shown)
    except (ScoreError, DataError) as error:  # an answer that cannot be scored is no reason to end what comes next
        if shown:
            print(f"The score model's choice is not compared with the greedy answer: {error}")
        return None
    results = {"task": title, "metric": "strict", "score_model": [*score.by], **compared, "settings": settings}
    write(results, folder)
    if shown:
        print_markdown(markdown(results))
        print(f"This comparison took {time.monotonic() - start:.0f} s.", flush=True)
    return results


def _question(row: QuestionRow, classes: Sequence[str]) -> Question:
    """A labelled row; `classes` are the choices of labelled images."""
    choices = row.choices or (classes if row.columns.get("label") else [])

    def verdict(output: str, pixels: Any) -> Mapping[str, Any]:
        judged = judge_solution(output, row.reference, choices)
        assert judged is not None  # the row is labelled
        return judged

    return Question(row.group, row.group, verdict)
