"""Shared prefill of `generate`: equal prompts of a batch are read once, and their cache is repeated.

The N samples of a prompt stand N times in a batch of GRPO or of best-of-N. [`share_prompts`] makes a model run the
vision tower and the prefill on the distinct rows alone; before the first token is chosen, the cache and the logits get
a row for each sample again. Everything else is `generate`'s own, on all rows: positions, stopping, processors and the
random draws, so that greedy answers are those of plain generation, and sampled ones those of the same seed.

Memory: the prefill's activations are those of the distinct rows. The cache is that of plain generation from the first
new token on, since every row has its own copy of the prompt: 2 × layers × key-value heads × head size × bytes for each
token and row, such as 56 KiB in Qwen2-VL-7B (bfloat16), or 0.6 GB for 8 samples of a prompt of 1,300 tokens.

Plain generation stays for whatever is not known to be the same: caches of sliding windows, of linear attention, static
or quantized ones, beam search, videos, dropout that is on, and images whose rows cannot be told.

Left out: one copy of the prompt for all samples while they grow, which needs paged attention. transformers'
continuous batching has it for texts (TRL's `use_transformers_continuous_batching`), not for images; vLLM has it for
both.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers import Cache, DynamicCache, GenerationConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from ..vision_sharing import distinct_tensors

_PLAN = "_rows_of_shared_prompts"  # in the model's inputs between the two steps of `generate` that are ours
_OF_ROWS = ("attention_mask", "position_ids", "token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")


def share_prompts(model: PreTrainedModel) -> None:
    """Makes `generate` read equal prompts of a batch once; in place, and only once.

    Args:
        model (`PreTrainedModel` or `PeftModel`): Any decoder of transformers; see the module for what stays plain.
    """
    core: Any = model
    core = core.get_base_model() if hasattr(core, "get_base_model") else core
    ours: dict[str, Callable[..., Any]] = {
        "_maybe_prepare_encoder_kwargs_for_generation": _encode,
        "_prefill": _prefill,
    }
    if all(hasattr(type(core), name) for name in ours):
        for name, function in ours.items():
            setattr(core, name, MethodType(function, core))  # a copy of the model gets methods of its own


def _encode(
    self: Any, ids: torch.Tensor, inputs: dict[str, Any], name: str | None, config: GenerationConfig
) -> dict[str, Any]:
    """In place of `generate`'s step that may run the vision tower: only images of distinct rows are left for it."""
    if name == "input_ids" and _is_known(self, ids, inputs, config):
        first, index, images = _distinct_rows(self.config, ids, inputs)
        if len(first) < len(index):
            inputs |= images | {_PLAN: (first, index)}
    return type(self)._maybe_prepare_encoder_kwargs_for_generation(self, ids, inputs, name, config)


def _prefill(
    self: Any, ids: torch.Tensor, config: GenerationConfig, inputs: dict[str, Any], *rest: Any, **options: Any
) -> Any:
    """In place of `generate`'s first forward pass: the distinct rows, repeated afterwards."""
    plan = inputs.pop(_PLAN, None)
    if plan is None:
        return type(self)._prefill(self, ids, config, inputs, *rest, **options)
    first, index = (torch.tensor(rows, device=ids.device) for rows in plan)
    rows = {name: inputs[name].index_select(-2, first) for name in _OF_ROWS if inputs.get(name) is not None}
    outputs = type(self)._prefill(self, ids[first], config, inputs | rows, *rest, **options)
    outputs.logits = outputs.logits[index]
    next(value for value in inputs.values() if isinstance(value, Cache)).batch_select_indices(index)
    return outputs


def _is_known(model: Any, ids: torch.Tensor, inputs: Mapping[str, Any], config: GenerationConfig) -> bool:
    """Whether rows of this generation may be read once and repeated."""
    return (
        len(ids) > 1
        and not model.config.is_encoder_decoder
        and inputs.get("inputs_embeds") is None
        and inputs.get("position_ids") is not None  # else the model would keep those of the distinct rows
        and not any(isinstance(value, Cache) for value in inputs.values())
        and (config.num_beams or 1) == (config.num_return_sequences or 1) == 1
        and config.use_cache
        and config.cache_implementation in (None, "dynamic")
        and not config.output_attentions
        and not config.output_hidden_states
        and model._supports_default_dynamic_cache()
        and _attends_fully(model)
        and not (model.training and any(map(_drops_out, model.modules())))
    )


def _attends_fully(model: Any) -> bool:
    """Whether all that a model keeps of a prompt are the keys and values of every token."""
    layers = DynamicCache(config=model.config.get_text_config(decoder=True)).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def _drops_out(module: nn.Module) -> bool:
    """Whether a module drops something at random; functions are called with a number that their module keeps."""
    if isinstance(module, nn.Dropout):
        return module.p > 0
    return any("drop" in name and isinstance(value, int | float) and value > 0 for name, value in vars(module).items())


def _distinct_rows(
    config: Any, ids: torch.Tensor, inputs: Mapping[str, Any]
) -> tuple[list[int], list[int], dict[str, torch.Tensor]]:
    """Finds the equal rows of a batch.

    Returns:
        `tuple`: the place of each distinct row, for each row which distinct one it is, and the images of the distinct
        rows; every row is distinct if it cannot be told which images are whose.
    """
    everything = list(range(len(ids)))
    of_rows = [ids, *(inputs[name] for name in _OF_ROWS if inputs.get(name) is not None)]
    if any(tensor.shape[-2:] != ids.shape for tensor in of_rows):
        return everything, everything, {}
    texts = torch.cat([tensor.movedim(-2, 0).flatten(1).long() for tensor in of_rows], dim=1)
    keys: list[list[int]] = [torch.unique(texts, dim=0, return_inverse=True)[1].tolist()]
    parts: dict[str, tuple[torch.Tensor, ...]] = {}
    for name, tensor in inputs.items():
        if name not in _OF_ROWS and isinstance(tensor, torch.Tensor):
            counts = _images_of_rows(config, ids, len(tensor))
            if counts is None:
                return everything, everything, {}
            parts[name] = tensor.split(counts)
            keys.append(distinct_tensors(parts[name], [tuple(part.shape) for part in parts[name]])[1])
    index: list[int] = []
    known: dict[Hashable, int] = {}
    for key in zip(*keys, strict=True):
        index.append(known.setdefault(key, len(known)))
    first = [index.index(row) for row in range(len(known))]
    return first, index, {name: torch.cat([rows[i] for i in first]) for name, rows in parts.items()}


def _images_of_rows(config: Any, ids: torch.Tensor, units: int) -> list[int] | None:
    """Returns how many of a tensor's units (images, tiles or patches) belong to each row; `None` if nobody can say.

    Families differ in what they count: an image, a run of image tokens, a fixed number of tokens, a row.
    """
    token, video = (getattr(config, f"{name}_token_id", None) for name in ("image", "video"))
    if token is None or (video is not None and (ids == video).any()):
        return None
    found = ids == token
    tokens = found.sum(1).tolist()
    runs = (found[:, :1].sum(1) + (found[:, 1:] & ~found[:, :-1]).sum(1)).tolist()
    if sum(runs) == units:
        return runs
    if all(tokens) and len(ids) == units:
        return [1] * units
    if not any(tokens) or any(count * units % sum(tokens) for count in tokens):
        return None
    return [count * units // sum(tokens) for count in tokens]
