"""Text of unknown origin made safe to draw, and laid out as lines of a given width."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style

from core.plain_text import visible as visible
from workbench import look

if TYPE_CHECKING:
    from textual.strip import Strip

Part = tuple[str, Style]

_BREAK = re.compile(r"(\s+)")


def strip(parts: Iterable[Part]) -> Strip:
    """Styled parts as one line as long as they are."""
    from textual.strip import Strip  # the first frame is drawn with this module before Textual is imported

    return Strip([Segment(text, style) for text, style in parts if text])


def _folded(word: str, width: int, used: int) -> list[str]:
    """A word longer than a line, in pieces of which the first fits behind ``used`` cells and the others on a line."""
    pieces, piece = [], ""
    for sign in word:
        if piece and used + cell_len(piece) + cell_len(sign) > width:
            pieces.append(piece)
            piece, used = "", 0
        piece += sign
    return [*pieces, piece]


def wrapped(parts: Iterable[Part], width: int | None) -> list[list[Part]]:
    """Styled parts as lines of at most ``width`` cells, broken at blanks; with None only at line breaks.

    A word may run over several parts. Nothing is dropped but the blanks at which a line was broken. There is always at
    least one line.
    """
    lines: list[list[Part]] = [[]]
    word: list[Part] = []
    used = 0

    def finish() -> None:
        """Put the word that was collected on the line, or on the next where it does not fit."""
        nonlocal used
        cells = sum(cell_len(text) for text, _ in word)
        if used and used + cells > (width or 0):
            lines.append([])
            used = 0
        for text, style in word:
            for sign in _folded(text, width or 1, used) if cells > (width or 0) else [text]:
                if used and used + cell_len(sign) > (width or 0):
                    lines.append([])
                    used = 0
                lines[-1].append((sign, style))
                used += cell_len(sign)
        word.clear()

    for text, style in parts:
        for number, paragraph in enumerate(visible(text).split("\n")):
            if number:
                finish()
                lines.append([])
                used = 0
            if width is None:
                lines[-1].append((paragraph, style))
                continue
            for piece in filter(None, _BREAK.split(paragraph)):
                if not piece.isspace():
                    word.append((piece, style))
                    continue
                finish()
                if used + cell_len(piece) <= width:
                    lines[-1].append((piece, style))
                    used += cell_len(piece)
                else:
                    used = width
    finish()
    return lines


_KEY_LINE = re.compile(r"(\S{1,5})( {2,}\S.*)")


def centred(text: str, width: int, height: int) -> list[list[Part]]:
    """What stands where there is nothing to show: a title, words, and keys with what they do, a third from the top."""
    lines = text.split("\n")
    indent = " " * max(2, (width - max(map(cell_len, lines))) // 2)
    shown: list[list[Part]] = [[] for _ in range(max(1, (height - len(lines)) // 3))]
    for number, line in enumerate(lines):
        if number == 0:
            shown.append([(indent + line, look.BOLD)])
        elif (match := _KEY_LINE.fullmatch(line)) is not None:
            shown.append([(indent, look.PLAIN), (match[1], look.KEY), (match[2], look.PLAIN)])
        else:
            shown.append([(indent + line, look.PLAIN)])
    return shown


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
