"""A scrolling view over lines that are already laid out, with an overview of the marked ones at its right edge."""

from __future__ import annotations

from collections.abc import Sequence

from rich.segment import Segment
from textual import events
from textual.strip import Strip
from textual.widget import Widget

from workbench import look


class Document(Widget, can_focus=True):
    """Shows strips; ``marks`` are the lines to show in the overview bar."""

    DEFAULT_CSS = "Document { height: 1fr; width: 1fr; }"

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.lines: Sequence[Strip] = ()
        self.marks: frozenset[int] = frozenset()
        self.top = 0
        self.left = 0

    @property
    def end(self) -> int:
        """The largest ``top``."""
        return max(0, len(self.lines) - self.size.height)

    def show(
        self, lines: Sequence[Strip], marks: frozenset[int] = frozenset(), *, keep: bool = False
    ) -> None:
        """Replace the lines; the view goes back to the top unless ``keep``."""
        self.lines, self.marks = lines, marks
        self.top = min(self.top, self.end) if keep else 0
        self.left = self.left if keep else 0
        self.refresh()

    def scroll(self, step: int) -> None:
        """Move the view down by ``step`` lines."""
        top = max(0, min(self.top + step, self.end))
        if top != self.top:
            self.top = top
            self.refresh()

    def shift(self, step: int) -> None:
        """Move the view right by ``step`` cells, where a line is longer than the view."""
        longest = max((line.cell_length for line in self.lines), default=0)
        left = max(0, min(self.left + step, longest - self.size.width + 1))
        if left != self.left:
            self.left = left
            self.refresh()

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        index = self.top + y
        if index >= len(self.lines):
            return Strip.blank(width)
        line = self.lines[index].crop(self.left, self.left + width).adjust_cell_length(width)
        if not self.end:
            return line
        return Strip([*line.crop(0, width - 1), self._overview(y)], width)

    def _overview(self, y: int) -> Segment:
        """One cell of the bar: where the view is, and whether the lines it stands for are marked."""
        height, total = self.size.height, len(self.lines)
        first, last = y * total // height, max(y * total // height + 1, (y + 1) * total // height)
        inside = first < self.top + height and last > self.top
        marked = any(line in self.marks for line in range(first, last))
        return Segment("┃" if inside else "│" if marked else " ", look.WARN if marked else look.MUTED)

    def on_resize(self) -> None:
        self.top = min(self.top, self.end)

    def on_mouse_scroll_down(self) -> None:
        self.scroll(3)

    def on_mouse_scroll_up(self) -> None:
        self.scroll(-3)

    def on_key(self, event: events.Key) -> None:
        page = max(1, self.size.height - 1)
        steps = {"down": 1, "j": 1, "up": -1, "k": -1, "pagedown": page, "pageup": -page, "home": -len(self.lines),
                 "g": -len(self.lines), "end": len(self.lines), "G": len(self.lines)}  # fmt: skip
        name = event.character if event.character in steps else event.key
        if name in steps:
            self.scroll(steps[name])
        elif event.key in ("left", "right"):
            self.shift(8 if event.key == "right" else -8)
        else:
            return
        event.stop()
