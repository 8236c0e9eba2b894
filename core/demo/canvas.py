"""What every drawing shares: colours with names, the font, seeded randomness, and what a drawing is."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

SIDE = 224
"""Width and height of every question's picture, in pixels."""

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (214, 39, 40),
    "blue": (31, 90, 200),
    "green": (40, 150, 60),
    "yellow": (250, 210, 40),
    "orange": (255, 130, 20),
    "purple": (130, 60, 180),
    "cyan": (60, 200, 220),
    "pink": (250, 130, 190),
}
"""The eight colours a thing can have."""

BACKGROUNDS: dict[str, Colour] = {
    "white": (255, 255, 255),
    "black": (20, 20, 20),
    "grey": (150, 150, 150),
    "beige": (240, 225, 195),
}
"""The four backgrounds of a text-to-image picture; none is near a colour of ``COLOURS``."""

PAPERS: tuple[Colour, ...] = (
    (255, 255, 255),
    (246, 246, 240),
    (236, 241, 248),
    (250, 240, 230),
    (228, 228, 228),
)
"""Light backgrounds of a question's picture."""

INK: Colour = (25, 25, 25)
WHITE: Colour = (255, 255, 255)


@dataclass(frozen=True)
class Question:
    """One question about a picture. ``kind`` is the family of the picture and what is asked, e.g. ``pie-value``."""

    kind: str
    text: str
    answer: str


@dataclass(frozen=True)
class Scene:
    """A picture of ``SIDE`` x ``SIDE`` pixels, all that can be asked about it, and what helps to learn it."""

    image: Image.Image
    questions: tuple[Question, ...]
    lessons: tuple[Question, ...] = ()
    """Asked in training only: the steps that some of the questions take at once."""


def seeded(*parts: object) -> random.Random:
    """A generator that depends on the text of ``parts`` alone, the same in every Python from 3.11 on."""
    return random.Random(":".join(str(part) for part in parts))


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's embedded Aileron at ``size`` pixels, so that text looks the same wherever it is drawn."""
    loaded = ImageFont.load_default(size)
    assert isinstance(loaded, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return loaded


def ink_on(colour: Colour) -> Colour:
    """Black or white, whichever is legible on ``colour`` (by Rec. 601 luma)."""
    red, green, blue = colour
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 130 else WHITE


def paper(rng: random.Random) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A fresh light sheet and the pen for it."""
    image = Image.new("RGB", (SIDE, SIDE), rng.choice(PAPERS))
    return image, ImageDraw.Draw(image)
