"""A table that holds only the rows on screen and asks its source for others when it scrolls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from textual import events
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from workbench.sheet import FIRST_SHARE, Column, Row, Sheet, Source


class Table(Sheet, Widget, can_focus=True):
    """A sheet that keys and the mouse move in.

    It sends nothing it does not have to: moving the cursor repaints two rows.
    """

    DEFAULT_CSS = "Table { height: 1fr; width: 1fr; }"

    class Moved(Message):
        """The row under the cursor changed (also when its contents did)."""

        def __init__(self, table: Table, row: Row | None) -> None:
            super().__init__()
            self.table = table
            self.row = row

        @property
        def control(self) -> Table:
            return self.table

    class Opened(Moved):
        """Enter was pressed, or the row clicked a second time."""

    def __init__(
        self, source: Source, columns: Sequence[Column], *, empty: str = "", first_share: float = FIRST_SHARE
    ) -> None:
        Widget.__init__(self)
        Sheet.__init__(self, source, columns, empty=empty, first_share=first_share)

    # --- what the screen asks and tells -------------------------------------------------------------------------

    def prepare(self, height: int) -> None:
        """Ask for the rows that ``height`` lines hold before there is a layout: the first paint has them."""
        self.page = max(1, height - 1)
        self.reload()

    def reload(self, *, keep: Any = None) -> None:
        """Ask the source again; the cursor stays on the row ``keep`` if it is still in the window."""
        self.read(keep)
        self.refresh()
        self.post_message(self.Moved(self, self.row))

    def catch_up(self, keep: Any) -> None:
        """The same where only rows may have changed: sends the lines that look different, and no others.

        A running job changes its row several times a second.
        """
        before = self._shown_lines()
        self.read(keep)
        for y, (old, new) in enumerate(zip(before, self._shown_lines(), strict=True)):
            if old != new:
                self.refresh(Region(0, y, self.size.width, 1))
        self.post_message(self.Moved(self, self.row))

    def _shown_lines(self) -> list[Strip]:
        return [self.render_line(y) for y in range(self.size.height)]

    def set_columns(self, columns: Sequence[Column]) -> None:
        """Show other columns; the column cursor stays on its column or goes to the first."""
        if list(columns) == self.columns:
            self.refresh()
            return
        current = self.columns[self.column].key if self.column < len(self.columns) else ""
        self.columns = list(columns)
        self.column = next((i for i, column in enumerate(self.columns) if column.key == current), 0)
        self.first_shown = 1
        self._show_column(self.size.width)
        self.refresh()

    def go(self, index: int) -> None:
        """Put the cursor on a row, scrolling no more than needed."""
        index = max(0, min(index, self.total - 1))
        if index == self.cursor:
            return
        before, self.cursor = self.cursor, index
        if self._scroll_to_cursor():
            self._fetch()
            self.refresh()
        else:
            self._refresh_row(before)
            self._refresh_row(index)
        self.post_message(self.Moved(self, self.row))

    def toggle_mark(self) -> None:
        """Mark or unmark the row under the cursor and go to the next."""
        row = self.row
        if row is None:
            return
        identity = self.source.identity(row)
        if self.marked.pop(identity, None) is None:
            self.marked[identity] = row
        self._refresh_row(self.cursor)
        if self.cursor < self.total - 1:
            self.go(self.cursor + 1)

    def move_column(self, step: int) -> None:
        """Move the column cursor, scrolling sideways when it leaves the screen."""
        target = max(0, min(self.column + step, len(self.columns) - 1))
        if target == self.column:
            return
        self.column = target
        if self._show_column(self.size.width):
            self.refresh()
        else:
            self.refresh(Region(0, 0, self.size.width, 1))

    def _refresh_row(self, index: int) -> None:
        self.refresh(Region(0, index - self.top + 1, self.size.width, 1))

    def render_line(self, y: int) -> Strip:
        width, height = self.size
        return Strip(self.draw(y, width, height, focused=self.has_focus), width)

    # --- events ---------------------------------------------------------------------------------------------------

    def on_resize(self) -> None:
        if self.size.height:
            page = max(1, self.size.height - 1)
            self._show_column(self.size.width)
            if page != self.page or not self._asked:
                self.page = page
                self.reload()

    def watch_has_focus(self, _: bool) -> None:
        self._refresh_row(self.cursor)

    def on_mouse_scroll_down(self) -> None:
        self.go(self.cursor + 3)

    def on_mouse_scroll_up(self) -> None:
        self.go(self.cursor - 3)

    def on_click(self, event: events.Click) -> None:
        index = self.top + event.y - 1
        if event.y > 0 and index < self.total:
            if index == self.cursor:
                self.post_message(self.Opened(self, self.row))
            self.go(index)

    KEYS: ClassVar[dict[str, tuple[str, int]]] = {
        "up": ("step", -1), "k": ("step", -1), "down": ("step", 1), "j": ("step", 1),
        "pageup": ("page", -1), "pagedown": ("page", 1),
        "home": ("edge", 0), "g": ("edge", 0), "end": ("edge", 1), "G": ("edge", 1),
        "left": ("column", -1), "right": ("column", 1),
    }  # fmt: skip

    def check_consume_key(self, key: str, character: str | None) -> bool:
        """Whether a key only moves in the table."""
        return character in self.KEYS or key in self.KEYS

    def on_key(self, event: events.Key) -> None:
        """Movement is handled here rather than by bindings, which would fill the key list with arrows."""
        name = event.character if event.character in self.KEYS else event.key
        if name == "enter":
            self.post_message(self.Opened(self, self.row))
        elif name in self.KEYS:
            kind, amount = self.KEYS[name]
            if kind == "step":
                self.go(self.cursor + amount)
            elif kind == "page":
                self.go(self.cursor + amount * self.page)
            elif kind == "edge":
                self.go(amount * (self.total - 1))
            else:
                self.move_column(amount)
        else:
            return
        event.stop()
