"""The eight shapes of the drawn world, as outlines in a unit square, and how one is drawn."""

from __future__ import annotations

import functools
import math

from PIL import ImageDraw

from core.demo.canvas import Colour

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "diamond")
"""Every shape's name."""

HOLE = 0.52
"""Inner over outer radius of a ring."""


@functools.cache
def outline(shape: str) -> tuple[tuple[float, float], ...]:
    """Corner points of ``shape`` in [-1, 1] x [-1, 1], y downwards; the ring's outline is its outer edge."""
    if shape in ("circle", "ring"):
        return tuple((math.cos(a * math.tau / 48), math.sin(a * math.tau / 48)) for a in range(48))
    if shape == "square":
        return ((-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86))
    if shape == "triangle":
        return ((0.0, -0.95), (1.0, 0.85), (-1.0, 0.85))
    if shape == "diamond":
        return ((0.0, -1.0), (0.8, 0.0), (0.0, 1.0), (-0.8, 0.0))
    if shape == "star":
        corners = []
        for index in range(10):
            radius = 1.05 if index % 2 == 0 else 0.44
            angle = math.pi * index / 5
            corners.append((radius * math.sin(angle), 0.06 - radius * math.cos(angle)))
        return tuple(corners)
    if shape == "cross":
        arm = 0.34
        return (
            (-arm, -1.0), (arm, -1.0), (arm, -arm), (1.0, -arm), (1.0, arm), (arm, arm),
            (arm, 1.0), (-arm, 1.0), (-arm, arm), (-1.0, arm), (-1.0, -arm), (-arm, -arm),
        )  # fmt: skip
    if shape == "heart":
        points = []
        for index in range(48):
            angle = index * math.tau / 48
            x = 16 * math.sin(angle) ** 3
            y = 13 * math.cos(angle) - 5 * math.cos(2 * angle) - 2 * math.cos(3 * angle) - math.cos(4 * angle)
            points.append((x / 17, -(y + 2.5) / 15))
        return tuple(points)
    raise ValueError(f"no shape is called {shape!r}")


def draw_shape(
    pen: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float, fill: Colour, behind: Colour
) -> None:
    """Draw ``shape`` filled with ``fill``, centred at (x, y) pixels; ``behind`` shows through a ring's hole."""
    pen.polygon([(x + radius * px, y + radius * py) for px, py in outline(shape)], fill=fill)
    if shape == "ring":
        hole = radius * HOLE
        pen.ellipse((x - hole, y - hole, x + hole, y + hole), fill=behind)
