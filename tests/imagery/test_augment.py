"""Pictures are turned and flipped in all eight ways, but never where a text would become wrong."""

import random

import numpy as np
import pytest
from helpers import picture

from rs_rlhf.imagery.augment import rotate_flip, speaks_of_direction

DIRECTED = """the plane on the left; Right-hand runway; top of the image; upper_left; bottommost; lower part; above
the road; below it; under the bridge; to the north; NORTHEAST; north-west; a northern suburb; westward;
the western bank; eastern; clockwise; counter-clockwise; horizontally; vertical; in the corner; going up; walk down;
a box (12,30),(50,60); [x1, y1, x2, y2]; [12.5, 30, 50, 60]; <|box_start|>; <box>; {<12><30><50><60>|<90>};
at (12, 30); the second row; NW of it; rotated by 45 degrees; 12 30 50 60; topleft; Midwest; 图像左侧; 3 o'clock"""


@pytest.mark.parametrize("text", [text.strip() for text in DIRECTED.split(";")])
def test_texts_of_direction(text):
    assert speaks_of_direction(text)


@pytest.mark.parametrize(
    "text",
    "a dense forest|copyright|brightly lit|the rest of the beast|topography|an upright tower|a row of houses|"
    "two underpasses|updated|three planes, two cars (parked)|There are 12 ships.|slower cars|a feast|Newest|1, 2 or 3|"
    "a downtown area|the stopped car|(see the river)".split("|"),
)
def test_texts_without_direction(text):
    assert not speaks_of_direction(text)


def test_rotate_flip_draws_all_eight_and_never_depends_on_the_texts():
    image = picture(3, width=6, height=8)
    rgb = np.asarray(image)
    plain, directed = random.Random(3), random.Random(3)
    seen = set()
    for _ in range(200):
        seen.add(rotate_flip(image, ["a forest", "two ships"], plain).tobytes())
        assert rotate_flip(image, ["a forest", "ships on the left"], directed) is image
    assert plain.getstate() == directed.getstate()
    flat = [np.rot90(base, k) for base in (rgb, rgb[:, ::-1]) for k in range(4)]
    assert seen == {np.ascontiguousarray(view).tobytes() for view in flat}
    assert all(rotate_flip(image, "on the left", random.Random(i)) is image for i in range(8))
