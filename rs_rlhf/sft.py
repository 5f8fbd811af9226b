"""`rs-rlhf sft`: supervised fine-tuning of a VLM on image-text data, through TRL's SFTTrainer and our image reader.

The from-scratch recipe trains its tiny captioner with it (which is also the later RL policy). The loss, the logging
and the checkpoints are TRL's; ours are the late decoding of images, the collator (a sample is a group of one
completion) and `exact_match`, the share of evaluation samples whose whole completion is what greedy decoding gives.

Left out: the published two-stage fine-tuning recipe, which comes with curation.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from trl import SFTConfig, SFTTrainer

from .arguments import ImageArguments
from .data import make_group
from .groups import GroupCollator, in_placement_order, set_pixel_budget
from .pairs import CAPTION_REQUEST, LABEL_QUESTION, class_name
from .vision_trainer import SetEpoch, VisionTrainerMixin, evaluated_last


@dataclass
class VisionSFTConfig(ImageArguments, SFTConfig):
    """TRL's `SFTConfig` with image options."""

    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay false: images are read from their columns by the workers."}
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Longest sample in tokens, image tokens included; longer is an error."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        given = cast("dict[str, Any]", self.dataset_kwargs or {})  # TRL has parsed a string by now
        self.dataset_kwargs = {**given, "skip_prepare_dataset": True}


class SFTCollator:
    """Lays out rows with `prompt`, `completion` and optional `image`/`images` columns for a causal VLM.

    Args:
        groups ([`GroupCollator`]): The one layout.

    Returns (on call):
        `dict`: `input_ids`, `attention_mask`, `labels` (-100 outside completions), `mm_token_type_ids` (B, L), and
        `pixel_values`, `image_grid_thw` in placement order.
    """

    def __init__(self, groups: GroupCollator) -> None:
        self.groups = groups

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Lays out the rows."""
        samples = [
            make_group(
                row["prompt"], [row["completion"]], row.get("images") or row.get("image"), row=row.get("row", -1)
            )
            for row in rows
        ]
        batch = self.groups(samples)
        segments = batch.pop("segment_ids")
        batch["attention_mask"] = (segments >= 0).long()
        batch["labels"] = batch["input_ids"].masked_fill(segments <= 0, -100)
        batch["mm_token_type_ids"] = (batch["input_ids"] == self.groups.image_token_id).int()
        if "image_index" in batch:
            batch |= in_placement_order(batch, batch.pop("image_index").tolist())
        return batch


class VisionSFTTrainer(VisionTrainerMixin, SFTTrainer):
    """`SFTTrainer` for rows of undecoded images, that also reports `exact_match` at evaluation.

    Args:
        args ([`VisionSFTConfig`]): The training options.
        processing_class (`ProcessorMixin`): The model's processor.
        **kwargs: As in [`~trl.SFTTrainer`].
    """

    def __init__(self, args: VisionSFTConfig, processing_class: Any, **kwargs: Any) -> None:
        set_pixel_budget(processing_class, args.min_pixels, args.max_pixels)
        options: dict[str, Any] = {"seed": args.seed, "max_length": args.max_length}
        layout = GroupCollator(processing_class, args.image_options(), augment=args.augment, **options)
        self.eval_collator = SFTCollator(GroupCollator(processing_class, args.image_options(), **options))
        super().__init__(args=args, processing_class=processing_class, data_collator=SFTCollator(layout), **kwargs)
        self.add_callback(SetEpoch(layout))

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Evaluates one batch; a second forward says whether every completion token is the most likely one.

        Teacher-forced agreement on every token is the same as greedy decoding giving exactly the reference.
        """
        result = super().prediction_step(model, inputs, *args, **kwargs)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**self._prepare_inputs(inputs), use_cache=False, fused_lm_head=True)
        right = (outputs.is_top1 | ~outputs.label_mask.bool()).all(dim=1).float()
        self._metrics["eval"]["exact_match"].extend(self.accelerator.gather_for_metrics(right).tolist())
        return result


def conversation_rows(rows: Iterable[Mapping[str, Any]], labels_only: bool = False) -> list[dict[str, Any]]:
    """Turns images with a label, captions, or both into prompt-completion rows, one per distinct caption.

    Args:
        rows (iterable of `dict`): `image`, and `label` (`str`), `captions` (list of `str`) or both.
        labels_only (`bool`): Only the question for the scene class, one row per image (for evaluation).

    Returns:
        `list[dict]`: Where there is a label the prompt asks for the scene class, and the completion is the class name,
        then, as a second turn, the request for a description and the caption: both share one pass of the vision tower.
        Without a label the prompt is that request.
    """
    out: list[dict[str, Any]] = []
    for row in rows:
        label, captions = row.get("label"), list(dict.fromkeys(row.get("captions") or []))
        if labels_only or not captions:
            turns = [[LABEL_QUESTION, class_name(label)]] if label else []
        else:
            ask = [LABEL_QUESTION, class_name(label)] if label else []
            turns = [[*ask, CAPTION_REQUEST, caption] for caption in captions]
        for texts in turns:
            messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
            out.append({"prompt": messages[:1], "completion": messages[1:], "image": row["image"], "row": len(out)})
    return out


def train(script: Any, args: VisionSFTConfig, model_args: Any) -> None:
    """Trains as `rs-rlhf sft` does.

    Args:
        script (`trl.ScriptArguments`): `dataset_name` is a data path that `rs_rlhf.pairs.load_images` reads.
        args ([`VisionSFTConfig`]): The training options.
        model_args (`trl.ModelConfig`): The model; LoRA options as in TRL.
    """
    from datasets import Dataset
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import get_peft_config

    from .pair_files import load_images

    path = model_args.model_name_or_path
    processor = AutoProcessor.from_pretrained(path, revision=model_args.model_revision)
    dtype = model_args.dtype or "float32"
    model = AutoModelForImageTextToText.from_pretrained(
        path, revision=model_args.model_revision, dtype=dtype, attn_implementation=model_args.attn_implementation
    )
    rows = load_images(script.dataset_name, script.dataset_train_split)
    if (limit := getattr(script, "max_train_samples", None)) is not None and limit < len(rows):
        rows = [rows[i] for i in sorted(random.Random(args.seed).sample(range(len(rows)), limit))]
    train_set = Dataset.from_list(conversation_rows(rows))
    eval_set = None
    if args.eval_strategy != "no":
        rows = load_images(script.dataset_name, script.dataset_test_split)
        eval_set = Dataset.from_list(conversation_rows(rows, labels_only=True))
    trainer = VisionSFTTrainer(
        model=model,
        args=args,
        train_dataset=train_set,
        eval_dataset=eval_set,
        processing_class=processor,
        peft_config=get_peft_config(model_args),
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model(args.output_dir)
    trainer.save_state()
    if trainer.accelerator.is_main_process:
        processor.save_pretrained(args.output_dir)
        print(f"Model saved to {os.path.abspath(str(args.output_dir))}")
    if eval_set is not None and not evaluated_last(trainer):
        trainer.log_metrics("eval", trainer.evaluate())
