"""What our trainers need of TRL and keep in one place because TRL keeps it private (`trl>=1.16,<1.17` is pinned).

Our trainers override and call the public names below; a new TRL release is checked here alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import trl.trainer.utils
from trl import DPOTrainer, GRPOTrainer, KTOTrainer, RewardConfig, RewardTrainer, SFTTrainer
from trl.data_utils import prepare_multimodal_messages
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

from ..errors import ModelMismatch, OptionError
from .losses.group import GroupLoss, Output, Rows, rows_by_prompt

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase
    from trl.generation.vllm_generation import VLLMGeneration

Row = dict[str, Any]


def add_metric(trainer: GRPOTrainer | SFTTrainer, mode: str, name: str, values: Sequence[float]) -> None:
    """Adds values that the next log averages: TRL has no public method to log beside its own metrics."""
    trainer._metrics[mode][name].extend(values)


def set_metrics(trainer: GRPOTrainer, mode: str, metrics: Mapping[str, float]) -> None:
    """Sets metrics of the next log: those over a whole evaluation are no averages of its batches."""
    trainer._metrics[mode].update({name: [value] for name, value in metrics.items()})


def clear_metrics(trainer: GRPOTrainer, mode: str) -> None:
    """Drops metrics that TRL would add to the next log: greedy answers are logged without those of sampled ones."""
    trainer._metrics[mode].clear()


def has_rollouts(trainer: GRPOTrainer) -> bool:
    """Says whether a trainer has rollouts to log."""
    return len(trainer._logs["prompt"]) > 0


def compare_layouts(generation: VLLMGeneration) -> None:
    """Makes every generation by vLLM stop with a [`ModelMismatch`] if vLLM lays images out unlike the trainer.

    A server reports its tokens of each image beside the image's features; TRL overwrites them with the trainer's. An
    engine in this process returns the prompt as it has laid it out, which TRL drops.
    """
    place, generate = generation._place_features, generation.generate

    def placed(features: dict | None, prompt_ids: list[int]) -> dict | None:
        result = place(features, prompt_ids)
        if features is not None and result is not None:
            theirs, ours = (each["mm_placeholders"]["image"] for each in (features, result))
            for one, other in zip(theirs, ours, strict=True):
                _agree(one["length"], other["length"], "an image")
        return result

    def generated(prompts: list[list[int]], *args: Any, **kwargs: Any) -> tuple:
        result = generate(prompts, *args, **kwargs)
        for one, other in zip(result[0], prompts, strict=True):
            _agree(len(one), len(other), "a prompt")
        return result

    vars(generation).update(_place_features=placed, generate=generated)


def ask_layout(generation: VLLMGeneration, pictures: list[Any], counts: list[int]) -> None:
    """Asks a vLLM server about pictures of which the trainer makes `counts` tokens; after [`compare_layouts`]."""
    client = getattr(generation, "vllm_client", None)
    if client is not None:  # None: an engine in this process, or another process asks the server
        processor: Any = generation.processing_class
        token = processor.image_token_id
        ids = [i for count in counts for i in (*[token] * count, -1)]
        generation._place_features(client.image_features([pictures])[0], ids)


def _agree(theirs: int, ours: int, name: str) -> None:
    if theirs != ours:
        raise ModelMismatch(
            f"vLLM lays {name} out in {theirs} tokens where the trainer counts {ours}; give vLLM the trainer's model, "
            "and a pixel budget (--mm-processor-kwargs) that holds min_pixels and max_pixels of this run.",
            "max_pixels",
        )


@contextmanager
def head_at_labels() -> Iterator[None]:
    """Makes TRL's fused LM head compute the positions that have a label alone, as it does on GPUs. Elsewhere TRL
    computes all, since some devices compile for each number of them; on a CPU that is a fifth of a tiny model's step.
    """
    name, utils = "_use_triton", trl.trainer.utils
    theirs = getattr(utils, name)
    setattr(utils, name, lambda device: device.type == "cpu" or theirs(device))
    try:
        yield
    finally:
        setattr(utils, name, theirs)


@contextmanager
def refusals(args: object) -> Iterator[None]:
    """Turns what TRL itself raises about options or data into an [`OptionError`]; its key is the first option that the
    message names.
    """
    try:
        yield
    except (ValueError, NotImplementedError) as error:
        trace: Any = error.__traceback__
        while trace.tb_next is not None:
            trace = trace.tb_next
        if not trace.tb_frame.f_globals["__name__"].startswith("trl."):
            raise
        text = " ".join(str(error).split())
        raise OptionError(
            text, next((word for word in re.findall(r"\w+", text) if hasattr(args, word)), "")
        ) from error


class RowsAsTheyAre:
    """Mixed in before a TRL trainer whose collator lays out rows as they are."""

    def _prepare_dataset(self, dataset: Dataset | IterableDataset, *args: Any) -> Dataset | IterableDataset:
        """TRL tokenizes rows without images here."""
        return dataset


class DPOHooks(RowsAsTheyAre, DPOTrainer):
    """`DPOTrainer` that takes rows as they are."""


class KTOHooks(RowsAsTheyAre, KTOTrainer):
    """`KTOTrainer` that takes rows as they are."""


class RewardHooks(RewardTrainer):
    """`RewardTrainer` that takes rows as they are, unless its model is TRL's."""

    text_only = False  # the model is a text classifier, as TRL's own

    def _prepare_dataset(
        self,
        dataset: Dataset | IterableDataset,
        processing_class: PreTrainedTokenizerBase,
        args: RewardConfig,
        dataset_name: str,
    ) -> Dataset | IterableDataset:
        """TRL tokenizes the texts here and drops the images; our collator lays out both."""
        if self.text_only:
            return self.tokenized(dataset, super()._prepare_dataset(dataset, processing_class, args, dataset_name))
        return self.keep_rows(dataset)

    def keep_rows(self, dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
        """Returns the rows that the collator is given."""
        return dataset

    def tokenized(
        self, dataset: Dataset | IterableDataset, prepared: Dataset | IterableDataset
    ) -> Dataset | IterableDataset:
        """Returns the rows that TRL has prepared of a data set."""
        return prepared

    def count_rewards(self, rewards: torch.Tensor, margins: torch.Tensor, tokens: torch.Tensor) -> None:
        """Adds a batch to TRL's own metrics, as TRL's loss does for pairs.

        Args:
            rewards (`torch.Tensor`): All rewards of this process, flat.
            margins (`torch.Tensor`): The chosen reward minus each rejected one, flat.
            tokens (`torch.Tensor`): Number of tokens.
        """
        mode = "train" if self.model.training else "eval"  # type: ignore[union-attr]
        own = [rewards.min(), rewards.mean(), rewards.max(), (margins > 0).float().mean(), margins.mean(), tokens]
        figures = self.accelerator.gather(torch.stack([figure.detach().float() for figure in own])[None])
        if mode == "train":
            self._total_train_tokens += int(figures[:, 5].sum()) // self._tp_size
        metrics = self._metrics[mode]
        metrics["num_tokens"] = [self._total_train_tokens]
        metrics["min_reward"].append(figures[:, 0].min().item())
        metrics["max_reward"].append(figures[:, 2].max().item())
        for place, name in ((1, "mean_reward"), (3, "accuracy"), (4, "margin")):
            metrics[name].append(figures[:, place].mean().item())


# Losses whose gradient does not depend on which micro batch of an optimizer step a row is in.
SUMMED_LOSSES = {"cispo", "dapo", "dr_grpo", "grpo", "luspo", "sapo", "vespo"}


def reorder(batches: Sequence[Row], order: Callable[[Row], Sequence[int]]) -> list[Row]:
    """Puts the rows of some micro batches, as TRL buffers them, into another order; TRL only shuffles them."""
    parts: list[Row] = [dict(split_pixel_values_by_grid(batch)) for batch in batches]
    whole: Row = {}
    for name, value in parts[0].items():
        values = [part[name] for part in parts]
        if isinstance(value, list):
            whole[name] = [each for of_part in values for each in of_part]
        else:
            whole[name] = torch.cat(values) if value is not None and value.ndim else value
    chosen = list(order(unsplit_pixel_values_by_grid(whole)))
    for name, value in whole.items():
        if isinstance(value, list):
            whole[name] = [value[i] for i in chosen]
        elif value is not None and value.ndim:
            whole[name] = value[chosen]
    split: list[Row] = [dict(batch) for batch in split_tensor_dict(whole, len(parts))]
    return [unsplit_pixel_values_by_grid(batch) for batch in split]


class GRPOHooks(GRPOTrainer):
    """`GRPOTrainer` with a place before its rollouts, one after its rewards, greedy answers, and a loss of groups."""

    group_loss: GroupLoss | None = None

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **inputs: Any,
    ) -> Output:
        """TRL runs a prompt once for each of its completions."""

        def plain(rows: Rows, size: int | None = None) -> Output:
            given = (rows.ids, rows.mask, rows.width, size, compute_entropy, compute_aux_loss)
            return super(GRPOHooks, self)._get_per_token_logps_and_entropies(model, *given, **rows.inputs)

        rows = Rows(input_ids, attention_mask, logits_to_keep, inputs)
        if self.group_loss is None or compute_aux_loss or not self.group_loss.applies(model):
            return plain(rows, batch_size)
        starts = range(0, len(input_ids), batch_size or len(input_ids))
        parts, before = [rows.part(start, start + starts.step) for start in starts], self.group_loss.count
        logps, entropies, _ = zip(
            *(self.group_loss(model, part, compute_entropy, plain) for part in parts), strict=True
        )
        share = (self.group_loss.count - before) / len(input_ids)
        training = self.model is not None and self.model.training
        add_metric(self, "train" if training else "eval", "shared_prefix", [share])
        return torch.cat(logps), torch.cat(entropies) if compute_entropy else None, None

    def _prepare_inputs(self, generation_batch: Any) -> Row:
        """TRL shuffles rows over micro batches; within an optimizer step those of a prompt are put together again."""
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is before or self.group_loss is None or not self.group_loss.applies(self.model):
            return inputs
        alone = self.loss_type in SUMMED_LOSSES and self.top_entropy_quantile == 1 and not self._entropy_bonus_enabled
        size = math.gcd(self.args.steps_per_generation, self.args.gradient_accumulation_steps) if alone else 1
        batches, self._buffered_inputs = self._buffered_inputs, []
        for start in range(0, len(batches), size):
            self._buffered_inputs += reorder(batches[start : start + size], rows_by_prompt)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _generate_and_score_completions(self, inputs: list[Row]) -> Row:
        """TRL takes pictures, not paths: this is the last place at which a batch's images can be read."""
        training = self.model is not None and self.model.training
        return super()._generate_and_score_completions(self.read_images(inputs, training))

    def _generate(self, prompts: list) -> tuple:
        """TRL writes no images as `None`, which processors refuse beside images of other rows."""
        *rest, images, tool_images = super()._generate(prompts)
        return *rest, images and [of_row or [] for of_row in images], tool_images

    def _generate_single_turn(self, prompt_ids: list, images: list | None, *rest: Any, **options: Any) -> tuple:
        """TRL gives vLLM the pictures as they were read, and vLLM lays them out by the checkpoint's pixel budget."""
        if self.use_vllm and images is not None:
            images = self.settled(images)
        return super()._generate_single_turn(prompt_ids, images, *rest, **options)

    def _calculate_rewards(
        self, inputs: list[Row], prompts: list, completions: list, completion_ids_list: list[list[int]]
    ) -> torch.Tensor:
        """TRL has no callback that sees rollouts with their rewards."""
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self.on_rewards(inputs, prompts, completions, completion_ids_list, rewards)
        return rewards

    def read_images(self, rows: Sequence[Row], training: bool = False) -> list[Row]:
        """Returns rows whose images are pictures, of `training` ones perhaps augmented; here the rows as they are."""
        return list(rows)

    def settled(self, images: list[list[Any] | None]) -> list[list[Any] | None]:
        """Returns the pictures of each row as vLLM is given them; here as they are."""
        return images

    def on_rewards(
        self, inputs: list[Row], prompts: list, completions: list, ids: list[list[int]], rewards: torch.Tensor
    ) -> None:
        """Sees this process's rollouts, and the rewards (rows of all processes, rewards)."""

    def logged_extra(self, name: str) -> list[Any]:
        """Returns what rewards have logged by `log_extra` since TRL's last log."""
        return list(self._pending_extra_logs.get(name) or ())

    @torch.no_grad()
    def generated(self, rows: Sequence[Row], sampled: bool = False) -> list[list[int]]:
        """Answers prompts, one completion each, greedily or as rollouts are sampled; returns token ids up to the end
        token. With ZeRO-3 every process must ask for as many. TRL generates for its own loss alone; here its
        tokenization and backend are used.
        """
        prompts = [row["prompt"] for row in rows]
        if "images" in rows[0] or "image" in rows[0]:
            pictures = [row["images"] if "images" in row else [row["image"]] for row in rows]
            prompts = list(map(prepare_multimodal_messages, prompts, pictures))
        ids, images, fields = self._tokenize_prompts(prompts)
        with nullcontext() if sampled else self._without_sampling():
            return self._generate_single_turn(ids, images, fields, 1)[0]

    @contextmanager
    def _without_sampling(self) -> Iterator[None]:
        """Makes generation greedy for a while."""
        place = self.vllm_generation if self.use_vllm else self.generation_config
        values = {"temperature": 0.0, "top_p": 1.0} if self.use_vllm else {"do_sample": False}
        old = {name: getattr(place, name) for name in values}
        kwargs: dict[str, Any] = getattr(self, "generation_kwargs", {})
        self.generation_kwargs = {**kwargs, "do_sample": False}
        try:
            for name, value in values.items():
                setattr(place, name, value)
            yield
        finally:
            for name, value in old.items():
                setattr(place, name, value)
            self.generation_kwargs = kwargs
