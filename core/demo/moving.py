"""Short clips of one coloured shape that moves, with what to ask about them, and how to change a drawn shape.

The embedded Lance was trained on neither. They are inputs to calibrate on, and to see whether a variant does with them
what bf16 does.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageDraw

from core.demo.canvas import BACKGROUNDS, COLOURS, seeded
from core.demo.captions import CAPTION_SIDE, caption
from core.demo.figures import article
from core.demo.shapes import SHAPES, draw_shape

FRAMES = 5
"""Frames of a clip: two latent frames."""

MOVES = {"to the right": (1, 0), "to the left": (-1, 0), "down": (0, 1), "up": (0, -1)}
"""Directions in pixels right and down."""

_REACH = 24


@dataclass(frozen=True)
class Moving:
    """A clip of ``FRAMES`` pictures (RGB, 96 x 96), a prompt that asks for it, and a question with its answer."""

    frames: list[Image.Image]
    prompt: str
    question: str
    answer: str


def moving(seed: int) -> Moving:
    """The clip of ``seed``: one shape that crosses the middle of the picture."""
    rng = seeded("moving", seed)
    shape, colour = rng.choice(SHAPES), rng.choice(sorted(COLOURS))
    background, move = rng.choice(sorted(BACKGROUNDS)), rng.choice(sorted(MOVES))
    radius, behind = rng.randint(14, 20), BACKGROUNDS[background]
    right, down = MOVES[move]
    frames = []
    for number in range(FRAMES):
        image = Image.new("RGB", (CAPTION_SIDE, CAPTION_SIDE), behind)
        step = _REACH * (2 * number / (FRAMES - 1) - 1)
        x, y = CAPTION_SIDE / 2 + right * step, CAPTION_SIDE / 2 + down * step
        draw_shape(ImageDraw.Draw(image), shape, x, y, radius, COLOURS[colour], behind)
        frames.append(image)
    thing = f"{colour} {shape}"
    questions = (
        (f"Where does the {shape} move?", f"The {shape} moves {move}."),
        ("Which shape moves?", f"{article(thing)[0].upper()}{article(thing)[1:]} moves."),
        (f"What colour is the {shape}?", f"The {shape} is {colour}."),
    )
    question, answer = rng.choice(questions)
    return Moving(
        frames, f"{article(thing)} moves {move} on {article(background)} background", question, answer
    )


def instruction(seed: int) -> str:
    """What to change in a drawn shape: its colour, its size, what it is, or what is behind it."""
    rng = seeded("instruction", seed)
    drawn = caption(seed)
    other = rng.choice([colour for colour in sorted(COLOURS) if colour != drawn.colour])
    return rng.choice(
        (
            f"Make it {other}.",
            f"Change the shape to {article(rng.choice(SHAPES))}.",
            f"Change the background to {rng.choice(sorted(BACKGROUNDS))}.",
            f"Make it {rng.choice(('larger', 'smaller'))}.",
        )
    )
