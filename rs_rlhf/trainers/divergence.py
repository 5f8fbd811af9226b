"""Divergence: a training whose losses or weights are no longer finite stops, says why, and saves nothing of it.

Left out: going back to an earlier checkpoint, and skipping batches: both hide the cause.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer

from ..errors import TrainingDiverged
from ..runs.checkpoints import is_finite, last_whole_checkpoint

if TYPE_CHECKING:
    Base = Trainer
else:
    Base = object

MOST = 3  # losses in a row that are not finite
UNSAMPLED = "probability tensor contains either `inf`, `nan`"  # of torch.multinomial


class FiniteMixin(Base):
    """Mixed in before a trainer that must stop once its losses or weights are not finite."""

    model: PreTrainedModel
    _step_loss: torch.Tensor | float = 0.0  # of the micro-batches since the last step
    _not_finite = 0  # steps in a row
    _last_finite = ""

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Runs forward and backward of a batch; the third loss in a row that is not finite ends the training, and so
        does a policy that cannot be sampled from.
        """
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
        except RuntimeError as error:
            if UNSAMPLED not in str(error):
                raise
            what = f"no answer can be sampled at step {self.state.global_step + 1}: its probabilities are not finite"
            raise self._diverged(what + self._last_finite, self._bad_weights()) from error
        return self.watched(loss)

    def watched(self, loss: torch.Tensor) -> torch.Tensor:
        """Returns the loss of a batch.

        Raises:
            TrainingDiverged: The losses of three steps in a row were not finite, on this process or another.
        """
        self._step_loss = self._step_loss + loss.detach()
        if not self.accelerator.sync_gradients:
            return loss
        mean, self._step_loss = float(self.accelerator.reduce(self._step_loss, "mean")), 0.0
        step = self.state.global_step + 1
        if math.isfinite(mean):
            self._not_finite, self._last_finite = 0, f", after a loss of {mean:.4g} at step {step}"
            return loss
        self._not_finite += 1
        if self._not_finite >= MOST:
            what = f"the losses of steps {step - MOST + 1} to {step} are not finite{self._last_finite}"
            raise self._diverged(what, self._all_bad_weights())
        return loss

    def _maybe_log_save_evaluate(self, tr_loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """Logs, saves and evaluates; transformers subtracts a logged sum from itself, which leaves NaN of NaN."""
        super()._maybe_log_save_evaluate(tr_loss, *args, **kwargs)
        if self._globalstep_last_logged == self.state.global_step:
            tr_loss.zero_()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model.

        Raises:
            TrainingDiverged: Weights are not finite; nothing is written.
        """
        if bad := self._all_bad_weights():
            raise self._diverged(f"the weights of step {self.state.global_step} are not saved{self._last_finite}", bad)
        super().save_model(output_dir, _internal_call)

    def _bad_weights(self) -> int:
        """Returns how many of this process's weight tensors (or its parts of them) are not finite."""
        return sum(not is_finite(weights) for weights in self._local_weights())

    def _all_bad_weights(self) -> int:
        """Returns the same for all processes, if each may hold other parts; all of them must ask."""
        bad = self._bad_weights()
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            bad = int(self.accelerator.reduce(torch.tensor(bad, device=self.accelerator.device), "sum"))
        return bad

    def _local_weights(self) -> Iterator[torch.Tensor]:
        for weights in self.model.parameters():
            weights = getattr(weights, "ds_tensor", weights)
            yield weights.to_local() if hasattr(weights, "to_local") else weights

    def _diverged(self, what: str, bad: int) -> TrainingDiverged:
        cause = (
            f"{bad} weight tensors are not finite"
            if bad
            else "all weights are finite, so that the last batches or the precision (bf16, fp16) are the cause"
        )
        left = last_whole_checkpoint(str(self.args.output_dir))
        return TrainingDiverged(
            f"training diverged: {what}; {cause}. Lower --learning_rate (now {self.args.learning_rate:g}), or raise "
            f"--warmup_steps, and start again{f' or resume from {left}' if left else ''}.",
            "learning_rate",
        )
