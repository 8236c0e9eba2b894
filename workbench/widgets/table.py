"""A table that holds only the rows on screen and asks its source for others when it scrolls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from workbench import look
from workbench.cells import clip
from workbench.widgets.text import centred, strip

Row = Mapping[str, Any]

GUTTER = 2
GAP = 2


@dataclass(frozen=True)
class Column:
    """A column: its key (also its name in the database), title, how a cell is written and how wide that is."""

    key: str
    title: str
    width: int
    cell: Callable[[Row], str]
    numeric: bool = True
    best: str = ""
    """``max`` or ``min`` where one end of the scale is better, empty where neither is."""


class Source(Protocol):
    """Where a table's rows come from."""

    def count(self) -> int:
        """How many rows there are."""

    def window(self, offset: int, limit: int) -> Sequence[Row]:
        """The rows ``offset`` to ``offset + limit``, in order."""

    def identity(self, row: Row) -> Any:
        """What a row is known by across sorting and filtering."""

    def is_best(self, row: Row, column: Column) -> bool:
        """Whether the cell is the best of those it can be compared with."""

    def style(self, row: Row) -> Style:
        """The style of a whole row."""


class Table(Widget, can_focus=True):
    """Rows under a heading; the first column stays while the others move sideways.

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
        self, source: Source, columns: Sequence[Column], *, empty: str = "", first_share: float = 0.42
    ) -> None:
        super().__init__()
        self.source = source
        self.columns = list(columns)
        self.empty = empty
        self.first_share = first_share
        self.cursor = 0
        self.top = 0
        self.column = 0
        self.first_shown = 1
        self.total = 0
        self.page = 1
        """How many rows fit."""
        self._asked = False
        self.name_width = max(16, cell_len(columns[0].title) + 1)
        """The cells of the widest first cell seen so far."""
        self.sort_key = ""
        self.descending = False
        self.marked: dict[Any, Row] = {}
        self._rows: Sequence[Row] = ()
        self._rows_top = 0

    # --- what the screen asks and tells -------------------------------------------------------------------------

    def prepare(self, height: int) -> None:
        """Ask for the rows that ``height`` lines hold before there is a layout: the first paint has them."""
        self.page = max(1, height - 1)
        self.reload()

    @property
    def row(self) -> Row | None:
        """The row under the cursor."""
        index = self.cursor - self._rows_top
        return self._rows[index] if 0 <= index < len(self._rows) else None

    def reload(self, *, keep: Any = None) -> None:
        """Ask the source again; the cursor stays on the row ``keep`` if it is still in the window."""
        self._read(keep)
        self.refresh()
        self.post_message(self.Moved(self, self.row))

    def catch_up(self, keep: Any) -> None:
        """The same where only rows may have changed: sends the lines that look different, and no others.

        A running job changes its row several times a second.
        """
        before = self._shown_lines()
        self._read(keep)
        for y, (old, new) in enumerate(zip(before, self._shown_lines(), strict=True)):
            if old != new:
                self.refresh(Region(0, y, self.size.width, 1))
        self.post_message(self.Moved(self, self.row))

    def _read(self, keep: Any) -> None:
        self._asked = True
        self.total = self.source.count()
        self.cursor = max(0, min(self.cursor, self.total - 1))
        self._fetch()
        if keep is not None:
            for index, row in enumerate(self._rows):
                if self.source.identity(row) == keep:
                    self.cursor = self._rows_top + index

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
        self._show_column()
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
        if self._show_column():
            self.refresh()
        else:
            self.refresh(Region(0, 0, self.size.width, 1))

    # --- layout ---------------------------------------------------------------------------------------------------

    def shown(self) -> list[Column]:
        """The columns on screen: the first one, then those from ``first_shown`` that fit whole."""
        room = self.size.width - GUTTER - self._first_width() - 2
        columns = [self.columns[0]]
        for column in self.columns[self.first_shown :]:
            room -= GAP + column.width
            if room < 0:
                break
            columns.append(column)
        return columns

    def _first_width(self) -> int:
        return max(8, min(self.name_width, int(self.size.width * self.first_share)))

    def _show_column(self) -> bool:
        """Scroll sideways so that the column under the cursor is on screen; whether anything moved."""
        before = self.first_shown
        if 0 < self.column < self.first_shown:
            self.first_shown = self.column
        elif self.column == 0:
            self.first_shown = 1
        else:
            while self.first_shown < self.column and self.columns[self.column] not in self.shown():
                self.first_shown += 1
        return before != self.first_shown

    def _scroll_to_cursor(self) -> bool:
        before = self.top
        if self.cursor < self.top:
            self.top = self.cursor
        elif self.cursor >= self.top + self.page:
            self.top = self.cursor - self.page + 1
        self.top = max(0, min(self.top, self.total - self.page))
        return before != self.top

    def _fetch(self) -> None:
        self._scroll_to_cursor()
        self._rows_top = self.top
        self._rows = self.source.window(self.top, self.page) if self.total else ()
        first = self.columns[0]
        self.name_width = max([self.name_width, *(cell_len(first.cell(row)) for row in self._rows)])

    def _refresh_row(self, index: int) -> None:
        self.refresh(Region(0, index - self.top + 1, self.size.width, 1))

    # --- drawing --------------------------------------------------------------------------------------------------

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        if self.total == 0:
            return self._empty_line(y, width)
        if y == 0:
            return self._heading(width)
        index = self.top + y - 1
        offset = index - self._rows_top
        if not 0 <= offset < len(self._rows):
            return Strip.blank(width)
        return self._line(self._rows[offset], index, width)

    def _empty_line(self, y: int, width: int) -> Strip:
        if not self._asked:
            return Strip.blank(width)
        lines = centred(self.empty, width, self.size.height)
        return strip(lines[y] if y < len(lines) else []).adjust_cell_length(width)

    def _heading(self, width: int) -> Strip:
        columns = self.shown()
        segments = [Segment(" " * GUTTER)]
        used = GUTTER
        for position, column in enumerate(columns):
            cells = self._first_width() if position == 0 else column.width
            arrow = ("▾" if self.descending else "▴") if column.key == self.sort_key else ""
            title = column.title + arrow
            text = clip(title, cells) if not column.numeric else clip(title.center(cells).rstrip(), cells)
            style = look.BOLD + Style(underline=True) if column is self.columns[self.column] else look.MUTED
            lead = len(text) - len(text.lstrip())
            body = text.strip()
            segments += [
                Segment(" " * lead),
                Segment(body, style),
                Segment(" " * (cells - lead - cell_len(body))),
            ]
            used += cells
            if position == 0 and self.first_shown > 1:
                segments.append(Segment(" ‹", look.ACCENT))
            else:
                segments.append(Segment(" " * GAP))
            used += GAP
        more = self.first_shown + len(columns) - 1 < len(self.columns)
        line = Strip(segments, used).adjust_cell_length(width - 1)
        return Strip([*line, Segment("›" if more else " ", look.ACCENT)], width)

    def _line(self, row: Row, index: int, width: int) -> Strip:
        at_cursor = index == self.cursor
        base = self.source.style(row)
        if at_cursor:
            base = base + (look.CURSOR if self.has_focus else look.CURSOR_BLURRED)
        segments: list[Segment] = []
        pending, used = "", 0

        def put(text: str, style: Style = base) -> None:
            nonlocal pending, used
            used += cell_len(text)
            if style is base:
                pending += text
                return
            if pending:
                segments.append(Segment(pending, base))
                pending = ""
            segments.append(Segment(text, style))

        if self.source.identity(row) in self.marked:
            put("●", base + look.ACCENT if not at_cursor else base)
            put(" ")
        else:
            put(" " * GUTTER)
        for position, column in enumerate(self.shown()):
            cells = self._first_width() if position == 0 else column.width
            text = clip(column.cell(row), cells)
            # Under the cursor all is of one style: every other one costs as many bytes again as its text.
            if column.best and not at_cursor and self.source.is_best(row, column):
                put(text, base + look.BOLD)
            else:
                put(text)
            put(" " * GAP)
        put(" " * max(0, width - used))
        if pending:
            segments.append(Segment(pending, base))
        strip = Strip(segments, used).crop(0, width)
        mark = self._scroll_mark(index - self.top)
        return strip if mark is None else Strip([*strip.crop(0, width - 1), Segment(mark, look.MUTED)], width)

    def _scroll_mark(self, y: int) -> str | None:
        """The character of the slim position bar at the right edge, or None where all rows fit."""
        if self.total <= self.page:
            return None
        length = max(1, self.page * self.page // self.total)
        start = (self.page - length) * self.top // max(1, self.total - self.page)
        return "┃" if start <= y < start + length else " "

    # --- events ---------------------------------------------------------------------------------------------------

    def on_resize(self) -> None:
        if self.size.height:
            page = max(1, self.size.height - 1)
            self._show_column()
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
