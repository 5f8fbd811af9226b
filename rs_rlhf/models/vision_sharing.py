"""The vision tower runs once per distinct image of a batch, in any causal VLM of the Qwen2-VL family.

In GRPO every prompt stands G times in a batch, and TRL hands its image over as often. [`share_vision`] finds equal
images by their patches, runs each once, and gives its features to all their places; gradients of the places add up,
so that the loss and its gradients are the same.

Left out: sharing the prompt's tokens too, as score models do; TRL computes log-probabilities row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import ModelOutput


def share_vision(model: PreTrainedModel) -> None:
    """Makes a model run its vision tower once per distinct image of a batch; in place, and only once.

    Args:
        model (`PreTrainedModel` or `PeftModel`): A causal VLM; one without `get_image_features` is left as it is.
    """
    core: Any = model
    core = core.get_base_model() if hasattr(core, "get_base_model") else core
    core = getattr(core, "model", core)
    if not hasattr(core, "get_image_features") or getattr(core.get_image_features, "shared", False):
        return
    original = type(core).get_image_features

    def get_image_features(
        self: PreTrainedModel, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor | None = None, **kwargs: Any
    ) -> ModelOutput:
        if image_grid_thw is None:
            return original(self, pixel_values, image_grid_thw, **kwargs)
        first, index = distinct_images(pixel_values, image_grid_thw)
        if len(first) == len(index):
            return original(self, pixel_values, image_grid_thw, **kwargs)
        patches = torch.split(pixel_values, image_grid_thw.prod(1).tolist())
        features = original(self, torch.cat([patches[i] for i in first]), image_grid_thw[first], **kwargs)
        return features_of(features, index)

    get_image_features.shared = True  # type: ignore[attr-defined]
    core.get_image_features = MethodType(get_image_features, core)  # a copy of the model gets a method of its own


def features_of(features: ModelOutput, index: Sequence[int]) -> ModelOutput:
    """Returns the vision features of distinct images at their places.

    Args:
        features (`ModelOutput`): `pooler_output` and, in Qwen3-VL, per layer `deepstack_features`, each per image.
        index (sequence of `int`): Which distinct image stands at each place.
    """
    placed = type(features)(pooler_output=tuple(features["pooler_output"][i] for i in index))
    if (layers := getattr(features, "deepstack_features", None)) is not None:
        placed["deepstack_features"] = [tuple(layer[i] for i in index) for layer in layers]
    return placed


def distinct_images(pixel_values: torch.Tensor, grids: torch.Tensor) -> tuple[list[int], list[int]]:
    """Finds equal images of a batch.

    Args:
        pixel_values (`torch.Tensor` of shape (patches, patch size)): All images' patches.
        grids (`torch.Tensor` of shape (images, 3)): Their grids, in patches.

    Returns:
        `tuple`: the place of each distinct image's first occurrence, and for each image which distinct one it is.
    """
    parts = torch.split(pixel_values, grids.prod(1).tolist())
    shapes = [tuple(grid) for grid in grids.tolist()]
    # A sum tells most pictures apart for one transfer from the device; equality is then checked in full.
    sums = torch.stack([part.sum(dtype=torch.float64) for part in parts]).tolist()
    first: list[int] = []
    index: list[int] = []
    known: dict[Any, list[int]] = {}
    for i, key in enumerate(zip(shapes, sums, strict=True)):
        same = next((k for k in known.get(key, []) if torch.equal(parts[first[k]], parts[i])), None)
        if same is None:
            same = len(first)
            first.append(i)
            known.setdefault(key, []).append(same)
        index.append(same)
    return first, index
