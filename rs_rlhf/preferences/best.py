"""Training rows from a policy's best answers: `rs-rlhf data best`, and what a round of `rs-rlhf raft` trains on.

The distinct answers to one prompt and its images are scored in one pass. The best of them becomes a row of supervised
fine-tuning, or all of them do, weighted by the softmax of their scores (RAFT, arXiv 2304.06767). A prompt's answers
are scored whether they are well-formed or not; only well-formed ones are kept. No label is read: neither a solution,
nor a class, nor a caption.

Rows have `prompt`, `completion`, `image` or `images`, `weight` and `score`, for `rs-rlhf sft --weight_column weight`.
Answers and scores are kept in `OUTPUT.partial` as they come, as in `rs-rlhf data dpo`. Left out: weights by how often
an answer was sampled.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, cast

from ..data.captioned_images import LABEL_QUESTION
from ..data.group import Group, completion_text, make_group, short
from ..data.other_images import with_other_images
from ..data.placed_images import check_output
from ..data.questions import QuestionRow, limited
from ..data.rows import naming
from ..errors import DataError, OptionError
from ..imagery.identity import source_key
from ..metrics.answers import extract_answer, in_asked_form
from ..metrics.closed_answers import judge_answer
from ..metrics.quantities import plain
from ..options import option
from ..runs.sample_log import SampleLog
from ..scoring.base import GroupScorer, with_spread
from ..scoring.several import SeveralOptions
from .candidates import (
    CandidateOptions,
    candidate_scorer,
    candidates_of,
    given_answers,
    listed_choices,
    open_log,
    print_counts,
    sampled_answers,
    score_candidates,
    usable,
)

LEAST_SHARE = 0.01  # a row of a smaller weight costs a step as much as any other, and teaches nothing
_NO_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffd]")  # what remains of half a character, and controls


@dataclass(kw_only=True)
class BestOptions(SeveralOptions, CandidateOptions):
    """Keep the best of several answers to each prompt, as data for rs-rlhf sft."""

    score_model: str = option(
        help="name in reward_models/, folder, or hub id of a score model; several (a,b,c) are combined",
        flags=["--model"],
    )
    keep: Literal["best", "softmax"] = option(
        "best",
        "best: the answer with the best score; softmax: all answers, weighted by the softmax of their scores, but for "
        "those of less than 1%",
    )
    softmax_temperature: float = option(1.0, "scores are divided by it before the softmax")
    min_margin: float = option(
        0.0, "use a prompt only if its best and its worst well-formed answer differ by at least this in score"
    )
    choices: str | None = option(
        None,
        "well-formed answers, separated by commas or one a line in a file; a row's own column `choices` goes first "
        "(default: every answer that is not empty and has the form that its prompt asks for)",
        metavar="A,B,… or FILE",
    )
    shuffle_reward_images: bool = option(
        False, "score every answer with another prompt's images: the control, which must gain nothing"
    )

    def check(self) -> None:
        """Refuses a margin or a temperature that is out of range, and several score models without calibration."""
        self.check_several(self.score_model)
        if not (self.min_margin >= 0 and math.isfinite(self.min_margin)):
            raise OptionError(f"--min_margin is {self.min_margin}; it must be a number from 0 on.", "min_margin")
        if not (self.softmax_temperature > 0 and math.isfinite(self.softmax_temperature)):
            detail = f"--softmax_temperature is {self.softmax_temperature}; it must be above 0."
            raise OptionError(detail, "softmax_temperature")


@dataclass
class Scored:
    """The answers to one question, as they were sampled; its distinct usable texts, and the score of each.

    `scores` are `None` if the question could not be scored.
    """

    row: QuestionRow
    answers: list[str]
    texts: list[str]
    scores: list[float] | None


Look = Callable[[Sequence[Scored], Callable[[], GroupScorer]], None]


def normal_form(text: str, prompt: str = "", choices: Sequence[str] = ()) -> str | None:
    """Returns what an answer says in its normal form; `None` if it is malformed.

    Malformed is what is empty, holds the placeholder of an image or bytes that are no text, what lacks the `<answer>`
    that the prompt asks for, and, given choices, what the strict metric reads as none of them.

    Example:
        >>> normal_form("The <answer>Sea port.</answer>"), normal_form("seap", choices=["sea port", "forest"])
        ('sea port', None)
    """
    answer = extract_answer(text)
    if not usable(text) or _NO_TEXT.search(text) or not answer.strip() or not in_asked_form(text, prompt):
        return None
    if not choices:
        return plain(answer) or answer
    try:
        return judge_answer(text, choices[:1], choices=choices)["answer"]
    except OptionError:
        detail = f"`choices` are {short(list(choices))}, expected answers that can be told apart; correct them"
        raise DataError(detail, "choices") from None


def kept_places(
    scores: Sequence[float], forms: Sequence[str | None], options: BestOptions
) -> tuple[dict[int, float], str]:
    """Chooses among the answers to one question.

    Args:
        scores (sequence of `float`): Of each answer.
        forms (sequence of `str`): The [`normal_form`] of each; of equal ones the one with the best score remains.
        options ([`BestOptions`]): `keep`, `softmax_temperature` and `min_margin` are used.

    Returns:
        `tuple`: The weights of those that are kept by their place, best first, which sum to 1; or none, and why.
    """
    ranked = sorted((i for i, form in enumerate(forms) if form is not None), key=lambda i: -scores[i])
    first: dict[str, int] = {}
    for i in ranked:
        first.setdefault(cast(str, forms[i]), i)
    places = list(first.values())
    if not places:
        return {}, "without a well-formed answer"
    top = scores[places[0]]
    if top - scores[places[-1]] < options.min_margin:
        return {}, "below the margin"
    if options.keep == "best":
        return {places[0]: 1.0}, ""
    weights = {i: math.exp((scores[i] - top) / options.softmax_temperature) for i in places}
    total = math.fsum(weights.values())
    weights = {i: weight for i, weight in weights.items() if weight >= LEAST_SHARE * total}
    total = math.fsum(weights.values())
    return {i: weight / total for i, weight in weights.items()}, ""


def kept_answers(
    options: BestOptions, scored: Iterable[Scored], counts: Counter[str]
) -> Iterator[tuple[int, int, float]]:
    """Yields what is kept: the number of the question, the place of the answer among its texts, and its weight.

    What is left out is counted. A question that was asked before, of the same images, gives each answer once.
    """
    given = listed_choices(options.choices) if options.choices else []
    known: set[Hashable] = set()
    for number, asked in enumerate(scored):
        row, malformed = asked.row, set()
        forms: list[str | None] = []
        for text in asked.texts:
            with naming(row.group.where):
                forms.append(normal_form(text, completion_text(row.group.prompt), row.choices or given))
            malformed |= {text} if forms[-1] is None else set()
        counts["samples"] += len(asked.answers)
        counts["empty"] += sum(not usable(answer) for answer in asked.answers)
        counts["malformed"] += sum(answer.strip() in malformed for answer in asked.answers)
        if asked.scores is None:
            continue  # failed, and counted there
        places, reason = kept_places(asked.scores, forms, options)
        if reason:
            counts[reason] += 1
        question = (json.dumps(row.group.prompt), tuple(source_key(image) for image in row.group.images))
        for i, weight in places.items():
            if (question, forms[i]) in known:
                counts["asked before"] += 1
                continue
            known.add((question, forms[i]))
            yield number, i, weight


def training_row(asked: Scored, i: int, weight: float, images: Sequence[str]) -> dict[str, Any]:
    """Returns a row of `rs-rlhf sft`, which reads the prompt as the policy was asked; `images` are paths."""
    row, text = asked.row, asked.texts[i]
    about: dict[str, Any] = {"image": images[0]} if len(images) == 1 else {"images": list(images)} if images else {}
    about |= {"weight": weight, "score": cast(list, asked.scores)[i], "source": row.group.source, "id": row.id}
    if isinstance(row.prompt, str) and row.prompt.strip():
        return {"prompt": row.prompt, "completion": text, **about}
    # A prompt of no words would be read as that of a caption, which asks for a description.
    return {"prompt": row.group.prompt, "completion": [{"role": "assistant", "content": text}], **about}


def scored_answers(
    options: BestOptions,
    rows: Sequence[QuestionRow],
    log: SampleLog,
    scorer: Callable[[], GroupScorer],
    counts: Counter[str],
) -> list[Scored]:
    """Samples (or takes `completions`) and scores what the log does not hold yet."""
    given = map(given_answers, rows) if options.policy is None else sampled_answers(options, rows, log)
    answers = list(given)
    texts = [list(candidates_of(of_row)) for of_row in answers]
    groups = [scored_group(row, of_row) for row, of_row in zip(rows, texts, strict=True)]
    if options.shuffle_reward_images:
        groups = with_other_images(groups, options.resolved_image_options(), options.seed)
    score_candidates(scorer, groups, log, counts, least=1)
    known = cast("dict[int, list[float]]", log.scores)
    scores = [
        with_spread(known[i], log.spreads.get(i)) if i in known else None if of_row else []
        for i, of_row in enumerate(texts)
    ]
    return [Scored(*parts) for parts in zip(rows, answers, texts, scores, strict=True)]


def scored_group(row: QuestionRow, texts: Sequence[str]) -> Group:
    """Returns what the score model is shown, as in GRPO: the answer inside `<answer>` if there is one, and the prompt
    without its system turns, which instruct the policy.
    """
    prompt = [message for message in row.group.prompt if message["role"] != "system"]
    answers = [extract_answer(text).strip() or text for text in texts]
    return make_group(prompt, answers, row.group.images, where=row.group.where, source=row.group.source)


def write_best(options: BestOptions, look: Look | None = None) -> None:
    """Reads or samples answers, scores them, writes the rows and prints what was counted.

    `look` is called with all scored answers and what gives the score model, before the rows are written.
    """
    output: Path = options.output
    options.check()
    check_output(output, options.overwrite)
    rows = limited(options.questions(), options.limit, options.seed)
    for row in rows:
        if row.group.prompt[-1]["role"] == "assistant":
            raise row.error("`prompt` ends with an assistant turn, expected the user's", "prompt")
    if options.choices is None and any(row.prompt == LABEL_QUESTION and not row.choices for row in rows):
        print("no class of an image is read: list the classes with --choices to drop answers that name none of them")
    images, placed = options.place(rows)
    log, scorer = open_log(options, rows), cache(partial(candidate_scorer, options, options.score_model))
    counts: Counter[str] = Counter({"rows": len(rows), "malformed": 0, "rows written": 0})
    scored = scored_answers(options, rows, log, scorer, counts)
    if look is not None:
        look(scored, scorer)
    with log.replacing(output) as lines:
        for number, i, weight in kept_answers(options, scored, counts):
            counts["rows written"] += 1
            made = training_row(scored[number], i, weight, images[number])
            lines.write(json.dumps(made, ensure_ascii=False) + "\n")
    print_counts(counts, output, placed)


def write_rows(options: BestOptions) -> None:
    """Runs `rs-rlhf data best`."""
    write_best(options)
