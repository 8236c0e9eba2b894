"""The figures of a benchmark as lines: speed by rows in one look, bars, and every figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from core.store.measurements import HIGHER, number
from workbench import look
from workbench.widgets.text import Part, visible

Figure = Mapping[str, Any]

LEVELS = "▁▂▃▄▅▆▇█"
FIRST = ("decode", "t2i", "weights", "load")
NAME = 19
CELL = 6
BAR = 24


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def level(value: float, most: float) -> str:
    """One cell filled in proportion to ``value`` of ``most``."""
    return LEVELS[max(0, min(len(LEVELS) - 1, round(value / most * len(LEVELS)) - 1))]


def plotted(figures: Sequence[Figure]) -> list[list[Part]]:
    """Lines of styled parts: a block for each linear or other subject, what a person waits for first."""
    lines: list[list[Part]] = []
    subjects = _unique(item["subject"] for item in figures)
    for subject in sorted(subjects, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST)):
        mine = [item for item in figures if item["subject"] == subject]
        if any(item["rows"] is not None for item in mine):
            blocks = [_by_rows(visible(str(subject)), mine)]
        else:
            blocks = [_bars(visible(str(subject)), some) for some in _comparable(mine)]
        for block in blocks:
            lines += [*block, []]
    return lines[:-1]


def _comparable(figures: list[Figure]) -> list[list[Figure]]:
    """The figures of a subject together, or by how they were taken if an implementation has several."""
    if len(_unique(item["implementation"] for item in figures)) == len(figures):
        return [figures]
    return [
        [item for item in figures if item["how"] == how] for how in _unique(item["how"] for item in figures)
    ]


def told_apart(runs: Sequence[tuple[int, Sequence[Figure]]]) -> list[Figure]:
    """The figures of several runs, given by number; implementations that more than one run measured carry its
    number.
    """
    keys = [
        (item["subject"], item["rows"], item["implementation"], item["how"])
        for _, some in runs
        for item in some
    ]
    if len(set(keys)) == len(keys):
        return [item for _, some in runs for item in some]
    return [
        {**item, "implementation": f"#{number} {item['implementation']}"}
        for number, some in runs
        for item in some
    ]


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
    ways = _unique(visible(str(item["how"] or "")) for item in figures)
    shared = f"; {ways[0]}" if len(ways) == 1 and ways[0] else ""
    lines: list[list[Part]] = [[(f" {subject}", look.BOLD), (f"  {unit}, {word}{shared}", look.MUTED)]]
    for item in figures:
        text = f"  {visible(item['implementation'])[:26]:<26} {number(item['value']):>8} "
        how = "" if shared else f"  {visible(str(item['how'] or ''))}"
        lines.append(
            [(text, look.PLAIN), (look.bar(item["value"] / most, BAR), look.ACCENT), (how, look.MUTED)]
        )
    return lines
