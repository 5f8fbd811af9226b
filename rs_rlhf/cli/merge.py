"""`rs-rlhf merge`: a LoRA adapter and its base in, a whole model out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import OptionError
from ..options import option


@dataclass(kw_only=True)
class MergeOptions:
    """Merge a LoRA adapter, of a score model with its head or of a policy, into its base."""

    adapter: Path = option(help="folder of the adapter", positional=True, metavar="ADAPTER", reads="folder")
    output: Path = option(help="folder to write to", positional=True, metavar="OUTPUT", writes="folder")
    dtype: Literal["float32", "bfloat16", "float16"] | None = option(
        None, "type of the weights (default: that of the base)"
    )


def main(options: MergeOptions) -> None:
    """Merges, and prints what was written."""
    if options.output.exists() and any(options.output.iterdir()):
        raise OptionError(f"{options.output} is not empty, and nothing is overwritten; name another.", "output")
    from ..models.merge import merge_adapter

    what = merge_adapter(options.adapter, options.output, options.dtype)
    print(f"{what} of {options.adapter} -> {options.output}")
