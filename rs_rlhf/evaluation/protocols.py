"""Protocols of evaluation: how each task is put to each type of model, how answers are judged, what is reported.

A causal VLM answers in words. A score model takes the best of the well-formed answers, scored as one group. A CLIP
model ranks class names or captions by cosine. Parsers and figures live in `metrics`, `preferences` and `clip`; this
module only joins them to the run.

Left out: log-likelihood ranking of choices by a VLM (the published protocols let it answer).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from ..data.group import Group, completion_text, make_group, prompt_text
from ..data.other_images import partners_of
from ..data.questions import QuestionRow
from ..errors import DataError, OptionError
from ..imagery.sources import DEFAULTS, ImageOptions
from ..metrics.accuracy import accuracy_figures
from ..metrics.answers import extract_answer
from ..metrics.boxes import RESIZED, grounding_figures, grounding_verdict
from ..metrics.closed_answers import judge_answer
from ..metrics.intervals import bootstrap_interval
from ..metrics.preferences import preference_report
from ..metrics.retrieval import rank_retrieval, retrieval_figures, zero_shot_figures, zero_shot_record
from ..scoring.base import GroupScorer
from .benchmark import Benchmark
from .preferences import score_preferences
from .reader import references_of
from .run import Answer, Batches, Protocol, Raw, no_verdict

if TYPE_CHECKING:
    from ..models.clip import ClipModel
    from ..models.policies.policy import Policy
    from ..models.policies.sampling import SamplingOptions
    from ..models.profiles import Profile

SCORE_ROWS = 32  # groups of a batch of a score model's task: what a killed run loses at most


def vlm_protocol(
    benchmark: Benchmark,
    policy: Callable[[], Policy],
    sampling: SamplingOptions,
    system_prompt: str | None = None,
    scorer: Callable[[], GroupScorer] | None = None,
    profile: Profile | None = None,
    pixels_seen: bool = True,
) -> Protocol:
    """A model that answers in words, once a question, after the system prompt if there is one; a scorer also scores
    each answer. Policy and scorer are loaded when they are first needed.

    The profile says how the model is asked and how it writes boxes, which grounding needs; `pixels_seen`, whether the
    policy knows the size of an image as the model sees it (not behind an endpoint).
    """

    def answer(rows: Sequence[QuestionRow], share: tuple[int, int], done: set[int]) -> Batches:
        asked = [profile.ask(row.group, benchmark.task) if profile else row.group for row in rows]
        groups = [_with_system(group, system_prompt) for group in asked]
        model = policy()
        for places, texts in model.sample_batches(groups, sampling, share=share, done=done):
            outputs: list[Raw] = [
                {
                    "prompt": prompt_text(asked[i].prompt),
                    "output": answers[0],
                    "pixels": next(iter(model.pixels(groups[i])), None),
                }
                for i, answers in zip(places, texts, strict=True)
            ]
            if scorer is not None:
                scored = [_with_answers(asked[i], answers) for i, answers in zip(places, texts, strict=True)]
                for output, scores in zip(outputs, scorer().score_groups(scored, show_progress=False), strict=True):
                    output["score"] = scores[0]
            yield places, outputs

    def load() -> None:
        policy()
        if scorer is not None:
            scorer()

    names = ("temperature", "top_p", "max_new_tokens", "seed", "token_budget", "batch_size")
    settings: dict[str, Any] = {name: getattr(sampling, name) for name in names}
    settings |= {"system_prompt": system_prompt, **(profile.asks(benchmark.task) if profile else {})}
    verdict = partial(judge_output, benchmark, profile, pixels_seen)
    figures = partial(_figures, benchmark, profile, scorer is not None)
    return Protocol(answer, verdict, figures, load, settings=settings)


def judge_output(
    benchmark: Benchmark, profile: Profile | None, pixels_seen: bool, row: QuestionRow, record: Raw
) -> Raw:
    """Returns the verdict on the `output` of a model that answers in words; see [`vlm_protocol`] on `pixels_seen`."""
    if benchmark.task == "grounding":
        if profile is None:
            raise OptionError(f"{benchmark.name} asks for boxes; give the profile of the model.", "profile")
        seen = record["pixels"]
        if profile.unit == RESIZED and not pixels_seen:
            seen = profile.seen_size(seen)
        boxes, size = row.columns["boxes"], row.columns["size"]
        return grounding_verdict(record["output"], boxes, size, profile.unit, profile.forms, seen, profile.pairing)
    if benchmark.task == "captions":
        return {"answer": " ".join(extract_answer(record["output"]).split()) or None}
    return judge_answer(record["output"], references_of(row), choices=row.choices, numbers=benchmark.numbers)


def _figures(benchmark: Benchmark, profile: Profile | None, scored: bool, records: list[Raw]) -> dict[str, Any]:
    """The figures of a benchmark, with the mean score of the answers if they are `scored`."""
    report = {"grounding": grounding_figures, "captions": _caption_figures}.get(benchmark.task, accuracy_figures)
    reported = report(records)
    if scored:
        scores = [record["score"] for record in records]
        reported["metrics"] = {**reported.get("metrics", {}), "score": sum(scores) / len(scores)}
        reported["score_interval"] = list(bootstrap_interval(scores))
    return {**reported, "profile": profile and profile.name}


def _with_answers(group: Group, texts: Sequence[str]) -> Group:
    """The question with these texts as its completions."""
    return make_group(group.prompt, texts, group.images, where=group.where)


def _with_system(group: Group, system_prompt: str | None) -> Group:
    if not system_prompt:
        return group
    if group.prompt[0]["role"] == "system":
        raise DataError("the prompt has a system turn of its own; leave --system_prompt out", "prompt", group.where)
    system = {"role": "system", "content": [{"type": "text", "text": system_prompt}]}
    return replace(group, prompt=[system, *group.prompt])


def _caption_figures(records: list[Raw]) -> dict[str, Any]:
    from ..metrics.captions import caption_figures

    answers = [record["answer"] or "" for record in records]
    measured = caption_figures(answers, [record["references"] for record in records])
    empty = sum(record["answer"] is None for record in records)
    return {"n": len(records), "parse_failures": empty / len(records), "metrics": measured}


def score_protocol(
    benchmark: Benchmark, scorer: Callable[[], GroupScorer], seed: int = 0, image_options: ImageOptions = DEFAULTS
) -> Protocol:
    """A score model on a task with choices (the best of the well-formed answers) or of preferences (the better of two
    texts).

    `seed` draws the other rows' images; `image_options` say how images are read, to tell which are the same picture.
    """
    if benchmark.task == "preference":
        return _preference_protocol(scorer, seed, image_options)

    def outputs(rows: Sequence[QuestionRow]) -> list[Raw]:
        for row in rows:
            if not row.choices:
                detail = "the question has no choices for a score model to pick from; declare them, or evaluate a vlm "
                raise row.error(f"{detail}on {benchmark.name}.", "choices")
        groups = [_with_answers(row.group, row.choices) for row in rows]
        scored = zip(rows, scorer().score_groups(groups, show_progress=False), strict=True)
        return [{"output": row.choices[scores.index(max(scores))], "scores": scores} for row, scores in scored]

    def judge(row: QuestionRow, record: Raw) -> Raw:
        tied = record["scores"].count(max(record["scores"])) > 1  # equal scores for all choose nothing
        verdict = judge_answer("" if tied else record["output"], references_of(row), choices=row.choices)
        return verdict | {"upstream_compat": None}

    settings = {"score_rows": SCORE_ROWS}
    return Protocol(_in_batches(SCORE_ROWS, outputs), judge, accuracy_figures, scorer, settings=settings)


def _in_batches(size: int, outputs: Callable[[Sequence[QuestionRow]], list[Raw]]) -> Answer:
    """Answers consecutive questions in batches."""

    def answer(rows: Sequence[QuestionRow], share: tuple[int, int], done: set[int]) -> Batches:
        from ..models.policies.sampling import consecutive_batches

        for places in consecutive_batches(len(rows), size, share, done):
            yield places, outputs([rows[i] for i in places])

    return answer


def _preference_protocol(scorer: Callable[[], GroupScorer], seed: int, image_options: ImageOptions) -> Protocol:
    from ..models.policies.sampling import consecutive_batches

    def answer(rows: Sequence[QuestionRow], share: tuple[int, int], done: set[int]) -> Batches:
        groups = [row.group for row in rows]
        partners = partners_of(groups, image_options, seed)
        for places in consecutive_batches(len(rows), SCORE_ROWS, share, done):
            others = [None if (j := partners[i]) is None else groups[j] for i in places]
            yield places, [*map(dict, score_preferences(scorer(), [groups[i] for i in places], others))]

    def judge(row: QuestionRow, record: Raw) -> Raw:
        texts = [completion_text(completion) for completion in row.group.completions]
        chosen, best = record["scores"][0], max(record["scores"][1:])
        return {
            "output": texts[0] if chosen > best else texts[record["scores"].index(best)],
            "answer": None,
            "strict": chosen > best,
            "upstream_compat": None,
            "completions": texts,
            "kind": row.group.kind,
            "source": row.group.source,
        }

    settings = {"score_rows": SCORE_ROWS, "shuffle_seed": seed}
    return Protocol(answer, judge, preference_report, scorer, settings=settings)


def clip_protocol(
    benchmark: Benchmark, model: Callable[[], ClipModel], rows: Sequence[QuestionRow], batch_size: int = 64
) -> Protocol:
    """A dual encoder on classification (a benchmark with `templates`; the rows' choices are the classes) or retrieval.

    A batch size below 1 is an [`OptionError`], rows with several sets of classes are a [`DataError`].
    """
    from . import clip

    if batch_size < 1:
        raise OptionError(f"batch_size is {batch_size}, expected at least 1.", "batch_size")
    settings: dict[str, Any] = {"batch_size": batch_size}
    if benchmark.task == "retrieval":
        answer = _in_batches(batch_size, lambda rows: clip.retrieval_raw(model(), rows))
        return Protocol(answer, no_verdict, retrieval_figures, model, rank_retrieval, settings)
    templates, names = benchmark.templates or ["{c}"], rows[0].choices
    if other := next((row for row in rows if row.choices != names), None):
        detail = "its choices are not those of the first question, expected one set of classes for all"
        raise other.error(detail, "choices")
    # Once a protocol: a model that is trained on needs another one.
    classes = cache(lambda: clip.class_features(model(), names, templates).numpy())

    def classify(rows: Sequence[QuestionRow]) -> list[Raw]:
        images = clip.image_features(model(), rows).numpy()
        pairs = zip(rows, images, strict=True)
        return [zero_shot_record(image, classes(), names, row.reference) for row, image in pairs]

    settings |= {"templates": templates, "classes": names}
    return Protocol(_in_batches(batch_size, classify), no_verdict, zero_shot_figures, model, settings=settings)
