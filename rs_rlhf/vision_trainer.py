"""What our trainers share: evaluation without augmentation, the epoch in the collator, and resuming for real.

Left out: everything that TRL's trainers do themselves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from transformers import TrainerCallback

from .checkpoints import resolve_resume
from .groups import GroupCollator


class VisionTrainerMixin:
    """Mixed in before a TRL trainer; `self.eval_collator` is set by the subclass."""

    eval_collator: Any

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Returns the evaluation loader, whose collator does not augment."""
        train_collator, self.data_collator = self.data_collator, self.eval_collator
        try:
            return super().get_eval_dataloader(eval_dataset)  # type: ignore[misc]
        finally:
            self.data_collator = train_collator

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trains; `resume_from_checkpoint=True` goes on from the last whole checkpoint of `output_dir`."""
        checkpoint = resolve_resume(resume_from_checkpoint, self.args.output_dir)  # type: ignore[attr-defined]
        return super().train(checkpoint, *args, **kwargs)  # type: ignore[misc]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Loads a checkpoint's weights with `from_pretrained`, which knows Qwen2-VL's old key names.

        transformers' own way reads the file as it is: none of the old names fits, and the run goes on from where the
        model started, with only a warning. Adapters keep transformers' way.
        """
        model = self.model if model is None else model
        if is_peft_model(model) or not (Path(resume_from_checkpoint) / "config.json").is_file():
            return super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        loaded = type(model).from_pretrained(resume_from_checkpoint, dtype=model.dtype)
        model.load_state_dict(loaded.state_dict())
        return None


class SetEpoch(TrainerCallback):
    """Tells the collator the epoch, so that a sample is turned another way in each, resumed or not."""

    def __init__(self, collator: GroupCollator) -> None:
        self.collator = collator

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Sets `collator.epoch` before the workers of the epoch start."""
        self.collator.epoch = int(state.epoch or 0)
