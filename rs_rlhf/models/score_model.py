"""The score model: a vision-language backbone without its LM head, and a bias-free linear `reward_head`.

The score of a text is read at its last token (ScoreRS, arXiv 2503.00743). One forward pass serves plain padded rows
and the group layout (`layout`): the vision tower runs once per distinct image, a group's prompt once per group.
Positions are always computed here and passed on, so that the backbone keeps no state between calls. What families of
backbones differ in is in `families`.

Left out: a KV cache expanded over completions (it must not be used for training; plain rows with shared vision
features serve where the tree form does not help), video inputs, and `torch.compile`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils import logging as transformers_logging

from ..errors import DataError, ModelError, OptionError
from ..runs.files import write_json
from .families import (
    check_backbone,
    image_features,
    parameters,
    sequential,
    takes_tree,
    token_positions,
    use_key_names,
)
from .layout import continue_positions, last_tokens, of_groups, parts_of, split_rows, tree_is_cheaper, tree_mask
from .vision_sharing import features_of
from .vlm import base_path, hub_config

POSITIONS = ("mrope", "sequential")  # the first is the default, as below
ACTIVATIONS = ("softplus", "identity")
HEAD = "reward_head.weight"
# What transformers notes on a model that it has loaded quantized, or on several devices.
_LOADED = "is_quantized is_loaded_in_4bit is_loaded_in_8bit quantization_method hf_quantizer hf_device_map".split()
IGNORED = {"mm_token_type_ids", "token_type_ids", "use_cache", "return_dict", "num_items_in_batch"}
UNSEEN = "unseen_"  # before the names of inputs of an image that stands nowhere, see `GroupCollator`
SCORE_CONFIG = "score_config.json"  # beside a LoRA adapter, which has no model config of its own


@dataclass
class ScoreOutput(ModelOutput):
    """Scores: (rows,) of plain rows; (groups, N) of groups, NaN if a group has fewer than N completions."""

    scores: torch.Tensor | None = None


@dataclass
class _Images:
    """The distinct images (or lists of images, with `lengths`) of a batch, and which of them stands at each place."""

    features: ModelOutput | None = None
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    lengths: torch.Tensor | None = None
    index: list[int] = field(default_factory=list)
    tokens: list[int] | None = None


class RewardHead(nn.Linear):
    """The bias-free linear head, computed in float32: in bfloat16 close scores would tie."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Maps hidden states (…, h) to (…, 1) in float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(hidden.float(), self.weight.float())


class ScoreModel(PreTrainedModel):
    """Scores texts for images; load it with [`ScoreModel.from_pretrained`].

    Args:
        config (`PreTrainedConfig`): That of the backbone, with two settings added. `positions` is `"mrope"` (the
            backbone's own, 3-D in most families) or `"sequential"` (0, 1, 2… on all axes, what the published ScoreRS
            weights were trained with); `output_activation` is `"softplus"` or `"identity"`.
    """

    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _skip_keys_device_placement = ["past_key_values"]
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]

    def __init__(self, config: PreTrainedConfig) -> None:
        check_backbone(config)
        for name, choices in (("positions", POSITIONS), ("output_activation", ACTIVATIONS)):
            value = getattr(config, name, None) or choices[0]
            if value not in choices:
                raise OptionError(f"{name} must be one of {', '.join(choices)}, got {value!r}.", name)
            setattr(config, name, value)
        config.num_labels = 1
        super().__init__(config)
        use_key_names("ScoreModel", config)
        self.model = AutoModel.from_config(config, trust_remote_code=False)
        self._no_split_modules = self.model._no_split_modules
        self.reward_head = RewardHead(config.get_text_config().hidden_size, 1, bias=False)
        self.post_init()

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        positions: str | None = None,
        *,
        output_activation: str | None = None,
        **kwargs: Any,
    ) -> ScoreModel:
        """Loads a score model, or starts one from a causal vision-language checkpoint.

        Args:
            pretrained_model_name_or_path (`str`): A folder or hub id holding (a) a causal VLM checkpoint (the head is
                new), (b) a saved `ScoreModel`, (c) the published ScoreRS layout (`architectures: ["Qwen2Reward"]`),
                or (d) a LoRA adapter folder of one of these (merged into its base).
            positions (`str`, *optional*): `"mrope"` or `"sequential"`; by default what the checkpoint says,
                `"sequential"` for the published layout and `"mrope"` for a causal VLM.
            output_activation (`str`, *optional*): `"softplus"` (default of a new head) or `"identity"`.
            **kwargs: Passed to `PreTrainedModel.from_pretrained` (`dtype`, `device_map`, `revision`, …).

        Raises:
            ModelError: A weight is missing or unexpected (named), a score model has no head, or the architecture is
                not one of the above.
        """
        path = str(pretrained_model_name_or_path)
        if (Path(path) / "adapter_config.json").is_file():
            return _merge_adapter(cls, Path(path), positions, output_activation, kwargs)
        config = kwargs.pop("config", None) or hub_config(path, kwargs)
        architectures = list(config.architectures or [])
        scored = {"ScoreModel", "Qwen2Reward"} & set(architectures)
        if not scored and not any(name.endswith("ForConditionalGeneration") for name in architectures):
            raise ModelError(
                f"{path}: architectures is {architectures}; expected a causal vision-language model "
                "(…ForConditionalGeneration), a saved ScoreModel, or the published ScoreRS layout (Qwen2Reward)."
            )
        check_backbone(config, path)
        default = "sequential" if "Qwen2Reward" in architectures else "mrope"
        config.positions = positions or getattr(config, "positions", None) or default
        config.output_activation = output_activation or getattr(config, "output_activation", None)
        kwargs.pop("trust_remote_code", None)  # the config's and the processor's; the network is this class
        kwargs.setdefault("use_safetensors", True)
        kwargs["output_loading_info"] = True
        level = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()  # every key is checked below, with an error instead of a warning
        try:
            # A pair, with the loading info.
            loaded: Any = super().from_pretrained(path, config=config, trust_remote_code=False, **kwargs)
        finally:
            transformers_logging.set_verbosity(level)
        model, info = loaded
        _check_keys(path, info, head_may_be_new=not scored)
        return model

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:  # type: ignore[override]
        """Saves as `PreTrainedModel.save_pretrained`, as safetensors, under the module's own key names.

        transformers would write the old key names of Qwen2-VL, from which `Trainer` resumes with random weights and
        only a warning.
        """
        kwargs.setdefault("save_original_format", False)
        super().save_pretrained(save_directory, **kwargs)

    def part(self, name: str) -> list[nn.Parameter]:
        """Returns the weights of a part: `"language"`, or `"vision"`, all that comes before the language model."""
        language = {id(weight) for weight in self.model.get_decoder().parameters()}
        return [weight for weight in self.model.parameters() if (id(weight) in language) == (name == "language")]

    @classmethod
    def from_causal(
        cls, model: PreTrainedModel, positions: str | None = None, *, output_activation: str | None = None
    ) -> ScoreModel:
        """Starts a score model from a loaded causal vision-language model, whose backbone becomes its own.

        Args:
            model (`PreTrainedModel`): A causal VLM.
            positions, output_activation (`str`, *optional*): As in [`ScoreModel.from_pretrained`].
        """
        config = deepcopy(model.config)
        config.positions, config.output_activation = positions, output_activation
        with torch.device("meta"):
            scored = cls(config)
        scored.model = model.model
        head = RewardHead(config.get_text_config().hidden_size, 1, bias=False, device=model.device, dtype=model.dtype)
        scored._init_weights(head)
        scored.reward_head = head
        for name in _LOADED:
            if hasattr(model, name):
                setattr(scored, name, getattr(model, name))
        return scored

    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        *,
        segment_ids: torch.LongTensor | None = None,
        image_index: torch.LongTensor | None = None,
        image_lengths: torch.LongTensor | None = None,
        features: ModelOutput | None = None,
        **inputs: Any,
    ) -> ScoreOutput:
        """Scores plain rows, or groups if `segment_ids` is given.

        Args:
            input_ids (rows or groups, L): Tokens, image placeholders expanded.
            attention_mask (rows, L): 1 on tokens, 0 on padding, left or right; by default all 1.
            segment_ids (groups, L): -1 padding, 0 prompt, k completion k.
            image_index (placements,): Which distinct image stands at each placement, in row order; by default each
                stands once, in order.
            image_lengths (lists, inputs): As [`GroupCollator`] gives it: distinct lists of images, one per row, take
                the place of distinct images.
            features (`ModelOutput`, *optional*): What [`ScoreModel.see`] made of the same images.
            **inputs: What the processor makes of the distinct images, such as `pixel_values` (patches, patch size) and
                `image_grid_thw` (images, 3) in patches. Its types of tokens and the trainer's `use_cache` have no
                effect.

        Raises:
            TypeError: The backbone takes no such argument.
        """
        images, unseen = self._images(inputs, image_index, image_lengths, input_ids, features)
        if segment_ids is None:
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            scores = self._score_rows(input_ids, mask, images)
        elif self._runs_tree(segment_ids):
            scores = self._score_groups(input_ids, segment_ids, images)
        else:
            ids, mask, placements = split_rows(input_ids, segment_ids, self._images_per_row(input_ids, images))
            rows = self._score_rows(ids, mask, replace(images, index=[images.index[p] for p in placements]))
            scores = of_groups(rows, last_tokens(segment_ids, rows=False)[1])
        return ScoreOutput(scores=scores if unseen is None else scores + 0.0 * unseen)

    def see(self, batch: Mapping[str, torch.Tensor]) -> ModelOutput | None:
        """Returns the vision tower's features of a [`GroupCollator`]'s batch, `None` for one of texts alone."""
        takes = parameters(type(self.model).get_image_features)
        given = {name: x for name, x in batch.items() if name in takes}
        return image_features(self.model, given) if given else None

    def _images(
        self,
        inputs: Mapping[str, Any],
        index: torch.Tensor | None,
        lengths: torch.Tensor | None,
        ids: torch.Tensor,
        features: ModelOutput | None,
    ) -> tuple[_Images, torch.Tensor | None]:
        """Runs the vision tower once: on the images, unless their features are there, or in training or on several
        processes on the unseen one, of whose features the sum is returned.

        Under ZeRO-3 every process must gather the tower's weights, and under DDP every weight needs a gradient, so a
        process whose batch is all text runs the tower too. So does a single process: Adam moves weights on by their
        momentum where the gradient is zero but not where there is none, and would train differently.
        """
        given = {name: value for name, value in inputs.items() if name not in IGNORED and value is not None}
        takes = parameters(type(self.model).get_image_features)
        if unknown := {name for name in given if name.removeprefix(UNSEEN) not in takes}:
            raise TypeError(f"ScoreModel.forward got unexpected arguments: {', '.join(sorted(unknown))}.")
        unseen = {name.removeprefix(UNSEEN): x for name, x in given.items() if name.startswith(UNSEEN)}
        if unseen or not given:
            together = torch.distributed.is_available() and torch.distributed.is_initialized()
            return _Images(), self._sum_of(unseen) if unseen and (self.training or together) else None
        first = given.get("image_grid_thw", next(iter(given.values())))
        images = _Images(image_features(self.model, given) if features is None else features, given, lengths)
        images.index = list(range(len(first))) if index is None else index.tolist()
        if lengths is not None:
            images.tokens = self._tokens_per_list(ids, images)
        return images, None

    def _sum_of(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        features = image_features(self.model, inputs)
        layers = [features["pooler_output"], *(getattr(features, "deepstack_features", None) or [])]
        return torch.stack([part.float().sum() for layer in layers for part in layer]).sum()

    def _tokens_per_list(self, ids: torch.Tensor, images: _Images) -> list[int]:
        """Image tokens of each distinct list of images; each stands in some rows, of which the list has all."""
        counts = (ids == self.config.image_token_id).sum(1)
        rows = counts[counts > 0].tolist()
        tokens = dict(zip(images.index, rows, strict=True))
        return [tokens[i] for i in range(len(tokens))]

    def _runs_tree(self, segment_ids: torch.Tensor) -> bool:
        fits = takes_tree(self.config, segment_ids.shape[1])
        return fits and tree_is_cheaper(segment_ids, self.config.get_text_config().hidden_size)

    def _score_groups(self, ids: torch.Tensor, segments: torch.Tensor, images: _Images) -> torch.Tensor:
        ends = [0, *accumulate(self._images_per_row(ids, images))]
        flat = []
        for rows, width in parts_of(segments):
            index = images.index[ends[rows.start] : ends[rows.stop]]
            part = ids[rows, :width], segments[rows, :width], replace(images, index=index)
            flat.append(self._score_tree(*part))
        return of_groups(torch.cat(flat), last_tokens(segments, rows=False)[1])

    def _score_tree(self, ids: torch.Tensor, segments: torch.Tensor, images: _Images) -> torch.Tensor:
        eager = self.config.get_text_config()._attn_implementation == "eager"
        mask = tree_mask(segments, self.dtype, additive=eager)
        positions = continue_positions(self._positions(ids, segments == 0, images), segments)
        return self._head(self._hidden(ids, mask, positions, images), *last_tokens(segments, rows=False))

    def _score_rows(self, ids: torch.Tensor, mask: torch.Tensor, images: _Images) -> torch.Tensor:
        if not mask.any(dim=1).all():
            raise DataError("A row has no attended token, so there is nothing to score; drop empty rows.")
        hidden = self._hidden(ids, mask, self._positions(ids, mask.bool(), images), images)
        return self._head(hidden, *last_tokens(mask.long() - 1, rows=True))

    def _head(self, hidden: torch.Tensor, last: torch.Tensor, exists: torch.Tensor) -> torch.Tensor:
        """Returns the scores of the existing completions, flat, in row order, in float32."""
        group, completion = exists.nonzero(as_tuple=True)
        scores = self.reward_head(hidden[group, last[group, completion]]).squeeze(-1)
        return nn.functional.softplus(scores) if self.config.output_activation == "softplus" else scores

    def _hidden(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, images: _Images) -> torch.Tensor:
        placed = None
        if images.features is not None and images.index:
            placed = {"image": features_of(images.features, images.index, images.tokens)}
        takes, types = parameters(type(self.model).forward), (ids == self.config.image_token_id).int()
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "mm_encoder_outputs": placed}
        inputs |= {name: types for name in ("token_type_ids", "mm_token_type_ids") if name in takes}
        inputs["position_ids"] = positions[0] if len(positions) == 1 else positions
        return self.model(**inputs, use_cache=False).last_hidden_state

    def _positions(self, ids: torch.Tensor, attended: torch.Tensor, images: _Images) -> torch.Tensor:
        """Positions (axes, rows, L) of the attended tokens, whatever the padding."""
        if self.config.positions == "sequential":
            axes = 3 if hasattr(self.model, "get_rope_index") else 1
            return sequential(attended).expand(axes, -1, -1)
        placed = {}
        if (grids := images.inputs.get("image_grid_thw")) is not None and images.index:
            column = sorted(images.inputs).index("image_grid_thw")
            counts = [1] * len(grids) if images.lengths is None else images.lengths[:, column].tolist()
            parts = grids.split(counts)
            placed = {"image_grid_thw": torch.cat([parts[i] for i in images.index])}
        return token_positions(self.model, ids, attended, placed)

    def _images_per_row(self, ids: torch.Tensor, images: _Images) -> list[int]:
        image = ids == self.config.image_token_id
        if images.lengths is not None:
            return image.any(1).int().tolist()
        starts = image.clone()
        starts[:, 1:] &= ~image[:, :-1]  # two images never touch: each stands between vision_start and vision_end
        return starts.sum(1).tolist()


def _check_keys(path: str, info: dict[str, Any], head_may_be_new: bool) -> None:
    missing = set(info["missing_keys"])
    if HEAD in missing and not head_may_be_new:
        raise ModelError(
            f"{path}: the checkpoint says that it is a score model but has no {HEAD}; it was saved without its head. "
            "Save with ScoreModel.save_pretrained, or with peft keep reward_head in modules_to_save."
        )
    wrong = {"missing": missing - {HEAD}, "unexpected": set(info["unexpected_keys"])}
    wrong["of another shape"] = {str(key) for key in info.get("mismatched_keys", ())}
    told = {name: ", ".join(sorted(keys)[:8]) + ", …" * (len(keys) > 8) for name, keys in wrong.items()}
    if problems := [f"{name} ({len(wrong[name])}): {keys}" for name, keys in told.items() if keys]:
        raise ModelError(f"{path}: the weights do not fit a ScoreModel; {'; '.join(problems)}.")


def _merge_adapter(
    cls: type[ScoreModel], path: Path, positions: str | None, activation: str | None, kwargs: dict[str, Any]
) -> ScoreModel:
    from peft import PeftModel
    from safetensors import safe_open

    weights = path / "adapter_model.safetensors"
    if not weights.is_file():
        raise ModelError(f"{path}: adapter_config.json is there but adapter_model.safetensors is not.")
    with safe_open(weights, "pt") as file:
        if not any("reward_head" in key for key in file.keys()):  # noqa: SIM118 (not a dict)
            raise ModelError(
                f"{path}: the adapter holds no reward_head; train it with modules_to_save=['reward_head']."
            )
    settings = path / SCORE_CONFIG
    saved = json.loads(settings.read_text()) if settings.is_file() else {}
    base = cls.from_pretrained(
        base_path(str(path)),
        positions or saved.get("positions"),
        output_activation=activation or saved.get("output_activation"),
        **kwargs,
    )
    return PeftModel.from_pretrained(base, str(path)).merge_and_unload()


def save_score_config(model: ScoreModel, folder: Path) -> None:
    """Writes the score model's own settings beside a LoRA adapter."""
    settings = {"positions": model.config.positions, "output_activation": model.config.output_activation}
    write_json(folder / SCORE_CONFIG, settings)
