"""Checkpoints of a run: which of them were saved to the end.

A run killed while it saves leaves a folder that looks like the newest checkpoint. The trainer writes
`trainer_state.json` last, so a checkpoint is whole when that file parses and the weights' headers can be read (or,
for sharded DeepSpeed and FSDP checkpoints, when their folder is there).

Left out: checksums of the weights.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

from ..errors import OptionError


def is_whole(checkpoint: str | Path) -> bool:
    """Says whether a checkpoint folder was saved to the end."""
    from safetensors import SafetensorError, safe_open

    folder = Path(checkpoint)
    try:
        json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        weights = list(folder.glob("*.safetensors"))
        for file in weights:
            with safe_open(file, "np"):
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    return bool(weights) or any(next(folder.glob(shards), None) for shards in ("global_step*", "pytorch_model_fsdp*"))


def last_whole_checkpoint(output_dir: str | Path) -> str | None:
    """Returns the newest whole `checkpoint-N` of a run, `None` if there is none; warns of each newer one that is not
    whole.
    """
    paths = Path(output_dir).glob("checkpoint-*")
    found = {int(match[1]): path for path in paths if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))}
    for _, path in sorted(found.items(), reverse=True):
        if is_whole(path):
            return str(path)
        warnings.warn(f"{path} was not saved to the end and is passed over.", stacklevel=2)
    return None


def resolve_resume(value: str | bool | None, output_dir: str | Path) -> str | None:
    """Turns `resume_from_checkpoint` into the path of a whole checkpoint.

    `True` or `"true"` is the last whole one of `output_dir` (`None` if there is none), `None`, `False` or `"false"`
    starts anew; a path that is not a whole checkpoint is an [`OptionError`].
    """
    if isinstance(value, str) and value.lower() in ("true", "false"):
        value = value.lower() == "true"
    if value is True:
        return last_whole_checkpoint(output_dir)
    if not value:
        return None
    if not is_whole(value):
        raise OptionError(
            f"{value} is not a whole checkpoint; pass --resume_from_checkpoint true for the last whole one.",
            "resume_from_checkpoint",
        )
    return str(value)
