"""`VisionDPOTrainer` and `VisionKTOTrainer`: TRL's DPO and KTO trainers with our image reader.

Both train a policy on texts that a score model (or a person) has judged, without sampling: `rs-rlhf data dpo` writes
such rows. The losses, the logging and the checkpoints are TRL's; ours are the late decoding of images, the collators,
one pass of the vision tower for each distinct image of a batch, and resuming.

Left out: reading files (see `preferences.reader`), reference log-probabilities computed beforehand, a reference that
follows the policy in a run that is resumed (checkpoints do not hold it), and rows cut to a length.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.data.data_collator import DataCollator
from transformers.trainer_utils import TrainOutput
from trl import DPOConfig, KTOConfig

from ..data.group import Group
from ..errors import DataError, OptionError, RSRLHFError, loading
from ..models.collator import GroupCollator
from ..models.pixel_budget import set_pixel_budget
from ..models.row_limits import RowLimits
from ..models.vision_sharing import share_vision
from ..models.vlm import processor_of
from ..runs.checkpoints import resume_value
from ._compat import DPOHooks, KTOHooks, refusals
from .data.reward import row_group
from .mixins import SetEpoch, VisionTrainerMixin, own_config
from .options import PreferenceTuningOptions
from .row_check import Row, row_place, undecoded

Rows = Sequence[Mapping[str, Any]]


@dataclass
class VisionDPOConfig(PreferenceTuningOptions, DPOConfig):
    """TRL's `DPOConfig` with image options."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check()


@dataclass
class VisionKTOConfig(PreferenceTuningOptions, KTOConfig):
    """TRL's `KTOConfig` with image options."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check()


class PairCollator:
    """Lays out rows with `prompt`, `chosen`, `rejected` and optional images for `trl.DPOTrainer`.

    Args:
        groups ([`GroupCollator`]): The one layout.

    Returns (on call):
        `dict`: `input_ids`, `attention_mask`, `completion_mask` and types of tokens (2B, L), chosen rows before
        rejected ones; what the processor makes of the images, in placement order.
    """

    def __init__(self, groups: GroupCollator) -> None:
        self.groups = groups

    @staticmethod
    def group(row: Row) -> Group:
        """Returns a row as the group that is laid out; one with several rejected texts is a [`DataError`]."""
        group = row_group(row)
        if len(group.completions) > 2:
            raise DataError(
                f"`rejected` holds {len(group.completions) - 1} texts, and DPO takes one; load_preferences with form "
                "'pairs' makes a row for each",
                "rejected",
                row_place(row),
            )
        return group

    def __call__(self, rows: Rows) -> dict[str, torch.Tensor]:
        """Lays out the rows."""
        return self.groups.plain([self.group(row) for row in rows])[0]


class LabelledCollator:
    """Lays out rows with `prompt`, `completion`, `label` and optional images for `trl.KTOTrainer`.

    The estimate of the KL divergence needs answers to other prompts: each row is also laid out with the answer of the
    row before it, as TRL does. These rows may be longer than `max_length`.

    Args:
        groups ([`GroupCollator`]): The one layout.

    Returns (on call):
        `dict`: `label` (B,); `input_ids`, `attention_mask`, `completion_mask` and types of tokens (B, L); the same of
        the rows with other answers, with `KL_` before their names; what the processor makes of the images, in
        placement order.
    """

    def __init__(self, groups: GroupCollator) -> None:
        self.groups = groups
        self._unlimited = copy.copy(groups)
        self._unlimited.max_length = None

    @staticmethod
    def group(row: Row) -> Group:
        """Returns a row as the group that is laid out."""
        if not isinstance(row.get("label"), bool):
            detail = f"`label` is {row.get('label')!r:.60}, expected true or false"
            raise DataError(detail, "label", row_place(row))
        return row_group(row, labelled=True)

    def __call__(self, rows: Rows) -> dict[str, torch.Tensor]:
        """Lays out the rows."""
        groups = [self.group(row) for row in rows]
        batch, images = self.groups.plain(groups)
        before = [groups[-1], *groups[:-1]]
        pairs = [replace(one, completions=two.completions) for one, two in zip(groups, before, strict=True)]
        others = {f"KL_{name}": tokens for name, tokens in self._unlimited.plain_rows(pairs, images).items()}
        return batch | others | {"label": torch.tensor([row["label"] for row in rows])}


class PreferenceTuningMixin(VisionTrainerMixin):
    """What the trainers of DPO and KTO share."""

    method: ClassVar[str]
    config_class: ClassVar[type[Any]]
    collator_class: ClassVar[type[PairCollator | LabelledCollator]]
    args: Any
    ref_model: Any

    def __init__(
        self,
        model: str | PreTrainedModel,
        ref_model: PreTrainedModel | None = None,
        args: Any = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | Mapping[str, Dataset | IterableDataset] | None = None,
        processing_class: ProcessorMixin | PreTrainedTokenizerBase | None = None,
        **kwargs: Any,
    ) -> None:
        name = model if isinstance(model, str) else str(model.config._name_or_path)
        args = own_config(args or self.config_class(f"{name.rstrip('/').split('/')[-1]}-{self.method}"))
        args.remove_unused_columns = False
        if args.precompute_ref_log_probs:
            detail = "precompute_ref_log_probs is not supported; leave it out."
            raise OptionError(detail, "precompute_ref_log_probs")
        options = args if isinstance(args, PreferenceTuningOptions) else PreferenceTuningOptions()
        init = cast("dict[str, Any]", args.model_init_kwargs or {})
        processor = processor_of(processing_class, name, {"trust_remote_code": args.trust_remote_code, **init})
        set_pixel_budget(processor, options.min_pixels, options.max_pixels)
        made: dict[str, Any] = {"seed": args.seed, "max_length": args.max_length}
        made |= {"pad_to_multiple_of": args.pad_to_multiple_of}
        layout = GroupCollator(processor, options.reader_options(), augment=options.augment, **made)
        plain = GroupCollator(processor, options.reader_options(), **made)
        self.eval_collator, self.limits = data_collator or self.collator_class(plain), RowLimits.of(plain)
        if isinstance(model, str):
            args.model_init_kwargs = {"use_safetensors": True, **init}
        kwargs["peft_config"] = copy.deepcopy(kwargs.get("peft_config"))
        with loading(name, (OSError, ImportError), "model_name_or_path"), refusals(args):
            super().__init__(  # type: ignore[call-arg]  # of TRL's trainer
                model=model,  # type: ignore[arg-type]
                ref_model=ref_model,
                args=args,
                data_collator=data_collator or self.collator_class(layout),
                train_dataset=undecoded(train_dataset),
                eval_dataset=_undecoded(eval_dataset),
                processing_class=processor,
                **kwargs,
            )
        for each in (self.model, self.ref_model):
            if each is not None:
                share_vision(self.accelerator.unwrap_model(each))
        self.add_callback(SetEpoch(layout))

    def row_errors(self, row: Row) -> Iterable[RSRLHFError]:
        """Yields why the collator could not lay out a row."""
        if not isinstance(self.eval_collator, PairCollator | LabelledCollator):
            return ()
        group = self.eval_collator.group(row)
        return self.limits.errors(group, ["chosen", "rejected"] if len(group.completions) > 1 else ["completion"])

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Trains, see [`ResumeMixin.train`]; a run whose reference follows the policy is not resumed."""
        if self.args.sync_ref_model and resume_value(resume_from_checkpoint):
            raise OptionError(
                "a run with sync_ref_model cannot be resumed: checkpoints do not hold the reference; start anew.",
                "sync_ref_model",
            )
        return super().train(resume_from_checkpoint, *args, **kwargs)


class VisionDPOTrainer(PreferenceTuningMixin, DPOHooks):
    """Direct preference optimization on pairs with images, without, or mixed; takes the place of [`~trl.DPOTrainer`].

    Args:
        model (`str` or `PreTrainedModel`): A causal VLM, by name or loaded.
        ref_model (`PreTrainedModel`, *optional*): By default the model as it is at the start; with an adapter the
            model without it.
        args ([`VisionDPOConfig`] or [`~trl.DPOConfig`], *optional*): The training options; the object given is not
            changed. A row longer than `max_length` is an error.
        train_dataset (`Dataset` or `IterableDataset`): Rows of the preference schema with one rejected text, such as
            those of [`load_preferences`] with form `"pairs"` or of [`load_dpo`].
        eval_dataset (the same, or a `dict` of them, *optional*): Rows to evaluate on.
        processing_class (`ProcessorMixin` or tokenizer, *optional*): By default loaded from the model's path.
        **kwargs: As in [`~trl.DPOTrainer`].

    Raises:
        OptionError: An option that is not supported, or that TRL refuses.
        ModelError: The model or its processor cannot be loaded.

    Example:
        >>> data = load_preferences("dpo.jsonl", form="pairs")  # doctest: +SKIP
        >>> VisionDPOTrainer("out/policy", train_dataset=data).train()  # doctest: +SKIP
    """

    method, config_class, collator_class = "DPO", VisionDPOConfig, PairCollator


class VisionKTOTrainer(PreferenceTuningMixin, KTOHooks):
    """Kahneman-Tversky optimization on answers that are good or bad; takes the place of [`~trl.KTOTrainer`].

    TRL draws rows in their order: shuffle them, so that the answers to a prompt do not stand together.

    Args:
        train_dataset (`Dataset` or `IterableDataset`): Rows with `prompt`, `completion`, `label` (`bool`) and images,
            such as those of [`load_preferences`] with form `"labelled"`.

    The other arguments and errors are those of [`VisionDPOTrainer`], with [`VisionKTOConfig`] and [`~trl.KTOConfig`].

    Example:
        >>> data = load_preferences("dpo.jsonl", form="labelled").shuffle(seed=0)  # doctest: +SKIP
        >>> VisionKTOTrainer("out/policy", train_dataset=data).train()  # doctest: +SKIP
    """

    method, config_class, collator_class = "KTO", VisionKTOConfig, LabelledCollator


def _undecoded(rows: Any) -> Any:
    return {name: undecoded(part) for name, part in rows.items()} if isinstance(rows, Mapping) else undecoded(rows)
