"""Augmentation of overhead images by rotations and flips, unless a text that goes with them speaks of directions.

Seen from above, a scene has no up: a text that is true of it is true of all eight ways to lay the square, unless it
says "left" or gives a box. Left out: crops, scaling and colour changes, which can make any text wrong.
"""

import random
import re
from collections.abc import Iterable

from PIL import Image

_T = Image.Transpose
# Nothing, and the seven others; a seed draws by place, so the order is part of every result.
_TURNS = (
    *(None, _T.FLIP_LEFT_RIGHT, _T.ROTATE_180, _T.FLIP_TOP_BOTTOM),
    *(_T.TRANSPOSE, _T.ROTATE_270, _T.TRANSVERSE, _T.ROTATE_90),
)
_NUMBER = r"-?\d+(?:\.\d+)?%?"
_ITEM = rf"(?:{_NUMBER}|[xy]_?(?:min|max|\d*))"
# `(?<![a-z])` rather than `\b`, for which "top_left" is one word.
_DIRECTION = re.compile(
    r"(?<![a-z])(?:"
    r"(?:left|right|bottom|north|south|horizontal|vertical|diagonal|upward|downward|underneath|orient(?:ed|ation)"
    r"|azimuth|coordinate|bbox|bounding[ -]box|(?:counter|anti)?clock-?wise)\w*"
    r"|(?:up|down|upper(?:most)?|lower(?:most)?|tops?|topmost|top(?:left|right)|above|below|under|beneath|corners?"
    r"|degrees?|o['’]clock)(?![a-z])"
    r"|(?:mid)?(?:east|west)(?:ern|erly|wards?|bound|ernmost|erners?)?(?![a-z])"
    r"|(?:\w+(?:st|nd|rd|th)|last)\s+(?:row|column)s?(?![a-z])"
    r")"
    r"|(?-i:\b(?:[NS][EW]|[NSEW]-[NSEW])\b)|°"
    r"|<\|?/?(?:box|point|quad|bbox|loc)|(?:<\s*\d+\s*>\s*){2}"
    rf"|[(\[{{]\s*{_ITEM}(?:[\s,;]+{_ITEM}){{1,7}}\s*[)\]}}]"
    rf"|(?<![\d.]){_NUMBER}(?:[\s,;]+{_NUMBER}){{3}}"
    r"|[左右上下东東南西北角]|顺时针|逆时针|水平|垂直",
    re.IGNORECASE,
)


def speaks_of_direction(text: str) -> bool:
    """Returns whether turning or flipping the picture could make a text wrong.

    That is so for words of direction (left, top, north-east, clockwise, ...) and for coordinates or boxes. Doubtful
    words count: a false alarm only loses an augmentation, a miss teaches a falsehood.
    """
    return _DIRECTION.search(text) is not None


def rotate_flip(image: Image.Image, texts: Iterable[str], rng: random.Random) -> Image.Image:
    """Turns or flips an overhead RGB picture by one of the eight symmetries of the square.

    The picture itself is returned if one of its texts (prompt, answers, reference) speaks of directions, or the draw
    is the identity. `rng` is drawn from exactly once, so that the stream does not depend on the texts.
    """
    turn = _TURNS[rng.randrange(8)]
    texts = [texts] if isinstance(texts, str) else texts
    if turn is None or any(speaks_of_direction(text) for text in texts):
        return image
    return image.transpose(turn)
