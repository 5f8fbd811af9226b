"""Identity of score models: the declared model, folder or hub id that a name means, and hashes of what was loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import declarations
from ..errors import DeclarationError, ModelError, OptionError
from ..imagery.options import ImageOptions
from ..runs.record import model_files_hash
from .http import needs_options
from .several import model_names

if TYPE_CHECKING:
    from .scorer import Scorer

LARGE_IMAGE = (2048, 2048)  # by which a client estimates tokens if there is no pixel budget


@dataclass(frozen=True)
class RewardModelCard:
    """A named score model: one file of `reward_models/`."""

    model: str  # hub id or path of the checkpoint
    licence: str  # of the weights
    recipe: str  # the recipe that made it, or the paper
    revision: str | None = None  # branch, tag or commit on the hub
    positions: str | None = None  # "mrope" or "sequential"; by default what the checkpoint says
    prompt_form: str = "question-answer"  # or "empty-question", "user-turn"; see [`GroupCollator`]
    min_pixels: int | None = None  # pixel budget; by default the processor's
    max_pixels: int | None = None
    bands: list[int] | None = None  # this and what follows: how its images are read, see [`ImageOptions`]
    stretch: str | None = None
    stretch_range: list[float] | None = None
    nodata: float | None = None
    sensors: dict[str, Any] | None = None
    description: str = ""  # one line about it

    def __post_init__(self) -> None:
        from ..models.collator import PROMPT_FORMS

        if self.prompt_form not in PROMPT_FORMS:
            raise OptionError(f"prompt_form must be one of {', '.join(PROMPT_FORMS)}, got {self.prompt_form!r}.")
        self.image_options()  # refuses what images cannot be read with

    def image_options(self, given: ImageOptions | None = None) -> ImageOptions:
        """Returns `given`, filled with the model's own, see [`filled_options`]."""
        return filled_options(given or ImageOptions(), vars(self))


def filled_options(given: ImageOptions, model: Mapping[str, Any]) -> ImageOptions:
    """Returns image options with a model's `bands`, `stretch`, `stretch_range` and `nodata` in place of `None`.

    A model's `sensors` hold if none of these are given.
    """
    missing = {name: model[name] for name in ("bands", "nodata") if getattr(given, name) is None}
    if given.stretch is None:
        missing |= {name: model[name] for name in ("stretch", "stretch_range")}
    if not needs_options(given):
        missing["sensors"] = model.get("sensors") or ()
    return replace(given, **missing)


def find_card(name_or_path: str) -> RewardModelCard:
    """Returns the declared reward model of that name, or a card for a folder or hub id (`owner/name`)."""
    if _is_declared(name_or_path):
        card = declarations.load("reward_models", name_or_path, RewardModelCard)
        return replace(card, model=declarations.in_the_box(card.model))
    if Path(name_or_path).is_dir() or _is_hub_id(name_or_path):
        return RewardModelCard(name_or_path, licence="", recipe="")
    nearest = declarations.did_you_mean(name_or_path, declarations.names("reward_models"))
    raise DeclarationError(f"{name_or_path!r} is neither a folder nor a reward model{nearest}")


def _is_declared(name: str) -> bool:
    path = Path(name)
    return not path.is_dir() and (path.suffix in (".yaml", ".yml") or name in declarations.names("reward_models"))


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def refuse_unmade(card: RewardModelCard) -> None:
    """Refuses a card whose model is a folder that is not there: its recipe has not been run."""
    if card.recipe and not Path(card.model).is_dir() and not _is_hub_id(card.model):
        raise DeclarationError(f"no folder {card.model} below the working folder; run the recipe {card.recipe} first.")


def not_loaded(path: str, error: OSError) -> DeclarationError:
    """Returns what to raise if transformers could not load a model."""
    reason = str(error).strip().split("\n")[0]
    if Path(path).is_dir():
        return DeclarationError(f"the folder {path} cannot be loaded: {reason}")
    return DeclarationError(f"{path} is neither a folder here nor could it be loaded from the hub: {reason}")


def refuse_headless(path: str, kwargs: Mapping[str, Any]) -> None:
    """Refuses a checkpoint whose architecture has no score head."""
    from ..models.vlm import hub_config

    architectures = hub_config(path, kwargs).architectures or []
    if not {"ScoreModel", "Qwen2Reward"} & set(architectures):
        raise ModelError(
            f"{path} is not a score model (architectures {architectures}): its head would be random. Train one with "
            "`rs-rlhf reward`, or load it with ScoreModel.from_pretrained to start training."
        )


def model_stamp(path: str | None) -> str | None:
    """Returns a hash of the names, sizes, first and last megabyte of the files of a model, a folder or declared in
    `reward_models/`; `None` for a hub id, or no name. Several models, separated by commas, have one of their hashes.
    """
    names = model_names(path)
    if path is None or len(names) > 1:
        stamps = [model_stamp(name) for name in names]
        return hashlib.sha256(" ".join(map(str, stamps)).encode()).hexdigest()[:16] if all(stamps) and stamps else None
    (path,) = names
    path = find_card(path).model if _is_declared(path) else declarations.in_the_box(path)
    return model_files_hash(path)


def model_hash(scorer: Scorer) -> str:
    """Returns the SHA-256 of weights, dtype, tokenizer, pixel budget, layout, image options; device-independent."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(scorer.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    settings = model_settings(scorer) | processor_settings(scorer.processor)
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def processor_settings(processor: Any) -> dict[str, Any]:
    """Returns all that a processor makes inputs by."""
    backend = getattr(processor.tokenizer, "backend_tokenizer", None)
    return {
        "chat_template": str(processor.chat_template),
        "image_processor": processor.image_processor.to_dict(),
        "vocabulary": sorted(processor.tokenizer.get_vocab().items()),
        "tokenizer": backend.to_str() if backend is not None else "",
    }


def model_settings(scorer: Scorer) -> dict[str, Any]:
    """Returns the settings that a client should know: positions, layout, pixel budget, how images are read."""
    from ..models.pixel_budget import look, pixel_budget, resize_factor

    budget: dict[str, Any] = {"pixel_budget": None}
    if scorer.collator.fits:
        low, high = pixel_budget(scorer.processor)
        budget = {"pixel_budget": {"min_pixels": low, "max_pixels": high, "factor": resize_factor(scorer.processor)}}
    else:
        budget["image_tokens"] = look(scorer.processor, LARGE_IMAGE)[0]
    options = {
        name: value for name, value in scorer.collator.image_options.recorded().items() if name != "max_image_pixels"
    }
    if options["sensors"] is None:
        del options["sensors"]
    return {
        "positions": scorer.model.config.positions,
        "output_activation": scorer.model.config.output_activation,
        "dtype": str(scorer.model.dtype).removeprefix("torch."),
        "prompt_form": scorer.collator.prompt_form,
        **budget,
        "image_options": options,
    }
