"""A reference answer and its variants as lines: beside each other, below each other, or woven into one text."""

from __future__ import annotations

from dataclasses import dataclass

from textual.strip import Strip

from workbench import look
from workbench.widgets.difference import Piece, differences
from workbench.widgets.text import Part, columns, rule, strip, visible, wrapped

GAP = 3
LEAST = 34
"""Fewer cells than this are too few for a side."""


@dataclass(frozen=True)
class Side:
    """One answer: its title, its text, and whether keys act on it."""

    title: str
    text: str
    current: bool = False


Lines = tuple[list[Strip], set[int]]
"""Lines, and which of them hold a difference."""


def _title(side: Side, differs: bool | None) -> list[Part]:
    sign: list[Part] = []
    if differs is not None:
        sign = [(" ≠", look.WARN)] if differs else [(" =", look.GOOD)]
    return [(visible(side.title), look.BOLD if side.current or differs is None else look.PLAIN), *sign]


def _reference(pieces: list[Piece]) -> list[Part]:
    return [(piece.reference, look.PLAIN if piece.equal else look.ONLY_REFERENCE) for piece in pieces]


def _variant(pieces: list[Piece]) -> list[Part]:
    return [(piece.variant, look.PLAIN if piece.equal else look.ONLY_VARIANT) for piece in pieces]


def _has_difference(line: list[Part]) -> bool:
    return any(style in (look.ONLY_REFERENCE, look.ONLY_VARIANT) for _, style in line)


def _empty(lines: list[list[Part]]) -> list[list[Part]]:
    return lines if any(text for line in lines for text, _ in line) else [[("(empty answer)", look.MUTED)]]


def _paragraphs(pieces: list[Piece]) -> list[tuple[list[Part], list[Part]]]:
    """Both sides cut where they share a line break, so that equal paragraphs stand at the same height."""
    blocks: list[tuple[list[Part], list[Part]]] = [([], [])]
    for piece in pieces:
        if not piece.equal or "\n" not in piece.reference:
            blocks[-1][0].extend(_reference([piece]))
            blocks[-1][1].extend(_variant([piece]))
            continue
        for number, text in enumerate(piece.reference.split("\n")):
            if number:
                blocks.append(([], []))
            blocks[-1][0].append((text, look.PLAIN))
            blocks[-1][1].append((text, look.PLAIN))
    return blocks


def split(
    reference: Side, variants: list[Side], width: int, wrap: bool, shaded: list[Part] | None = None
) -> Lines:
    """The reference at the left and each variant beside it; they scroll together.

    ``shaded`` replaces the reference's text, for the view of its tokens' likelihood.
    """
    count = len(variants) + 1
    cells = (width - GAP * (count - 1)) // count
    widths = [cells] * count
    compared = [differences(reference.text, variant.text) for variant in variants]
    titles = [rule(_title(reference, None), cells)]
    titles += [rule(_title(side, reference.text != side.text), cells) for side in variants]
    lines = columns([[title] for title in titles], widths, GAP)
    marks: set[int] = set()
    room = cells if wrap else None
    if count == 2 and shaded is None:
        blocks = [[wrapped(left, room), wrapped(right, room)] for left, right in _paragraphs(compared[0])]
    else:
        left = shaded if shaded is not None else _reference(compared[0])
        blocks = [[wrapped(left, room), *(wrapped(_variant(pieces), room) for pieces in compared)]]
    if not reference.text or not all(side.text for side in variants):
        blocks = [[_empty(block) for block in blocks[0]], *blocks[1:]]
    if not wrap:
        longest = [
            max(sum(len(text) for text, _ in line) for row in blocks for line in row[i]) for i in range(count)
        ]
        widths = [max(cells, length) for length in longest]
    for row in blocks:
        height = max(len(block) for block in row)
        for y in range(height):
            if any(y < len(block) and _has_difference(block[y]) for block in row):
                marks.add(len(lines) + y)
        lines += columns(row, widths, GAP)
    return lines, marks


def stacked(
    reference: Side, variants: list[Side], width: int, wrap: bool, shaded: list[Part] | None = None
) -> Lines:
    """The reference above the variants, for narrow screens."""
    room = width if wrap else None
    first = variants[0] if variants else reference
    sides: list[tuple[Side, list[Part], bool | None]] = [
        (reference, shaded or _reference(differences(reference.text, first.text)), None)
    ]
    for side in variants:
        sides.append((side, _variant(differences(reference.text, side.text)), side.text != reference.text))
    lines: list[Strip] = []
    marks: set[int] = set()
    for side, parts, differs in sides:
        if lines:
            lines.append(strip([]))
        lines.append(strip(rule(_title(side, differs), width)))
        for line in _empty(wrapped(parts, room)):
            if _has_difference(line):
                marks.add(len(lines))
            lines.append(strip(line))
    return lines, marks


def unified(reference: Side, variant: Side, width: int, wrap: bool) -> Lines:
    """One text: what both say, and where they part the reference's words followed by the variant's."""
    parts: list[Part] = []
    for piece in differences(reference.text, variant.text):
        if piece.equal:
            parts.append((piece.reference, look.PLAIN))
        else:
            parts += [(piece.reference, look.ONLY_REFERENCE), (piece.variant, look.ONLY_VARIANT)]
    title: list[Part] = [
        (f" {visible(reference.title)} ", look.ONLY_REFERENCE),
        (" → ", look.MUTED),
        (f" {visible(variant.title)} ", look.ONLY_VARIANT),
    ]
    lines = [strip(rule(title, width))]
    marks: set[int] = set()
    for line in _empty(wrapped(parts, width if wrap else None)):
        if _has_difference(line):
            marks.add(len(lines))
        lines.append(strip(line))
    return lines, marks
