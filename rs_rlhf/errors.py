"""Errors that are the user's to mend: a class, the place and the key at fault, and one sentence.

`rs-rlhf` prints exactly these classes as one sentence with exit code 1. Every other exception is a bug and keeps its
traceback. Each class is also the built-in exception that a caller would expect (`ValueError`, `RuntimeError`, …).

Left out: error codes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC
from pathlib import Path

LONGEST_ECHO = 200
FULL = re.compile(r"No space left on device|quota exceeded|PytorchStreamWriter failed|file write failed")
_LONG_RUN = re.compile(rf"\S{{{LONGEST_ECHO + 1},}}")
_LONG_QUOTE = re.compile(
    rf"'[^'\n]{{{LONGEST_ECHO + 1},}}'|\"[^\"\n]{{{LONGEST_ECHO + 1},}}\"|`[^`\n]{{{LONGEST_ECHO + 1},}}`"
)


def clipped(text: str) -> str:
    """Returns the text in which no quotation and no word is longer than 200 characters (a base64 image, say)."""

    def cut(match: re.Match[str]) -> str:
        found = match[0]
        return f"{found[:150]} … {found[-20:]} ({len(found):,} characters)"

    return _LONG_RUN.sub(cut, _LONG_QUOTE.sub(cut, text))


class RSRLHFError(Exception):
    """A mistake that the user can mend.

    Args:
        detail (`str`): What is wrong, what was expected, what to do. Quoted input is cut at 200 characters.
        key (`str`): The column, option or YAML key at fault, if there is one.
        where (`str`): The file and row at fault, such as `"train.jsonl, line 12"`.
    """

    def __init__(self, detail: str, key: str = "", where: str = "") -> None:
        detail = clipped(str(detail))
        super().__init__(f"{where}: {detail}" if where else detail)
        self.detail, self.key, self.where = detail, key, where

    def __reduce__(self) -> tuple[object, ...]:
        return _remade, (type(self), self.args, self.__dict__)  # data-loader workers and process pools pickle errors


def _remade(cls: type[RSRLHFError], args: tuple[object, ...], state: dict[str, object]) -> RSRLHFError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


class DataError(RSRLHFError, ValueError):
    """A row or a file that cannot be used as it is."""


class ImageError(RSRLHFError, ValueError):
    """An image that cannot be read as asked."""


class DeclarationError(RSRLHFError, ValueError):
    """A declaration (YAML) that does not exist or cannot be used."""


class OptionError(RSRLHFError, ValueError):
    """An option or argument that cannot be used, is missing, or does not go with another."""


class ModelError(RSRLHFError, ValueError):
    """A model or checkpoint that cannot be used for what was asked."""


class EndpointError(RSRLHFError, ValueError):
    """A chat endpoint that gave no usable reply.

    Args:
        detail (`str`): What it did; begins with its address.
        status (`int`, *optional*): Its last HTTP status; `None` without an HTTP reply.
    """

    def __init__(self, detail: str, status: int | None = None) -> None:
        super().__init__(detail)
        self.status = status


class RequestError(RSRLHFError, ValueError):
    """A request to the reward server that is answered with an HTTP error.

    Args:
        status (`int`): The HTTP status.
        sentence (`str`): What is wrong.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, self.detail


class ScoreError(RSRLHFError, ValueError):
    """A score model that gave no usable score for a group, such as NaN."""


class ScorerUnavailable(RSRLHFError, RuntimeError):
    """No reward server gave a score; the message has the last cause."""


class ModelMismatch(RSRLHFError, RuntimeError):
    """A server that has another model than the one that the run began with, or lays images out otherwise."""


class RewardFailed(RSRLHFError, RuntimeError):
    """Too many rewards failed; the message says how many and why."""


class TrainingDiverged(RSRLHFError, RuntimeError):
    """A training whose losses or weights are not finite."""


def load_problem(path: object, error: Exception) -> str:
    """Returns why a model or processor cannot be loaded, and what to do, for what transformers raises."""
    folder, text = Path(str(path)), " ".join(str(error).split())
    if isinstance(error, ImportError):
        flash = "lash" in text and "ttention" in text
        advice = "Leave --attn_implementation out, or give sdpa." if flash else "Install what is missing."
        return f"{text.rstrip('.')}. {advice}"
    if not folder.exists() and ("Repo id must" in text or len(folder.parts) > 2 or str(path)[:1] in "./~"):
        return "there is no such folder, and a model of the hub is named namespace/name; give another."
    if isinstance(error, OSError) and not folder.exists():
        return f"neither a folder here nor a model that the hub gives: {text.split('. ')[0].rstrip('.')}."
    if any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors")):
        return (
            "its weights are .bin files only, which could run code and are not read; load the model once where you "
            "trust it, and save it with save_pretrained, which writes model.safetensors."
        )
    return text


@contextmanager
def loading(
    path: object, kinds: tuple[type[Exception], ...] = (OSError, ValueError, ImportError), key: str = ""
) -> Iterator[None]:
    """Turns what transformers raises for a model or processor that cannot be loaded into a [`ModelError`].

    Args:
        path (`str`): The model's name or folder.
        kinds (`tuple`): The exceptions that mean so.
        key (`str`): The option that names the model; the sentence begins with it.
    """
    try:
        with code_refused(path):
            yield
    except RSRLHFError:
        raise
    except kinds as error:
        option = f"--{key}: " if key else ""
        raise ModelError(option + load_problem(path, error), key, str(path)) from error


@contextmanager
def code_refused(path: object) -> Iterator[None]:
    """Turns transformers' refusal to run a checkpoint's own code into a [`ModelError`] that names the checkpoint."""
    try:
        yield
    except ValueError as error:
        if isinstance(error, RSRLHFError) or "trust_remote_code=True" not in str(error):
            raise
        raise ModelError(
            "cannot be loaded without running the custom code that it brings along, which is not run; take a model of "
            "a family that transformers has, or read that code and pass trust_remote_code=True.",
            "trust_remote_code",
            str(path),
        ) from error


@contextmanager
def disk_full(path: object = "") -> Iterator[None]:
    """Turns a full disk into an [`OptionError`]; `path` is where, if the exception does not say it.

    safetensors and torch raise their own exceptions, with the system's words or (torch) without.
    """
    try:
        yield
    except Exception as error:
        number = getattr(error, "errno", None)
        if isinstance(error, RSRLHFError) or not (number in (ENOSPC, EDQUOT) or FULL.search(str(error))):
            raise
        where = str(getattr(error, "filename", None) or path)
        raise OptionError(
            "no space is left on the disk; free some, or name another place, and run the same command again (a "
            "training resumes with --resume_from_checkpoint true).",
            where=where,
        ) from error
