"""`Policy`: prompts with images in, n sampled answers each out. The one way in which a causal VLM answers.

Prompts are laid out by [`GroupCollator`], so a policy sees exactly what it was trained on. A batch of prompts is run
once; its key-value cache is then repeated n times, so that the n answers of a prompt share one reading of the image
and one pass over the prompt. That is why the sampling loop is ours and not `generate`, which repeats the pixels.

Every answer has random numbers of its own, drawn from the seed, the item's place in the input and the answer's number,
so a draw does not depend on the batch it is in. The batch only decides how rows are padded, hence the last bits of the
probabilities; the batches themselves depend on the items and the options alone. Work that is resumed through
[`Policy.sample_batches`] therefore gives what it would have given in one go, on the same machine and versions.

Left out: beam search, repetition penalties and whatever else a checkpoint's `generation_config` asks for (its end
tokens are honoured), streaming, video.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ...data.group import Group
from ...errors import OptionError
from ...imagery.raster import ImageOptions
from ..collator import VISION_TOKENS, GroupCollator, estimated_length, seen_sizes, set_pixel_budget
from .sampling import (
    answer_draws,
    as_groups,
    check_sampling,
    choose_tokens,
    end_tokens,
    planned_batches,
    until_end,
)


class Policy:
    """A causal vision-language model that answers prompts.

    Args:
        model (`PreTrainedModel`): A causal VLM of the Qwen2-VL family; its device and dtype are used.
        processor (`ProcessorMixin`): Its processor.
        image_options ([`ImageOptions`], *optional*): How images are found and read.
        augment (`bool`): Rotate and flip images as in training, see [`GroupCollator`].
        seed (`int`): Seed of the augmentation.

    Example:
        >>> from rs_rlhf.models.policies.policy import Policy  # doctest: +SKIP
        >>> policy = Policy.from_pretrained("out/captioner")  # doctest: +SKIP
        >>> policy.sample([("What is the scene class of this image?", "a.png")], n=3)  # doctest: +SKIP
        [['river', 'river', 'lake']]
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        image_options: ImageOptions | None = None,
        *,
        augment: bool = False,
        seed: int = 0,
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.collator = GroupCollator(processor, image_options, augment=augment, seed=seed)
        self.end_ids = end_tokens(model, self.tokenizer)
        known = self.tokenizer.get_vocab()
        self.never = [known[name] for name in VISION_TOKENS if name in known]

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        image_options: ImageOptions | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        dtype: Any = None,
        device: str | None = None,
        augment: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ) -> Policy:
        """Loads a causal VLM from a folder or hub id; a LoRA adapter's folder is merged into its base.

        Args:
            path (`str`): Checkpoint or adapter.
            image_options ([`ImageOptions`], *optional*): How images are found and read.
            min_pixels, max_pixels (`int`, *optional*): Pixel budget; by default the processor's.
            dtype (`str` or `torch.dtype`, *optional*): By default the checkpoint's.
            device (`str`, *optional*): By default accelerate's choice for this process.
            augment, seed: As in the class.
            **kwargs: Passed to `from_pretrained` (`revision`, `attn_implementation`, …); with a `device_map` the model
                stays where that puts it.

        Raises:
            ValueError: Not a causal VLM, or weights are missing, so that part of the model would be random.
        """
        model, processor = load_vlm(path, dtype=dtype, device=device, **kwargs)
        set_pixel_budget(processor, min_pixels, max_pixels)
        return cls(model, processor, image_options, augment=augment, seed=seed)

    def sample(
        self,
        items: Sequence[Any],
        n: int = 1,
        *,
        show_progress: bool | None = None,
        **options: Any,
    ) -> list[list[str]]:
        """Answers every item n times.

        Args:
            items (sequence): [`Group`]s, whose completions are not looked at, or `(prompt, image)` pairs as
                [`make_group`] takes them; the image may be `None` or a list.
            n (`int`): Answers of each item.
            show_progress (`bool`, *optional*): By default on a terminal.
            **options: `temperature` (`float`, 1.0; 0 takes the most likely token), `top_p` (`float`, 1.0), `top_k`
                (`int`, 0: off), `max_new_tokens` (`int`, 64), `seed` (`int`, 0), `token_budget` (`int`), `batch_size`
                (`int`); see [`Policy.sample_batches`].

        Returns:
            `list[list[str]]`: For each item its n answers, in the order of the input, without special tokens.

        Raises:
            ImageError, DataError: An item that cannot be read; names its file and row.
        """
        from tqdm import tqdm

        answers: list[list[str]] = [[] for _ in items]
        hidden = not (show_progress if show_progress is not None else sys.stderr.isatty())
        with tqdm(total=len(items), desc="Sampling", unit="row", disable=hidden) as bar:
            for batch, texts in self.sample_batches(items, n, **options):
                for i, own in zip(batch, texts, strict=True):
                    answers[i] = own
                bar.update(len(batch))
        return answers

    def sample_batches(
        self,
        items: Sequence[Any],
        n: int = 1,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        max_new_tokens: int = 64,
        seed: int = 0,
        token_budget: int = 16384,
        batch_size: int | None = None,
        done: Collection[int] = (),
        share: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[list[int], list[list[str]]]]:
        """Yields `(places in the input, their answers)` batch by batch, the longest prompts first.

        Args:
            items, n, temperature, top_p, top_k, max_new_tokens, seed: See [`Policy.sample`].
            token_budget (`int`): Tokens of a batch's answers with their prompts at most, padding included.
            batch_size (`int`, *optional*): Also at most so many items a batch.
            done (collection of `int`): Places whose answers are there already: a batch of only these is left out.
            share (`tuple`): `(rank, world)`: of the batches only every world-th, from the rank-th on. The batches
                are those of one process, so answers do not depend on the number of processes.

        Raises:
            ValueError: An option is out of range.
        """
        check_sampling(n, temperature, top_p, top_k, max_new_tokens, share)
        groups = as_groups(items)
        options = self.collator.image_options
        lengths = [estimated_length(group, self.processor, options) + max_new_tokens for group in groups]
        for batch in planned_batches(lengths, n, token_budget, batch_size, share, done):
            draws = torch.stack([answer_draws(seed, i, n, max_new_tokens) for i in batch]).flatten(0, 1)
            tokens = self._generate(self._inputs([groups[i] for i in batch]), n, draws, temperature, top_p, top_k)
            texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
            yield batch, [texts[k : k + n] for k in range(0, len(texts), n)]

    def pixels(self, group: Group) -> list[tuple[int, int]]:
        """Returns `(width, height)` of each image of a group as the model sees it, from the headers alone.

        Raises:
            ImageError: An image cannot be read; names its file and row.
        """
        return seen_sizes(group, self.processor, self.collator.image_options)

    def _inputs(self, groups: Sequence[Group]) -> dict[str, torch.Tensor]:
        """Lays out prompts for generation, on the model's device."""
        return {name: tensor.to(self.model.device) for name, tensor in self.collator.prompts(groups).items()}

    @torch.inference_mode()
    def _generate(
        self,
        inputs: dict[str, torch.Tensor],
        n: int,
        draws: torch.Tensor,
        temperature: float,
        top_p: float,
        top_k: int,
    ) -> list[list[int]]:
        """Runs the prompts once and goes on n times from each; returns the new tokens of the prompts × n rows."""
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        mask = inputs["attention_mask"]
        # Always given: where the model finds them by itself it may use the offsets of an earlier batch.
        positions = base.model.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            image_grid_thw=inputs.get("image_grid_thw"),
            attention_mask=mask,
        )[0]
        output = self.model(**inputs, position_ids=positions, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        logits = output.logits[:, -1].repeat_interleave(n, dim=0)
        if n > 1:
            cache.batch_repeat_interleave(n)
            mask, positions = mask.repeat_interleave(n, dim=0), positions.repeat_interleave(n, dim=1)
        position = positions.amax(dim=(0, 2), keepdim=True).expand(3, -1, 1)
        ends = torch.tensor(self.end_ids, device=mask.device)
        draws = draws.to(mask.device)
        running = torch.ones(len(mask), dtype=torch.bool, device=mask.device)
        tokens = []
        for step in range(draws.shape[1]):
            chosen = self._choose(logits, draws[:, step], temperature, top_p, top_k)
            chosen = torch.where(running, chosen, self.tokenizer.pad_token_id)
            tokens.append(chosen)
            running &= ~torch.isin(chosen, ends)
            if step + 1 == draws.shape[1] or not running.any():
                break
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            position = position + 1
            output = self.model(
                input_ids=chosen[:, None],
                attention_mask=mask,
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            logits = output.logits[:, -1]
        return until_end(torch.stack(tokens, dim=1).tolist(), self.end_ids)

    def _choose(
        self, logits: torch.Tensor, draws: torch.Tensor, temperature: float, top_p: float, top_k: int
    ) -> torch.Tensor:
        """Picks a token for each row of logits (R, V): the most likely, or that which its draw in [0, 1) falls on."""
        return choose_tokens(logits, draws, temperature, top_p, top_k, self.never, len(self.tokenizer))


def load_vlm(
    path: str | os.PathLike[str], *, dtype: Any = None, device: str | None = None, **kwargs: Any
) -> tuple[Any, Any]:
    """Loads a causal VLM of any family, a LoRA adapter merged into its base, and its processor.

    Args:
        path, dtype, device, **kwargs: As in [`Policy.from_pretrained`].

    Returns:
        `tuple`: model and processor.

    Raises:
        ValueError: Not a causal VLM, or weights are missing, so that part of the model would be random.
    """
    from accelerate import PartialState
    from transformers import AutoProcessor

    if kwargs.get("device_map") is not None and device is not None:
        raise OptionError("device and device_map cannot both be given; leave one out.")
    try:
        model, source = _load(str(path), {"dtype": dtype or "auto", "use_safetensors": True, **kwargs})
        processor = AutoProcessor.from_pretrained(source, revision=kwargs.get("revision"))
    except OSError as error:
        raise OptionError(f"{path} cannot be loaded as a policy: {str(error).strip().splitlines()[0]}") from error
    if kwargs.get("device_map") is None:
        model.to(device or PartialState().device)
    return model, processor


def _load(path: str, kwargs: dict[str, Any]) -> tuple[Any, str]:
    """Loads a causal VLM; returns it and where its processor is."""
    import json

    from transformers import AutoConfig, AutoModelForImageTextToText

    adapter = Path(path) / "adapter_config.json"
    if adapter.is_file():
        from peft import PeftModel

        base, source = _load(json.loads(adapter.read_text())["base_model_name_or_path"], kwargs)
        own = (Path(path) / "preprocessor_config.json").is_file() or (Path(path) / "processor_config.json").is_file()
        return PeftModel.from_pretrained(base, path).merge_and_unload(), path if own else source
    hub = {name: kwargs[name] for name in ("revision", "trust_remote_code", "token", "cache_dir") if name in kwargs}
    architectures = AutoConfig.from_pretrained(path, **hub).architectures or []
    if not any(name.endswith("ForConditionalGeneration") for name in architectures):
        raise OptionError(f"{path} is no policy: its architectures are {architectures}, expected a causal VLM.")
    loaded: Any = AutoModelForImageTextToText.from_pretrained(path, output_loading_info=True, **kwargs)
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise OptionError(f"{path}: {len(missing)} weights are missing, such as {missing[0]}; save the whole model.")
    return model, path


__all__ = ["Policy", "load_vlm"]
