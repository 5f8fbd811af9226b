"""Start of a training run: what it is of, whether a checkpoint may be resumed from, and the record of it on the disk.

A run is of a seed, rows as the model sees them, a model, what of it is trained, and who rewards it: with another one
of these the curves before and after a checkpoint would not be of one experiment, so it is not resumed. How long and
how it is trained (steps, epochs, batch size, processes, learning rate and its schedule, weights of the loss, what is
logged, evaluated and saved) may change, as with transformers' `Trainer`. Evaluation rows may be added or left out, but
not replaced.

Left out: rows of streaming data sets, a hub model's revision, and reward functions other than the score model.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields
from enum import Enum
from typing import Any, cast

from accelerate.utils import gather_object, is_peft_model
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import OptionError, RSRLHFError
from ..imagery.arguments import RenderingOptions
from ..models.pixel_budget import has_budget, pixel_budget
from ..runs.checkpoints import parsed_state, resolve_resume, resume_value
from ..runs.files import differences, of_another_run
from ..runs.folder import NEW, refuse_both, remove_run
from ..runs.progress import versions
from ..runs.record import KEY, Run, command_line, run_of, without_secrets, write_run
from ..scoring.base import raise_first
from ..scoring.cards import model_stamp
from ..scoring.several import SeveralOptions, is_url, model_names

OPTIONS = (
    *("seed", "data_seed", "trainable", "image_blind", "min_pixels", "max_pixels", "reward", "score_model"),
    *("format_weight", "profile", "solution_unit", "pairing", "reward_weights"),
)
# Options that are told of a run even if they have their defaults, and those that say nothing of it.
TOLD = (
    *("seed", "learning_rate", "lr_scheduler_type", "optim", "per_device_train_batch_size", "weight_decay"),
    *("gradient_accumulation_steps", "num_train_epochs", "max_steps", "trainable"),
)
UNTOLD = (
    *("output_dir", "logging_dir", "run_name", "model_init_kwargs", "accelerator_config", "local_rank", "debug"),
    *("disable_tqdm", "report_to", "overwrite_output_dir", "push_to_hub", "dataloader_pin_memory"),
    *("gradient_checkpointing", "gradient_checkpointing_kwargs"),  # old names of `activation_checkpointing`
)


class StampState(TrainerCallback):
    """Writes the run into the state of a training, which each checkpoint keeps."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Writes it: the state has been made, or read from the checkpoint."""
        cast("dict[str, Any]", state.stateful_callbacks)[KEY] = dict(vars(self.run))


def begin_run(trainer: Trainer, resume: str | bool | None, rows: Mapping[str, str]) -> str | None:
    """Begins a run, or the next part of one; the first process decides for all.

    Args:
        trainer (`Trainer`): The training that begins.
        resume (`str` or `bool`, *optional*): `resume_from_checkpoint`.
        rows (mapping): Fingerprints of the data sets, by `data`, `eval_data` and the like.

    Returns:
        `str` or `None`: The checkpoint to resume from.

    Raises:
        OptionError: The checkpoint is of another seed, data, model, or of other trained parts; or `resume` and
            `overwrite_output_dir` are both given.
    """
    args = trainer.args
    begun: tuple[str | None, Run] | RSRLHFError | None = None
    if trainer.is_world_process_zero():
        try:
            begun = _begun(trainer, resume, rows)
        except RSRLHFError as error:
            begun = error
    begun = gather_object([begun])[0]
    raise_first([begun])
    checkpoint, run = cast("tuple[str | None, Run]", begun)
    if trainer.is_world_process_zero():
        if getattr(args, "overwrite_output_dir", False):
            remove_run(str(args.output_dir))
        write_run(run, str(args.output_dir))
    trainer.accelerator.wait_for_everyone()
    trainer.pop_callback(StampState)
    trainer.add_callback(StampState(run))
    return checkpoint


def _begun(trainer: Trainer, resume: str | bool | None, rows: Mapping[str, str]) -> tuple[str | None, Run]:
    refuse_both(resume_value(resume), getattr(trainer.args, "overwrite_output_dir", False))
    checkpoint = resolve_resume(resume, str(trainer.args.output_dir))
    settings, about = run_settings(trainer, rows), run_about(trainer)
    if checkpoint is None:
        return None, Run.begun(settings, about=about)
    state = parsed_state(checkpoint) or {}
    earlier, step = run_of(state), int(state.get("global_step", 0))
    if earlier is None:
        print(
            f"{checkpoint} does not say of which seed, data and model it is (an earlier version has written it); it "
            "is resumed from unchecked.",
            file=sys.stderr,
        )
    elif told := setting_differences(earlier.settings, settings):
        anew = "pass --overwrite_output_dir in place of --resume_from_checkpoint to start anew"
        raise OptionError(
            of_another_run("weights", told, "set that back", NEW, anew), next(iter(told)), str(checkpoint)
        )
    return checkpoint, Run.begun(settings, earlier, step, about)


def setting_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Returns in words what differs between two runs, by key; data sets that only one of them knows are left out."""
    told = differences(old, new)
    if len(told) > 1:
        told.pop("trained_parameters", None)  # it follows from the others
    rows = {key for key in told if key == "data" or key.startswith("eval_data")}
    return {key: text for key, text in told.items() if key not in rows or (key in old and key in new)}


def run_settings(trainer: Trainer, rows: Mapping[str, str]) -> dict[str, Any]:
    """Returns what must not change when a run is resumed, as JSON can hold it."""
    args, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    settings = {name: value for name in OPTIONS if (value := getattr(args, name, None)) is not None}
    if settings.get("data_seed") == args.seed:  # as by default
        del settings["data_seed"]
    if is_url(settings.get("score_model")):
        del settings["score_model"]  # a server may be another one after a restart
    if isinstance(args, RenderingOptions):
        reading = args.reader_options().recorded()
        settings["reading"] = {key: value for key, value in reading.items() if key != "max_image_pixels"}
    base = model.get_base_model() if is_peft_model(model) else model
    settings["model"] = base.config._name_or_path or type(base).__name__
    for name in ("model", "score_model"):
        if (path := settings.get(name)) is not None:
            settings[f"{name}_hash"] = model_stamp(path)
            places = [os.path.abspath(one) if os.path.isdir(one) else one for one in model_names(path)]
            settings[name] = ",".join(places)
    if isinstance(args, SeveralOptions):
        settings |= args.combination(settings.get("score_model"))
    trained = [weights for weights in model.parameters() if weights.requires_grad]
    settings["trained_parameters"] = sum(getattr(weights, "ds_numel", weights.numel()) for weights in trained)
    settings["lora"] = _adapter(model) if is_peft_model(model) else None
    return json.loads(json.dumps({**settings, **rows}, default=_plain))


def run_about(trainer: Trainer) -> dict[str, Any]:
    """Returns what is told of a run beside its settings, see [`Run`], as JSON can hold it."""
    args, processor = trainer.args, trainer.processing_class
    model = trainer.accelerator.unwrap_model(trainer.model)
    base = model.get_base_model() if is_peft_model(model) else model
    about: dict[str, Any] = {
        "trainer": type(trainer).__name__,
        "method": getattr(trainer, "method", type(trainer).__name__),
        "makes": what_is_made(trainer, base),
        "command": command_line(),
        "data": getattr(trainer, "data_names", {}),
        "config": given_options(args),
        "processes": args.world_size,
        "versions": versions("trl", "transformers", "torch", "datasets", "tokenizers", "accelerate", "peft"),
    }
    if has_budget(processor):
        about["pixel_budget"] = pixel_budget(cast("Any", processor))
    if (positions := getattr(base.config, "positions", None)) is not None:
        about["positions"] = positions
    return json.loads(json.dumps(about, default=_plain))


def what_is_made(trainer: Trainer, model: Any) -> str:
    """Returns what the weights of a training are: a name of [`MADE`][rs_rlhf.trainers.model_card.card]."""
    if hasattr(model, "get_image_features") and hasattr(model, "get_text_features"):
        return "dual encoder"
    if getattr(trainer, "method", "") == "reward":
        return "text classifier" if getattr(trainer, "text_only", False) else "score model"
    return "policy" if hasattr(model.config, "vision_config") else "language model"


def given_options(args: TrainingArguments) -> dict[str, Any]:
    """Returns the options of a training that are not their defaults, and those of [`TOLD`], by name; no secrets."""
    found = {}
    for entry in fields(args):
        value = getattr(args, entry.name, None)
        usual = entry.default if entry.default_factory is MISSING else entry.default_factory()
        if entry.name in TOLD or value != usual:
            found[entry.name] = value.value if isinstance(value, Enum) else value
    kept = {name: value for name, value in found.items() if isinstance(value, str | int | float | list | dict)}
    texts = {name: without_secrets(value) for name, value in kept.items() if isinstance(value, str)}
    return {
        name: value for name, value in (kept | texts).items() if name not in UNTOLD and not name.endswith("_token")
    }


def _adapter(model: Any) -> dict[str, Any]:
    """The options of an adapter that are not their defaults."""
    config = next(iter(model.peft_config.values()))
    usual, given = type(config)().to_dict(), config.to_dict()
    chosen = {key for key, value in given.items() if value != usual.get(key)} | {"r", "lora_alpha"}
    chosen -= {"base_model_name_or_path", "inference_mode", "revision", "task_type", "auto_mapping", "peft_version"}
    return {key: given[key] for key in sorted(chosen & set(given))}


def _plain(value: object) -> object:
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)
