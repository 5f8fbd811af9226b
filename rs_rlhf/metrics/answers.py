"""Answer extraction: the text of a completion, the answer inside it, and its published normal form.

Rewards, audits and evaluation all use [`extract_answer`], so that a policy is trained by the rule that it is measured
by. Pair building has a normal form of its own that also drops punctuation (`preferences.mistakes.plain_answer`), since
"urban!" must not become a rejected "urban". Left out: number words, yes/no and choice letters, which belong to the
strict metric (`closed_answers`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_INSIDE = r"(?:(?!</?(?:think|answer)>).)*"  # a second answer, or text between the parts, must not pass as content
_THINK_ANSWER = re.compile(rf"\s*<think>{_INSIDE}</think>\s*<answer>{_INSIDE}</answer>\s*", re.DOTALL)

# The published instruction (arXiv 2503.00743), in our words; `is_think_answer` checks the form.
THINK_ANSWER = (
    "First think about the image and the question, then answer. Write your reasoning inside <think> </think> and the "
    "final answer inside <answer> </answer>, such as: <think> reasoning </think><answer> answer </answer>"
)


def message_text(value: str | Sequence[Mapping[str, Any]] | None) -> str:
    """Returns the text of a completion: a string, or messages in conversational form.

    Example:
        >>> message_text([{"role": "assistant", "content": "a port"}])
        'a port'
    """
    if value is None or isinstance(value, str):
        return value or ""
    texts = []
    for message in value:
        content = message.get("content") or ""
        if not isinstance(content, str):
            content = "".join(part.get("text") or "" for part in content if part.get("type") == "text")
        texts.append(content)
    return "\n".join(text for text in texts if text)


def extract_answer(output: str) -> str:
    """Returns the part of an output that is the answer: inside `<answer>` if there is one, without thoughts.

    Thoughts are a `<think>…</think>`, all before a `</think>` whose start was in the prompt, and all behind a
    `<think>` that is never closed, unless a whole `<answer>…</answer>` follows there. An `<answer>` that is never
    closed is read to its end. Several answers that differ are returned together, so that they contradict each other.

    Example:
        >>> extract_answer("<think>rural?</think><answer> urban </answer>"), extract_answer("<think>it may be urban")
        ('urban', '')
    """
    text = re.sub(r"<think>.*?</think>", " ", output, flags=re.DOTALL | re.I)
    text = re.split(r"</think>", text, flags=re.I)[-1]
    before, _, thought = re.sub(r"<think>", "<think>", text, flags=re.I).partition("<think>")
    text = f"{before} {thought}" if has_answer(thought) else before
    answers = re.findall(r"<answer>(.*?)(?:</answer>|$)", text, flags=re.DOTALL | re.I)
    if not answers:
        return re.sub(r"</answer>", " ", text).strip()
    return "\n".join(dict.fromkeys(one.strip() for one in answers))


def has_answer(text: str) -> bool:
    """Whether the text holds an `<answer>…</answer>`."""
    return _ANSWER.search(text) is not None


def is_think_answer(text: str) -> bool:
    """Whether the text is one `<think>…</think>`, one `<answer>…</answer>` and white space (arXiv 2503.00743)."""
    return _THINK_ANSWER.fullmatch(text) is not None


def normalize(text: str) -> str:
    """The published normal form of a closed answer: lower case, white space and dots dropped (arXiv 2503.00743).

    Example:
        >>> normalize("Storage Tanks .")
        'storagetanks'
    """
    return re.sub(r"[\s.]+", "", text.lower())


def exact_match(answer: str, solution: str) -> bool:
    """Whether an answer equals the solution in the normal form; an empty answer is never right.

    Example:
        >>> exact_match("<answer>Rural.</answer>", "rural"), exact_match("", "")
        (True, False)
    """
    given = normalize(extract_answer(answer))
    return bool(given) and given == normalize(extract_answer(solution))
