"""Drawings are reproducible, and every answer is what can be read off the picture."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any, NamedTuple

import numpy
import pytest
from PIL import ImageDraw

from core.demo.canvas import COLOURS, INK, SIDE, WHITE, Scene
from core.demo.captions import CAPTION_SIDE, caption
from core.demo.drawing import FAMILIES, HELD_OUT, KINDS, draw, scene
from core.demo.figures import BESIDE, PLACES, article, counted, plural
from core.demo.recognise import UNKNOWN, recognise
from core.demo.shapes import SHAPES, outline
from core.demo.signs import PLATES
from core.errors import UsageError

SEEDS = (0, 1, 2, 3, 5, 8, 13, 21, HELD_OUT, HELD_OUT + 34)
NAMES = {rgb: name for name, rgb in COLOURS.items()} | {WHITE: "white"}


class Stroke(NamedTuple):
    """One call of a pen."""

    what: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]


@pytest.fixture
def strokes(monkeypatch: pytest.MonkeyPatch) -> list[Stroke]:
    """Everything pens do from now on; they draw all the same."""
    seen: list[Stroke] = []

    def spied(name: str) -> None:
        plain = getattr(ImageDraw.ImageDraw, name)

        def call(pen: Any, *arguments: Any, **options: Any) -> Any:
            seen.append(Stroke(name, arguments, options))
            return plain(pen, *arguments, **options)

        monkeypatch.setattr(ImageDraw.ImageDraw, name, call)

    for name in ("polygon", "ellipse", "pieslice", "rectangle", "text", "line"):
        spied(name)
    return seen


def texts(strokes: list[Stroke], anchor: str) -> list[str]:
    return [s.arguments[1] for s in strokes if s.what == "text" and s.options["anchor"] == anchor]


def fills(strokes: list[Stroke], what: str) -> list[str]:
    return [NAMES[s.options["fill"]] for s in strokes if s.what == what and s.options["fill"] in NAMES]


def legend_of(strokes: list[Stroke]) -> dict[str, str]:
    """Category by colour, as the legend shows them: a swatch, then its name."""
    found: dict[str, str] = {}
    for swatch, label in itertools.pairwise(strokes):
        if label.what == "text" and label.options["anchor"] == "lm":
            assert swatch.what == "rectangle"
            found[NAMES[swatch.options["fill"]]] = label.arguments[1]
    return found


def asked_of(drawn: Scene) -> dict[str, str]:
    """Answers by question; no question is asked twice."""
    assert len({q.text for q in drawn.questions}) == len(drawn.questions)
    return {q.text: q.answer for q in drawn.questions}


def chart_answers(part: str, legend: dict[str, str], values: dict[str, int]) -> dict[str, str]:
    """What the legend (category by colour) and the values by colour say about each part and the extremes."""
    right: dict[str, str] = {}
    for colour, value in values.items():
        right[f"What is the value of {legend[colour]}?"] = f"{legend[colour]} is {value}."
        right[f"What colour is {legend[colour]}?"] = f"{legend[colour]} is {colour}."
        right[f"What is the value of the {colour} {part}?"] = f"The {colour} {part} is {value}."
    for word, chosen in (("largest", max(values.values())), ("smallest", min(values.values()))):
        (name,) = (legend[colour] for colour, value in values.items() if value == chosen)
        right[f"Which {part} is the {word}?"] = f"{name} is the {word} with {chosen}."
    return right


@pytest.mark.parametrize("seed", SEEDS)
def test_bar_answers_are_what_the_chart_shows(seed: int, strokes: list[Stroke]) -> None:
    asked = asked_of(scene("bar", seed))
    bars = [s for s in strokes if s.what == "rectangle"][: len(texts(strokes, "mb"))]
    numbers = [int(number) for number in texts(strokes, "mb")]
    values = {NAMES[bar.options["fill"]]: value for bar, value in zip(bars, numbers, strict=True)}
    heights = [bar.arguments[0][3] - bar.arguments[0][1] for bar in bars]
    assert numpy.argsort(heights).tolist() == numpy.argsort(numbers).tolist()
    right = chart_answers("bar", legend_of(strokes), values)
    by_name = {legend_of(strokes)[colour]: value for colour, value in values.items()}
    (compared,) = asked.keys() - right.keys()
    first, second = compared.removeprefix("Is ").removesuffix("?").split(" greater than ")
    a, b = by_name[first], by_name[second]
    right[compared] = f"Yes, {a} is greater than {b}." if a > b else f"No, {a} is less than {b}."
    assert asked == right


@pytest.mark.parametrize("seed", SEEDS)
def test_pie_answers_are_what_the_chart_shows(seed: int, strokes: list[Stroke]) -> None:
    asked = asked_of(scene("pie", seed))
    slices = [s for s in strokes if s.what == "pieslice"]
    numbers = [int(number) for number in texts(strokes, "mm")]
    assert sum(numbers) == 100
    assert [round((s.arguments[2] - s.arguments[1]) / 3.6) for s in slices] == numbers
    values = {NAMES[s.options["fill"]]: number for s, number in zip(slices, numbers, strict=True)}
    right = chart_answers("segment", legend_of(strokes), values)
    most = max(numbers)
    (name,) = (legend_of(strokes)[colour] for colour, value in values.items() if value == most)
    right["Is the largest segment greater than the sum of all the other segments?"] = (
        f"{'Yes' if most > 50 else 'No'}, {name} is {most} and the others sum to {100 - most}."
    )
    assert asked == right


@pytest.mark.parametrize("seed", SEEDS)
def test_plate_answers_are_what_the_plate_says(seed: int, strokes: list[Stroke]) -> None:
    drawn = scene("plate", seed)
    asked = asked_of(drawn)
    letters, digits = "".join(texts(strokes, "mm")).split(" ")
    assert len(letters) == 2 and len(digits) == 3 and digits.isdigit()
    first = next(s for s in strokes if s.what == "text")
    x, y = (round(place) for place in first.arguments[0])
    plate = drawn.image.getpixel((x - 13, y))
    car = drawn.image.getpixel((x + 30, y - 38))
    assert asked == {
        "What is the licence plate number?": f"The licence plate number is {letters} {digits}.",
        "What are the letters on the plate?": f"The letters are {letters}.",
        "What are the digits on the plate?": f"The digits are {digits}.",
        "What colour is the licence plate?": "The licence plate is "
        + next(f"{name}." for name, colour in PLATES.items() if colour == plate),
        "What colour is the car?": f"The car is {NAMES[car]}.",  # type: ignore[index]
    }


@pytest.mark.parametrize("seed", range(12))
def test_sign_answers_are_what_the_sign_says(seed: int, strokes: list[Stroke]) -> None:
    drawn = scene("sign", seed)
    asked = asked_of(drawn)
    (text,) = texts(strokes, "mm")
    if text.isdigit():
        assert asked == {"What is the speed limit?": f"The speed limit is {text} kilometres per hour."}
        assert fills(strokes, "ellipse") == ["red", "white"]
        return
    counts = Counter(map(tuple, numpy.asarray(drawn.image).reshape(-1, 3).tolist()))
    colour = max((c for c in NAMES if c != WHITE), key=lambda c: counts[c])
    board = f"{article(NAMES[colour])} sign"
    assert asked == {
        "What does the sign say?": f"The sign says {text}.",
        "What colour is the sign?": f"The sign is {NAMES[colour]}.",
        "Describe the sign.": f"{board[0].upper()}{board[1:]} that says {text}.",
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_counts_are_how_many_shapes_were_drawn(seed: int, strokes: list[Stroke]) -> None:
    asked = asked_of(scene("count", seed))
    drawn = Counter((NAMES[s.options["fill"]], len(s.arguments[0])) for s in strokes if s.what == "polygon")
    total = sum(drawn.values())
    assert asked.pop("How many shapes are there in total?") == counted(total, "shape")
    assert len(asked) == len(drawn) == 2
    for (colour, corners), number in drawn.items():
        questions = {f"How many {colour} {plural(shape)} are there?": shape for shape in SHAPES}
        (text,) = questions.keys() & asked.keys()
        shape = questions[text]
        assert corners == len(outline(shape))
        assert asked[text] == counted(number, f"{colour} {shape}")


@pytest.mark.parametrize("seed", SEEDS)
def test_shape_answers_are_what_a_pixel_check_finds(seed: int) -> None:
    drawn = scene("shape", seed)
    half = SIDE // 2
    found = []
    for index in range(4):
        row, column = divmod(index, 2)
        box = (column * half, row * half, (column + 1) * half, (row + 1) * half)
        found.append(recognise(drawn.image.crop(box)))
    right: dict[str, str] = {}
    for (shape, colour), place in zip(found, PLACES, strict=True):
        right[f"What colour is the {shape}?"] = f"The {shape} is {colour}."
        right[f"Which shape is {colour}?"] = f"The {colour} shape is {article(shape)}."
        right[f"Where is the {colour} {shape}?"] = f"The {colour} {shape} is at the {place}."
    for relation, pairs in BESIDE.items():
        for known, other in pairs:
            thing = article(f"{found[other][1]} {found[other][0]}")
            right[f"What is {relation} the {found[known][0]}?"] = (
                f"{thing[0].upper()}{thing[1:]} is {relation} the {found[known][0]}."
            )
    assert asked_of(drawn) == right


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_and_a_seed_say_it_all(kind: str) -> None:
    first, second = draw(kind, HELD_OUT + 7), draw(kind, HELD_OUT + 7)
    assert first.image.tobytes() == second.image.tobytes()
    assert (first.question, first.answer) == (second.question, second.answer)
    assert first.image.size == (SIDE, SIDE) and first.image.mode == "RGB"
    other = draw(kind, HELD_OUT + 8)
    assert other.image.tobytes() != first.image.tobytes()


def test_kinds_are_those_the_families_ask() -> None:
    asked = {q.kind for family in FAMILIES for seed in range(8) for q in scene(family, seed).questions}
    assert asked == set(KINDS)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'pie-weight'.*pie-value"):
        draw("pie-weight", 1)
    with pytest.raises(UsageError, match=r"'map'.*plate"):
        scene("map", 1)


def test_captions_are_recognised_by_the_pixel_check() -> None:
    drawn = [caption(seed) for seed in range(300)]
    right = sum(recognise(sample.image) == (sample.shape, sample.colour) for sample in drawn)
    assert right > 0.98 * len(drawn)
    assert all(sample.image.size == (CAPTION_SIDE, CAPTION_SIDE) for sample in drawn)
    assert all(sample.shape in sample.prompt and sample.colour in sample.prompt for sample in drawn)
    again = caption(299)
    assert (again.prompt, again.image.tobytes()) == (drawn[299].prompt, drawn[299].image.tobytes())


def test_an_empty_picture_shows_nothing() -> None:
    blank = caption(0).image.copy()
    blank.paste(INK, (0, 0, *blank.size))
    assert recognise(blank) == UNKNOWN
