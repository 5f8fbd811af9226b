"""What a model's answer says: the part inside `<answer>`, its normal form, its boxes.

Rewards and audits read answers through these functions; pair building has a normal form of its own that also drops
punctuation (`sampled_pairs.plain_answer`), since "urban!" must not become a rejected "urban". Left out:
number words, yes/no and choice letters, which belong to the strict metric of the evaluation harness.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..errors import OptionError

_NUMBER = r"-?(?:\d+(?:\.\d*)?|\.\d+)"
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_INSIDE = r"(?:(?!</?(?:think|answer)>).)*"  # a second answer, or text between the parts, must not pass as content
_THINK_ANSWER = re.compile(rf"\s*<think>{_INSIDE}</think>\s*<answer>{_INSIDE}</answer>\s*", re.DOTALL)
_PAIRS = re.compile(rf"\(\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\)\s*,\s*\(\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\)")
_BRACKETS = re.compile(rf"\[\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\]")
# Units of a box's coordinates -> what a full side is; `None` is the side of the image in pixels.
BOX_UNITS: dict[str, float | None] = {"pixel": None, "0-1000": 1000.0, "0-100": 100.0, "0-1": 1.0}

Box = tuple[float, float, float, float]

# The published instruction (arXiv 2503.00743), in our words; `is_think_answer` checks the form.
THINK_ANSWER = (
    "First think about the image and the question, then answer. Write your reasoning inside <think> </think> and the "
    "final answer inside <answer> </answer>, such as: <think> reasoning </think><answer> answer </answer>"
)


def message_text(value: Any) -> str:
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


def extract_answer(text: str) -> str:
    """Returns the text inside the first `<answer>…</answer>`, or the whole text where there is none, stripped."""
    found = _ANSWER.search(text)
    return (found.group(1) if found else text).strip()


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


def parse_boxes(text: str) -> list[Box]:
    """Finds the boxes of a text, in its order: Qwen2-VL's `(x1,y1),(x2,y2)`, else `[x1, y1, x2, y2]`.

    Example:
        >>> parse_boxes("<|box_start|>(10,20),(30,40)<|box_end|>"), parse_boxes("[1, 2, 3.5, 4]")
        ([(10.0, 20.0, 30.0, 40.0)], [(1.0, 2.0, 3.5, 4.0)])
    """
    found = _PAIRS.findall(text) or _BRACKETS.findall(text)
    return [(float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in found]


def to_unit(box: Box, unit: str, size: tuple[int, int] | None = None) -> Box:
    """Brings a box to 0–1.

    Args:
        box (`tuple`): `(x1, y1, x2, y2)`.
        unit (`str`): A key of [`BOX_UNITS`].
        size (`tuple`, *optional*): `(width, height)` of the image in pixels, for `"pixel"`.

    Raises:
        ValueError: Pixels without a size.
    """
    side = BOX_UNITS[unit]
    if side is None and size is None:
        raise OptionError("boxes in pixels need the image's (width, height)")
    width, height = (side, side) if side is not None else size  # type: ignore[misc]
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height


def iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes in the same units; 0 for boxes without area.

    Example:
        >>> iou((0, 0, 2, 2), (1, 0, 3, 2))
        0.3333333333333333
    """
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    areas = [max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1]) for box in (first, second)]
    if width <= 0 or height <= 0 or not all(areas):
        return 0.0
    return width * height / (sum(areas) - width * height)


def paired_ious(answers: Sequence[Box], solutions: Sequence[Box], by_order: bool = False) -> list[float]:
    """IoU of every solution's box with the answer's box paired with it.

    Args:
        answers, solutions (sequences of boxes): As many of each, in the same units.
        by_order (`bool`): Pair by place, as published; by default the one-to-one pairing of the greatest total IoU.

    Raises:
        ValueError: Their numbers differ.
    """
    if len(answers) != len(solutions):
        raise OptionError(f"{len(answers)} boxes cannot be paired with {len(solutions)}")
    table = [[iou(answer, solution) for answer in answers] for solution in solutions]
    if by_order or len(table) < 2:
        return [row[i] for i, row in enumerate(table)]
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(table, maximize=True)
    return [table[i][j] for i, j in zip(rows, columns, strict=True)]
