"""`ClipTrainer`: contrastive fine-tuning of a dual encoder on image-text pairs, on transformers' `Trainer`.

Ours are the collator (pictures are decoded in the data-loader workers), the loss over the batches of all processes
with or without gradient caching (`losses.contrastive`), and the evaluation: zero-shot classification and retrieval on
declared benchmarks, by the protocols of `rs-rlhf eval`. Logging, schedules, checkpoints and resuming are the
Trainer's. The pairs are made in `data.clip`.

Left out: a held-out loss (it depends on the size of the batch; the retrieval figures do not), LoRA, and DeepSpeed and
FSDP (a CLIP fits on one GPU).
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    PreTrainedModel,
    ProcessorMixin,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ..data.questions import QuestionRow
from ..errors import DataError, ModelError, OptionError, RSRLHFError
from ..evaluation.benchmark import Benchmark
from ..evaluation.protocols import clip_protocol
from ..imagery.augment import rotate_flip
from ..imagery.raster import ImageOptions, read_image
from ..models.clip import ClipModel, text_inputs
from ..models.row_limits import RowLimits
from .losses.contrastive import MAX_LOG_SCALE, cached_backward, contrastive_loss, encode, same_pairs
from .mixins import ResumeMixin, SetEpoch, own_config
from .options import ClipOptions
from .row_check import Row, pair_errors

if TYPE_CHECKING:
    from .data.clip import ImageTextPairs


@dataclass
class VisionClipConfig(ClipOptions, TrainingArguments):
    """transformers' `TrainingArguments` with image options and those of the contrastive loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check()
        if self.grad_cache_chunk_size is not None and self.grad_cache_chunk_size < 1:
            raise OptionError(f"grad_cache_chunk_size is {self.grad_cache_chunk_size}; it must be at least 1.")
        if self.min_pixels is not None or self.max_pixels is not None:
            raise OptionError("min_pixels and max_pixels are not read: a CLIP sees every image in its own one size.")


class ClipCollator:
    """Reads the images and tokenizes the texts of a batch; runs in data-loader workers.

    Args:
        clip ([`ClipModel`]): The encoder, for its processor and the form of its texts.
        image_options ([`ImageOptions`]): How images are read.
        keys (`bool`): Also give the numbers that tell the same picture and the same text.
        augment (`bool`): Rotate and flip images whose text speaks of no direction.
        seed (`int`): Of the augmentation; a pair's draw depends on the seed, `epoch` and its index alone.

    Returns (on call):
        `dict`: what the image processor and the tokenizer give, and `keys` (B, 2), int64.
    """

    def __init__(
        self, clip: ClipModel, image_options: ImageOptions, *, keys: bool = True, augment: bool = False, seed: int = 0
    ) -> None:
        self.image_processor, self.tokenizer = clip.processor.image_processor, clip.processor.tokenizer
        self.padding, self.max_text_tokens = clip.padding, clip.max_text_tokens
        self.image_options, self.keys, self.augment, self.seed = image_options, keys, augment, seed
        self.epoch = 0

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Reads the rows.

        Raises:
            ImageError: An image cannot be read; names its file and row.
        """
        images, keys = [], []
        for row in rows:
            image = read_image(row["image"], self.image_options, row["where"])
            if self.keys:  # of the pixels: the same picture may be there under two names
                words = " ".join(row["text"].lower().split())
                keys.append([_number(image.tobytes()), _number(words.encode())])
            if self.augment:
                draw = random.Random(f"{self.seed} {self.epoch} {row['pair']}")
                image = rotate_flip(image, [row["text"]], draw)
            images.append(image)
        texts = text_inputs(self.tokenizer, [row["text"] for row in rows], self.padding, self.max_text_tokens)
        batch = {**self.image_processor(images=images, return_tensors="pt"), **texts}
        return batch | {"keys": torch.tensor(keys)} if self.keys else batch


def _number(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


class ClipTrainer(ResumeMixin, Trainer):
    """`Trainer` of a dual encoder.

    Args:
        model (`PreTrainedModel`): A CLIP or SigLIP: `get_image_features`, `get_text_features` and `logit_scale`; with
            a `logit_bias` the loss is SigLIP's, without it CLIP's.
        args ([`VisionClipConfig`]): The training options.
        processing_class (`ProcessorMixin`): Its processor; saved with it.
        train_dataset ([`ImageTextPairs`]): The pairs.
        eval_tasks (sequence of `tuple`): Benchmarks and their questions, see `evaluation.reader.read_benchmark`.
        **kwargs: As in [`~transformers.Trainer`].

    Raises:
        ModelError: The model is no dual encoder with a temperature.
        DataError: There are fewer pairs than a batch takes.
        OptionError: Evaluation is asked for without a task, or DeepSpeed or FSDP.
    """

    args: VisionClipConfig

    method = "CLIP"

    def __init__(
        self,
        model: PreTrainedModel,
        args: VisionClipConfig,
        processing_class: ProcessorMixin,
        train_dataset: ImageTextPairs | None = None,
        eval_tasks: Sequence[tuple[Benchmark, Sequence[QuestionRow]]] = (),
        **kwargs: Any,
    ) -> None:
        args = own_config(args)
        clip = ClipModel(model, processing_class)
        if not isinstance(getattr(model, "logit_scale", None), torch.nn.Parameter):
            raise ModelError(
                f"{type(model).__name__} has no logit_scale, which the contrastive loss needs; give a CLIP or SigLIP."
            )
        if args.eval_strategy != "no" and not eval_tasks:
            raise OptionError("eval_strategy asks for evaluation; give --eval_tasks, or set it to no.", "eval_tasks")
        # Paths have been resolved inside their root by now.
        self.reading = replace(args.reader_options(), image_root=None)
        self.limits = RowLimits(self.reading, None, frozenset())
        collator = ClipCollator(
            clip, self.reading, keys=args.mask_duplicates, augment=args.augment, seed=args.data_seed or args.seed
        )
        self.eval_tasks = list(eval_tasks)
        kwargs.setdefault("eval_dataset", self.eval_tasks or None)  # read by `evaluate` below alone
        super().__init__(
            model=model,
            args=args,
            processing_class=processing_class,
            train_dataset=train_dataset,
            data_collator=collator,
            **kwargs,
        )
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch: accumulation divides it
        if self.accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP):
            raise OptionError(
                "DeepSpeed and FSDP are not supported for a dual encoder, which fits on one GPU; "
                "give --accelerate_config multi_gpu."
            )
        batch = args.train_batch_size * args.world_size
        if train_dataset is not None and args.dataloader_drop_last and len(train_dataset) < batch:
            raise DataError(
                f"{len(train_dataset)} pairs do not fill one batch of {batch} (all processes'); lower "
                "per_device_train_batch_size",
                "per_device_train_batch_size",
            )
        self.add_callback(SetEpoch(collator))  # type: ignore[arg-type]
        self.add_callback(ClipScale(model))

    def checked_rows(self) -> dict[str, Any]:
        """Returns the rows of the pairs; evaluation data have been read by their own reader."""
        pairs = cast("ImageTextPairs | None", self.train_dataset)
        return {} if pairs is None else {"data": pairs.rows}

    def row_errors(self, row: Row) -> Iterable[RSRLHFError]:
        """Yields why the collator could not read a row."""
        return pair_errors(row, self.limits)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Returns the loss of this process's pairs among those of all processes."""
        loss_of = self._loss_of(inputs)
        features = encode(model, inputs)
        loss = loss_of(*features)
        return (loss, features) if return_outputs else loss

    def _loss_of(self, inputs: dict[str, torch.Tensor]) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Takes the keys out of the inputs; returns the loss as a function of the features."""
        keys = inputs.pop("keys", None)
        parameters = self._temperature()
        return partial(
            contrastive_loss,
            log_scale=parameters["logit_scale"],
            bias=parameters.get("logit_bias"),
            same=None if keys is None else same_pairs(keys),
        )

    def _temperature(self) -> dict[str, torch.Tensor]:
        model = self.accelerator.unwrap_model(self.model)
        return {name: getattr(model, name) for name in ("logit_scale", "logit_bias") if hasattr(model, name)}

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Runs forward and backward of a batch, in chunks if gradients are cached."""
        chunk = self.args.grad_cache_chunk_size
        if chunk is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        inputs = self._prepare_inputs(inputs)
        loss_of = self._loss_of(inputs)
        steps = self.current_gradient_accumulation_steps
        loss = cached_backward(
            model,
            inputs,
            loss_of,
            self._temperature(),
            chunk,
            backward=lambda part: self.accelerator.backward(part / steps),
            no_sync=partial(self.accelerator.no_sync, model),
            autocast=self.compute_loss_context_manager,
        )
        return self.watched(loss / steps)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Returns the parameters that weight decay is applied to: matrices, as CLIP was trained."""
        matrices = {name for name, parameter in model.named_parameters() if parameter.ndim > 1}
        return [name for name in super().get_decay_parameter_names(model) if name in matrices]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs the loss, and beside it the number that the cosines are multiplied by."""
        if "loss" in logs:
            logs["logit_scale"] = math.exp(self._temperature()["logit_scale"].item())
        super().log(logs, start_time)

    def evaluate(
        self,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluates the model on the tasks, shared among the processes; returns and logs their figures.

        Returns:
            `dict`: `eval_TASK_FIGURE`, such as `eval_aid_top1` and `eval_rsicd-retrieval_image_to_text_R@1`.
        """
        model = self.accelerator.unwrap_model(self.model)
        trained, size = model.training, self.args.eval_batch_size
        clip = ClipModel(model, cast(ProcessorMixin, self.processing_class), self.reading, batch_size=size)
        metrics: dict[str, float] = {}
        for benchmark, rows in self.eval_tasks:
            figures = task_figures(benchmark, rows, clip, self.accelerator)
            metrics |= {f"{metric_key_prefix}_{benchmark.name}_{name}": value for name, value in figures.items()}
        model.train(trained)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class ClipScale(TrainerCallback):
    """Keeps CLIP's logits at 100 times the cosine at most, as published; SigLIP's scale is left alone."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.scale: torch.Tensor | None = (
            None if hasattr(model, "logit_bias") else cast("torch.Tensor", model.logit_scale)
        )

    @torch.no_grad()
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Clips the temperature, before anything is saved."""
        if self.scale is not None:
            self.scale.clamp_(max=MAX_LOG_SCALE)


def task_figures(
    benchmark: Benchmark, rows: Sequence[QuestionRow], clip: ClipModel, accelerator: Accelerator
) -> dict[str, float]:
    """Evaluates an encoder on a benchmark, as `rs-rlhf eval` does; every process encodes its share and has all
    figures.
    """
    protocol = clip_protocol(benchmark, lambda: clip, rows, clip.batch_size)
    share = (accelerator.process_index, accelerator.num_processes)
    answers = [pair for places, raws in protocol.answer(rows, share, set()) for pair in zip(places, raws, strict=True)]
    raws = dict(gather_object(answers) if share[1] > 1 else answers)
    figures = protocol.figures(protocol.finish([raws[i] for i in range(len(rows))]))
    return {**figures["metrics"], "n": figures["n"]}


__all__ = ["ClipCollator", "ClipTrainer", "VisionClipConfig", "task_figures"]
