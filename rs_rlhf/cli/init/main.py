"""`rs-rlhf init FOLDER`: a recipe and the commands of the whole way for a folder of one's own.

Left out: choosing between several data sets in one folder; all files that can be read are used together.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import DataError, ImageError, OptionError
from ...imagery.raster import ImageOptions, read_image
from ...options import option
from ...runs.files import replacing_folder
from .data import prepare
from .findings import Found, look
from .machine import gpus, sizes
from .plan import make_plan, write_plan

TRIED: tuple[dict[str, Any], ...] = (
    {},
    {"stretch": "percentile"},
    {"bands": [1, 2, 3]},
    {"bands": [1, 2, 3], "stretch": "percentile"},
    {"bands": [1], "stretch": "percentile"},
)


@dataclass(kw_only=True)
class InitOptions:
    """Look at a folder of one's own tiles, captions, questions or preferences, and write the whole way for it."""

    folder: Path = option(help="the folder to look at", positional=True, metavar="FOLDER", reads="folder")
    output: Path | None = option(
        None, "new folder for the recipe and the data in one form (default: NAME-recipe)", writes="folder"
    )
    model: str | None = option(None, "model to start from (default: what fits this machine)", reads="model")


def main(options: InitOptions) -> None:
    """Prints what was found and the commands, and writes the recipe."""
    folder = options.folder.resolve()
    output = options.output or Path(f"{folder.name}-recipe")
    if output.exists() and any(output.iterdir()):
        raise OptionError(f"{output} is not empty, and nothing is overwritten; name another --output.", "output")
    found, left = look(folder)
    print(f"{options.folder}: {len(found)} files and folders of data")
    for one in found:
        print(f"  {one.line(folder)}")
    if left and not any(one.kind == "classes" and one.path == folder for one in found):
        print(f"  {len(left)} images that no row names (the first: {os.path.relpath(left[0], folder)})")
    check_found(found, left, options.folder)
    reading = read_one(found, left)
    with replacing_folder(output) as new:
        data = prepare([one for one in found if one.kind], new / "data")
        data.files = {name: output / file.relative_to(new) for name, file in data.files.items()}
        rows = max(count for name, count in data.rows.items() if name.endswith("_train"))
        fit = sizes(gpus(), rows, options.model)
        plan = make_plan(output, data, fit, reading)
        write_plan(plan, new)
    print(f"{fit.told}\n")
    print(f"The way; {output / 'run.sh'} has it too, and the recipes are in {output}:\n")
    for why, words in plan.commands:
        print(f"# {why}\n{shlex.join(words)}")


def check_found(found: list[Found], left: list[Path], folder: Path) -> None:
    """Refuses data that no way begins with, and images that are missing."""
    for one in found:
        if one.kind and one.missing:
            raise DataError(
                f"{len(one.missing)} images of {one.images + len(one.missing)} are missing, such as "
                f"{one.missing[0]:.80}; put them there, or remove their rows, and run the command again",
                "image",
                str(one.path),
            )
    usable = {one.kind for one in found} - {None}
    if not usable and (unknown := [one for one in found if not one.problem]):
        raise DataError(
            "its texts are in columns of no known name; call them caption, question and answer, or prompt, chosen and "
            "rejected",
            "columns",
            str(unknown[0].path),
        )
    if not usable:
        what = f"{len(left)} images without texts" if left else "no data"
        raise DataError(
            f"{what}; expected images in a folder for each class, or beside a CSV or JSON file of captions, questions "
            "with answers, or preferences (chosen, rejected)",
            "folder",
            str(folder),
        )


def read_one(found: list[Found], left: list[Path]) -> dict[str, Any]:
    """Returns how the images are to be read: `bands` and `stretch`, if they need some; prints it.

    One image is tried, the largest.
    """
    names = [Path(name) for one in found for name in one.files]
    files = sorted(names or left, key=lambda path: path.stat().st_size)
    for settings in TRIED if files else ():
        try:
            read_image(str(files[-1]), ImageOptions(**{key: _tuple(value) for key, value in settings.items()}))
        except ImageError as error:
            problem = error
            continue
        if settings:
            shown = " ".join(f"--{key} {_words(value)}" for key, value in settings.items())
            print(f"  {files[-1].name} is read with {shown}; change that in the recipes if other bands are wanted")
        return settings
    if files:
        raise problem
    return {}


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
