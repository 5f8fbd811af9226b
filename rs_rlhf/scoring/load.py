"""`load_scorer`: the one loader of score models, reward servers, CLIPs and baselines, by their options."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from ..errors import OptionError
from ..imagery.arguments import PixelOptions, RenderingOptions
from ..imagery.options import RENDERING, ImageOptions
from ..options import option
from .base import GroupScorer
from .cards import find_card, model_stamp
from .several import SeveralOptions, is_url, model_names, short_hash

# Options that only some scorers read; the others refuse them.
READ_BY = {
    **dict.fromkeys(("model", "dtype", "score_combine", "score_calibration"), ("model", "clip")),
    **dict.fromkeys(("prompt_form", "token_budget", "min_pixels", "max_pixels"), ("model",)),
    "seed": ("random",),
}
READING_FLAGS = [field.name for field in fields(RenderingOptions)]  # how images are read, if scores depend on it
NO_MODEL = "no --model; give one to score with, or --scorer length or random."


@dataclass(kw_only=True)
class ScorerOptions(SeveralOptions, PixelOptions):
    """What scores, and how it is loaded."""

    scorer: Literal["model", "clip", "length", "random"] = option(
        "model", "what scores: a score model, a CLIP, the number of words, or chance"
    )
    model: str | None = option(
        None, "folder, hub id, or name in reward_models/ (score models); several (a,b,c) are combined", reads="model"
    )
    dtype: str | None = option(None, "type of the weights, such as bfloat16 (default: the checkpoint's)")
    prompt_form: str | None = option(None, "question-answer, empty-question or user-turn (default: the model's)")
    token_budget: int = option(4096, "tokens of a batch at most")
    num_workers: int = option(0, "threads that read images and lay out batches")
    seed: int = option(0, "seed of --scorer random", least=0)

    def check(self) -> None:
        """Refuses options that are missing, out of range, or not read by this scorer."""
        if self.scorer in READ_BY["model"] and self.model is None:
            raise OptionError(NO_MODEL, "model")
        readers = READ_BY | dict.fromkeys(READING_FLAGS, READ_BY["dtype"])
        for field in fields(self):  # a command's options have those of reading beside these
            unread = self.scorer not in readers.get(field.name, (self.scorer,))
            if unread and getattr(self, field.name) != field.default:
                raise OptionError(f"--{field.name} is not read with --scorer {self.scorer}; leave it out.", field.name)
        for name, least in (("num_workers", 0), ("token_budget", 1)):
            if getattr(self, name) < least:
                raise OptionError(f"--{name} is {getattr(self, name)}, expected at least {least}.", name)
        self.check_several(self.model, "model")


def load_scorer(
    options: ScorerOptions | str,
    image_options: ImageOptions | None = None,
    device: str | None = None,
    *,
    standards: Path | None = None,
    **more: Any,
) -> GroupScorer:
    """Loads what scores, or raises DeclarationError, ModelError or OptionError if the model is not there or no scorer.

    Args:
        options ([`ScorerOptions`] or `str`): What to load; of a score model or servers the name alone will do.
        image_options ([`ImageOptions`], *optional*): How images are found and read.
        device (`str`, *optional*): Device of the model; by default accelerate's choice for this process.
        standards (`Path`, *optional*): Folder that keeps by what the scores of several models are standardised; they
            are standardised by what it holds, so that a run that is resumed has the same scores.
        **more: Passed to [`Scorer.from_pretrained`] (`attn_implementation`, `sharded`, …) or [`RemoteScorer`]
            (`timeout`, `wait`, …). With a name also the fields of [`ScorerOptions`].

    Example:
        >>> scorer = load_scorer("out/score-model", dtype="bfloat16")  # doctest: +SKIP
        >>> scorer.score_groups([make_group("", ["a river."], "a.png")])  # doctest: +SKIP
        [[1.73]]
    """
    if isinstance(options, str):
        named = {field.name: more.pop(field.name) for field in fields(ScorerOptions) if field.name in more}
        options = ScorerOptions(model=options, **named)
    if options.scorer in ("length", "random"):
        from .baselines import LengthScorer, RandomScorer

        return LengthScorer() if options.scorer == "length" else RandomScorer(options.seed)
    if options.model is None:
        raise OptionError(NO_MODEL, "model")
    options.check_several(options.model, "model")
    if len(names := model_names(options.model)) > 1:
        return _load_several(names, options, image_options, device, standards, more)
    (model,) = names
    if is_url(model):
        from .remote import RemoteScorer

        return RemoteScorer(model, image_options=image_options, **more)
    more |= {"image_options": image_options, "device": device}
    if options.dtype is not None:
        more["dtype"] = options.dtype
    if options.scorer == "clip":
        from .clip import ClipScorer

        return ClipScorer.from_pretrained(model, **more)
    from .scorer import Scorer

    more |= {name: getattr(options, name) for name in ("prompt_form", "token_budget", "num_workers")}
    return Scorer.from_pretrained(model, min_pixels=options.min_pixels, max_pixels=options.max_pixels, **more)


def _load_several(
    names: Sequence[str],
    options: ScorerOptions,
    image_options: ImageOptions | None,
    device: str | None,
    folder: Path | None,
    more: dict[str, Any],
) -> GroupScorer:
    """Loads each distinct model once; weights that are sharded are standardised as soon as they can run."""
    from .ensemble import Calibration, EnsembleScorer

    settings = _settings_of_each(options, image_options or ImageOptions())
    settings = [one | {"positions": more.get("positions", one["positions"])} for one in settings]
    calibration = Calibration(str(options.score_calibration), list(names), settings, folder)
    loaded = {name: load_scorer(_alone(options, name), image_options, device, **more) for name in dict.fromkeys(names)}
    sharded = bool(more.get("sharded"))
    scorer = EnsembleScorer([loaded[name] for name in names], options.rule, calibration=calibration, sharded=sharded)
    if not sharded:
        scorer.standardise()
    return scorer


def _settings_of_each(options: ScorerOptions, image_options: ImageOptions) -> list[dict[str, Any]]:
    """The settings of each of several models, without the names of those whose files tell them apart."""
    each = [scorer_settings(_alone(options, name), image_options) for name in model_names(options.model)]
    return [one | {"model": None} if one["model_stamp"] else one for one in each]


def _alone(options: ScorerOptions, name: str) -> ScorerOptions:
    return replace(options, model=name, score_combine=None, score_calibration=None)


def scorer_settings(options: ScorerOptions, image_options: ImageOptions) -> dict[str, Any]:
    """Returns all that a score depends on beside the data: what must not change when a run is resumed.

    Not in it: `token_budget`, so that a run that ran out of memory can be resumed with a smaller one. Several models'
    are those of the first, a hash of those of each, and how they are combined.
    """
    if len(names := model_names(options.model)) > 1:
        each = _settings_of_each(options, image_options)
        whole = {"model": options.model, "model_stamp": model_stamp(options.model), "models_hash": short_hash(each)}
        return each[0] | whole | options.combination(options.model)
    options = replace(options, model=names[0] if names else None)
    settings: dict[str, Any] = {"kind": options.scorer, "model": options.model}
    settings |= dict.fromkeys(("model_stamp", "revision", "prompt_form", "positions", "min_pixels", "max_pixels"))
    settings |= {"dtype": options.dtype, "seed": options.seed if options.scorer == "random" else None}
    if options.scorer == "clip" and options.model is not None:
        settings["model_stamp"] = model_stamp(options.model)
    elif options.scorer == "model" and options.model is not None:
        card = find_card(options.model)
        image_options = card.image_options(image_options)
        settings |= {"model_stamp": model_stamp(card.model), "revision": card.revision, "positions": card.positions}
        for name in ("prompt_form", "min_pixels", "max_pixels"):
            settings[name] = getattr(options, name) or getattr(card, name)
    return settings | (image_options.recorded() if options.scorer in READ_BY["dtype"] else dict.fromkeys(RENDERING))


def token_counter(scorer: GroupScorer) -> Callable[[Sequence[str]], list[int]]:
    """Returns what counts the tokens of texts with the scorer's tokenizer, or their words if it has none."""
    processor = getattr(scorer, "processor", None) or getattr(getattr(scorer, "model", None), "processor", None)
    if processor is None:
        return lambda texts: [len(text.split()) for text in texts]

    def count_tokens(texts: Sequence[str]) -> list[int]:
        plain = {"add_special_tokens": False, "verbose": False}
        return [len(ids) for ids in processor.tokenizer(list(texts), **plain)["input_ids"]] if texts else []

    return count_tokens


def process_device() -> str:
    """Returns the accelerator of this process's local rank, or the CPU.

    accelerate's `PartialState` chooses likewise, but joins the processes, and then none could be missing.
    """
    import torch

    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true") or not torch.accelerator.is_available():
        return "cpu"
    kind = torch.accelerator.current_accelerator().type  # type: ignore[union-attr]  # there is one
    return f"{kind}:{int(os.environ.get('LOCAL_RANK', '0')) % torch.accelerator.device_count()}"
