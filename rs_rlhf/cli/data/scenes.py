"""`rs-rlhf data scenes`: made-up overhead scenes with captions and classes."""

from __future__ import annotations

from dataclasses import dataclass

from ...options import option


@dataclass(kw_only=True)
class ScenesOptions:
    """Write made-up overhead scenes with captions and classes."""

    path: str = option(
        help="folder to write to: images, train.jsonl, validation.jsonl",
        positional=True,
        metavar="FOLDER",
        writes="folder",
    )
    n_train: int = option(1000, "training scenes")
    n_validation: int = option(200, "validation scenes")
    seed: int = option(0, "seed of the data")
    size: int = option(112, "edge of an image in pixels")


def main(options: ScenesOptions) -> None:
    """Writes the scenes; see [`rs_rlhf.data.scenes.make.write_scenes`]."""
    from ...data.scenes.make import write_scenes

    write_scenes(options.path, options.n_train, options.n_validation, options.seed, options.size)
    print(f"{options.n_train} training and {options.n_validation} validation scenes -> {options.path}")
