"""Loading of causal vision-language models of any family, and the special tokens of their vocabulary.

Code that lies in a checkpoint's folder never runs unless the caller passes `trust_remote_code=True`: transformers
would ask on the terminal. So every call says which (`tests/test_trust.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from ..errors import ModelError, OptionError, RSRLHFError, code_refused, loading
from .pixel_budget import has_budget, set_pixel_budget

VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
# Where processors and configs keep the tokens that stand for (parts of) images, video and sound.
_PLACEHOLDERS = [f"{name}_token_id" for name in ("image", "video", "audio", "fake_image", "start_image", "end_image")]
_PLACEHOLDERS += ["image_token_ids", "image_token_index", "video_token_ids"]
_HUB = ("revision", "token", "cache_dir")


def load_vlm(
    path: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    **kwargs: Any,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Loads a causal VLM of any family, a LoRA adapter merged into its base, and its processor.

    Args:
        path (`str`): Checkpoint, adapter's folder or hub id.
        dtype (`str` or `torch.dtype`, *optional*): By default the checkpoint's.
        device (`str`, *optional*): By default accelerate's choice for this process.
        trust_remote_code (`bool`): Run code that the checkpoint brings along.
        **kwargs: Passed to `from_pretrained` (`revision`, `attn_implementation`, …); with a `device_map` the model
            stays where that puts it.

    Raises:
        ModelError: It cannot be loaded, is no causal VLM, or weights are missing, so that part of the model would be
            random.
        OptionError: Both `device` and `device_map` are given.
    """
    from accelerate import PartialState

    if kwargs.get("device_map") is not None and device is not None:
        raise OptionError("device and device_map cannot both be given; leave one out.", "device")
    try:
        kwargs["trust_remote_code"] = trust_remote_code
        model, source = _load(str(path), {"dtype": dtype or "auto", "use_safetensors": True, **kwargs})
        processor = load_processor(source, kwargs)
    except RSRLHFError:
        raise
    except (OSError, ValueError) as error:  # ValueError: of a family that transformers does not have
        raise ModelError(f"{path} cannot be loaded as a policy: {str(error).strip().splitlines()[0]}") from error
    if kwargs.get("device_map") is None:
        model.to(device or PartialState().device)
    return model, processor


def _load(path: str, kwargs: dict[str, Any]) -> tuple[Any, str]:
    """Loads a causal VLM; returns it and where its processor is."""
    from transformers import AutoModelForImageTextToText

    if (base := base_path(path)) != path:
        from peft import PeftModel

        model, source = _load(base, kwargs)
        own = any((Path(path) / name).is_file() for name in ("preprocessor_config.json", "processor_config.json"))
        return PeftModel.from_pretrained(model, path).merge_and_unload(), path if own else source
    architectures = hub_config(path, kwargs).architectures or []
    if not any(name.endswith("ForConditionalGeneration") for name in architectures):
        raise ModelError(f"{path} is no policy: its architectures are {architectures}, expected a causal VLM.")
    options = dict(kwargs)
    trust = bool(options.pop("trust_remote_code", False))
    with code_refused(path):
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            path, output_loading_info=True, trust_remote_code=trust, **options
        )
    model, info = loaded
    check_complete(path, info)
    return model, path


def base_path(path: str) -> str:
    """Returns where the base of a LoRA adapter's folder is, and any other path as it is."""
    adapter = Path(path) / "adapter_config.json"
    return json.loads(adapter.read_text())["base_model_name_or_path"] if adapter.is_file() else path


def hub_config(path: str, kwargs: Mapping[str, Any]) -> PreTrainedConfig:
    """Loads a checkpoint's config with those of `from_pretrained`'s arguments that choose revision, cache, trust."""
    from transformers import AutoConfig

    options = {name: kwargs[name] for name in _HUB if name in kwargs}
    with code_refused(path):
        return AutoConfig.from_pretrained(path, trust_remote_code=bool(kwargs.get("trust_remote_code")), **options)


def load_processor(path: str, kwargs: Mapping[str, Any], **more: Any) -> Any:
    """Loads a checkpoint's processor as [`hub_config`] does its config; `more` goes to the processor."""
    from transformers import AutoProcessor

    more |= {name: kwargs[name] for name in _HUB if name in kwargs}
    with code_refused(path):
        return AutoProcessor.from_pretrained(path, trust_remote_code=bool(kwargs.get("trust_remote_code")), **more)


def processor_of(given: Any, path: str, kwargs: Mapping[str, Any]) -> Any:
    """Returns the processor given, or that of a model's path; with a tokenizer in place of its own if one is given.

    Raises:
        OptionError: What is given is neither, or the model does not say its path.
        ModelError: The processor cannot be loaded, or reads no images.
    """
    if isinstance(given, ProcessorMixin):
        return given
    if given is not None and not isinstance(given, PreTrainedTokenizerBase):
        raise OptionError(
            f"processing_class is a {type(given).__name__}, expected a processor or a tokenizer.", "processing_class"
        )
    if not path:
        raise OptionError("the model does not say where its processor is; give processing_class.", "processing_class")
    with loading(path, key="processing_class"):
        processor = load_processor(path, kwargs)
    if not isinstance(processor, ProcessorMixin):
        raise ModelError("there is no processor of images, only a tokenizer; give another.", "processing_class", path)
    if given is not None:
        processor.tokenizer, processor.chat_template = given, given.chat_template or processor.chat_template
    return processor


def check_complete(path: str | os.PathLike[str], info: dict[str, Any]) -> None:
    """Refuses a checkpoint whose loading info lists missing weights, which would be random.

    Raises:
        ModelError: Names the first of them.
    """
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"{path}: {len(missing)} weights are missing, such as {missing[0]}; save the whole model.")


def placeholder_tokens(config: PreTrainedConfig | None, processor: ProcessorMixin) -> list[int]:
    """Returns the tokens that stand for images, video or sound, and must never be sampled."""
    vocabulary = processor.tokenizer.get_vocab()
    tokens = {vocabulary[name] for name in VISION_TOKENS if name in vocabulary}
    for holder in (config, processor, processor.tokenizer):
        for name in _PLACEHOLDERS:
            value = getattr(holder, name, None)
            values = value if isinstance(value, (list, tuple)) else [value]
            tokens |= {token for token in values if isinstance(token, int)}
    return sorted(tokens & set(vocabulary.values()))


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the tokens that end an answer: those of the model's `generation_config`, and the tokenizer's."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    ends = set(ends if isinstance(ends, (list, tuple)) else [ends])
    return sorted({*ends, tokenizer.eos_token_id, tokenizer.pad_token_id} - {None})


def set_family_budget(
    path: str,
    config: PreTrainedConfig,
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    low: int | None,
    high: int | None,
) -> None:
    """Sets the pixel budget of a model's processor.

    Raises:
        OptionError: The processor has no pixel budget, and one is given; or the budget is empty.
    """
    if has_budget(processor):
        set_pixel_budget(processor, low, high)
    elif low is not None or high is not None:
        raise OptionError(
            f"{path} is a {config.model_type}, whose processor has no pixel budget; leave min_pixels and "
            "max_pixels out.",
            "min_pixels" if low is not None else "max_pixels",
        )
