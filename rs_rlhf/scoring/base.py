"""`GroupScorer`: the interface of everything that scores groups.

[`Scorer`], [`RemoteScorer`], `ClipScorer` and the baselines implement it; [`load_scorer`] makes one of a name. Left
out: a registry and a base class (a scorer needs no more than this method).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, overload

from ..data.group import Group


class GroupScorer(Protocol):
    """Anything with `score_groups`."""

    @overload
    def score_groups(self, groups: Sequence[Group], *, show_progress: bool | None = None) -> list[list[float]]: ...

    @overload
    def score_groups(
        self, groups: Sequence[Group], *, on_error: Literal["return"], show_progress: bool | None = None
    ) -> list[list[float] | Exception]: ...

    def score_groups(
        self, groups: Sequence[Group], *, on_error: str = "raise", show_progress: bool | None = None
    ) -> list[Any]:
        """Scores groups.

        Args:
            groups (sequence of [`Group`]): Any number.
            on_error (`str`): `"raise"`, or `"return"`: a group that cannot be scored has its error in place of scores.
            show_progress (`bool`, *optional*): By default on a terminal when there is much to do.

        Returns:
            `list`: For each group the `list` of its completions' scores, in order.

        Raises:
            RSRLHFError: A group that cannot be scored, unless `on_error` is `"return"`.
        """
        ...


def raise_first(results: Sequence[object]) -> None:
    """Raises the first error among results."""
    for result in results:
        if isinstance(result, Exception):
            raise result
