"""The text-to-image half of the demo's world: one coloured shape on a plain background, and prompts for it."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageDraw

from core.demo.canvas import BACKGROUNDS, COLOURS, seeded
from core.demo.figures import article
from core.demo.shapes import SHAPES, draw_shape

CAPTION_SIDE = 96
"""Width and height of a text-to-image picture, in pixels."""

_SMOOTH = 4
SIZES = {"small": (17, 20), "": (24, 30), "large": (36, 42)}
PLACES = {
    "": (0.0, 0.0),
    "on the left": (-1.0, 0.0),
    "on the right": (1.0, 0.0),
    "at the top": (0.0, -1.0),
    "at the bottom": (0.0, 1.0),
}


@dataclass(frozen=True)
class Captioned:
    """A picture (RGB, 96 x 96), a prompt that asks for it, and what its main object is."""

    image: Image.Image
    prompt: str
    shape: str
    colour: str


def caption(seed: int) -> Captioned:
    """The picture and prompt of ``seed``; what the prompt leaves open (size, place) is middling in the picture."""
    rng = seeded("caption", seed)
    shape, colour = rng.choice(SHAPES), rng.choice(sorted(COLOURS))
    background, size, place = (
        rng.choice(sorted(BACKGROUNDS)),
        rng.choice(sorted(SIZES)),
        rng.choice(sorted(PLACES)),
    )
    if size == "large":
        place = ""
    radius = rng.randint(*SIZES[size])
    room = CAPTION_SIDE / 2 - radius - 3
    x = CAPTION_SIDE / 2 + room * PLACES[place][0] + rng.randint(-2, 2)
    y = CAPTION_SIDE / 2 + room * PLACES[place][1] + rng.randint(-2, 2)
    behind = BACKGROUNDS[background]
    big = Image.new("RGB", (CAPTION_SIDE * _SMOOTH, CAPTION_SIDE * _SMOOTH), behind)
    draw_shape(
        ImageDraw.Draw(big), shape, x * _SMOOTH, y * _SMOOTH, radius * _SMOOTH, COLOURS[colour], behind
    )
    image = big.resize((CAPTION_SIDE, CAPTION_SIDE), Image.Resampling.BOX)
    thing = " ".join(part for part in (size, colour, shape) if part)
    where = f" {place}" if place else ""
    texts = (
        f"{article(thing)}{where} on {article(background)} background",
        f"A picture of {article(thing)}{where}, {background} background.",
        f"{article(thing)[0].upper()}{article(thing)[1:]}{where}. The background is {background}.",
        f"draw {article(thing)}{where} on {background}",
    )
    return Captioned(image, rng.choice(texts), shape, colour)
