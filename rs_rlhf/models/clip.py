"""`ClipModel`: pictures and texts in, unit vectors out; `ClipScorer`: groups in, CLIP scores out.

Any dual encoder that `AutoModel` loads will do (CLIP, SigLIP, SigLIP 2, AltCLIP …): it is asked for image and text
features only, so its own temperature and bias play no part. Texts are padded as the family was trained: SigLIP's text
tower reads the last place and sees no mask, so its texts fill all places; the others' are padded to the longest.

The CLIP score is the plain cosine of image and text. CLIPScore (Hessel et al. 2021, arXiv 2104.08718) is 2.5 times
the cosine, cut off below zero; the factor changes no ranking and the cut makes ties of what SigLIP-like models, whose
cosines are often negative, can still tell apart.

Left out: OpenCLIP's own checkpoint files (convert them to a transformers folder first), LoRA adapters, reading images
in worker processes.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import normalize

from ..data.group import Group, ImageSource, completion_text
from ..errors import DataError, ImageError, OptionError
from ..imagery.raster import ImageOptions, read_image
from ..metrics.answers import extract_answer


class ClipModel:
    """A dual encoder of images and texts.

    Args:
        model (`PreTrainedModel`): With `get_image_features` and `get_text_features`; its device and dtype are used.
        processor (`ProcessorMixin`): Its processor.
        image_options ([`ImageOptions`], *optional*): How images are found and read.
        batch_size (`int`): Images or texts of a forward at most.

    Raises:
        ValueError: The model is no dual encoder, or the processor lacks a tokenizer or an image processor.

    Example:
        >>> from rs_rlhf.models.clip import ClipModel  # doctest: +SKIP
        >>> model = ClipModel.from_pretrained("openai/clip-vit-large-patch14")  # doctest: +SKIP
        >>> model.image_features(["a.png"]) @ model.text_features(["a river.", "a port."]).T  # doctest: +SKIP
        tensor([[0.2411, 0.1730]])
    """

    def __init__(
        self, model: Any, processor: Any, image_options: ImageOptions | None = None, *, batch_size: int = 64
    ) -> None:
        if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
            raise OptionError(
                f"{type(model).__name__} is no dual encoder of images and texts; give a CLIP-like model."
            )
        for part in ("tokenizer", "image_processor"):
            if not hasattr(processor, part):
                raise OptionError(
                    f"the processor of the {type(model).__name__} has no {part}; save the whole "
                    "processor beside the weights."
                )
        if batch_size < 1:
            raise OptionError(f"batch_size is {batch_size}; it must be at least 1.")
        self.model = model.eval()
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
        dtype: Any = None,
        revision: str | None = None,
        batch_size: int = 64,
        attn_implementation: str | None = None,
    ) -> ClipModel:
        """Loads a dual encoder, in safetensors, from a folder or hub id.

        Args:
            path (`str`): Checkpoint.
            image_options ([`ImageOptions`], *optional*): How images are found and read.
            device (`str`, *optional*): By default accelerate's choice for this process.
            dtype (`str` or `torch.dtype`, *optional*): By default the checkpoint's.
            revision (`str`, *optional*): Branch, tag or commit on the hub.
            batch_size (`int`): As in the class.
            attn_implementation (`str`, *optional*): As in transformers.

        Raises:
            ValueError: It cannot be loaded, is no dual encoder, or weights are missing, so that part of it would be
                random.
        """
        from accelerate import PartialState
        from transformers import AutoModel, AutoProcessor

        options: dict[str, Any] = {"dtype": dtype or "auto", "use_safetensors": True, "revision": revision}
        options["attn_implementation"] = attn_implementation
        try:
            loaded: Any = AutoModel.from_pretrained(path, output_loading_info=True, **options)
            processor = AutoProcessor.from_pretrained(path, revision=revision)
        except OSError as error:
            raise OptionError(f"{path} cannot be loaded as a CLIP: {str(error).strip().splitlines()[0]}") from error
        model, info = loaded
        clip = cls(model, processor, image_options, batch_size=batch_size)
        if missing := sorted(info["missing_keys"]):
            raise OptionError(
                f"{path}: {len(missing)} weights are missing, such as {missing[0]}; save the whole model."
            )
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
            ValueError: Features that are not finite.
        """
        parts = []
        for start in range(0, len(sources), self.batch_size):
            stop = min(start + self.batch_size, len(sources))
            pictures = [
                read_image(sources[i], self.image_options, wheres[i] if wheres is not None else "")
                for i in range(start, stop)
            ]
            inputs = self.processor.image_processor(images=pictures, return_tensors="pt")
            parts.append(self._encode(self.model.get_image_features, inputs))
        return self._joined(parts)

    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        """Encodes texts; warns, once a call and with their number, if some are too long and lose their end.

        Args:
            texts (sequence of `str`): T texts.

        Returns:
            `torch.Tensor` of shape (T, D): float32 vectors of length 1, on the CPU.

        Raises:
            ValueError: Features that are not finite.
        """
        features, cut = self.encode_texts(texts)
        self.warn_cut(sum(cut), len(texts))
        return features

    def encode_texts(self, texts: Sequence[str]) -> tuple[torch.Tensor, list[bool]]:
        """As [`ClipModel.text_features`], but returns which texts were cut instead of warning.

        Returns:
            `tuple`: features (T, D), and for each text whether it is longer than the model's `max_text_tokens`.
        """
        parts, cut = [], []
        for start in range(0, len(texts), self.batch_size):
            batch = list(texts[start : start + self.batch_size])
            whole = self.processor.tokenizer(batch, verbose=False)["input_ids"]
            cut += [len(ids) > self.max_text_tokens for ids in whole]
            inputs = text_inputs(self.processor.tokenizer, batch, self.padding, self.max_text_tokens)
            parts.append(self._encode(self.model.get_text_features, inputs))
        return self._joined(parts), cut

    def warn_cut(self, cut: int, count: int) -> None:
        """Warns that `cut` of `count` texts lost their end; says nothing where none did."""
        if cut:
            warnings.warn(
                f"{cut} of {count} texts are longer than the model's {self.max_text_tokens} tokens: their ends are "
                "cut off.",
                stacklevel=3,
            )

    @torch.inference_mode()
    def _encode(self, encoder: Any, inputs: Any) -> torch.Tensor:
        moved = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
        if "pixel_values" in moved:
            moved["pixel_values"] = moved["pixel_values"].to(self.model.dtype)
        output = encoder(**moved)
        features = (output if isinstance(output, torch.Tensor) else output.pooler_output).float().cpu()
        if not features.isfinite().all():  # of these, every comparison is false, and any rank would be the first
            raise OptionError(
                f"the model gave features that are not finite in {self.model.dtype}; load it in float32."
            )
        return normalize(features, dim=-1)

    def _joined(self, parts: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(parts) if parts else torch.zeros(0, getattr(self.model.config, "projection_dim", 0))


def text_inputs(tokenizer: Any, texts: Sequence[str], padding: str, max_text_tokens: int) -> Any:
    """Tokenizes texts as the family was trained: [`ClipModel`]'s `padding` and `max_text_tokens` tell how."""
    inputs = tokenizer(list(texts), padding=padding, truncation=True, max_length=max_text_tokens, return_tensors="pt")
    if padding == "max_length":  # SigLIP was trained without, whatever its tokenizer is saved with
        inputs.pop("attention_mask", None)
    return inputs


@dataclass
class ClipScorer:
    """Scores groups by CLIP, in the place of a [`Scorer`]: the usual baseline of best-of-N and curation.

    A completion's score is the cosine of the image and its text alone: the question is not put before it, since CLIP
    was trained on captions and the published baseline (arXiv 2503.00743) compares images with answers. Of a text with
    `<answer>…</answer>` that part is taken. Of several images the mean of their unit vectors counts, scaled to
    length 1. An empty completion gets what the model says of the empty text.

    Args:
        model ([`ClipModel`]): The encoder.
        batch_size (`int`): Groups read at a time.
    """

    model: ClipModel
    batch_size: int = 32

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], **kwargs: Any) -> ClipScorer:
        """Loads a dual encoder; the arguments are those of [`ClipModel.from_pretrained`]."""
        return cls(ClipModel.from_pretrained(path, **kwargs))

    def score_groups(
        self, groups: Sequence[Group], *, on_error: str = "raise", show_progress: bool | None = None
    ) -> list[Any]:
        """Scores groups; warns, once and with their number, if texts are too long and lose their end.

        Args:
            groups (sequence of [`Group`]): Any number, each with at least one image.
            on_error (`str`): `"raise"`, or `"return"`: a group that cannot be read has its error in place of scores.
            show_progress (`bool`, *optional*): By default on a terminal when there are more than 8 batches.

        Returns:
            `list`: For each group the `list` of its completions' cosines, in order.

        Raises:
            DataError: A group without an image, unless `on_error` is `"return"`.
            ImageError: An image that cannot be read, unless `on_error` is `"return"`.
        """
        from tqdm import tqdm

        scores: list[Any] = [[] for _ in groups]
        asked = [i for i, group in enumerate(groups) if group.completions]
        batches = [asked[k : k + self.batch_size] for k in range(0, len(asked), self.batch_size)]
        hidden = not (show_progress if show_progress is not None else len(batches) > 8 and sys.stderr.isatty())
        cut: list[bool] = []
        for batch in tqdm(batches, desc="Scoring", unit="batch", disable=hidden):
            read = self._read(batch, groups, scores, on_error)
            texts = [extract_answer(completion_text(one)) for i in read for one in groups[i].completions]
            features, too_long = self.model.encode_texts(texts)
            cut += too_long
            start = 0
            for i, image in read.items():
                stop = start + len(groups[i].completions)
                scores[i] = (features[start:stop] @ image).tolist()
                start = stop
        self.model.warn_cut(sum(cut), len(cut))
        return scores

    def _read(
        self, batch: Sequence[int], groups: Sequence[Group], scores: list[Any], on_error: str
    ) -> dict[int, torch.Tensor]:
        """Vector (D,) of the images of each group; if one cannot be read, the groups are tried one by one."""
        try:
            return self._image_vectors(batch, groups)
        except (DataError, ImageError) as error:
            if on_error != "return":
                raise
            if len(batch) == 1:
                scores[batch[0]] = error
                return {}
        read: dict[int, torch.Tensor] = {}
        for i in batch:
            read |= self._read([i], groups, scores, on_error)
        return read

    def _image_vectors(self, batch: Sequence[int], groups: Sequence[Group]) -> dict[int, torch.Tensor]:
        keys: list[list[Any]] = []
        found: dict[Any, tuple[ImageSource, str]] = {}  # captions of one image often come one after the other
        for i in batch:
            group = groups[i]
            where = group.where or f"group {i}"
            if not group.images:
                raise DataError(
                    "no image; a CLIP score compares an image with a text: add one or leave the row out",
                    "images",
                    where,
                )
            keys.append([source if isinstance(source, str) else id(source) for source in group.images])
            for key, source in zip(keys[-1], group.images, strict=True):
                found.setdefault(key, (source, where))
        sources, wheres = zip(*found.values(), strict=True)
        vectors = dict(zip(found, self.model.image_features(sources, wheres), strict=True))
        means = [torch.stack([vectors[key] for key in own]).mean(0) for own in keys]
        return {i: normalize(mean, dim=0) for i, mean in zip(batch, means, strict=True)}


__all__ = ["ClipModel", "ClipScorer", "text_inputs"]
