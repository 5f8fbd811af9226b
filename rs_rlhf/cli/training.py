"""What the training commands share: help and parser, refused options, the model's loading options, the run itself.

Left out: how a command starts, here or through `accelerate launch` (see `launch`).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..declarations import in_the_box
from ..errors import OptionError
from ..runs.files import write_json
from .arguments import split_arguments
from .help.parsers import check_given, check_start, training_parser
from .help.table import stored

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments
    from trl import ModelConfig

    from .launch import TrainingParser


@dataclass(frozen=True)
class Training:
    """A training command: its options, and the function that trains with them.

    Args:
        name, description (`str`): The command's name, and the first line of its help.
        data, options (`type`): Dataclasses of our own options.
        config (`str`): `module:class` of the trainer's config, which has `options` and TRL's.
        main (callable): Trains; takes a `data`, a `config` and a `ModelConfig`.
    """

    name: str
    description: str
    data: type
    options: type
    config: str
    main: Callable[..., None]

    def __call__(self, argv: Sequence[str]) -> int:
        """Trains here or through `accelerate launch`, and returns the exit code.

        `--help` needs no torch, and what is wrong with the flags and paths is told before torch is imported.
        """
        everything = bool({"--help_all", "--help-all"} & {*argv})
        if everything or {"-h", "--help"} & {*argv}:
            training_parser(self, everything).print_help()
            return 0
        if stored():
            parser = training_parser(self)
            _, flags, _ = split_arguments(parser, argv)
            check_start(self, parser, flags)
        quietly_import_transformers()
        from .launch import run

        return run(self.name, self.parser(), self.main, argv)

    def parser(self) -> TrainingParser:
        """Returns the command's parser, whose flags are the fields of the three dataclasses."""
        from trl import ModelConfig

        from .launch import TrainingParser

        module, config = self.config.split(":")
        options = (self.data, getattr(import_module(f"rs_rlhf.{module}"), config), ModelConfig)
        return TrainingParser(options, f"rs-rlhf {self.name}")


def quietly_import_transformers() -> None:
    """Imports the part of transformers that prints a line where `WANDB_MODE` is offline, without the line."""
    with redirect_stdout(io.StringIO()):
        import_module("transformers.integrations.integration_utils")


def check_common(
    dataset_name: str | None, training_args: TrainingArguments, model_args: ModelConfig, *, pads: bool = True
) -> None:
    """Refuses what every training command refuses: no data, no model, and TRL's options that would be ignored.

    `pads` says whether the trainer reads `pad_to_multiple_of`. A model in the box becomes its folder.
    """
    check_given({"dataset_name": dataset_name, "model_name_or_path": model_args.model_name_or_path})
    model_args.model_name_or_path = in_the_box(str(model_args.model_name_or_path))
    if model_args.load_in_4bit or model_args.load_in_8bit:
        raise OptionError("load_in_4bit and load_in_8bit are not supported; use LoRA in bf16.", "load_in_4bit")
    if not pads and getattr(training_args, "pad_to_multiple_of", None):
        raise OptionError(
            "pad_to_multiple_of is not supported: batches are padded to their longest row.", "pad_to_multiple_of"
        )
    if not 0 <= training_args.seed < 2**32:
        raise OptionError(f"seed is {training_args.seed}, expected a number from 0 to 4294967295.", "seed")
    if training_args.eval_on_start and training_args.eval_strategy == "no":
        raise OptionError(
            "eval_on_start with eval_strategy no; give --eval_on_start false, or an eval_strategy.", "eval_on_start"
        )


def model_options(
    model_args: ModelConfig, given: dict | str | None = None, dtype: str | None = None
) -> dict[str, Any]:
    """Returns the keyword arguments of `from_pretrained` that the options set; `given` (`model_init_kwargs`) win, and
    `dtype` holds unless one is set.
    """
    options: dict[str, Any] = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype or dtype,
    }
    options |= given if isinstance(given, dict) else {}
    return {name: value for name, value in options.items() if value is not None}


def train(trainer: Trainer, script_args: Any, evaluate: bool, done: Sequence[str]) -> None:
    """Trains from the start or a checkpoint, saves model, card and state, and prints the lines of `done`.

    With `evaluate`, the last step is evaluated once, and `eval_results.json` written. SIGINT and SIGTERM end the
    training after its step, with a checkpoint.
    """
    from .stopping import stopping

    args: Any = trainer.args
    trainer.data_names = data_names(script_args, trainer.eval_dataset is not None)  # type: ignore[attr-defined]  # for the record of the run
    with stopping(trainer):
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model(args.output_dir)
    if evaluate:
        metrics = last_metrics(trainer) or trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        for name in ("eval_results.json", "all_results.json") * trainer.is_world_process_zero():
            write_json(Path(str(args.output_dir), name), metrics)  # save_metrics reads what a killed run left of them
    trainer.save_state()
    if args.push_to_hub:  # with the figures of this evaluation
        trainer.push_to_hub(revision=args.hub_revision)
    else:
        trainer.create_model_card()
    trainer.accelerator.print("\n".join(done))
    if hasattr(trainer, "end"):  # transformers 5.18: closes the trackers and the process group
        trainer.end()


def data_names(script_args: Any, evaluated: bool) -> dict[str, Any]:
    """Returns the names of the data as they were given: `data`, `eval_data`, and their splits."""
    named = {"data": script_args.dataset_name, "split": script_args.dataset_train_split}
    if evaluated:
        own = getattr(script_args, "eval_dataset_name", None) or getattr(script_args, "eval_tasks", None)
        split = None if own else getattr(script_args, "dataset_test_split", None)
        named |= {"eval_data": own or script_args.dataset_name, "eval_split": split}
    return {key: value for key, value in named.items() if value}


def last_metrics(trainer: Trainer) -> dict[str, float]:
    """Returns the evaluation metrics of the last step; empty if it has not been evaluated."""
    state = trainer.state
    found: dict[str, float] = {}
    for entry in state.log_history:
        if entry["step"] == state.global_step:
            found |= {name: value for name, value in entry.items() if name.startswith("eval_")}
    return found
