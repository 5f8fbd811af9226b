"""Mixins of the trainers: evaluation without augmentation, the epoch in the collator, resuming with all weights.

They also write the model card.

Left out: everything that TRL's trainers do themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from copy import copy, deepcopy
from pathlib import Path
from typing import Any, Protocol, TypeVar

from accelerate.utils import is_peft_model
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.data.data_collator import DataCollator
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import TrainOutput

from ..errors import RSRLHFError, disk_full
from ..runs.files import FILLING, filling_folder
from ..runs.record import Run, run_of
from .divergence import FiniteMixin
from .model_card.card import write_model_card
from .row_check import Row, check_rows
from .run_start import begin_run, run_about, run_settings

Config = TypeVar("Config", bound=TrainingArguments)


def own_config(args: Config) -> Config:
    """Returns a copy of a trainer's config: trainers fill theirs in, and the caller's must not change.

    What stands for the process (devices, DeepSpeed) is shared: transformers knows it by its identity.
    """
    copied = copy(args)
    for name, value in vars(args).items():
        if isinstance(value, dict | list | AcceleratorConfig):
            setattr(copied, name, deepcopy(value))
    return copied


class ResumeMixin(FiniteMixin):
    """Mixed in before a TRL trainer whose weights must come back from a checkpoint."""

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: dict | None = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Trains, if no row has an error; `resume_from_checkpoint=True` resumes from the last whole checkpoint of
        the run that was begun in `output_dir` last. A checkpoint of another seed, data or model is refused, see
        [`run_start`][rs_rlhf.trainers.run_start].
        """
        rows = check_rows(
            self.checked_rows(), self.row_errors, self.accelerator, getattr(self.args, "image_root", None)
        )
        checkpoint = begin_run(self, resume_from_checkpoint, rows)
        return super().train(checkpoint, trial, ignore_keys_for_eval)

    def checked_rows(self) -> dict[str, Any]:
        """Returns the data sets, by `data` and `eval_data`, whose rows are looked at before the first step."""
        evaluated: Any = self.eval_dataset if self.args.eval_strategy != "no" else None
        named = (
            {f"_{name}": rows for name, rows in evaluated.items()} if isinstance(evaluated, dict) else {"": evaluated}
        )
        sets = {"data": self.train_dataset, **{f"eval_data{name}": rows for name, rows in named.items()}}
        return {name: rows for name, rows in sets.items() if hasattr(rows, "__len__") and hasattr(rows, "__getitem__")}

    def row_errors(self, row: Row) -> Iterable[RSRLHFError]:
        """Yields why a row cannot be trained on."""
        return ()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Trains an epoch. A run that was killed after its last checkpoint has no step left, but transformers would do
        one more.
        """
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Saves a checkpoint; a full disk is an [`OptionError`] that names it."""
        folder = Path(str(self.args.output_dir), f"checkpoint-{self.state.global_step}")
        with disk_full(folder):
            if self.args.should_save:  # an earlier one of this step is whole no more
                (folder / "trainer_state.json").unlink(missing_ok=True)
            super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        """Saves the random states of all processes before the trainer's state, which marks a whole checkpoint."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model, so that the folder of a killed process holds no half of one.

        A full disk is an [`OptionError`] that names the folder. Checkpoints are written in place: they count once they
        are whole.
        """
        folder = Path(output_dir or str(self.args.output_dir))
        tokenizer = getattr(self.processing_class, "tokenizer", self.processing_class)
        if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
            backend.no_padding()  # it keeps, and would be saved with, what its last call asked for
            backend.no_truncation()
        if _internal_call:
            with disk_full(folder):
                return super().save_model(str(folder), _internal_call)
        saving = filling_folder(folder) if self.args.should_save else nullcontext(folder / FILLING)
        with disk_full(folder), saving as new:
            self.accelerator.wait_for_everyone()  # the folder is there
            super().save_model(str(new), True)
            self.accelerator.wait_for_everyone()  # all have written
        self.accelerator.wait_for_everyone()  # the files are in their place
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)
        return None

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Saves the weights, and the model card beside them: peft would leave an empty one."""
        super()._save(output_dir, state_dict)
        self.write_card(Path(output_dir or str(self.args.output_dir)))

    def create_model_card(  # type: ignore[override]  # TRL's signature, of which transformers' is not the parent
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
        license: str | None = None,
        language: str | None = None,
    ) -> None:
        """Writes the model card of the `output_dir`, in place of TRL's and transformers', see
        [`model_card`][rs_rlhf.trainers.model_card]; a licence that the user has stated in an earlier one is kept.
        """
        if self.is_world_process_zero():
            stated = {"license": license, "language": language}
            self.write_card(Path(str(self.args.output_dir)), model_name, dataset_name, tags, stated)

    def write_card(
        self,
        folder: Path,
        name: str | None = None,
        dataset: str | None = None,
        tags: str | list[str] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Writes the card of the model in a folder."""
        state = {key: getattr(self.state, key) for key in ("global_step", "best_global_step", "log_history")}
        run = run_of(vars(self.state)) or Run.begun(run_settings(self, {}), about=run_about(self))
        output_dir, repo = Path(str(self.args.output_dir)), self.hub_model_id or self.args.hub_model_id
        named = name or (repo or output_dir.resolve().name).rpartition("/")[2]
        own = [tags] if isinstance(tags, str) else list(tags or ())
        write_model_card(
            folder,
            run,
            state,
            named,
            run_dir=output_dir,
            repo=self.hub_model_id,
            tags=[*getattr(self, "_tag_names", []), *own],
            dataset=dataset,
            citation=getattr(self, "_paper", {}).get("citation"),
            metadata=metadata,
        )

    def save_state(self) -> None:
        """Saves the state of the trainer, whole or not at all."""
        if self.is_world_process_zero():
            new = Path(str(self.args.output_dir), ".trainer_state.json.rs-rlhf.tmp")
            self.state.save_to_json(str(new))
            new.replace(new.with_name("trainer_state.json"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Loads a checkpoint's weights with `from_pretrained`, which knows Qwen2-VL's old key names.

        transformers reads the file as it is: none of the old names fits, and the run resumes from where the model
        started, with only a warning. Adapters keep transformers' way.
        """
        target: PreTrainedModel = self.model if model is None else model  # type: ignore[assignment]
        plain = not (is_peft_model(target) or self.is_fsdp_enabled)
        if not plain or not (Path(resume_from_checkpoint) / "config.json").is_file():
            return super()._load_from_checkpoint(resume_from_checkpoint, target)
        loaded = type(target).from_pretrained(
            resume_from_checkpoint, dtype=target.dtype, use_safetensors=True, trust_remote_code=False
        )
        target.load_state_dict(loaded.state_dict())
        return None

    def _load_best_model(self) -> None:
        """Loads the best checkpoint at the end of training, in the same way."""
        if self.is_deepspeed_enabled or self.is_fsdp_enabled or is_peft_model(self.model):
            return super()._load_best_model()
        return self._load_from_checkpoint(str(self.state.best_model_checkpoint))


class VisionTrainerMixin(ResumeMixin):
    """Mixed in before a TRL trainer with collators; `self.eval_collator` is set by the subclass."""

    eval_collator: DataCollator

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        """Gives the loaders of evaluation and `predict` the collator that does not augment."""
        train_collator = self.data_collator
        self.data_collator = train_collator if kwargs.get("is_training") else self.eval_collator
        try:
            return super()._get_dataloader(*args, **kwargs)
        finally:
            self.data_collator = train_collator


class HasEpoch(Protocol):
    """A collator whose augmentation depends on the epoch."""

    epoch: int


class SetEpoch(TrainerCallback):
    """Tells the collator the epoch, so that a sample is turned another way in each, resumed or not."""

    def __init__(self, collator: HasEpoch) -> None:
        self.collator = collator

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Sets `collator.epoch` before the workers of the epoch start."""
        self.collator.epoch = int(state.epoch or 0)
