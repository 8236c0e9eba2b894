"""Licence plates and signs: text to be read."""

from __future__ import annotations

import math

from core.demo.canvas import COLOURS, INK, SIDE, WHITE, Colour, Question, Scene, font, ink_on, paper, seeded

LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"
"""Letters of a plate; I, O and Q are left out because they look like digits."""

WORDS = (
    "STOP", "EXIT", "OPEN", "TAXI", "HOTEL", "PARK", "SLOW", "BANK", "CAFE", "SHOP", "POST", "BUS",
    "ZOO", "MUSEUM", "LIBRARY", "STATION", "BEACH", "SCHOOL", "CLOSED", "DANGER", "BAKERY", "GARAGE",
    "FERRY", "TICKETS",
)  # fmt: skip
"""What a sign can say."""

PLATES: dict[str, Colour] = {
    "white": WHITE,
    "yellow": COLOURS["yellow"],
    "blue": COLOURS["blue"],
    "green": COLOURS["green"],
}
BOARDS = ("red", "blue", "green", "yellow", "orange", "purple")
PITCH = 28
"""Width of a plate's character cell, in pixels."""

LIMITS = tuple(range(10, 131, 10))


def plate_scene(seed: int) -> Scene:
    """The back of a car with a licence plate of two letters and three digits."""
    rng = seeded("plate", seed)
    letters = "".join(rng.sample(LETTERS, 2))
    digits = "".join(str(rng.randrange(10)) for _ in range(3))
    text = f"{letters} {digits}"
    plate = rng.choice(sorted(PLATES))
    car = rng.choice([name for name in sorted(COLOURS) if name != plate])
    image, pen = paper(rng)
    x, y = SIDE / 2 + rng.randint(-6, 6), rng.randint(98, 126)
    pen.rounded_rectangle((x - 100, y - 52, x + 100, y + 44), radius=18, fill=COLOURS[car])
    for side in (-1, 1):
        pen.ellipse((x + side * 84 - 9, y - 44, x + side * 84 + 9, y - 26), fill=(120, 20, 20))
        pen.rectangle((x + side * 70 - 14, y + 44, x + side * 70 + 14, y + 58), fill=INK)
    # Plates have glyphs of one width: every character stands in the middle of its own cell.
    left = x - PITCH * len(text) / 2
    box = (left - 4, y - 26, left + PITCH * len(text) + 4, y + 26)
    pen.rounded_rectangle(box, radius=5, fill=PLATES[plate], outline=INK, width=2)
    for place, character in enumerate(text):
        spot = (left + PITCH * (place + 0.5), y + 1)
        pen.text(spot, character, font=font(38), fill=ink_on(PLATES[plate]), anchor="mm")
    return Scene(
        image,
        (
            Question(
                "plate-text", "What is the licence plate number?", f"The licence plate number is {text}."
            ),
            Question("plate-letters", "What are the letters on the plate?", f"The letters are {letters}."),
            Question("plate-digits", "What are the digits on the plate?", f"The digits are {digits}."),
            Question("plate-colour", "What colour is the licence plate?", f"The licence plate is {plate}."),
            Question("plate-car", "What colour is the car?", f"The car is {car}."),
        ),
    )


def sign_scene(seed: int) -> Scene:
    """A sign on a post: a word on a board of some colour, or a round speed limit."""
    rng = seeded("sign", seed)
    image, pen = paper(rng)
    x, y = SIDE / 2 + rng.randint(-8, 8), rng.randint(84, 104)
    pen.rectangle((x - 5, y, x + 5, SIDE), fill=(90, 90, 90))
    if rng.random() < 0.3:
        limit = rng.choice(LIMITS)
        radius = rng.randint(56, 68)
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=COLOURS["red"])
        inner = radius - 13
        pen.ellipse((x - inner, y - inner, x + inner, y + inner), fill=WHITE)
        pen.text((x, y), str(limit), font=font(44), fill=INK, anchor="mm")
        return Scene(
            image,
            (
                Question(
                    "sign-limit",
                    "What is the speed limit?",
                    f"The speed limit is {limit} kilometres per hour.",
                ),
            ),
        )
    word, colour = rng.choice(WORDS), rng.choice(BOARDS)
    fill = COLOURS[colour]
    size = rng.randint(36, 44) if len(word) < 6 else rng.randint(31, 34)
    width, height = pen.textlength(word, font=font(size)) / 2 + 14, size * 0.5 + 18
    if rng.random() < 0.25 and len(word) < 6:
        reach = width + 6
        corners = [(x + reach * math.cos(math.pi * (k + 0.5) / 4), y + reach * math.sin(math.pi * (k + 0.5) / 4))
                   for k in range(8)]  # fmt: skip
        pen.polygon(corners, fill=fill)
    else:
        pen.rounded_rectangle(
            (x - width, y - height, x + width, y + height), radius=8, fill=fill, outline=INK, width=2
        )
    pen.text((x, y), word, font=font(size), fill=ink_on(fill), anchor="mm")
    return Scene(
        image,
        (
            Question("sign-text", "What does the sign say?", f"The sign says {word}."),
            Question("sign-colour", "What colour is the sign?", f"The sign is {colour}."),
            Question("sign-full", "Describe the sign.", f"A {colour} sign that says {word}."
                     if colour != "orange" else f"An orange sign that says {word}."),
        ),
    )  # fmt: skip
