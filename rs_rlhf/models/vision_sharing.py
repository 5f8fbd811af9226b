"""The vision tower of the Qwen2-VL family runs once per distinct image of a batch, and in every batch.

In GRPO every prompt stands G times in a batch, and TRL hands its image over as often. [`share_vision`] finds equal
images by their patches, runs each once, and gives its features to all their places; gradients of the places add up,
so that the loss and its gradients are the same. A batch of texts alone gets an unseen image, see [`always_see`]: under
ZeRO-3 and DDP every process must run the vision tower, and a batch that trains nothing else would have no gradient.
Score models that have the same tower ([`same_towers`]) can share its features too.

Left out: sharing the prompt's tokens too, as score models do; TRL computes log-probabilities row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.nn.functional import pad
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import ModelOutput

from .families import QWEN_VL, parameters
from .pixel_budget import has_budget
from .seen_images import SeenImages, image_prompt, token_types


def share_vision(model: PreTrainedModel) -> None:
    """Makes a model run its vision tower once per distinct image of a batch; in place, and only once.

    Args:
        model (`PreTrainedModel` or `PeftModel`): A causal VLM; one whose images are not patches in grids is left as
            it is.
    """
    core: Any = model
    core = core.get_base_model() if hasattr(core, "get_base_model") else core
    core = getattr(core, "model", core)
    if not hasattr(core, "get_image_features") or getattr(core.get_image_features, "shared", False):
        return
    if "image_grid_thw" not in parameters(type(core).get_image_features):
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


def features_of(features: ModelOutput, index: Sequence[int], tokens: Sequence[int] | None = None) -> ModelOutput:
    """Returns the vision features of distinct images at their places.

    Args:
        features (`ModelOutput`): `pooler_output` and, in Qwen3-VL, per layer `deepstack_features`, each per image.
        index (sequence of `int`): Which distinct image stands at each place.
        tokens (sequence of `int`, *optional*): How many tokens each has, if the features are not one entry per image.
    """

    def placed(layer: Any) -> Any:
        parts = layer
        if tokens is not None:
            flat = layer.flatten(0, -2) if isinstance(layer, torch.Tensor) else torch.cat(list(layer))
            parts = flat.split(list(tokens))
        chosen = tuple(parts[i] for i in index)
        return torch.cat(chosen)[None] if isinstance(layer, torch.Tensor) else chosen

    found = type(features)(pooler_output=placed(features["pooler_output"]))
    if (layers := getattr(features, "deepstack_features", None)) is not None:
        found["deepstack_features"] = [placed(layer) for layer in layers]
    return found


def distinct_images(pixel_values: torch.Tensor, grids: torch.Tensor) -> tuple[list[int], list[int]]:
    """Finds equal images of a batch.

    Args:
        pixel_values (`torch.Tensor` of shape (patches, patch size)): All images' patches.
        grids (`torch.Tensor` of shape (images, 3)): Their grids, in patches.

    Returns:
        `tuple`: the place of each distinct image's first occurrence, and for each image which distinct one it is.
    """
    return distinct_tensors(torch.split(pixel_values, grids.prod(1).tolist()), [tuple(g) for g in grids.tolist()])


def distinct_tensors(parts: Sequence[torch.Tensor], shapes: Sequence[tuple[int, ...]]) -> tuple[list[int], list[int]]:
    """Returns the place of each distinct tensor's first occurrence, and for each tensor which distinct one it is.

    Tensors of different `shapes`, which may say more than their own, are never equal.
    """
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


def same_towers(models: Sequence[PreTrainedModel]) -> list[int]:
    """Returns for each score model the place of the first whose vision tower gives the same features.

    Settings but those of the language model must be equal, and weights equal by value, type and device; quantised
    models are taken for different.
    """
    towers = [(_vision_settings(model), _vision_weights(model)) for model in models]
    first: list[int] = []
    for i, (settings, weights) in enumerate(towers):
        same = (k for k in sorted(set(first)) if towers[k][0] == settings and _equal(towers[k][1], weights))
        first.append(next((k for k in same if not getattr(models[i], "is_quantized", False)), i))
    return first


_UNREAD = {"text_config", "positions", "output_activation", "architectures", "transformers_version", "_name_or_path"}
_UNREAD |= {"dtype", "torch_dtype"}  # by the vision tower: the weights have their type


def _vision_settings(model: Any) -> list[Any]:
    def read(value: Any) -> Any:
        return {k: read(v) for k, v in value.items() if k not in _UNREAD} if isinstance(value, dict) else value

    return [type(model.model), model.config._attn_implementation, read(model.config.to_dict())]


def _vision_weights(model: Any) -> dict[str, torch.Tensor]:
    core = model.model
    decoder = core.get_decoder()
    language = {id(tensor) for tensor in (*decoder.parameters(), *decoder.buffers())}
    tensors = dict((*core.named_parameters(), *core.named_buffers()))
    return {name: tensor for name, tensor in tensors.items() if id(tensor) not in language}


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    def same(a: torch.Tensor, b: torch.Tensor) -> bool:
        return (a.dtype, a.device, a.shape) == (b.dtype, b.device, b.shape) and torch.equal(a, b)

    return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)


def unseen_image(processor: ProcessorMixin) -> dict[str, torch.Tensor]:
    """Returns what a model is given of a small image beside tokens, such as `pixel_values` and `image_grid_thw`."""
    if not has_budget(processor):
        return SeenImages(processor, [Image.new("RGB", (56, 56))]).inputs()
    reader = processor.image_processor
    side = reader.patch_size * reader.merge_size
    image = reader(images=[Image.new("RGB", (side, side))], do_resize=False, return_tensors="pt")
    return {name: image[name] for name in ("pixel_values", "image_grid_thw")}


def unseen_tokens(processor: Any) -> list[int]:
    """Returns the tokens of [`unseen_image`]: those that stand for it, and perhaps others around them."""
    if has_budget(processor):
        return [processor.image_token_id]
    return SeenImages(processor, [Image.new("RGB", (56, 56))]).rows([image_prompt(processor, 1)])[0]


def always_see(model: PreTrainedModel, processor: ProcessorMixin | PreTrainedTokenizerBase) -> None:
    """Makes a model's losses run the vision tower for texts alone too; in place.

    A call with `labels` but without images gets an image's tokens on the left of the first row, which nothing attends
    to. TRL hands over images of no patches if a part of a mixed batch has none. A model of another family, or one that
    is trained with a tokenizer, on texts alone, is left as it is.
    """
    core: Any = model
    core = core.get_base_model() if hasattr(core, "get_base_model") else core
    if core.config.model_type not in QWEN_VL or not isinstance(processor, ProcessorMixin):
        return
    image, tokens = unseen_image(processor), torch.tensor(unseen_tokens(processor))
    fill = {"input_ids": processor.tokenizer.pad_token_id, "attention_mask": 0, "labels": -100}

    def add_image(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        seen = kwargs.get("pixel_values")
        if kwargs.get("labels") is None or (seen is not None and len(seen)):
            return None
        given = {name: value for name, value in kwargs.items() if value is not None}
        padded = {name: pad(given[name], (len(tokens), 0), value=value) for name, value in fill.items()}
        ids = padded["input_ids"]
        ids[0, : len(tokens)] = tokens
        padded |= {name: types.to(ids.device) for name, types in token_types(processor, ids).items()}
        return args, given | padded | {name: tensor.to(ids.device) for name, tensor in image.items()}

    core.register_forward_pre_hook(add_image, with_kwargs=True)
