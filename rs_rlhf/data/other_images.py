"""Another row's image: the one rule of every shuffle control (training, evaluation, reward and rollout audit).

A model that looks at images scores worse when a row is shown another row's image. The pictures and the seed alone
determine which one: the distinct pictures form a circle in an order drawn by the seed, and each row is shown the next
picture on it. So the order of the rows, repeated rows and the number of processes do not matter, every picture is
shown about as often as before, and no row is shown its own picture under another name.

Left out: hard controls (an image of the same class).
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

from ..errors import ImageError
from ..imagery.identity import encoded_hash, pixel_hash, source_key
from ..imagery.sources import DEFAULTS, ImageOptions, ImageSource
from .group import Group


def other_images(keys: Sequence[Sequence[Hashable]], seed: int = 0) -> list[int | None]:
    """Returns for each row the number of the row whose images it is shown instead of its own.

    `keys` are those of each row's images, see [`picture_keys`]; equal keys are the same picture. The other row has as
    many images, none of which the row has itself; `None` if the row has no images or there is no such row.

    Example:
        >>> other_images([["a"], ["b"], ["a"], []])
        [1, 0, 1, None]
    """
    first: dict[tuple[Hashable, ...], int] = {}
    for row, pictures in enumerate(keys):
        first.setdefault(tuple(pictures), row)
    order = sorted(first, key=lambda key: hashlib.sha256(f"{seed}:{key!r}".encode()).digest())
    circles: dict[int, list[tuple[Hashable, ...]]] = {}
    for key in order:
        circles.setdefault(len(key), []).append(key)
    shown: dict[tuple[Hashable, ...], int | None] = {(): None}
    for count, circle in circles.items():
        for index, key in enumerate(circle if count else ()):
            following = (circle[(index + step) % len(circle)] for step in range(1, len(circle)))
            other = next((other for other in following if set(other).isdisjoint(key)), None)
            shown[key] = None if other is None else first[other]
    return [shown[tuple(pictures)] for pictures in keys]


def picture_keys(
    rows: Iterable[Sequence[ImageSource]], options: ImageOptions = DEFAULTS
) -> list[tuple[Hashable, ...]]:
    """Returns for each row the keys of its images for [`other_images`]; every source is read once.

    The key of an image is the hash of its pixels, of its file if it cannot be shown as `options` say, and of its path
    if it cannot be read at all.
    """
    known: dict[Hashable, Hashable] = {}
    pictures: dict[int, Hashable] = {}

    def key_of(source: ImageSource) -> Hashable:
        mention = source_key(source, pictures)
        if mention not in known:
            known[mention] = mention
            for hash_of in (pixel_hash, encoded_hash):
                with suppress(ImageError):
                    known[mention] = hash_of(source, options)
                    break
        return known[mention]

    return [tuple(key_of(source) for source in sources) for sources in rows]


def partners_of(groups: Sequence[Group], options: ImageOptions = DEFAULTS, seed: int = 0) -> list[int | None]:
    """Applies [`other_images`] to groups: for each the number of the group whose images it is shown, or `None`."""
    return other_images(picture_keys([group.images for group in groups], options), seed)


def with_other_images(groups: Sequence[Group], options: ImageOptions = DEFAULTS, seed: int = 0) -> list[Group]:
    """Returns the groups with the images of their partners; a group without a partner stays as it is."""
    partners = partners_of(groups, options, seed)
    return [g if j is None else replace(g, images=groups[j].images) for g, j in zip(groups, partners, strict=True)]
