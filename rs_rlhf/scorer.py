"""`Scorer`: images + prompts + completions in, numbers out. The one way to score with a trained score model.

It loads a model by declared name, hub id or folder, lays groups out with [`GroupCollator`], batches them by a token
budget, and gives the scores back in the order of the input. Threads can lay out the next batches meanwhile.

Left out: remote scoring, which is `remote_scorer`'s, and CLIP scores, which are `clip_model`'s; reading in worker
processes (decoding and tokenizing let go of the interpreter's lock, and threads copy nothing; not measured on a GPU).
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from . import declarations
from .data import DataError, Group, ImageSource, make_group
from .groups import PROMPT_FORMS, GroupCollator, estimated_length, set_pixel_budget
from .imagery import ImageError, ImageOptions

Batch = list[tuple[int, list[int]]]
"""Entries of one forward: a group's place, and which of its completions."""


@dataclass(frozen=True)
class RewardModelCard:
    """A named score model: one file of `reward_models/`.

    Args:
        model (`str`): Hub id or path of the checkpoint.
        licence (`str`): Licence of the weights.
        recipe (`str`): The recipe that made it, or the paper.
        revision (`str`, *optional*): Branch, tag or commit on the hub.
        positions (`str`, *optional*): `"mrope"` or `"sequential"`; by default what the checkpoint says.
        prompt_form (`str`): `"question-answer"`, `"empty-question"` or `"user-turn"`; see [`GroupCollator`].
        min_pixels, max_pixels (`int`, *optional*): Pixel budget; by default the processor's.
        bands, stretch, stretch_range, nodata (*optional*): How its images are read; see [`ImageOptions`].
        description (`str`): One line about it.
    """

    model: str
    licence: str
    recipe: str
    revision: str | None = None
    positions: str | None = None
    prompt_form: str = "question-answer"
    min_pixels: int | None = None
    max_pixels: int | None = None
    bands: list[int] | None = None
    stretch: str | None = None
    stretch_range: list[float] | None = None
    nodata: float | None = None
    description: str = ""

    def __post_init__(self) -> None:
        if self.prompt_form not in PROMPT_FORMS:
            raise ValueError(f"prompt_form must be one of {', '.join(PROMPT_FORMS)}, got {self.prompt_form!r}.")
        self.image_options()  # refuses what images cannot be read with

    def image_options(self, given: ImageOptions | None = None) -> ImageOptions:
        """Returns `given`, with the model's own `bands`, `stretch` (and its range) and `nodata` where it has none."""
        given = given or ImageOptions()
        own: dict[str, Any] = {"bands": self.bands, "nodata": self.nodata}
        own = {name: value for name, value in own.items() if getattr(given, name) is None}
        if given.stretch is None:
            own |= {"stretch": self.stretch, "stretch_range": self.stretch_range}
        return replace(given, **own)


class Scorer:
    """Scores completions for prompts and images.

    Args:
        model ([`ScoreModel`]): The score model; its device and dtype are used.
        processor (`transformers.ProcessorMixin`): Its processor.
        image_options ([`ImageOptions`], *optional*): How images are found and read.
        prompt_form (`str`): See [`GroupCollator`].
        token_budget (`int`): Tokens of a batch at most, padding included; a larger group is scored in parts.
        num_workers (`int`): Threads that read images and lay out the next batches while the model runs; 0: none.

    Example:
        >>> from rs_rlhf import Scorer  # doctest: +SKIP
        >>> scorer = Scorer.from_pretrained("out/score-model")  # doctest: +SKIP
        >>> scorer.score(images=["a.png"], completions=[["a river.", "a forest."]])  # doctest: +SKIP
        [[1.73, 0.41]]
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        image_options: ImageOptions | None = None,
        *,
        prompt_form: str = "question-answer",
        token_budget: int = 4096,
        num_workers: int = 0,
    ) -> None:
        if num_workers < 0:
            raise ValueError(f"num_workers is {num_workers}; it must be at least 0.")
        self.model = model.eval()
        self.processor = processor
        self.token_budget = token_budget
        self.num_workers = num_workers
        self.collator = GroupCollator(processor, image_options, prompt_form=prompt_form)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        image_options: ImageOptions | None = None,
        prompt_form: str | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        token_budget: int = 4096,
        num_workers: int = 0,
        device: str | None = None,
        positions: str | None = None,
        sharded: bool = False,
        **kwargs: Any,
    ) -> Scorer:
        """Loads a score model by the name of a file in `reward_models/`, a folder, or a hub id.

        Args:
            name_or_path (`str`): Such as `"scorers-7b"` or `"out/score-model"`.
            image_options ([`ImageOptions`], *optional*): How images are found and read; what they leave open is the
                named model's.
            prompt_form, positions, min_pixels, max_pixels: Override the named model's.
            token_budget, num_workers (`int`): As in the class.
            device (`str`, *optional*): Device to move the model to; by default accelerate's choice for this process.
            sharded (`bool`): Leave the weights to DeepSpeed ZeRO-3 where it is on, for [`share_weights`]; by default
                each process holds them whole, ZeRO-3 or not.
            **kwargs: Passed to [`ScoreModel.from_pretrained`] (`dtype`, `attn_implementation`, …); with a `device_map`
                the model stays where that puts it.

        Raises:
            DeclarationError: A YAML file that is not a reward model, or a model that is not there.
            ValueError: A checkpoint that is not a score model, see [`ScoreModel.from_pretrained`]; both `device` and
                `device_map`.
        """
        from accelerate import PartialState
        from transformers import AutoProcessor

        from .score_model import ScoreModel

        placed = kwargs.get("device_map") is not None
        if placed and device is not None:
            raise ValueError("device and device_map cannot both be given; leave one out.")
        card = find_card(str(name_or_path))
        if card.revision is not None:
            kwargs.setdefault("revision", card.revision)
        _refuse_unmade(card)
        try:
            if not (Path(card.model) / "adapter_config.json").is_file():
                _refuse_headless(card.model, kwargs)
            with nullcontext() if sharded else _whole_weights():
                model = ScoreModel.from_pretrained(card.model, positions or card.positions, **kwargs)
            processor = AutoProcessor.from_pretrained(card.model, revision=kwargs.get("revision"))
        except OSError as error:
            raise _not_loaded(card.model, error) from error
        if not placed and not sharded:
            model.to(device or PartialState().device)  # type: ignore[arg-type]  # transformers' wrapper hides `self`
        set_pixel_budget(processor, min_pixels or card.min_pixels, max_pixels or card.max_pixels)
        form = prompt_form or card.prompt_form
        options = card.image_options(image_options)
        return cls(model, processor, options, prompt_form=form, token_budget=token_budget, num_workers=num_workers)

    def share_weights(self, accelerator: Any) -> None:
        """Shards the model over the processes with DeepSpeed ZeRO-3; from now on all must score at the same time.

        A process that has nothing to score calls `score_groups([])`.

        Args:
            accelerator (`accelerate.Accelerator`): Of the training that the score model stands beside.
        """
        import torch
        from trl.models import prepare_deepspeed

        self.model = prepare_deepspeed(self.model, accelerator)

        def anyone(busy: bool) -> bool:
            flag = torch.tensor(float(busy), device=accelerator.device)
            return accelerator.reduce(flag, "sum").item() > 0

        self.anyone = anyone  # type: ignore[method-assign]

    def score(
        self,
        images: Sequence[Any] | None = None,
        prompts: Sequence[Any] | None = None,
        completions: Sequence[Sequence[Any]] = (),
        show_progress: bool | None = None,
    ) -> list[list[float]]:
        """Scores N completions for each prompt and image.

        Args:
            images (sequence, *optional*): For each group a path, PIL image, array, list of these, or `None`.
            prompts (sequence of `str` or messages, *optional*): Questions; by default empty, for plain captions.
            completions (sequence of sequences of `str` or messages): N candidates for each group; N may differ.
            show_progress (`bool`, *optional*): By default on a terminal when there are more than 8 batches.

        Returns:
            `list[list[float]]`: One list per group, in the order given.

        Raises:
            ValueError: The lengths differ.
            ImageError: An image cannot be read; names it and its row.
            DataError: A prompt or completion cannot be used.
        """
        count = len(completions)
        for name, values in (("images", images), ("prompts", prompts)):
            if values is not None and len(values) != count:
                raise ValueError(f"{name} has {len(values)} entries but completions has {count}; give one per group.")
        if any(isinstance(candidates, str) for candidates in completions):
            raise ValueError("completions must be a list of lists: for each group the list of its candidates.")
        groups = [
            make_group(
                prompts[i] if prompts is not None else "",
                completions[i],
                images[i] if images is not None else None,
                row=i,
                where=f"row {i}",
            )
            for i in range(count)
        ]
        return self.score_groups(groups, show_progress=show_progress)

    def score_groups(
        self, groups: Sequence[Group], *, on_error: str = "raise", show_progress: bool | None = None
    ) -> list[Any]:
        """Scores groups that are already in the normal form.

        Args:
            groups (sequence of [`Group`]): Any number; each is read when its batch is due.
            on_error (`str`): `"raise"`, or `"return"`: a group that cannot be read has its error in place of scores.
            show_progress (`bool`, *optional*): By default on a terminal when there are more than 8 batches.

        Returns:
            `list`: For each group the `list` of its completions' scores, in order.

        Raises:
            DataError, ImageError: A group that cannot be read, unless `on_error` is `"return"`.
        """
        import torch
        from tqdm import tqdm

        scores: list[Any] = [[0.0] * len(group.completions) for group in groups]
        batches = list(self._batches(groups, scores, on_error))
        hidden = not (show_progress if show_progress is not None else len(batches) > 8 and sys.stderr.isatty())
        bar = tqdm(total=len(batches), desc="Scoring", unit="batch", disable=hidden, leave=None)
        with bar, closing(self._inputs(batches, groups, scores, on_error)) as stream:
            while True:
                batch, inputs = next(stream, (None, {}))
                if not self.anyone(batch is not None):
                    return scores
                if batch is None:  # another process still has groups: weights that are sharded need this one as well
                    inputs = self.collator([make_group("", [""])])
                inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
                with torch.inference_mode():
                    rows = self.model(**inputs).scores.tolist()
                for (i, chosen), row in zip(batch or [], rows, strict=batch is not None):
                    if isinstance(scores[i], list):  # no other part of the group had an error
                        for k, value in zip(chosen, row, strict=False):  # a smaller group's row is padded with NaN
                            scores[i][k] = value
                bar.update()

    def _inputs(
        self, batches: Sequence[Batch], groups: Sequence[Group], scores: list, on_error: str
    ) -> Generator[tuple[Batch, dict[str, Any]], None, None]:
        """Yields (batch, its tensors), reading images late, and notes the errors of groups that cannot be read."""
        if self.num_workers:
            # The first call turns off padding and truncation that a tokenizer was saved with; after it nothing in
            # the tokenizer is changed any more, and threads may share it.
            self.processor.tokenizer([""], add_special_tokens=False)
        collate = partial(self._collate, groups=groups, on_error=on_error)
        for batch, inputs, errors in _ahead(collate, batches, self.num_workers):
            for i, error in errors.items():
                scores[i] = error
            if batch:
                yield batch, inputs

    def _collate(
        self, batch: Batch, groups: Sequence[Group], on_error: str
    ) -> tuple[Batch, dict[str, Any], dict[int, Exception]]:
        """Lays out a batch; what cannot be read is left out of it and its error returned by group."""
        parts = [replace(groups[i], completions=[groups[i].completions[k] for k in chosen]) for i, chosen in batch]
        try:
            return batch, self.collator(parts), {}
        except (DataError, ImageError) as error:
            if on_error != "return":
                raise
            if len(batch) == 1:
                return [], {}, {batch[0][0]: error}
        errors = {i: one for entry in batch for i, one in self._collate([entry], groups, on_error)[2].items()}
        left = [entry for entry in batch if entry[0] not in errors]
        if not left:
            return [], {}, errors
        batch, inputs, later = self._collate(left, groups, on_error)
        return batch, inputs, errors | later

    def anyone(self, busy: bool) -> bool:
        """Whether any process that must take part in a forward is busy; alone, whether this one is."""
        return busy

    def _batches(self, groups: Sequence[Group], scores: list, on_error: str) -> Iterator[Batch]:
        """Yields batches of (group, some of its completions), of similar length, within the token budget."""
        sized = []
        for i, group in enumerate(groups):
            if not group.completions:
                continue
            try:
                prompt = estimated_length(group, self.processor, self.collator.image_options)
            except ImageError as error:
                if on_error != "return":
                    raise
                scores[i] = error
                continue
            part: list[int] = []
            used = prompt
            for k, length in enumerate(_characters(one) // 3 + 6 for one in group.completions):
                if part and used + length > self.token_budget:
                    sized.append((used, i, part))
                    part, used = [], prompt
                part.append(k)
                used += length
            sized.append((used, i, part))
        sized.sort(key=lambda entry: entry[0], reverse=True)  # the longest first: memory trouble shows at once
        batch: Batch = []
        longest = 0
        for length, i, part in sized:
            longest = max(longest, length)
            if batch and longest * (len(batch) + 1) > self.token_budget:
                yield batch
                batch, longest = [], length
            batch.append((i, part))
        if batch:
            yield batch


def _ahead(function: Callable[[Batch], Any], items: Iterable[Batch], workers: int) -> Iterator[Any]:
    """Yields `function(item)` in order; with workers, threads are a few items ahead of the one that is used."""
    if not workers:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="collate")
    waiting: deque[Future] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > workers + 2:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # after an error or Ctrl-C too: what waits is dropped, what runs ends within a batch
        pool.shutdown(cancel_futures=True)


@contextmanager
def _whole_weights() -> Iterator[None]:
    """Hides ZeRO-3 from transformers, which would load a model in shards that only a DeepSpeed engine can run."""
    from transformers.integrations import deepspeed

    reference = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = reference


def find_card(name_or_path: str) -> RewardModelCard:
    """Returns the declared reward model of that name, or a card for a folder or hub id.

    Raises:
        DeclarationError: A name that is neither declared, nor a folder, nor of the form `owner/name`.
    """
    path = Path(name_or_path)
    if path.is_dir():
        return RewardModelCard(name_or_path, licence="", recipe="")
    if path.suffix in (".yaml", ".yml") or name_or_path in declarations.names("reward_models"):
        return declarations.load("reward_models", name_or_path, RewardModelCard)
    if _is_hub_id(name_or_path):
        return RewardModelCard(name_or_path, licence="", recipe="")
    known = declarations.names("reward_models")
    raise declarations.DeclarationError(
        f"{name_or_path!r} is neither a folder nor a reward model{declarations.did_you_mean(name_or_path, known)}"
    )


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def _refuse_unmade(card: RewardModelCard) -> None:
    """Refuses a card whose model is a folder that is not there: its recipe has not been run."""
    if card.recipe and not Path(card.model).is_dir() and not _is_hub_id(card.model):
        raise declarations.DeclarationError(
            f"no folder {card.model} below the working folder; run the recipe {card.recipe} first."
        )


def _not_loaded(path: str, error: OSError) -> declarations.DeclarationError:
    reason = str(error).strip().split("\n")[0]
    if Path(path).is_dir():
        return declarations.DeclarationError(f"the folder {path} cannot be loaded: {reason}")
    return declarations.DeclarationError(
        f"{path} is neither a folder here nor could it be loaded from the hub: {reason}"
    )


def _refuse_headless(path: str, kwargs: dict[str, Any]) -> None:
    from transformers import AutoConfig

    hub = {k: kwargs[k] for k in ("revision", "trust_remote_code", "token", "cache_dir") if k in kwargs}
    architectures = AutoConfig.from_pretrained(path, **hub).architectures or []
    if not {"ScoreModel", "Qwen2Reward"} & set(architectures):
        raise ValueError(
            f"{path} is not a score model (architectures {architectures}): its head would be random. Train one with "
            "`rs-rlhf reward`, or load it with ScoreModel.from_pretrained to start training."
        )


def _characters(messages: Sequence[dict]) -> int:
    return sum(len(part.get("text", "")) for message in messages for part in message["content"])


__all__ = ["ImageSource", "RewardModelCard", "Scorer", "find_card"]
