"""Training data of `rs-rlhf reward`: preference files, folders and Hub ids as a training and an evaluation set.

Left out: data-set mixtures beyond a list of files, and streaming.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...data.rows import common_folder, split_paths
from ...errors import DataError
from ...preferences.reader import load_with_images

if TYPE_CHECKING:
    from datasets import Dataset

    from ..options import RewardScriptArguments
    from ..reward import VisionRewardConfig


def load_data(script_args: RewardScriptArguments, training_args: VisionRewardConfig) -> tuple[Dataset, Dataset | None]:
    """Reads the training and evaluation sets.

    Without `image_root`, relative image paths start from the folder of their own file, and `image_root` becomes the
    folder that holds all of these; so no row can name an image outside the data's own folders.
    """
    names, split = split_paths(script_args.dataset_name or ()), script_args.dataset_train_split
    eval_names, eval_split = split_paths(script_args.eval_dataset_name or ()), None
    if not eval_names and training_args.eval_strategy != "no":
        if plain := [name for name in names if Path(name.removeprefix("rsrm:")).is_file()]:
            raise DataError(
                f"eval_strategy asks for evaluation, but the file {plain[0]} has no splits; give --eval_dataset_name, "
                "or --eval_strategy no",
                "eval_dataset_name",
            )
        split, eval_names, eval_split = split or "train", names, script_args.dataset_test_split

    given = training_args.image_root
    if given is None:
        training_args.image_root = common_folder([*names, *eval_names])
    columns = script_args.named_columns()
    train_set, _ = load_with_images(names, split, given, columns)
    return train_set, load_with_images(eval_names, eval_split, given, columns)[0] if eval_names else None
