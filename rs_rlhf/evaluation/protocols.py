"""How each task is put to each kind of model: what is asked, how an answer is judged, what is reported.

A causal VLM answers in words. A score model takes the best of the well-formed answers, scored as one group. A CLIP
model ranks class names or captions by cosine. Parsers and figures live in `answer_matching`, `task_metrics`,
`caption_metrics` and `clip_eval`; this module only joins them to the run.

Left out: log-likelihood ranking of choices by a VLM (the published protocols let it answer).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from ..data.group import Group, completion_text, make_group
from ..data.other_images import partners_of
from ..data.questions import QuestionRow
from ..errors import DataError, OptionError
from ..metrics.accuracy import accuracy_figures
from ..metrics.answers import extract_answer
from ..metrics.boxes import grounding_figures, grounding_verdict
from ..metrics.closed_answers import judge_answer
from ..metrics.intervals import bootstrap_interval
from .benchmark import TASKS, Benchmark
from .preferences import preference_report, score_preferences
from .reader import references_of
from .run import Batches, Protocol, Raw

if TYPE_CHECKING:
    from ..models.policies.policy import Policy
    from ..models.policies.sampling import SamplingOptions

SCORE_ROWS = 32  # groups of a batch of a score model's task: what a killed run loses at most


def vlm_protocol(
    benchmark: Benchmark,
    answerer: Callable[[], Policy],
    sampling: SamplingOptions,
    system_prompt: str | None = None,
    scorer: Callable[[], Any] | None = None,
) -> Protocol:
    """A model that answers in words.

    Args:
        benchmark ([`Benchmark`]): The task.
        answerer (callable): Gives the model, a [`Policy`], when it is to be asked.
        sampling ([`SamplingOptions`]): How to sample; one answer each.
        system_prompt (`str`, *optional*): Put before every question.
        scorer (callable, *optional*): Gives a [`Scorer`] that also scores every answer.
    """

    def answer(rows: Sequence[QuestionRow], share: tuple[int, int], done: set[int]) -> Batches:
        groups = [_with_system(row.group, system_prompt) for row in rows]
        model = answerer()
        for places, texts in model.sample_batches(groups, sampling, share=share, done=done):
            said: list[Raw] = [{"output": own[0]} for own in texts]
            for place, one in zip(places, said, strict=True):
                one["pixels"] = next(iter(model.pixels(groups[place])), None)
            if scorer is not None:
                own_groups = [
                    make_group(rows[i].group.prompt, [one["output"]], rows[i].group.images, where=rows[i].group.where)
                    for i, one in zip(places, said, strict=True)
                ]
                for one, scores in zip(said, scorer().score_groups(own_groups, show_progress=False), strict=True):
                    one["score"] = scores[0]
            yield places, said

    def judge(row: QuestionRow, said: Raw) -> Raw:
        if benchmark.task == "grounding":
            return grounding_verdict(said["output"], row.columns["boxes"], row.columns["size"], benchmark.box_unit)
        if benchmark.task == "captions":
            text = " ".join(extract_answer(said["output"]).split())
            return {"answer": text or None}
        return judge_answer(said["output"], references_of(row), choices=row.choices, numbers=benchmark.numbers)

    def figures(records: list[Raw]) -> dict[str, Any]:
        reported = {"grounding": grounding_figures, "captions": _caption_figures}.get(benchmark.task, accuracy_figures)
        found = reported(records)
        if scorer is not None:
            scores = [record["score"] for record in records]
            found["metrics"] = {**found.get("metrics", {}), "score": sum(scores) / len(scores)}
            found["score_interval"] = list(bootstrap_interval(scores))
        return found

    def load() -> None:
        answerer()
        if scorer is not None:
            scorer()

    settings = {name: value for name, value in asdict(sampling).items() if name not in ("n", "top_k")}
    return Protocol(answer, judge, figures, load, settings={**settings, "system_prompt": system_prompt})


def _with_system(group: Group, system_prompt: str | None) -> Group:
    if not system_prompt:
        return group
    if group.prompt[0]["role"] == "system":
        raise DataError("the prompt has a system turn of its own; leave --system_prompt out", "prompt", group.where)
    system = {"role": "system", "content": [{"type": "text", "text": system_prompt}]}
    return replace(group, prompt=[system, *group.prompt])


def _caption_figures(records: list[Raw]) -> dict[str, Any]:
    from ..metrics.captions import caption_figures

    measured = caption_figures([one["answer"] or "" for one in records], [one["references"] for one in records])
    empty = sum(one["answer"] is None for one in records)
    return {"n": len(records), "parse_failures": empty / len(records), "metrics": measured}


def score_protocol(benchmark: Benchmark, scorer: Callable[[], Any], seed: int = 0) -> Protocol:
    """A score model: the best of the well-formed answers, or which of two texts is the better one.

    Args:
        benchmark ([`Benchmark`]): A task with choices, or of preferences.
        scorer (callable): Gives the score model, a [`Scorer`], when it is to score.
        seed (`int`): Seed of the image shuffle of preferences.
    """
    if benchmark.task == "preference":
        return _preference_protocol(scorer, seed)

    from ..models.policies.sampling import consecutive_batches

    def answer(rows: Sequence[QuestionRow], share: tuple[int, int], done: set[int]) -> Batches:
        for places in consecutive_batches(len(rows), SCORE_ROWS, share, done):
            groups = []
            for i in places:
                row = rows[i]
                if not row.choices:
                    raise OptionError(
                        f"{row.group.where or row.id}: the question has no choices for a score model to pick from; "
                        f"declare them, or evaluate a vlm on {benchmark.name}."
                    )
                groups.append(make_group(row.group.prompt, row.choices, row.group.images, where=row.group.where))
            scores = scorer().score_groups(groups, show_progress=False)
            said = zip(places, scores, strict=True)
            yield places, [{"output": _best(rows[i].choices, own), "scores": own} for i, own in said]

    def judge(row: QuestionRow, said: Raw) -> Raw:
        tied = said["scores"].count(max(said["scores"])) > 1  # a model that gives all the same has chosen nothing
        verdict = judge_answer("" if tied else said["output"], references_of(row), choices=row.choices)
        return verdict | {"upstream_compat": None}

    return Protocol(answer, judge, accuracy_figures, scorer, settings={"score_rows": SCORE_ROWS})


def _best(choices: Sequence[str], scores: Sequence[float]) -> str:
    return choices[max(range(len(scores)), key=lambda k: scores[k])]


def _preference_protocol(scorer: Callable[[], Any], seed: int) -> Protocol:
    from ..models.policies.sampling import consecutive_batches

    def answer(rows: Sequence[QuestionRow], share: tuple[int, int], done: set[int]) -> Batches:
        groups = [row.group for row in rows]
        partners = partners_of(groups, seed=seed)
        for places in consecutive_batches(len(rows), SCORE_ROWS, share, done):
            others = [None if (j := partners[i]) is None else groups[j] for i in places]
            yield places, score_preferences(scorer(), [groups[i] for i in places], others)

    def judge(row: QuestionRow, said: Raw) -> Raw:
        texts = [completion_text(one) for one in row.group.completions]
        best = max(said["scores"][1:])
        return {
            "output": texts[0] if said["scores"][0] > best else texts[said["scores"].index(best)],
            "answer": None,
            "strict": said["scores"][0] > best,
            "upstream_compat": None,
            "completions": texts,
            "kind": row.group.kind,
            "source": row.group.source,
        }

    settings = {"score_rows": SCORE_ROWS, "shuffle_seed": seed}
    return Protocol(answer, judge, preference_report, scorer, settings=settings)


def clip_protocol(
    benchmark: Benchmark, model: Callable[[], Any], rows: Sequence[QuestionRow], batch_size: int = 64
) -> Protocol:
    """A dual encoder: zero-shot classification, or retrieval.

    Args:
        benchmark ([`Benchmark`]): Classification (with `templates`) or retrieval.
        model (callable): Gives the encoder, a [`ClipModel`], when it is to encode.
        rows (sequence of [`QuestionRow`]): The questions; their choices are the classes.
        batch_size (`int`): Images a batch.
    """
    from ..models.policies.sampling import consecutive_batches
    from . import clip as clip_eval

    def no_verdict(row: QuestionRow, said: Raw) -> Raw:
        return {}

    if benchmark.task == "retrieval":

        def encode(rows: Sequence[QuestionRow], share: tuple[int, int], done: set[int]) -> Batches:
            for places in consecutive_batches(len(rows), batch_size, share, done):
                yield places, clip_eval.retrieval_raw(model(), [rows[i] for i in places])

        return Protocol(
            encode,
            no_verdict,
            clip_eval.retrieval_figures,
            model,
            clip_eval.retrieval_finish,
            {"batch_size": batch_size},
        )
    templates = benchmark.templates or ["{c}"]
    names = rows[0].choices
    if other := next((row for row in rows if row.choices != names), None):
        raise DataError(
            "its choices are not those of the first question, expected one set of classes for all",
            "choices",
            other.group.where or other.id,
        )

    def classify(rows: Sequence[QuestionRow], share: tuple[int, int], done: set[int]) -> Batches:
        features = clip_eval.class_features(model(), names, templates)
        for places, images in clip_eval.encode_batches(model(), rows, batch_size, share=share, done=done):
            ranked = [
                clip_eval.zero_shot_record(image, features, names, rows[i].reference)
                for i, image in zip(places, images, strict=True)
            ]
            yield places, ranked

    settings = {"batch_size": batch_size, "templates": templates, "classes": names}
    return Protocol(classify, no_verdict, clip_eval.zero_shot_figures, model, settings=settings)


def kind_of_model(benchmark: Benchmark, given: str | None) -> str:
    """Returns the kind of model a benchmark is put to: the usual one, or the given one if the task allows it.

    Raises:
        ValueError: The task cannot be put to that kind.
    """
    kinds = TASKS[benchmark.task]
    if given is not None and given not in kinds:
        raise OptionError(
            f"{benchmark.name} is a {benchmark.task} task, for models of type {' or '.join(kinds)}, not {given}; "
            "leave it out, or give another --model-type."
        )
    return given or kinds[0]
