"""Preference pairs from a policy's own mistakes: `rs-rlhf data sample-pairs`.

A policy answers every question n times. If one answer is right (closed-ended questions), each distinct answer that
differs from it becomes rejected: this is the closed-ended construction of the paper (arXiv 2503.00743). It shows a
score model the mistakes that it will meet in RL and best-of-N, malformed answers included. If there is no such answer
(open-ended questions), a judge orders the candidates, see `judges`.

An answer is right by the strict metric of evaluation (`metrics.closed_answers`); two answers are the same if that
metric reads the same in them. Kinds of rejected answers: `policy_wrong`, a well-formed one (one of the choices);
`policy_malformed`, anything else; `wrong_choice`, not sampled but drawn from the choices; `damaged`; `judged`. Empty
answers are counted and make no row.

Answers are appended to `OUTPUT.partial` as they come; a run that was killed resumes from there and writes the same
file. Left out: pairs whose chosen text is one of the policy's own right answers (the reference is chosen, in the form
in which the data has it).
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

from ..data.placed_images import check_output
from ..data.questions import QuestionRow, limited
from ..errors import OptionError
from ..metrics.closed_answers import judge_solution
from ..metrics.quantities import plain
from ..options import option
from .candidates import (
    OF_SAMPLES,
    CandidateOptions,
    candidates_of,
    listed_choices,
    open_log,
    print_counts,
    sampled_answers,
    usable,
)
from .judges import JudgeOptions, judge_from, judged_pairs, judged_scores

MAX_CHOICES = 200
# Order of a list of rejected answers, best first: well-formed and likely, well-formed, malformed.
KIND_ORDER = ("policy_wrong", "wrong_choice", "damaged", "policy_malformed")


@dataclass(kw_only=True)
class RejectedOptions:
    """Which wrong answers to a closed-ended question become rejected."""

    damaged_extra: int = option(
        0,
        "also reject K damaged forms of the right answer (cut short, repeated, run together with another; kind "
        "damaged)",
        metavar="K",
    )
    choices_extra: int = option(
        0, "also K random wrong choices as rejected, so that a score model sees all well-formed ones", metavar="K"
    )
    keep: Literal["all", "hard"] | None = option(
        None,
        "all distinct wrong answers, or the --max_rejected hardest (default: all, or hard with --max_rejected): "
        "well-formed before malformed, then the most frequent",
    )
    max_rejected: int | None = option(None, "see --keep (default: 1 if it is hard)", metavar="M")


@dataclass(kw_only=True)
class SamplePairsOptions(RejectedOptions, JudgeOptions, CandidateOptions):
    """Sample a policy and make preference pairs from its wrong answers.

    In the list form the rejected are in this order: policy_wrong, most frequent first, wrong_choice, damaged,
    policy_malformed. A listwise loss takes them as ranked; within a kind only their frequency ranks them.
    """

    policy: str = option(
        help="folder (a LoRA adapter's too) or hub id of a causal vision-language model that is sampled"
    )
    choices: str | None = option(
        None,
        "well-formed answers, separated by commas or one a line in a file (default: the references in the data if "
        f"there are at most {MAX_CHOICES}); a row's own column `choices` goes first",
        metavar="A,B,… or FILE",
    )
    form: Literal["pairs", "list"] = option("pairs", "one row for each rejected answer, or one row for each question")


def closed_rejected(
    answers: Iterable[str],
    reference: str,
    choices: Sequence[str],
    options: RejectedOptions,
    rng: random.Random,
    counts: Counter[str] | None = None,
    listed: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Sorts a policy's answers into rejected ones, and adds those that the options ask for, drawn by `rng`.

    `choices` are the well-formed answers, `listed` those that the question itself lists (an answer may give the letter
    of one). Returns `text`, `kind` and `count` (how often it was sampled) of each, best first: in [`KIND_ORDER`], then
    by count. `counts` adds up `samples`, `right`, `wrong`, `malformed`, `empty` and `duplicates`.
    """
    counts = Counter() if counts is None else counts
    read = partial(_said, reference=reference, listed=tuple(listed))
    known = {read(choice)[0] for choice in choices}
    entries: dict[str, dict[str, Any]] = {}
    for answer in answers:
        text = answer.strip()
        form, right = read(text)
        counts["samples"] += 1
        if not usable(text):
            counts["empty"] += 1
        elif right:
            counts["right"] += 1
        else:
            kind = "policy_wrong" if form in known else "policy_malformed"
            counts["wrong" if form in known else "malformed"] += 1
            counts["duplicates"] += form in entries
            entries.setdefault(form, {"text": text, "kind": kind, "count": 0})["count"] += 1
    kept = sorted(entries.values(), key=lambda entry: (KIND_ORDER.index(entry["kind"]), -entry["count"]))
    kept = kept[: options.max_rejected or (1 if options.keep == "hard" else None)]
    taken = {read(entry["text"])[0] for entry in kept}
    free = [choice for choice in choices if not read(choice)[1] and read(choice)[0] not in taken]
    extra = [(choice, "wrong_choice") for choice in rng.sample(free, min(options.choices_extra, len(free)))]
    ways = _damaged(reference, tuple(choices), tuple(listed)) if options.damaged_extra else []
    for _ in range(options.damaged_extra):
        left = [[text for text in way if read(text)[0] not in known | taken] for way in ways]
        if left := [way for way in left if way]:
            text = rng.choice(rng.choice(left))
            taken.add(read(text)[0])
            extra.append((text, "damaged"))
    kept += [{"text": text, "kind": kind, "count": 0} for text, kind in extra]
    return sorted(kept, key=lambda entry: KIND_ORDER.index(entry["kind"]))


@lru_cache(maxsize=65536)  # a task has few right answers, and a policy repeats itself
def _said(text: str, reference: str, listed: tuple[str, ...]) -> tuple[str, bool]:
    """What an answer says (if it is unparseable its own words), and whether it is right."""
    verdict = judge_solution(text, reference, listed)
    assert verdict is not None  # a reference is a text that is not empty
    return verdict["answer"] or plain(text) or text, verdict["strict"]


@lru_cache(maxsize=1024)
def _damaged(reference: str, choices: tuple[str, ...], listed: tuple[str, ...]) -> list[list[str]]:
    ways = damaged_answers(reference, choices)
    return [[text for text in way if not _said(text, reference, listed)[1]] for way in ways]


def damaged_answers(reference: str, choices: Sequence[str]) -> list[list[str]]:
    """Malformed answers of four kinds: the right one cut short, repeated, run together with another; any choice cut.

    A score model that has not seen them rejected takes the beginning of a right answer for nearly right, and a policy
    that is rewarded by it learns to stop there.

    Args:
        reference (`str`): The right answer.
        choices (sequence of `str`): The well-formed answers.

    Example:
        >>> damaged_answers("sea port", ["sea port", "forest"])[2]
        ['sea port forest', 'sea forest']
    """
    words = reference.split()
    if not words:
        return []
    cut = [reference[:k].strip() for k in range(2, len(reference))] + words[1:]
    doubled = [f"{reference} {words[-1]}", f"{words[0]} {reference}", f"{reference} {reference}"]
    mixed = [f"{reference} {choice}" for choice in choices if choice != reference]
    mixed += [f"{words[0]} {choice.split()[-1]}" for choice in choices if choice.split() and choice != reference]
    first = [" ".join(choice.split()[:k]) for choice in choices for k in range(1, len(choice.split()))]
    return [[text for text in dict.fromkeys(way) if plain(text)] for way in (cut, doubled, mixed, first)]


def preference_rows(
    row: QuestionRow, images: Sequence[str], chosen: str, rejected: Sequence[Mapping[str, Any]], form: str
) -> list[dict[str, Any]]:
    """Writes one question's preferences as rows of TRL's form: a row for each rejected answer, or one list with all.

    `images` are the paths to be written; each of `rejected`, best first, has `text`, `kind`, `count` and what else is
    to be recorded. In a list `kinds`, `counts`, … are lists, and `kind` is the first one's.
    """

    def written(text: str) -> str | list[dict[str, str]]:
        return text if isinstance(row.prompt, str) else [{"role": "assistant", "content": text}]

    if not rejected:
        return []
    base: dict[str, Any] = {"prompt": row.prompt, "chosen": written(chosen)}
    about: dict[str, Any] = {"image": images[0]} if len(images) == 1 else {"images": list(images)} if images else {}
    about |= {"source": row.group.source}
    if form == "list":
        lists = {f"{key}s": [entry[key] for entry in rejected] for key in rejected[0] if key not in ("text", "kind")}
        kinds = [entry["kind"] for entry in rejected]
        about |= {"kind": kinds[0], "kinds": kinds, **lists, "id": row.id}
        return [{**base, "rejected": [written(entry["text"]) for entry in rejected], **about}]
    rows = []
    for number, entry in enumerate(rejected):
        extra = {key: value for key, value in entry.items() if key != "text"}
        rows.append({**base, "rejected": written(entry["text"]), **about, **extra, "id": f"{row.id}#{number}"})
    return rows


def _choices_of(rows: Sequence[QuestionRow], given: str | None) -> list[str]:
    """The well-formed answers: those given, or the references in the data if they are few."""
    if given is not None:
        return listed_choices(given)
    references = {plain(row.reference): row.reference for row in reversed(rows) if row.reference}
    return sorted(references.values()) if len(references) <= MAX_CHOICES else []


def _read(options: SamplePairsOptions) -> tuple[list[QuestionRow], list[str]]:
    """The questions, and the well-formed answers."""
    judges, rows = options.judges(), options.questions()
    judged = ("em", "math", "count", "open_ended")
    known = [row for row in rows if row.columns.get("reward_type") in (None, "", *judged)]
    if len(known) < len(rows):
        print(f"{len(rows) - len(known)} of them left out: their reward_type is none of {', '.join(judged)}")
    choices = _choices_of(known, options.choices)  # of all rows: a few of them do not have all classes
    rows = limited(known, options.limit, options.seed)
    unjudged = next((row for row in rows if not row.reference), None)
    if unjudged is not None and not judges:
        detail = "no single right answer; give --judge, --judge_url or --judge_model to have such answers judged."
        raise OptionError(detail, "judge", unjudged.group.where)
    if options.choices_extra and not choices and not all(row.choices for row in rows if row.reference):
        detail = f"--choices_extra needs --choices: the data has more than {MAX_CHOICES} distinct references."
        raise OptionError(detail, "choices")
    return rows, choices


def sample_pairs(options: SamplePairsOptions) -> None:
    """Samples a policy, writes the preference rows made from its mistakes, and prints what was counted."""
    output = options.output
    check_output(output, options.overwrite)
    if options.keep == "all" and options.max_rejected is not None:
        raise OptionError("--keep all keeps all; leave --max_rejected out or pass --keep hard.", "max_rejected")
    rows, choices = _read(options)
    images, placed = options.place(rows)
    log = open_log(options, rows)
    answers = sampled_answers(options, rows, log)
    candidates = {i: candidates_of(answers[i]) for i, row in enumerate(rows) if not row.reference}
    judge = judge_from(options, options.resolved_image_options(), options.dtype) if candidates else None
    scores = judged_scores(judge, {i: rows[i] for i in candidates}, candidates, log)
    counts: Counter[str] = Counter({"rows": len(rows), **dict.fromkeys((*OF_SAMPLES, "rows written"), 0)})
    with log.replacing(output) as lines:
        for i, row in enumerate(rows):
            if i in candidates:
                chosen, _, rejected = judged_pairs(candidates[i], scores[i], options.margin, options.judged)
                usable_count = candidates[i].total()
                counts.update(samples=len(answers[i]), empty=len(answers[i]) - usable_count)
                counts.update({"duplicates": usable_count - len(candidates[i]), "not judged": scores[i].count(None)})
            else:
                chosen = row.reference
                rng = random.Random(f"{options.seed}:{row.id}")
                rejected = closed_rejected(
                    answers[i], chosen, row.choices or choices, options, rng, counts, row.choices
                )
            counts.update(f"rejected, {entry['kind']}" for entry in rejected)
            counts["rows without a rejected"] += not rejected
            for made in preference_rows(row, images[i], chosen, rejected, options.form):
                counts["rows written"] += 1
                lines.write(json.dumps(made, ensure_ascii=False) + "\n")
    print_counts(counts, output, placed)
