"""`rs-rlhf COMMAND …`: finds the command and runs it; what a command does lives in its own module.

Modules are imported when their command runs, so that `rs-rlhf --help` answers at once. A mistake of the user ends in
one sentence on standard error and exit code 1; whatever else goes wrong keeps its traceback.

Left out: a command registry (the table below is all there is), shell completion.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from .. import __version__

# Command -> one line for --help, and `module:function` that takes the arguments and returns the exit code.
COMMANDS = {
    "reward": ("train a score model on preference pairs", "train_reward:command"),
    "sft": ("fine-tune a vision-language model on image-text data", "train_sft:command"),
    "grpo": ("improve a vision-language model with the score model as its reward", "train_grpo:command"),
    "serve": ("score over HTTP: the reward server", "server:main"),
    "report": ("write one HTML page about a training run, without W&B", "run_report:main"),
    "dashboard": ("lay out a W&B workspace for the runs of a project", "dashboard:main"),
    "eval": ("evaluate a model on benchmarks; compare and export results", "evaluate:main"),
    "best-of-n": ("sample N answers a question and let the score model choose", "best_of_n:main"),
    "score": ("score image-text data of any size, on any number of processes", "score_texts:main"),
    "curate": ("keep the best part of scored data, with a report", "curate:main"),
    "browse": ("look through scored data and move the cut, in a browser", "browse:main"),
    "clip": ("fine-tune a CLIP on image-text data", "train_clip:command"),
    "plot": ("draw the learning curve of a training run", "reports:main"),
    "demo": ("the whole path in minutes, on made-up scenes and a tiny model", "demo:main"),
    "data check": ("list every problem of preference files", "data_check:main"),
    "data pairs": ("make preference pairs from captioned or labelled images", "pair_files:main"),
    "data sample-pairs": ("make preference pairs from a policy's wrong answers", "sampled_pairs:main"),
    "data dpo": ("order candidate answers by a score model, for TRL's DPOTrainer", "preference_export:main"),
    "data damage": ("make a noisy pool of image-text rows, the damage known", "damaged_texts:main"),
    "data scenes": ("write made-up overhead scenes with captions and classes", "cli:write_scenes"),
    "tiny-clip": ("write a tiny random CLIP model", "tiny_clip:main"),
    "tiny-vlm": ("write a tiny random vision-language model", "cli:write_tiny_vlm"),
    "env": ("print the versions that a bug report needs", "cli:print_versions"),
}
PACKAGES = (
    "torch", "transformers", "trl", "accelerate", "deepspeed", "peft", "datasets", "qwen-vl-utils",
)  # fmt: skip
TINY_VLM_OPTIONS = {
    "hidden_size": "width of the language model",
    "num_layers": "layers of the language model",
    "vision_dim": "width of the vision tower",
    "vision_depth": "layers of the vision tower",
    "seed": "seed of the random weights",
    "num_heads": "attention heads of the language model",
    "vision_heads": "attention heads of the vision tower",
    "patch_size": "side of a vision patch in pixels",
    "min_pixels": "fewest pixels of an image; by default 4 image tokens",
    "max_pixels": "most pixels of an image; by default 1280 image tokens",
    "vocab_size": "size of the vocabulary at most",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv (sequence of `str`, *optional*): Arguments; those of the process when left out.

    Returns:
        `int`: Exit code: 0, or 1 after a mistake of the user.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(help_text())
        return 0 if argv else 1
    if argv[0] in ("-V", "--version"):
        print(f"rs-rlhf {__version__}")
        return 0
    name = " ".join(argv[:2]) if argv[0] == "data" else argv[0]
    if name in ("data", "data -h", "data --help"):
        print(help_text("data "))
        return 0 if name != "data" else 1
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        guess = f"; did you mean {near[0]!r}?" if near else "."
        print(f"rs-rlhf: no command {name!r}{guess} Commands: {', '.join(COMMANDS)}.", file=sys.stderr)
        return 1
    module, function = COMMANDS[name][1].split(":")
    try:
        return getattr(import_module(f"rs_rlhf.{module}"), function)(argv[len(name.split()) :])
    except SystemExit as stop:  # argparse: 0 after --help, 2 after an error that it has told
        return 1 if stop.code else 0
    except (ValueError, OSError) as error:
        if not is_told(error):
            raise
        print(f"rs-rlhf {name}: {sentence(error)}", file=sys.stderr)
        return 1


def help_text(prefix: str = "") -> str:
    """Returns the help of all commands, or of those whose names begin with `prefix`."""
    lines = [f"  {name:<18} {text}" for name, (text, _) in COMMANDS.items() if name.startswith(prefix)]
    return "\n".join(
        [
            f"usage: rs-rlhf [--version] {prefix.upper()}COMMAND …",
            "",
            "RLHF for remote-sensing vision-language models, on top of TRL.",
            "",
            *lines,
            "",
            "`rs-rlhf COMMAND --help` lists a command's options.",
        ]
    )


def is_told(error: Exception) -> bool:
    """Whether an error's message is written for the user: one of our own classes, or raised by our own code."""
    from ..data.group import DataError
    from ..declarations import DeclarationError
    from ..imagery.raster import ImageError

    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    return isinstance(error, DataError | DeclarationError | ImageError) or raised_in.parent == Path(__file__).parent


def sentence(error: Exception) -> str:
    """Returns the message of an error; of one from a data-loader worker, which comes as a traceback, the last line."""
    text = str(error).strip()
    if "Original Traceback" in text:
        text = text.splitlines()[-1].partition(": ")[2]
    return text


def write_scenes(argv: Sequence[str]) -> int:
    """`rs-rlhf data scenes FOLDER`: writes made-up scenes; see [`rs_rlhf.data.scenes.write_scenes`]."""
    parser = argparse.ArgumentParser(
        prog="rs-rlhf data scenes", description="Write made-up overhead scenes with captions and classes."
    )
    parser.add_argument("path", metavar="FOLDER", help="folder to write to: images, train.jsonl, validation.jsonl")
    parser.add_argument("--n_train", type=int, default=1000, help="training scenes (default: 1000)")
    parser.add_argument("--n_validation", type=int, default=200, help="validation scenes (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data (default: 0)")
    parser.add_argument("--size", type=int, default=112, help="edge of an image in pixels (default: 112)")
    args = parser.parse_args(argv)

    from ..data import scenes

    scenes.write_scenes(args.path, args.n_train, args.n_validation, args.seed, args.size)
    print(f"{args.n_train} training and {args.n_validation} validation scenes -> {args.path}")
    return 0


def write_tiny_vlm(argv: Sequence[str]) -> int:
    """`rs-rlhf tiny-vlm FOLDER`: writes a tiny random model; see [`rs_rlhf.models.tiny_vlm.save_tiny_vlm`]."""
    from ..data.captioned_images import image_texts
    from ..models.tiny_vlm import save_tiny_vlm

    parser = argparse.ArgumentParser(
        prog="rs-rlhf tiny-vlm", description="Write a tiny random vision-language model with its processor."
    )
    parser.add_argument("path", metavar="FOLDER", help="folder to write to")
    defaults = {name: value.default for name, value in inspect.signature(save_tiny_vlm).parameters.items()}
    for name, text in TINY_VLM_OPTIONS.items():
        default = "" if defaults[name] is None else f" (default: {defaults[name]})"
        parser.add_argument(f"--{name}", type=int, default=defaults[name], help=text + default)
    parser.add_argument("--family", default=defaults["family"], help="qwen2_vl (default), qwen2_5_vl or qwen3_vl")
    parser.add_argument(
        "--texts",
        metavar="PATH[:SPLIT]",
        help="captioned or labelled images, as for `rs-rlhf data pairs --input`; their texts train the tokenizer",
    )
    options = vars(parser.parse_args(argv))
    path, data = options.pop("path"), options.pop("texts")
    save_tiny_vlm(path, texts=None if data is None else image_texts(data), **options)
    print(f"Tiny {options['family']} model -> {path}")
    return 0


def print_versions(argv: Sequence[str]) -> int:
    """`rs-rlhf env`: prints versions and the device."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    argparse.ArgumentParser(prog="rs-rlhf env", description=COMMANDS["env"][0]).parse_args(argv)
    lines = {"rs-rlhf": __version__, "python": f"{platform.python_version()} ({platform.platform()})"}
    for name in PACKAGES:
        try:
            lines[name] = version(name)
        except PackageNotFoundError:
            lines[name] = "not installed"
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    lines["device"] = ", ".join(gpus) or f"cpu ({torch.get_num_threads()} threads)"
    print("\n".join(f"{name:<14} {text}" for name, text in lines.items()))
    return 0
