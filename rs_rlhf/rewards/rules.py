"""Rule-based rewards of text: exact match with the solution, and the think-answer format (arXiv 2503.00743)."""

from __future__ import annotations

from collections.abc import Sequence

from ..metrics.answers import exact_match, is_think_answer, message_text
from .columns import Rewards, Text, column


class ExactMatchReward:
    """1 if the answer equals the solution in the published normal form (see [`answers.normalize`]), else 0.

    Args:
        solution (`str`): Column of the solutions.
    """

    def __init__(self, solution: str = "solution") -> None:
        self.__name__ = "exact_match_reward"
        self.solution = solution

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **columns: object) -> Rewards:
        """Rewards completions; a row without a solution gets `None`."""
        pairs = zip(completions, column(columns, self.solution, self.__name__), strict=True)
        return [
            None if solution is None else float(exact_match(message_text(completion), str(solution)))
            for completion, solution in pairs
        ]


class ThinkAnswerFormatReward:
    """1 if the completion is `<think>…</think><answer>…</answer>` and nothing else, 0 otherwise."""

    def __init__(self) -> None:
        self.__name__ = "think_answer_format_reward"

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **columns: object) -> Rewards:
        """Rewards completions."""
        return [float(is_think_answer(message_text(completion))) for completion in completions]
