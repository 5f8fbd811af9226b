"""Closed-answer metrics: the strict verdict on an answer, and the published one beside it.

The strict metric is the one rule of evaluation, best-of-n, rewards, the audit and pair making. It reads an answer as
a careful person would: what is stated unless it is hedged (`answers`), by the kind of the right answers, which are
yes/no, numbers (`quantities`), choices or texts (`choices`). What has no clear reading is unparseable: that is
counted, and never right. `docs/answers.md` has the rule in short and how often it errs. The published rule of arXiv
2503.00743 is kept under its own name, `upstream_compat`, so that figures can be set beside the paper's; it takes an
empty answer for right, and "1" for "12".

Left out: what was asked ("there is a river" is a yes), so that answers about something else can pass.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from ..errors import OptionError
from .answers import EXPLAINED, clauses, conclusion, hedged, statements, unwrap
from .choices import LETTERS, bare, keys, labelled, letter_place, own_words, read_choice, read_text, same_text
from .quantities import SCHEMES, Quantity, bucket, bucket_of, only_quantity, plain, quantities, same_quantity

Pair = tuple[str, str]
PAIRS: tuple[Pair, ...] = (("yes", "no"), ("true", "false"))

# How each word of the pairs is said; a "no" that belongs to a noun ("no clouds") is not the answer.
_SAID = {
    "yes": r"(?:yes|yeah|yep|yup)\b",
    "no": r"(?:nope|nah|not at all|(?:definitely|certainly|absolutely|of course) not)\b|no(?=\s*(?:[.,;:!\])/|]|$))"
    r"|(?<=or )no\b|(?<=though )no\b",
    "true": r"true\b",
    "false": r"false\b",
}
_EXISTS = re.compile(r"\bthere (?:is|are) (?!more|less|fewer)(?!.*\b(?:than|as)\b)|\b(?:is|are) (?:present|visible)\b")
_ABSENT = re.compile(
    r"\b(?:(?:is|are|was|were) (?:\w+ly )?(?:no|none|not|absent|missing)|none"
    r"|not (?:present|visible|there|exist|any)|lacks?|(?:see|shows?|contains?|has|exists?) no)\b"
    r"|^(?:no such|absent|missing)\b"
    r"|\b(?:do|does|did|can) not(?: (?:see|find|detect|spot|observe|contain|show|exist|appear|seem|include)\b|$)"
)
_NEGATIONS = re.compile(r"\b(?:no|not|none|never|absent|missing|lacks?)\b")
_ZERO = re.compile(
    r"\bno (?!\d|means|other|more|less|fewer|further|additional|longer)\w+|\bnone\b(?! of the)"
    r"|\bnot\b.*\b(?:any|a single)\b",
    re.I,
)
_LOOSE = re.compile(
    r"[,(;:]\s*(?:and |or |if not )?(?:at (?:least|most)|more|less|fewer|above|below|up|upwards|plus|over|minimum"
    r"|maximum|max|min|so|tops)\b|\band counting\b|\btoo (?:few|many)\b",
    re.I,
)
_BRACKETS = re.compile(r"\(([^()]*)\)")


def judge_answer(
    output: str, references: Sequence[str], *, choices: Sequence[str] = (), numbers: str | None = None
) -> dict[str, Any]:
    """Judges one closed answer by both metrics.

    Args:
        output (`str`): What the model wrote.
        references (sequence of `str`): The right answers, any of which will do; with choices a text of one or its
            letter. References that are all single letters are read as choices A–Z.
        choices (sequence of `str`): The well-formed answers. A letter stands for the choice that is labelled with it
            ("B. urban"), or else for its place.
        numbers (`str`, *optional*): One of [`SCHEMES`]: numbers are bucketed on both sides, see [`bucket`].

    Returns:
        `dict`: `answer`, the parsed answer in its normal form, `None` if it is unparseable; `strict` (`bool`);
        `upstream_compat` (`bool`), see [`upstream_compat`].

    Raises:
        OptionError: No reference, a reference that is none of the choices, or an unknown scheme.

    Example:
        >>> judge_answer("The answer is (B).", ["urban"], choices=["rural", "urban"])["answer"]
        'urban'
        >>> judge_answer("", ["urban"])
        {'answer': None, 'strict': False, 'upstream_compat': True}
    """
    if not references or not all(one.strip() for one in references):
        raise OptionError(
            f"references are {list(references)!r:.80}, expected at least one and none empty; a question "
            "without a right answer cannot be judged."
        )
    if numbers is not None and numbers not in SCHEMES:
        raise OptionError(f"numbers is {numbers!r}, expected one of {', '.join(SCHEMES)}.")
    said = unwrap(output)
    if not choices and all(re.fullmatch(r"[A-Za-z]", one.strip()) for one in references):
        choices = LETTERS
    buckets = [bucket(one, numbers) if numbers else None for one in references]
    pairs = [pair for pair in PAIRS if any(plain(one) in pair for one in references)]
    if numbers and None not in buckets:
        amount = _read(said, _amount)
        answer = bucket_of(amount, numbers) if amount else None
        right = answer is not None and answer in buckets
    elif choices:
        answer, right = _judge_choice(said, references, choices)
    elif all(any(plain(one) in pair for pair in pairs) for one in references):
        answer = _read(said, lambda piece: _polarity(piece, pairs))
        right = answer in map(plain, references)
    elif None not in (amounts := [only_quantity(one) for one in references]):
        answer, right = _judge_amount(_read(said, _amount), amounts)
    else:
        answer = _read(said, read_text, lambda piece: plain(piece) if same_text(piece, references) else None)
        right = answer is not None and any(keys(answer) & (keys(one) | keys(bare(one))) for one in references)
    return {"answer": answer, "strict": right, "upstream_compat": upstream_compat(output, references)}


def judge_solution(output: str, solution: Any, choices: Any = None) -> dict[str, Any] | None:
    """Judges an answer by a data set's solution, whatever its type; `None` if there is nothing to judge it by.

    Texts and numbers are judged by [`judge_answer`], of a bool "yes" and "true" are both right. No solution, an
    empty one, NaN, a box or a dict judges nothing. Choices are a list of texts and numbers; others, and those that the
    solution is not among, are not used.

    Example:
        >>> [judge_solution(said, 3.0)["strict"] for said in ("3", "30")], judge_solution("3", {"count": 3})
        ([True, False], None)
    """
    references = _references(solution)
    if not references:
        return None
    listed = list(choices) if isinstance(choices, list | tuple) else []
    texts = [str(one) for one in listed] if all(isinstance(one, str | Real) for one in listed) else []
    try:
        return judge_answer(output, references, choices=texts)
    except OptionError:
        return judge_answer(output, references)


def read_answer(output: str) -> str | None:
    """Returns the answer of an output in the normal form in which votes count it, where no right answer is known.

    `None`: it has none, is hedged, or contradicts itself.

    Example:
        >>> read_answer("The answer is: a River."), read_answer("It may be a river.")
        ('river', None)
    """
    said = unwrap(output)
    if verdict := re.match(r"\W*(yes|no)\b", said, re.I):
        return verdict[1].lower()
    answer = _read(said, read_text)
    return None if answer is None else plain(answer)


def _references(solution: Any) -> list[str]:
    """The right answers that a data set's solution stands for."""
    if isinstance(solution, bool):
        return ["yes", "true"] if solution else ["no", "false"]
    if isinstance(solution, int):
        return [str(solution)]
    if isinstance(solution, Real) and math.isfinite(solution):
        return [f"{float(solution):.12g}"]
    return [solution] if isinstance(solution, str) and solution.strip() else []


def count_closeness(output: str, solution: Any) -> float | None:
    """Returns how near the number of an answer is to the right one: `1 - |a - b| / max(|a|, |b|)`, at least 0.

    It is 1 where the numbers are equal, and 0 for an answer that states no number, several, a bound or a range, or one
    of another dimension. `None` if the solution is no number, so that there is nothing to judge by.

    Example:
        >>> [count_closeness(said, 4) for said in ("4 ships", "There are 3.", "maybe 4")]
        [1.0, 0.75, 0.0]
    """
    references = [] if isinstance(solution, bool) else _references(solution)
    right = (only_quantity(references[0]) or _read(unwrap(references[0]), _amount)) if references else None
    if right is None:
        return None
    said = _read(unwrap(output), _amount)
    same = None if said is None else same_quantity(said, right)
    if same or said is None or same is None or said.low != said.high or right.low != right.high:
        return float(same is True)
    a, b = said.based(right.unit).low, right.based().low
    return max(0.0, float(1 - abs(a - b) / max(abs(a), abs(b))))


def upstream_compat(output: str, references: str | Sequence[str]) -> bool:
    """The published rule: whether the prediction is a *part* of the reference (code of arXiv 2503.00743).

    Of the output what follows a closed `<think>…</think>`, then what is inside `<answer>`; spaces dropped, cut at the
    first "." and ",", lower case. Of the reference spaces dropped, lower case. So an empty prediction is right, and
    "1" is right for "12". The authors' function for LHRS-Bench does not cut at commas; this is the one rule for all.

    Args:
        output (`str`): What the model wrote.
        references (`str` or sequence of `str`): The right answers, any of which will do, letters as they are.

    Example:
        >>> upstream_compat("1", "12"), upstream_compat("12", "1"), upstream_compat("", "urban")
        (True, False, True)
    """
    if "<think>" in output:
        thought = output.split("<think>")[1].split("</think>")
        output = thought[1] if len(thought) > 1 else output
    if "<answer>" in output:
        output = output.split("<answer>")[1].split("</answer>")[0]
    prediction = output.replace(" ", "").split(".")[0].split(",")[0].lower()
    given = [references] if isinstance(references, str) else references
    return any(prediction in one.replace(" ", "").lower() for one in given)


def _read(said: str, reader: Callable[[str], Any], own: Callable[[str], Any] = lambda piece: None) -> Any:
    """What a reader finds in every statement of a text, `None` if that differs, is hedged, or is nothing.

    `own` finds a right answer or a choice that a statement repeats word for word, even if the words are a hedge.
    """

    def value(piece: str) -> Any:
        found = own(piece)
        for part in () if hedged(piece) else (piece, conclusion(piece)):
            found = reader(part) if found is None else found
        return found

    found = {value(piece) for piece in statements(said)}
    return found.pop() if len(found) == 1 else None


def _polarity(piece: str, pairs: Sequence[Pair]) -> str | None:
    """The one word of the pairs that a text means; what there is, or is not, is a yes or a no."""
    positive, negative = pairs[0]
    text = piece.lower()
    for word, opposite in [(word, other) for pair in pairs for word, other in (pair, pair[::-1])]:
        denied = rf"\bnot {word}\b|\b{word} (?:is|was|would be) (?:wrong|incorrect|false|not\b(?: \w+)?)"
        text = re.sub(denied, f" {opposite.upper()}. ", text)
    text = text.lower()
    starts = [bare(clause) for clause, _ in clauses(text)]
    said, leads = set(), False
    for pair in pairs:
        for word, meant in zip(pair, pairs[0], strict=True):
            if re.search(rf"\b(?:{_SAID[word]})", text):
                said.add(meant)
                leads |= any(re.match(_SAID[word], start) for start in starts)
    if positive == "yes" and re.match(r"\W*no\b", text):  # "No roads are visible"
        said, leads = said | {negative}, True
    if not said and positive == "yes":
        leads = True
        for clause, affirmed in clauses(text):
            if _ABSENT.search(clause):
                said.add(negative if len(_NEGATIONS.findall(clause)) == 1 else "")
            elif affirmed and _EXISTS.search(clause):
                said.add(positive)
    return said.pop() or None if len(said) == 1 and leads else None


def _amount(piece: str) -> Quantity | None:
    """The one quantity of a text; "no ships" is zero unless a number goes before it."""
    if _LOOSE.search(piece):  # "3, or more"
        return None
    piece = re.sub(r"\b(c|ca|approx|max|min)\.\s*(?=\d)", r"\1 ", piece)
    parts, outside = _amounts(", ".join(_BRACKETS.findall(piece))), _BRACKETS.sub("", piece)
    if (
        len(parts) > 1
        and None not in parts
        and [sum(one.low for one in parts if one)] == [one and one.low for one in _amounts(outside)]
    ):
        piece = outside  # "3 (2 large, 1 small)"
    head = re.split(r"\b(?:with|which|where|although|though)\b", EXPLAINED.split(piece)[0])[0]
    found = _amounts(head) or _amounts(piece)
    return found[0] if len({one and one.based() for one in found}) == 1 else None


def _amounts(text: str) -> list[Quantity | None]:
    found: list[Quantity | None] = []
    for clause, affirmed in clauses(text):
        if affirmed:
            found += quantities(clause)
        elif _ZERO.search(clause) and (not found or None in found):
            found.append(Quantity(0, 0))
    return found


def _judge_amount(said: Quantity | None, references: Sequence[Quantity | None]) -> tuple[str | None, bool]:
    """The normal form of a quantity (`None`: it cannot be compared with the right ones), and whether it is right."""
    equal = [same_quantity(said, one) for one in references if one] if said else []
    return (None, False) if all(one is None for one in equal) else (str(said), True in equal)


def _judge_choice(said: str, references: Sequence[str], choices: Sequence[str]) -> tuple[str | None, bool]:
    """The parsed choice (`None`: unparseable) and whether it is right."""
    labels, texts = labelled(choices)
    forms = [plain(text) for text in texts]
    pair = next((pair for pair in PAIRS if set(forms) <= set(pair)), None)

    def yes_or_no(piece: str) -> int | None:
        letters = {letter_place(clause, labels) for clause, _ in clauses(piece)} - {None}
        word = _polarity(piece, [pair] if pair else [])
        found = letters | ({forms.index(word)} if word in forms else set())
        return found.pop() if len(found) == 1 else None

    def place(text: str) -> int | None:  # in its own words a choice is meant, even "A, B", or "river" near "the river"
        text = text.strip()
        own = [i for i, own in enumerate(texts) if text == choices[i].strip() or len(text) > 1 and text == own.strip()]
        if len(own) == 1:
            return own[0]
        reader = yes_or_no if pair else lambda piece: read_choice(piece, labels, texts)
        return _read(text, reader, lambda piece: own_words(piece, texts))

    right = [place(one) for one in references]
    if None in right:
        wrong = references[right.index(None)]
        raise OptionError(
            f"the reference {wrong!r:.60} is none of the choices {', '.join(choices):.100}, or several; correct it."
        )
    chosen = place(said)
    return (None, False) if chosen is None else (forms[chosen], chosen in right)
