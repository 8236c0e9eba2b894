"""What stands in the lines around a body: the bar of areas, lines with two ends, the bar of keys. Needs no Textual."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import cell_len

from workbench import actions, look
from workbench.widgets.text import Part

PROGRAM = "lance-workbench "
TITLES = [name.capitalize() for name in actions.AREAS]


def cells(parts: Iterable[Part]) -> int:
    """How many cells parts take."""
    return sum(cell_len(text) for text, _ in parts)


def tabs(titles: Sequence[str], current: int, running: int) -> list[Part]:
    """The areas with the current one set off, and how many jobs run beside the area of jobs."""
    parts: list[Part] = []
    for index, title in enumerate(titles):
        busy = f" {running}●" if title == "Jobs" and running else ""
        parts.append((f" {title}{busy} ", look.CURSOR if index == current else look.PLAIN))
    return parts


def area_bar(titles: Sequence[str], current: int, running: int, width: int) -> list[Part]:
    """The tabs, and the name of the program where there is room for it."""
    parts = tabs(titles, current, running)
    room = width - cells(parts) - len(PROGRAM)
    if room > 0:
        parts += [(" " * room, look.PLAIN), (PROGRAM, look.MUTED)]
    return parts


def two_ends(left: list[Part], right: list[Part], width: int) -> list[Part]:
    """Parts at the left and parts at the right; the right gives way where both do not fit."""
    used, tail = cells(left), cells(right)
    if not tail or used + tail + 1 > width:
        return left
    return [*left, (" " * (width - used - tail), look.PLAIN), *right]


def key_bar(hints: Sequence[tuple[str, str]], remark: str, width: int) -> list[Part]:
    """A remark, then keys with what they do, as many as fit; the last one always."""
    parts: list[Part] = [(" ", look.PLAIN)]
    room = width - 1
    if remark:
        parts.append((remark + "   ", look.BOLD))
        room -= cell_len(remark) + 3
    last = hints[-1:]
    for key, title in hints[:-1]:
        need = cell_len(key) + cell_len(title) + 3
        if need > room - sum(cell_len(k) + cell_len(t) + 1 for k, t in last):
            break
        parts += [(key, look.KEY), (f" {title}  ", look.MUTED)]
        room -= need
    for key, title in last:
        parts += [(key, look.KEY), (f" {title}", look.MUTED)]
    return parts
