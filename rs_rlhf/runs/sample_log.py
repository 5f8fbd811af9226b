"""What was sampled so far: an append-only file beside the output, from which a killed run goes on.

The first line says what the answers depend on; a run with other settings does not go on from it. Every further line
is one batch, written at once: half a line, all that a killed process leaves, is cut off. Left out: locking (two runs
with one output at a time).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ..errors import OptionError
from ..imagery.arguments import READING

# What answers depend on, of a command's options.
_SETTINGS = (
    "policy",
    "input",
    "split",
    "limit",
    "seed",
    "n",
    "temperature",
    "top_p",
    "top_k",
    "max_new_tokens",
    "token_budget",
    "augment",
    "min_pixels",
    "max_pixels",
    "dtype",
    *READING,
)


class SampleLog:
    """Answers, and scores of answers, by row, kept in `OUTPUT.partial`.

    Args:
        path (`Path`): The file.
        settings (`dict`): What the answers depend on.
        by (`str`): What gives the scores; those of another judge are passed over.
        anew (`bool`): Begin anew where the file is of other settings.

    Raises:
        ValueError: The file is of other settings, unless `anew`.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], by: str = "", anew: bool = False) -> None:
        self.path, self.by = path, by
        self.answers: dict[int, list[str]] = {}
        self.scores: dict[int, list[float | None]] = {}
        head = {"settings": json.loads(json.dumps(settings))}
        whole = path.read_bytes().rpartition(b"\n")[0].split(b"\n") if path.exists() else [b""]
        begun = json.loads(whole[0])["settings"] if whole != [b""] else None
        if begun is not None and not anew:
            self._check(begun, head["settings"])
        if begun == head["settings"]:
            for line in whole[1:]:
                entry = json.loads(line)
                if "answers" in entry:
                    self.answers.update(zip(entry["rows"], entry["answers"], strict=True))
                elif entry["by"] == by:
                    self.scores.update(zip(entry["rows"], entry["scores"], strict=True))
            os.truncate(path, sum(len(line) + 1 for line in whole))
            print(f"in {path} already: answers to {len(self.answers)} rows, scores of {len(self.scores)}")
        else:
            path.write_bytes(b"")
            self._append(head)

    @classmethod
    def for_run(cls, output: Path, args: object, rows: Sequence[Any]) -> SampleLog:
        """Opens the log of a command; with `--overwrite` one of other settings is begun anew."""
        settings = {key: getattr(args, key) for key in _SETTINGS}
        content = hashlib.sha256()
        for row in rows:
            images = [_image_stamp(image) for image in row.group.images]
            content.update(json.dumps([row.prompt, row.id, images]).encode())
        settings |= {"policy_files": _stamps(args.policy), "rows_sha256": content.hexdigest()}
        models = [getattr(args, name, None) for name in ("model", "judge_model")]
        judges = [getattr(args, name, None) for name in ("judge", "judge_url", "judge_name")]
        by = [*models, *map(_stamps, models), *judges]
        return cls(output.with_name(output.name + ".partial"), settings, json.dumps(by), anew=args.overwrite)

    def _check(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        differ = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        if differ:
            told = ", ".join(f"{key} ({old.get(key)!r:.40} then, {new.get(key)!r:.40} now)" for key in differ)
            raise OptionError(
                f"{self.path} was begun with other settings: {told}; delete it, set them back, or pass --overwrite."
            )

    def _append(self, entry: Mapping[str, Any]) -> None:
        with self.path.open("ab") as file:
            file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def add_answers(self, rows: Sequence[int], answers: Sequence[Sequence[str]]) -> None:
        """Records a batch."""
        self._append({"rows": list(rows), "answers": [list(own) for own in answers]})
        self.answers.update(zip(rows, map(list, answers), strict=True))

    def add_scores(self, rows: Sequence[int], scores: Sequence[Sequence[float | None]]) -> None:
        """Records what a judge or score model gave the answers of rows."""
        self._append({"rows": list(rows), "by": self.by, "scores": [list(own) for own in scores]})
        self.scores.update(zip(rows, map(list, scores), strict=True))

    @contextmanager
    def replacing(self, output: Path) -> Iterator[IO[str]]:
        """Opens a new file that takes the output's place once it is whole; the log is done with then."""
        new = output.with_name(output.name + ".new")
        with new.open("w", encoding="utf-8") as lines:
            yield lines
        new.replace(output)
        self.path.unlink()


def _image_stamp(image: Any) -> str:
    return hashlib.sha256(image["bytes"]).hexdigest() if isinstance(image, dict) else str(image)


def _stamps(policy: str | None) -> list[list[Any]]:
    """Names, sizes and times of a folder's weights; none for a hub id."""
    files = sorted(Path(policy).glob("*.safetensors")) if policy is not None else []
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
