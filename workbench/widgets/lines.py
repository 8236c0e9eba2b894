"""Widgets of one or a few lines of styled text: the bar of areas, the bar of keys, headings and messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.segment import Segment
from textual import events
from textual.geometry import Region, Size
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from workbench import bars, look
from workbench.widgets.text import Part, wrapped


def strip_of(parts: Iterable[Part], width: int) -> Strip:
    """Parts as one line of exactly ``width`` cells."""
    return Strip([Segment(text, style) for text, style in parts if text]).adjust_cell_length(width)


class Line(Widget):
    """One line: parts at the left, parts at the right; the right gives way where both do not fit."""

    DEFAULT_CSS = "Line { height: 1; width: 1fr; }"

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.left: list[Part] = []
        self.right: list[Part] = []

    def show(self, left: list[Part], right: list[Part] | None = None) -> None:
        """Replace the line; nothing is sent when it stays the same."""
        right = right or []
        if (left, right) == (self.left, self.right):
            return
        if right or self.right:
            self.refresh()
        else:
            longest = max(bars.cells(parts) for parts in (left, self.left))
            self.refresh(Region(0, 0, min(longest, self.size.width), 1))
        self.left, self.right = left, right

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        return strip_of(bars.two_ends(self.left, self.right, width), width)


class AreaBar(Widget):
    """The first line: the five areas, the current one set off, and the name of the program."""

    DEFAULT_CSS = "AreaBar { height: 1; width: 1fr; }"

    class Chosen(Message):
        """An area was clicked."""

        def __init__(self, index: int) -> None:
            super().__init__()
            self.index = index

    def __init__(self, titles: list[str], current: int) -> None:
        super().__init__()
        self.titles = titles
        self.current = current
        self.running = 0

    def set_running(self, count: int) -> None:
        """Show how many jobs run beside the area of jobs."""
        if count != self.running:
            self.running = count
            self.refresh()

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        return strip_of(bars.area_bar(self.titles, self.current, self.running, width), width)

    def on_click(self, event: events.Click) -> None:
        edge = 0
        for index, (text, _) in enumerate(bars.tabs(self.titles, self.current, self.running)):
            edge += cell_len(text)
            if event.x < edge:
                self.post_message(self.Chosen(index))
                return


class KeyBar(Widget):
    """The last line: a remark at the left, then the keys of the screen, as many as fit."""

    DEFAULT_CSS = "KeyBar { height: 1; width: 1fr; }"

    def __init__(self, hints: list[tuple[str, str]]) -> None:
        super().__init__()
        self.hints = hints
        self.remark = ""

    def set_remark(self, text: str) -> None:
        """Show a few words before the keys, such as how many rows are marked."""
        if text != self.remark:
            self.remark = text
            self.refresh()

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        return strip_of(bars.key_bar(self.hints, self.remark, width), width)


class Notice(Widget):
    """A message above the keys, as high as its text needs; hidden until there is one."""

    DEFAULT_CSS = "Notice { height: auto; width: 1fr; display: none; }"

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.bad = False

    def show(self, text: str, *, bad: bool = False) -> None:
        """Show a message; an error is marked and red."""
        if (text, bad) == (self.text, self.bad):
            return
        self.text, self.bad = text, bad
        self.display = bool(text)
        self.refresh(layout=True)

    def hide(self) -> None:
        """Take the message away."""
        if self.text:
            self.show("")

    def _wrapped(self, width: int) -> list[str]:
        from textwrap import wrap

        return wrap(self.text, max(10, width - 4), break_on_hyphens=False) or [""]

    def get_content_width(self, container: Size, viewport: Size) -> int:
        return container.width

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return len(self._wrapped(width))

    def render_line(self, y: int) -> Strip:
        lines = self._wrapped(self.size.width)
        sign, style = ("✗ ", look.BAD) if self.bad else ("▸ ", look.ACCENT)
        parts: list[Part] = [
            (" ", look.PLAIN),
            (sign if y == 0 else "  ", style),
            (lines[y] if y < len(lines) else "", style),
        ]
        return strip_of(parts, self.size.width)


class Paragraphs(Widget):
    """Texts under each other, as high as they are; a path or name that is longer than a line goes on in the next."""

    DEFAULT_CSS = "Paragraphs { height: auto; width: 1fr; }"

    def __init__(self, texts: Sequence[Sequence[Part]]) -> None:
        super().__init__()
        self.texts = texts

    def _lines(self, width: int) -> list[list[Part]]:
        return [line for text in self.texts for line in wrapped(text, max(10, width))]

    def get_content_width(self, container: Size, viewport: Size) -> int:
        return container.width

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return len(self._lines(width))

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        lines = self._lines(width)
        return strip_of(lines[y] if y < len(lines) else [], width)
