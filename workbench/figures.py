"""The figures of a benchmark as lines: speed by rows in one look, bars, and every figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from core.store.measurements import HIGHER, number
from workbench import look
from workbench.widgets.text import Part, visible

Figure = Mapping[str, Any]

LEVELS = "▁▂▃▄▅▆▇█"
NAME = 19
CELL = 6
BAR = 24


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def level(value: float, most: float) -> str:
    """One cell filled in proportion to ``value`` of ``most``."""
    return LEVELS[max(0, min(len(LEVELS) - 1, round(value / most * len(LEVELS)) - 1))]


def plotted(figures: Sequence[Figure]) -> list[list[Part]]:
    """Lines of styled parts: a block for each linear, then one for each other subject."""
    lines: list[list[Part]] = []
    for subject in _unique(item["subject"] for item in figures):
        mine = [item for item in figures if item["subject"] == subject]
        by_rows = any(item["rows"] is not None for item in mine)
        lines += (_by_rows if by_rows else _bars)(visible(str(subject)), mine)
        lines.append([])
    return lines[:-1]


def _by_rows(subject: str, figures: list[Figure]) -> list[list[Part]]:
    """Speed against bf16 over the rows of activations, then times and bandwidth."""
    ms = _unique(item["rows"] for item in figures)
    most = max((item["against"] or 0.0 for item in figures), default=0.0) or 1.0
    lines: list[list[Part]] = [
        [(f" {subject}", look.BOLD), ("  times the speed of bf16, by rows of activations", look.MUTED)],
        [(" " * NAME + "".join(f"{m:>{CELL}}" for m in ms), look.MUTED)],
    ]
    for name in _unique(item["implementation"] for item in figures):
        parts: list[Part] = [(f"  {visible(name)}"[:NAME].ljust(NAME), look.PLAIN)]
        found = {item["rows"]: item["against"] for item in figures if item["implementation"] == name}
        for m in ms:
            value = found.get(m)
            if value is None:
                parts.append((" " * CELL, look.PLAIN))
                continue
            style = look.GOOD if value > 1 else look.BAD if value < 0.8 else look.PLAIN
            parts.append((f"{value:{CELL - 1}.2f}", look.PLAIN))
            parts.append((level(value, most), style))
        lines.append(parts)
    for m in ms:
        same = [item for item in figures if item["rows"] == m]
        slowest = max(item["value"] for item in same)
        for item in same:
            rate = (
                ""
                if item["gigabytes"] is None
                else f"{item['gigabytes']:,.0f} GB/s {100 * item['share']:3.0f} %"
            )
            text = f"  M {m:<5} {visible(item['implementation'])[:NAME]:<{NAME}} "
            text += f"{number(item['value']):>8} {item['unit']}  "
            bar = look.bar(item["value"] / slowest, BAR)
            how = visible(str(item["how"] or ""))
            lines.append([(text, look.PLAIN), (bar, look.ACCENT), (f"  {rate}  {how}".rstrip(), look.MUTED)])
    return lines


def _bars(subject: str, figures: list[Figure]) -> list[list[Part]]:
    """A bar for each figure of one subject."""
    unit = str(figures[0]["unit"])
    most = max(item["value"] for item in figures) or 1.0
    word = "more is better" if unit in HIGHER else "less is better"
    lines: list[list[Part]] = [[(f" {subject}", look.BOLD), (f"  {unit}, {word}", look.MUTED)]]
    for item in figures:
        text = f"  {visible(item['implementation'])[:26]:<26} {number(item['value']):>8} "
        bar = look.bar(item["value"] / most, BAR)
        lines.append(
            [(text, look.PLAIN), (bar, look.ACCENT), (f"  {visible(str(item['how'] or ''))}", look.MUTED)]
        )
    return lines
