"""`VisionRewardTrainer`: TRL's RewardTrainer for score models, on preference data with images, without, or mixed.

A preference row is a group (prompt, images, chosen and rejected completions); the trainer hands rows to
[`PreferenceCollator`] in the data-loader workers and applies the Plackett-Luce loss to the scores of the groups.
Everything else — the loop, DeepSpeed, LoRA, logging, checkpoints — is TRL's and transformers'.

Left out: `nn.DataParallel` (as in TRL), and packing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate.utils import gather_object, is_peft_model
from datasets import Dataset, IterableDataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, ProcessorMixin, set_seed
from transformers.data.data_collator import DataCollator
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import ModelOutput
from trl import RewardConfig

from ..data.group import Group
from ..data.other_images import other_images, picture_keys
from ..errors import OptionError, RSRLHFError, loading
from ..imagery.sources import DEFAULTS, ImageOptions, ImageSource
from ..metrics.preferences import comparisons, preference_metrics
from ..models.collator import GroupCollator, without_images
from ..models.pixel_budget import set_pixel_budget
from ..models.row_limits import RowLimits
from ..models.score_model import HEAD, ScoreModel, save_score_config
from ..models.vlm import load_processor
from ..preferences.schema import completion_keys, group_from_row
from ._compat import RewardHooks
from .mixins import SetEpoch, VisionTrainerMixin
from .options import RewardOptions
from .preference_loss import anchor_loss, held, plackett_luce_loss
from .row_check import Row, undecoded
from .worst_pairs import log_worst_pairs

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

ROW = "_row"  # column with a row's place in its data set, by which repeated evaluation rows are told


@dataclass
class VisionRewardConfig(RewardOptions, RewardConfig):
    """TRL's `RewardConfig` with what images and the three published stages need."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check()
        if self.augment and self.dataloader_persistent_workers:
            raise OptionError(
                "augment needs dataloader_persistent_workers false: workers learn the epoch when they start."
            )


class PreferenceCollator:
    """Lays preference rows out as groups, with the margin and what the metrics need to know of each row.

    Args:
        groups ([`GroupCollator`]): The one layout.
        image_blind (`bool`): Leave the images and their placeholders out.

    Returns (on call):
        `dict`: The group batch, `margin` and `sizes` (number of completions) of shape (B,), and `records`, one `dict`
        per row: `index`, `kind`, `source`.
    """

    def __init__(self, groups: GroupCollator, image_blind: bool = False) -> None:
        self.groups = groups
        self.image_blind = image_blind

    def group(self, row: Mapping[str, Any]) -> Group:
        """Returns a row as the group that is laid out."""
        group = group_from_row(row, row.get(ROW, -1), row.get("where") or "")
        return without_images(group) if self.image_blind else group

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Lays out the rows."""
        samples = [self.group(row) for row in rows]
        batch: dict[str, Any] = self.groups(samples)
        batch["margin"] = torch.tensor([sample.margin for sample in samples])
        batch["sizes"] = torch.tensor([len(sample.completions) for sample in samples])
        batch["records"] = [
            {"index": row.get(ROW, -1), "kind": sample.kind, "source": sample.source}
            for row, sample in zip(rows, samples, strict=True)
        ]
        return batch


def _load(
    path: str, args: VisionRewardConfig, processing_class: ProcessorMixin | None
) -> tuple[ScoreModel, ProcessorMixin]:
    """Loads a score model as `model_init_kwargs` says, and its processor unless one is given."""
    options = {"dtype": "float32", "trust_remote_code": args.trust_remote_code}
    options |= {**cast("dict[str, Any]", args.model_init_kwargs or {}), "device_map": None}
    args.model_init_kwargs = None  # used; TRL warns of them beside a loaded model
    with loading(path, key="model_name_or_path"):
        model = ScoreModel.from_pretrained(path, args.positions, output_activation=args.output_activation, **options)
        processing_class = processing_class or load_processor(path, options)
    return model, processing_class


def _check_model(model: ScoreModel, args: VisionRewardConfig, adapted: bool) -> None:
    """Refuses options that do not go with the model, or with LoRA."""
    if args.anchor_coefficient and model.config.output_activation != "identity":
        raise OptionError(
            "anchor_coefficient needs scores of either sign; set output_activation to 'identity'.",
            "anchor_coefficient",
        )
    if adapted and args.trainable != "all":
        raise OptionError(
            "trainable cannot be combined with LoRA; name the LoRA modules in lora_target_modules.", "trainable"
        )


def set_trainable(model: ScoreModel, part: str) -> None:
    """Freezes all weights but those of the head and of a part: `"head"`, `"vision"`, `"language"` or `"all"`."""
    model.requires_grad_(part == "all")
    if part == "vision":
        model.vision_tower.requires_grad_(True)
    if part == "language":
        model.model.language_model.requires_grad_(True)
    model.reward_head.requires_grad_(True)


class VisionRewardTrainer(VisionTrainerMixin, RewardHooks):
    """Trains a [`ScoreModel`] on preference data with images.

    Args:
        model (`str`, [`ScoreModel`] or `PeftModel`): An id or path that [`ScoreModel.from_pretrained`] loads (a causal
            VLM gets a new head), or a loaded model.
        args ([`VisionRewardConfig`], *optional*): The training options.
        train_dataset, eval_dataset (`Dataset` or `IterableDataset`): Rows of the preference schema; see
            `rs_rlhf.data.group`. Rows with and without images may be mixed.
        processing_class (`ProcessorMixin`, *optional*): By default loaded from the model's path.
        **kwargs: As in [`~trl.RewardTrainer`] (`peft_config`, `callbacks`, `optimizers`, …).

    Example:
        >>> from rs_rlhf import VisionRewardTrainer, load_preferences  # doctest: +SKIP
        >>> trainer = VisionRewardTrainer("Qwen/Qwen2-VL-2B-Instruct", train_dataset=load_preferences("pairs.jsonl"))
        ... # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
    """

    args: VisionRewardConfig

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: VisionRewardConfig | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset] | None = None,
        processing_class: ProcessorMixin | None = None,
        peft_config: LoraConfig | None = None,
        **kwargs: Any,
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else str(model.config._name_or_path)
            args = VisionRewardConfig(f"{name.rstrip('/').split('/')[-1]}-Reward")
        set_seed(args.seed)  # a new head is random
        if isinstance(model, str):
            model, processing_class = _load(model, args, processing_class)
        base = cast("PeftModel", model).get_base_model() if is_peft_model(model) else model
        if not isinstance(base, ScoreModel):
            raise TypeError(f"model must be a path, a hub id or a ScoreModel, got {type(base).__name__}.")
        trust = {"trust_remote_code": args.trust_remote_code}
        processing_class = processing_class or load_processor(base.config._name_or_path, trust)
        _check_model(base, args, adapted=peft_config is not None or is_peft_model(model))
        if peft_config is not None:
            peft_config.modules_to_save = sorted({*(peft_config.modules_to_save or []), HEAD.split(".")[0]})
        elif not is_peft_model(model):
            set_trainable(base, args.trainable)
        set_pixel_budget(processing_class, args.min_pixels, args.max_pixels)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator or dict,  # ours needs the tokenizer as TRL leaves it
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class.tokenizer,
            peft_config=peft_config,
            **kwargs,
        )
        if args.chat_template_path is not None:
            processing_class.chat_template = processing_class.tokenizer.chat_template
        self.processing_class = self.callback_handler.processing_class = processing_class
        self.eval_collator = data_collator or self._make_collators(processing_class)
        self._records: dict[str, list[dict[str, Any]]] = {"train": [], "eval": []}

    def _make_collators(self, processing_class: ProcessorMixin) -> PreferenceCollator:
        """Sets the collator of training, and returns that of evaluation, which does not augment."""
        args = self.args
        options: dict[str, Any] = {"seed": args.seed, "max_length": args.max_length}
        layout = GroupCollator(processing_class, args.reader_options(), augment=args.augment, **options)
        self.data_collator = PreferenceCollator(layout, args.image_blind)
        self.add_callback(SetEpoch(layout))
        plain = GroupCollator(processing_class, args.reader_options(), **options)
        self.limits = RowLimits.of(plain)
        return PreferenceCollator(plain, args.image_blind)

    def keep_rows(self, dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
        """Returns the rows with images undecoded, in which each row knows its place."""
        dataset = undecoded(dataset)
        if isinstance(dataset, Dataset):
            if ROW in dataset.column_names:
                dataset = dataset.remove_columns(ROW)
            dataset = dataset.add_column(ROW, list(range(len(dataset))))
        return dataset

    def row_errors(self, row: Row) -> Iterable[RSRLHFError]:
        """Yields why the collator could not lay out a row."""
        if not isinstance(self.eval_collator, PreferenceCollator):
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
        scores, outputs = self._score(model, inputs)
        places = None if self.args.ranked_rejected else 1
        loss = plackett_luce_loss(scores, inputs["margin"], inputs["sizes"], places)
        if self.args.center_rewards_coefficient is not None:
            sums = scores.masked_fill(~held(scores, inputs["sizes"]), 0.0).sum(dim=1)
            loss = loss + self.args.center_rewards_coefficient * sums.square().mean()
        if self.args.anchor_coefficient:
            loss = loss + self.args.anchor_coefficient * anchor_loss(scores, inputs["sizes"])
        self._records["train" if self.model.training else "eval"].extend(_records(inputs, scores))
        return (loss, outputs) if return_outputs else loss

    def _score(self, model: nn.Module, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, ModelOutput]:
        outputs = model(**{k: v for k, v in inputs.items() if k not in ("margin", "sizes", "records")})
        return outputs.scores, outputs

    def _gather_records(self, mode: str) -> list[dict[str, Any]]:
        """Takes the records of all processes, each row once (a sampler repeats rows to fill the last batch)."""
        records = gather_object(self._records[mode])
        self._records[mode] = []
        if mode == "train":
            self.count_tokens(sum(record["tokens"] for record in records))
            return records
        unique = {record["index"]: record for record in records if record["index"] >= 0}
        return [unique[i] for i in sorted(unique)] or records

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the scores' metrics since the last log."""
        if self.model.training:
            metrics = preference_metrics(self._gather_records("train"))
            logs |= {f"score/{name}": value for name, value in metrics.items()}
            logs["num_tokens"] = self.count_tokens(0)
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
        records = self._gather_records("eval")
        metrics = preference_metrics(records)
        if isinstance(dataset := dataloader.dataset, Dataset):
            if (gap := self._shuffle_gap(dataset, records)) is not None:
                metrics["shuffle_gap"] = gap
            if self.args.worst_pairs and self.is_world_process_zero():
                log_worst_pairs(self, dataset, records, metric_key_prefix)
        ours = {f"{metric_key_prefix}_score/{name}": value for name, value in metrics.items()}
        return output._replace(metrics={**(output.metrics or {}), **ours})

    def _shuffle_gap(self, dataset: Dataset, records: Sequence[Mapping[str, Any]]) -> float | None:
        """Accuracy with the right images minus accuracy with another row's, on the same rows."""
        if not self.args.shuffle_gap_samples or self.args.image_blind:
            return None
        shuffled = ShuffledImages(dataset, self.args.shuffle_gap_samples, self.args.seed, self.args.reader_options())
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
        base = self.accelerator.unwrap_model(self.model)
        if self.args.should_save and is_peft_model(base):  # an adapter folder has no config of its own
            save_score_config(base.get_base_model(), Path(output_dir or str(self.args.output_dir)))


class ShuffledImages(torch.utils.data.Dataset):
    """Rows with another row's images, see [`other_images`], for the image-shuffle gap.

    Args:
        dataset (`Dataset`): Preference rows; those without images are left out.
        limit (`int`): Rows at most, drawn at random.
        seed (`int`): Seed of the draw.
        options ([`ImageOptions`]): How images are read, to tell which are the same picture.
    """

    def __init__(self, dataset: Dataset, limit: int, seed: int, options: ImageOptions = DEFAULTS) -> None:
        self.dataset = dataset
        self.column = "images" if "images" in dataset.column_names else "image"
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(dataset), generator=generator).tolist()
        drawn: dict[int, list[ImageSource]] = {}
        for i in order[: 4 * limit] if self.column in dataset.column_names else ():
            images = dataset[i][self.column]
            if images and len(drawn) < limit:
                drawn[i] = images if isinstance(images, list) else [images]
        rows = list(drawn)
        partners = other_images(picture_keys(drawn.values(), options))
        self.pairs = [(i, rows[j]) for i, j in zip(rows, partners, strict=True) if j is not None]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, place: int) -> dict[str, Any]:
        row, partner = self.pairs[place]
        return {**self.dataset[row], self.column: self.dataset[partner][self.column]}


def _records(inputs: Mapping[str, Any], scores: torch.Tensor) -> list[dict[str, Any]]:
    tokens = (inputs["segment_ids"] >= 0).sum(1).tolist()
    return [
        {**record, "scores": row[:size], "tokens": count}
        for record, row, size, count in zip(
            inputs["records"], scores.detach().float().tolist(), inputs["sizes"].tolist(), tokens, strict=True
        )
    ]
