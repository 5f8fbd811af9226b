"""Preference rows as the reward trainer takes them: read from files, laid out as batches, and with other images.

Left out: data-set mixtures beyond a list of files, and streaming from files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset

from ...data.group import Group
from ...data.other_images import other_images, picture_keys
from ...data.rows import common_folder, split_paths
from ...errors import DataError
from ...imagery.sources import DEFAULTS, ImageOptions, ImageSource
from ...models.collator import GroupCollator, without_images
from ...preferences.reader import Form, load_with_images
from ...preferences.schema import group_from_row

if TYPE_CHECKING:
    from ..options import RewardScriptArguments

ROW = "_row"  # column with a row's place in its data set, by which repeated evaluation rows are told
LABELS = ("source", "kind", "id")  # columns that only name a row: what is no name there is left alone
UNREAD = ("tools", "chat_template_kwargs")  # columns that TRL hands to the chat template
TOKENS = ("chosen_ids", "chosen_input_ids")


def load_data(
    script_args: RewardScriptArguments, training_args: Any, form: Form = "groups"
) -> tuple[Dataset, Dataset | None]:
    """Reads the training and evaluation sets, in a form of [`load_preferences`].

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
    train_set, _ = load_with_images(names, split, given, columns, form)
    return train_set, load_with_images(eval_names, eval_split, given, columns, form)[0] if eval_names else None


def row_group(row: Mapping[str, Any], labelled: bool = False) -> Group:
    """Returns a row of a data set as a group; a column that only names the row may hold anything. One that is
    `labelled` has a `completion` in place of `chosen` and `rejected`.

    Raises:
        DataError: The row cannot be laid out, or has something for a chat template that is not read.
    """
    number, where = row.get(ROW, -1), str(row.get("where") or "")
    unread = UNREAD if labelled or "chosen" in row else TOKENS
    if given := next((name for name in unread if row.get(name)), None):
        reason = "is not read by a score model, whose processor lays out the columns prompt, chosen and rejected"
        reason += "; give texts or messages there, and leave it out"
        raise DataError(f"`{given}` {reason}", given, where or (f"row {number}" if number >= 0 else ""))
    read = {name: value for name, value in row.items() if name not in LABELS or isinstance(value, str | float | int)}
    return group_from_row(read, number, where, labelled=labelled)


class PreferenceCollator:
    """Lays preference rows out as groups, with the margin and what the metrics need to know of each row.

    Args:
        groups ([`GroupCollator`]): The one layout.
        image_blind (`bool`): Leave the images and their placeholders out.

    Returns (on call):
        `dict`: The group batch, `margin` and `sizes` (number of completions) of shape (B,), and `records`, one `dict`
        per row: `index`, `kind`, `source`.
    """

    def __init__(self, groups: GroupCollator, image_blind: bool = False) -> None:
        self.groups = groups
        self.image_blind = image_blind

    def group(self, row: Mapping[str, Any]) -> Group:
        """Returns a row as the group that is laid out."""
        group = row_group(row)
        return without_images(group) if self.image_blind else group

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Lays out the rows."""
        samples = [self.group(row) for row in rows]
        batch: dict[str, Any] = self.groups(samples)
        batch["margin"] = torch.tensor([sample.margin for sample in samples])
        batch["sizes"] = torch.tensor([len(sample.completions) for sample in samples])
        batch["records"] = [
            {"index": row.get(ROW, -1), "kind": sample.kind, "source": sample.source}
            for row, sample in zip(rows, samples, strict=True)
        ]
        return batch


class ShuffledImages(torch.utils.data.Dataset):
    """Rows with another row's images, see [`other_images`], for the image-shuffle gap.

    Args:
        dataset (`Dataset`): Preference rows; those without images are left out.
        limit (`int`): Rows at most, drawn at random.
        seed (`int`): Seed of the draw.
        options ([`ImageOptions`]): How images are read, to tell which are the same picture.
    """

    def __init__(self, dataset: Dataset, limit: int, seed: int, options: ImageOptions = DEFAULTS) -> None:
        self.dataset = dataset
        self.column = "images" if "images" in dataset.column_names else "image"
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(dataset), generator=generator).tolist()
        drawn: dict[int, list[ImageSource]] = {}
        for i in order[: 4 * limit] if self.column in dataset.column_names else ():
            images = dataset[i][self.column]
            if images and len(drawn) < limit:
                drawn[i] = images if isinstance(images, list) else [images]
        rows = list(drawn)
        partners = other_images(picture_keys(drawn.values(), options))
        self.pairs = [(i, rows[j]) for i, j in zip(rows, partners, strict=True) if j is not None]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, place: int) -> dict[str, Any]:
        row, partner = self.pairs[place]
        return {**self.dataset[row], self.column: self.dataset[partner][self.column]}
