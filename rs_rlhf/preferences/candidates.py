"""Candidate answers to questions: the options of sampling them, their scores, the log to resume from, what is counted.

Shared by `rs-rlhf data sample-pairs`, `data dpo` and `data best`. Left out: which candidate becomes chosen
(`mistakes`, `judges`, `dpo`, `best`).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.captioned_images import InputOptions
from ..data.group import Group, short
from ..data.placed_images import OutputOptions
from ..data.questions import QuestionRow, placed_images, questions_hash, read_questions
from ..data.survey import require_images
from ..errors import DataError
from ..imagery.arguments import READING, ImageArguments
from ..imagery.sources import ImageOptions
from ..metrics.answers import message_text
from ..options import option
from ..runs.progress import progress
from ..runs.sample_log import SampleLog
from ..scoring.base import GroupScorer
from ..scoring.cards import model_stamp
from ..scoring.comparison import Chooser, check_best_of_n
from ..scoring.load import load_scorer
from ..scoring.several import SeveralOptions

if TYPE_CHECKING:
    from ..models.policies.policy import Policy

# The options that answers depend on.
SETTINGS = (
    *("policy", "input", "split", "limit", "seed", "n", "temperature", "top_p", "top_k", "max_new_tokens"),
    *("token_budget", "augment", "min_pixels", "max_pixels", "dtype", *READING),
)
CHUNK = 256  # groups that are scored, and recorded, at a time
OF_SAMPLES = ("right", "wrong", "malformed", "empty", "duplicates")


@dataclass(kw_only=True)
class CandidateOptions(ImageArguments, InputOptions, OutputOptions):
    """Which questions are read, how a policy is sampled on them, and where the rows are written."""

    policy: str | None = option(
        None,
        "folder (a LoRA adapter's too) or hub id of a causal vision-language model that is sampled; without it rows "
        "have `completions`, a list of texts",
        reads="policy",
    )
    input: str = option(
        help="labelled or captioned images as for `rs-rlhf data pairs`, or JSONL, JSON or Parquet rows with `prompt`, "
        "`image` or `images`, and `solution` (or `answer`) or `captions`",
        flags=["--data"],
    )
    open_ended: bool = option(
        False,
        "ask for a description of images that have captions, even if they have a class: there is no single right "
        "answer then",
    )
    limit: int | None = option(None, "use at most this many rows, drawn by the seed")
    overwrite: bool = option(False, "replace an existing output, and answers sampled with other settings")
    n: int = option(8, "answers sampled for each question", flags=["-n"])
    temperature: float = option(1.0, "0 is greedy")
    top_p: float = option(1.0, "share of the probability that tokens are drawn from")
    top_k: int = option(0, "number of tokens that are drawn from; 0 is all")
    max_new_tokens: int = option(32, "longest answer")
    token_budget: int = option(16384, "most tokens of a batch's answers with their prompts")
    dtype: str | None = option(None, "such as bfloat16 (default: the checkpoint's)")

    def resolved_image_options(self) -> ImageOptions:
        """Returns how images are read whose paths have been resolved inside their root."""
        return replace(self.reader_options(), image_root=None)

    def questions(self) -> list[QuestionRow]:
        """Reads the questions; see [`read_questions`]."""
        rows = read_questions(
            self.input,
            self.split,
            image_root=self.image_root,
            exclude_images_of=self.exclude_images_of,
            open_ended=self.open_ended,
            columns=self.named_columns(),
        )
        require_images(sum(len(row.group.images) for row in rows), self.input, self.named_columns(), self.image_root)
        return rows

    def place(self, rows: Sequence[QuestionRow]) -> tuple[list[list[str]], str]:
        """Finds or writes the images beside the output: their paths for each row, and what to print about it."""
        folder = self.images_dir or self.output.parent / "images" / (self.split or "all")
        images, written = placed_images(rows, self.output.parent, folder, self.overwrite)
        return images, f"; {written} images -> {folder}" if written else ""


def sampled_answers(options: CandidateOptions, rows: Sequence[QuestionRow], log: SampleLog) -> list[list[str]]:
    """Samples the answers that the log does not hold yet; returns the answers of every row."""
    if len(log.answers) < len(rows):
        from ..models.policies.sampling import SamplingOptions

        sampling = SamplingOptions.from_command(options)
        batches = _policy(options).sample_batches([row.group for row in rows], sampling, done=set(log.answers))
        with progress(len(rows), len(log.answers), "Sampling") as advance:
            for batch, texts in batches:
                log.add_answers(batch, texts)
                advance(len(batch))
    return [log.answers[i] for i in range(len(rows))]


def _policy(options: CandidateOptions) -> Policy:
    from ..models.policies.load import load_policy

    return load_policy(
        str(options.policy),
        image_options=options.resolved_image_options(),
        min_pixels=options.min_pixels,
        max_pixels=options.max_pixels,
        dtype=options.dtype,
        augment=options.augment,
        seed=options.seed,
    )


def candidate_scorer(options: CandidateOptions, model: str) -> GroupScorer:
    """Loads the score model, or several, of a command that orders candidates."""
    several = options.several() if isinstance(options, SeveralOptions) else {}
    more = {"dtype": options.dtype, "standards": options.output.parent, **several}
    return load_scorer(model, options.resolved_image_options(), **more)


def compare_first(
    options: CandidateOptions, model: str, rows: Sequence[QuestionRow], limit: int, folder: Path
) -> None:
    """Compares a score model's choice among N answers with the greedy answer on at most `limit` labelled rows, in a
    folder, see [`check_best_of_n`]; without a policy to sample nothing is compared.
    """
    if options.policy is None or not limit or options.n < 2 or not options.temperature:
        return
    from ..models.policies.sampling import SamplingOptions

    by = [model, model_stamp(model)]
    if isinstance(options, SeveralOptions):
        by += options.combination(model).values()
    check_best_of_n(
        partial(_policy, options),
        Chooser(by, partial(candidate_scorer, options, model)),
        rows,
        SamplingOptions.from_command(options),
        folder,
        limit=limit,
        settings=options.recorded(SETTINGS) | {"policy_hash": model_stamp(options.policy)},
    )


def given_answers(row: QuestionRow) -> list[str]:
    """Returns the texts of a row's column `completions`; a [`DataError`] if it is no list of texts."""
    completions = row.columns.get("completions")
    if not isinstance(completions, list) or not all(isinstance(text, (str, list)) for text in completions):
        detail = f"`completions` is {short(completions)}, expected a list of texts; give --policy to sample them"
        raise DataError(detail, "completions", row.group.where)
    return [message_text(text) for text in completions]


def score_candidates(
    scorer_of: Callable[[], GroupScorer], groups: Sequence[Group], log: SampleLog, counts: Counter[str], least: int
) -> None:
    """Scores the groups of `least` or more completions that the log does not hold; what fails is counted."""
    todo = [i for i, group in enumerate(groups) if len(group.completions) >= least and i not in log.scores]
    if not todo:
        return
    scorer = scorer_of()
    with progress(len(groups), len(groups) - len(todo), "Scoring") as advance:
        for start in range(0, len(todo), CHUNK):
            part = todo[start : start + CHUNK]
            scored = scorer.score_groups([groups[i] for i in part], on_error="return", show_progress=False)
            good: dict[int, list[float]] = {}
            for i, scores in zip(part, scored, strict=True):
                if not isinstance(scores, Exception) and all(map(math.isfinite, scores)):
                    good[i] = scores
                    continue
                counts["failed"] += 1
                reason = scores if isinstance(scores, Exception) else f"{groups[i].where}: a score is not finite"
                print(f"left out: {reason}")
            log.add_scores(list(good), list(good.values()))
            advance(len(part))


def open_log(options: CandidateOptions, rows: Sequence[QuestionRow]) -> SampleLog:
    """Opens the log of a command; with `--overwrite` one with other settings is started anew."""
    settings = options.recorded(SETTINGS)
    settings |= {"policy_files": model_stamp(options.policy), "rows_sha256": questions_hash(rows)}
    models = [getattr(options, name, None) for name in ("model", "score_model", "judge_model")]
    judges = [getattr(options, name, None) for name in ("judge", "judge_url", "judge_name")]
    if isinstance(options, SeveralOptions):
        judges += options.combination(models[0] or models[1]).values()
    if getattr(options, "shuffle_reward_images", False):
        judges.append("shuffle_reward_images")
    by = json.dumps([*models, *map(model_stamp, models), *judges])
    return SampleLog.beside(options.output, settings, by, anew=options.overwrite)


def listed_choices(given: str) -> list[str]:
    """Returns the distinct choices of an option: a file with one a line, or texts between commas."""
    path = Path(given)
    listed = path.read_text(encoding="utf-8").splitlines() if path.is_file() else given.split(",")
    return list(dict.fromkeys(choice.strip() for choice in listed if choice.strip()))


def usable(answer: str) -> bool:
    """Whether preference rows accept an answer: it is not empty and has no image placeholder."""
    return bool(answer.strip()) and "<image>" not in answer


def candidates_of(answers: Sequence[str]) -> Counter[str]:
    """Returns the distinct, usable answers with how often each was given, in the order of first mention."""
    return Counter(answer.strip() for answer in answers if usable(answer))


def print_counts(counts: Counter[str], output: Path, images: str) -> None:
    """Prints a table of counts (what was sampled with its share of all samples), and what was written."""
    last = ("rows without a rejected", "rows written")
    others = sorted(key for key in counts if key not in ("rows", "samples", *OF_SAMPLES, *last))
    for name in ("rows", "samples", *OF_SAMPLES, *others, *last):
        if name in counts:
            share = f"{counts[name] / counts['samples']:>9.1%}" if name in OF_SAMPLES and counts["samples"] else ""
            print(f"{name:<28}{counts[name]:>8}{share}")
    print(f"{counts['rows written']} rows -> {output}{images}")
