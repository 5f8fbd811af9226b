"""`VisionRewardTrainer`: TRL's RewardTrainer for score models, on preference data with images, without, or mixed.

A preference row is a group (prompt, images, chosen and rejected completions); the trainer hands rows to
[`PreferenceCollator`] in the data-loader workers and applies the Plackett-Luce loss to the scores of the groups.
Everything else — the loop, DeepSpeed, LoRA, logging, checkpoints — is TRL's and transformers', and a text classifier
is TRL's altogether. `docs/trl_conformance.md` lists what TRL's scripts may expect.

Left out: `nn.DataParallel` (as in TRL), packing, and token ids as data of score models.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate.utils import gather_object, is_peft_model
from datasets import Dataset, IterableDataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    BitsAndBytesConfig,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
    set_seed,
)
from transformers.data.data_collator import DataCollator
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import ModelOutput
from trl import RewardConfig

from ..data.columns import is_image
from ..errors import DataError, RSRLHFError, loading
from ..metrics.preferences import comparisons, preference_metrics
from ..models.collator import GroupCollator
from ..models.pixel_budget import set_pixel_budget
from ..models.row_limits import RowLimits
from ..models.score_model import save_score_config
from ..models.vlm import processor_of
from ..preferences.schema import completion_keys
from ._compat import RewardHooks
from .audit.worst_pairs import log_worst_pairs
from .data.reward import ROW, PreferenceCollator, ShuffledImages
from .losses.preference import anchor_loss, held, plackett_luce_loss
from .mixins import SetEpoch, VisionTrainerMixin, own_config
from .options import RewardOptions
from .reward_model import (
    bare,
    check_collator,
    check_model,
    check_text_only,
    head_adapter,
    is_text_only,
    loading_options,
    score_model,
    set_trainable,
)
from .row_check import Row, undecoded

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

MOST_NAMES = 64  # kinds or sources whose accuracy is logged; a column of more names rows


@dataclass
class VisionRewardConfig(RewardOptions, RewardConfig):
    """TRL's `RewardConfig` with what images and the three published stages need."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check()


class VisionRewardTrainer(VisionTrainerMixin, RewardHooks):
    """Trains a [`ScoreModel`] on preference data with images; takes the place of [`~trl.RewardTrainer`].

    A text classifier, loaded or by name, is trained as TRL does, without images.

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`): An id or path that [`ScoreModel.from_pretrained`] loads (a
            causal VLM gets a new head), a loaded [`ScoreModel`] or causal VLM, or what TRL takes.
        args ([`VisionRewardConfig`] or [`~trl.RewardConfig`], *optional*): The training options; the object given is
            not changed. With TRL's, rows longer than its `max_length` are left out, and counted in a warning.
        train_dataset (`Dataset` or `IterableDataset`): Rows of the preference schema; see `rs_rlhf.data.group`. Rows
            with and without images may be mixed.
        eval_dataset (the same, or a `dict` of them, *optional*): Rows to evaluate on.
        processing_class (`ProcessorMixin` or tokenizer, *optional*): By default loaded from the model's path.
        quantization_config (`BitsAndBytesConfig`, *optional*): For a model by name; needs bitsandbytes.
        peft_config (`PeftConfig`, *optional*): The adapter; the head is trained beside it, and the object given is
            not changed.
        data_collator, compute_metrics, callbacks, optimizers, optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics: As in [`~trl.RewardTrainer`].

    Raises:
        OptionError: An option does not go with the model or with another.
        ModelError: The model cannot be loaded.

    Example:
        >>> from rs_rlhf import VisionRewardTrainer, load_preferences  # doctest: +SKIP
        >>> trainer = VisionRewardTrainer("Qwen/Qwen2-VL-2B-Instruct", train_dataset=load_preferences("pairs.jsonl"))
        ... # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
    """

    args: RewardConfig
    limits: RowLimits | None = None

    method = "reward"

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: RewardConfig | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | Mapping[str, Dataset | IterableDataset] | None = None,
        processing_class: ProcessorMixin | PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
    ) -> None:
        name = model if isinstance(model, str) else str(model.config._name_or_path)
        self.text_only = is_text_only(model, args)
        sets = eval_dataset.values() if isinstance(eval_dataset, Mapping) else [eval_dataset]
        streams = any(isinstance(rows, IterableDataset) for rows in (train_dataset, *sets))
        self.args = args = self._own_args(args, name, streams)
        tokenizer: Any = getattr(processing_class, "tokenizer", None) or processing_class
        if self.text_only:
            check_text_only(self.options, name)
            peft_config = deepcopy(peft_config)
        else:
            check_collator(data_collator)
            model = self._prepare(model, processing_class, quantization_config, peft_config)
            quantization_config, tokenizer = None, self.processor.tokenizer
            peft_config = head_adapter(peft_config)
        self._records: dict[str, list[dict[str, Any]]] = {"train": [], "eval": []}
        self._names: dict[str, set[str]] = {"kind": set(), "source": set()}
        with loading(name, (ImportError,)):
            super().__init__(
                model=model,
                args=args,
                data_collator=data_collator if self.text_only else data_collator or dict,  # ours are made later
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=tokenizer,
                compute_metrics=compute_metrics,
                callbacks=callbacks,
                optimizers=optimizers,
                optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
                preprocess_logits_for_metrics=preprocess_logits_for_metrics,
                quantization_config=quantization_config,
                peft_config=peft_config,
            )
        if not self.text_only:
            self.processing_class = self.callback_handler.processing_class = self.processor
            self.add_callback(SetEpoch(self.layout))
        if self.text_only or data_collator is not None:
            self.eval_collator = self.data_collator
        else:
            self.data_collator = PreferenceCollator(self.layout, self.options.image_blind)

    def _own_args(self, args: RewardConfig | None, name: str, streams: bool) -> RewardConfig:
        """Returns the trainer's own config, and sets our options, which a plain config leaves at their defaults."""
        if args is None:
            config = RewardConfig if self.text_only else VisionRewardConfig
            args = config(f"{name.rstrip('/').split('/')[-1]}-Reward")
        own = own_config(args)
        self.options = own if isinstance(own, RewardOptions) else RewardOptions()
        if streams or not self.text_only:  # rows of a stream cannot be put together and sent out, nor can our batches
            own.accelerator_config.dispatch_batches = False  # type: ignore[union-attr]
        return own

    def _prepare(self, model: Any, processing_class: Any, quantization: Any, peft_config: Any) -> Any:
        """Returns the score model, and sets its processor."""
        args, options = self.args, self.options
        args.remove_unused_columns = False  # images are read from theirs
        set_seed(args.seed)  # a new head is random
        model = score_model(model, args, options, quantization)
        self.processor: Any = processor_of(
            processing_class, str(bare(model).config._name_or_path), loading_options(args)
        )
        args.model_init_kwargs = None  # used; TRL warns of them beside a loaded model
        adapted = peft_config is not None or is_peft_model(model)
        check_model(bare(model), options, adapted)
        if not adapted:
            set_trainable(model, options.trainable)
        set_pixel_budget(self.processor, options.min_pixels, options.max_pixels)
        return model

    def _set_collators(self) -> None:
        """Makes the layout of training, and the collator of evaluation, which does not augment."""
        args, options, processor = self.args, self.options, self.processor
        if args.chat_template_path is not None:
            processor.chat_template = processor.tokenizer.chat_template
        made: dict[str, Any] = {"seed": args.seed, "max_length": args.max_length}
        made |= {"pad_to_multiple_of": args.pad_to_multiple_of}
        self.layout = GroupCollator(processor, options.reader_options(), augment=options.augment, **made)
        plain = GroupCollator(processor, options.reader_options(), **made)
        self.limits = RowLimits.of(plain)
        self.eval_collator = PreferenceCollator(plain, options.image_blind)

    def keep_rows(self, dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
        """Returns the rows with images undecoded, in which each row knows its place."""
        if self.limits is None:
            self._set_collators()  # TRL has set the tokenizer up by now
        rows = undecoded(dataset)
        if self.args.max_length is not None and self.args is not self.options:
            rows = self._short_rows(rows)
        if isinstance(rows, Dataset):
            if ROW in rows.column_names:
                rows = rows.remove_columns(ROW)
            rows = rows.add_column(ROW, list(range(len(rows))))
        return rows

    def _short_rows(self, rows: Any) -> Any:
        """Leaves out rows that are longer than TRL's `max_length`; rows that cannot be laid out are refused later."""
        collator, limits = cast(PreferenceCollator, self.eval_collator), cast(RowLimits, self.limits)

        def is_short(row: Row) -> bool:
            try:
                return not any(limits.length_errors(collator.group(row)))
            except RSRLHFError:
                return True

        if not isinstance(rows, Dataset):
            return rows.filter(is_short)
        return self.tokenized(rows, rows.select([i for i, row in enumerate(rows) if is_short(row)]))

    def tokenized(
        self, dataset: Dataset | IterableDataset, prepared: Dataset | IterableDataset
    ) -> Dataset | IterableDataset:
        """Returns the rows that are left of a data set, and says which are not, and that images are not read."""
        first: Row = next(iter(dataset), {}) if self.text_only else {}
        if any(is_image(first.get(name)) for name in ("image", "images")):
            warnings.warn("the model is a text classifier: the rows' images are not read.", stacklevel=6)
        if isinstance(dataset, Dataset) and isinstance(prepared, Dataset) and len(prepared) < len(dataset):
            said = f"{len(dataset) - len(prepared)} of {len(dataset)} rows are longer than max_length"
            said += f" {self.args.max_length}"
            if self.args is self.options or not len(prepared):
                raise DataError(f"{said}; raise it, or drop them.", "max_length")
            warnings.warn(f"{said} and are left out.", stacklevel=6)
        return prepared

    def row_errors(self, row: Row) -> Iterable[RSRLHFError]:
        """Yields why the collator could not lay out a row; TRL has tokenized texts alone."""
        if self.text_only or self.limits is None or not isinstance(self.eval_collator, PreferenceCollator):
            return ()
        group = self.eval_collator.group(row)
        return self.limits.errors(group, completion_keys(len(group.completions)))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, ModelOutput]:
        """Returns the Plackett-Luce loss of the batch's groups."""
        if self.text_only:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        scores, outputs = self._score(model, inputs)
        places = None if self.options.ranked_rejected else 1
        loss = plackett_luce_loss(scores, inputs["margin"], inputs["sizes"], places)
        if self.args.center_rewards_coefficient is not None:
            sums = scores.masked_fill(~held(scores, inputs["sizes"]), 0.0).sum(dim=1)
            loss = loss + self.args.center_rewards_coefficient * sums.square().mean()
        if self.options.anchor_coefficient:
            loss = loss + self.options.anchor_coefficient * anchor_loss(scores, inputs["sizes"])
        self._records["train" if self.model.training else "eval"].extend(_records(inputs, scores))
        exists = held(scores, inputs["sizes"])
        margins = (scores[:, :1] - scores[:, 1:])[exists[:, 1:]]
        self.count_rewards(scores[exists], margins, _token_count(inputs))
        return (loss, outputs) if return_outputs else loss

    def _score(self, model: nn.Module, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, ModelOutput]:
        outputs = model(**{k: v for k, v in inputs.items() if k not in ("margin", "sizes", "records")})
        return outputs.scores, outputs

    def _gather_records(self, mode: str) -> list[dict[str, Any]]:
        """Takes the records of all processes, each row once (a sampler repeats rows to fill the last batch)."""
        records = gather_object(self._records[mode])
        self._records[mode] = []
        for key, names in self._names.items():
            names |= {record.get(key, "") for record in records}
            if len(names) > MOST_NAMES:
                records = [{**record, key: ""} for record in records]
        if mode == "train":
            return records
        unique = {record["index"]: record for record in records if record["index"] >= 0}
        return [unique[i] for i in sorted(unique)] or records

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the scores' metrics since the last log."""
        if self.model.training and not self.text_only:
            metrics = preference_metrics(self._gather_records("train"))
            logs |= {f"score/{name}": value for name, value in metrics.items()}
        super().log(logs, start_time)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluates; adds the scores' metrics, the image-shuffle gap, and logs the worst pairs."""
        self._records["eval"] = []
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        if self.text_only:
            return output
        records = self._gather_records("eval")
        metrics = preference_metrics(records)
        if records:
            metrics["n"] = comparisons([record["scores"] for record in records])["n"]
        if isinstance(dataset := dataloader.dataset, Dataset):
            if (gap := self._shuffle_gap(dataset, records)) is not None:
                metrics["shuffle_gap"] = gap
            if self.options.worst_pairs and self.is_world_process_zero():
                log_worst_pairs(self, dataset, records, metric_key_prefix)
        ours = {f"{metric_key_prefix}_score/{name}": value for name, value in metrics.items()}
        return output._replace(metrics={**(output.metrics or {}), **ours})

    def _shuffle_gap(self, dataset: Dataset, records: Sequence[Mapping[str, Any]]) -> float | None:
        """Accuracy with the right images minus accuracy with another row's, on the same rows."""
        if not self.options.shuffle_gap_samples or self.options.image_blind:
            return None
        shuffled = ShuffledImages(
            dataset, self.options.shuffle_gap_samples, self.args.seed, self.options.reader_options()
        )
        if not len(shuffled):
            return None
        self._records["eval"] = []
        for inputs in self.get_test_dataloader(shuffled):
            inputs = self._prepare_inputs(inputs)
            with torch.no_grad(), self.compute_loss_context_manager():
                scores, _ = self._score(self.model_wrapped if self.is_deepspeed_enabled else self.model, inputs)
            self._records["eval"].extend(_records(inputs, scores))
        wrong = {r["index"]: r["scores"] for r in self._gather_records("eval")}
        right = [r["scores"] for r in records if r["index"] in wrong]
        return comparisons(right)["accuracy"] - comparisons(list(wrong.values()))["accuracy"]

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        super()._save(output_dir, state_dict)
        model = self.accelerator.unwrap_model(self.model)
        if (
            self.args.should_save and is_peft_model(model) and not self.text_only
        ):  # an adapter has no config of its own
            save_score_config(bare(model), Path(output_dir or str(self.args.output_dir)))


def _records(inputs: Mapping[str, Any], scores: torch.Tensor) -> list[dict[str, Any]]:
    rows = zip(inputs["records"], scores.detach().float().tolist(), inputs["sizes"].tolist(), strict=True)
    return [{**record, "scores": row[:size]} for record, row, size in rows]


def _token_count(inputs: Mapping[str, Any]) -> torch.Tensor:
    """Returns the number of tokens of a batch as TRL counts them: every completion with its prompt."""
    segments = inputs["segment_ids"]
    return (segments > 0).sum() + ((segments == 0).sum(1) * inputs["sizes"]).sum()
