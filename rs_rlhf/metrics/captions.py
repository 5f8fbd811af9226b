"""Caption metrics against human captions: BLEU, METEOR, ROUGE-L, CIDEr, as computed for COCO captions.

They come from the kept library `pycocoevalcap` (`pip install "rs-rlhf[captions]"`), as in the papers on RSICD and
RSITMD captions: corpus BLEU with the closest reference length, ROUGE-L with beta 1.2, CIDEr-D whose document
frequencies are those of the references given (so it depends on which questions are asked). METEOR 1.5 and the PTB
tokenizer need `java`; without it there is no METEOR, captions are split more simply, and the figures say so. METEOR
takes half a minute to start.

Left out: SPICE (a download of Stanford models and a Java older than today's), BERTScore, CLIPScore (`models.clip`).
"""

from __future__ import annotations

import re
import shutil
import unicodedata
from collections.abc import Sequence
from typing import Any

from ..errors import OptionError

# METEOR reads one line a caption whose fields " ||| " parts, and the tokenizer one line a caption.
_BREAKS = re.compile(r"\s+|\|{2,}")


def caption_figures(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Measures captions against their references.

    Args:
        outputs (sequence of `str`): One caption an image; an empty one counts, with 0 in every measure.
        references (sequence of sequences of `str`): The human captions of each image, at least one.

    Returns:
        `dict`: `BLEU-1` to `BLEU-4`, `METEOR` (`None` without Java) and `ROUGE-L` in 0–1; `CIDEr` in 0–10 (0 if
        only one image is asked about: all its words are in every document); `tokenizer` (`"PTB"`, or `"simple"`: see
        [`simple_tokens`]), which figures that are compared must share; `left_out` (`{measure: why}`).

    Raises:
        OptionError: No caption, an image without a reference, not as many of both, or the library is not installed.

    Example:
        >>> caption_figures(["a port with ships"], [["a port with ships"]])["BLEU-4"]  # doctest: +SKIP
        1.0
    """
    if not outputs or len(outputs) != len(references):
        raise OptionError(
            f"{len(outputs)} captions and references of {len(references)} images; expected as many, and at least one."
        )
    for place, own in enumerate(references):
        if isinstance(own, str) or not own:
            raise OptionError(f"caption {place} has the references {own!r:.60}, expected a list of at least one text.")
    bleu, cider, meteor, rouge = _scorers()
    java = shutil.which("java") is not None
    said = [[_one_line(one)] for one in outputs]
    human = [[line for one in own if (line := _one_line(one))] for own in references]
    tokens = _ptb_tokens if java else _simple_lists
    result, given = tokens(said), {i: [one for one in own if one] for i, own in tokens(human).items()}
    for place, left in given.items():
        if not left:
            raise OptionError(f"caption {place} has the references {references[place]!r:.60}, which hold no word.")

    figures: dict[str, Any] = {}
    for order, value in enumerate(bleu(4).compute_score(given, result, verbose=0)[0], start=1):
        figures[f"BLEU-{order}"] = float(value)
    figures["METEOR"] = _meteor(meteor, given, result) if java else None
    figures["ROUGE-L"] = float(rouge().compute_score(given, result)[0])
    figures["CIDEr"] = float(cider().compute_score(given, result)[0])
    figures["tokenizer"] = "PTB" if java else "simple"
    figures["left_out"] = {} if java else {"METEOR": "needs java on the PATH"}
    return figures


def simple_tokens(text: str) -> list[str]:
    """Splits a caption into lower-case words without punctuation, if there is no PTB tokenizer.

    Like PTB it parts a possessive "s" and keeps a hyphen inside a word; it differs on contractions and abbreviations.

    Example:
        >>> simple_tokens("A well-kept port's piers, at 3.5 km.")
        ['a', 'well-kept', 'port', "'s", 'piers', 'at', '3.5', 'km']
    """
    text = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
    return re.findall(r"\d+(?:[.,]\d+)+|\w+(?:-\w+)*|'s\b", text)


def _scorers() -> tuple[Any, Any, Any, Any]:
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.meteor.meteor import Meteor
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError as error:
        raise OptionError(
            f'captions are measured with pycocoevalcap ({error}); pip install "rs-rlhf[captions]".'
        ) from None
    return Bleu, Cider, Meteor, Rouge


def _one_line(text: str) -> str:
    return _BREAKS.sub(" ", text).strip()


def _simple_lists(captions: Sequence[Sequence[str]]) -> dict[int, list[str]]:
    return {i: [" ".join(simple_tokens(one)) for one in own] for i, own in enumerate(captions)}


def _ptb_tokens(captions: Sequence[Sequence[str]]) -> dict[int, list[str]]:
    """The captions in PTB tokens; an empty one stays in its place."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    full = {i: [{"caption": one} for one in own if one] for i, own in enumerate(captions)}
    full = {i: own for i, own in full.items() if own}
    try:
        found = PTBTokenizer().tokenize(full) if full else {}
    except OSError as error:  # it writes a file beside its program
        raise OptionError(f"the PTB tokenizer could not be run ({error}); check that java runs.") from None
    if {i: len(own) for i, own in found.items()} != {i: len(own) for i, own in full.items()}:
        raise OptionError("the PTB tokenizer returned other lines than it was given; check that java runs.")
    return {i: found.get(i, [""]) for i in range(len(captions))}


def _meteor(scorer: Any, given: dict[int, list[str]], result: dict[int, list[str]]) -> float:
    """METEOR of the corpus, whose counts are summed before they are divided, so that empty captions lower it."""
    if not any(one for (one,) in result.values()):
        return 0.0
    try:
        return float(scorer().compute_score(given, result)[0])
    except (OSError, ValueError) as error:  # the process has ended; it needs 2 GB
        raise OptionError(
            f"METEOR's java process gave no score ({error}); check that java runs and has 2 GB."
        ) from None
