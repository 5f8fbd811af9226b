"""Profiles of models: how a type of model writes boxes and is asked, declared in `eval/profiles/*.yaml`.

A profile is found by the model's type (`model_type` of its config) or given by name. Evaluation and rewards read boxes
with it, so that a policy is trained by the rule that it is measured by. Left out: chat templates (a processor has its
own), and sampling.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .. import declarations
from ..data.group import Group
from ..declarations import did_you_mean
from ..errors import DeclarationError, ImageError, ModelError
from ..metrics.box_forms import FORMS
from ..metrics.boxes import BOX_UNITS, PAIRINGS, RESIZED, Box, needs_size, read_boxes
from .pixel_budget import has_budget, pixel_budget, resize_factor, resized
from .policies.chat_client import is_endpoint

if TYPE_CHECKING:
    from transformers import ProcessorMixin

KIND = "eval/profiles"
TASKS = ("classification", "vqa", "choice", "grounding", "captions")  # of models that answer in words
RESIZE = ("factor", "min_pixels", "max_pixels")
REQUEST = "{box_request}"  # in a benchmark's prompt


@dataclass
class Profile:
    """How a type of model writes boxes, and how it is asked.

    Args:
        title (`str`): One line: model, form and unit.
        unit (`str`): Unit of the coordinates, a key of [`BOX_UNITS`].
        forms (`list[str]`): Forms that are read, keys of [`FORMS`]; the first that finds a box counts.
        request (`str`): The sentence that asks for a box; it stands for `{box_request}` in a benchmark's prompt.
        source (`str`): Paper or page that the form comes from.
        model_types (`list[str]`): `model_type` of the configs of the models that write so.
        pairing (`str`): How boxes are paired with the right ones, one of [`PAIRINGS`].
        prefixes (`dict[str, str]`): Task -> what stands before a question of it.
        resize (`dict[str, int]`): `factor`, `min_pixels` and `max_pixels` of the models' processor, for the unit
            [`RESIZED`]: it says what the model saw if the model's own processor cannot be asked (behind an endpoint).
        name (`str`): The file's name; filled in on loading.

    Raises:
        DeclarationError: A value of another type, an unknown unit, form or task, or no `resize` for its unit.
    """

    title: str
    unit: str
    forms: list[str]
    request: str
    source: str
    model_types: list[str] = field(default_factory=list)
    pairing: str = "best"
    prefixes: dict[str, str] = field(default_factory=dict)
    resize: dict[str, int] = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        for entry in fields(self):
            if entry.name != "resize":
                declarations.check_type(entry.name, str(entry.type), getattr(self, entry.name))
        known: dict[str, Collection[str]] = {"unit": BOX_UNITS, "forms": FORMS, "pairing": PAIRINGS, "prefixes": TASKS}
        for key, choices in known.items():
            value = getattr(self, key)
            for name in [value] if isinstance(value, str) else value:
                if name not in choices:
                    raise DeclarationError(f"{key} has {name!r}{did_you_mean(name, choices)}", key)
        if not self.forms:
            raise DeclarationError(f"forms is empty, expected some of {', '.join(FORMS)}.", "forms")
        whole = isinstance(self.resize, dict) and all(
            type(value) is int and value > 0 for value in self.resize.values()
        )
        if not whole or set(self.resize) != (set(RESIZE) if self.unit == RESIZED else set()):
            expected = (
                f"whole numbers for {', '.join(RESIZE)}" if self.unit == RESIZED else f"none: it is for {RESIZED}"
            )
            raise DeclarationError(f"resize is {self.resize!r:.80}, expected {expected}.", "resize")

    def read(
        self, output: str, size: Sequence[int] | None, seen_size: Sequence[int] | None = None
    ) -> tuple[list[Box], str | None]:
        """Reads the boxes of an answer, see [`read_boxes`]; without `seen_size` it is that of `resize`."""
        if self.unit == RESIZED and seen_size is None and size is not None:
            seen_size = self.seen_size(size)
        return read_boxes(output, self.unit, self.forms, size, seen_size)

    def seen_size(self, size: Sequence[int], budget: tuple[int, int, int] | None = None) -> tuple[int, int]:
        """Returns `(width, height)` that the processor resizes an image of a size to; `budget` is another one than the
        declared: factor, fewest and most pixels. An [`ImageError`] says that the image is too long and thin.
        """
        factor, low, high = budget or tuple(self.resize[name] for name in RESIZE)
        try:
            return resized(size[0], size[1], factor, (low, high))
        except ValueError as error:
            raise ImageError(f"image of {size[0]}x{size[1]} pixels: {error}") from None

    @property
    def sized(self) -> bool:
        """Whether reading needs the size of the image."""
        return needs_size(self.unit) or "geochat" in self.forms

    def ask(self, group: Group, task: str) -> Group:
        """Returns a question as this model is asked it: `{box_request}` filled in, behind the prefix of the task."""
        prefix, prompt = self.prefixes.get(task, ""), []
        for turn in group.prompt:
            parts = [dict(part) for part in turn["content"]]
            for part in (part for part in parts if part["type"] == "text"):
                if REQUEST in part["text"]:
                    part["text"] = part["text"].replace(REQUEST, self.request).strip()
                if turn["role"] == "user":
                    part["text"], prefix = prefix + part["text"], ""  # once
            prompt.append({**turn, "content": parts})
        return replace(group, prompt=prompt)

    def asks(self, task: str) -> dict[str, str]:
        """Returns what the answers to a task depend on: empty for a task that is asked the same way with any model."""
        given = {"prefix": self.prefixes.get(task, ""), "box_request": self.request if task == "grounding" else ""}
        return {key: text for key, text in given.items() if text}


def load_profile(name_or_path: str) -> Profile:
    """Loads a profile by name or from a YAML file; a [`DeclarationError`] says the nearest name, or the key."""
    profile = declarations.load(KIND, name_or_path, Profile)
    return replace(profile, name=profile.name or declarations.find(KIND, name_or_path).stem)


def profile_of_type(model_type: str | None) -> Profile | None:
    """Returns the declared profile of a type of model, `None` if there is none."""
    known = map(load_profile, declarations.names(KIND))
    return next((profile for profile in known if model_type in profile.model_types), None)


def model_profile(model: str, given: str | None = None, endpoint: str | None = None) -> Profile | None:
    """Returns the profile that is given by name or path, else that of the model's type, `None` if it has none."""
    if given is not None:
        return load_profile(given)
    return None if is_endpoint(model, endpoint) else profile_of_type(checkpoint_type(model))


def checkpoint_type(path: str) -> str | None:
    """Returns the `model_type` in a checkpoint's config, of an adapter that of its base; no weights are loaded.

    A [`ModelError`] says that there is no such checkpoint.
    """
    from transformers import PreTrainedConfig

    path = declarations.in_the_box(path)
    adapter = Path(path) / "adapter_config.json"
    if adapter.is_file():
        return checkpoint_type(json.loads(adapter.read_text())["base_model_name_or_path"])
    try:
        return PreTrainedConfig.get_config_dict(path)[0].get("model_type")
    except OSError as error:
        raise ModelError(f"{path} cannot be loaded as a policy: {str(error).strip().splitlines()[0]}") from None


def no_profile(model: str) -> str:
    """Says that nobody knows how a model writes boxes, and what to give."""
    return (
        f"in which form and unit {model} writes them is not known, since its type has no profile; give the name of "
        f"one ({', '.join(declarations.names(KIND))}) or a YAML file of your own"
    )


def processor_budget(processor: ProcessorMixin | None) -> tuple[int, int, int] | None:
    """Returns a processor's factor, fewest and most pixels, if it resizes images to a pixel budget."""
    if processor is None or not has_budget(processor):
        return None
    return resize_factor(processor), *pixel_budget(processor)
