"""Families of vision-language models: what each does here, as the tests of `tests/models/test_families.py` hold.

Any other image-text-to-text model of transformers scores by plain rows, if its forward takes image features that are
made beforehand. Docs: `docs/families.md`, the table below.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from transformers import MODEL_MAPPING, PreTrainedConfig
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.utils import ModelOutput

from ..errors import ModelError


@dataclass(frozen=True)
class Family:
    """What a family does.

    Args:
        title (`str`): Its name.
        tree (`bool`): Whether a group may run as one row, its prompt once: attention is full, positions are known.
        pixels (`bool`): Whether images are resized here, by `min_pixels` and `max_pixels`; else its processor does it.
        note (`str`): What else differs.
    """

    title: str
    tree: bool = True
    pixels: bool = False
    note: str = ""


KNOWN = {
    "qwen2_vl": Family("Qwen2-VL", pixels=True),
    "qwen2_5_vl": Family("Qwen2.5-VL", pixels=True),
    "qwen3_vl": Family("Qwen3-VL", pixels=True),
    "qwen3_vl_moe": Family("Qwen3-VL-MoE", pixels=True),
    "qwen3_5": Family("Qwen3.5", tree=False, pixels=True, note="layers of linear attention take no mask"),
    "internvl": Family("InternVL"),
    "glm4v": Family("GLM-4V"),
    "llava_onevision": Family("LLaVA-OneVision", note="an image is cut into tiles only if it is a row's only one"),
    "gemma3": Family("Gemma 3", tree=False, note="image tokens see each other, most layers have a sliding window"),
    "idefics3": Family("Idefics3"),
    "smolvlm": Family("SmolVLM", note="its processor needs the package num2words"),
}

# Those whose layout, positions and features policies know here; prompts are read once, whoever asks.
QWEN_VL = frozenset(name for name, family in KNOWN.items() if family.tree and family.pixels)


def check_backbone(config: PreTrainedConfig, path: str = "") -> None:
    """Raises a [`ModelError`] that says why models of a family cannot score; before any weights are asked for."""
    kind = config.model_type
    wanted = "expected a decoder that takes image features made beforehand, such as Qwen2-VL, InternVL or Gemma 3"
    core: Any = MODEL_MAPPING.get(type(config), None)
    reason = ""
    if getattr(config, "is_encoder_decoder", False):
        reason = " it is an encoder-decoder;"
    elif not hasattr(core, "get_image_features") or "mm_encoder_outputs" not in parameters(core.forward):
        reason = " it takes none;"
    elif not isinstance(getattr(config, "image_token_id", None), int):
        reason = " its config names no image_token_id;"
    if reason:
        raise ModelError(f"ScoreModel cannot use a {kind}:{reason} {wanted}.", where=path)


def use_key_names(name: str, config: PreTrainedConfig) -> None:
    """Makes transformers rename the keys of a causal checkpoint for the class `name` as for the causal class of its
    family.

    It renames per class name, and a class that it does not know silently gets a language model of random weights.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as names

    mapping = get_checkpoint_conversion_mapping(names.get(config.model_type, ""))
    mapping = get_checkpoint_conversion_mapping(config.model_type) if mapping is None else mapping
    register_checkpoint_conversion_mapping(name, mapping or [], overwrite=True)


@cache
def parameters(function: Any) -> frozenset[str]:
    """Returns the names of a function's parameters."""
    return frozenset(inspect.signature(function).parameters)


def image_features(core: Any, inputs: Mapping[str, torch.Tensor]) -> ModelOutput:
    """Runs the vision tower.

    Raises:
        ModelError: The features have parts that nobody here knows how to give to the places of an image.
    """
    cast = {name: x.to(core.dtype) if x.is_floating_point() else x for name, x in inputs.items()}
    features = core.get_image_features(**cast, return_dict=True)
    known = {"pooler_output", "deepstack_features", "last_hidden_state", "hidden_states", "attentions"}
    if (more := set(features) - known) or features.get("pooler_output") is None:
        parts = ", ".join(sorted(more)) or "no pooler_output"
        raise ModelError(f"ScoreModel cannot use a {core.config.model_type}: its image features have {parts}.")
    return features


def token_positions(
    core: Any, ids: torch.Tensor, attended: torch.Tensor, inputs: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Returns the positions of the attended tokens, whatever the padding: (axes, rows, L), one axis if text has one.

    Args:
        core (`PreTrainedModel`): The model without its LM head.
        ids (`torch.Tensor` of shape (rows, L)): Tokens, image placeholders expanded.
        attended (`torch.Tensor` of shape (rows, L)): Whether a token is to be seen.
        inputs (`dict`): What the processor made of the images, in the order of their places.

    Raises:
        ModelError: Its positions depend on what is not known here.
    """
    if not hasattr(core, "get_rope_index"):
        return sequential(attended)[None]
    given = {"mm_token_type_ids": (ids == core.config.image_token_id).int(), "attention_mask": attended, **inputs}
    takes = inspect.signature(type(core).get_rope_index).parameters
    given = {name: value for name, value in given.items() if name in takes}
    try:
        return core.get_rope_index(ids, **given)[0]
    except TypeError as error:
        raise ModelError(f"ScoreModel cannot use a {core.config.model_type}: {error}.") from error


def sequential(attended: torch.Tensor) -> torch.Tensor:
    """Returns positions (rows, L) that count the attended tokens."""
    return (attended.long().cumsum(1) - 1).clamp(min=0)


def takes_tree(config: PreTrainedConfig, length: int) -> bool:
    """Whether groups of a length may run in the tree form: a family of which that is known, attention that takes the
    mask, and no window shorter than the length.
    """
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    window = text.sliding_window if "sliding_attention" in kinds else None
    known = config.model_type in KNOWN and KNOWN[config.model_type].tree
    return (
        known
        and kinds <= {"full_attention", "sliding_attention"}
        and text._attn_implementation in ("sdpa", "eager")
        and (window is None or length <= window)
    )
