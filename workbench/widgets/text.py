"""Text of unknown origin made safe to draw, and laid out as lines of a given width."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from workbench import look

Part = tuple[str, Style]

_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_CONTROLS = {code: chr(0x2400 + code) for code in range(32) if chr(code) != "\n"}
_CONTROLS |= dict.fromkeys((*range(127, 160), 8234, 8235, 8236, 8237, 8238, 8294, 8295, 8296), "�")
_CONTROLS |= {0x2069: "�", 0x09: "    ", 0x0D: ""}

_BREAK = re.compile(r"(\s+)")


def visible(text: str) -> str:
    """``text`` without terminal sequences and with control characters shown: an answer cannot steer the screen."""
    return _SEQUENCE.sub("", text).translate(_CONTROLS)


def strip(parts: Iterable[Part]) -> Strip:
    """Styled parts as one line as long as they are."""
    return Strip([Segment(text, style) for text, style in parts if text])


def _folded(word: str, width: int) -> list[str]:
    """A word longer than a line, in pieces that fit."""
    pieces, piece, used = [], "", 0
    for sign in word:
        cells = cell_len(sign)
        if used + cells > width:
            pieces.append(piece)
            piece, used = "", 0
        piece, used = piece + sign, used + cells
    return [*pieces, piece] if piece else pieces


def wrapped(parts: Iterable[Part], width: int | None) -> list[list[Part]]:
    """Styled parts as lines of at most ``width`` cells, broken at blanks; with None only at line breaks.

    Nothing is dropped but the blanks at which a line was broken. There is always at least one line.
    """
    lines: list[list[Part]] = [[]]
    used = 0
    for text, style in parts:
        for number, paragraph in enumerate(visible(text).split("\n")):
            if number:
                lines.append([])
                used = 0
            if width is None:
                lines[-1].append((paragraph, style))
                continue
            for word in filter(None, _BREAK.split(paragraph)):
                cells = cell_len(word)
                if used + cells > width:
                    if word.isspace():
                        continue
                    if used:
                        lines.append([])
                        used = 0
                    *full, word = _folded(word, width)
                    for piece in full:
                        lines[-1].append((piece, style))
                        lines.append([])
                    cells = cell_len(word)
                elif not used and word.isspace() and len(lines) > 1 and lines[-2]:
                    continue
                lines[-1].append((word, style))
                used += cells
    return lines


def rule(title: Iterable[Part], width: int) -> list[Part]:
    """A title followed by a line to the right edge."""
    parts = list(title)
    used = sum(cell_len(text) for text, _ in parts)
    return [*parts, (" " + "─" * max(0, width - used - 1), look.MUTED)]


def columns(blocks: list[list[list[Part]]], widths: list[int], gap: int) -> list[Strip]:
    """Blocks of lines beside each other, each padded to its width, the shorter ones with empty lines."""
    height = max(len(block) for block in blocks)
    lines = []
    for y in range(height):
        parts: list[Part] = []
        for block, width in zip(blocks, widths, strict=True):
            line = block[y] if y < len(block) else []
            parts += line
            parts.append((" " * (max(0, width - sum(cell_len(text) for text, _ in line)) + gap), look.PLAIN))
        lines.append(strip(parts))
    return lines
