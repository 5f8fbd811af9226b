"""What our trainers share: evaluation without augmentation, the epoch in the collator, and resuming for real.

Left out: everything that TRL's trainers do themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from transformers import TrainerCallback

from ..models.collator import GroupCollator
from ..runs.checkpoints import resolve_resume


class ResumeMixin:
    """Mixed in before a TRL trainer whose weights must come back from a checkpoint."""

    model: Any

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
        plain = not (is_peft_model(model) or self.is_fsdp_enabled)  # type: ignore[attr-defined]
        if not plain or not (Path(resume_from_checkpoint) / "config.json").is_file():
            return super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        loaded = type(model).from_pretrained(resume_from_checkpoint, dtype=model.dtype, use_safetensors=True)
        model.load_state_dict(loaded.state_dict())
        return None

    def _load_best_model(self) -> None:
        """Loads the best checkpoint at the end of training, in the same way."""
        if self.is_deepspeed_enabled or self.is_fsdp_enabled or is_peft_model(self.model):  # type: ignore[attr-defined]
            return super()._load_best_model()  # type: ignore[misc]
        return self._load_from_checkpoint(self.state.best_model_checkpoint)  # type: ignore[attr-defined]


class VisionTrainerMixin(ResumeMixin):
    """Mixed in before a TRL trainer with collators; `self.eval_collator` is set by the subclass."""

    eval_collator: Any
    data_collator: Any

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Puts the collator that does not augment in place."""
        train_collator, self.data_collator = self.data_collator, self.eval_collator
        try:
            yield
        finally:
            self.data_collator = train_collator

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the evaluation loader, whose collator does not augment."""
        with self._evaluating():
            return super().get_eval_dataloader(*args, **kwargs)  # type: ignore[misc]

    def get_test_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the loader of `predict`, whose collator does not augment."""
        with self._evaluating():
            return super().get_test_dataloader(*args, **kwargs)  # type: ignore[misc]

    def fresh_eval_dataloader(self, dataset: Any) -> Any:
        """Returns a loader of this data set; with persistent workers `get_eval_dataloader` gives its first one."""
        with self._evaluating():
            return self._get_dataloader(  # type: ignore[attr-defined]
                dataset=dataset,
                description="Evaluation",
                batch_size=self.args.eval_batch_size,  # type: ignore[attr-defined]
                sampler_fn=self._get_eval_sampler,  # type: ignore[attr-defined]
            )


class SetEpoch(TrainerCallback):
    """Tells the collator the epoch, so that a sample is turned another way in each, resumed or not."""

    def __init__(self, collator: GroupCollator) -> None:
        self.collator = collator

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Sets `collator.epoch` before the workers of the epoch start."""
        self.collator.epoch = int(state.epoch or 0)


def evaluated_last(trainer: Any) -> bool:
    """Whether the last step of the run has been evaluated already."""
    state = trainer.state
    return any("eval_loss" in entry and entry["step"] == state.global_step for entry in state.log_history)
