"""Log-probabilities of GRPO's completions from one row per prompt, in the layout that score models use (`layout`).

TRL computes them from a row for each completion: a prompt, most of it image tokens, runs once per completion. Here it
runs once. The first token of a completion is predicted at the last token of the prompt, so that token belongs to the
completions: the shared part is the prompt without it, and a completion's segment is that token and the completion
without its own last token. As many positions predict as a completion has tokens, and TRL's LM head scores them.

Rows of the same prompt are found by their values. The first batch is also computed from plain rows: if they differ, as
under an attention that passes over the mask, the run goes on with plain rows and warns once.

Left out: models whose positions or attention are not known here (`applies`), and a KV cache of the prompt (gradient
checkpointing drops it).

Notation: R rows of P + C tokens, as TRL pads them (prompts on the left, completions on the right); B groups of L
tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, compress
from typing import Any

import torch
from accelerate import Accelerator
from torch.nn.functional import pad
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

from ...models.families import QWEN_VL, takes_tree
from ...models.layout import TokenGroup, continue_positions, lay_out, tree_is_cheaper, tree_mask
from ...models.vision_sharing import distinct_images, unseen_image

INPUTS = {"pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids"}
# The mean difference of log-probabilities at which the two forms are not the same; a wrong mask is off by 0.3 or more.
EXACT, ROUNDED = 1e-4, 0.05

Output = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]  # log-probabilities, entropies (R, C), aux loss


@dataclass
class Rows:
    """Prompts with their completions as TRL pads them.

    Args:
        ids, mask (`torch.Tensor` of shape (R, P + C)): Token ids, and 1 on tokens.
        width (`int`): C.
        inputs (`dict`): TRL's further inputs, `None` if there are none: those of [`INPUTS`] for the known families.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    width: int
    inputs: dict[str, Any]

    def part(self, start: int, stop: int) -> Rows:
        """Returns some of the rows with their images."""
        inputs = dict(self.inputs)
        if (counts := inputs.get("num_images")) is not None:
            inputs["num_images"] = counts[start:stop]
            if (grids := inputs.get("image_grid_thw")) is not None:
                images = slice(sum(counts[:start]), sum(counts[:stop]))
                patches = [0, *accumulate(grids.prod(1).tolist())]
                inputs["image_grid_thw"] = grids[images]
                inputs["pixel_values"] = inputs["pixel_values"][patches[images.start] : patches[images.stop]]
        if inputs.get("mm_token_type_ids") is not None:
            inputs["mm_token_type_ids"] = inputs["mm_token_type_ids"][start:stop]
        return Rows(self.ids[start:stop], self.mask[start:stop], self.width, inputs)

    def tokens(self) -> list[tuple[list[int], list[int]]]:
        """Returns the prompt's and the completion's token ids of each row."""
        prompt, found = self.ids.shape[1] - self.width, []
        for ids, mask in zip(self.ids.tolist(), self.mask.tolist(), strict=True):
            found.append((list(compress(ids[:prompt], mask)), list(compress(ids[prompt:], mask[prompt:]))))
        return found

    def image_places(self) -> list[range]:
        """Returns the places of each row's images among the images of all rows."""
        if self.inputs.get("image_grid_thw") is None:
            return [range(0)] * len(self.ids)
        ends = list(accumulate(self.inputs["num_images"]))
        return [range(end - count, end) for end, count in zip(ends, self.inputs["num_images"], strict=True)]

    def groups(self) -> list[list[int]]:
        """Returns the rows of each prompt, those with equal tokens and equal images, in the order of their first."""
        places, index = self.image_places(), []
        if any(places):
            index = distinct_images(self.inputs["pixel_values"], self.inputs["image_grid_thw"])[1]
        found: dict[Any, list[int]] = {}
        for row, ((prompt, _), images) in enumerate(zip(self.tokens(), places, strict=True)):
            found.setdefault((tuple(prompt), tuple(index[i] for i in images)), []).append(row)
        return list(found.values())


def rows_by_prompt(batch: Mapping[str, Any]) -> list[int]:
    """Returns the rows of a batch of TRL's, those of a prompt behind one another."""
    images = {name: batch.get(name) for name in INPUTS}
    return [row for group in Rows(batch["prompt_ids"], batch["prompt_mask"], 0, images).groups() for row in group]


@dataclass
class Layout:
    """Groups of rows laid out, and the way back to rows.

    Args:
        ids, segments (`torch.Tensor` of shape (B, L)): See `models.layout`.
        labels (`torch.Tensor` of shape (B, L)): What each position predicts, -100 for nothing.
        order (`torch.Tensor`): The rows in the order of the layout.
        shared (`list[int]`): Rows behind another completion of their prompt, which a wrong mask would change.
        images (`dict`): `pixel_values` and `image_grid_thw` of the prompts, empty without images.
    """

    ids: torch.Tensor
    segments: torch.Tensor
    labels: torch.Tensor
    order: torch.Tensor
    shared: list[int]
    images: dict[str, torch.Tensor]

    def to_rows(self, values: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Returns values (B, L) of the layout's positions at their completions' tokens (R, C), and 0 elsewhere."""
        mask = rows.mask[self.order, -rows.width :].bool()
        placed = values.new_zeros(mask.shape).masked_scatter(mask, values[self.segments > 0])
        return values.new_zeros(len(rows.ids), rows.width).index_copy(0, self.order, placed)


def group_layout(rows: Rows, config: PreTrainedConfig) -> Layout | None:
    """Lays rows out by their prompts, `None` if there is nothing to share, it is not known how, or it costs more."""
    if {name for name, value in rows.inputs.items() if value is not None} - INPUTS:
        return None
    tokens, places = rows.tokens(), rows.image_places()
    groups = [group for group in rows.groups() if any(tokens[row][1] for row in group)]
    shared = [row for group in groups for row in [r for r in group if tokens[r][1]][1:]]
    if not shared or not all(_splits(tokens, group, config) for group in groups):
        return None
    laid: list[TokenGroup] = []
    for group in groups:
        prompt = tokens[group[0]][0]
        laid.append((prompt[:-1], [[prompt[-1], *tokens[row][1]][:-1] if tokens[row][1] else [] for row in group]))
    ids, segments = (tensor.to(rows.ids.device) for tensor in lay_out(laid, 0))
    images = _images(rows, [i for group in groups for i in places[group[0]]])
    grids = images.get("image_grid_thw", torch.zeros(0, 3, dtype=torch.long, device=ids.device))
    expected = int(grids.prod(1).sum()) // config.vision_config.spatial_merge_size**2
    fits = takes_tree(config, ids.shape[1]) and int((ids == config.image_token_id).sum()) == expected
    if not fits or not tree_is_cheaper(segments, config.get_text_config().hidden_size):
        return None
    order = torch.tensor([row for group in groups for row in group], device=ids.device)
    targets = [token for group in groups for row in group for token in tokens[row][1]]
    labels = torch.full_like(ids, -100).masked_scatter(segments > 0, torch.tensor(targets, device=ids.device))
    return Layout(ids, segments, labels, order, shared, images)


def _splits(tokens: Sequence[tuple[list[int], list[int]]], group: Sequence[int], config: PreTrainedConfig) -> bool:
    """Whether the prompt's last token is text behind others, and no completion holds images, as those of tools do."""
    special = {config.image_token_id, getattr(config, "video_token_id", None)}
    prompt = tokens[group[0]][0]
    return len(prompt) > 1 and not special & {prompt[-1], *(token for row in group for token in tokens[row][1])}


def _images(rows: Rows, places: Sequence[int]) -> dict[str, torch.Tensor]:
    if not places:
        return {}
    grids = rows.inputs["image_grid_thw"]
    patches = torch.split(rows.inputs["pixel_values"], grids.prod(1).tolist())
    return {"pixel_values": torch.cat([patches[i] for i in places]), "image_grid_thw": grids[list(places)]}


class GroupLoss:
    """Computes per-token log-probabilities and entropies in the group form, or calls for plain rows.

    Args:
        accelerator (`Accelerator`): The trainer's.
        processor (`ProcessorMixin`, *optional*): The policy's; none with a tokenizer alone.
    """

    def __init__(self, accelerator: Accelerator, processor: ProcessorMixin | None) -> None:
        self.accelerator, self.processor = accelerator, processor
        self.same = True  # until a check says otherwise
        self.count = 0  # of the rows that were computed in the group form
        self.checked: set[tuple[int, int]] = set()

    def applies(self, model: PreTrainedModel) -> bool:
        """Whether a model is of a known family and attention; every process says the same."""
        bare: Any = self.accelerator.unwrap_model(model)
        config = bare.config
        known = config.model_type in QWEN_VL and takes_tree(config, 0)
        routed = getattr(config.get_text_config(), "output_router_logits", False)  # TRL reads its mask
        virtual = getattr(getattr(bare, "active_peft_config", None), "is_prompt_learning", False)  # tokens of its own
        return self.same and known and not routed and not virtual

    def __call__(self, model: PreTrainedModel, rows: Rows, entropy: bool, plain: Callable[[Rows], Output]) -> Output:
        """Computes the output of some rows; with ZeRO-3 every process must ask for as many parts.

        Args:
            model (`PreTrainedModel`): Policy or reference, wrapped or not, with TRL's fused LM head.
            rows ([`Rows`]): The rows.
            entropy (`bool`): Whether entropies are needed too.
            plain (callable): Computes rows as TRL does.
        """
        bare: Any = self.accelerator.unwrap_model(model)
        bare = bare.get_base_model() if hasattr(bare, "get_base_model") else bare
        layout = group_layout(rows, bare.config)
        self._check(model, bare, rows, layout, plain)
        if layout is None or not self.same:
            return plain(rows)
        self.count += len(rows.ids)
        return self._grouped(model, bare, rows, layout, entropy)

    def _grouped(self, model: Any, bare: Any, rows: Rows, layout: Layout, entropy: bool) -> Output:
        ids, segments, labels, images = layout.ids, layout.segments, layout.labels, layout.images
        types = (ids == bare.config.image_token_id).int()
        given = {"mm_token_type_ids": types, "image_grid_thw": images.get("image_grid_thw")}
        positions = bare.model.get_rope_index(ids, **given, attention_mask=segments == 0)[0]
        if not images and self.processor is not None:
            # Every process must run the vision tower, see `always_see`: on an image that nothing attends to.
            images = {name: tensor.to(ids.device) for name, tensor in unseen_image(self.processor).items()}
            ids, labels = pad(ids, (0, 1)), pad(labels, (0, 1), value=-100)
            segments, positions = pad(segments, (0, 1), value=-1), pad(positions, (0, 1))
            ids[0, -1] = bare.config.image_token_id
        eager = bare.config.get_text_config()._attn_implementation == "eager"
        inputs = {
            "input_ids": ids,
            "attention_mask": tree_mask(segments, bare.dtype, additive=eager),
            "position_ids": continue_positions(positions, segments),
            "shift_labels": labels,
        }
        with self.accelerator.autocast():
            out = model(**inputs, **images, fused_lm_head=True)
        length = layout.ids.shape[1]
        entropies = layout.to_rows(out.entropy[:, :length], rows) if entropy else None
        return layout.to_rows(out.log_probs[:, :length], rows), entropies, None

    def _check(
        self, model: Any, bare: Any, rows: Rows, layout: Layout | None, plain: Callable[[Rows], Output]
    ) -> None:
        """Compares the two forms on the first part with images, and on the first without, of each model.

        All processes compare if one has to, and go on alike: they run the model as often as one another.
        """
        kind = 0 if layout is None else 1 + bool(layout.images)
        kinds = self.accelerator.gather(torch.tensor([kind], device=rows.ids.device)).tolist()
        new = {(id(bare), kind) for kind in kinds if kind} - self.checked
        if not new or not self.same:
            return
        self.checked |= new
        with torch.no_grad(), _evaluating(bare):
            expected = plain(rows)[0].float()
            found = plain(rows) if layout is None else self._grouped(model, bare, rows, layout, False)
        difference = torch.zeros(1, device=rows.ids.device)
        if layout is not None:
            tokens = rows.mask[layout.shared, -rows.width :].bool()
            difference += (found[0].float() - expected)[layout.shared][tokens].abs().mean()
        worst = self.accelerator.gather(difference).max().item()
        allowed = EXACT if self._exact(bare) else ROUNDED
        self.same = worst <= allowed
        if not self.same and self.accelerator.is_main_process:
            warnings.warn(
                f"The log-probabilities of completions that share a row with their prompt differ by {worst:.2g} from "
                f"those of plain rows (up to {allowed:g} is rounding), so this run uses plain rows, as with "
                "shared_prefix false.",
                stacklevel=2,
            )

    def _exact(self, model: PreTrainedModel) -> bool:
        full = model.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
        return full and self.accelerator.mixed_precision == "no"


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Turns dropout off for a while."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
