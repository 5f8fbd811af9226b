"""`load_policy`: the policy that fits a checkpoint, a backend or an address."""

from __future__ import annotations

import os
from typing import Any

import torch

from ...errors import OptionError
from ...imagery.raster import ImageOptions
from ..vlm import FAMILIES, load_vlm, set_family_budget
from .endpoint import EndpointPolicy
from .hf import HFPolicy
from .policy import Policy
from .qwen_vl import QwenVLPolicy
from .vllm import VLLMPolicy

BACKENDS = ("auto", "vllm")


def load_policy(
    path: str | os.PathLike[str],
    *,
    backend: str = "auto",
    endpoint: str | None = None,
    image_options: ImageOptions | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | None = None,
    augment: bool = False,
    seed: int = 0,
    **kwargs: Any,
) -> Policy:
    """Loads what answers for a model.

    The Qwen2-VL families get a [`QwenVLPolicy`], any other image-text-to-text model of transformers whose processor
    has a chat template an [`HFPolicy`].

    Args:
        path (`str`): Checkpoint, LoRA adapter's folder (merged into its base) or hub id; the model's name at an
            `endpoint`. An address (http:// or https://) is an endpoint whose model is called `"default"`.
        backend (`str`): `"auto"`: transformers; `"vllm"`: [`VLLMPolicy`].
        endpoint (`str`, *optional*): Base address of an OpenAI-compatible server, such as
            `"http://localhost:8000/v1"`: [`EndpointPolicy`].
        image_options ([`ImageOptions`], *optional*): How images are found and read.
        min_pixels, max_pixels (`int`, *optional*): Pixel budget, for the Qwen2-VL families only.
        dtype (`str` or `torch.dtype`, *optional*): By default the checkpoint's; not for an endpoint.
        device (`str`, *optional*): By default accelerate's choice for this process; not for an endpoint.
        augment (`bool`): Rotate and flip images as in training, for the Qwen2-VL families in this process only.
        seed (`int`): Seed of the augmentation.
        **kwargs: Passed to `from_pretrained`, to `vllm.LLM`, or to [`EndpointPolicy`].

    Raises:
        ModelError: The model cannot be loaded or cannot answer.
        OptionError: An option does not go with the model; names it.

    Example:
        >>> from rs_rlhf.models.policies.load import load_policy  # doctest: +SKIP
        >>> load_policy("out/captioner").sample([("Rural or urban?", "a.png")], temperature=0)  # doctest: +SKIP
        [['rural']]
    """
    path, budget = str(path), {"min_pixels": min_pixels, "max_pixels": max_pixels}
    if backend not in BACKENDS:
        raise OptionError(f"unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}.", "backend")
    if endpoint is None and path.startswith(("http://", "https://")):
        path, endpoint = "default", path
    if endpoint is not None:
        options = {**budget, "dtype": dtype, "device": device, "augment": augment or None}
        given = [name for name, value in options.items() if value is not None]
        if given or backend != "auto":
            name = (given or ["backend"])[0]
            raise OptionError(f"{name} has no effect on a model behind an endpoint; leave it out.", name)
        return EndpointPolicy(endpoint, path, image_options, **kwargs)
    if backend == "vllm":
        for name, value in {"device": device, "augment": augment or None}.items():
            if value is not None:
                raise OptionError(f"{name} has no effect on the vllm backend; leave it out.", name)
        return VLLMPolicy(path, image_options, dtype=dtype, **budget, **kwargs)
    model, processor = load_vlm(path, dtype=dtype, device=device, **kwargs)
    set_family_budget(path, model.config, processor, min_pixels, max_pixels)
    if model.config.model_type in FAMILIES:
        return QwenVLPolicy(model, processor, image_options, augment=augment, seed=seed)
    if augment:
        raise OptionError(
            f"{path} is a {model.config.model_type}: augment has no effect on it; leave it out.", "augment"
        )
    return HFPolicy(model, processor, image_options)
