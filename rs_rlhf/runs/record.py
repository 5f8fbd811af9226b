"""Record of a training run: which seed, data and model it is of, and which checkpoints and tables are its own.

`rs_rlhf_run.json` in the `output_dir` describes the run that was begun there last. A run is a chain of parts: one for
its start, and one for each time it was resumed. Checkpoints (in `trainer_state.json`) and tables (in the metadata of
the Parquet file) name the part that wrote them. What a part wrote after the step from which the run was later resumed
is not the run's any more: it lies on a branch that was given up.

What a run is told by (`about`: command, data, configuration, versions) may change when it is resumed, and is that of
the last part.

Left out: records of earlier runs in the same folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..version import __version__
from .files import read_json, write_json

FILE = "rs_rlhf_run.json"
STANDARDS = "score_standards_*.json"  # by what several score models' scores are standardised, * being a hash
KEY = "rs_rlhf_run"  # of the record in a `trainer_state.json`, and of the stamp in a table's metadata
HIDDEN = "***"  # in place of a secret
_SECRET_FLAG = re.compile(r"--\w*(hub[_-]token|api[_-]key|password|secret)")
_SECRET = re.compile(
    r"\b(hf_|sk-)\w{8,}|(?<=://)[^/@\s]+(?=@)"
)  # a token of the hub or an endpoint; a name in an address


@dataclass(frozen=True)
class Run:
    """A training run.

    Args:
        id (`str`): The same for all parts.
        parts (list of `[str, int]`): The id of each part, and the step at which it begins.
        settings (`dict`): What must not change when the run is resumed.
        about (`dict`): What is told of the last part of the run: `command` (a `list` of arguments), `data`
            (the names that were given), `config` (options that are not their defaults), `versions`, and so on; empty
            for a run of an earlier version.
    """

    id: str
    parts: list[list[Any]]
    settings: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def begun(
        cls,
        settings: Mapping[str, Any],
        earlier: Run | None = None,
        step: int = 0,
        about: Mapping[str, Any] | None = None,
    ) -> Run:
        """Returns a new run, or with `earlier` its next part, which begins at a step."""
        part = uuid.uuid4().hex[:8]
        before = (part, []) if earlier is None else (earlier.id, earlier.parts)
        return cls(before[0], [*before[1], [part, step]], dict(settings), dict(about or {}))

    @property
    def stamp(self) -> dict[str, str]:
        """The ids of the run and of its last part."""
        return {"run": self.id, "part": self.parts[-1][0]}

    def holds(self, part: str | None, step: int) -> bool:
        """Says whether what a part has written at a step is of this run.

        `None` is a file that names no part, of a version before this record: a run that was resumed from such a
        checkpoint holds the files up to it.
        """
        names = [name for name, _ in self.parts]
        if part is None:
            return 0 < self.parts[0][1] and all(step <= start for _, start in self.parts)
        return part in names and all(step <= start for _, start in self.parts[names.index(part) + 1 :])

    def holds_state(self, state: Mapping[str, Any]) -> bool:
        """Says whether the content of a `trainer_state.json` is of this run."""
        run = run_of(state)
        return self.holds(None if run is None else run.stamp["part"], state.get("global_step", 0))


def read_run(output_dir: str | Path) -> Run | None:
    """Returns the run that was begun in a folder last, `None` if none says so; a damaged record is a [`DataError`]."""
    path = Path(output_dir) / FILE
    if not path.is_file():
        return None
    content = read_json(path, "parts", list, "the training")
    return Run(content["id"], content["parts"], content["settings"], content.get("about", {}))


def write_run(run: Run, output_dir: str | Path) -> None:
    """Writes the record of the run that now begins in a folder."""
    write_json(Path(output_dir) / FILE, {**asdict(run), "rs_rlhf": __version__})


def run_of(state: Mapping[str, Any]) -> Run | None:
    """Returns the run that a `trainer_state.json` names, as it was then."""
    content = (state.get("stateful_callbacks") or {}).get(KEY)
    return None if content is None else Run(**content)


def command_line(argv: Sequence[str] | None = None) -> list[str]:
    """Returns the command of this process, or of such arguments, without secrets: `rs-rlhf` or `python` and a script's
    name, then the arguments. Empty in an interpreter or a notebook, which were given none.

    Example:
        >>> command_line(["/opt/bin/rs-rlhf", "reward", "--hub_token", "hf_abcdefghij"])
        ['rs-rlhf', 'reward', '--hub_token', '***']
    """
    program, *rest = sys.argv if argv is None else argv
    name = os.path.basename(program)
    own = name == "rs-rlhf" or program.endswith(os.path.join("rs_rlhf", "__main__.py"))
    if not own and (not name.endswith(".py") or "ipykernel" in name):
        return []
    shown = ["rs-rlhf"] if own else ["python", name]
    secret = False
    for argument in rest:
        flag, equals, _ = argument.partition("=")
        named = _SECRET_FLAG.fullmatch(flag) is not None
        shown.append(HIDDEN if secret else f"{flag}={HIDDEN}" if named and equals else without_secrets(argument))
        secret = named and not equals
    return shown


def without_secrets(text: str) -> str:
    """Returns a text in which tokens of the hub or of endpoints, and names and passwords of addresses, are hidden."""
    return _SECRET.sub(HIDDEN, text)


def model_files_hash(folder: str | Path) -> str | None:
    """Returns a hash of the names, sizes, first and last megabyte of a model's files; `None` if there are none."""
    content, folder = hashlib.sha256(), Path(folder)
    read = {file for kind in ("*.safetensors", "*.json", "*.jinja") for file in folder.glob(kind)}
    others = {folder / name for name in ("trainer_state.json", "results.json", FILE)} | {*folder.glob(STANDARDS)}
    files = sorted(read - others)
    for file in files:
        size = file.stat().st_size
        content.update(f"{file.name} {size} ".encode())
        with file.open("rb") as stream:
            content.update(stream.read(1 << 20))
            stream.seek(max(0, size - (1 << 20)))
            content.update(stream.read())
    return content.hexdigest()[:16] if files else None
