"""`GroupScorer`: the interface of everything that scores groups; [`load_scorer`] makes one of a name."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, overload

from ..data.group import Group, ImageSource, make_group
from ..errors import OptionError
from ..runs.progress import Progress, progress

if TYPE_CHECKING:
    import pandas

    from .views import ScoredGroups

A = TypeVar("A")
B = TypeVar("B")
Images = Sequence[ImageSource | Sequence[ImageSource] | None] | None
Prompts = Sequence[str | list[dict] | None] | None
Completions = Sequence[Sequence[str | list[dict]]]


class CombinedScore(float):
    """A score made of several models' scores, with their standard deviation `std`; elsewhere a plain float."""

    std: float

    def __new__(cls, value: float, std: float) -> CombinedScore:
        """Makes one."""
        score = super().__new__(cls, value)
        score.std = std
        return score

    def __getnewargs__(self) -> tuple[float, float]:  # type: ignore[override]
        return float(self), self.std


def spread(score: object) -> float | None:
    """Returns the standard deviation of the models' scores that a score is made of; `None` for one model's score."""
    return score.std if isinstance(score, CombinedScore) else None


def with_spread(scores: Sequence[float], spreads: Sequence[float] | None) -> list[float]:
    """Returns scores that were stored beside their spreads as they were; of one model's scores there are none."""
    if not spreads:
        return list(scores)
    return [CombinedScore(*pair) for pair in zip(scores, spreads, strict=True)]


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
        """Returns for each group the `list` of its completions' scores, in order.

        Those of several models are [`CombinedScore`], which know the models' spread.
        A group that cannot be scored raises an RSRLHFError, or with `on_error="return"` has it in place of its scores.
        By default progress is shown on a terminal when there is much to do.
        """
        ...


class ScoreTexts:
    """Adds `score`, `show` and `table`, which make groups of images, prompts and completions, to a [`GroupScorer`]."""

    def score(
        self: GroupScorer,
        images: Images = None,
        prompts: Prompts = None,
        completions: Completions = (),
        show_progress: bool | None = None,
    ) -> list[list[float]]:
        """Scores N completions for each prompt and image.

        Args:
            images (sequence, *optional*): For each group a path, PIL image, array, list of these, or `None`.
            prompts (sequence of `str` or messages, *optional*): Questions; by default empty, for plain captions.
            completions (sequence of sequences of `str` or messages): N candidates for each group; N may differ.
            show_progress (`bool`, *optional*): By default on a terminal when there are more than 8 batches.

        Returns:
            `list[list[float]]`: One list per group, in the order given.

        Raises:
            OptionError: The lengths differ.
            ImageError: An image cannot be read; names it and its row.
            DataError: A prompt or completion cannot be used.
        """
        groups = _groups(images, prompts, completions)
        return self.score_groups(groups, show_progress=show_progress)

    def show(
        self: GroupScorer,
        images: Images = None,
        prompts: Prompts = None,
        completions: Completions = (),
        *,
        most: int = 20,
    ) -> ScoredGroups:
        """Scores as [`score`][rs_rlhf.scoring.base.ScoreTexts.score] does, for a notebook, which shows pictures,
        each with its texts, the best first. `result.scores` are the scores.

        Args:
            images, prompts, completions: As in `score`, which raises the same errors.
            most (`int`): Groups that are shown at most; it is said how many are not.
        """
        from .views import ScoredGroups, image_options_of

        groups = _groups(images, prompts, completions)
        return ScoredGroups(groups, self.score_groups(groups), most, image_options_of(self))

    def table(
        self: GroupScorer,
        images: Images = None,
        prompts: Prompts = None,
        completions: Completions = (),
        *,
        most: int = 50,
    ) -> pandas.DataFrame:
        """Scores as [`score`][rs_rlhf.scoring.base.ScoreTexts.score] does, into a table: a row for each completion.

        Args:
            images, prompts, completions: As in `score`, which raises the same errors.
            most (`int`): Groups with a thumbnail at most.

        Returns:
            `pandas.DataFrame`: `group` (its number), `image` (a thumbnail, which a notebook shows), `prompt`,
            `completion`, `score` and `rank` (1 is the best of the group).
        """
        from .views import image_options_of, score_table

        groups = _groups(images, prompts, completions)
        return score_table(groups, self.score_groups(groups), most, image_options_of(self))


def _groups(images: Images, prompts: Prompts, completions: Completions) -> list[Group]:
    """Makes groups of the arguments of `score`."""
    count = len(completions)
    for name, values in (("images", images), ("prompts", prompts)):
        if values is not None and len(values) != count:
            raise OptionError(f"{name} has {len(values)} entries but completions has {count}; give one per group.")
    if any(isinstance(candidates, str) for candidates in completions):
        raise OptionError("completions must be a list of lists: for each group the list of its candidates.")
    nothing = [None] * count
    first, last = nothing if prompts is None else prompts, nothing if images is None else images
    rows = zip(first, completions, last, strict=True)
    return [make_group(*row, row=i, where=f"row {i}") for i, row in enumerate(rows)]


def ahead(function: Callable[[A], B], items: Iterable[A], workers: int) -> Iterator[B]:
    """Yields `function(item)` in order; with workers, threads compute a few items ahead."""
    if not workers:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="ahead")
    waiting: deque[Future[B]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > workers + 2:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # after an error or Ctrl-C too: waiting items are dropped, running ones end
        pool.shutdown(cancel_futures=True)


def scoring_progress(total: int, unit: str, shown: bool | None, many: int) -> AbstractContextManager[Progress]:
    """Shows progress if asked to, by default on a terminal and for more than `many` units."""
    default = total > many and sys.stderr.isatty()
    return progress(total, 0, "Scoring", unit=unit, shown=default if shown is None else shown)


def raise_first(results: Sequence[object]) -> None:
    """Raises the first error among results."""
    for result in results:
        if isinstance(result, Exception):
            raise result
