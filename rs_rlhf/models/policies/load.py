"""`load_policy`: the policy that fits a checkpoint, a backend or an address."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from ... import declarations
from ...errors import OptionError
from ...imagery.raster import ImageOptions
from ..families import QWEN_VL
from ..vlm import load_vlm, set_family_budget
from .chat_client import is_endpoint
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
    """Loads the policy of a model.

    The Qwen2-VL families get a [`QwenVLPolicy`], any other image-text-to-text model of transformers whose processor
    has a chat template an [`HFPolicy`].

    Args:
        path (`str`): Checkpoint, LoRA adapter's folder (merged into its base), hub id or `"aid-rsicd-tiny/policy"`,
            which comes with the package; the model's name at an `endpoint`. An address (http:// or https://) is an
            endpoint whose model is called `"default"`.
        backend (`str`): `"auto"`: transformers; `"vllm"`: [`VLLMPolicy`].
        endpoint (`str`, *optional*): Base address of an OpenAI-compatible server: [`EndpointPolicy`].
        image_options ([`ImageOptions`], *optional*): How images are found and read.
        min_pixels, max_pixels (`int`, *optional*): Pixel budget, of families that have one.
        dtype, device: As in [`load_vlm`]; not for an endpoint.
        augment (`bool`): Rotate and flip images as in training, for the Qwen2-VL families in this process only.
        seed (`int`): Seed of the augmentation.
        **kwargs: Passed to `from_pretrained`, to `vllm.LLM`, or to [`EndpointPolicy`].

    Raises:
        ModelError: The model cannot be loaded or cannot answer.
        OptionError: An option does not go with the model; names it.
    """
    path, budget = str(path), {"min_pixels": min_pixels, "max_pixels": max_pixels}
    if backend not in BACKENDS:
        raise OptionError(f"unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}.", "backend")
    if endpoint is None and is_endpoint(path):
        path, endpoint = "default", path
    given: dict[str, object] = {"device": device, "augment": augment or None}
    if endpoint is not None:
        given = {**budget, "dtype": dtype, **given, "backend": None if backend == "auto" else backend}
        _refuse(given, "a model behind an endpoint")
        return EndpointPolicy(endpoint, path, image_options, **kwargs)
    path = declarations.in_the_box(path)
    if backend == "vllm":
        _refuse(given, "the vllm backend")
        return VLLMPolicy(path, image_options, dtype=dtype, **budget, **kwargs)
    model, processor = load_vlm(path, dtype=dtype, device=device, **kwargs)
    set_family_budget(path, model.config, processor, min_pixels, max_pixels)
    if model.config.model_type in QWEN_VL:
        return QwenVLPolicy(model, processor, image_options, augment=augment, seed=seed)
    _refuse({"augment": augment or None}, f"a {model.config.model_type}")
    return HFPolicy(model, processor, image_options)


def _refuse(options: Mapping[str, object], model: str) -> None:
    for name, value in options.items():
        if value is not None:
            raise OptionError(f"{name} has no effect on {model}; leave it out.", name)
