"""`HFPolicy`: any causal image-text-to-text model of transformers, with the interface of [`Policy`].

LLaVA, InternVL, Idefics and the like differ in how they lay out an image, but all have a processor, a chat template
and `generate`; nothing else is used here. [`Policy`] is the faster way for the Qwen2-VL families: it reads a prompt
once for its n answers.

Left out: encoder-decoder models, models that need code from a hub, video, and prompts of models without a chat
template (BLIP-2, PaliGemma as published): put a `chat_template.jinja` into the folder.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch

from ...data.group import Group
from ...errors import DataError, OptionError
from ...imagery.raster import ImageOptions, image_size, read_image
from ..collator import VISION_TOKENS
from .policy import Policy
from .sampling import answer_draws, as_groups, check_sampling, choose_tokens, end_tokens, planned_batches, until_end

# Where processors and configs keep the tokens that stand for (parts of) images, video and sound.
_PLACEHOLDERS = (
    "image_token_id",
    "image_token_ids",
    "image_token_index",
    "video_token_id",
    "video_token_ids",
    "audio_token_id",
    "fake_image_token_id",
    "start_image_token_id",
    "end_image_token_id",
)


class HFPolicy:
    """Any causal vision-language model of transformers, through its processor, chat template and `generate`.

    Prompts are padded on the left; each answer has the draws that [`Policy`] would give it. Of the model's
    `generation_config` only the end tokens are kept, and the model's own is replaced: no repetition penalty, no
    sampling where none is asked for. Placeholders of images are never said.

    Args:
        model (`PreTrainedModel`): Its device and dtype are used.
        processor (`ProcessorMixin`): Its processor, with a chat template.
        image_options ([`ImageOptions`], *optional*): How images are found and read.

    Raises:
        ValueError: The processor has no chat template, or the model is not a decoder.
    """

    sample = Policy.sample  # it only joins what `sample_batches` yields

    def __init__(self, model: Any, processor: Any, image_options: ImageOptions | None = None) -> None:
        from transformers import GenerationConfig

        name = getattr(model.config, "_name_or_path", "") or "the model"
        if model.config.is_encoder_decoder:
            raise OptionError(f"{name} is an encoder-decoder ({model.config.model_type}); expected a causal VLM.")
        if not getattr(processor, "chat_template", None):
            raise OptionError(
                f"{name}: its processor has no chat template, so nobody can say how a question is put to it; put the "
                "template of its authors into its folder as chat_template.jinja."
            )
        self.model, self.processor, self.tokenizer = model.eval(), processor, processor.tokenizer
        self.image_options = image_options or ImageOptions()
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.end_ids = end_tokens(model, self.tokenizer)
        self.never = [token for token in placeholder_tokens(model.config, processor) if token not in self.end_ids]
        model.generation_config = GenerationConfig(eos_token_id=self.end_ids, pad_token_id=self.tokenizer.pad_token_id)
        self._seen: dict[tuple[int, int], tuple[int, tuple[int, int]]] = {}

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
        """Yields `(places in the input, their answers)`; arguments as in [`Policy.sample_batches`].

        The n answers of a prompt read its image n times: `generate` has no other way for all families.
        """
        check_sampling(n, temperature, top_p, top_k, max_new_tokens, share)
        groups = as_groups(items)
        lengths = [self._length(group) + max_new_tokens for group in groups]
        for batch in planned_batches(lengths, n, token_budget, batch_size, share, done):
            answers: dict[int, list[str]] = {}
            # Processors do not take a batch in which only some prompts have an image.
            for part in ([i for i in batch if groups[i].images], [i for i in batch if not groups[i].images]):
                if part:
                    draws = torch.stack([answer_draws(seed, i, n, max_new_tokens) for i in part]).flatten(0, 1)
                    inputs = self._inputs([groups[i] for i in part for _ in range(n)])
                    texts = self._generate(inputs, draws, temperature, top_p, top_k)
                    answers |= {i: texts[k * n : k * n + n] for k, i in enumerate(part)}
            yield batch, [answers[i] for i in batch]

    def pixels(self, group: Group) -> list[tuple[int, int]]:
        """Returns `(width, height)` of each image as the model sees it; of one tile where the processor cuts tiles."""
        return [self._look(size)[1] for size in image_sizes(group, self.image_options)]

    def _length(self, group: Group) -> int:
        characters = sum(len(part.get("text", "")) for message in group.prompt for part in message["content"])
        return 12 + characters // 3 + sum(self._look(size)[0] for size in image_sizes(group, self.image_options))

    def _look(self, size: tuple[int, int]) -> tuple[int, tuple[int, int]]:
        """Tokens and `(width, height)` that the processor makes of an image of a size, found with an empty one."""
        if size not in self._seen:
            from PIL import Image

            prompt = [{"role": "user", "content": [{"type": "image"}]}]
            inputs = self._processed([self._text(Group(prompt, []))], [[Image.new("RGB", size)]])
            pixels, grid = inputs["pixel_values"], inputs.get("image_grid_thw")
            if grid is not None:  # flat patches
                side = self.processor.image_processor.patch_size
                seen = (int(grid[0, 2]) * side, int(grid[0, 1]) * side)
            else:
                seen = (int(pixels.shape[-1]), int(pixels.shape[-2]))
            self._seen[size] = inputs["input_ids"].shape[1], seen
        return self._seen[size]

    def _text(self, group: Group) -> str:
        from jinja2 import TemplateError

        mark = getattr(self.processor, "image_token", None)
        parts = [part.get("text", "") for message in group.prompt for part in message["content"]]
        if mark and any(str(mark) in text for text in parts):
            raise DataError(f"the text holds {mark!r}, which stands for an image; remove it", where=group.where)
        try:
            return self.processor.apply_chat_template(group.prompt, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise DataError(
                f"the model's chat template refuses the conversation ({error}); it may take no system turn",
                where=group.where,
            ) from None

    def _processed(self, texts: list[str], images: list[list[Any]] | None) -> dict[str, Any]:
        start = self.tokenizer.bos_token
        twice = start is not None and all(text.startswith(start) for text in texts)  # the template has written it
        inputs = self.processor(
            text=texts,
            images=images,
            padding=True,
            padding_side="left",
            return_tensors="pt",
            **({"add_special_tokens": False} if twice else {}),
        )
        return {name: value for name, value in inputs.items() if name != "labels"}  # PaliGemma's processor makes some

    def _inputs(self, groups: Sequence[Group]) -> dict[str, Any]:
        known: dict[int, Any] = {}
        for group in groups:
            for source in group.images:
                if id(source) not in known:
                    known[id(source)] = read_image(source, self.image_options, group.where)
        images = [[known[id(source)] for source in group.images] for group in groups]
        inputs = self._processed([self._text(group) for group in groups], images if known else None)
        device, dtype = self.model.device, self.model.dtype
        return {
            name: value.to(device, dtype if value.is_floating_point() else None) if torch.is_tensor(value) else value
            for name, value in inputs.items()
        }

    @torch.inference_mode()
    def _generate(
        self, inputs: dict[str, Any], draws: torch.Tensor, temperature: float, top_p: float, top_k: int
    ) -> list[str]:
        supply = iter(draws.to(self.model.device).unbind(dim=1))

        def choose(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            """Leaves one token to take, so that every answer has its own draws and nobody else's are touched."""
            given = (temperature, top_p, top_k, self.never, len(self.tokenizer))
            chosen = choose_tokens(scores.clone(), next(supply), *given)
            return torch.full_like(scores, -torch.inf).scatter(1, chosen[:, None], 0.0)

        output = self.model.generate(
            **inputs, do_sample=False, max_new_tokens=draws.shape[1], logits_processor=[choose]
        )
        new = output[:, inputs["input_ids"].shape[1] :].tolist()
        return self.tokenizer.batch_decode(until_end(new, self.end_ids), skip_special_tokens=True)


def image_sizes(group: Group, options: ImageOptions) -> list[tuple[int, int]]:
    """Returns `(width, height)` of a group's images, from their headers."""
    return [image_size(source, options, group.where)[::-1] for source in group.images]


def placeholder_tokens(config: Any, processor: Any) -> list[int]:
    """Returns the tokens that stand for images, video or sound, and must not be said."""
    vocabulary = processor.tokenizer.get_vocab()
    found = {vocabulary[name] for name in VISION_TOKENS if name in vocabulary}
    for holder in (config, processor, processor.tokenizer):
        for name in _PLACEHOLDERS:
            value = getattr(holder, name, None)
            found |= {value} if isinstance(value, int) else {one for one in value or () if isinstance(one, int)}
    return sorted(found & set(vocabulary.values()))


__all__ = ["HFPolicy", "image_sizes", "placeholder_tokens"]
