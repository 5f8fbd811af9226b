"""Sampling from the Qwen2-VL families in this process: the n answers of a prompt share one reading of it.

Prompts are laid out by [`GroupCollator`], so a policy sees exactly what it was trained on. A batch of prompts is run
once; its key-value cache is then repeated n times. `generate` would repeat the pixels instead, which is why the
sampling loop is written here.

Every answer has random numbers of its own, drawn from the seed, the prompt's place in the input and the answer's
number, so a draw does not depend on the batch. The batch only decides how rows are padded, and so the last bits of the
probabilities; the batches themselves depend on the prompts and the options alone.

Left out: beam search, repetition penalties and whatever else a checkpoint's `generation_config` asks for (its end
tokens are honoured), streaming, video.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from inspect import signature
from typing import Any

import torch
from transformers import PreTrainedModel, ProcessorMixin

from ...data.group import Group
from ...imagery.raster import ImageOptions
from ..collator import GroupCollator
from ..pixel_budget import estimated_length, seen_sizes
from ..vlm import VISION_TOKENS, end_tokens
from .policy import Policy
from .sampling import SamplingOptions, answer_draws, choose_tokens, planned_batches, until_end


class QwenVLPolicy(Policy):
    """A causal vision-language model of the Qwen2-VL family, run in this process.

    Args:
        model (`PreTrainedModel` or `PeftModel`): The model; its device and dtype are used.
        processor (`ProcessorMixin`): Its processor.
        image_options ([`ImageOptions`], *optional*): How images are found and read.
        augment (`bool`): Rotate and flip images as in training, see [`GroupCollator`].
        seed (`int`): Seed of the augmentation.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        image_options: ImageOptions | None = None,
        *,
        augment: bool = False,
        seed: int = 0,
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.collator = GroupCollator(processor, image_options, augment=augment, seed=seed)
        self.end_ids = end_tokens(model, self.tokenizer)
        vocabulary = self.tokenizer.get_vocab()
        self.never = [vocabulary[name] for name in VISION_TOKENS if name in vocabulary]

    def _batches(
        self, groups: Sequence[Group], sampling: SamplingOptions, share: tuple[int, int], done: Collection[int]
    ) -> Iterator[list[int]]:
        lengths = [estimated_length(group, self.processor, self.collator.image_options) for group in groups]
        return planned_batches(lengths, sampling, share, done)

    def _answers(self, groups: Sequence[Group], places: Sequence[int], sampling: SamplingOptions) -> list[list[str]]:
        tokens = self._generate(self._inputs([groups[i] for i in places]), answer_draws(places, sampling), sampling)
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [texts[k : k + sampling.n] for k in range(0, len(texts), sampling.n)]

    def pixels(self, group: Group) -> list[tuple[int, int]]:
        """Returns `(width, height)` of each image as the model sees it, from the headers alone."""
        return seen_sizes(group, self.processor, self.collator.image_options)

    def _inputs(self, groups: Sequence[Group]) -> dict[str, torch.Tensor]:
        """Lays out prompts for generation, on the model's device."""
        return {name: tensor.to(self.model.device) for name, tensor in self.collator.prompts(groups).items()}

    @torch.inference_mode()
    def _generate(
        self, inputs: dict[str, torch.Tensor], draws: torch.Tensor, sampling: SamplingOptions
    ) -> list[list[int]]:
        """Runs the prompts once and continues n times from each; returns the new tokens of the prompts × n rows."""
        base: Any = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        mask, n = inputs["attention_mask"], sampling.n
        # Always given: if the model finds them by itself it may use the offsets of an earlier batch.
        positions = base.model.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            image_grid_thw=inputs.get("image_grid_thw"),
            attention_mask=mask,
        )[0]
        output = self.model(**inputs, position_ids=positions, use_cache=True, logits_to_keep=1)
        cache = getattr(output, "cache", None) or output.past_key_values  # its name in transformers 5.24, and before
        logits = output.logits[:, -1].repeat_interleave(n, dim=0)
        if n > 1:
            cache.batch_repeat_interleave(n)
            mask, positions = mask.repeat_interleave(n, dim=0), positions.repeat_interleave(n, dim=1)
        position = positions.amax(dim=(0, 2), keepdim=True).expand(3, -1, 1)
        ends = torch.tensor(self.end_ids, device=mask.device)
        named = "cache" if "cache" in signature(base.forward).parameters else "past_key_values"
        draws = draws.to(mask.device)
        running = torch.ones(len(mask), dtype=torch.bool, device=mask.device)
        tokens = []
        for step in range(draws.shape[1]):
            chosen = choose_tokens(logits, draws[:, step], sampling, self.never, len(self.tokenizer))
            chosen = torch.where(running, chosen, self.tokenizer.pad_token_id)
            tokens.append(chosen)
            running &= ~torch.isin(chosen, ends)
            if step + 1 == draws.shape[1] or not running.any():
                break
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            position = position + 1
            output = self.model(
                input_ids=chosen[:, None],
                attention_mask=mask,
                position_ids=position,
                use_cache=True,
                logits_to_keep=1,
                **{named: cache},
            )
            logits = output.logits[:, -1]
        return until_end(torch.stack(tokens, dim=1).tolist(), self.end_ids)
