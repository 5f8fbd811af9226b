"""Judges of open-ended answers: scores that say which of a policy's candidates is the better one.

There are three: any reward callable in TRL's signature (the score model's own among them), a chat endpoint that speaks
OpenAI's protocol, and a larger vision-language model that is asked here. Each gives every answer of a row a number, or
`None` if it failed: a reply without a number, or an endpoint that does not reply, is never 0.

Left out: comparing two answers at a time (the paper's judges rank pairs; n answers would need n² requests), and
explanations of a score.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..data.group import make_group, prompt_text
from ..data.questions import QuestionRow
from ..errors import EndpointError, OptionError
from ..imagery.sources import ImageOptions
from ..metrics.answers import extract_answer
from ..models.policies.chat_client import ChatClient, endpoint_address, image_part
from ..options import imported, option
from ..runs.progress import progress
from ..runs.sample_log import SampleLog

if TYPE_CHECKING:
    from ..models.policies.policy import Policy

Scores = list[float | None]
KEY_VARIABLE = "RS_RLHF_JUDGE_KEY"  # the environment variable with the endpoint's key, if it asks for one
SCALE = 10
MAX_FAILED = 24  # rows in a row without any score that stop a run
_NUMBER = re.compile(r"(?<![\d.])-?\d+(?:\.\d+)?")
_OUT_OF = re.compile(rf"\s*(?:/|out of)\s*{SCALE}(?!\.?\d)")


@dataclass(kw_only=True)
class JudgeOptions:
    """Which judge scores answers without a single reference, and what is made of its scores."""

    judge: str | None = option(
        None,
        "a reward callable in TRL's signature that scores answers without a single reference, such as "
        "rs_rlhf.rewards.score_reward",
        metavar="MODULE.FUNCTION",
    )
    judge_url: str | None = option(
        None,
        "an OpenAI-compatible endpoint that scores them, such as http://localhost:8000/v1; its key, if it asks for "
        f"one, is read from the environment variable {KEY_VARIABLE}",
        metavar="URL",
    )
    judge_model: str | None = option(None, "a (larger) vision-language model that scores them here", metavar="PATH")
    judge_name: str = option("default", "model that the endpoint is asked for")
    margin: float = option(0.0, "judged answers make a pair only if their scores differ, and by at least this")
    judged: Literal["worst", "all"] = option("worst", "against the best answer, the worst or all others")

    def judges(self) -> list[str]:
        """Returns the flags of the judges that are named.

        Raises:
            OptionError: They are several.
        """
        named = [f"--{name}" for name in ("judge", "judge_url", "judge_model") if getattr(self, name) is not None]
        if len(named) > 1:
            raise OptionError(f"{named[1]} does not go with {named[0]}; name one judge.", named[1][2:])
        return named


class Judge(Protocol):
    """Scores the answers of questions."""

    def __call__(self, rows: Sequence[QuestionRow], answers: Sequence[Sequence[str]]) -> list[Scores]:
        """Returns a score for each answer of each row, `None` if it failed."""


def judge_text(row: QuestionRow, answer: str) -> str:
    """Returns what an endpoint or a model is asked about an answer."""
    solution = row.columns.get("solution") or row.columns.get("answer")
    known = "".join(f"\n- {text}" for text in [*row.captions, *([solution] if isinstance(solution, str) else [])])
    known = f"\n\nKnown to be right:{known}" if known else ""
    return (
        f"Rate an answer about the image from 0 (wrong or useless) to {SCALE} (right, complete and precise). "
        f"Reply with the number only.{known}\n\nQuestion: {prompt_text(row.group.prompt)}\nAnswer: {answer}"
    )


def score_of(reply: str) -> float | None:
    """Returns the one number of a reply if it is on the scale; `None` if there is none, or several.

    Example:
        >>> score_of("Score: 7/10."), score_of("good"), score_of("the 2 ponds: 7"), score_of("11")
        (7.0, None, None, None)
    """
    numbers = [float(number) for number in _NUMBER.findall(_OUT_OF.sub("", extract_answer(reply)))]
    return numbers[0] if len(numbers) == 1 and 0 <= numbers[0] <= SCALE else None


class RewardJudge:
    """A reward callable in TRL's signature, by its dotted path, see [`imported`]."""

    def __init__(self, name: str) -> None:
        self.name, self.reward = name, imported(name, "judge")

    def __call__(self, rows: Sequence[QuestionRow], answers: Sequence[Sequence[str]]) -> list[Scores]:
        """Scores the answers of each row."""
        flat = [(row, answer) for row, texts in zip(rows, answers, strict=True) for answer in texts]
        plain = all(isinstance(row.prompt, str) for row in rows)
        completions: list[Any] = [text if plain else [{"role": "assistant", "content": text}] for _, text in flat]
        prompts = [row.prompt if plain else row.group.prompt for row, _ in flat]
        names = sorted({key for row in rows for key in row.columns} - {"prompts", "completions"})
        columns: dict[str, list[Any]] = {name: [row.columns.get(name) for row, _ in flat] for name in names}
        columns |= {"images": [row.group.images for row, _ in flat], "captions": [row.captions for row, _ in flat]}
        scores = self.reward(prompts=prompts, completions=completions, **columns)
        if len(scores) != len(flat):
            raise OptionError(f"--judge {self.name} gave {len(scores)} rewards for {len(flat)} answers.")
        supply = iter(scores)
        return [[None if (s := next(supply)) is None or s != s else float(s) for _ in texts] for texts in answers]


class EndpointJudge:
    """A chat endpoint that speaks OpenAI's protocol; images are sent as data URLs.

    Args:
        url (`str`): Base address, such as `"http://localhost:8000/v1"`.
        model (`str`): Name of the model that is asked for.
        image_options ([`ImageOptions`], *optional*): How images are found and read.
        parallel (`int`): Requests at a time.
        timeout, tries, wait: As for [`ChatClient`].

    Raises (on call):
        OptionError: The endpoint refuses the key or does not know the address or the model (401, 403, 404).
    """

    def __init__(
        self,
        url: str,
        model: str = "default",
        image_options: ImageOptions | None = None,
        *,
        parallel: int = 8,
        timeout: float = 120.0,
        tries: int = 4,
        wait: float = 1.0,
    ) -> None:
        self.url = endpoint_address(url)
        self.model, self.options = model, image_options or ImageOptions()
        self.parallel, self.client = parallel, (timeout, tries, wait)

    def __call__(self, rows: Sequence[QuestionRow], answers: Sequence[Sequence[str]]) -> list[Scores]:
        """Scores the answers of each row."""
        out: list[Scores] = []
        with ChatClient(self.url, (KEY_VARIABLE,), *self.client) as client, ThreadPoolExecutor(self.parallel) as pool:
            for row, texts in zip(rows, answers, strict=True):
                images = [image_part(image, self.options, row.group.where) for image in row.group.images]
                contents = [[*images, {"type": "text", "text": judge_text(row, answer)}] for answer in texts]
                out.append(list(pool.map(lambda content: self._ask(client, content), contents)))
        return out

    def _ask(self, client: ChatClient, content: list[dict[str, Any]]) -> float | None:
        messages = [{"role": "user", "content": content}]
        body = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": 512}
        try:
            return score_of(client.ask(body))
        except EndpointError as error:
            if error.status in (401, 403, 404):
                detail = f"the judge at {error}; check --judge_url, --judge_name and the key in {KEY_VARIABLE}."
                raise OptionError(detail, "judge_url") from None
            return None


class ModelJudge:
    """A vision-language model asked here, through [`Policy`].

    Args:
        policy ([`Policy`]): The model.
        max_new_tokens (`int`): Longest reply.
    """

    def __init__(self, policy: Policy, max_new_tokens: int = 16) -> None:
        self.policy, self.max_new_tokens = policy, max_new_tokens

    def __call__(self, rows: Sequence[QuestionRow], answers: Sequence[Sequence[str]]) -> list[Scores]:
        """Scores the answers of each row."""
        items = [
            make_group(judge_text(row, answer).replace("<image>", ""), [], row.group.images, where=row.group.where)
            for row, texts in zip(rows, answers, strict=True)
            for answer in texts
        ]
        replies = self.policy.sample(items, temperature=0, max_new_tokens=self.max_new_tokens, show_progress=False)
        supply = iter(replies)
        return [[score_of(next(supply)[0]) for _ in texts] for texts in answers]


def judge_from(options: JudgeOptions, image_options: ImageOptions, dtype: str | None) -> Judge | None:
    """Makes the judge that the options name; `None` if they name none."""
    if options.judge is not None:
        return RewardJudge(options.judge)
    if options.judge_url is not None:
        return EndpointJudge(options.judge_url, options.judge_name, image_options)
    if options.judge_model is not None:
        from ..models.policies.load import load_policy

        return ModelJudge(load_policy(options.judge_model, image_options=image_options, dtype=dtype))
    return None


def judged_scores(
    judge: Judge | None,
    rows: Mapping[int, QuestionRow],
    candidates: Mapping[int, Iterable[str]],
    log: SampleLog,
    size: int = 8,
) -> dict[int, Scores]:
    """Scores the candidates of rows that the log does not hold yet.

    A row none of whose answers got a score is not recorded, so that a restarted run asks again.

    Raises:
        OptionError: Nothing was scored in [`MAX_FAILED`] rows in a row, so the judge is out of order.
    """
    texts = {i: list(candidates[i]) for i in rows}
    todo = [i for i in rows if i not in log.scores and texts[i]]
    if judge is None or not rows:
        return {}
    failed_rows = 0
    with progress(len(rows), len(rows) - len(todo), "Judging") as advance:
        for start in range(0, len(todo), size):
            part = todo[start : start + size]
            scored = zip(part, judge([rows[i] for i in part], [texts[i] for i in part]), strict=True)
            good = {i: scores for i, scores in scored if any(score is not None for score in scores)}
            if good:
                log.add_scores(list(good), list(good.values()))
            failed_rows = 0 if good else failed_rows + len(part)
            if failed_rows >= MAX_FAILED:
                raise OptionError(
                    f"the judge gave no score to any answer of {failed_rows} rows in a row; see that it runs and "
                    "replies with a number, then restart: what was sampled and judged is kept."
                )
            advance(len(part))
    return {i: log.scores.get(i, [None] * len(texts[i])) for i in rows}


def judged_pairs(
    candidates: Mapping[str, int], scores: Scores, margin: float = 0.0, against: str = "worst"
) -> tuple[str, float, list[dict[str, Any]]]:
    """Makes the best answer chosen and the worst, or (`against="all"`) all others, rejected.

    `candidates` are distinct answers and how often each was given, `scores` theirs (`None` after a failure). Returns
    the chosen text, its score, and the rejected ones, best to worst, as [`preference_rows`] takes them: none if
    nothing lies `margin` below the best. Equal scores never make a pair.
    """
    scored = zip(candidates.items(), scores, strict=True)
    ranked = [(score, count, text) for (text, count), score in scored if score is not None]
    ranked.sort(key=lambda entry: (-entry[0], -entry[1]))
    if not ranked:
        return "", 0.0, []
    best, _, chosen = ranked[0]
    below = [entry for entry in ranked[1:] if entry[0] < best and best - entry[0] >= margin]
    rejected = [
        {"text": text, "kind": "judged", "count": count, "chosen_score": best, "rejected_score": score}
        for score, count, text in (below if against == "all" else below[-1:])
    ]
    return chosen, best, rejected
