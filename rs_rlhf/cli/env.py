"""`rs-rlhf env`: the versions and the device that a bug report needs."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from ..runs.progress import versions

PACKAGES = ("torch", "transformers", "trl", "accelerate", "deepspeed", "peft", "datasets", "qwen-vl-utils")


@dataclass(kw_only=True)
class EnvOptions:
    """Print the versions that a bug report needs."""


def main(options: EnvOptions) -> None:
    """Prints versions and the device."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    device = ", ".join(gpus) or f"cpu ({torch.get_num_threads()} threads)"
    package, *others = versions(*PACKAGES).items()
    python = ("python", f"{platform.python_version()} ({platform.platform()})")
    for name, text in (package, python, *others, ("device", device)):
        print(f"{name:<14} {text}")
