"""Sampling in vLLM's offline engine. Not run by us: written after vLLM's documentation, no test has the engine.

Left out: adapters (merge them first).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...data.group import Group
from ...errors import ModelError, OptionError
from ...imagery.raster import ImageOptions
from ..pixel_budget import has_budget, image_sizes, row_name, seen_sizes, settle
from ..vlm import hub_config, load_processor, placeholder_tokens, set_family_budget
from .chat_client import chat_messages
from .policy import RequestPolicy
from .sampling import SamplingOptions


class VLLMPolicy(RequestPolicy):
    """A model in vLLM's offline engine.

    Args:
        path (`str`): Checkpoint or hub id; an adapter must be merged first.
        image_options ([`ImageOptions`], *optional*): How images are found and read.
        dtype (`str`, *optional*): By default the checkpoint's.
        min_pixels, max_pixels (`int`, *optional*): Pixel budget, of families that have one.
        **kwargs: Passed to `vllm.LLM` (`max_model_len`, `tensor_parallel_size`, …).

    Raises:
        OptionError: vLLM is not installed.
        ModelError: The path is an adapter.
    """

    def __init__(
        self,
        path: str,
        image_options: ImageOptions | None = None,
        *,
        dtype: str | torch.dtype | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        **kwargs: Any,
    ) -> None:
        try:
            import vllm
        except ImportError:
            raise OptionError(
                "the backend vllm needs vLLM, which is not installed; `pip install vllm`, or leave the backend out.",
                "backend",
            ) from None
        if (Path(path) / "adapter_config.json").is_file():
            raise ModelError(f"{path} is an adapter, which the backend vllm does not load; merge it, or leave it out.")
        self.processor, config = load_processor(path, kwargs), hub_config(path, kwargs)
        trust = bool(kwargs.pop("trust_remote_code", False))
        set_family_budget(path, config, self.processor, min_pixels, max_pixels)
        budget = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        budget = {name: value for name, value in budget.items() if value is not None}
        kwargs |= {"mm_processor_kwargs": budget} if budget else {}
        self.llm = vllm.LLM(model=path, dtype=dtype or "auto", trust_remote_code=trust, **kwargs)
        self.params = vllm.SamplingParams
        self.image_options, self.budgeted = image_options or ImageOptions(), has_budget(self.processor)
        self.never = placeholder_tokens(config, self.processor)

    def _ask(
        self, groups: Sequence[Group], requests: Sequence[tuple[int, int]], sampling: SamplingOptions
    ) -> list[str]:
        options: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p}
        options |= {"top_k": sampling.top_k or -1, "max_tokens": sampling.max_new_tokens}
        options |= {"logit_bias": dict.fromkeys(self.never, -100.0)}
        messages = [self._messages(groups[place]) for place, _ in requests]
        params = [self.params(seed=seed, **options) for _, seed in requests]
        return [reply.outputs[0].text for reply in self.llm.chat(messages, params, use_tqdm=False)]

    def _messages(self, group: Group) -> list[dict[str, Any]]:
        """A prompt for vLLM, which lays images out by the checkpoint's own budget: ours is applied before."""
        shown = partial(settle, processor=self.processor, where=row_name(group)) if self.budgeted else None
        return chat_messages(group, self.image_options, shown)

    def pixels(self, group: Group) -> list[tuple[int, int]]:
        """Returns `(width, height)` of each image: as the model sees it if that is known, else its own."""
        if self.budgeted:
            return seen_sizes(group, self.processor, self.image_options)
        return image_sizes(group, self.image_options)
