"""`rs-rlhf clip`: image-text data and a dual encoder in, a fine-tuned dual encoder out.

Left out: mixtures of data sets with weights, streaming, and rows with several images.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ..errors import OptionError
from ..trainers.options import ClipOptions, ClipScriptArguments
from .training import Training, check_common, model_options, train

if TYPE_CHECKING:
    from trl import ModelConfig

    from ..trainers.clip import VisionClipConfig


def main(script_args: ClipScriptArguments, training_args: VisionClipConfig, model_args: ModelConfig) -> None:
    """Trains, evaluates and saves a dual encoder."""
    from ..data.image_text_dataset import open_image_texts
    from ..data.survey import announce_texts
    from ..models.clip import ClipModel
    from ..trainers.clip import ClipTrainer
    from ..trainers.data.clip import load_pairs, read_tasks, warn_cut

    if model_args.use_peft or model_args.load_in_4bit or model_args.load_in_8bit:
        raise OptionError("use_peft, load_in_4bit and load_in_8bit are not supported for a dual encoder.", "use_peft")
    check_common(script_args.dataset_name, training_args, model_args)
    if (limit := script_args.max_train_samples) is not None and limit < 1:
        raise OptionError(f"max_train_samples is {limit}; it must be at least 1.", "max_train_samples")
    tasks = read_tasks(script_args.eval_tasks or (), script_args.eval_data_root)
    name, split = str(script_args.dataset_name), script_args.dataset_train_split
    reading: dict[str, Any] = {"image_root": training_args.image_root, "columns": script_args.named_columns()}
    announce_texts(open_image_texts(name, split, **reading), training_args.image_root)
    with training_args.main_process_first(desc="reading the pairs"):
        pairs = load_pairs(name, split, **reading, limit=limit, seed=training_args.seed)
    clip = ClipModel.from_pretrained(str(model_args.model_name_or_path), **model_options(model_args, dtype="float32"))
    trainer = ClipTrainer(clip.model, training_args, clip.processor, pairs, tasks)
    trainer.accelerator.print(f"{len(pairs)} pairs of {len(pairs.rows)} images in {script_args.dataset_name}")
    if trainer.accelerator.is_main_process:
        warn_cut(pairs, clip)
    done = f"Model saved to {os.path.abspath(str(training_args.output_dir))}; see how it does with"
    hint = f"  rs-rlhf eval --model {training_args.output_dir} --model-type clip --task TASK"
    train(trainer, script_args, evaluate=bool(tasks), done=[done, hint])


training = Training(
    "clip",
    "Fine-tune a CLIP or SigLIP on image-text data.",
    ClipScriptArguments,
    ClipOptions,
    "trainers.clip:VisionClipConfig",
    main,
)
