"""Bar and pie charts with a legend and printed values, and what can be asked about them."""

from __future__ import annotations

import itertools
import math
import random

from PIL import ImageDraw

from core.demo.canvas import COLOURS, INK, SIDE, Colour, Question, Scene, font, ink_on, paper, seeded

CATEGORIES = (
    "Rent", "Food", "Bus", "Books", "Tea", "Milk", "Corn", "Rice", "Coal", "Wind", "Solar", "Gas",
    "Cars", "Bikes", "Cats", "Dogs", "Birds", "Fish", "Wood", "Steel", "Paper", "Glass", "Music", "Toys",
)  # fmt: skip
"""What a chart's parts stand for; short enough for the legend."""

LEGEND_WIDTH = 78


def legend(pen: ImageDraw.ImageDraw, left: int, top: int, entries: list[tuple[str, Colour]]) -> None:
    """One row per entry: a swatch and the category's name."""
    for row, (name, colour) in enumerate(entries):
        y = top + 28 * row
        pen.rectangle((left, y, left + 16, y + 16), fill=colour)
        pen.text((left + 22, y + 8), name, font=font(18), fill=INK, anchor="lm")


def pick(rng: random.Random) -> tuple[list[str], list[str]]:
    """Three or four categories with a colour's name each, all different."""
    count = rng.randint(3, 4)
    return rng.sample(CATEGORIES, count), rng.sample(sorted(COLOURS), count)


def bar_values(rng: random.Random, count: int) -> list[int]:
    """Distinct values of two digits, at least three apart, so that the order can be seen as well as read."""
    while True:
        values = [rng.randint(10, 99) for _ in range(count)]
        ordered = sorted(values)
        if all(high - low >= 3 for low, high in itertools.pairwise(ordered)):
            return values


def by_part(
    family: str, part: str, names: list[str], colours: list[str], values: list[int]
) -> list[Question]:
    """For each part of a chart: its value by the legend's name, its colour, and its value by colour."""
    asked: list[Question] = []
    for name, colour, value in zip(names, colours, values, strict=True):
        asked += [
            Question(f"{family}-value", f"What is the value of {name}?", f"{name} is {value}."),
            Question(f"{family}-colour", f"What colour is {name}?", f"{name} is {colour}."),
            Question(
                f"{family}-read",
                f"What is the value of the {colour} {part}?",
                f"The {colour} {part} is {value}.",
            ),
        ]
    return asked


def lessons(
    family: str, listed: list[int], names: list[str], colours: list[str], values: list[int]
) -> tuple[Question, ...]:
    """The steps from a name to its value: reading the legend from the top, and going through a part's colour."""
    rows = ", ".join(f"{names[index]} {colours[index]}" for index in listed)
    asked = [Question(f"{family}-legend", "List the legend.", f"{rows}.")]
    for name, colour, value in zip(names, colours, values, strict=True):
        asked += [
            Question(f"{family}-steps", f"What is {name}?", f"{name} is {colour} with {value}."),
            Question(f"{family}-named", f"What is {colour}?", f"{name} is {colour}."),
        ]
    return tuple(asked)


def bar_questions(
    names: list[str], colours: list[str], values: list[int], rng: random.Random
) -> tuple[Question, ...]:
    """Values by name and by colour, the legend's colours, the extremes, and one comparison of two bars."""
    by_value = sorted(zip(values, names, strict=True))
    (low, lowest), (high, highest) = by_value[0], by_value[-1]
    first, second = rng.sample(range(len(names)), 2)
    a, b = values[first], values[second]
    verdict = f"Yes, {a} is greater than {b}." if a > b else f"No, {a} is less than {b}."
    asked = by_part("bar", "bar", names, colours, values)
    return (
        *asked,
        Question("bar-largest", "Which bar is the largest?", f"{highest} is the largest with {high}."),
        Question("bar-smallest", "Which bar is the smallest?", f"{lowest} is the smallest with {low}."),
        Question("bar-compare", f"Is {names[first]} greater than {names[second]}?", verdict),
    )


def bar_scene(seed: int) -> Scene:
    """A bar chart: a value above every bar, the legend beside the plot."""
    rng = seeded("bar", seed)
    names, colours = pick(rng)
    values = bar_values(rng, len(names))
    image, pen = paper(rng)
    on_left = rng.random() < 0.5
    left = LEGEND_WIDTH + 6 if on_left else 8
    floor, ceiling, width = 210, 38, SIDE - LEGEND_WIDTH - 14
    step = width / len(names)
    order = list(range(len(names)))
    rng.shuffle(order)
    pen.line((left - 3, floor, left + width + 3, floor), fill=INK, width=2)
    for place, index in enumerate(order):
        middle = left + step * (place + 0.5)
        top = floor - (floor - ceiling) * values[index] / 99
        half = step * 0.36
        pen.rectangle((middle - half, top, middle + half, floor - 1), fill=COLOURS[colours[index]])
        pen.text((middle, top - 3), str(values[index]), font=font(24), fill=INK, anchor="mb")
    listed = list(range(len(names)))
    rng.shuffle(listed)
    legend(
        pen,
        6 if on_left else SIDE - LEGEND_WIDTH,
        rng.randint(20, 90),
        [(names[i], COLOURS[colours[i]]) for i in listed],
    )
    return Scene(
        image, bar_questions(names, colours, values, rng), lessons("bar", listed, names, colours, values)
    )


def pie_values(rng: random.Random, count: int) -> list[int]:
    """Distinct percentages of at least 10 that sum to 100; in half of the pies one exceeds all the others."""
    while True:
        if rng.random() < 0.5:
            first = rng.randint(52, 100 - 11 * (count - 1))
            cuts = sorted(rng.sample(range(1, 100 - first), count - 2))
            rest = [b - a for a, b in zip([0, *cuts], [*cuts, 100 - first], strict=True)]
            values = [first, *rest]
        else:
            cuts = sorted(rng.sample(range(1, 100), count - 1))
            values = [b - a for a, b in zip([0, *cuts], [*cuts, 100], strict=True)]
        if min(values) >= 10 and len(set(values)) == count and max(values) != 50:
            rng.shuffle(values)
            return values


def pie_questions(names: list[str], colours: list[str], values: list[int]) -> tuple[Question, ...]:
    """Values by name and by colour, the legend's colours, the extremes, and whether one exceeds all the others."""
    by_value = sorted(zip(values, names, strict=True))
    (low, lowest), (high, highest) = by_value[0], by_value[-1]
    verdict = "Yes" if high > 50 else "No"
    asked = by_part("pie", "segment", names, colours, values)
    return (
        *asked,
        Question("pie-largest", "Which segment is the largest?", f"{highest} is the largest with {high}."),
        Question("pie-smallest", "Which segment is the smallest?", f"{lowest} is the smallest with {low}."),
        Question(
            "pie-compare",
            "Is the largest segment greater than the sum of all the other segments?",
            f"{verdict}, {highest} is {high} and the others sum to {100 - high}.",
        ),
    )


def pie_scene(seed: int) -> Scene:
    """A pie chart of percentages, printed inside the segments, the legend beside it."""
    rng = seeded("pie", seed)
    names, colours = pick(rng)
    values = pie_values(rng, len(names))
    image, pen = paper(rng)
    on_left = rng.random() < 0.5
    radius = 70
    x = SIDE - 4 - radius if on_left else 4 + radius
    y = rng.randint(radius + 6, SIDE - radius - 6)
    start = rng.uniform(0, 360)
    for value, colour in zip(values, (COLOURS[name] for name in colours), strict=True):
        end = start + 3.6 * value
        pen.pieslice((x - radius, y - radius, x + radius, y + radius), start, end, fill=colour, outline=INK)
        middle = math.radians((start + end) / 2)
        spot = (x + radius * 0.66 * math.cos(middle), y + radius * 0.66 * math.sin(middle))
        pen.text(spot, str(value), font=font(24), fill=ink_on(colour), anchor="mm")
        start = end
    listed = list(range(len(names)))
    rng.shuffle(listed)
    legend(
        pen,
        6 if on_left else SIDE - LEGEND_WIDTH,
        rng.randint(20, 90),
        [(names[i], COLOURS[colours[i]]) for i in listed],
    )
    return Scene(image, pie_questions(names, colours, values), lessons("pie", listed, names, colours, values))
