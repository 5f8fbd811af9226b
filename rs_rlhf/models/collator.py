"""`GroupCollator`: groups in, token ids, segment ids and pixels of one batch out (see `layout`).

It runs in data-loader workers: it reads the images (late), fits them to the pixel budget, tokenizes, and lists each
distinct image once. Of a family without a pixel budget the processor does what is to be done with images, and each
distinct list of images of a row is listed once.

Left out: video.

Notation: B groups, L tokens of the longest row, N completions of the largest group, M placements of images (or lists)
in row order, I distinct ones, P patches of all distinct images.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

import torch
from PIL import Image
from transformers import ProcessorMixin

from ..data.group import Group, ImageSource, completion_text
from ..errors import DataError, ModelError, OptionError
from ..imagery.augment import rotate_flip
from ..imagery.identity import source_key
from ..imagery.raster import ImageOptions, read_image
from .layout import lay_out, pad_rows
from .pixel_budget import (
    fit_pixel_budget,
    has_budget,
    image_name,
    pixel_budget,
    refusing_images,
    resize_factor,
    row_name,
)
from .seen_images import SeenImages, chat_text, merge, place, refuse_marks, token_types
from .vision_sharing import unseen_image, unseen_tokens
from .vlm import placeholder_tokens

PROMPT_FORMS = ("question-answer", "empty-question", "user-turn")


GroupImages = Sequence[int] | SeenImages
"""The images of a group: tokens of each, or the images themselves for a processor that makes their tokens."""


@dataclass
class _Images:
    """The images of a batch: model inputs of the distinct ones, which of these stand at each place, each group's."""

    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    index: list[int] = field(default_factory=list)
    of_group: list[GroupImages] = field(default_factory=list)


class GroupCollator:
    """Lays a list of groups out as one batch.

    Args:
        processor (`transformers.ProcessorMixin`): The model's processor, with a chat template; the pixel budget of one
            of the Qwen2-VL families is used.
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
        self._unseen: dict[str, torch.Tensor] | None = None
        self.fits = has_budget(processor)
        marks = placeholder_tokens(None, processor)
        self.marks = dict(zip(marks, self.tokenizer.convert_ids_to_tokens(marks), strict=True))
        self.image_token_id = processor.image_token_id  # type: ignore[attr-defined]  # of each family's class
        if self.tokenizer.pad_token_id is None:
            raise ModelError("The processor's tokenizer has no pad token; set `processor.tokenizer.pad_token`.")
        if not getattr(processor, "chat_template", None):
            raise ModelError(
                "The processor has no chat template; put the template of its authors into the model's folder as "
                "chat_template.jinja."
            )

    def __call__(self, groups: Sequence[Group]) -> dict[str, torch.Tensor]:
        """Lays out the groups.

        Args:
            groups (sequence of [`Group`]): At least one; sizes may differ.

        Returns:
            `dict`: `input_ids`, `segment_ids` (B, L); what the processor makes of the distinct images, such as
            `pixel_values` (P, patch size) and `image_grid_thw` (I, 3) in patches; `image_index` (M,) from placement to
            distinct image. Without images `unseen_pixel_values` and so on, of an image that stands nowhere. Of a
            family without a pixel budget lists of images take the place of images, and `image_lengths` (I, inputs)
            says how many of each input, by name, are a list's.

        Raises:
            ImageError: An image cannot be read; names its file and row.
            DataError: A text holds a literal image token, or a row is longer than `max_length`.
        """
        return self.layout(groups)[0]

    def layout(self, groups: Sequence[Group]) -> tuple[dict[str, torch.Tensor], list[GroupImages]]:
        """Lays out groups as a call does; also returns their images, for [`tokens`]."""
        images = self._read(groups)
        tokens = [self.tokens(group, seen) for group, seen in zip(groups, images.of_group, strict=True)]
        ids, segments = lay_out(tokens, self.tokenizer.pad_token_id, self.multiple)
        batch = {"input_ids": ids, "segment_ids": segments}
        if not images.index:
            return batch | {f"unseen_{name}": x for name, x in self._unseen_inputs().items()}, images.of_group
        return batch | images.inputs | {"image_index": torch.tensor(images.index)}, images.of_group

    def plain(self, groups: Sequence[Group]) -> tuple[dict[str, torch.Tensor], list[GroupImages]]:
        """Lays groups of one size out as rows of a plain causal model, one for each completion.

        Returns:
            `tuple`: `input_ids`, `attention_mask`, `completion_mask` and types of tokens (N x B, L), the first
            completions of all groups before the second ones; what the processor makes of the images, such as
            `pixel_values` and `image_grid_thw`, in placement order. Beside it the images of each group, for
            [`plain_rows`].

        Raises as a call does.
        """
        images = self._read(groups)
        batch = self.plain_rows(groups, images.of_group)
        if not images.index:
            return batch | self._unseen_inputs(), images.of_group
        index = images.index * len(groups[0].completions)
        return batch | in_placement_order(images.inputs, index), images.of_group

    def plain_rows(self, groups: Sequence[Group], images: Sequence[GroupImages]) -> dict[str, torch.Tensor]:
        """Returns the tokens of [`plain`] for groups whose images have been read.

        Without images the first row ends with the tokens of an unseen image, which nothing attends to: under ZeRO-3
        and DDP every process must run the vision tower, and a batch that trains nothing else would have no gradient.
        """
        tokens = [self.tokens(group, seen) for group, seen in zip(groups, images, strict=True)]
        pairs = [(prefix, completions[k]) for k in range(len(groups[0].completions)) for prefix, completions in tokens]
        ids = pad_rows(
            [prefix + completion for prefix, completion in pairs], self.tokenizer.pad_token_id, self.multiple
        )
        marks = pad_rows([[0] * len(one) + [1] * len(other) for one, other in pairs], -1, self.multiple)
        if not any(group.images for group in groups):
            unseen = torch.tensor(unseen_tokens(self.processor))
            ids = torch.nn.functional.pad(ids, (0, len(unseen)), value=self.tokenizer.pad_token_id)
            marks = torch.nn.functional.pad(marks, (0, len(unseen)), value=-1)
            ids[0, -len(unseen) :] = unseen
        batch = {"input_ids": ids, "attention_mask": (marks >= 0).long(), "completion_mask": (marks > 0).long()}
        return batch | token_types(self.processor, ids)

    def prompts(self, groups: Sequence[Group]) -> dict[str, torch.Tensor]:
        """Lays out the prompts alone for generation, padded on the left.

        Returns:
            `dict`: `input_ids`, `attention_mask`, `mm_token_type_ids` (B, L); where there are images `pixel_values`
            and `image_grid_thw` in placement order.
        """
        images = self._read(groups)
        inputs = in_placement_order(images.inputs, images.index) if images.index else {}
        rows = []
        for group, seen in zip(groups, images.of_group, strict=True):
            rows.append(self._ids([self._template(group.prompt, True, group)], group, seen)[0][::-1])
        ids = pad_rows(rows, self.tokenizer.pad_token_id).flip(1)
        mask = pad_rows([[1] * len(row) for row in rows], 0).flip(1)
        types = (ids == self.image_token_id).int()
        return inputs | {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": types}

    def images_of(self, sizes: Sequence[tuple[int, int]]) -> GroupImages:
        """Returns images of some sizes `(width, height)`, after the resize to the pixel budget, for [`tokens`]."""
        if self.fits:
            return [width * height // resize_factor(self.processor) ** 2 for width, height in sizes]
        return SeenImages(self.processor, [Image.new("RGB", size) for size in sizes])

    def tokens(self, group: Group, images: GroupImages) -> tuple[list[int], list[list[int]]]:
        """Tokenizes one group.

        The split is the longest token prefix common to the prompt and all rows, so prefix + rest is token for token
        what a plain row is, whatever the tokenizer merges across the end of the prompt.

        Args:
            group ([`Group`]): The group.
            images (sequence of `int` or [`SeenImages`]): Tokens of each of its images, or the images themselves.

        Returns:
            `tuple`: ids of the shared prefix, and for each completion the ids that follow it (never empty).
        """
        # The ScoreRS README scores a caption in the user turn with the generation prompt after it.
        texts = [self._template(group.prompt, True, group)]
        texts += [self._template(row, self.prompt_form == "user-turn", group) for row in self._conversations(group)]
        prompt_ids, *rows = self._ids(texts, group, images)
        limit = min(len(prompt_ids), *(len(row) - 1 for row in rows))
        prefix = next((i for i in range(limit) if any(row[i] != prompt_ids[i] for row in rows)), limit)
        if not self.fits and group.images and self.marks.keys() & {token for row in rows for token in row[prefix:]}:
            raise DataError(
                "the chat template writes the prompt differently when a completion follows, so that its images are "
                "not the completions' own; use a template without that.",
                where=row_name(group),
            )
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

    def _template(self, messages: list[dict], generation_prompt: bool, group: Group) -> str:
        return chat_text(self.processor, messages, generation_prompt, row_name(group))

    def _ids(self, texts: list[str], group: Group, images: GroupImages) -> list[list[int]]:
        """Tokenizes texts in which all the group's images stand."""
        if not isinstance(images, SeenImages):
            encoded = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
            return [self._expand(ids, images, group) for ids in encoded]
        refuse_marks(_texts(group), self.marks.values(), row_name(group))
        try:
            return images.rows(texts)
        except (ValueError, IndexError) as error:
            reason = str(error).strip().splitlines()[0]
            raise DataError(f"the model's processor refuses the row: {reason}", where=row_name(group)) from error

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

    def _read(self, groups: Sequence[Group]) -> _Images:
        """Reads each distinct image once, and lists each distinct image, or list of images, once."""
        known: dict[Hashable, Image.Image] = {}
        keys = [[self._image(source, group, known) for source in group.images] for group in groups]
        if self.fits:
            return self._patches(keys, known)
        lists: dict[tuple[Hashable, ...], SeenImages] = {}
        images = _Images()
        parts = []
        for group, of_group in zip(groups, map(tuple, keys), strict=True):
            if of_group not in lists:
                lists[of_group] = SeenImages(self.processor, [known[key] for key in of_group])
                if of_group:
                    with refusing_images(row_name(group)):
                        parts.append(lists[of_group].inputs())
            images.of_group.append(lists[of_group])
        places = {key: i for i, key in enumerate(key for key in lists if key)}
        images.index = [places[key] for key in map(tuple, keys) if key]
        if parts:
            images.inputs, lengths = merge(parts)
            images.inputs["image_lengths"] = lengths
        return images

    def _image(self, source: ImageSource, group: Group, known: dict[Hashable, Image.Image]) -> Hashable:
        """Reads an image unless it is known, and returns its key."""
        # An augmented image belongs to its row and texts: two rows may turn the same picture differently.
        draw = f"{self.seed} {self.epoch} {group.row} {_texts(group)}" if self.augment else ""
        key = (source_key(source), draw)
        if key not in known:
            where = row_name(group)
            image = read_image(source, self.image_options, where)
            if self.augment:
                image = rotate_flip(image, _texts(group), random.Random(draw))
            if self.fits:
                low, high = pixel_budget(self.processor)
                limits = {"min_pixels": low, "max_pixels": high, "factor": resize_factor(self.processor)}
                image = fit_pixel_budget(image, **limits, name=image_name(source), where=where)
            known[key] = image
        return key

    def _patches(self, keys: Sequence[Sequence[Hashable]], known: dict[Hashable, Image.Image]) -> _Images:
        """Patches and grids of the distinct images of a Qwen2-VL family, and each group's tokens per image."""
        if not known:
            return _Images(of_group=[[] for _ in keys])
        features = self.processor.image_processor(images=list(known.values()), do_resize=False, return_tensors="pt")
        inputs = {name: features[name] for name in ("pixel_values", "image_grid_thw")}
        lengths = (inputs["image_grid_thw"].prod(1) // self.processor.image_processor.merge_size**2).tolist()
        places = {key: i for i, key in enumerate(known)}
        index = [places[key] for of_group in keys for key in of_group]
        return _Images(inputs, index, [[lengths[places[key]] for key in of_group] for of_group in keys])

    def _unseen_inputs(self) -> dict[str, torch.Tensor]:
        if self._unseen is None:
            self._unseen = unseen_image(self.processor)
        return self._unseen


def in_placement_order(images: dict[str, torch.Tensor], index: Sequence[int]) -> dict[str, torch.Tensor]:
    """Returns inputs of distinct images with one image per placement, as plain models take them."""
    images = dict(images)
    lengths = images.pop("image_lengths", None)
    if lengths is None:
        patches = images["image_grid_thw"].prod(1)
        lengths = torch.stack([torch.ones_like(patches), patches], dim=1)
    return place(images, lengths, index)


def without_images(group: Group) -> Group:
    """Returns the group without its images and their placeholders, as an image-blind model sees it."""
    prompt = [{**m, "content": [part for part in m["content"] if part["type"] != "image"]} for m in group.prompt]
    return replace(group, prompt=prompt, images=[])


def _texts(group: Group) -> list[str]:
    messages = [*group.prompt, *(message for completion in group.completions for message in completion)]
    return [part["text"] for message in messages for part in message["content"] if part["type"] == "text"]
