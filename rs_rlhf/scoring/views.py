"""What `show` and `table` of a scorer return: scored groups as HTML, and as a pandas table with thumbnails.

Left out: figures over many rows (`rs-rlhf eval`), and anything that can be clicked (`rs-rlhf browse`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from typing import TYPE_CHECKING, Any

from ..data.group import Group, completion_text, prompt_text
from ..data.views import data_uri, groups_html
from ..errors import OptionError
from ..imagery.raster import ImageOptions

if TYPE_CHECKING:
    import pandas

ROWS = 200  # of a table that are shown


@dataclass(repr=False)
class ScoredGroups:
    """Groups and their scores; a notebook shows them as pictures and ranked texts.

    Args:
        groups (sequence of [`Group`]): What was scored.
        scores (`list[list[float]]`): For each group the scores of its completions, in their order.
        most (`int`): Groups that are shown at most.
        options ([`ImageOptions`], *optional*): How their images are read.
    """

    groups: Sequence[Group]
    scores: list[list[float]]
    most: int = 20
    options: ImageOptions | None = None

    def __post_init__(self) -> None:
        if self.most < 1:
            raise OptionError(f"most is {self.most}; it must be at least 1.", "most")

    def _repr_html_(self) -> str:
        return groups_html(self.groups, self.scores, most=self.most, options=self.options)

    def __repr__(self) -> str:
        lines = []
        for group, scores in zip(self.groups[: self.most], self.scores, strict=False):
            lines += [prompt_text(group.prompt) or group.where or "group"]
            ranked = sorted(zip(scores, group.completions, strict=True), key=lambda pair: -pair[0])
            lines += [f"  {score:8.3f}  {completion_text(messages)}" for score, messages in ranked]
        left = len(self.groups) - self.most
        return "\n".join([*lines, *([f"{left} more group(s) not shown"] if left > 0 else [])])


class Thumbnail:
    """A small picture in a cell of a table."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def _repr_html_(self) -> str:
        return f'<img src="{escape(self.uri)}" alt="thumbnail" style="max-width: 8em">'

    def __repr__(self) -> str:
        return "(image)"


def score_table(
    groups: Sequence[Group], scores: Sequence[Sequence[float]], most: int, options: ImageOptions | None
) -> pandas.DataFrame:
    """Returns a row for each completion: `group`, `image`, `prompt`, `completion`, `score`, `rank` (from 1, the best).

    The first `most` groups with an image have a [`Thumbnail`] of their first one, the others `None`.
    """
    if most < 0:
        raise OptionError(f"most is {most}; it must be at least 0.", "most")
    rows: list[dict[str, Any]] = []
    made = 0
    for number, (group, own) in enumerate(zip(groups, scores, strict=True)):
        picture = None
        if group.images and made < most:
            picture, made = Thumbnail(data_uri(group.images[0], options, group.where)), made + 1
        for messages, score in zip(group.completions, own, strict=True):
            row: dict[str, Any] = {"group": number, "image": picture, "prompt": prompt_text(group.prompt)}
            text = completion_text(messages)
            rows.append(
                {**row, "completion": text, "score": float(score), "rank": 1 + sum(other > score for other in own)}
            )
    table = _table_class()(rows, columns=["group", "image", "prompt", "completion", "score", "rank"])
    table.attrs["without_thumbnail"] = sum(bool(group.images) for group in groups) - made
    return table


@cache
def _table_class() -> type[pandas.DataFrame]:
    import pandas

    class ScoreTable(pandas.DataFrame):
        """A DataFrame whose thumbnails are shown; all other cells are text."""

        @property
        def _constructor(self) -> type[pandas.DataFrame]:
            return ScoreTable

        def _repr_html_(self) -> str:
            plain = pandas.DataFrame(self).iloc[:ROWS].map(_cell)
            for axis in ("columns", "index"):
                labels = getattr(plain, axis)
                name = _cell(labels.name if labels.nlevels == 1 else list(labels.names))
                setattr(plain, axis, pandas.Index([_cell(label) for label in labels], name=name or None))
            with pandas.option_context("display.max_colwidth", None):
                html = plain.to_html(escape=False, max_rows=None, justify="left")
            pictures, rows = self.attrs.get("without_thumbnail", 0), len(self) - len(plain)
            said = [f"{rows} more rows are not shown." if rows else ""]
            said += [f"{pictures} more groups have no thumbnail here." if pictures else ""]
            return html + "".join(f"<p>{text}</p>" for text in said if text)

    return ScoreTable


def _cell(value: object) -> str:
    if isinstance(value, Thumbnail):
        return value._repr_html_()
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else escape(str(value))


def image_options_of(scorer: Any) -> ImageOptions | None:
    """Returns how a scorer reads images, of several models the first one's; `None` if it does not say."""
    part = (getattr(scorer, "parts", None) or [scorer])[0]
    return getattr(getattr(part, "collator", part), "image_options", None)
