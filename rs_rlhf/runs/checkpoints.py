"""Checkpoints of a run: which of them were saved to the end, with finite weights.

A run killed while it saves leaves a folder that looks like the newest checkpoint. The trainer writes
`trainer_state.json` last, so a checkpoint is whole when that file parses and the weights' headers can be read (or,
for sharded DeepSpeed and FSDP checkpoints, when their folder is there). A whole one is resumed from if its weights are
finite.

A folder's checkpoints are those of the run that its record names (see `runs.record`), if there is one.

Left out: checksums of the weights, and a look into the shards of DeepSpeed and FSDP.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OptionError
from .record import read_run

if TYPE_CHECKING:
    import torch


def checkpoints_of(output_dir: str | Path) -> dict[int, Path]:
    """Returns the folders (and links) `checkpoint-N` of an `output_dir` by their step, whole or not."""
    paths = Path(output_dir).glob("checkpoint-*")
    return {int(match[1]): path for path in paths if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))}


def parsed_state(folder: str | Path) -> dict[str, Any] | None:
    """Returns what the `trainer_state.json` of a run or checkpoint says, `None` if there is none or it is damaged."""
    try:
        state = json.loads((Path(folder) / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) else None


def is_whole(checkpoint: str | Path) -> bool:
    """Says whether a checkpoint folder was saved to the end."""
    from safetensors import SafetensorError, safe_open

    folder = Path(checkpoint)
    if parsed_state(folder) is None:
        return False
    weights = list(folder.glob("*.safetensors"))
    try:
        for file in weights:
            with safe_open(file, "np"):
                pass
    except (OSError, SafetensorError):
        return False
    return bool(weights) or any(next(folder.glob(shards), None) for shards in ("global_step*", "pytorch_model_fsdp*"))


def is_finite(weights: torch.Tensor) -> bool:
    """Says whether no number of a tensor is NaN or infinite; needs no memory of the tensor's size."""
    import torch

    if not weights.numel() or not weights.is_floating_point():
        return True
    wide = weights if weights.dtype.itemsize > 1 else weights.float()  # torch has no norm of 8-bit numbers
    return bool(torch.linalg.vector_norm(wide.detach(), float("inf")).isfinite())


def flaw(checkpoint: str | Path) -> str | None:
    """Returns why a checkpoint cannot be resumed from; `None` if it can."""
    from safetensors import safe_open

    if not is_whole(checkpoint):
        return "was not saved to the end"
    for file in sorted(Path(checkpoint).glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():
                if not is_finite(weights.get_tensor(name)):
                    return f"holds weights that are not finite ({name})"
    return None


def last_whole_checkpoint(output_dir: str | Path) -> str | None:
    """Returns the newest `checkpoint-N` of a run that can be resumed from, `None` if there is none; warns of each
    newer one.
    """
    run = read_run(output_dir)
    for _, path in sorted(checkpoints_of(output_dir).items(), reverse=True):
        state = None if run is None else parsed_state(path)
        other = run is not None and state is not None and not run.holds_state(state)
        wrong = "is not of the run that was begun here last" if other else flaw(path)
        if wrong is None:
            return str(path)
        warnings.warn(f"{path} {wrong} and is passed over.", stacklevel=2)
    return None


def resume_value(value: str | bool | None) -> str | bool | None:
    """Returns `resume_from_checkpoint` with `"true"` and `"false"` as what they say."""
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    return value


def resolve_resume(value: str | bool | None, output_dir: str | Path) -> str | None:
    """Turns `resume_from_checkpoint` into the path of a whole checkpoint with finite weights.

    `True` or `"true"` is the last one of `output_dir` (`None` if there is none), `None`, `False` or `"false"` starts
    anew; a path that is not one is an [`OptionError`].
    """
    value = resume_value(value)
    if value is True:
        return last_whole_checkpoint(output_dir)
    if not value:
        return None
    if wrong := flaw(value):
        raise OptionError(
            f"{value} {wrong}; pass --resume_from_checkpoint true for the last checkpoint that can be resumed from.",
            "resume_from_checkpoint",
        )
    return str(value)
