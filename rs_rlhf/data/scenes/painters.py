"""The drawing of scenes: a painter for every class, and the road, pond or trees beside its objects.

Painters work in *scene units*, the image edge being 1 and the centre (0, 0), in a frame that is rotated by a random
angle as a whole. Objects that a caption counts stay inside the disc of radius 0.5 that every rotation keeps in view.
The road runs along one side of the objects and the pond or the trees along the other.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Facts = dict[str, Any]
Points = Sequence[tuple[float, float]]

_COLOURS: dict[str, Colour] = {"white": (236, 236, 232), "grey": (150, 152, 154), "black": (40, 40, 44)}
_COLOURS |= {"blue": (58, 104, 186), "red": (188, 62, 50), "green": (78, 142, 66), "dark green": (30, 76, 36)}
_COLOURS |= {"yellow": (214, 190, 84), "brown": (134, 96, 60), "orange": (216, 130, 56)}
_WATER: dict[str, Colour] = {"blue": (44, 92, 150), "green": (52, 110, 92), "brown": (134, 112, 78)}
_GROUND: dict[str, Colour] = {"green": (104, 136, 78), "brown": (146, 122, 92), "grey": (140, 140, 134)}
_SQUARE = ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))
_HULL = ((-0.5, -0.5), (0.25, -0.5), (0.5, 0), (0.25, 0.5), (-0.5, 0.5))
_WING = ((0.18, 0.05), (-0.12, 0.5), (-0.22, 0.5), (-0.08, 0.05))
_TAIL = ((-0.36, 0.04), (-0.48, 0.2), (-0.54, 0.2), (-0.5, 0.04))
_PLANE = [((0.5, 0), (0.4, 0.07), (-0.5, 0.05), (-0.5, -0.05), (0.4, -0.07)), _WING, _TAIL]
_PLANE += [tuple((x, -y) for x, y in outline) for outline in (_WING, _TAIL)]


@dataclass
class _Pen:
    """Draws on an image in scene units inside a rotated frame."""

    draw: ImageDraw.ImageDraw
    pixels: int
    angle: float
    rng: random.Random

    def point(self, x: float, y: float) -> tuple[float, float]:
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        return (0.5 + x * cos - y * sin) * self.pixels, (0.5 + x * sin + y * cos) * self.pixels

    def shade(self, colour: Colour, spread: int = 12) -> Colour:
        # One shift for all channels varies the brightness and keeps the hue that the caption names.
        shift = self.rng.randint(-spread, spread)
        red, green, blue = (max(0, min(255, value + shift + self.rng.randint(-4, 4))) for value in colour)
        return red, green, blue

    def poly(self, points: Points, colour: Colour) -> None:
        self.draw.polygon([self.point(*p) for p in points], fill=colour)

    def rect(
        self, x: float, y: float, w: float, h: float, colour: Colour, turn: float = 0.0, outline: Points = _SQUARE
    ) -> None:
        """Rectangle, or another outline in its units, turned around its centre."""
        cos, sin = math.cos(turn), math.sin(turn)
        self.poly([(x + w * a * cos - h * b * sin, y + w * a * sin + h * b * cos) for a, b in outline], colour)

    def disc(self, x: float, y: float, r: float, colour: Colour) -> None:
        cx, cy = self.point(x, y)
        r *= self.pixels
        self.draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=colour)

    def blob(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        """Irregular closed shape, at most 1.2 times the given radii."""
        phases = [self.rng.uniform(0, math.tau) for _ in range(2)]
        points = []
        for step in range(28):
            a = math.tau * step / 28
            k = 1 + 0.12 * math.sin(2 * a + phases[0]) + 0.08 * math.sin(3 * a + phases[1])
            points.append((x + k * rx * math.cos(a), y + k * ry * math.sin(a)))
        self.poly(points, colour)


def _cells(rng: random.Random, n: int, columns: int, rows: int) -> list[tuple[float, float, float, float]]:
    """Picks `n` cells of a grid over the object area: centres `x, y` and cell `width, height`, no overlap."""
    left, right, top, bottom = -0.33, 0.33, -0.27, 0.29
    w, h = (right - left) / columns, (bottom - top) / rows
    cells = [(left + w * (c + 0.5), top + h * (r + 0.5), w, h) for r in range(rows) for c in range(columns)]
    return rng.sample(cells, n)


def _grid_for(n: int) -> tuple[int, int]:
    """Smallest of a few grids, as columns and rows, that holds `n` objects."""
    return next(grid for grid in ((2, 1), (2, 2), (3, 2), (3, 3), (4, 3)) if grid[0] * grid[1] >= n)


def _airport(pen: _Pen) -> Facts:
    rng, n = pen.rng, pen.rng.randint(1, 6)
    color = rng.choice(["white", "blue", "red"])
    pen.rect(0, -0.19, 2, 0.13, pen.shade((92, 94, 98)))
    for x in np.arange(-0.9, 0.9, 0.11):
        pen.rect(float(x), -0.19, 0.06, 0.012, (232, 232, 228))
    for x in (-0.3, 0.3):
        for k in range(4):
            pen.rect(x, -0.235 + 0.03 * k, 0.07, 0.012, (232, 232, 228))
    pen.rect(0, 0.1, 0.74, 0.36, pen.shade((168, 168, 164)))
    heading = rng.choice([math.pi / 2, -math.pi / 2]) + rng.uniform(-0.4, 0.4)
    for x, y, *_ in _cells(rng, n, 3, 2):
        colour = pen.shade(_COLOURS[color])
        for outline in _PLANE:
            pen.rect(x, 0.1 + 0.62 * y, 0.145, 0.145, colour, heading, outline)
    return {"object": "plane", "count": n, "color": color}


def _bare_land(pen: _Pen) -> Facts:
    rng, color = pen.rng, pen.rng.choice(["brown", "yellow", "grey"])
    base = {"brown": (140, 104, 70), "yellow": (206, 184, 124), "grey": (150, 146, 138)}[color]
    pen.rect(0, 0, 2, 2, pen.shade(base))
    for _ in range(10):
        pen.blob(rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5), 0.12, rng.uniform(0.03, 0.1), pen.shade(base, 20))
    for _ in range(40):
        pen.disc(rng.uniform(-0.6, 0.6), rng.uniform(-0.6, 0.6), rng.uniform(0.003, 0.01), pen.shade(base, 45))
    return {"object": "ground", "count": None, "color": color, "ground": color}


def _baseball_field(pen: _Pen) -> Facts:
    rng, n = pen.rng, pen.rng.choice([1, 2, 4])
    color = rng.choice(["brown", "orange"])
    grass = pen.shade((128, 190, 96))
    turn = rng.uniform(0, math.tau)
    for x, y, w, h in _cells(rng, n, *{1: (1, 1), 2: (2, 1), 4: (2, 2)}[n]):
        r = 0.53 * min(w, h)
        start = turn if n < 4 else math.atan2(-y, -x) - math.pi / 4
        middle = start + math.pi / 4
        x, y = x - 0.35 * r * math.cos(middle), y - 0.35 * r * math.sin(middle)
        clay = pen.shade(_COLOURS[color])
        for radius, fill in ((1.3, clay), (1.22, grass), (0.72, clay), (0.34, grass)):
            arc = [start + k * math.pi / 28 for k in range(15)]
            pen.poly([(x, y)] + [(x + radius * r * math.cos(a), y + radius * r * math.sin(a)) for a in arc], fill)
        pen.disc(x + 0.3 * r * math.cos(middle), y + 0.3 * r * math.sin(middle), 0.07 * r, (200, 170, 130))
    return {"object": "baseball field", "count": n, "color": color}


def _farmland(pen: _Pen) -> Facts:
    rng, n = pen.rng, pen.rng.choice([2, 3, 4, 6])
    color = rng.choice(["green", "yellow", "brown"])
    along = rng.random() < 0.5
    for x, y, w, h in _cells(rng, n, *{2: (2, 1), 3: (3, 1), 4: (2, 2), 6: (3, 2)}[n]):
        base = pen.shade(_COLOURS[color], 16)
        pen.rect(x, y, w - 0.03, h - 0.03, base)
        dark = (base[0] * 4 // 5, base[1] * 4 // 5, base[2] * 4 // 5)
        for k in range(1, 7):
            strip = (
                (x, y - h / 2 + k * h / 7, w - 0.04, 0.014) if along else (x - w / 2 + k * w / 7, y, 0.014, h - 0.04)
            )
            pen.rect(*strip, dark)
    return {"object": "field", "count": n, "color": color}


def _forest(pen: _Pen) -> Facts:
    rng, color = pen.rng, pen.rng.choice(["green", "dark green"])
    base = _COLOURS[color]
    pen.rect(0, 0, 2, 2, pen.shade((26, 50, 28) if color == "dark green" else (48, 90, 44), 6))
    for row in range(-9, 10):
        for column in range(-9, 10):
            x, y = 0.078 * column + rng.uniform(-0.03, 0.03), 0.078 * row + rng.uniform(-0.03, 0.03)
            pen.disc(x, y, rng.uniform(0.026, 0.046), pen.shade(base, 16))
    return {"object": "tree", "count": None, "color": color, "ground": "green"}


def _industrial(pen: _Pen) -> Facts:
    rng, n = pen.rng, pen.rng.randint(2, 6)
    color = rng.choice(["blue", "white", "grey", "red"])
    pen.rect(0, 0.01, 0.76, 0.62, pen.shade((122, 120, 116)))
    for x, y, w, h in _cells(rng, n, *_grid_for(n)):
        w, h = w * rng.uniform(0.72, 0.86), h * rng.uniform(0.62, 0.84)
        roof = pen.shade(_COLOURS[color])
        pen.rect(x + 0.012, y + 0.012, w, h, (62, 60, 60))
        pen.rect(x, y, w, h, roof)
        ridge = (roof[0] * 5 // 6, roof[1] * 5 // 6, roof[2] * 5 // 6)
        for k in range(1, 6):
            pen.rect(x - w / 2 + k * w / 6, y, 0.008, h, ridge)
    return {"object": "factory building", "count": n, "color": color, "ground": "grey"}


def _lake(pen: _Pen) -> Facts:
    color = pen.rng.choice(["blue", "green"])
    rx, ry = pen.rng.uniform(0.22, 0.29), pen.rng.uniform(0.17, 0.23)
    state = pen.rng.getstate()
    pen.blob(0, 0.01, rx + 0.02, ry + 0.02, (196, 184, 146))
    pen.rng.setstate(state)  # the same outline again, so that the sand makes an even shore
    pen.blob(0, 0.01, rx, ry, _WATER[color])
    return {"object": "lake", "count": 1, "color": color}


def _parking(pen: _Pen) -> Facts:
    rng, n = pen.rng, pen.rng.choice([*range(3, 11), *range(16, 29)])
    pen.rect(0, 0.01, 0.76, 0.62, pen.shade((96, 98, 102)))
    paints = [_COLOURS[name] for name in ("white", "red", "blue", "black", "yellow", "grey")]
    for row in range(4):
        for k in range(9):
            pen.rect(-0.33 + k * 0.66 / 8, -0.2 + row * 0.14, 0.006, 0.1, (206, 206, 200))
    for x, y, w, _ in _cells(rng, n, 8, 4):
        pen.rect(x, y, w * 0.56, 0.085, pen.shade(rng.choice(paints)))
        pen.rect(x, y - 0.012, w * 0.44, 0.02, (44, 50, 60))
    return {"object": "car", "count": n, "color": "colorful", "ground": "grey"}


def _port(pen: _Pen) -> Facts:
    rng, n = pen.rng, pen.rng.randint(1, 8)
    color = rng.choice(["white", "red", "orange"])
    pen.rect(0, -0.2 + 0.75, 2, 1.5, pen.shade(_WATER["blue"], 8))
    pen.rect(0, -0.22, 2, 0.06, pen.shade((176, 172, 164)))
    pen.rect(0, 0.06, 0.07, 0.54, pen.shade((186, 182, 172)))
    berths = [(side * 0.16, -0.13 + 0.115 * k, side) for k in range(4) for side in (-1, 1)]
    for x, y, side in rng.sample(berths, n):
        length, turn = rng.uniform(0.17, 0.21), 0 if side > 0 else math.pi
        pen.rect(x, y, length, 0.055, pen.shade(_COLOURS[color]), turn, _HULL)
        back = 0.22 * length
        pen.rect(x - back * math.cos(turn), y - back * math.sin(turn), 0.2 * length, 0.033, (96, 90, 84), turn)
    return {"object": "ship", "count": n, "color": color}


def _residential(pen: _Pen) -> Facts:
    rng, color = pen.rng, pen.rng.choice(["red", "grey", "brown", "orange"])
    rows = [-0.21, -0.02, 0.17] if rng.random() < 0.6 else [-0.13, 0.13]
    n = 0
    for y in rows:
        pen.rect(0, y, 2, 0.035, pen.shade((176, 174, 170)))
        for side in (-1, 1):
            for k in range(6):
                if rng.random() < 0.12:
                    continue  # an empty plot
                x, yy = -0.3 + 0.12 * k + rng.uniform(-0.008, 0.008), y + side * 0.055
                w, h = rng.uniform(0.065, 0.088), rng.uniform(0.046, 0.056)
                roof = pen.shade(_COLOURS[color], 14)
                pen.rect(x + 0.008, yy + 0.008, w, h, (56, 58, 54))
                pen.rect(x, yy, w, h, roof)
                pen.rect(x, yy, w, 0.008, (roof[0] * 3 // 4, roof[1] * 3 // 4, roof[2] * 3 // 4))
                n += 1
    return {"object": "house", "count": n, "color": color, "has_road": True}


def _river(pen: _Pen) -> Facts:
    rng, color = pen.rng, pen.rng.choice(["blue", "green", "brown"])
    phase, bend, width = rng.uniform(0, math.tau), rng.uniform(0.05, 0.11), rng.uniform(0.07, 0.12)
    xs = [-0.9 + 0.05 * k for k in range(37)]
    line = [(x, 0.01 + bend * math.sin(5 * x + phase)) for x in xs]
    for half, fill in ((width + 0.016, (192, 180, 142)), (width, _WATER[color])):
        pen.poly([(x, y - half) for x, y in line] + [(x, y + half) for x, y in reversed(line)], fill)
    return {"object": "river", "count": 1, "color": color}


def _storage_tanks(pen: _Pen) -> Facts:
    rng, n = pen.rng, pen.rng.randint(2, 9)
    color = rng.choice(["white", "grey", "brown"])
    pen.rect(0, 0.01, 0.76, 0.62, pen.shade((178, 166, 140)))
    columns, rows = _grid_for(n)
    radius = 0.4 * min(0.66 / columns, 0.56 / rows) * rng.uniform(0.85, 1)
    for x, y, *_ in _cells(rng, n, columns, rows):
        tank = pen.shade(_COLOURS[color], 8)
        pen.disc(x + 0.16 * radius, y + 0.16 * radius, 1.04 * radius, (66, 64, 62))
        pen.disc(x, y, radius, (tank[0] * 5 // 6, tank[1] * 5 // 6, tank[2] * 5 // 6))
        pen.disc(x, y, 0.86 * radius, tank)
        pen.rect(x, y, radius, 0.012, (110, 110, 110), rng.uniform(0, 3))
    return {"object": "storage tank", "count": n, "color": color}


# Label -> painter, how captions name the place, and what the objects do there.
PAINTERS: dict[str, tuple[Callable[[_Pen], Facts], str, str]] = {
    "airport": (_airport, "an airport", "parked beside a runway of an airport"),
    "bare land": (_bare_land, "a piece of bare land", "spread over a piece of bare land"),
    "baseball field": (_baseball_field, "a baseball field area", "laid out side by side in a baseball field area"),
    "farmland": (_farmland, "a piece of farmland", "arranged neatly in a piece of farmland"),
    "forest": (_forest, "a forest", "growing densely in a forest"),
    "industrial": (_industrial, "an industrial area", "standing in an industrial area"),
    "lake": (_lake, "a lake area", "in the middle of a lake area"),
    "parking": (_parking, "a parking lot", "parked in rows in a parking lot"),
    "port": (_port, "a port", "moored at a pier of a port"),
    "residential": (_residential, "a residential area", "lined up along the streets of a residential area"),
    "river": (_river, "a river area", "flowing through a river area"),
    "storage tanks": (_storage_tanks, "a storage tanks area", "built in a storage tanks area"),
}


def draw_scene(label: str, rng: random.Random, pixels: int) -> tuple[Image.Image, Facts]:
    """Returns a picture of a class, `pixels` pixels a side and without light and noise, with its facts."""
    ground = rng.choice(["green", "brown"] if label not in ("baseball field", "forest") else ["green"])
    image = Image.new("RGB", (pixels, pixels))
    pen = _Pen(ImageDraw.Draw(image), pixels, rng.uniform(0, math.tau), rng)
    pen.rect(0, 0, 2, 2, pen.shade(_GROUND[ground]))
    second = rng.choice(["none", "has_pond", "has_trees"])
    facts: Facts = {"object": "", "count": None, "color": "", "ground": ground}
    facts |= {"has_road": rng.random() < 0.5, "has_pond": False, "has_trees": False}
    # A pond beside a lake or a river, and trees beside a forest, could not be told from the scene itself.
    if second != "none" and (label, second) != ("forest", "has_trees") and label not in ("lake", "river"):
        facts[second] = True
    facts.update(PAINTERS[label][0](pen))
    # On the two sides that the objects leave free: a road below, a pond or trees above.
    if facts["has_road"] and label != "residential":
        pen.rect(0, 0.4, 2, 0.075, pen.shade((112, 112, 114)))
        for k in range(-9, 10):
            pen.rect(0.1 * k, 0.4, 0.045, 0.01, (226, 222, 200))
    if facts["has_pond"]:
        pen.blob(rng.uniform(-0.08, 0.08), -0.37, 0.11, 0.06, pen.shade((40, 96, 140), 8))
    if facts["has_trees"]:
        places = [(0.035 * k + rng.uniform(-0.01, 0.01), -0.37 + rng.uniform(-0.03, 0.03)) for k in range(-7, 8)]
        for x, y in places:
            r = 0.022 * rng.uniform(0.8, 1.3)
            pen.disc(x + 0.3 * r, y + 0.3 * r, r, (22, 44, 24))
            pen.disc(x, y, r, pen.shade((40, 88, 42), 14))
    return image, facts
