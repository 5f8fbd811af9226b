"""`ClipModel`: images and texts in, unit vectors out, by any dual encoder that `AutoModel` loads.

CLIP, SigLIP, SigLIP 2, AltCLIP … are asked for image and text features only, so their own temperature and bias have no
effect. Texts are padded as the family was trained: SigLIP's text tower reads the last place and sees no mask, so its
texts fill all places; the others' are padded to the longest.

Left out: OpenCLIP's own checkpoint files (convert them to a transformers folder first), LoRA adapters, reading images
in worker processes.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch.nn.functional import normalize
from transformers import BatchEncoding, BatchFeature, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from ..data.group import ImageSource
from ..errors import ModelError, OptionError, RSRLHFError, code_refused, load_problem
from ..imagery.raster import ImageOptions, read_image
from .vlm import check_complete, load_processor

T = TypeVar("T")


class ClipModel:
    """A dual encoder of images and texts.

    Args:
        model (`PreTrainedModel`): With `get_image_features` and `get_text_features`; its device and dtype are used.
        processor (`ProcessorMixin`): Its processor.
        image_options ([`ImageOptions`], *optional*): How images are found and read.
        batch_size (`int`): Images or texts of a forward pass at most.

    Raises:
        ModelError: The model is no dual encoder, or the processor lacks a tokenizer or an image processor.

    Example:
        >>> model = ClipModel.from_pretrained("openai/clip-vit-large-patch14")  # doctest: +SKIP
        >>> model.image_features(["a.png"]) @ model.text_features(["a river.", "a port."]).T  # doctest: +SKIP
        tensor([[0.2411, 0.1730]])
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        image_options: ImageOptions | None = None,
        *,
        batch_size: int = 64,
    ) -> None:
        name = type(model).__name__
        if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
            raise ModelError(f"{name} is no dual encoder of images and texts; give a CLIP-like model.")
        for part in ("tokenizer", "image_processor"):
            if not hasattr(processor, part):
                raise ModelError(f"the processor of the {name} has no {part}; save the whole processor as well.")
        if batch_size < 1:
            raise OptionError(f"batch_size is {batch_size}; it must be at least 1.", "batch_size")
        self.model: Any = model.eval()
        self.processor = processor
        self.image_options = image_options or ImageOptions()
        self.batch_size = batch_size
        positions = getattr(getattr(model.config, "text_config", None), "max_position_embeddings", None)
        # Some tokenizers say that they have no limit, so the model's own counts as well.
        self.max_text_tokens = min(processor.tokenizer.model_max_length, positions or sys.maxsize)
        self.padding = "max_length" if model.config.model_type.startswith("siglip") else "longest"

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        image_options: ImageOptions | None = None,
        device: str | None = None,
        dtype: str | torch.dtype | None = None,
        revision: str | None = None,
        batch_size: int = 64,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
    ) -> ClipModel:
        """Loads a dual encoder, in safetensors, from a folder or hub id.

        Args:
            path (`str`): Checkpoint.
            image_options, batch_size: As in the class.
            device (`str`, *optional*): By default accelerate's choice for this process.
            dtype (`str` or `torch.dtype`, *optional*): By default the checkpoint's.
            revision, attn_implementation (`str`, *optional*): As in transformers.
            trust_remote_code (`bool`): Run code that the checkpoint brings along.

        Raises:
            ModelError: It cannot be loaded, is no dual encoder, or weights are missing, so that part of it would be
                random.
        """
        from accelerate import PartialState
        from transformers import AutoModel

        options: dict[str, Any] = {"dtype": dtype or "auto", "use_safetensors": True, "revision": revision}
        options |= {"attn_implementation": attn_implementation, "output_loading_info": True}
        try:
            processor = load_processor(str(path), {"revision": revision, "trust_remote_code": trust_remote_code})
            with code_refused(path):
                loaded: Any = AutoModel.from_pretrained(path, trust_remote_code=bool(trust_remote_code), **options)
        except RSRLHFError:
            raise
        except (OSError, ValueError, ImportError) as error:  # ValueError: of a family that transformers does not have
            raise ModelError(f"cannot be loaded as a CLIP: {load_problem(path, error)}", where=str(path)) from error
        model, info = loaded
        clip = cls(model, processor, image_options, batch_size=batch_size)
        check_complete(path, info)
        model.to(device or PartialState().device)
        return clip

    def image_features(self, sources: Sequence[ImageSource], wheres: Sequence[str] | None = None) -> torch.Tensor:
        """Encodes images.

        Args:
            sources (sequence): B paths, `{"bytes", "path"}`, PIL images or arrays; read by [`read_image`].
            wheres (sequence of `str`, *optional*): File and row of each, for messages.

        Returns:
            `torch.Tensor` of shape (B, D): float32 vectors of length 1, on the CPU.

        Raises:
            ImageError: An image cannot be read; names it and its row.
            ModelError: Features that are not finite.
        """
        parts = []
        named = list(zip(sources, wheres or [""] * len(sources), strict=True))
        for batch in batched(named, self.batch_size):
            images = [read_image(source, self.image_options, where) for source, where in batch]
            inputs = self.processor.image_processor(images=images, return_tensors="pt")
            parts.append(self._encode(self.model.get_image_features, inputs))
        return self._joined(parts)

    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        """Encodes texts; warns, once a call and with their number, if some are too long and lose their end.

        Returns:
            `torch.Tensor` of shape (texts, D): float32 vectors of length 1, on the CPU.

        Raises:
            ModelError: Features that are not finite.
        """
        features, cut = self.encode_texts(texts)
        self.warn_cut(sum(cut), len(texts))
        return features

    def encode_texts(self, texts: Sequence[str]) -> tuple[torch.Tensor, list[bool]]:
        """As [`ClipModel.text_features`], but returns for each text whether it was cut instead of warning."""
        parts, cut = [], []
        for batch in batched(texts, self.batch_size):
            whole = self.processor.tokenizer(batch, verbose=False)["input_ids"]
            cut += [len(ids) > self.max_text_tokens for ids in whole]
            inputs = text_inputs(self.processor.tokenizer, batch, self.padding, self.max_text_tokens)
            parts.append(self._encode(self.model.get_text_features, inputs))
        return self._joined(parts), cut

    def warn_cut(self, cut: int, count: int) -> None:
        """Warns that `cut` of `count` texts lost their end; does nothing if none did."""
        if cut:
            limit = f"longer than the model's {self.max_text_tokens} tokens"
            warnings.warn(f"{cut} of {count} texts are {limit}: their ends are cut off.", stacklevel=3)

    @torch.inference_mode()
    def _encode(self, encoder: Callable[..., Any], inputs: BatchEncoding) -> torch.Tensor:
        output = encoder(**BatchFeature(dict(inputs)).to(self.model.device, self.model.dtype))
        features = (output if isinstance(output, torch.Tensor) else output.pooler_output).float().cpu()
        if not features.isfinite().all():  # of these, every comparison is false, and any rank would be the first
            raise ModelError(f"the model gave features that are not finite in {self.model.dtype}; load it in float32.")
        return normalize(features, dim=-1)

    def _joined(self, parts: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(parts) if parts else torch.zeros(0, getattr(self.model.config, "projection_dim", 0))


def batched(items: Sequence[T], size: int) -> list[list[T]]:
    """Returns the items in lists of `size`."""
    return [list(items[k : k + size]) for k in range(0, len(items), size)]


def text_inputs(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], padding: str, max_text_tokens: int
) -> BatchEncoding:
    """Tokenizes texts as the family was trained, given [`ClipModel`]'s `padding` and `max_text_tokens`."""
    inputs = tokenizer(list(texts), padding=padding, truncation=True, max_length=max_text_tokens, return_tensors="pt")
    if padding == "max_length":  # SigLIP was trained without, whatever its tokenizer is saved with
        inputs.pop("attention_mask", None)
    return inputs
