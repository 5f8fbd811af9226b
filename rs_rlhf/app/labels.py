"""People's choices between two texts: an append-only log of them, who chooses what next, and what is counted.

A line of the log is one choice, or the undoing of one, on the disk before the next pair is shown; whoever starts again
with the same log goes on where it ends. A choice is kept as `a` or `b`, the pair's own order, whatever side it was
shown on. Left out: what pairs there are and in which order (`pairs`), the page (`page`).
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.group import check_encodable
from ..errors import DataError, OptionError, RequestError
from ..metrics.agreement import annotator_agreement, score_agreement
from ..runs.files import append_lines, cut_torn_line, json_lines, lock, read_lines, write_text
from .pairs import Pair

CHOICES = ("a", "b", "tie", "both_bad")
BUTTONS = ("left", "right", "tie", "both_bad")  # what the page sends
LONGEST_NAME = 60  # characters of an annotator's
_HEAD = b'{"settings": {"log": "choices"'


class ChoiceLog:
    """The choices of all annotators, in a file that grows only.

    Args:
        path (`Path`): The file; made if it is not there. A half line that a kill has left is cut off.
        settings (`dict`): What a reader may want to know of where the pairs come from; kept in the first line.

    Raises:
        DataError: The file is no log of choices, or a line of it is damaged.
        OptionError: Another process writes it.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.made: dict[str, dict[str, str]] = {}  # by annotator, the choice by pair, in the order they were made
        self._writing = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = not path.exists() or not path.stat().st_size
        if fresh:
            write_text(path, json_lines([{"settings": {"log": "choices", **settings}}]))
        self._handle = os.open(path, os.O_RDONLY)
        if not lock(self._handle, path, wait=False):
            os.close(self._handle)
            raise OptionError(f"another process writes {path}; end it, or give another --label_log.", "label_log")
        cut_torn_line(path, _HEAD)
        for number, record in enumerate(read_lines(path)[1:], start=2):
            self._read(record, f"{path}, line {number}")

    def _read(self, record: Mapping[str, Any], where: str) -> None:
        annotator, pair, choice = (record.get(key) for key in ("annotator", "pair", "choice"))
        if not isinstance(annotator, str) or not isinstance(pair, str) or choice not in (*CHOICES, "undo"):
            expected = f"expected `annotator`, `pair` and a `choice` of {', '.join(CHOICES)} or undo"
            raise DataError(f"not a choice, {expected}; delete the line", "choice", where)
        self._apply(annotator, pair, choice)

    def _apply(self, annotator: str, pair: str, choice: str) -> None:
        made = self.made.setdefault(annotator, {})
        made.pop(pair, None)  # so that the last choice is the last one made
        if choice != "undo":
            made[pair] = choice

    def of(self, annotator: str) -> dict[str, str]:
        """Returns an annotator's choice by pair, in the order they were made."""
        return dict(self.made.get(annotator, {}))  # a copy: another thread may be writing

    def add(self, annotator: str, pair: Pair, choice: str, flipped: bool) -> bool:
        """Records a choice; returns whether it was new: of a pair that the annotator has chosen on, nothing is kept.

        A second press of a key, or a page that was left open elsewhere, so changes nothing.
        """
        with self._writing:
            if pair.id in self.of(annotator):
                return False
            self._append(annotator, pair.id, choice, shown="ba" if flipped else "ab", a=pair.texts[0], b=pair.texts[1])
            return True

    def undo(self, annotator: str) -> str | None:
        """Takes back the annotator's last choice, by a record of its own; returns its pair, `None` without one."""
        with self._writing:
            last = next(reversed(self.of(annotator)), None)
            if last is not None:
                self._append(annotator, last, "undo")
            return last

    def _append(self, annotator: str, pair: str, choice: str, **more: str) -> None:
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        append_lines(self.path, [{"pair": pair, "annotator": annotator, "choice": choice, "time": when, **more}])
        self._apply(annotator, pair, choice)

    def close(self) -> None:
        """Lets another process write the log."""
        os.close(self._handle)


class Labelling:
    """Who chooses between what: the pairs in their order, and the log.

    Args:
        pairs (sequence of [`Pair`]): In the order in which they are shown.
        log ([`ChoiceLog`]): The choices.
        margins (`dict`): By pair, the score of `a` less that of `b`; empty without a score model.
    """

    def __init__(self, pairs: Sequence[Pair], log: ChoiceLog, margins: Mapping[str, float] | None = None) -> None:
        self.pairs, self.log, self.margins = list(pairs), log, dict(margins or {})
        self.by_id = {pair.id: pair for pair in self.pairs}

    def next(self, annotator: str) -> Pair | None:
        """Returns the first pair that the annotator has not chosen on; `None` after the last."""
        done = self.log.of(annotator)
        return next((pair for pair in self.pairs if pair.id not in done), None)

    def choose(self, annotator: str, pair_id: str, button: str) -> bool:
        """Records what an annotator chose of a pair as it was shown; returns whether it was new.

        Raises:
            RequestError: The pair or the choice is unknown.
        """
        if pair_id not in self.by_id:
            raise RequestError(404, "the pair on this page is none of the data; load the page again.")
        if button not in BUTTONS:
            raise RequestError(400, f"there is no choice {button[:60]!r}, expected one of {', '.join(BUTTONS)}.")
        pair = self.by_id[pair_id]
        sides = "ba" if pair.flipped else "ab"
        choice = sides[BUTTONS.index(button)] if button in BUTTONS[:2] else button
        return self.log.add(annotator_name(annotator), pair, choice, pair.flipped)

    def undo(self, annotator: str) -> Pair | None:
        """Takes back the annotator's last choice and returns its pair, to be shown again."""
        last = self.log.undo(annotator)
        return None if last is None else self.by_id.get(last)

    def progress(self, annotator: str) -> dict[str, int]:
        """Counts the annotator's pairs: `done` of `pairs`, and each choice."""
        counts = Counter(choice for pair, choice in self.log.of(annotator).items() if pair in self.by_id)
        return {"pairs": len(self.pairs), "done": counts.total(), **{name: counts[name] for name in CHOICES}}

    def choices(self) -> dict[str, dict[str, str]]:
        """Returns by annotator the choices on the pairs that are here."""
        made = {
            name: {pair: choice for pair, choice in own.items() if pair in self.by_id}
            for name in list(self.log.made)
            for own in [self.log.of(name)]
        }
        return {name: own for name, own in made.items() if own}

    def elsewhere(self) -> int:
        """Counts the choices of the log on pairs that these data do not hold."""
        return sum(pair not in self.by_id for name in list(self.log.made) for pair in self.log.of(name))

    def agreement(self) -> dict[str, Any]:
        """Returns how far annotators agree: `people`, see [`annotator_agreement`], and `model`, by annotator, see
        [`score_agreement`].
        """
        choices = self.choices()
        model = {name: score_agreement(own, self.margins) for name, own in choices.items()} if self.margins else {}
        return {"people": annotator_agreement(choices), "model": model}

    def preferred(self) -> tuple[list[tuple[Pair, int]], Counter[str]]:
        """Returns the pairs of which more annotators prefer one text, with its place, and counts of all pairs.

        The counts are `written`, `open` (no choice yet), and those of which no preference can be made: `tie`,
        `both_bad`, and `divided` (as many annotators for another choice).
        """
        votes: dict[str, Counter[str]] = {}
        for own in self.choices().values():
            for pair, choice in own.items():
                votes.setdefault(pair, Counter())[choice] += 1
        found, counts = [], Counter[str]()
        for one in self.pairs:
            most = votes.get(one.id, Counter()).most_common(2)
            divided = len(most) == 2 and most[0][1] == most[1][1]
            verdict = "open" if not most else "divided" if divided else most[0][0]
            counts["written" if verdict in ("a", "b") else verdict] += 1
            if verdict in ("a", "b"):
                found.append((one, "ab".index(verdict)))
        return found, counts


def annotator_name(name: str) -> str:
    """Returns an annotator's name, spaces at its ends left out; a [`RequestError`] if it is none."""
    name = " ".join(name.split())
    if not 0 < len(name) <= LONGEST_NAME:
        raise RequestError(400, f"give your name, of at most {LONGEST_NAME} characters: choices are kept by it.")
    try:
        check_encodable(name, "name")
    except DataError as error:
        raise RequestError(400, f"{error}.") from None
    return name
