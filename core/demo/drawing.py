"""The world that questions are asked about: pictures drawn by program, reproducible by kind and seed alone.

A *family* (``bar``, ``pie``, ``plate``, ``sign``, ``count``, ``shape``) is a way of drawing; a *kind* such as
``pie-compare`` is a family and what is asked. Nothing here depends on anything but Pillow and its embedded font.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from core.demo.canvas import Scene, seeded
from core.demo.charts import bar_scene, pie_scene
from core.demo.figures import count_scene, shape_scene
from core.demo.signs import plate_scene, sign_scene
from core.errors import UsageError

FAMILIES: dict[str, Callable[[int], Scene]] = {
    "bar": bar_scene,
    "pie": pie_scene,
    "plate": plate_scene,
    "sign": sign_scene,
    "count": count_scene,
    "shape": shape_scene,
}
"""How each family of pictures is drawn."""

KINDS = (
    "bar-value", "bar-colour", "bar-read", "bar-largest", "bar-smallest", "bar-compare",
    "pie-value", "pie-colour", "pie-read", "pie-largest", "pie-smallest", "pie-compare",
    "plate-text", "plate-letters", "plate-digits", "plate-colour", "plate-car",
    "sign-text", "sign-colour", "sign-full", "sign-limit",
    "count-shape", "count-all",
    "shape-colour", "shape-name", "shape-place", "shape-beside",
)  # fmt: skip
"""Every kind of question."""

HELD_OUT = 1_000_000_000
"""Seeds from here on are kept for suites; training draws from below."""


@dataclass(frozen=True)
class Drawn:
    """One question with its picture (RGB, 224 x 224) and its only right answer."""

    image: Image.Image
    question: str
    answer: str


def scene(family: str, seed: int) -> Scene:
    """The picture of ``family`` with ``seed`` and everything that can be asked about it.

    Raises:
        UsageError: there is no such family.
    """
    if family not in FAMILIES:
        raise UsageError(f"no family of drawings is called {family!r}; there are {', '.join(FAMILIES)}")
    return FAMILIES[family](seed)


def draw(kind: str, seed: int) -> Drawn:
    """The picture, question and answer of ``kind`` with ``seed``.

    A sign is either a word or a speed limit; for such a kind the seed's drawing is the first, counting on from
    ``seed`` in steps of a large prime, of which the question can be asked.

    Raises:
        UsageError: there is no such kind.
    """
    if kind not in KINDS:
        raise UsageError(f"no kind of question is called {kind!r}; there are {', '.join(KINDS)}")
    family = kind.partition("-")[0]
    drawn_seed = seed
    while True:
        drawn = scene(family, drawn_seed)
        asked = [question for question in drawn.questions if question.kind == kind]
        if asked:
            question = seeded(kind, seed).choice(asked)
            return Drawn(drawn.image, question.text, question.answer)
        drawn_seed += 982_451_653
