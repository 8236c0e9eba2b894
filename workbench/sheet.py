"""A table's rows, columns and cursor, and how its lines are drawn: what needs no Textual.

The first frame is drawn from here before Textual is imported, and ``workbench.widgets.table`` makes a widget of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style

from workbench import look
from workbench.cells import clip
from workbench.widgets.text import centred

Row = Mapping[str, Any]
Segments = list[Segment]

GUTTER = 2
GAP = 2
FIRST_SHARE = 0.42
"""The share of the width that the first column takes at most."""


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


class Sheet:
    """Rows under a heading; the first column stays while the others move sideways. Holds the rows on screen only."""

    def __init__(
        self, source: Source, columns: Sequence[Column], *, empty: str = "", first_share: float = FIRST_SHARE
    ) -> None:
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

    @property
    def row(self) -> Row | None:
        """The row under the cursor."""
        index = self.cursor - self._rows_top
        return self._rows[index] if 0 <= index < len(self._rows) else None

    # --- reading --------------------------------------------------------------------------------------------------

    def read(self, keep: Any = None) -> None:
        """Ask the source again; the cursor stays on the row ``keep`` if it is still in the window."""
        self._asked = True
        self.total = self.source.count()
        self.cursor = max(0, min(self.cursor, self.total - 1))
        self._fetch()
        if keep is not None:
            for index, row in enumerate(self._rows):
                if self.source.identity(row) == keep:
                    self.cursor = self._rows_top + index

    def _fetch(self) -> None:
        self._scroll_to_cursor()
        self._rows_top = self.top
        self._rows = self.source.window(self.top, self.page) if self.total else ()
        first = self.columns[0]
        self.name_width = max([self.name_width, *(cell_len(first.cell(row)) for row in self._rows)])

    def _scroll_to_cursor(self) -> bool:
        before = self.top
        if self.cursor < self.top:
            self.top = self.cursor
        elif self.cursor >= self.top + self.page:
            self.top = self.cursor - self.page + 1
        self.top = max(0, min(self.top, self.total - self.page))
        return before != self.top

    # --- columns --------------------------------------------------------------------------------------------------

    def shown(self, width: int) -> list[Column]:
        """The columns on screen: the first one, then those from ``first_shown`` that fit whole."""
        room = width - GUTTER - self._first_width(width) - 2
        columns = [self.columns[0]]
        for column in self.columns[self.first_shown :]:
            room -= GAP + column.width
            if room < 0:
                break
            columns.append(column)
        return columns

    def _first_width(self, width: int) -> int:
        return max(8, min(self.name_width, int(width * self.first_share)))

    def _show_column(self, width: int) -> bool:
        """Scroll sideways so that the column under the cursor is on screen; whether anything moved."""
        before = self.first_shown
        if 0 < self.column < self.first_shown:
            self.first_shown = self.column
        elif self.column == 0:
            self.first_shown = 1
        else:
            while self.first_shown < self.column and self.columns[self.column] not in self.shown(width):
                self.first_shown += 1
        return before != self.first_shown

    # --- drawing --------------------------------------------------------------------------------------------------

    def draw(self, y: int, width: int, height: int, *, focused: bool) -> Segments:
        """Line ``y`` of ``height``, exactly ``width`` cells."""
        if self.total == 0:
            return self._empty_line(y, width, height)
        if y == 0:
            return self._heading(width)
        index = self.top + y - 1
        offset = index - self._rows_top
        if not 0 <= offset < len(self._rows):
            return [Segment(" " * width)]
        return self._line(self._rows[offset], index, width, focused)

    def _empty_line(self, y: int, width: int, height: int) -> Segments:
        lines = centred(self.empty, width, height) if self._asked else []
        parts = lines[y] if y < len(lines) else []
        return Segment.adjust_line_length([Segment(text, style) for text, style in parts if text], width)

    def _heading(self, width: int) -> Segments:
        columns = self.shown(width)
        segments = [Segment(" " * GUTTER)]
        for position, column in enumerate(columns):
            cells = self._first_width(width) if position == 0 else column.width
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
            if position == 0 and self.first_shown > 1:
                segments.append(Segment(" ‹", look.ACCENT))
            else:
                segments.append(Segment(" " * GAP))
        more = self.first_shown + len(columns) - 1 < len(self.columns)
        line = Segment.adjust_line_length(segments, width - 1)
        return [*line, Segment("›" if more else " ", look.ACCENT)]

    def _line(self, row: Row, index: int, width: int, focused: bool) -> Segments:
        at_cursor = index == self.cursor
        base = self.source.style(row)
        if at_cursor:
            base = base + (look.CURSOR if focused else look.CURSOR_BLURRED)
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
        for position, column in enumerate(self.shown(width)):
            cells = self._first_width(width) if position == 0 else column.width
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
        mark = self._scroll_mark(index - self.top)
        if mark is None:
            return Segment.adjust_line_length(segments, width)
        return [*Segment.adjust_line_length(segments, width - 1), Segment(mark, look.MUTED)]

    def _scroll_mark(self, y: int) -> str | None:
        """The character of the slim position bar at the right edge, or None where all rows fit."""
        if self.total <= self.page:
            return None
        length = max(1, self.page * self.page // self.total)
        start = (self.page - length) * self.top // max(1, self.total - self.page)
        return "┃" if start <= y < start + length else " "
