"""The few colours of the app: the terminal's own sixteen as foregrounds, and fixed pairs where a background is set.

A change of style costs bytes over SSH: the terminal's default colours are free, one of its sixteen is 2 characters and
a 256-colour pair 20, where true colour is 36. Pairs name both colours, so they read on dark and light alike.
"""

from __future__ import annotations

import os
from typing import Final

from rich.style import Style

PLAIN: Final = Style()
BOLD: Final = Style(bold=True)
MUTED: Final = Style(dim=True)
ACCENT: Final = Style(color="cyan")
KEY: Final = Style(color="cyan", bold=True)
GOOD: Final = Style(color="green")
BAD: Final = Style(color="red")
WARN: Final = Style(color="yellow")


def _pair(foreground: int, background: int, *, underline: bool = False, reverse: bool = True) -> Style:
    """A foreground on a background; with NO_COLOR reverse video, unless it would be too much of it."""
    if os.environ.get("NO_COLOR"):
        return Style(reverse=reverse or None, underline=underline or None)
    return Style(color=f"color({foreground})", bgcolor=f"color({background})", underline=underline or None)


CURSOR: Final = _pair(255, 24)
"""The row or tab that keys act on."""
CURSOR_BLURRED: Final = _pair(252, 238)
"""The same in a pane without the focus."""

ONLY_REFERENCE: Final = _pair(159, 23, underline=True, reverse=False)
"""Words that only the bf16 answer has; blue and orange stay apart for every kind of colour vision."""
ONLY_VARIANT: Final = _pair(223, 94, underline=True)
"""Words that only the variant's answer has."""

HEAT: Final = (
    PLAIN,
    _pair(255, 237, reverse=False),
    _pair(255, 58, reverse=False),
    _pair(255, 94),
    _pair(255, 130),
    _pair(255, 160),
)
"""Shades of one token's KL divergence, from none to large."""
HEAT_FROM: Final = (0.0, 0.001, 0.01, 0.1, 0.5, 2.0)
"""The KL in nats from which each shade of ``HEAT`` holds."""

BARS: Final = "▏▎▍▌▋▊▉█"


def heat(value: float | None) -> Style:
    """The shade of a KL divergence in nats; none where it is not known."""
    shade = HEAT[0]
    for floor, style in zip(HEAT_FROM, HEAT, strict=True):
        if value is not None and value >= floor:
            shade = style
    return shade


def bar(fraction: float, width: int) -> str:
    """A horizontal bar of ``width`` cells filled to ``fraction``, in eighths of a cell."""
    eighths = round(max(0.0, min(1.0, fraction)) * width * 8)
    full, rest = divmod(eighths, 8)
    text = "█" * full + (BARS[rest - 1] if rest else "")
    return text + "·" * (width - len(text))
