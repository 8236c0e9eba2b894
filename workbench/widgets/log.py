"""A log file on screen: only the lines shown are read, the end is followed until one scrolls up."""

from __future__ import annotations

from array import array
from pathlib import Path

from textual import events
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from workbench import look
from workbench.cells import clip
from workbench.widgets.text import strip, visible

CHUNK = 1 << 20
LONGEST = 4096
"""Bytes of a line that are read; what a screen can show is far less."""


class LogFile:
    """The line starts of a growing file; a million lines take 8 MB and a fraction of a second."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.starts = array("Q", [0])
        self.size = 0

    def __len__(self) -> int:
        """How many lines there are; a last one without a line break counts."""
        return len(self.starts) - (self.starts[-1] == self.size)

    def grow(self) -> bool:
        """Look at what was appended since the last time; whether anything was."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(0, 2)
                end = stream.tell()
                if end < self.size:  # a new attempt began the file anew
                    self.starts, self.size = array("Q", [0]), 0
                before = self.size
                stream.seek(self.size)
                while self.size < end and (chunk := stream.read(min(CHUNK, end - self.size))):
                    at = chunk.find(b"\n")
                    while at >= 0:
                        self.starts.append(self.size + at + 1)
                        at = chunk.find(b"\n", at + 1)
                    self.size += len(chunk)
        except OSError:
            return False
        return self.size != before

    def lines(self, first: int, count: int) -> list[str]:
        """Lines from ``first``; of a line overwritten with carriage returns, its last state."""
        texts: list[str] = []
        try:
            with self.path.open("rb") as stream:
                for number in range(first, min(first + count, len(self))):
                    stream.seek(self.starts[number])
                    end = self.starts[number + 1] if number + 1 < len(self.starts) else self.size
                    length = end - self.starts[number]
                    if length > LONGEST:
                        stream.seek(end - LONGEST)
                    raw = stream.read(min(length, LONGEST)).decode("utf-8", "replace").rstrip("\r\n")
                    texts.append(raw.rpartition("\r")[2])
        except OSError as error:
            texts.append(f"{self.path}: cannot be read ({error.strerror or error})")
        return texts


class LogView(Widget, can_focus=True):
    """The end of a log file, or wherever one scrolled to."""

    DEFAULT_CSS = "LogView { height: 1fr; width: 1fr; }"

    class Followed(Message):
        """Following began or paused."""

    def __init__(self) -> None:
        super().__init__()
        self.file: LogFile | None = None
        self.top = 0
        self.following = True
        self.empty = ""

    @property
    def end(self) -> int:
        """The ``top`` at which the last line is at the bottom."""
        return max(0, len(self.file) - self.size.height) if self.file is not None else 0

    def open(self, path: Path | None, empty: str = "") -> None:
        """Show another file from its end; nothing for None."""
        self.empty = empty
        if path is not None and self.file is not None and self.file.path == path:
            self.look()
            return
        self.file = None if path is None else LogFile(path)
        self.following = True
        self.look()
        self.refresh()

    def look(self) -> None:
        """Show what was appended since the last look."""
        if self.file is not None and self.file.grow():
            if self.following:
                self.top = self.end
            self.refresh()

    def scroll(self, step: int) -> None:
        """Move by lines; going up pauses, reaching the end follows again."""
        self.top = max(0, min(self.top + step, self.end))
        following = self.top >= self.end
        if following != self.following:
            self.following = following
            self.post_message(self.Followed())
        self.refresh()

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        if self.file is None or not len(self.file):
            return strip([(clip(f" {self.empty}" if y == 0 else "", width), look.MUTED)])
        lines = self.file.lines(self.top + y, 1)
        return strip([(clip(" " + visible(lines[0]) if lines else "", width), look.PLAIN)])

    def on_resize(self) -> None:
        if self.following:
            self.top = self.end

    def on_mouse_scroll_down(self) -> None:
        self.scroll(3)

    def on_mouse_scroll_up(self) -> None:
        self.scroll(-3)

    def on_key(self, event: events.Key) -> None:
        page, all_of_it = max(1, self.size.height - 1), len(self.file or ())
        steps = {"down": 1, "j": 1, "up": -1, "k": -1, "pagedown": page, "pageup": -page, "home": -all_of_it,
                 "g": -all_of_it, "end": all_of_it, "G": all_of_it}  # fmt: skip
        name = event.character if event.character in steps else event.key
        if name in steps:
            self.scroll(steps[name])
            event.stop()
