"""Preference files with their images: what `rs-rlhf reward` and `rs-rlhf eval` read, in the same way.

Left out: reading rows, which is `readers`, and reading pixels, which is `imagery`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..data.rows import common_folder, image_folder, load_preferences, split_paths

if TYPE_CHECKING:
    from datasets import Dataset


def load_with_images(
    names: str | Sequence[str], split: str | None = None, image_root: str | None = None
) -> tuple[Dataset, str]:
    """Loads preference files, and says which folder their images may not leave.

    Without `image_root`, relative image paths start from the folder of their own file.

    Args:
        names (`str` or list): Files, folders and Hub ids, as for [`load_preferences`].
        split (`str`, *optional*): Split of a folder or Hub id.
        image_root (`str`, *optional*): Folder that all relative image paths start from.

    Returns:
        `tuple`: The rows, and the `image_root` to read their images with: the given one, or [`common_folder`].

    Raises:
        DataError: Unreadable data, or files that share no folder.
    """
    from datasets import concatenate_datasets

    files = split_paths(names)
    if image_root is not None:
        return load_preferences(files, split), image_root
    root = common_folder(files)
    return concatenate_datasets([load_preferences(file, split, image_folder(file)) for file in files]), root
