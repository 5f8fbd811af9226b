"""`VisionSFTTrainer`: supervised fine-tuning of a VLM on image-text data, TRL's SFTTrainer with our image reader.

The from-scratch recipe trains its tiny captioner with it (which is also the later RL policy), the published recipe a
projector and then a LoRA adapter on curated conversations. The loss, the logging and the checkpoints are TRL's; ours
are the late decoding of images, the collator (loss on the assistant's turns alone), and `exact_match`, the share of
evaluation samples whose every answer is what greedy decoding gives.

Left out: reading files (see `data.sft`), packing, and images in the assistant's turns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.data.data_collator import DataCollator
from trl import SFTConfig, SFTTrainer

from ..data.group import Group, make_group
from ..data.image_text import row_weight
from ..errors import DataError, OptionError, RSRLHFError
from ..models.collator import GroupCollator, GroupImages
from ..models.pixel_budget import set_pixel_budget
from ..models.row_limits import RowLimits
from ..models.seen_images import SeenImages
from ..models.vlm import processor_of
from ._compat import add_metric, head_at_labels
from .mixins import SetEpoch, VisionTrainerMixin, own_config
from .options import SFTOptions
from .row_check import Row

# Qwen2-VL and Qwen2.5-VL have one merger, Qwen3-VL others for the features of earlier layers; LLaVA's and Idefics3's
# projectors have other names.
_MERGER = re.compile(r"(^|\.)(merger|deepstack_merger_list\.\d+|multi_modal_projector|connector)\.")


@dataclass
class VisionSFTConfig(SFTOptions, SFTConfig):
    """TRL's `SFTConfig` with image options."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check()
        self.dataset_kwargs = rows_as_they_are(self)


def rows_as_they_are(args: SFTConfig) -> dict[str, Any]:
    """Returns the `dataset_kwargs` with which TRL leaves rows to our collator."""
    given = cast("dict[str, Any]", args.dataset_kwargs or {})  # TRL has parsed a string by now
    return {**given, "skip_prepare_dataset": True}


class SFTCollator:
    """Lays out rows with `prompt`, `completion` and optional `image`/`images` columns for a causal VLM.

    A completion may go on for several turns; of these the assistant's carry loss, each with its `<|im_end|>` and line
    break, and the user's do not. A batch without images gets an unattended one of a single token: under ZeRO-3 and DDP
    every process must run the vision tower, and a batch that trains nothing else would have no gradient.

    Args:
        groups ([`GroupCollator`]): The one layout.
        weight_column (`str`, *optional*): Column of the rows' weights.

    Returns (on call):
        `dict`: `input_ids`, `attention_mask`, `labels` (-100 outside the trained turns) and types of tokens (B, L);
        what the processor makes of the images, such as `pixel_values` and `image_grid_thw`, in placement order; with
        a `weight_column` also `weights` (B).
    """

    def __init__(self, groups: GroupCollator, weight_column: str | None = None) -> None:
        self.groups, self.weight_column = groups, weight_column

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Lays out the rows."""
        samples = [_sample(row) for row in rows]
        batch, images = self.groups.plain([group for group, _ in samples])
        ids = batch["input_ids"]
        batch["labels"] = ids.masked_fill(batch.pop("completion_mask") == 0, -100)
        if (key := self.weight_column) is not None:
            batch["weights"] = torch.tensor([row_weight(row.get(key), key) for row in rows])
        for i, (group, first) in enumerate(samples):
            for start, end in self._earlier_answers(group, first, images[i], ids[i].tolist()):
                batch["labels"][i, start:end] = ids[i, start:end]
        return batch

    def _earlier_answers(
        self, group: Group, first: int, images: GroupImages, ids: Sequence[int]
    ) -> Iterator[tuple[int, int]]:
        """Where the trained turns of the prompt begin and end, in tokens; the completion is the last of them.

        Raises:
            DataError: The chat template writes a turn differently if others follow, so that its place is unknown.
        """
        for i in range(first, len(group.prompt)):
            if group.prompt[i]["role"] != "assistant":
                continue
            count = sum(part["type"] == "image" for message in group.prompt[:i] for part in message["content"])
            turn = replace(
                group, prompt=group.prompt[:i], completions=[[group.prompt[i]]], images=group.images[:count]
            )
            shown = images.first(count) if isinstance(images, SeenImages) else images[:count]
            prefix, (answer,) = self.groups.tokens(turn, shown)
            end = len(prefix) + len(answer)
            if ids[:end] != prefix + answer:
                raise DataError(
                    f"the chat template writes turn {i + 1} differently when turns follow it, so its tokens cannot be "
                    "told; use a template without that, or one question and answer a row",
                    where=group.where,
                )
            yield len(prefix), end


def _sample(row: Mapping[str, Any]) -> tuple[Group, int]:
    """A row as a group whose completion is its last turn, and the place of its first turn that carries loss."""
    prompt, completion = row["prompt"], row["completion"]
    if prompt is None or isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt or ""}]
    turns = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else list(completion)
    messages = [*prompt, *turns]
    place = {"row": row.get("row", -1), "where": row.get("where") or ""}
    group = make_group(messages[:-1], [messages[-1:]], row.get("images") or row.get("image"), **place)
    return group, len(group.prompt) + 1 - len(turns)


def turn_group(row: Row) -> Group:
    """Returns a row of `prompt`, `completion` and images as the group that is laid out."""
    return _sample(row)[0]


class VisionSFTTrainer(VisionTrainerMixin, SFTTrainer):
    """`SFTTrainer` for rows of undecoded images, that also reports `exact_match` at evaluation.

    Args:
        model (`str` or `PreTrainedModel`): A model of the Qwen2-VL families.
        args ([`VisionSFTConfig`] or [`~trl.SFTConfig`], *optional*): The training options; the object given is not
            changed.
        processing_class (`ProcessorMixin` or tokenizer, *optional*): By default loaded from the model's path.
        **kwargs: As in [`~trl.SFTTrainer`].
    """

    method = "SFT"

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: SFTConfig | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset] | None = None,
        processing_class: ProcessorMixin | PreTrainedTokenizerBase | None = None,
        **kwargs: Any,
    ) -> None:
        name = model if isinstance(model, str) else str(model.config._name_or_path)
        args = own_config(args or VisionSFTConfig(f"{name.rstrip('/').split('/')[-1]}-SFT"))
        args.remove_unused_columns, args.dataset_kwargs = False, rows_as_they_are(args)
        options = args if isinstance(args, SFTOptions) else SFTOptions()
        if options.trainable != "all" and kwargs.get("peft_config") is not None:
            raise OptionError("trainable cannot be combined with LoRA; name the merger in lora_modules_to_save.")
        self.weight_column = options.weight_column
        if self.weight_column is not None:
            check_weights(self.weight_column, args, train_dataset, data_collator or kwargs.get("compute_loss_func"))
        loading = {"trust_remote_code": args.trust_remote_code, **cast("dict[str, Any]", args.model_init_kwargs or {})}
        processor = processor_of(processing_class, name, loading)
        set_pixel_budget(processor, options.min_pixels, options.max_pixels)
        made: dict[str, Any] = {"seed": args.seed, "max_length": args.max_length}
        layout = GroupCollator(processor, options.reader_options(), augment=options.augment, **made)
        plain = GroupCollator(processor, options.reader_options(), **made)
        self.eval_collator, self.limits = data_collator or SFTCollator(plain), RowLimits.of(plain)
        kwargs["peft_config"] = deepcopy(kwargs.get("peft_config"))
        sets: dict[str, Any] = {"train_dataset": train_dataset, "eval_dataset": eval_dataset}
        collator = data_collator or SFTCollator(layout, self.weight_column)
        super().__init__(model, args, collator, processing_class=processor, **sets, **kwargs)
        if options.trainable == "merger":
            train_merger(self.model)
        self.add_callback(SetEpoch(layout))

    def row_errors(self, row: Row) -> Iterable[RSRLHFError]:
        """Yields why the collator could not lay out a row."""
        if self.weight_column is not None and self.weight_column in row:
            row_weight(row[self.weight_column], self.weight_column)
        return self.limits.errors(turn_group(row))

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Returns TRL's loss, in which the log-probabilities of a row's tokens are multiplied by the row's weight."""
        weights = inputs.pop("weights", None)
        called: Any = model if weights is None else weighted(model, weights)
        with head_at_labels():
            return super().compute_loss(called, inputs, return_outputs, num_items_in_batch)

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Evaluates one batch; a second forward says whether every completion token is the most likely one.

        Teacher-forced agreement on every token is the same as greedy decoding giving exactly the reference, each
        turn after the reference's own earlier turns.
        """
        result = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        with torch.no_grad(), self.compute_loss_context_manager(), head_at_labels():
            outputs = model(**self._prepare_inputs(inputs), use_cache=False, fused_lm_head=True)
        right = (outputs.is_top1 | ~outputs.label_mask.bool()).all(dim=1).float()
        add_metric(self, "eval", "exact_match", self.accelerator.gather_for_metrics(right).tolist())
        return result


def weighted(model: torch.nn.Module, weights: torch.Tensor) -> Callable[..., Any]:
    """Returns a forward of the model whose `log_probs` (B, L) are multiplied by the rows' weights (B)."""

    def forward(**inputs: Any) -> Any:
        outputs = model(**inputs)
        outputs.log_probs = outputs.log_probs * weights[:, None]
        return outputs

    return forward


def check_weights(column: str, args: SFTConfig, rows: Any, own: object) -> None:
    """Refuses weights that would not be read (`own` is the caller's collator or loss), or that rows do not have."""
    others = {"loss_type": args.loss_type != "nll", "label_smoothing_factor": args.label_smoothing_factor > 0}
    for name, given in others.items():
        if given:
            raise OptionError(f"weight_column cannot be combined with {name}; leave one of them out.", name)
    if own is not None:
        raise OptionError("weight_column is not read by your own collator or loss; leave it out.", "weight_column")
    if rows is not None and column not in (rows.column_names or [column]):
        listed = ", ".join(rows.column_names)
        raise OptionError(f"the training rows have no column {column!r}; they have {listed}.", "weight_column")


def train_merger(model: torch.nn.Module) -> None:
    """Freezes all weights but those of the merger, the projector from the vision tower to the language model; a model
    without one is an [`OptionError`].
    """
    model.requires_grad_(False)
    merger = [weight for name, weight in model.named_parameters() if _MERGER.search(name)]
    if not merger:
        raise OptionError(f"trainable is merger, but {type(model).__name__} has none; train a Qwen2-VL, or all of it.")
    for weight in merger:
        weight.requires_grad_(True)
