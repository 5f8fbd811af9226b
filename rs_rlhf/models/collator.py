"""`GroupCollator`: groups in, token ids, segment ids and pixels of one batch out (see `layout`).

It runs in data-loader workers: it reads the images (late), fits them to the pixel budget, tokenizes, and lists each
distinct image once.

Left out: video.

Notation: B groups, L tokens of the longest row, N completions of the largest group, M image placements in row order,
I distinct images, P patches of all distinct images.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace

import torch
from PIL import Image
from transformers import ProcessorMixin

from ..data.group import Group, completion_text
from ..errors import DataError, ModelError, OptionError
from ..imagery.augment import rotate_flip
from ..imagery.identity import source_key
from ..imagery.raster import ImageOptions, read_image
from .pixel_budget import fit_pixel_budget, image_name, pixel_budget, resize_factor, row_name

PROMPT_FORMS = ("question-answer", "empty-question", "user-turn")


class GroupCollator:
    """Lays a list of groups out as one batch.

    Args:
        processor (`transformers.ProcessorMixin`): A Qwen2-VL-family processor; its pixel budget is used.
        image_options ([`ImageOptions`]): How images are found and read.
        prompt_form (`str`): `"question-answer"` puts the prompt in the user turn and the completion in the assistant
            turn (a plain caption has the empty question, as ScoreRS was trained); `"empty-question"` is the same for
            captions only, and refuses a prompt; `"user-turn"` appends the completion to the user turn, as the ScoreRS
            README scores a caption.
        augment (`bool`): Rotate and flip images of samples whose texts speak of no direction. For training only.
        seed (`int`): Seed of the augmentation; a sample's draw depends on the seed, its row and `epoch` alone.
        max_length (`int`, *optional*): Longest allowed prompt + completion in tokens, image tokens included.
        pad_to_multiple_of (`int`, *optional*): Pad batches to a multiple of it.

    Example:
        >>> collator = GroupCollator(processor)  # doctest: +SKIP
        >>> batch = collator([make_group("", ["a river.", "a forest."], "river.png")])  # doctest: +SKIP
        >>> model(**batch).scores  # doctest: +SKIP
        tensor([[0.9, 0.2]])
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        image_options: ImageOptions | None = None,
        *,
        prompt_form: str = "question-answer",
        augment: bool = False,
        seed: int = 0,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
    ) -> None:
        if prompt_form not in PROMPT_FORMS:
            choices = ", ".join(PROMPT_FORMS)
            raise OptionError(f"Unknown prompt form {prompt_form!r}; choose one of {choices}.", "prompt_form")
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.image_options = image_options or ImageOptions()
        self.prompt_form = prompt_form
        self.augment, self.seed, self.epoch = augment, seed, 0
        self.max_length, self.multiple = max_length, pad_to_multiple_of or 1
        self.image_token_id = self.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        if self.tokenizer.pad_token_id is None:
            raise ModelError("The processor's tokenizer has no pad token; set `processor.tokenizer.pad_token`.")

    def __call__(self, groups: Sequence[Group]) -> dict[str, torch.Tensor]:
        """Lays out the groups.

        Args:
            groups (sequence of [`Group`]): At least one; sizes may differ.

        Returns:
            `dict`: `input_ids`, `segment_ids` (B, L); where there are images `pixel_values` (P, patch size),
            `image_grid_thw` (I, 3) in patches, `image_index` (M,) from placement to distinct image.

        Raises:
            ImageError: An image cannot be read; names its file and row.
            DataError: A text holds a literal image token, or a row is longer than `max_length`.
        """
        pixels, index, lengths = self._pixels(groups)
        rows, segments = [], []
        for group in groups:
            prefix, completions = self.tokens(group, [next(lengths) for _ in group.images])
            rows.append(prefix + [token for completion in completions for token in completion])
            segments.append([0] * len(prefix))
            for k, completion in enumerate(completions, 1):
                segments[-1].extend([k] * len(completion))
        ids = _pad(rows, self.tokenizer.pad_token_id, self.multiple)
        batch = {"input_ids": ids, "segment_ids": _pad(segments, -1, self.multiple)}
        return batch | pixels | {"image_index": torch.tensor(index)} if index else batch

    def prompts(self, groups: Sequence[Group]) -> dict[str, torch.Tensor]:
        """Lays out the prompts alone for generation, padded on the left.

        Returns:
            `dict`: `input_ids`, `attention_mask`, `mm_token_type_ids` (B, L); where there are images `pixel_values`
            and `image_grid_thw` in placement order.
        """
        pixels, index, lengths = self._pixels(groups)
        inputs = in_placement_order(pixels, index) if index else {}
        rows = []
        for group in groups:
            ids = self.tokenizer(self._template(group.prompt, True), add_special_tokens=False)["input_ids"]
            rows.append(self._expand(ids, [next(lengths) for _ in group.images], group)[::-1])
        ids = _pad(rows, self.tokenizer.pad_token_id).flip(1)
        mask = _pad([[1] * len(row) for row in rows], 0).flip(1)
        types = (ids == self.image_token_id).int()
        return inputs | {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": types}

    def tokens(self, group: Group, image_lengths: Sequence[int]) -> tuple[list[int], list[list[int]]]:
        """Tokenizes one group.

        The split is the longest token prefix common to the prompt and all rows, so prefix + rest is token for token
        what a plain row is, whatever the tokenizer merges across the end of the prompt.

        Args:
            group ([`Group`]): The group.
            image_lengths (sequence of `int`): Tokens of each of its images.

        Returns:
            `tuple`: ids of the shared prefix, and for each completion the ids that follow it (never empty).
        """
        # The ScoreRS README scores a caption in the user turn with the generation prompt after it.
        texts = [self._template(group.prompt, True)]
        texts += [self._template(row, self.prompt_form == "user-turn") for row in self._conversations(group)]
        encoded = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        prompt_ids, *rows = [self._expand(ids, image_lengths, group) for ids in encoded]
        limit = min(len(prompt_ids), *(len(row) - 1 for row in rows))
        prefix = next((i for i in range(limit) if any(row[i] != prompt_ids[i] for row in rows)), limit)
        if self.max_length is not None and max(map(len, rows)) > self.max_length:
            raise DataError(
                f"{max(map(len, rows))} tokens (image tokens included) but max_length is {self.max_length}; raise "
                "max_length, lower max_pixels, or drop the row.",
                where=row_name(group),
            )
        return rows[0][:prefix], [row[prefix:] for row in rows]

    def _conversations(self, group: Group) -> list[list[dict]]:
        if self.prompt_form == "empty-question" and completion_text(group.prompt).strip():
            raise DataError(
                "the prompt form is empty-question (captions only), but the row has a prompt; leave the prompt empty, "
                "or use prompt_form question-answer.",
                where=row_name(group),
            )
        if self.prompt_form != "user-turn":
            return [group.prompt + completion for completion in group.completions]
        *before, user = group.prompt or [{"role": "user", "content": []}]
        rows = []
        for completion in group.completions:
            text = {"type": "text", "text": completion_text(completion)}
            rows.append([*before, {"role": "user", "content": [*user["content"], text]}])
        return rows

    def _template(self, messages: list[dict], generation_prompt: bool) -> str:
        return self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)

    def _expand(self, ids: list[int], image_lengths: Sequence[int], group: Group) -> list[int]:
        if ids.count(self.image_token_id) != len(image_lengths):
            raise DataError(
                f"{ids.count(self.image_token_id)} image tokens in the text but {len(image_lengths)} images; remove "
                "the literal <|image_pad|> from the text or add the image.",
                where=row_name(group),
            )
        lengths = iter(image_lengths)
        out: list[int] = []
        for token in ids:
            out.extend([token] * next(lengths) if token == self.image_token_id else [token])
        return out

    def _pixels(self, groups: Sequence[Group]) -> tuple[dict[str, torch.Tensor], list[int], Iterator[int]]:
        """Reads each distinct image once; returns patches and grids, and per placement its index and its tokens."""
        known: dict[Hashable, int] = {}
        images: list[Image.Image] = []
        index: list[int] = []
        low, high = pixel_budget(self.processor)
        factor = resize_factor(self.processor)
        for group in groups:
            for source in group.images:
                # An augmented image belongs to its row and texts: two rows may turn the same picture differently.
                draw = f"{self.seed} {self.epoch} {group.row} {_texts(group)}" if self.augment else ""
                key = (source_key(source), draw)
                if key not in known:
                    image = read_image(source, self.image_options, row_name(group))
                    if self.augment:
                        image = rotate_flip(image, _texts(group), random.Random(draw))
                    known[key] = len(images)
                    named = {"name": image_name(source), "where": row_name(group)}
                    images.append(fit_pixel_budget(image, min_pixels=low, max_pixels=high, factor=factor, **named))
                index.append(known[key])
        if not images:
            return {}, [], iter(())
        features = self.processor.image_processor(images=images, do_resize=False, return_tensors="pt")
        pixels = {name: features[name] for name in ("pixel_values", "image_grid_thw")}
        lengths = pixels["image_grid_thw"].prod(1) // self.processor.image_processor.merge_size**2
        return pixels, index, iter(lengths[index].tolist())


def in_placement_order(pixels: dict[str, torch.Tensor], index: Sequence[int]) -> dict[str, torch.Tensor]:
    """Repeats the patches of distinct images, so that there is one image per placement, as plain models take them."""
    grids = pixels["image_grid_thw"]
    patches = torch.split(pixels["pixel_values"], grids.prod(1).tolist())
    return {"pixel_values": torch.cat([patches[i] for i in index]), "image_grid_thw": grids[list(index)]}


def without_images(group: Group) -> Group:
    """Returns the group without its images and their placeholders, as an image-blind model sees it."""
    prompt = [{**m, "content": [part for part in m["content"] if part["type"] != "image"]} for m in group.prompt]
    return replace(group, prompt=prompt, images=[])


def _texts(group: Group) -> list[str]:
    messages = [*group.prompt, *(message for completion in group.completions for message in completion)]
    return [part["text"] for message in messages for part in message["content"] if part["type"] == "text"]


def _pad(rows: Sequence[Sequence[int]], value: int, multiple: int = 1) -> torch.Tensor:
    width = -(-max(len(row) for row in rows) // multiple) * multiple
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])
