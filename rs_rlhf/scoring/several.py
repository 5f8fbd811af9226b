"""Several score models in one option, `--score_model a,b,c`, and the options of how their scores become one.

Apart from `ensemble`, so that `--help` loads no torch. Left out: models here and models behind a server in one list.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import Any

from ..errors import DataError, OptionError
from ..options import option

RULES = ("mean", "min", "mean-std")  # the first is the default


def is_url(model: str | None) -> bool:
    """Whether the name is the address of reward servers (several are separated by commas)."""
    return str(model).startswith(("http://", "https://"))


def model_names(model: str | None) -> list[str]:
    """Returns the models that an option names, separated by commas.

    Addresses are those of servers of one model, and count as one, as does a folder that has a comma in its name.

    Example:
        >>> model_names("out/a, out/b"), model_names("http://a:1,http://b:1")
        (['out/a', 'out/b'], ['http://a:1,http://b:1'])
    """
    if model is None:
        return []
    names = [name.strip() for name in str(model).split(",") if name.strip()]
    return [str(model)] if os.path.isdir(model) or all(map(is_url, names)) else names


@dataclass(kw_only=True)
class SeveralOptions:
    """How the scores of several models become one."""

    score_combine: str | None = option(
        None,
        "How the scores of several score models (a,b,c) become one: their mean, their min, or mean-std, the mean less "
        "their standard deviation; by default the mean.",
        choices=list(RULES),
    )
    score_calibration: str | None = option(
        None,
        "Image-text file as for `rs-rlhf score`. Each of several models' scores is standardised by their mean and "
        "standard deviation on its texts.",
        metavar="FILE",
    )

    def check_several(self, model: str | None, key: str = "score_model") -> None:
        """Refuses options that `model`, the value of the option `key`, cannot be combined with, or does not need."""
        names = model_names(model)
        if len(names) < 2:
            for name in ("score_combine", "score_calibration"):
                if getattr(self, name) is not None:
                    way = "give it to `rs-rlhf serve`, which combines them" if is_url(model) else "leave it out"
                    raise OptionError(f"--{name} is for several score models in --{key} a,b; {way}.", name)
            return
        if any(map(is_url, names)):
            raise OptionError(
                f"--{key} names models and a server; start `rs-rlhf serve --model a,b` and give its address alone.",
                key,
            )
        if self.score_combine not in (None, *RULES):
            sentence = f"score_combine is {self.score_combine!r}, expected one of {', '.join(RULES)}."
            raise OptionError(sentence, "score_combine")
        if self.score_calibration is None:
            raise OptionError(
                f"--{key} names {len(names)} models, whose scores have no common scale; give --score_calibration, a "
                "file of image-text rows to standardise them on.",
                "score_calibration",
            )

    def several(self) -> dict[str, Any]:
        """Returns these options for [`load_scorer`]."""
        return {"score_combine": self.score_combine, "score_calibration": self.score_calibration}

    @property
    def rule(self) -> str:
        """How scores are combined."""
        return self.score_combine or RULES[0]

    def combination(self, model: str | None) -> dict[str, Any]:
        """Returns what must not change when scores by several models are resumed, beside these; `{}` for one model."""
        if len(model_names(model)) < 2:
            return {}
        file = str(self.score_calibration)
        return {
            "score_combine": self.rule,
            "score_calibration": file,
            "score_calibration_hash": calibration_hash(file),
        }


def short_hash(settings: object) -> str:
    """Returns a hash of settings that JSON can hold."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]


def calibration_hash(file: str) -> str:
    """Returns the SHA-256 of a calibration file; anything but a file is a [`DataError`]."""
    if not os.path.isfile(file):
        raise DataError("no such file; expected image-text rows to standardise scores on", "score_calibration", file)
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
