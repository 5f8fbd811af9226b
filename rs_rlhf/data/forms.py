"""Forms of rows: what other projects write, told apart by content, as rows of the documented form.

Preferences become rows with `prompt`, `chosen` and `rejected`, as TRL writes them; questions become rows with `prompt`
and, where the answer is known, `solution`. The forms are those of TRL, RSRM (the preference data of ScoreRS),
LLaMA-Factory, ms-swift, LLaVA and ShareGPT, lists of responses with their ranks, two outputs with a preference, and
Label Studio's pairwise comparison.

Left out: rows of captions (`image_text`), and the names of columns (`columns`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from . import label_studio
from .columns import (
    ANSWER_COLUMNS,
    LABEL_COLUMNS,
    PREFERENCE_COLUMNS,
    QUESTION_COLUMNS,
    TEXT_COLUMNS,
    TURN_COLUMNS,
    is_image,
    listed,
    question_and_answer,
    text_column,
)
from .group import Row, as_message, as_number, completion_text, first_line, messages_of, short, split_prompt, turns_of

if TYPE_CHECKING:
    from .rows import Where

_LISTS = ("response", "responses", "completions", "candidates", "generations", "answers", "outputs", "texts")
_RANKS = ("human_ranking", "ranking", "rankings", "ranks", "rank")
_CHOICES = ("preference", "preferred", "human_preference", "winner", "choice", "better")
_VERDICTS = ("label", "kto_tag")
_LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
_SPEAKER = re.compile(r"(?:^|\n)\s*(Human|Assistant):")
_HUMAN_FIRST = re.compile(r"\s*Human:[\s\S]*\n\s*Assistant:")
_OUTPUTS = ("completion", "answer", "response", "output")
_SIDES = (("1", "2"), ("a", "b"), ("0", "1"))
_READ = {*TEXT_COLUMNS, *PREFERENCE_COLUMNS, *_LISTS, *_RANKS, "system", "history", "input"} - {"margin"}


def form_of(row: Row) -> str:
    """Returns the name of a row's form, as `"preferences (ms-swift)"`; `""` if it has none."""
    for name, (holds, _) in _PREFERENCES.items():
        if holds(row):
            return f"preferences ({name})"
    key = text_column(row)
    if key in TURN_COLUMNS:
        turns = turns_of(row[key]) if isinstance(row[key], Mapping) else row[key]
        spoken = isinstance(turns, (list, tuple)) and turns and isinstance(turns[0], Mapping) and "from" in turns[0]
        return f"conversations ({'LLaVA, ShareGPT' if spoken else 'messages'})"
    if asked := question_and_answer(row):
        return " + ".join(asked)
    if key is not None:
        return "captions" if key in ("captions", "caption", "txt") else f"captions ({key})"
    if any(row.get(key) is not None for key in QUESTION_COLUMNS):
        return "prompts"
    return "labels" if any(row.get(key) is not None for key in LABEL_COLUMNS) else ""


def is_preference(row: Row) -> bool:
    """Whether a row is of one of the forms of preferences."""
    return any(holds(row) for holds, _ in _PREFERENCES.values())


def known_rows(row: Row, where: Where) -> Iterable[Row]:
    """An [`Adapter`] for preferences of any form; a row of no such form stays as it is.

    A row with `chosen` but without `source` gets the file's name as its source.
    """
    convert = next((convert for holds, convert in _PREFERENCES.values() if holds(row)), None)
    rows = [row] if convert is None else convert(row)
    # A row without `chosen` stays as it is: the message about it lists its columns.
    return [{**row, "source": where.source} if "chosen" in row and row.get("source") is None else row for row in rows]


def labelled_rows(row: Row, where: Where) -> Iterable[Row]:
    """An [`Adapter`] for answers with a label, good or bad, as KTO takes them: `prompt`, `completion`, `label`.

    The forms are those of TRL, LLaMA-Factory (`kto_tag`) and ms-swift (`messages`); preferences stay preferences.
    """
    if is_preference(row):
        return known_rows(row, where)
    key = next((key for key in _VERDICTS if row.get(key) is not None), None)
    if key is None:
        advice = "give each answer one, true or false, or give preferences (chosen, rejected)"
        raise DataError(f"no column `label`; the columns are {listed(row)}; {advice}", "label")
    label = _LABELS.get(str(row[key]).strip().lower())
    if label is None:
        raise DataError(f"`{key}` is {short(row[key])}, expected true or false", key)
    made = {"source": where.source, **_without(_rest(row), *_VERDICTS), "label": label}
    if turns := next((name for name in TURN_COLUMNS if row.get(name) is not None), None):
        spoken = row_prompt(row)
        if not isinstance(spoken, (list, tuple)) or not spoken:
            raise DataError(f"`{turns}` is {short(spoken)}, expected turns that end with the answer", turns)
        return [{**made, "prompt": list(spoken[:-1]), "completion": list(spoken[-1:])}]
    answer = next((name for name in ANSWER_COLUMNS if row.get(name) is not None), None)
    if answer is None:
        advice = "expected a `prompt`, a `completion` and its `label`"
        raise DataError(f"no column `completion`; the columns are {listed(row)}; {advice}", "completion")
    return [{**made, "prompt": row_prompt(row), "completion": row[answer]}]


def question_rows(row: Row, where: Where) -> Iterable[Row]:
    """An [`Adapter`] for questions: preferences lose their texts, conversations and answers become a `solution`."""
    if is_preference(row):
        return [{**other, "prompt": _prompt_of(other)} for other in list(known_rows(row, where))[:1]]
    turns = next((key for key in TURN_COLUMNS if row.get(key) is not None), None)
    if row.get("prompt") is None and turns is not None:
        messages = messages_of(row_prompt(row), turns, "user")  # their images stay in them
        if not messages:
            raise DataError(f"`{turns}` is an empty list, expected turns; write some or remove the row", turns)
        before, last = messages[:-1], messages[-1:]
        if last[0]["role"] != "assistant":
            return [{**row, "prompt": messages}]
        return [{"solution": completion_text(last), **_without(row, turns), "prompt": before}]
    asked = question_and_answer(row)
    if asked is None:
        known = any(row.get(key) is not None for key in QUESTION_COLUMNS)
        return [{**row, "prompt": row_prompt(_without(row, *TURN_COLUMNS))}] if known else [row]
    question, answer = asked
    solution = row[answer]
    if _is_spoken(solution):
        solution = completion_text(messages_of(solution, answer, "assistant"))
    made = {**row, "solution": solution} if row.get("solution") is None else row
    if question == "text":
        return [{**_without(made, *asked), "prompt": row[question]}]
    return [{**made, "prompt": row_prompt(_without(row, *TURN_COLUMNS))}]


def candidate_rows(row: Row, where: Where) -> Iterable[Row]:
    """An [`Adapter`] for several texts to choose between: preferences of any form stay preferences; a task of Label
    Studio, annotated or not, and a row with a list of answers get `prompt` and `completions`.
    """
    if label_studio.is_task(row):
        data = label_studio.task_data(row)
        pair = _one_pair(data)
        made = {**_without(_rest(data), *pair), "completions": [data[name] for name in pair]}
        return [{"source": where.source, **made, "prompt": row_prompt(data)}]
    if is_preference(row):
        return known_rows(row, where)
    key, texts = _list_of(row, _LISTS)
    if not texts or not all(isinstance(text, str) or _is_spoken(text) for text in texts):
        advice = "expected preferences, or several answers as a list of texts in `completions`"
        raise DataError(f"no texts to choose between; the columns are {listed(row)}; {advice}", key or "completions")
    return [{"source": where.source, **_rest(row), "prompt": row_prompt(row), "completions": texts}]


def rsrm_rows(row: Row, where: Where) -> Iterable[Row]:
    """An [`Adapter`] for RSRM, the preference data of ScoreRS: one row of the documented form per rejected text.

    JSON rows are `{question?, chosen, rejected, image_name | image_path}`, the images in a folder named like the file
    without its suffix; without image keys a row is text-only. Parquet rows are `image` = `{bytes, path}` and `text` =
    a JSON string with `chosen`, `rejected` and possibly `question`.
    """
    return [{"source": where.source, **made} for made in _rsrm(row)]


def _rsrm(row: Row) -> list[Row]:
    data = row
    if "chosen" not in row and "text" in row:
        try:
            data = json.loads(row["text"])
        except (TypeError, ValueError) as error:
            raise DataError(f"`text` is not JSON ({first_line(error)}), expected chosen, rejected", "text") from None
        if not isinstance(data, Mapping):
            raise DataError(f"`text` holds {short(data)}, expected an object with chosen, rejected", "text")
    base = {**_rest(row), **_rest(data), "prompt": data.get("question") or ""}
    base |= {"chosen": data["chosen"]} if data.get("chosen") is not None else {}
    if "rejected" not in data:
        return [base]
    rejected = data["rejected"]
    several = isinstance(rejected, list) and rejected and all(isinstance(text, str) for text in rejected)
    return [{**base, "rejected": text} for text in (rejected if several else [rejected])]


def _is_rsrm(row: Row) -> bool:
    if "prompt" in row or "messages" in row or "conversations" in row:
        return False
    if "chosen" not in row:
        return isinstance(row.get("text"), str) and row["text"].lstrip().startswith("{") and "image" in row
    return any(row.get(key) is not None for key in ("question", "image_name", "image_path"))


def _ranking(row: Row) -> list[Row]:
    """A row for all responses, best to worst; if some share a rank, a row for every pair that does not."""
    (listed_in, texts), (key, ranks) = _list_of(row, _LISTS), _list_of(row, _RANKS)
    numbers = [number for rank in ranks if (number := as_number(rank)) is not None]
    if len(numbers) != len(texts) or len(ranks) != len(texts):
        expected = f"expected a number as the rank of each of the {len(texts)} responses"
        raise DataError(f"`{key}` is {short(ranks)}, {expected}", key)
    order = sorted(zip(numbers, texts, strict=True), key=lambda pair: pair[0])
    base = {**_rest(row), "prompt": row_prompt(row)}
    if len(set(numbers)) == len(numbers) > 1:
        return [{**base, "chosen": order[0][1], "rejected": [text for _, text in order[1:]]}]
    pairs = [(a, b) for (one, a), (two, b) in combinations(order, 2) if one < two]
    if not pairs:
        raise DataError(f"`{key}` is {short(ranks)}: no response of `{listed_in}` is better; remove the row", key)
    return [{**base, "chosen": better, "rejected": worse} for better, worse in pairs]


def _label_studio(row: Row) -> list[Row]:
    """A task of Label Studio that compares two texts: a row for every annotation."""
    data = label_studio.task_data(row)
    pair = _one_pair(data)
    rest = {**_without(_rest(data), *pair), "prompt": row_prompt(data)}
    chosen = [pair if side == 0 else pair[::-1] for side in label_studio.sides(row)]
    return [{**rest, "chosen": data[better], "rejected": data[worse]} for better, worse in chosen]


def _one_pair(row: Row) -> tuple[str, str]:
    """The two columns of texts whose names differ in their last sign."""
    pairs = _pairs_of(row)
    if not pairs:
        raise DataError(f"the columns are {listed(row)}, expected two texts, such as text1 and text2", "data")
    if others := pairs[1:]:
        names = " and ".join(f"`{pair[0]}`, `{pair[1]}`" for pair in pairs)
        raise DataError(f"{names} could each be the two outputs; remove or rename all but one pair", others[0][0])
    return pairs[0]


def _two_outputs(row: Row) -> list[Row]:
    first, second = _one_pair(row)
    key = next(key for key in _CHOICES if key in row)
    chosen = _chosen_side(row[key], first, second)
    if chosen is None:
        expected = f"expected {first[-1]} or {second[-1]}, or the name of the column"
        raise DataError(f"`{key}` is {short(row[key])}, {expected}; remove a row without a preference", key)
    better, worse = (first, second) if chosen == 0 else (second, first)
    rest = _without(_rest(row), first, second, key)
    return [{**rest, "prompt": row_prompt(row), "chosen": _turns(row[better]), "rejected": _turns(row[worse])}]


def _chosen_side(value: object, first: str, second: str) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    word = str(value).strip().lower()
    for side, name in enumerate((first, second)):
        if word in (name.lower(), name[-1].lower()) or word in (f"model_{name[-1].lower()}", f"model {name[-1]}"):
            return side
    return {"1": 0, "2": 1}.get(word) if first[-1].lower() == "a" else None


def _pairs_of(row: Row) -> list[tuple[str, str]]:
    """Pairs of columns of texts or turns whose names differ in their last sign only; turns and known names first."""
    pairs: list[tuple[str, str]] = []
    for one, two in _SIDES:
        for key in row:
            other = f"{key[:-1]}{two.upper() if key[-1:].isupper() else two}" if key else ""
            texts = [row.get(name) for name in (key, other)]
            spoken = all(isinstance(text, (str, Mapping, list)) and text and not is_image(text) for text in texts)
            if key[-1:].lower() == one and other in row and spoken:
                pairs.append((key, other))
    turns = [pair for pair in pairs if not isinstance(row[pair[0]], str)]
    return turns or [pair for pair in pairs if any(name in pair[0].lower() for name in _OUTPUTS)] or pairs


def _list_of(row: Row, names: Sequence[str]) -> tuple[str, Any]:
    return next(((key, row[key]) for key in names if isinstance(row.get(key), (list, tuple))), ("", None))


def _swift(row: Row) -> list[Row]:
    """ms-swift: the last turn of `messages`, or `response`, is the chosen one."""
    if row.get("rejected_images") is not None:
        raise DataError("`rejected_images` is not read: both texts are about the same images", "rejected_images")
    base = _rest(row)
    if row.get("messages") is None:
        if missing := next((key for key in ("response", "rejected_response") if row.get(key) is None), None):
            raise DataError(f"a text is missing: no `messages` and no `{missing}`; add one of them", missing)
        return [{**base, "prompt": row_prompt(row), "chosen": row["response"], "rejected": row["rejected_response"]}]
    if row.get("rejected_messages") is not None:
        return [{**base, "chosen": row["messages"], "rejected": row["rejected_messages"]}]
    turns = _turns(row["messages"])
    if not isinstance(turns, (list, tuple)) or not turns:
        raise DataError(f"`messages` is {short(turns)}, expected turns that end with the chosen one", "messages")
    return [{**base, "prompt": list(turns[:-1]), "chosen": list(turns[-1:]), "rejected": row["rejected_response"]}]


def _factory(row: Row) -> list[Row]:
    """LLaMA-Factory: turns and two answers, or an instruction with two answers, in older files as a list."""
    chosen, rejected = (row["chosen"], row["rejected"]) if "chosen" in row else row["output"]
    return [{**_rest(row), "prompt": row_prompt(row), "chosen": _turns(chosen), "rejected": _turns(rejected)}]


def _is_factory(row: Row) -> bool:
    if {"chosen", "rejected"} <= set(row):
        spoken = any(row.get(key) is not None for key in TURN_COLUMNS)
        return spoken or row.get("instruction") is not None and row.get("prompt") is None
    output = row.get("output")
    pair = isinstance(output, (list, tuple)) and len(output) == 2 and all(isinstance(text, str) for text in output)
    return pair and row.get("instruction") is not None


def _is_hh(row: Row) -> bool:
    texts = [row.get("chosen"), row.get("rejected")]
    return not row.get("prompt") and all(isinstance(text, str) and _HUMAN_FIRST.match(text) for text in texts)


def _hh(row: Row) -> list[Row]:
    """HH-RLHF: either text is a whole conversation."""
    made: dict[str, Any] = {}
    for key in ("chosen", "rejected"):
        _, *parts = _SPEAKER.split(row[key])
        made[key] = [
            {"role": "user" if speaker == "Human" else "assistant", "content": text.strip()}
            for speaker, text in zip(parts[::2], parts[1::2], strict=True)
        ]
    return [{**row, **made}]


def _trl(row: Row) -> list[Row]:
    """TRL, also with its prompt under another name."""
    if "prompt" in row or not any(row.get(key) is not None for key in QUESTION_COLUMNS):
        return [row]
    return [{**row, "prompt": row_prompt(row)}]


def _rest(row: Row) -> dict[str, Any]:
    """What a row holds beside its texts."""
    return _without(row, *_READ)


def _is_spoken(value: object) -> bool:
    """Whether a value is turns, unlike a list of boxes."""
    turns = [*map(as_message, value)] if isinstance(value, (list, tuple)) else []
    return bool(turns) and all(isinstance(turn, Mapping) and "role" in turn for turn in turns)


def _turns(value: Any) -> Any:
    return turns_of(value) if isinstance(value, Mapping) else value


def _without(row: Row, *keys: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in keys}


def row_prompt(row: Row) -> Any:
    """Returns the prompt of a row: its turns, or its question after those of a `system` text and a `history`."""
    if key := next((key for key in TURN_COLUMNS if row.get(key) is not None), None):
        turns = _turns(row[key])
        system = row.get("system")
        first = as_message(turns[0]) if isinstance(turns, (list, tuple)) and turns else None
        begun = isinstance(first, Mapping) and first.get("role") == "system"
        if first is not None and isinstance(system, str) and system and not begun:
            return [{"role": "system", "content": system}, *turns]
        return turns
    question = next((row[key] for key in QUESTION_COLUMNS if row.get(key) is not None), None)
    more = row.get("input")
    if isinstance(question, str) and isinstance(more, str) and more:
        question = f"{question}\n{more}"
    system, history = row.get("system"), row.get("history")
    if not isinstance(question, str) or not (system or history):
        return question
    turns = [{"role": "system", "content": system}] if system else []
    pairs = isinstance(history, (list, tuple)) and all(isinstance(t, (list, tuple)) and len(t) == 2 for t in history)
    if history and not pairs:
        raise DataError(f"`history` is {short(history)}, expected a list of [question, answer]", "history")
    for asked, answered in history or ():
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return [*turns, {"role": "user", "content": question}]


def _prompt_of(row: Row) -> Any:
    """The prompt of preferences, also of whole conversations."""
    if row.get("prompt") is not None or isinstance(row.get("chosen"), str):
        return row.get("prompt")
    rejected = row["rejected"]
    several = isinstance(rejected, (list, tuple)) and rejected and isinstance(rejected[0], (list, tuple))
    texts = [row["chosen"], *(rejected if several else [rejected])]
    return split_prompt([messages_of(text, "chosen", "assistant") for text in texts])[0]


_PREFERENCES: dict[str, tuple[Callable[[Row], bool], Callable[[Row], list[Row]]]] = {
    "Label Studio": (label_studio.is_annotated, _label_studio),
    "HH-RLHF": (_is_hh, _hh),
    "RSRM": (_is_rsrm, _rsrm),
    "LLaMA-Factory": (_is_factory, _factory),
    "ms-swift": (lambda row: row.get("rejected_response", row.get("rejected_messages")) is not None, _swift),
    "ranked responses": (lambda row: bool(_list_of(row, _LISTS)[0] and _list_of(row, _RANKS)[0]), _ranking),
    "TRL": (lambda row: {"chosen", "rejected"} <= set(row), _trl),
    "two outputs": (lambda row: any(key in row for key in _CHOICES) and bool(_pairs_of(row)), _two_outputs),
}


def no_preference(row: Row) -> DataError:
    """Returns the error about a row of no form of preferences."""
    missing = [key for key in ("chosen", "rejected") if key not in row]
    named = " and ".join(f"`{key}`" for key in missing)
    near = next((key for key in PREFERENCE_COLUMNS if key in row), "")
    form = form_of(row)
    nearest = f", the row looks like {form}" if form and not near else ""
    advice = "name the columns, as in --columns chosen=COLUMN rejected=COLUMN"
    return DataError(f"no column {named}; the columns are {listed(row)}{nearest}; {advice}", missing[0])
