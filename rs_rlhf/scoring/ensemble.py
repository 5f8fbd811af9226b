"""`EnsembleScorer`: several scorers as one, whose scores are standardised and then combined.

Score models have no common scale: each one's scores are brought to mean 0 and standard deviation 1 on the texts of a
calibration file before they are combined. The spread of what is combined comes along with each score
([`CombinedScore`]): where score models of different seeds or data disagree, at most one of them is right.

Score models that take the same inputs are asked together, batch by batch, so that every image is read once, and seen
once by all that have the same vision tower. Left out: weights of the models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.group import Group
from ..data.image_text_dataset import open_image_texts
from ..errors import DataError, OptionError, ScoreError
from ..models.vision_sharing import same_towers
from ..runs.files import read_json, write_json
from ..runs.record import STANDARDS
from ..version import __version__
from .base import CombinedScore, GroupScorer, ScoreTexts
from .cards import model_hash, model_settings, processor_settings
from .scorer import Scorer
from .several import RULES, calibration_hash, short_hash

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Standard:
    """The scale of a model's scores: their mean and (population) standard deviation on the calibration file."""

    mean: float
    std: float


@dataclass
class Calibration:
    """What scores are standardised on.

    Args:
        file (`str`): Image-text rows.
        names (list of `str`): The models.
        settings (list of `dict`): What each one's scores depend on.
        folder (`Path`, *optional*): Where the standards are kept: read if they are there, else written.
    """

    file: str
    names: list[str]
    settings: list[dict[str, Any]]
    folder: Path | None = None
    hash: str = field(init=False)

    def __post_init__(self) -> None:
        self.hash = calibration_hash(self.file)

    @property
    def path(self) -> Path | None:
        """The file that keeps the standards; its name says of which models and calibration file."""
        return self.folder and self.folder / STANDARDS.replace("*", short_hash([self.hash, self.settings]))

    def groups(self) -> list[Group]:
        """Reads the texts; a row that cannot be used is a [`DataError`]."""
        groups = []
        try:
            for row in open_image_texts(self.file):
                if row.error is not None:
                    raise row.error
                groups += row.groups
        except DataError as error:
            if error.key == "chosen":  # of which the reader does not know the option to choose a text by
                detail = (
                    "holds preferences; expected image-text rows to standardise scores on, as `rs-rlhf score` reads"
                )
                raise DataError(detail, "score_calibration", self.file) from None
            raise
        return groups


class EnsembleScorer(ScoreTexts):
    """Combines the scores of several scorers; [`load_scorer`] makes one of several models' names.

    Args:
        scorers (sequence of [`GroupScorer`]): Two or more; the same one may be given several times.
        combine (`str`): `"mean"`, `"min"`, or `"mean-std"`, the mean less the (population) standard deviation, all of
            standardised scores: less their model's mean, divided by its standard deviation.
        standards (sequence of [`Standard`], *optional*): The scale of each one's scores.
        calibration ([`Calibration`], *optional*): What [`standardise`] takes the scale of, which must then be called
            before anything is scored.
        sharded (`bool`): Weights are shared out over processes, so that the scorers are asked one after the other.

    Example:
        >>> scorer = load_scorer("out/a,out/b", score_calibration="captions.jsonl")  # doctest: +SKIP
        >>> scores = scorer.score(images=["a.png"], completions=[["a river.", "a forest."]])  # doctest: +SKIP
        >>> [(score, score.std) for score in scores[0]]  # doctest: +SKIP
        [(0.93, 0.12), (-0.41, 0.66)]
    """

    def __init__(
        self,
        scorers: Sequence[GroupScorer],
        combine: str = RULES[0],
        standards: Sequence[Standard] | None = None,
        *,
        calibration: Calibration | None = None,
        sharded: bool = False,
    ) -> None:
        if combine not in RULES:
            raise OptionError(f"combine is {combine!r}, expected one of {', '.join(RULES)}.", "score_combine")
        self.scorers, self.combine, self.standards = list(scorers), combine, standards
        self.calibration = calibration
        self.parts: list[Any] = list({id(scorer): scorer for scorer in scorers}.values())
        """The distinct scorers."""
        self._parties = [[scorer] for scorer in self.parts] if sharded else _parties(self.parts)
        self._towers = [
            same_towers([scorer.model for scorer in party]) if len(party) > 1 else [0] for party in self._parties
        ]

    @property
    def processor(self) -> Any:
        """The first scorer's processor, by which tokens are counted; `None` if it has none."""
        first: Any = self.scorers[0]
        return getattr(first, "processor", None) or getattr(getattr(first, "model", None), "processor", None)

    def score_groups(
        self, groups: Sequence[Group], *, on_error: str = "raise", show_progress: bool | None = None
    ) -> list[Any]:
        """Scores groups, see [`GroupScorer.score_groups`]; a group that one scorer cannot score has its error."""
        if self.standards is None:
            raise OptionError("the scores of several models are not standardised; call `standardise` first.")
        results = []
        for scores in zip(*self.single_scores(groups, on_error, show_progress), strict=True):
            error = next((score for score in scores if isinstance(score, Exception)), None)
            results.append(combined(scores, self.standards, self.combine) if error is None else error)
        return results

    def single_scores(
        self, groups: Sequence[Group], on_error: str = "raise", show_progress: bool | None = None
    ) -> list[list[Any]]:
        """Returns for each scorer what it gives the groups by itself."""
        options: dict[str, Any] = {"on_error": on_error, "show_progress": show_progress}
        by_scorer: dict[int, list[Any]] = {}
        for party, towers in zip(self._parties, self._towers, strict=True):
            if len(party) == 1:
                by_scorer[id(party[0])] = party[0].score_groups(groups, **options)
                continue
            together = party[0].score_by([scorer.model for scorer in party], towers, groups, **options)
            for place, scorer in enumerate(party):
                by_scorer[id(scorer)] = [
                    row if isinstance(row, Exception) else [values[place] for values in row] for row in together
                ]
        return [by_scorer[id(scorer)] for scorer in self.scorers]

    def share_weights(self, accelerator: Accelerator) -> None:
        """Shards all models, see [`Scorer.share_weights`]; then standardises, on all processes together."""
        for scorer in self.parts:
            scorer.share_weights(accelerator)
        self.standardise()

    def standardise(self) -> None:
        """Sets the standards by the calibration file, unless its folder has them already.

        Raises:
            DataError: The file, a row or an image of it cannot be read, or a model gives all texts the same score.
            ScoreError: A score is not finite.
        """
        calibration = self.calibration
        if calibration is None:
            raise OptionError("there is no calibration file to standardise scores on.", "score_calibration")
        path = calibration.path
        if path is None or not path.is_file():
            groups = calibration.groups()
            with _any_folder(self.parts):
                tables = self.single_scores(groups)
            pairs = zip(calibration.names, tables, strict=True)
            self.standards = [_standard(name, rows, calibration.file) for name, rows in pairs]
            if path is not None and not path.is_file():  # another process may have been faster
                write_json(path, self.record() | {"settings": calibration.settings, "rs_rlhf": __version__})
        if path is not None:
            stored = read_json(path, "models", list, "the same command")
            self.standards = [Standard(model["mean"], model["std"]) for model in stored["models"]]

    def record(self) -> dict[str, Any]:
        """Returns what a result should say of its scores: models with their standards, and the calibration file."""
        made = self.calibration
        names = made.names if made else [None] * len(self.scorers)
        rows = zip(names, self.standards or [], strict=True)
        known = {"score_calibration": made.file, "score_calibration_hash": made.hash} if made else {}
        return known | {"models": [{"model": name, **asdict(standard)} for name, standard in rows]}

    def card(self) -> dict[str, Any]:
        """Returns what a reward server says of its model, see [`Scorer.card`].

        Raises:
            OptionError: The models' images are read in different ways, of which a server can have one only.
        """
        hashes, cards = [model_hash(scorer) for scorer in self.parts], [model_settings(one) for one in self.parts]
        if any(card["image_options"] != cards[0]["image_options"] for card in cards):
            raise OptionError(
                "the models' images are read by different bands or stretches; serve each by itself.", "model"
            )
        common = {key: value for key, value in cards[0].items() if all(card.get(key) == value for card in cards)}
        if "pixel_budget" not in common:  # a client resizes images for none of them, then
            common |= {"pixel_budget": None, "image_tokens": max(map(_most_tokens, cards))}
        record = self.record()
        order = [hashes[self.parts.index(scorer)] for scorer in self.scorers]
        whole = json.dumps([self.combine, record.get("score_calibration_hash"), order])
        return {"hash": hashlib.sha256(whole.encode()).hexdigest(), "score_combine": self.combine, **common, **record}


def combined(scores: Sequence[Sequence[float]], standards: Sequence[Standard], rule: str) -> list[CombinedScore]:
    """Combines the scores of the same completions by several models.

    Args:
        scores (sequence of sequences): For each model its scores of N completions.
        standards (sequence of [`Standard`]): The scale of each model's scores.
        rule (`str`): See [`EnsembleScorer`].

    Returns:
        `list[CombinedScore]`: N scores in standard deviations, with the spread of the models'. One that is made of a
        score that is not finite is NaN.

    Example:
        >>> scores = combined([[3.0, 1.0], [0.5, 0.5]], [Standard(1, 2), Standard(0, 1)], "min")
        >>> scores, [score.std for score in scores]
        ([0.5, 0.0], [0.25, 0.25])
    """
    scale = np.array([[standard.mean, standard.std] for standard in standards])
    with np.errstate(invalid="ignore"):
        values = (np.array(scores, np.float64).reshape(len(scale), -1) - scale[:, :1]) / scale[:, 1:]
        apart = values - values[:1]  # so that equal scores have exactly themselves as the mean, and no spread
        mean, std = values[0] + apart.mean(0), apart.std(0)
        made = {"mean": mean, "min": values.min(0), "mean-std": mean - std}[rule]
    made = np.where(np.isfinite(std), made, np.nan)
    return [CombinedScore(*pair) for pair in zip(made.tolist(), std.tolist(), strict=True)]


def _parties(scorers: Sequence[GroupScorer]) -> list[list[Any]]:
    """Scorers by what can be asked together: score models on one device that take the same inputs."""
    parties: list[list[Any]] = []
    known: list[dict[str, Any]] = []
    for scorer in scorers:
        inputs = _inputs(scorer) if isinstance(scorer, Scorer) else {}
        if inputs and inputs in known:
            parties[known.index(inputs)].append(scorer)
        else:
            parties.append([scorer])
            known.append(inputs)
    return parties


def _inputs(scorer: Scorer) -> dict[str, Any]:
    """What the inputs of a scorer's batches depend on beside the groups."""
    collator, of_model = scorer.collator, ("positions", "output_activation", "dtype")
    layout = {key: value for key, value in model_settings(scorer).items() if key not in of_model}
    layout |= processor_settings(scorer.processor) | {"reading": collator.image_options}
    return layout | {"longest": collator.max_length, "budget": scorer.token_budget, "device": scorer.model.device}


def _standard(model: str, rows: Sequence[Sequence[float]], file: str) -> Standard:
    scores = np.array([score for row in rows for score in row], np.float64)
    if not np.isfinite(scores).all():
        raise ScoreError(f"{model} gives a text a score that is not finite; check the model.", where=file)
    if not len(scores) or scores.min() == scores.max():
        detail = f"{model} tells none of its {len(scores)} texts apart; give texts of different quality"
        raise DataError(detail, "score_calibration", file)
    return Standard(float(scores.mean()), float(scores.std()))


def _most_tokens(card: dict[str, Any]) -> int:
    budget = card["pixel_budget"]
    return budget["max_pixels"] // budget["factor"] ** 2 if budget else card["image_tokens"]


@contextmanager
def _any_folder(scorers: Sequence[Any]) -> Iterator[None]:
    """Lets scorers read images whose paths have been resolved inside another root than theirs."""
    places = [(getattr(scorer, "collator", None), getattr(scorer, "model", None), scorer) for scorer in scorers]
    readers: list[Any] = [reader for place in places for reader in place if hasattr(reader, "image_options")]
    kept = [reader.image_options for reader in readers]
    try:
        for reader, options in zip(readers, kept, strict=True):
            reader.image_options = replace(options, image_root=None)
        yield
    finally:
        for reader, options in zip(readers, kept, strict=True):
            reader.image_options = options
