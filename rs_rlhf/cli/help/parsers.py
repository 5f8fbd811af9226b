"""Parsers of the training commands without torch: for help, for completion, and for checks before the start.

TRL's own parser, which is made after the start, has the last word on every value.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...errors import OptionError
from ...options import Help, Parser, add_options, check_model_name, check_place, check_reads, switch
from .table import known_options

if TYPE_CHECKING:
    from ..training import Training

# The options of TRL and transformers that `--help` shows.
MOST_USED = {
    "Model and LoRA": "model_name_or_path dtype attn_implementation use_peft lora_r lora_alpha lora_target_modules",
    "Run": "output_dir resume_from_checkpoint seed use_cpu report_to run_name",
    "Optimisation": "learning_rate lr_scheduler_type warmup_steps num_train_epochs max_steps "
    "per_device_train_batch_size gradient_accumulation_steps activation_checkpointing bf16 dataloader_num_workers",
    "Evaluation, log and checkpoints": "eval_strategy eval_steps per_device_eval_batch_size logging_steps "
    "save_strategy save_steps save_total_limit",
    "Answers and their loss": "num_generations max_completion_length temperature beta loss_type reward_weights "
    "use_vllm vllm_mode desirable_weight undesirable_weight",
}
OTHERS = "Other options of TRL and transformers"
TRACKERS = (
    "Where figures are logged: wandb (also offline), trackio (a dashboard on this machine; pip install trackio, then "
    "`trackio show`), tensorboard, several of them, or none."
)
TYPES: dict[str, Any] = {"int": int, "float": float, "bool": switch, "str": str}


def training_parser(training: Training, everything: bool = True) -> Parser:
    """Returns a training command's parser: our options, then TRL's, all of them or the most used."""
    prog = f"rs-rlhf {training.name}"
    parser = Parser(prog=prog, description=training.description, formatter_class=Help, allow_abbrev=False)
    parser.usage = f"{prog} [--config RECIPE] [option …]"
    add_start(parser)
    add_options(parser, training.data, valued=True, titled=True)
    add_options(parser, training.options, valued=True, titled=True)
    add_others(parser, known_options(training.name), everything)
    return parser


def add_start(parser: argparse.ArgumentParser) -> None:
    """Adds what says how a training starts, and `--help_all`."""
    parser.add_argument("--help_all", "--help-all", action="store_true", help="all options of TRL too, and exit")
    parser.add_argument("--config", metavar="RECIPE", help="YAML file whose keys are the flags, or a name in recipes/")
    parser.add_argument(
        "--accelerate_config",
        "--accelerate-config",
        metavar="NAME",
        help="train with several processes: a name in accelerate_configs/, or a YAML file; the flags of `accelerate "
        "launch`, such as --num_processes 2, are taken too",
    )


def add_others(parser: argparse.ArgumentParser, options: Sequence[dict[str, Any]], everything: bool) -> None:
    """Adds options of TRL in their groups; the most used, or everything."""
    entries = {entry["name"]: entry for entry in options}
    for title, names in MOST_USED.items():
        shown = [entries.pop(name) for name in names.split() if name in entries]
        group = parser.add_argument_group(title) if shown else parser
        for entry in shown:
            _add_other(group, entry)
    if everything:
        group = parser.add_argument_group(OTHERS)
        for entry in entries.values():
            _add_other(group, entry)


def _add_other(group: Any, entry: dict[str, Any]) -> None:
    text = TRACKERS if entry["name"] == "report_to" else entry.get("help", "")
    default = entry.get("default")
    if default is not None and default != []:
        shown = " ".join(map(str, default)) if isinstance(default, list) else str(default)
        text += f" (default: {shown.lower() if isinstance(default, bool) else shown})".replace("%", "%%")
    settings: dict[str, Any] = {"dest": entry["name"], "type": TYPES[entry["type"]], "help": text}
    settings |= {key: entry[key] for key in ("nargs", "choices", "default") if key in entry}
    if entry.get("nargs") == "?":
        settings["const"] = True
    group.add_argument(*entry["flags"], **settings)
    if "off" in entry:
        group.add_argument(*entry["off"], dest=entry["name"], action="store_false", help=argparse.SUPPRESS)


def check_start(training: Training, parser: argparse.ArgumentParser, flags: Sequence[str]) -> None:
    """Refuses flags, values and paths of a training command that could not be used, before torch is imported.

    `parser` has the recipe's values as its defaults.
    """
    values = vars(parser.parse_args(list(flags)))
    check_given(values)
    for cls in (training.data, training.options):
        check_reads(cls, values)
    if values.get("output_dir") is not None:
        check_place(str(values["output_dir"]), "folder", "output_dir")


def check_given(values: Mapping[str, Any]) -> None:
    """Refuses a training without data or a model, or with a model that cannot be one."""
    for name in ("dataset_name", "model_name_or_path"):
        if not values.get(name):
            raise OptionError(f"no {name}; give --{name}, or a recipe with it (--config).", name)
    check_model_name(str(values["model_name_or_path"]))
