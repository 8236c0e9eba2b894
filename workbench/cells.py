"""How numbers and proportions are written in a column: fixed decimals, so that decimal points align."""

from __future__ import annotations

from rich.cells import cell_len, set_cell_size

from core.store import columns

ABSENT = "—"


def number(value: float | None, decimals: int, width: int) -> str:
    """Right-aligned fixed-point text; an absent value is a dash under the units."""
    if value is None:
        tail = decimals + 1 if decimals else 0
        return (ABSENT + " " * tail).rjust(width)
    return f"{value:{width}.{decimals}f}"


def with_error(value: float | None, error: float | None, decimals: int, width: int) -> str:
    """A mean and its standard error: ``0.0310 ±0.0020``, ``7.7e-5 ±2.6e-5``; ``width`` holds both."""
    if value is not None and error is not None and "e" in columns.number(value, decimals, value):
        both = f"{columns.number(value, decimals, value)} ±{columns.number(error, decimals, value)}"
        return both.rjust(width)[:width]
    tail = f" ±{error:.{decimals}f}" if value is not None and error is not None else ""
    room = decimals + 4
    return number(value, decimals, width - room) + tail.ljust(room)[:room]


def proportion(value: float | None, low: float | None, high: float | None) -> str:
    """A proportion in per cent with half the width of its interval, 13 cells: `` 88.0 % ±4.5``."""
    if value is None:
        return number(None, 1, 5).ljust(13)
    tail = f" ±{(high - low) * 50:.1f}" if low is not None and high is not None else ""
    return f"{value * 100:5.1f} %{tail}".ljust(13)


def clip(text: str, width: int) -> str:
    """``text`` in exactly ``width`` cells, its end replaced by an ellipsis where it is too long; one line."""
    flat = " ".join(text.split()) if "\n" in text else text
    if cell_len(flat) <= width:
        return set_cell_size(flat, width)
    return set_cell_size(flat, width - 1) + "…" if width > 0 else ""
