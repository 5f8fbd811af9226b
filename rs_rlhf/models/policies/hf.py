"""Sampling from any causal image-text-to-text model of transformers, through `generate`.

LLaVA, InternVL, Idefics and the like differ in how they lay out an image, but all have a processor, a chat template
and `generate`; nothing else is used here. A prompt is read once for its n answers if the family's cache allows it, see
[`share_prompts`]. `QwenVLPolicy`, for the Qwen2-VL families, also lays it out once.

Left out: encoder-decoder models, models that need code from a hub, video, and prompts of models without a chat
template (BLIP-2, PaliGemma as published): put a `chat_template.jinja` into the folder.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from PIL import Image
from transformers import BatchFeature, GenerationConfig, PreTrainedModel, ProcessorMixin

from ...data.group import Group
from ...errors import ModelError
from ...imagery.raster import ImageOptions, read_image
from ..pixel_budget import looks, text_length
from ..seen_images import chat_text, process, refuse_marks
from ..vlm import end_tokens, placeholder_tokens
from .policy import Policy
from .sampling import SamplingOptions, answer_draws, choose_tokens, planned_batches, until_end
from .shared_generation import share_prompts


class HFPolicy(Policy):
    """Any causal vision-language model of transformers, through its processor, chat template and `generate`.

    Prompts are padded on the left; each answer has the draws that [`QwenVLPolicy`] would give it. Only the end tokens
    of the model's `generation_config` are kept: no repetition penalty, no sampling that was not asked for.
    Placeholders of images are never sampled.

    Args:
        model (`PreTrainedModel`): The model; its device and dtype are used, its `generation_config` is replaced.
        processor (`ProcessorMixin`): Its processor, with a chat template.
        image_options ([`ImageOptions`], *optional*): How images are found and read.

    Raises:
        ModelError: The processor has no chat template, or the model is not a decoder.
    """

    def __init__(
        self, model: PreTrainedModel, processor: ProcessorMixin, image_options: ImageOptions | None = None
    ) -> None:
        name = getattr(model.config, "_name_or_path", "") or "the model"
        if model.config.is_encoder_decoder:
            raise ModelError(f"{name} is an encoder-decoder ({model.config.model_type}); expected a causal VLM.")
        if not getattr(processor, "chat_template", None):
            raise ModelError(
                f"{name}: its processor has no chat template, so nobody can say how a question is put to it; put the "
                "template of its authors into its folder as chat_template.jinja."
            )
        self.model, self.processor, self.tokenizer = model.eval(), processor, processor.tokenizer
        share_prompts(model)
        self.image_options = image_options or ImageOptions()
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.end_ids = end_tokens(model, self.tokenizer)
        self.never = [token for token in placeholder_tokens(model.config, processor) if token not in self.end_ids]
        model.generation_config = GenerationConfig(eos_token_id=self.end_ids, pad_token_id=self.tokenizer.pad_token_id)

    def _answers(self, groups: Sequence[Group], places: Sequence[int], sampling: SamplingOptions) -> list[list[str]]:
        n = sampling.n
        answers: dict[int, list[str]] = {}
        # Processors do not take a batch in which only some prompts have an image.
        for part in ([i for i in places if groups[i].images], [i for i in places if not groups[i].images]):
            if part:  # `generate` is given each prompt n times, and reads it once
                inputs = self._inputs([groups[i] for i in part for _ in range(n)])
                texts = self._generate(inputs, answer_draws(part, sampling), sampling)
                answers |= {i: texts[k * n : k * n + n] for k, i in enumerate(part)}
        return [answers[i] for i in places]

    def pixels(self, group: Group) -> list[tuple[int, int]]:
        """Returns `(width, height)` of each image as the model sees it; of one tile if the processor cuts tiles."""
        return [size for _, size in looks(group, self.processor, self.image_options)]

    def _batches(
        self, groups: Sequence[Group], sampling: SamplingOptions, share: tuple[int, int], done: Collection[int]
    ) -> Iterator[list[int]]:
        lengths = [
            text_length(group) + sum(tokens for tokens, _ in looks(group, self.processor, self.image_options))
            for group in groups
        ]
        return planned_batches(lengths, sampling, share, done)

    def _text(self, group: Group) -> str:
        mark = getattr(self.processor, "image_token", None)
        texts = [part.get("text", "") for message in group.prompt for part in message["content"]]
        refuse_marks(texts, [str(mark)] if mark else [], group.where)
        return chat_text(self.processor, group.prompt, True, group.where)

    def _processed(self, texts: list[str], images: list[list[Image.Image]] | None) -> BatchFeature:
        options = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
        inputs = process(self.processor, texts, images, **options)
        inputs.pop("labels", None)  # PaliGemma's processor makes some
        return inputs

    def _inputs(self, groups: Sequence[Group]) -> BatchFeature:
        known: dict[int, Image.Image] = {}  # a group stands n times
        for group in groups:
            for source in group.images:
                if id(source) not in known:
                    known[id(source)] = read_image(source, self.image_options, group.where)
        images = [[known[id(source)] for source in group.images] for group in groups]
        inputs = self._processed([self._text(group) for group in groups], images if known else None)
        return inputs.to(self.model.device, self.model.dtype)

    @torch.inference_mode()
    def _generate(self, inputs: BatchFeature, draws: torch.Tensor, sampling: SamplingOptions) -> list[str]:
        supply = iter(draws.to(self.model.device).unbind(dim=1))

        def choose(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            """Leaves one token to take, so that every answer has its own draws and torch's seed stays untouched."""
            chosen = choose_tokens(scores.clone(), next(supply), sampling, self.never, len(self.tokenizer))
            return torch.full_like(scores, -torch.inf).scatter(1, chosen[:, None], 0.0)

        output = self.model.generate(
            **inputs, do_sample=False, max_new_tokens=draws.shape[1], logits_processor=[choose]
        )
        new = output[:, inputs["input_ids"].shape[1] :].tolist()
        return self.tokenizer.batch_decode(until_end(new, self.end_ids), skip_special_tokens=True)
