"""Whether the reward can be trusted, seen from within a GRPO run.

A policy can learn to please a score model that it has outgrown: the reward rises while answers get worse. So every
step's rollouts are compared with the known solutions where there are any (`audit/accuracy` beside `score/mean`), with
their length (`audit/score_length_correlation`), and every `audit_steps` with the scores for another prompt's image
(`audit/shuffle_gap`: zero means that the reward does not look). Several score models disagree more
(`audit/disagreement`) once the policy says what they were not trained on. At every evaluation the same validation
prompts are answered greedily (`eval_audit/greedy_accuracy`), so that one prompt can be followed over time. A failure
of the audit never stops the run: what it cannot judge or write is left out, counted where it is a row, and said once.

Left out: judging open-ended answers, for which there is no solution to compare with.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from PIL.Image import Image

from ...data.group import Group, short
from ...data.other_images import with_other_images
from ...metrics import answers
from ...metrics.closed_answers import judge_solution
from ...runs.tables import thumbnail, write_table
from ...scoring.base import spread
from .._compat import Row, add_metric, set_metrics

if TYPE_CHECKING:
    from ..grpo import VisionGRPOTrainer

logger = logging.getLogger(__name__)

TYPES = {
    "step": "int64",
    "prompt": "string",
    "completion": "string",
    "reward": "float32",
    "score": "float32",
    "solution": "string",
    "correct": "bool",
}


class RolloutAudit:
    """Watches the rollouts of a [`VisionGRPOTrainer`].

    Args:
        trainer ([`VisionGRPOTrainer`]): Its metrics are added to, and its options used.
    """

    def __init__(self, trainer: VisionGRPOTrainer) -> None:
        self.trainer = trainer
        self.rows: list[dict[str, Any]] = []
        self.evaluated: list[dict[str, Any]] = []  # rows of the evaluation under way
        self.said: set[str] = set()  # what has been said once
        self.measured = -1  # the step of the last shuffle gap
        self.before: list[Group] = []  # groups of that step: other images for a process with rollouts of one prompt

    def observe(
        self,
        inputs: Sequence[Row],
        prompts: Sequence,
        completions: Sequence,
        ids: Sequence[Sequence[int]],
        rewards: torch.Tensor,
    ) -> None:
        """Adds the metrics of one generation batch; every process must call it.

        Rows (images read), prompts, completions and token ids are those of this process, `rewards` (all rows, rewards)
        those of all processes.
        """
        trainer = self.trainer
        mode = "train" if trainer.model.training else "eval"
        scores: list[float | None] = [None] * len(completions)
        with self._apart("scores are not known"):
            scores = self._scores(len(completions))
        texts = [_text(completion) for completion in completions]
        start = trainer.accelerator.process_index * len(texts)
        weighted = rewards[start : start + len(texts)] * trainer.reward_weights.to(rewards.device)
        totals = [None if row.isnan().all() else row.nansum().item() for row in weighted]
        rows = [
            {**self._judged(text, row), "length": len(tokens), "score": score, "score_std": spread(score)}
            for text, row, tokens, score in zip(texts, inputs, ids, scores, strict=True)
        ]
        gathered = trainer.gathered(rows)
        if mode == "eval":  # over all rows so far: TRL averages batches, and a last one may be of 3 rows
            self.evaluated += gathered
            set_metrics(trainer, mode, audit_metrics(self.evaluated))
            return
        for name, value in audit_metrics(gathered).items():
            add_metric(trainer, mode, name, [value])
        every, step = trainer.options.audit_steps, trainer.state.global_step
        # Once in so many steps, even if rollouts are made several times in a step, or not in every one.
        if every and step // every > self.measured // every and trainer.score_reward is not None:
            self.measured = step
            self._shuffle_gap(prompts, completions, inputs)
        shown = trainer.options.logged_samples if trainer.accelerator.is_main_process else 0
        self.rows = [
            {
                "prompt": _prompt(prompts[i]),
                "completion": texts[i],
                "reward": totals[i],
                "score": scores[i],
                "solution": _shown(inputs[i].get("solution")),
                "correct": rows[i]["correct"],
                "picture": _picture(inputs[i]),
            }
            for i in _spread(len(texts), shown)
        ]

    def _shuffle_gap(self, prompts: Sequence, completions: Sequence, inputs: Sequence[Row]) -> None:
        """Mean score with the right image minus with another prompt's, over this process's rollouts, then all."""
        reward = self.trainer.score_reward
        assert reward is not None
        groups: list[Group] = []
        others: list[Group] = []
        with self._apart("shuffle_gap is not measured"):
            columns = {key: [row.get(key) for row in inputs] for key in inputs[0] if key != "prompt"}
            groups, _ = reward.layout(prompts, completions, columns)
            others = with_other_images([*groups, *self.before])[: len(groups)]
        self.before = groups[:2]
        both = reward.score_groups([*groups, *others])
        gaps = []
        for group, other, right, wrong in zip(groups, others, both[: len(groups)], both[len(groups) :], strict=True):
            if group.images is not other.images and isinstance(right, list) and isinstance(wrong, list):
                gaps += [a - b for a, b in zip(right, wrong, strict=True) if math.isfinite(a - b)]
        gaps = self.trainer.gathered(gaps)
        if gaps:
            add_metric(self.trainer, "train", "audit/shuffle_gap", [math.fsum(gaps) / len(gaps)])

    def write_rollouts(self) -> None:
        """Writes the last rollouts with thumbnails to `OUTPUT_DIR/rollouts`, and to wandb."""
        if not self.rows:
            return
        step = self.trainer.state.global_step
        rows, self.rows = [{**row, "step": step} for row in self.rows], []
        self._write(rows, "rollouts", f"rollouts_{step:06d}", f"reward/rollouts/step_{step:06d}")

    def validate(self, prefix: str = "eval") -> dict[str, float]:
        """Answers the fixed validation prompts greedily, writes some, and returns their metrics under the prefix."""
        trainer = self.trainer
        data, count = trainer.eval_dataset, trainer.options.validation_prompts
        if not count or not isinstance(data, Dataset) or trainer.makes_turns:
            return {}
        count = min(count, len(data))
        processes, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
        share = -(-count // processes)  # the same on every process: ZeRO-3 generates in step
        places = [min(rank * share + i, count - 1) for i in range(share)]
        training = trainer.model.training
        trainer.model.eval()
        answered = []
        for k in range(0, share, trainer.args.per_device_eval_batch_size):
            some = places[k : k + trainer.args.per_device_eval_batch_size]
            answered += self._answered([data[i] for i in some], some)
        trainer.model.train(training)
        rows = list({row["place"]: row for row in trainer.gathered(answered)}.values())
        metrics = greedy_metrics(rows, prefix)
        step = trainer.state.global_step
        shown = sorted(rows, key=lambda row: row["place"])[: trainer.options.logged_samples]
        if shown and trainer.accelerator.is_main_process:
            self._write(
                [{**row, "step": step} for row in shown],
                "samples",
                f"{prefix}_{step:06d}",
                f"eval/samples_{prefix}/step_{step:06d}",
            )
        return metrics

    def _answered(self, rows: Sequence[Row], places: Sequence[int]) -> list[dict[str, Any]]:
        trainer = self.trainer
        rows = trainer.read_images(rows)
        ids = trainer.generated(rows)
        texts = trainer.processing_class.batch_decode(ids, skip_special_tokens=True)
        scores: list[float | None] = [None] * len(texts)
        if (reward := trainer.score_reward) is not None:
            columns = {key: [row.get(key) for row in rows] for key in rows[0] if key != "prompt"}
            groups, scored = reward.layout([row["prompt"] for row in rows], texts, columns)
            results = reward.score_groups(groups)
            for place in scored:
                place.take(results)
            scores = [place.scores[0] if place.scores else None for place in scored]  # with their spread
        return [
            {
                **self._judged(text, row),
                "place": place,
                "length": len(tokens),
                "score": score,
                "score_std": spread(score),
                "reward": None,
                "prompt": _prompt(row["prompt"]),
                "completion": text,
                "solution": _shown(row.get("solution")),
                "picture": _picture(row) if place < trainer.options.logged_samples else None,
            }
            for text, row, tokens, score, place in zip(texts, rows, ids, scores, places, strict=True)
        ]

    def _scores(self, count: int) -> list[float | None]:
        """The score model's scores of the last rollouts, else the numbers that a reward has logged as `score`."""
        reward = self.trainer.score_reward
        scores = reward.last_scores() if reward is not None else []
        if len(scores) != count:
            scores = self.trainer.logged_extra("score")[:count]
        numbers: list[float | None] = []
        for value in scores:
            number = value if isinstance(value, float) else float(value) if isinstance(value, Real) else None
            numbers.append(number if number is not None and math.isfinite(number) else None)
        return numbers if len(numbers) == count else [None] * count

    def _judged(self, text: str, row: Row) -> dict[str, Any]:
        """As [`judged`], and whether there is a solution that answers cannot be compared with; says so once."""
        verdict: dict[str, Any] = {"correct": None, "readable": bool(text.strip())}
        with self._apart("some answers are not judged"):
            verdict = judged(text, row)
        solution = row.get("solution")
        unjudged = verdict["correct"] is None and solution is not None
        if unjudged:
            self._say(
                f"`solution` is {short(solution)}, expected a text, a number or a bool; the audit leaves such rows "
                "out of its accuracy (`audit/unjudged` is their share).",
                "solution",
            )
        return {**verdict, "unjudged": unjudged}

    def _write(self, rows: Sequence[Mapping[str, Any]], folder: str, name: str, key: str) -> None:
        args = self.trainer.args
        with self._apart(f"{folder} are not written"):
            rows = [{**row, "image": _thumbnail(row["picture"])} for row in rows]
            path = Path(str(args.output_dir)) / folder / f"{name}.parquet"
            write_table(rows, path, TYPES, key, args.report_to)  # type: ignore[arg-type]

    @contextmanager
    def _apart(self, what: str) -> Iterator[None]:
        """Keeps a failure of the audit from the run; says the first of its kind."""
        try:
            yield
        except Exception as error:  # of any kind: columns and rewards are the caller's
            self._say(f"audit: {what} ({type(error).__name__}: {short(str(error))}); the run goes on.", what)

    def _say(self, text: str, kind: str) -> None:
        """Warns once per kind."""
        if kind not in self.said:
            self.said.add(kind)
            logger.warning(text)


def judged(text: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """Says whether an answer is right (`None` without a solution to compare it with), and whether it can be read.

    An answer cannot be read if the prompt asks for `<answer>` and there is none, or if the strict metric, by which
    evaluation judges too, calls it unparseable; without a solution if it is empty.
    """
    verdict = judge_solution(text, row.get("solution"), row.get("choices"))
    readable = bool(answers.extract_answer(text)) if verdict is None else verdict["answer"] is not None
    return {
        "correct": None if verdict is None else verdict["strict"],
        "readable": readable and answers.in_asked_form(text, _prompt(row.get("prompt") or "")),
    }


def audit_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Summarises rollouts.

    Args:
        rows (sequence of `dict`): `correct` (or `None`), `readable`, `length` in tokens, `score` (or `None`), and of
            several score models `score_std`.

    Returns:
        `dict`: `audit/unparseable`, if there are any `audit/unjudged` (`unjudged` rows: their solution cannot be
        compared with an answer), and if they are known `audit/accuracy`, `audit/score_right` and
        `audit/score_wrong` (mean scores), `audit/right_above_wrong` (how often a right answer scores above a
        wrong one), `audit/score_length_correlation` (Pearson), `audit/disagreement` (mean `score_std`).
    """
    if not rows:
        return {}
    out = {"audit/unparseable": sum(not row["readable"] for row in rows) / len(rows)}
    if unjudged := sum(row.get("unjudged", False) for row in rows):
        out["audit/unjudged"] = unjudged / len(rows)
    known = [row for row in rows if row["correct"] is not None]
    if known:
        out["audit/accuracy"] = sum(row["correct"] for row in known) / len(known)
    right = sorted(row["score"] for row in known if row["correct"] and row["score"] is not None)
    wrong = sorted(row["score"] for row in known if not row["correct"] and row["score"] is not None)
    if right:
        out["audit/score_right"] = math.fsum(right) / len(right)
    if wrong:
        out["audit/score_wrong"] = math.fsum(wrong) / len(wrong)
    if right and wrong:
        wins = sum((a > b) + 0.5 * (a == b) for a in right for b in wrong)
        out["audit/right_above_wrong"] = wins / (len(right) * len(wrong))
    scored = [(float(row["length"]), row["score"]) for row in rows if row["score"] is not None]
    if (value := correlation(scored)) is not None:
        out["audit/score_length_correlation"] = value
    spreads = [row["score_std"] for row in rows if row.get("score_std") is not None]
    if spreads:
        out["audit/disagreement"] = math.fsum(spreads) / len(spreads)
    return out


def greedy_metrics(rows: Sequence[Mapping[str, Any]], prefix: str = "eval") -> dict[str, float]:
    """Summarises greedy answers, by the names of an evaluation: [`audit_metrics`], their mean score, and how many are
    known to be right or wrong.
    """
    metrics = {f"{prefix}_{n.replace('audit/', 'audit/greedy_')}": value for n, value in audit_metrics(rows).items()}
    if known := sum(row["correct"] is not None for row in rows):
        metrics[f"{prefix}_audit/greedy_n"] = known
    if scores := [row["score"] for row in rows if row["score"] is not None]:
        metrics[f"{prefix}_score/greedy_mean"] = math.fsum(scores) / len(scores)
    return metrics


def correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Pearson's correlation of (x, y) pairs; `None` if one of them does not vary.

    Example:
        >>> correlation([(1, 2), (2, 4), (3, 6)])
        1.0
    """
    xs, ys = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    try:
        return statistics.correlation(xs, ys)
    except statistics.StatisticsError:  # also of fewer than two pairs
        return None


def _spread(n: int, count: int) -> list[int]:
    """`count` places out of `n`, spread evenly, so that several prompts are shown."""
    count = min(n, count)
    return sorted({i * n // count for i in range(count)}) if count else []


def _prompt(prompt: str | Sequence[dict]) -> str:
    return "\n".join(map(_text, [prompt] if isinstance(prompt, str) else [[message] for message in prompt]))


def _text(completion: Any) -> str:
    """The text of a completion; `""` for turns that have none."""
    return answers.message_text(completion) if isinstance(completion, str | list) else ""


def _picture(row: Mapping[str, Any]) -> Image | None:
    return next(iter(row.get("images") or []), None) if row.get("images") is not None else row.get("image")


def _shown(solution: Any) -> str | None:
    return None if solution is None else str(solution)


def _thumbnail(picture: Image | None) -> Row | None:
    return None if picture is None else thumbnail(picture)
