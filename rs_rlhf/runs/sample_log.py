"""Log of sampled answers and their scores: an append-only file beside the output, from which a killed run resumes.

The first line holds the settings that the answers depend on; a run with other settings does not resume from it. Every
further line is one batch, written at once; half a line, all that a killed process leaves, is cut off. Left out:
locking (two runs with one output at a time).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ..errors import OptionError
from .files import (
    append_lines,
    cut_torn_line,
    differences,
    json_lines,
    of_another_run,
    read_lines,
    replacing,
    write_text,
)


class SampleLog:
    """Answers, and scores of answers, by row.

    Args:
        path (`Path`): The file.
        settings (`dict`): What the answers depend on.
        by (`str`): What gives the scores; those of another judge are skipped.
        anew (`bool`): Start a new log if the file has other settings.

    Raises:
        DataError: A line is damaged.
        OptionError: The file has other settings, and not `anew`.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], by: str = "", anew: bool = False) -> None:
        self.path, self.by = path, by
        self.answers: dict[int, list[str]] = {}
        self.scores: dict[int, list[float | None]] = {}
        self.spreads: dict[int, list[float]] = {}  # of several models' scores, where they are combined
        self.pixels: dict[int, Any] = {}  # (width, height) of the first image as the policy saw it, where recorded
        head = {"settings": json.loads(json.dumps(settings))}
        if path.exists():
            cut_torn_line(path)
        entries = read_lines(path) if path.exists() else []
        told = differences(entries[0]["settings"], head["settings"]) if entries else {}
        if told and len(entries) > 1 and not anew:  # a head alone is of a run that failed at once
            ways = ("delete it", "set that back", "pass --overwrite")
            raise OptionError(of_another_run("answers", told, *ways), next(iter(told)), str(path))
        if not entries or told:
            write_text(path, json_lines([head]))
            return
        for entry in entries[1:]:
            if "answers" in entry:
                self.answers.update(zip(entry["rows"], entry["answers"], strict=True))
                self.pixels.update(zip(entry["rows"], entry.get("pixels", ()), strict=False))
            elif entry["by"] == by:
                self.scores.update(zip(entry["rows"], entry["scores"], strict=True))
                self.spreads.update(zip(entry["rows"], entry.get("std", ()), strict=False))
        print(f"in {path} already: answers to {len(self.answers)} rows, scores of {len(self.scores)}")

    @classmethod
    def beside(cls, output: Path, settings: Mapping[str, Any], by: str = "", anew: bool = False) -> SampleLog:
        """Opens the log of an output, `OUTPUT.partial`."""
        return cls(output.with_name(output.name + ".partial"), settings, by, anew)

    def add_answers(
        self, rows: Sequence[int], answers: Sequence[Sequence[str]], pixels: Sequence[Any] | None = None
    ) -> None:
        """Records a batch; `pixels` for boxes, which some models write in pixels of the image as they see it."""
        more = {} if pixels is None else {"pixels": list(pixels)}
        append_lines(self.path, [{"rows": list(rows), "answers": [list(texts) for texts in answers], **more}])
        self.answers.update(zip(rows, map(list, answers), strict=True))
        self.pixels.update(zip(rows, pixels or (), strict=False))

    def add_scores(self, rows: Sequence[int], scores: Sequence[Sequence[float | None]]) -> None:
        """Records what a judge or score model gave the answers of rows, with the `std` of scores that have one."""
        stds = ([getattr(score, "std", None) for score in values] for values in scores)
        spreads = [[std for std in values if isinstance(std, float)] for values in stds]
        more = {"std": spreads} if any(spreads) else {}
        made = {"rows": list(rows), "by": self.by, "scores": [list(values) for values in scores]}
        append_lines(self.path, [made | more])
        self.scores.update(zip(rows, map(list, scores), strict=True))
        self.spreads.update(zip(rows, spreads if more else (), strict=False))

    @contextmanager
    def replacing(self, output: Path, mode: str = "w") -> Iterator[IO[Any]]:
        """Opens a new file that takes the output's place once it is whole; the log is then removed."""
        with replacing(output, mode) as file:
            yield file
        self.path.unlink()
