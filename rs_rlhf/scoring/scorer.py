"""`Scorer`: the one way to score with a trained score model in this process.

Groups are laid out with [`GroupCollator`] and batched by a token budget. Threads can lay out the next ones meanwhile
(not processes: decoding and tokenizing release the interpreter's lock, and threads copy nothing).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Hashable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.group import Group, make_group
from ..errors import DataError, ImageError, OptionError
from ..imagery.identity import source_key
from ..imagery.raster import ImageOptions
from ..models.collator import GroupCollator
from ..models.pixel_budget import completion_length, estimated_length, set_pixel_budget
from .base import ScoreTexts, ahead, scoring_progress
from .cards import find_card, model_hash, model_settings, not_loaded, refuse_headless, refuse_unmade

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import ProcessorMixin

    from ..models.score_model import ScoreModel

Entry = list[tuple[int, int]]
"""Completions of one prompt and image, laid out as one group: (index of the group, index of the completion)."""
Batch = list[Entry]


class Scorer(ScoreTexts):
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
        model: ScoreModel,
        processor: ProcessorMixin,
        image_options: ImageOptions | None = None,
        *,
        prompt_form: str = "question-answer",
        token_budget: int = 4096,
        num_workers: int = 0,
    ) -> None:
        if num_workers < 0:
            raise OptionError(f"num_workers is {num_workers}; it must be at least 0.", "num_workers")
        self.model, self.token_budget, self.num_workers = model.eval(), token_budget, num_workers
        self.processor: Any = processor
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
            image_options ([`ImageOptions`], *optional*): How images are found and read; the named model's by default.
            prompt_form, positions, min_pixels, max_pixels: Override the named model's.
            token_budget, num_workers (`int`): As in the class.
            device (`str`, *optional*): Device of the model; by default accelerate's choice for this process.
            sharded (`bool`): Leave the weights to DeepSpeed ZeRO-3 if it is on, for [`share_weights`]; by default each
                process holds them whole.
            **kwargs: Passed to [`ScoreModel.from_pretrained`] (`dtype`, `attn_implementation`, …); with a `device_map`
                the model stays where that puts it.

        Raises:
            DeclarationError: A YAML file that is not a reward model, or a model that is not there.
            ModelError: A checkpoint that is not a score model, see [`ScoreModel.from_pretrained`].
            OptionError: Both `device` and `device_map`.
        """
        from accelerate import PartialState

        from ..models.score_model import ScoreModel
        from ..models.vlm import load_processor

        placed = kwargs.get("device_map") is not None
        if placed and device is not None:
            raise OptionError("device and device_map cannot both be given; leave one out.")
        card = find_card(str(name_or_path))
        if card.revision is not None:
            kwargs.setdefault("revision", card.revision)
        refuse_unmade(card)
        try:
            if not (Path(card.model) / "adapter_config.json").is_file():
                refuse_headless(card.model, kwargs)
            with nullcontext() if sharded else _whole_weights():
                model = ScoreModel.from_pretrained(card.model, positions or card.positions, **kwargs)
            processor = load_processor(card.model, kwargs)
        except OSError as error:
            raise not_loaded(card.model, error) from error
        if not placed and not sharded:
            model.to(device or PartialState().device)  # type: ignore[arg-type]  # transformers' wrapper hides `self`
        low = card.min_pixels if min_pixels is None else min_pixels
        set_pixel_budget(processor, low, card.max_pixels if max_pixels is None else max_pixels)
        form = prompt_form or card.prompt_form
        options = card.image_options(image_options)
        return cls(model, processor, options, prompt_form=form, token_budget=token_budget, num_workers=num_workers)

    @property
    def parts(self) -> list[Scorer]:
        """The scorers of single models that this is made of."""
        return [self]

    def card(self) -> dict[str, Any]:
        """Returns what a reward server says of its model: its hash, and [`model_settings`]."""
        return {"hash": model_hash(self), **model_settings(self)}

    def share_weights(self, accelerator: Accelerator) -> None:
        """Shards the model over the processes of a training's accelerator with DeepSpeed ZeRO-3.

        From now on all processes must score at the same time; one that has nothing to score passes no groups.
        """
        import torch
        from trl.models import prepare_deepspeed

        self.model = prepare_deepspeed(self.model, accelerator)

        def anyone(busy: bool) -> bool:
            flag = torch.tensor(float(busy), device=accelerator.device)
            return accelerator.reduce(flag, "sum").item() > 0

        self.anyone = anyone  # type: ignore[method-assign]

    def score_groups(
        self, groups: Sequence[Group], *, on_error: str = "raise", show_progress: bool | None = None
    ) -> list[Any]:
        """Scores groups, see [`GroupScorer.score_groups`]; each is read when its batch is due.

        Groups of one prompt and image, such as the captions of an image in several rows, are laid out as one.
        """
        results = self.score_by([self.model], [0], groups, on_error=on_error, show_progress=show_progress)
        return [row if isinstance(row, Exception) else [score for (score,) in row] for row in results]

    def score_by(
        self,
        models: Sequence[ScoreModel],
        towers: Sequence[int],
        groups: Sequence[Group],
        *,
        on_error: str = "raise",
        show_progress: bool | None = None,
    ) -> list[Any]:
        """Scores groups by several models that take the same inputs, each of which is laid out once.

        `towers` are those of [`same_towers`]: an image is seen once by models of one tower. Returns for each group the
        `list` of its completions' scores, each a `tuple` of the models' scores, or the group's error.
        """
        import torch

        scores: list[Any] = [[()] * len(group.completions) for group in groups]
        batches = list(self._batches(groups, scores, on_error))
        bar = scoring_progress(len(batches), "batch", show_progress, many=8)
        with bar as advance, closing(self._inputs(batches, groups, scores, on_error)) as stream:
            while True:
                batch, inputs = next(stream, (None, {}))
                if not self.anyone(batch is not None):
                    return scores
                if batch is None:  # another process still has groups: weights that are sharded need this one as well
                    inputs = self.collator([make_group("", [""])])
                inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
                with torch.inference_mode():
                    tables = _tables(models, towers, inputs)
                for g, entry in enumerate(batch or []):
                    rows = [table[g] for table in tables]
                    # A smaller entry's row is padded with NaN.
                    for (i, k), values in zip(entry, zip(*rows, strict=True), strict=False):
                        if isinstance(scores[i], list):  # no other part of the group had an error
                            scores[i][k] = values
                advance(1)

    def _inputs(
        self, batches: Sequence[Batch], groups: Sequence[Group], scores: list, on_error: str
    ) -> Generator[tuple[Batch, dict[str, Any]], None, None]:
        """Yields (batch, its tensors), reading images late, and notes the errors of groups that cannot be read."""
        if self.num_workers:
            # The first call turns off padding and truncation that a tokenizer was saved with; after it nothing in
            # the tokenizer is changed any more, and threads may share it.
            self.processor.tokenizer([""], add_special_tokens=False)
        collate = partial(self._collate, groups=groups, on_error=on_error)
        for batch, inputs, errors in ahead(collate, batches, self.num_workers):
            for i, error in errors.items():
                scores[i] = error
            if batch:
                yield batch, inputs

    def _collate(
        self, batch: Batch, groups: Sequence[Group], on_error: str
    ) -> tuple[Batch, dict[str, Any], dict[int, Exception]]:
        """Lays out a batch without the groups that cannot be read, whose errors are returned by group."""
        texts = ([groups[i].completions[k] for i, k in entry] for entry in batch)
        parts = [replace(groups[entry[0][0]], completions=row) for entry, row in zip(batch, texts, strict=True)]
        try:
            return batch, self.collator(parts), {}
        except (DataError, ImageError) as error:
            if len({i for entry in batch for i, _ in entry}) == 1:
                if on_error != "return":
                    raise
                return [], {}, {batch[0][0][0]: error}
        errors: dict[int, Exception] = {}
        # One entry at a time, and of an entry one group: an unusable text is no other row's error.
        for entry in batch if len(batch) > 1 else [list(part) for _, part in groupby(batch[0], itemgetter(0))]:
            errors |= self._collate([entry], groups, on_error)[2]
        left = [[place for place in entry if place[0] not in errors] for entry in batch]
        if not any(left):
            return [], {}, errors
        batch, inputs, later = self._collate([entry for entry in left if entry], groups, on_error)
        return batch, inputs, errors | later

    def anyone(self, busy: bool) -> bool:
        """Whether any process that must take part in a forward pass is busy; without sharding, whether this one is."""
        return busy

    def _batches(self, groups: Sequence[Group], scores: list, on_error: str) -> Iterator[Batch]:
        """Yields batches of entries of similar length, within the token budget."""
        sized: list[tuple[int, Entry]] = []
        alike: dict[Hashable, list[int]] = {}  # groups of one prompt and the same images
        for i, group in enumerate(groups):
            if group.completions:
                alike.setdefault((repr(group.prompt), *map(source_key, group.images)), []).append(i)
        waiting = deque(alike.values())
        while waiting:
            same = waiting.popleft()
            try:
                prompt = estimated_length(groups[same[0]], self.processor, self.collator.image_options)
            except ImageError as error:
                if on_error != "return":
                    raise
                scores[same[0]] = error
                waiting.extendleft([i] for i in same[:0:-1])  # each has an error of its own, which names its row
                continue
            entry: Entry = []
            used = prompt
            for i in same:
                for k, completion in enumerate(groups[i].completions):
                    length = completion_length(completion)
                    if entry and used + length > self.token_budget:
                        sized.append((used, entry))
                        entry, used = [], prompt
                    entry.append((i, k))
                    used += length
            sized.append((used, entry))
        sized.sort(key=itemgetter(0), reverse=True)  # the longest first: memory trouble shows at once
        start = 0
        while start < len(sized):
            stop = start + max(1, self.token_budget // sized[start][0])  # the first entry is the longest
            yield [entry for _, entry in sized[start:stop]]
            start = stop


def _tables(models: Sequence[ScoreModel], towers: Sequence[int], inputs: dict[str, Any]) -> list[list[list[float]]]:
    """The scores of a batch by each model; the vision tower that several have runs once."""
    seen: dict[int, Any] = {}
    tables = []
    for model, tower in zip(models, towers, strict=True):
        if towers.count(tower) > 1 and tower not in seen:
            seen[tower] = model.see(inputs)
        more = {"features": seen[tower]} if tower in seen else {}
        tables.append(model(**inputs, **more).scores.tolist())
    return tables


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
