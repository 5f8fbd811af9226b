"""Rule-based rewards of text: a right answer, a near count, and the think-answer format (arXiv 2503.00743)."""

from __future__ import annotations

from collections.abc import Sequence

from ..metrics.answers import is_think_answer, message_text, published_exact_match
from ..metrics.closed_answers import count_closeness, judge_solution
from ..metrics.math_answers import judge_math
from .columns import Rewards, Text, column


class ExactMatchReward:
    """1 if the answer is right by the strict metric of evaluation (see [`judge_solution`]), else 0.

    The row's column `choices`, if there is one, holds the well-formed answers, of which an answer may give the letter.

    Args:
        solution (`str`): Column of the solutions: texts, numbers or bools.
    """

    def __init__(self, solution: str = "solution") -> None:
        self.__name__ = "exact_match_reward"
        self.solution = solution

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **columns: object) -> Rewards:
        """Rewards completions; a row without a solution that an answer can be compared with gets `None`."""
        solutions = column(columns, self.solution, self.__name__)
        choices: Sequence = columns.get("choices") or [None] * len(completions)  # type: ignore[assignment]
        verdicts = map(judge_solution, map(message_text, completions), solutions, choices)
        return [None if verdict is None else float(verdict["strict"]) for verdict in verdicts]


class PublishedExactMatchReward:
    """1 if the answer equals the solution in the published normal form (arXiv 2503.00743), else 0.

    That form drops dots, so that "3.5" is right for "35"; see [`published_exact_match`].

    Args:
        solution (`str`): Column of the solutions.
    """

    def __init__(self, solution: str = "solution") -> None:
        self.__name__ = "published_exact_match_reward"
        self.solution = solution

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **columns: object) -> Rewards:
        """Rewards completions; a row without a solution gets `None`."""
        pairs = zip(completions, column(columns, self.solution, self.__name__), strict=True)
        return [
            None if solution is None else float(published_exact_match(message_text(completion), str(solution)))
            for completion, solution in pairs
        ]


class MathReward:
    """1 if the answer is right as [`ExactMatchReward`] has it, or equal as a formula (see [`judge_math`]), else 0.

    Args:
        solution (`str`): Column of the solutions: texts, also LaTeX, or numbers.
    """

    def __init__(self, solution: str = "solution") -> None:
        self.__name__ = "math_reward"
        self.solution = solution

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **columns: object) -> Rewards:
        """Rewards completions; a row without a solution that an answer can be compared with gets `None`."""
        solutions = column(columns, self.solution, self.__name__)
        choices: Sequence = columns.get("choices") or [None] * len(completions)  # type: ignore[assignment]
        verdicts = map(judge_math, map(message_text, completions), solutions, choices)
        return [None if verdict is None else float(verdict) for verdict in verdicts]


class CountReward:
    """How near the number of the answer is to the right one, from 0 to 1 (see [`count_closeness`]).

    Args:
        solution (`str`): Column of the solutions: numbers, or texts with one.
    """

    def __init__(self, solution: str = "solution") -> None:
        self.__name__ = "count_reward"
        self.solution = solution

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **columns: object) -> Rewards:
        """Rewards completions; a row whose solution is no number gets `None`."""
        solutions = column(columns, self.solution, self.__name__)
        return list(map(count_closeness, map(message_text, completions), solutions))


class ThinkAnswerFormatReward:
    """1 if the completion is `<think>…</think><answer>…</answer>` and nothing else, 0 otherwise."""

    def __init__(self) -> None:
        self.__name__ = "think_answer_format_reward"

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **columns: object) -> Rewards:
        """Rewards completions."""
        return [float(is_think_answer(message_text(completion))) for completion in completions]
