"""`rs-rlhf data sample-pairs`: preference pairs from a policy's own mistakes.

A policy answers every question n times. Where one answer is right (closed-ended questions), each distinct answer that
differs from it becomes rejected: this is the closed-ended construction of the paper (arXiv 2503.00743), and shows a
score model the mistakes that it will meet in RL and best-of-N, malformed answers included. Where there is no such
answer (open-ended questions) a judge orders the candidates, see `judges`.

Two answers are the same if they differ in case, white space and punctuation only; of a text with
`<answer>` the part inside counts. Kinds of rejected:
`policy_wrong`, a well-formed answer (one of the choices); `policy_malformed`, anything else; `wrong_choice`, not
sampled but drawn from the choices; `judged`. Empty answers make no row, they are counted.

While it runs, the answers are appended to `OUTPUT.partial`; a run that was killed goes on from there, and gives the
file that it would have given in one go. Left out: pairs whose chosen text is one of the policy's own right answers
(the reference is chosen, in the form in which the data has it).
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.captioned_images import check_output
from ..data.questions import QuestionRow, limited, placed_images, read_questions
from ..errors import OptionError
from ..imagery.arguments import ImageArguments, add_image_flags, image_options_from
from ..metrics import answers as answer_forms
from ..runs.sample_log import SampleLog, progress
from .judges import add_judge_options, candidates_of, judge_from, judged_pairs, judged_scores

MAX_CHOICES = 200
# Order of a list of rejected, best first: what is well-formed and likely, what is well-formed, what is not.
KIND_ORDER = ("policy_wrong", "wrong_choice", "damaged", "policy_malformed")

OF_SAMPLES = ("right", "wrong", "malformed", "empty", "duplicates")


def plain_answer(text: str) -> str:
    """Returns an answer in lower case without white space and punctuation; signs and points of numbers stay.

    Example:
        >>> plain_answer("Storage Tanks ."), plain_answer("-1.5 m")
        ('storagetanks', '-1.5m')
    """
    return re.sub(r"(?!(?<=\d)\.(?=\d)|(?<![\w.])-(?=\d))[\W_]", "", text.lower())


def closed_rejected(
    answers: Iterable[str],
    reference: str,
    choices: Sequence[str],
    *,
    max_rejected: int | None = None,
    choices_extra: int = 0,
    damaged_extra: int = 0,
    rng: random.Random | None = None,
    counts: Counter[str] | None = None,
) -> list[dict[str, Any]]:
    """Sorts a policy's answers into rejected ones.

    Args:
        answers (iterable of `str`): What the policy said.
        reference (`str`): The right answer.
        choices (sequence of `str`): The well-formed answers; may be empty.
        max_rejected (`int`, *optional*): Keep so many of the answers at most: well-formed before malformed, then the
            most frequent, which are the hardest.
        choices_extra (`int`): Also so many random choices that are neither right nor among those.
        damaged_extra (`int`): Also so many damaged forms of the right answer, see [`damaged_answers`].
        rng (`random.Random`): Draws the extra ones.
        counts (`Counter`, *optional*): Adds up `samples`, `right`, `wrong`, `malformed`, `empty`, `duplicates`.

    Returns:
        `list[dict]`: `text`, `kind`, `count` (how often it was said), best first: `policy_wrong` by how often,
        `wrong_choice`, `policy_malformed` by how often.
    """
    counts = Counter() if counts is None else counts
    right, known = plain_answer(reference), {plain_answer(choice) for choice in choices}
    found: dict[str, dict[str, Any]] = {}
    for answer in answers:
        text = answer.strip()
        plain = plain_answer(answer_forms.extract_answer(text))
        counts["samples"] += 1
        if not text or "<image>" in text:  # preference rows refuse both
            counts["empty"] += 1
        elif plain and plain == right:
            counts["right"] += 1
        else:
            kind = "policy_wrong" if plain in known else "policy_malformed"
            counts["wrong" if plain in known else "malformed"] += 1
            counts["duplicates"] += (plain or text) in found
            entry = found.setdefault(plain or text, {"text": text, "kind": kind, "count": 0})
            entry["count"] += 1
    place = {kind: i for i, kind in enumerate(KIND_ORDER)}
    kept = sorted(found.values(), key=lambda entry: (place[entry["kind"]], -entry["count"]))[:max_rejected]
    taken = {right, *(plain_answer(answer_forms.extract_answer(entry["text"])) for entry in kept)}
    free = [choice for choice in choices if plain_answer(choice) not in taken]
    rng = rng or random.Random(0)
    extra = rng.sample(free, min(choices_extra, len(free)))
    kept += [{"text": choice, "kind": "wrong_choice", "count": 0} for choice in extra]
    for _ in range(damaged_extra):
        ways = damaged_answers(reference, choices)
        ways = [[text for text in way if plain_answer(text) not in known | taken] for way in ways]
        if ways := [way for way in ways if way]:
            text = rng.choice(rng.choice(ways))
            taken.add(plain_answer(text))
            kept.append({"text": text, "kind": "damaged", "count": 0})
    return sorted(kept, key=lambda entry: place[entry["kind"]])


def damaged_answers(reference: str, choices: Sequence[str]) -> list[list[str]]:
    """Malformed answers in four ways: the right one cut short, repeated, run together with another; any choice cut.

    A score model that has not seen them rejected takes the beginning of a right answer for nearly right, and a policy
    that is rewarded by it learns to stop there; so are the first words of any other choice.

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
    return [[text for text in dict.fromkeys(way) if plain_answer(text)] for way in (cut, doubled, mixed, first)]


def preference_rows(
    row: QuestionRow, images: Sequence[str], chosen: str, rejected: Sequence[Mapping[str, Any]], form: str
) -> list[dict[str, Any]]:
    """Writes one question's preferences as rows of TRL's form.

    Args:
        row ([`QuestionRow`]): The question.
        images (sequence of `str`): Paths of its images as they are to be written.
        chosen (`str`): The better answer.
        rejected (sequence of `dict`): `text`, `kind`, `count` and what else is to be recorded, best first.
        form (`str`): `"pairs"`, a row for each rejected; or `"list"`, one row with all (then `kinds`, `counts` …
            are lists, and `kind` is the first one's).
    """

    def written(text: str) -> Any:
        return text if isinstance(row.prompt, str) else [{"role": "assistant", "content": text}]

    base: dict[str, Any] = {"prompt": row.prompt, "chosen": written(chosen)}
    shown: dict[str, Any] = {"image": images[0]} if len(images) == 1 else {"images": list(images)} if images else {}
    shown |= {"source": row.group.source}
    if not rejected:
        return []
    if form == "list":
        lists = {f"{key}s": [one[key] for one in rejected] for key in rejected[0] if key not in ("text", "kind")}
        kinds = [one["kind"] for one in rejected]
        rest = {**shown, "kind": kinds[0], "kinds": kinds, **lists, "id": row.id}
        return [{**base, "rejected": [written(one["text"]) for one in rejected], **rest}]
    out = []
    for k, one in enumerate(rejected):
        extra = {key: value for key, value in one.items() if key != "text"}
        out.append({**base, "rejected": written(one["text"]), **shown, **extra, "id": f"{row.id}#{k}"})
    return out


def _choices_of(rows: Sequence[QuestionRow], given: str | None) -> list[str]:
    """The well-formed answers: those given, or the references in the data if they are few."""
    if given is not None:
        path = Path(given)
        listed = path.read_text(encoding="utf-8").splitlines() if path.is_file() else given.split(",")
        return list(dict.fromkeys(choice.strip() for choice in listed if choice.strip()))
    found = {plain_answer(row.reference): row.reference for row in reversed(rows) if row.reference}
    return sorted(found.values()) if len(found) <= MAX_CHOICES else []


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rs-rlhf data sample-pairs",
        description="Sample a policy and make preference pairs from its wrong answers.",
        epilog="In the list form the rejected are in this order: policy_wrong, most frequent first, wrong_choice, "
        "policy_malformed. A listwise loss takes them as ranked, which within a kind only their frequency says.",
    )
    add_options(parser)
    add_judge_options(parser)
    add = parser.add_argument
    add(
        "--choices",
        metavar="A,B,… or FILE",
        help="well-formed answers, separated by commas or one a line in a file (default: the references in the data "
        f"if there are at most {MAX_CHOICES}); a row's own column `choices` goes first",
    )
    add(
        "--damaged_extra",
        "--damaged-extra",
        type=int,
        default=0,
        metavar="K",
        help="also reject K damaged forms of the right answer (cut short, repeated, run together with another; kind "
        "damaged; default: 0)",
    )
    add(
        "--choices_extra",
        "--choices-extra",
        type=int,
        default=0,
        metavar="K",
        help="also K random wrong choices as rejected, so that a score model sees all well-formed ones",
    )
    add(
        "--keep",
        choices=("all", "hard"),
        help="all distinct wrong answers, or the --max_rejected hardest (default: all, or hard where --max_rejected "
        "is given): well-formed before malformed, then the most frequent",
    )
    add("--max_rejected", "--max-rejected", type=int, metavar="M", help="see --keep (default: 1 where it is hard)")
    add(
        "--form",
        choices=("pairs", "list"),
        default="pairs",
        help="one row for each rejected answer, or one row for each question (default: pairs)",
    )
    return parser


def add_options(parser: argparse.ArgumentParser, candidates: bool = False) -> None:
    """Adds the options that say what is sampled and how; `candidates`: rows may bring their answers along."""
    add = parser.add_argument
    add(
        "--policy",
        required=not candidates,
        help="folder (a LoRA adapter's too) or hub id of a causal vision-language model"
        + " that is sampled; without it rows have `completions`, a list of texts" * candidates,
    )
    add(
        "--input",
        "--data",
        required=True,
        help="labelled or captioned images as for `rs-rlhf data pairs`, or JSONL, JSON or Parquet rows with `prompt`, "
        "`image` or `images`, and `solution` (or `answer`) or `captions`",
    )
    add(
        "--open_ended",
        "--open-ended",
        action="store_true",
        help="ask for a description of images that have captions, even if they have a class: there is no single right "
        "answer then",
    )
    add("--split", help="split of the input folder to read; train leaves out images that are also in its other splits")
    add(
        "--exclude_images_of",
        "--exclude-images-of",
        action="append",
        default=[],
        metavar="PATH[:SPLIT]",
        help="drop images whose decoded pixels occur in this other data too; may be repeated",
    )
    add(
        "--output",
        required=True,
        type=Path,
        help="JSONL file to write; image paths in it are relative to its folder"
        + ". Or a Parquet file, which holds the images" * candidates,
    )
    add(
        "--images_dir",
        "--images-dir",
        type=Path,
        help="where images that are not below the output's folder are written (default: images/SPLIT beside it)",
    )
    add("--limit", type=int, help="use at most this many rows, drawn by the seed")
    add("--overwrite", action="store_true", help="replace an existing output, and answers sampled with other settings")
    add("--seed", type=int, default=0, help="seed of all draws (default: 0)")
    add("-n", type=int, default=8, help="answers sampled for each question (default: 8)")
    add("--temperature", type=float, default=1.0, help="(default: 1.0; 0 is greedy)")
    add("--top_p", "--top-p", type=float, default=1.0, help="(default: 1.0)")
    add("--top_k", "--top-k", type=int, default=0, help="(default: 0, off)")
    add("--max_new_tokens", "--max-new-tokens", type=int, default=32, help="longest answer (default: 32)")
    add(
        "--token_budget",
        "--token-budget",
        type=int,
        default=16384,
        help="tokens of a batch's answers with their prompts at most (default: 16384)",
    )
    add("--augment", action="store_true", help=ImageArguments.__dataclass_fields__["augment"].metadata["help"])
    for name in ("min_pixels", "max_pixels"):
        text = ImageArguments.__dataclass_fields__[name].metadata["help"]
        add(f"--{name}", f"--{name.replace('_', '-')}", type=int, help=text)
    add("--dtype", help="such as bfloat16 (default: the checkpoint's)")
    add_image_flags(parser)


def sampled_answers(args: argparse.Namespace, rows: Sequence[QuestionRow], log: SampleLog) -> list[list[str]]:
    """Samples what the log does not hold yet; returns the answers of every row."""
    from dataclasses import replace

    from ..models.policies.policy import Policy

    if len(log.answers) < len(rows):
        # Paths have been resolved inside their root by now.
        options = replace(image_options_from(args), image_root=None)
        policy = Policy.from_pretrained(
            args.policy,
            image_options=options,
            min_pixels=args.min_pixels,
            max_pixels=args.max_pixels,
            dtype=args.dtype,
            augment=args.augment,
            seed=args.seed,
        )
        batches = policy.sample_batches(
            [row.group for row in rows],
            args.n,
            temperature=args.temperature,
            top_p=args.top_p,
            top_k=args.top_k,
            max_new_tokens=args.max_new_tokens,
            seed=args.seed,
            token_budget=args.token_budget,
            done=set(log.answers),
        )
        with progress(len(rows), len(log.answers), "Sampling") as advance:
            for batch, texts in batches:
                log.add_answers(batch, texts)
                advance(len(batch))
    return [log.answers[i] for i in range(len(rows))]


def _read(args: argparse.Namespace) -> tuple[list[QuestionRow], list[str]]:
    """The questions, and the well-formed answers."""
    rows = read_questions(
        args.input,
        args.split,
        image_root=args.image_root,
        exclude_images_of=args.exclude_images_of,
        open_ended=args.open_ended,
    )
    known = [row for row in rows if row.columns.get("reward_type") in (None, "", "em", "open_ended")]
    if len(known) < len(rows):
        print(f"{len(rows) - len(known)} of them left out: their reward_type is neither em nor open_ended")
    choices = _choices_of(known, args.choices)  # of all rows: a few of them do not have all classes
    rows = limited(known, args.limit, args.seed)
    unjudged = next((row for row in rows if not row.reference), None)
    if unjudged is not None and args.judge is None and args.judge_url is None and args.judge_model is None:
        raise OptionError(
            f"{unjudged.group.where}: no single right answer; give --judge, --judge_url or --judge_model to have the "
            "answers of such rows judged."
        )
    if args.choices_extra and not choices and not all(row.choices for row in rows if row.reference):
        raise OptionError(
            f"--choices_extra needs --choices: the data has more than {MAX_CHOICES} distinct references."
        )
    return rows, choices


def _run(args: argparse.Namespace) -> None:
    output: Path = args.output
    check_output(output, args.overwrite)
    if args.keep == "all" and args.max_rejected is not None:
        raise OptionError("--keep all keeps all; leave --max_rejected out or pass --keep hard.")
    rows, choices = _read(args)
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = args.images_dir or output.parent / "images" / (args.split or "all")
    images, written = placed_images(rows, output.parent, folder, args.overwrite)
    log = SampleLog.for_run(output, args, rows)
    answers = sampled_answers(args, rows, log)
    candidates = {i: candidates_of(answers[i]) for i, row in enumerate(rows) if not row.reference}
    scores = {}
    if candidates:
        texts = {i: list(own) for i, own in candidates.items()}
        scores = judged_scores(judge_from(args), {i: rows[i] for i in candidates}, texts, log)
    limit = args.max_rejected or (1 if args.keep == "hard" else None)
    counts: Counter[str] = Counter({"rows": len(rows), **dict.fromkeys((*OF_SAMPLES, "rows written"), 0)})
    with log.replacing(output) as lines:
        for i, row in enumerate(rows):
            if i in candidates:
                chosen, _, rejected = judged_pairs(candidates[i], scores[i], args.margin, args.judged)
                told = sum(candidates[i].values())
                counts.update(samples=len(answers[i]), empty=len(answers[i]) - told)
                counts.update({"duplicates": told - len(candidates[i]), "not judged": scores[i].count(None)})
            else:
                chosen = row.reference
                rejected = closed_rejected(
                    answers[i],
                    row.reference,
                    row.choices or choices,
                    max_rejected=limit,
                    choices_extra=args.choices_extra,
                    damaged_extra=args.damaged_extra,
                    rng=random.Random(f"{args.seed}:{row.id}"),
                    counts=counts,
                )
            counts.update(f"rejected, {one['kind']}" for one in rejected)
            counts["rows without a rejected"] += not rejected
            for one in preference_rows(row, images[i], chosen, rejected, args.form):
                counts["rows written"] += 1
                lines.write(json.dumps(one, ensure_ascii=False) + "\n")
    print_counts(counts)
    print(f"{counts['rows written']} rows -> {output}" + (f"; {written} images -> {folder}" if written else ""))


def print_counts(counts: Counter[str]) -> None:
    """Prints what was counted, what was sampled with its share of all samples."""
    last = ("rows without a rejected", "rows written")
    others = sorted(key for key in counts if key not in ("rows", "samples", *OF_SAMPLES, *last))
    for name in ("rows", "samples", *OF_SAMPLES, *others, *last):
        if name in counts:
            share = f"{counts[name] / counts['samples']:>9.1%}" if name in OF_SAMPLES and counts["samples"] else ""
            print(f"{name:<28}{counts[name]:>8}{share}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `rs-rlhf data sample-pairs`.

    Args:
        argv (sequence of `str`, *optional*): Command-line arguments; those of the process when left out.

    Returns:
        `int`: 0.

    Raises:
        ValueError, OSError: A mistake in the input, told in one sentence.
    """
    _run(_parser().parse_args(argv))
    return 0
