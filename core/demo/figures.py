"""Pictures of coloured shapes: counting them, and saying where they are."""

from __future__ import annotations

from PIL import Image

from core.demo.canvas import COLOURS, Colour, Question, Scene, paper, seeded
from core.demo.shapes import SHAPES, draw_shape

PLACES = ("top left", "top right", "bottom left", "bottom right")
BESIDE = {
    "to the right of": ((0, 1), (2, 3)),
    "to the left of": ((1, 0), (3, 2)),
    "below": ((0, 2), (1, 3)),
    "above": ((2, 0), (3, 1)),
}
"""For each relation, pairs (known place, place that stands in the relation to it), as indexes into ``PLACES``."""


def article(word: str) -> str:
    """``word`` with its indefinite article."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def plural(noun: str) -> str:
    """The plural of a shape's name."""
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def counted(number: int, noun: str) -> str:
    """``There are 3 red circles.``, with the verb and the noun in agreement."""
    return f"There is 1 {noun}." if number == 1 else f"There are {number} {plural(noun)}."


def _behind(sheet: Image.Image) -> Colour:
    """The colour of a fresh sheet."""
    pixel = sheet.getpixel((0, 0))
    assert isinstance(pixel, tuple), "sheets are RGB"
    red, green, blue = pixel
    return red, green, blue


def count_scene(seed: int) -> Scene:
    """Up to ten shapes of two sorts on a loose grid, to be counted."""
    rng = seeded("count", seed)
    image, pen = paper(rng)
    behind = _behind(image)
    sorts = list(zip(rng.sample(SHAPES, 2), rng.sample(sorted(COLOURS), 2), strict=True))
    numbers = [rng.randint(1, 6), rng.randint(1, 4)]
    cells = rng.sample(range(12), sum(numbers))
    for sort, number in zip(sorts, numbers, strict=True):
        for _ in range(number):
            row, column = divmod(cells.pop(), 4)
            x, y = 30 + 55 * column + rng.randint(-4, 4), 38 + 74 * row + rng.randint(-12, 12)
            draw_shape(pen, sort[0], x, y, rng.randint(19, 22), COLOURS[sort[1]], behind)
    asked = [
        Question(
            "count-shape",
            f"How many {colour} {plural(shape)} are there?",
            counted(number, f"{colour} {shape}"),
        )
        for (shape, colour), number in zip(sorts, numbers, strict=True)
    ]
    total = sum(numbers)
    return Scene(
        image, (*asked, Question("count-all", "How many shapes are there in total?", counted(total, "shape")))
    )


def shape_scene(seed: int) -> Scene:
    """Four different shapes of four different colours, one in each quarter of the picture."""
    rng = seeded("shape", seed)
    image, pen = paper(rng)
    behind = _behind(image)
    shapes, colours = rng.sample(SHAPES, 4), rng.sample(sorted(COLOURS), 4)
    for index in range(4):
        row, column = divmod(index, 2)
        x, y = 58 + 108 * column + rng.randint(-14, 14), 58 + 108 * row + rng.randint(-14, 14)
        draw_shape(pen, shapes[index], x, y, rng.randint(28, 38), COLOURS[colours[index]], behind)
    questions: list[Question] = []
    for shape, colour, place in zip(shapes, colours, PLACES, strict=True):
        questions += [
            Question("shape-colour", f"What colour is the {shape}?", f"The {shape} is {colour}."),
            Question("shape-name", f"Which shape is {colour}?", f"The {colour} shape is {article(shape)}."),
            Question(
                "shape-place", f"Where is the {colour} {shape}?", f"The {colour} {shape} is at the {place}."
            ),
        ]
    for relation, pairs in BESIDE.items():
        for known, other in pairs:
            answer = f"{article(f'{colours[other]} {shapes[other]}')} is {relation} the {shapes[known]}."
            questions.append(
                Question(
                    "shape-beside", f"What is {relation} the {shapes[known]}?", answer[0].upper() + answer[1:]
                )
            )
    listed = ", ".join(f"{colour} {shape}" for shape, colour in zip(shapes, colours, strict=True))
    lessons = [Question("shape-list", "List the shapes.", f"{listed}.")]
    for shape, colour, place in zip(shapes, colours, PLACES, strict=True):
        what = article(f"{colour} {shape}")
        lessons.append(
            Question(
                "shape-at", f"What is at the {place}?", f"{what[0].upper()}{what[1:]} is at the {place}."
            )
        )
    return Scene(image, tuple(questions), tuple(lessons))
